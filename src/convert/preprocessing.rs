//! The preprocessing that a set of weights was trained with: by the name of its family, or by hand.

use std::path::{Path, PathBuf};

use crate::model::spec::Preprocessing;

/// Largest description that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Why a preprocessing is refused.
#[derive(Debug, thiserror::Error)]
pub enum PreprocessingError {
    /// Neither a known name nor a file.
    #[error("preprocessing {name:?} can't be read ({source}); allowed are 2018, 2020, torchvision or a JSON file")]
    Unknown {
        /// As given.
        name: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Bigger than any description.
    #[error("{path}: the description of a preprocessing has {actual} bytes; the limit is {limit}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes.
        actual: u64,
        /// Bytes.
        limit: u64,
    },
    /// A file that does not describe a preprocessing.
    #[error("{path}: {source}; expected JSON such as {}", example())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// The preprocessing called `2018`, `2020` or `torchvision`, or that of a JSON file with the fields of
/// [`Preprocessing`].
pub fn read_preprocessing(name: &Path) -> Result<Preprocessing, PreprocessingError> {
    match name.to_str() {
        Some("2018") => return Ok(Preprocessing::AUTHORS_2018),
        Some("2020") => return Ok(Preprocessing::AUTHORS_2020),
        Some("torchvision") => return Ok(Preprocessing::TORCHVISION),
        _ => {}
    }
    let unknown = |source| PreprocessingError::Unknown { name: name.to_owned(), source };
    let actual = std::fs::metadata(name).map_err(unknown)?.len();
    if actual > MAX_BYTES {
        return Err(PreprocessingError::TooLarge { path: name.to_owned(), actual, limit: MAX_BYTES });
    }
    let text = std::fs::read_to_string(name).map_err(unknown)?;
    serde_json::from_str(&text).map_err(|source| PreprocessingError::Syntax { path: name.to_owned(), source })
}

fn example() -> String {
    serde_json::to_string(&Preprocessing::TORCHVISION).expect("a plain structure serialises")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_preprocessings_go_by_name() {
        for (name, expected) in [
            ("2018", Preprocessing::AUTHORS_2018),
            ("2020", Preprocessing::AUTHORS_2020),
            ("torchvision", Preprocessing::TORCHVISION),
        ] {
            assert_eq!(read_preprocessing(Path::new(name)).unwrap(), expected);
        }
    }

    #[test]
    fn others_are_described_in_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), example()).unwrap();
        assert_eq!(read_preprocessing(file.path()).unwrap(), Preprocessing::TORCHVISION);
        std::fs::write(file.path(), "{}").unwrap();
        let error = read_preprocessing(file.path()).unwrap_err().to_string();
        assert!(error.contains("missing field") && error.contains("pixel_divisor"), "{error}");
        assert!(read_preprocessing(Path::new("2019")).unwrap_err().to_string().contains("2018, 2020, torchvision"));
    }
}
