//! An output before it is finished: a hidden file beside it, locked by the process that writes it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A locked, unfinished file; removed if it is dropped as such.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    /// The lock belongs to the open file, and so to FFmpeg's process too, which inherits it: as long as anything writes,
    /// nobody else does.
    file: File,
    finished: bool,
}

/// Whose turn it is to make an output.
#[derive(Debug)]
pub(super) enum Claim {
    /// This process's.
    Ours(Part),
    /// Another one is at it.
    Others,
    /// It is there.
    Done,
}

impl Part {
    /// Begins the output `to`, unless it is there or another process has begun it. What an earlier run left is overwritten.
    pub(super) fn claim(to: &Path) -> io::Result<Claim> {
        if to.exists() {
            return Ok(Claim::Done);
        }
        fs::create_dir_all(to.parent().unwrap_or(Path::new(".")))?;
        // Hidden, so that no dataset takes it for a video.
        let mut name = OsString::from(".");
        name.push(to.file_name().unwrap_or_default());
        name.push(".part");
        let path = to.with_file_name(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Claim::Others),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Between opening and locking, the one before may have given the file its name, or removed it.
        let ours = file.metadata()?;
        let same = fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
        match (same, to.exists()) {
            (true, false) => Ok(Claim::Ours(Self { path, file, finished: false })),
            (true, true) => {
                fs::remove_file(&path)?;
                Ok(Claim::Done)
            }
            (false, true) => Ok(Claim::Done),
            (false, false) => Ok(Claim::Others),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The lock, for a process that is to have it too.
    pub(super) fn lock(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Gives the file its name, once its bytes are on the disk.
    pub(super) fn persist(mut self, to: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, to)?;
        self.finished = true;
        File::open(to.parent().unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished {
            // One that can't be removed costs space only, until the next run.
            let _ = fs::remove_file(&self.path);
        }
    }
}
