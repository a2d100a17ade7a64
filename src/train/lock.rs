//! One training in a folder at a time.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tracing::warn;

/// The file whose lock says that somebody trains in the folder.
const LOCK_FILE: &str = ".kinetoscope-train.lock";

/// A folder that no other training writes to while this lives. The system gives it back when the process ends, however it
/// does.
#[derive(Debug)]
pub(super) struct FolderLock {
    _file: File,
}

/// Why a folder can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("another process trains in {}; two would write over each other", .folder.display())]
    Taken {
        /// The folder.
        folder: PathBuf,
    },
    /// The file system.
    #[error("can't lock {}", .path.display())]
    Io {
        /// The file to lock.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FolderLock {
    /// Makes the folder, if it is not there, and takes it.
    pub(super) fn take(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join(LOCK_FILE);
        let io = |source| LockError::Io { path: path.clone(), source };
        fs::create_dir_all(folder).map_err(io)?;
        // Appending, so that nothing that is there is changed.
        let file = File::options().append(true).create(true).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LockError::Taken { folder: folder.to_owned() }),
            // Some network file systems know no locks.
            Err(TryLockError::Error(error)) => {
                warn!(folder = %folder.display(), %error, "the folder can't be locked; start no other training in it");
            }
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_is_had_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new");
        let first = FolderLock::take(&out).unwrap();
        let second = FolderLock::take(&out).unwrap_err();
        assert!(matches!(second, LockError::Taken { .. }), "{second}");
        drop(first);
        FolderLock::take(&out).unwrap();
    }
}
