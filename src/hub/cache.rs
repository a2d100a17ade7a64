//! A repository's files in the cache: `blobs/` by checksum, `snapshots/COMMIT/` with links to them by name, and in
//! `refs/` what each branch or tag was when it was last looked at.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use sha2::{Digest, Sha256};

use super::HubError;
use super::name::HubModel;

/// How often a file that another process downloads is looked at.
const LOCK_PERIOD: Duration = Duration::from_millis(100);

/// The files of one repository that were downloaded.
pub(super) struct CachedRepository {
    root: PathBuf,
    directory: PathBuf,
    folder: String,
    revision: String,
    repo: CacheRepo,
}

impl CachedRepository {
    pub(super) fn new(root: &Path, model: &HubModel) -> Self {
        let revision = model.revision().to_owned();
        let repo = Repo::with_revision(model.repository().to_owned(), RepoType::Model, revision.clone());
        let folder = repo.folder_name();
        let directory = root.join(&folder);
        Self { root: root.to_owned(), directory, folder, revision, repo: Cache::new(root.to_owned()).repo(repo) }
    }

    /// What the revision was when it was last looked at.
    pub(super) fn known_commit(&self) -> Option<String> {
        let known = std::fs::read_to_string(self.directory.join("refs").join(&self.revision)).ok()?;
        Some(known.trim().to_owned()).filter(|commit| is_hash(commit))
    }

    /// From now on the revision is this commit.
    pub(super) fn set_commit(&self, commit: &str) -> Result<(), HubError> {
        if self.known_commit().as_deref() == Some(commit) {
            return Ok(());
        }
        self.repo.create_ref(commit).map_err(|error| self.error(error))
    }

    /// The file, if it was downloaded.
    pub(super) fn file(&self, commit: &str, file: &str) -> Option<PathBuf> {
        Some(self.repo.pointer_path(commit).join(file)).filter(|path| path.exists())
    }

    /// Paths of the files of a commit that were downloaded.
    pub(super) fn files(&self, commit: &str) -> Vec<String> {
        let root = self.repo.pointer_path(commit);
        let (mut files, mut directories) = (Vec::new(), vec![root.clone()]);
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.is_file() {
                    files.extend(path.strip_prefix(&root).ok().and_then(Path::to_str).map(str::to_owned));
                }
            }
        }
        files
    }

    /// The file of this checksum, whatever its name; it need not be there.
    pub(super) fn blob(&self, checksum: &str) -> PathBuf {
        self.directory.join("blobs").join(checksum)
    }

    /// Gives a blob its name in a commit.
    pub(super) fn link(&self, commit: &str, file: &str, checksum: &str) -> Result<PathBuf, HubError> {
        let path = self.repo.pointer_path(commit).join(file);
        // Another process may be reading it.
        if let (Ok(there), Ok(blob)) = (path.canonicalize(), self.blob(checksum).canonicalize())
            && there == blob
        {
            return Ok(path);
        }
        let linked = || {
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let depth = file.matches('/').count();
            let target: PathBuf = std::iter::repeat_n("..", depth + 2).collect();
            link(&target.join("blobs").join(checksum), &self.blob(checksum), &path)
        };
        match linked() {
            Ok(()) => Ok(path),
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(path),
            Err(error) => Err(HubError::Cache { path, error }),
        }
    }

    /// What is there of a blob that is being downloaded, for one process at a time; its position is at its start.
    /// `None` if another process has finished it meanwhile. Waits as long as the other makes headway.
    pub(super) fn begin(&self, checksum: &str, idle_timeout: Duration) -> Result<Option<Download>, HubError> {
        let blob = self.blob(checksum);
        let partial = self.directory.join("blobs").join(format!("{checksum}.incomplete"));
        let lock_path = self.root.join(".locks").join(&self.folder).join(format!("{checksum}.lock"));
        let open = |path: &Path| {
            std::fs::create_dir_all(path.parent().unwrap_or(path))?;
            File::options().create(true).truncate(false).read(true).write(true).open(path)
        };
        let opened = |path: PathBuf| match open(&path) {
            Ok(file) => Ok(file),
            Err(error) => Err(HubError::Cache { path, error }),
        };
        let lock = opened(lock_path)?;
        let length = || std::fs::metadata(&partial).map_or(0, |partial| partial.len());
        let (mut seen, mut since) = (length(), Instant::now());
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(self.error(error)),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PERIOD),
            }
            if length() != seen {
                (seen, since) = (length(), Instant::now());
            } else if since.elapsed() > idle_timeout {
                let detail = "another process downloads it and makes no headway";
                return Err(self.error(io::Error::new(io::ErrorKind::WouldBlock, detail)));
            }
        }
        if blob.exists() {
            return Ok(None);
        }
        let file = opened(partial.clone())?;
        Ok(Some(Download { file, partial, blob, _lock: lock }))
    }

    fn error(&self, error: io::Error) -> HubError {
        HubError::Cache { path: self.directory.clone(), error }
    }
}

/// A file that is being downloaded. What is there of it stays for the next try, whatever ends this one.
pub(super) struct Download {
    pub(super) file: File,
    partial: PathBuf,
    blob: PathBuf,
    _lock: File,
}

impl Download {
    /// Gives the whole and checked file its name.
    pub(super) fn keep(self) -> Result<(), HubError> {
        let kept = self.file.sync_all().and_then(|()| std::fs::rename(&self.partial, &self.blob));
        kept.map_err(|error| self.error(error))
    }

    /// Removes what can't be used.
    pub(super) fn discard(self) {
        // One that can't be removed is not used either: its checksum is wrong next time too.
        let _ = std::fs::remove_file(&self.partial);
    }

    pub(super) fn error(&self, error: io::Error) -> HubError {
        HubError::Cache { path: self.partial.clone(), error }
    }
}

#[cfg(unix)]
fn link(target: &Path, _: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(not(unix))]
fn link(_: &Path, blob: &Path, path: &Path) -> io::Result<()> {
    std::fs::copy(blob, path).map(drop)
}

/// Whether a text can be a commit or a checksum, and so a name in the cache.
pub(super) fn is_hash(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Whether a checksum is a SHA-256. Files that the hub keeps in git itself have another one, of git's own.
pub(super) fn is_sha256(checksum: &str) -> bool {
    checksum.len() == 64 && checksum.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// In hexadecimal digits, as file names have it.
pub(super) fn hexadecimal(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
