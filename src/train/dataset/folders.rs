//! A folder of class folders, with or without folders of splits above them.
//!
//! ```text
//! DIR/{class}/*.mp4              DIR/train/{class}/*.mp4
//!                                DIR/val/{class}/*.mp4
//!                                DIR/test/{class}/*.mp4
//! ```

use std::path::{Path, PathBuf};

use super::error::DatasetError;
use super::gather::{Gathered, Labelled};
use super::{Split, TimeRange};

/// Names that a folder of a split may have.
const SPLITS: [(&str, Split); 8] = [
    ("train", Split::Train),
    ("training", Split::Train),
    ("val", Split::Validation),
    ("valid", Split::Validation),
    ("validate", Split::Validation),
    ("validation", Split::Validation),
    ("test", Split::Test),
    ("testing", Split::Test),
];

/// Endings of file names that are taken for videos.
pub(super) const VIDEO_EXTENSIONS: [&str; 19] = [
    "mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "mts", "m2ts", "wmv", "asf", "flv", "3gp", "ogv",
    "ogg", "mxf", "gif",
];

/// The split that goes by `name`.
pub(super) fn split_named(name: &str) -> Option<Split> {
    SPLITS.iter().find(|(known, _)| *known == name).map(|(_, split)| *split)
}

/// Whether `path` has a name as videos have.
pub(crate) fn is_video(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|extension| VIDEO_EXTENSIONS.contains(&extension.as_str()))
}

/// Reads class folders below `dir`.
pub(super) fn read(dir: &Path) -> Result<Gathered, DatasetError> {
    let folders = list(dir)?.folders;
    let splits: Vec<(Split, &PathBuf)> =
        folders.iter().filter_map(|folder| Some((split_named(&name_of(folder))?, folder))).collect();
    let mut gathered = Gathered::new(dir);
    gathered.in_folders = true;
    // A class may be called "test", but then there are others that are not called as splits are.
    if splits.iter().any(|(split, _)| *split == Split::Train) || splits.len() == folders.len() {
        for (split, folder) in splits {
            read_classes(dir, folder, Some(split), &mut gathered)?;
        }
    } else {
        read_classes(dir, dir, None, &mut gathered)?;
    }
    Ok(gathered)
}

fn read_classes(dir: &Path, folder: &Path, split: Option<Split>, gathered: &mut Gathered) -> Result<(), DatasetError> {
    for class_folder in list(folder)?.folders {
        let label = name_of(&class_folder);
        gathered.see_class(split, &label);
        for video in list(&class_folder)?.videos {
            let id = video.strip_prefix(dir).unwrap_or(&video).display().to_string();
            let labelled = Labelled { id, label: label.clone(), split, range: TimeRange::ALL };
            gathered.found.push((labelled, video));
        }
    }
    Ok(())
}

/// What is in a folder, each in alphabetical order.
pub(super) struct Contents {
    pub(super) folders: Vec<PathBuf>,
    pub(super) videos: Vec<PathBuf>,
    pub(super) others: Vec<PathBuf>,
}

/// Lists `dir`, without what is hidden.
pub(super) fn list(dir: &Path) -> Result<Contents, DatasetError> {
    let failed = |error| DatasetError::Read { path: dir.to_owned(), error };
    let mut contents = Contents { folders: Vec::new(), videos: Vec::new(), others: Vec::new() };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if name_of(&path).starts_with('.') {
            continue;
        }
        if path.is_dir() {
            contents.folders.push(path);
        } else if is_video(&path) {
            contents.videos.push(path);
        } else {
            contents.others.push(path);
        }
    }
    for list in [&mut contents.folders, &mut contents.videos, &mut contents.others] {
        list.sort();
    }
    Ok(contents)
}

/// The last part of a path.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
