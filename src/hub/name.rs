//! What models on the hub are called.

use std::fmt;
use std::str::FromStr;

/// How a model on the hub is told from a path.
pub(super) const PREFIX: &str = "hf:";

/// `hf:ORG/REPO[/FILE][@REVISION]`: a file of a repository on the Hugging Face Hub.
///
/// What stands in it becomes part of URLs and of paths in the cache, so little is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    repository: String,
    file: Option<String>,
    revision: Option<String>,
}

/// Why a name is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not {PREFIX}ORG/REPO[/FILE][@REVISION]; its parts are of letters, digits, '.', '_', '-' and '+'")]
pub struct InvalidName {
    name: String,
}

impl HubModel {
    /// `ORG/REPO`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The file's path in its repository, if it was named.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// Branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Whether the revision is a commit, which always means the same.
    pub fn is_commit(&self) -> bool {
        let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        self.revision().len() == 40 && self.revision().bytes().all(hexadecimal)
    }
}

impl FromStr for HubModel {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName { name: name.to_owned() };
        let rest = name.strip_prefix(PREFIX).ok_or_else(invalid)?;
        let (path, revision) = match rest.rsplit_once('@') {
            Some((path, revision)) => (path, Some(revision.to_owned())),
            None => (rest, None),
        };
        let mut parts = path.splitn(3, '/');
        let (Some(organisation), Some(repository)) = (parts.next(), parts.next()) else { return Err(invalid()) };
        let file = parts.next().map(str::to_owned);
        if !is_path(path) || !revision.as_deref().is_none_or(is_path) {
            return Err(invalid());
        }
        Ok(Self { repository: format!("{organisation}/{repository}"), file, revision })
    }
}

/// As it was written.
impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.repository)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

/// Whether a text is a relative path that needs no encoding in URLs and leads nowhere else.
pub(super) fn is_path(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte);
    text.split('/').all(|part| !["", ".", ".."].contains(&part) && part.bytes().all(allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_written_as_they_were() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (name, file, revision) in [
            ("hf:org/repo".to_owned(), None, "main"),
            ("hf:org/repo@v1.0".to_owned(), None, "v1.0"),
            ("hf:org/repo/best.safetensors".to_owned(), Some("best.safetensors"), "main"),
            ("hf:org/repo/a/b.safetensors@refs/pr/1".to_owned(), Some("a/b.safetensors"), "refs/pr/1"),
            (format!("hf:org/repo@{commit}"), None, commit),
        ] {
            let model: HubModel = name.parse().unwrap();
            assert_eq!((model.repository(), model.file(), model.revision()), ("org/repo", file, revision));
            assert_eq!(model.is_commit(), revision == commit);
            assert_eq!(model.to_string(), name);
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_none() {
        for name in [
            "hf:",
            "hf:repo",
            "hf:org/",
            "hf:org/repo/",
            "hf:org/repo@",
            "hf:../repo",
            "hf:org/..",
            "hf:org/repo/../../x",
            "hf:org/repo@../main",
            "hf:org/repo/a%2fb",
            "hf:org/repo/a?b",
            "hf:org/repo name",
            "org/repo",
        ] {
            assert!(name.parse::<HubModel>().is_err(), "{name}");
        }
    }
}
