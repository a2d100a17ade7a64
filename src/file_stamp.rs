//! What tells one content of a path from another, without reading it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Changes with the file that a path leads to, and with what is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileStamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl FileStamp {
    pub(crate) fn of(file: &Metadata) -> Self {
        let modified = (file.mtime(), file.mtime_nsec());
        Self { device: file.dev(), inode: file.ino(), len: file.len(), modified }
    }
}
