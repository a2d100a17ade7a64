//! Files that are replaced as a whole: whatever ends this process or fills the disk, the old file is there or the new one.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

const PARTIAL_PREFIX: &str = ".kinetoscope-";
const PARTIAL_SUFFIX: &str = ".partial";

/// Replaces `path` by a file of `bytes`, which is written beside it first.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = directory_of(path);
    let mut temporary =
        tempfile::Builder::new().prefix(PARTIAL_PREFIX).suffix(PARTIAL_SUFFIX).tempfile_in(directory)?;
    temporary.write_all(bytes)?;
    set_default_mode(temporary.as_file())?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    sync_directory(directory)
}

/// Removes what [`write_whole`] left in `directory` when its process was killed. Nobody else may be writing there.
#[cfg(feature = "video")]
pub(crate) fn remove_partial_files(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PARTIAL_PREFIX) && name.ends_with(PARTIAL_SUFFIX) {
            // One that can't be removed costs space only.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Until a directory is written, the disk knows its old files only.
#[cfg(unix)]
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_directory: &Path) -> io::Result<()> {
    Ok(())
}

/// Temporary files are made for the owner only; what takes another's place is for everyone whom the directory lets in.
#[cfg(unix)]
fn set_default_mode(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_default_mode(_file: &File) -> io::Result<()> {
    Ok(())
}
