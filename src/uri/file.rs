//! Files of this machine, below a directory and nowhere else.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Prefix, UriError};

/// A directory (or a single file) that may be read, by its real path.
#[derive(Debug, Clone)]
pub(super) struct Root(Arc<PathBuf>);

impl Root {
    pub(super) fn find(prefix: &Prefix) -> io::Result<Self> {
        let path = prefix.segments().iter().fold(PathBuf::from("/"), |path, segment| path.join(segment));
        Ok(Self(Arc::new(std::fs::canonicalize(path)?)))
    }

    /// Opens the regular file at `rest`, names without `/`, `.` and `..`. Symbolic links are followed, but not out of the
    /// root.
    pub(super) fn open(&self, rest: &[String]) -> Result<File, UriError> {
        let root: &Path = &self.0;
        let path = rest.iter().fold(root.to_owned(), |path, segment| path.join(segment));
        // Only a handle: a device does nothing yet, and a pipe without a writer does not block.
        let handle = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(refusal)?;
        let reopened = format!("/proc/self/fd/{}", handle.as_raw_fd());
        // What was opened is what is checked, whoever swaps links meanwhile.
        let real = std::fs::read_link(&reopened).map_err(|error| UriError::Unavailable(error.to_string()))?;
        if !real.starts_with(root) {
            return Err(UriError::NotAllowed("the URI leads out of what its operator allowed"));
        }
        let stat = rustix::fs::fstat(&handle).map_err(refusal)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(UriError::NotAllowed("the URI names something else than a file"));
        }
        File::open(reopened).map_err(|error| Errno::from_io_error(&error).map_or(UriError::NotFound, refusal))
    }
}

fn refusal(error: Errno) -> UriError {
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG => UriError::NotFound,
        Errno::ACCESS | Errno::PERM => UriError::Denied,
        error => UriError::Unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A root `allowed` with files, beside one that is not to be read.
    fn tree() -> (tempfile::TempDir, Root) {
        let tree = tempfile::tempdir().unwrap();
        let at = |name: &str| tree.path().join(name);
        std::fs::create_dir_all(at("allowed/below")).unwrap();
        std::fs::create_dir(at("allowed-too")).unwrap();
        for name in ["allowed/below/video", "allowed-too/secret", "secret"] {
            std::fs::write(at(name), name).unwrap();
        }
        symlink(at("secret"), at("allowed/absolute")).unwrap();
        symlink("../secret", at("allowed/relative")).unwrap();
        symlink("../allowed-too", at("allowed/neighbour")).unwrap();
        symlink("below/video", at("allowed/inside")).unwrap();
        symlink(at("allowed/below"), at("allowed/inside-absolute")).unwrap();
        symlink("loop", at("allowed/loop")).unwrap();
        symlink("allowed", at("link-to-allowed")).unwrap();
        let prefix = format!("file://{}/", at("link-to-allowed").display()).parse().unwrap();
        let root = Root::find(&prefix).unwrap();
        (tree, root)
    }

    fn open(root: &Root, path: &str) -> Result<String, UriError> {
        let rest: Vec<String> = path.split('/').map(str::to_owned).collect();
        let mut text = String::new();
        root.open(&rest)?.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn files_below_the_root_are_opened_through_links_too() {
        let (_tree, root) = tree();
        for path in ["below/video", "inside", "inside-absolute/video"] {
            assert_eq!(open(&root, path).unwrap(), "allowed/below/video", "{path}");
        }
    }

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let (_tree, root) = tree();
        for path in ["absolute", "relative", "neighbour/secret"] {
            assert!(matches!(open(&root, path), Err(UriError::NotAllowed(_))), "{path}");
        }
        assert!(matches!(open(&root, "loop"), Err(UriError::NotFound)));
    }

    #[test]
    fn a_root_that_was_swapped_for_a_link_gives_nothing() {
        let (tree, root) = tree();
        std::fs::rename(tree.path().join("allowed"), tree.path().join("moved")).unwrap();
        symlink("allowed-too", tree.path().join("allowed")).unwrap();
        assert!(matches!(open(&root, "secret"), Err(UriError::NotAllowed(_))));
    }

    #[test]
    fn only_regular_files_are_opened_and_others_do_not_block() {
        let (tree, root) = tree();
        let pipe = tree.path().join("allowed/pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(tree.path().join("allowed/socket")).unwrap();
        for path in ["pipe", "socket", "below"] {
            assert!(matches!(open(&root, path), Err(UriError::NotAllowed(_))), "{path}");
        }
        assert!(matches!(open(&root, "missing"), Err(UriError::NotFound)));
        assert!(matches!(open(&root, "inside/video"), Err(UriError::NotFound)), "a file is no directory");
    }
}
