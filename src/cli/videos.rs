//! The videos that a command line names: by arguments, by a list in a file, and by directories of them.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};

use super::name::escaped;
use crate::train::dataset::is_video;

/// Stands for standard input.
pub(super) const STDIN: &str = "-";

/// A video as it was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// A path, a URI, or [`STDIN`].
    pub(super) name: PathBuf,
    /// The list that names it, and its line there from 1.
    line: Option<(Arc<Path>, usize)>,
    /// Why it can't be classified, where that is known already.
    pub(super) trouble: Option<String>,
}

impl Named {
    /// What to call it in a message.
    pub(super) fn title(&self) -> String {
        let name = escaped(self.name.as_os_str());
        match &self.line {
            None => name.into_owned(),
            Some((list, line)) => format!("{}, line {line}: {name}", escaped(list.as_os_str())),
        }
    }
}

impl From<PathBuf> for Named {
    fn from(name: PathBuf) -> Self {
        Self { name, line: None, trouble: None }
    }
}

/// All videos in their order. With `recursive`, a directory stands for the videos in it.
pub(super) fn gather(arguments: &[PathBuf], list: Option<&Path>, recursive: bool) -> anyhow::Result<Vec<Named>> {
    let mut named: Vec<Named> = arguments.iter().cloned().map(Named::from).collect();
    if let Some(list) = list {
        named.extend(read_list(list)?);
    }
    let readers = named.iter().filter(|video| video.name == Path::new(STDIN)).count();
    if readers + usize::from(list == Some(Path::new(STDIN))) > 1 {
        bail!("standard input can be read once: `{STDIN}` is named {} times", readers.max(2));
    }
    if !recursive {
        return Ok(named);
    }
    let mut videos = Vec::new();
    for video in named {
        if !video.name.is_dir() {
            videos.push(video);
            continue;
        }
        let below = |name, trouble| Named { name, line: video.line.clone(), trouble };
        let found = videos_below(&video.name).into_iter().map(|(name, trouble)| below(name, trouble));
        videos.extend(found);
    }
    Ok(videos)
}

/// The lines of a list but for empty ones. Names are bytes; only the end of the line is taken off them.
fn read_list(list: &Path) -> anyhow::Result<Vec<Named>> {
    let read = || -> io::Result<Vec<u8>> {
        if list != Path::new(STDIN) {
            return std::fs::read(list);
        }
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().with_context(|| format!("can't read {}", escaped(list.as_os_str())))?;
    // As some editors begin a file.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let shared: Arc<Path> = list.into();
    let mut videos = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let number = index + 1;
        if line.contains(&0) {
            bail!("{}, line {number}: a name holds no NUL: is this a list?", escaped(list.as_os_str()));
        }
        videos.push(Named {
            name: OsStr::from_bytes(line).into(),
            line: Some((Arc::clone(&shared), number)),
            trouble: None,
        });
    }
    Ok(videos)
}

/// The files below a directory that are named as videos are, in the order of their names, and what can't be looked into,
/// with the reason. Links to directories are not followed, as they may lead round in circles.
fn videos_below(root: &Path) -> Vec<(PathBuf, Option<String>)> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        let mut look = || -> io::Result<()> {
            for entry in std::fs::read_dir(&directory)? {
                let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
                if kind.is_dir() {
                    waiting.push(path);
                } else if is_video(&path) && !path.is_dir() {
                    found.push((path, None));
                }
            }
            Ok(())
        };
        if let Err(error) = look() {
            found.push((directory, Some(error.to_string())));
        }
    }
    if found.is_empty() {
        found.push((root.to_owned(), Some("no file in this directory is named as videos are".to_owned())));
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn names(videos: &[Named]) -> Vec<&Path> {
        videos.iter().map(|video| video.name.as_path()).collect()
    }

    #[test]
    fn a_lists_names_are_bytes_and_know_their_lines() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("list.txt");
        std::fs::write(&list, b"\xef\xbb\xbfa.mp4\r\n\n  \n b.mp4 \nc\xff.mp4\n").unwrap();
        let videos = gather(&["x.mp4".into()], Some(&list), false).unwrap();
        let odd = PathBuf::from(OsString::from_vec(b"c\xff.mp4".to_vec()));
        assert_eq!(names(&videos), [Path::new("x.mp4"), Path::new("a.mp4"), Path::new(" b.mp4 "), &odd]);
        assert_eq!(videos[0].title(), "x.mp4");
        assert!(videos[3].title().ends_with(r"list.txt, line 5: c\xff.mp4"), "{}", videos[3].title());
    }

    #[test]
    fn a_line_that_can_be_no_name_is_named_by_its_number() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("list.txt");
        std::fs::write(&list, b"a.mp4\nb\0.mp4\n").unwrap();
        let error = gather(&[], Some(&list), false).unwrap_err().to_string();
        assert!(error.contains("list.txt, line 2: "), "{error}");
    }

    #[test]
    fn directories_stand_for_the_videos_in_them_if_asked() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir_all(root.join("deep/er")).unwrap();
        for name in ["b.MP4", "a.webm", "notes.txt", "deep/er/c.mkv"] {
            std::fs::write(root.join(name), b"x").unwrap();
        }
        std::os::unix::fs::symlink(root, root.join("deep/round.mp4")).unwrap();
        let argument = [root.to_owned()];
        assert_eq!(names(&gather(&argument, None, false).unwrap()), [root]);
        let expected = ["a.webm", "b.MP4", "deep/er/c.mkv"].map(|name| root.join(name));
        assert_eq!(names(&gather(&argument, None, true).unwrap()), expected);

        let empty = [root.join("empty")];
        std::fs::create_dir(&empty[0]).unwrap();
        let nothing = gather(&empty, None, true).unwrap();
        assert!(nothing[0].name == empty[0] && nothing[0].trouble.is_some(), "{nothing:?}");
    }

    #[test]
    fn standard_input_is_read_once() {
        let error = gather(&["-".into(), "-".into()], None, false).unwrap_err().to_string();
        assert!(error.contains("once"), "{error}");
        assert!(gather(&["-".into()], Some(Path::new("-")), false).is_err());
    }
}
