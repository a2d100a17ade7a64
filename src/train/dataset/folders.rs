//! A folder of class folders, with or without folders of splits above them.
//!
//! ```text
//! DIR/{class}/*.mp4              DIR/train/{class}/*.mp4         DIR/{class}/{video}/*.jpg
//!                                DIR/val/{class}/*.mp4
//!                                DIR/test/{class}/*.mp4
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::error::{DatasetError, Listing};
use super::frames;
use super::gather::{Gathered, Labelled};
use super::{Split, TimeRange};

/// Names that a folder of a split may have, in any case.
const SPLITS: [(&str, Split); 11] = [
    ("train", Split::Train),
    ("training", Split::Train),
    ("trn", Split::Train),
    ("val", Split::Validation),
    ("valid", Split::Validation),
    ("validate", Split::Validation),
    ("validation", Split::Validation),
    ("dev", Split::Validation),
    ("eval", Split::Validation),
    ("test", Split::Test),
    ("testing", Split::Test),
];

/// Endings of file names that are taken for videos.
pub(super) const VIDEO_EXTENSIONS: [&str; 19] = [
    "mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "mts", "m2ts", "wmv", "asf", "flv", "3gp", "ogv",
    "ogg", "mxf", "gif",
];

/// How deep folders are looked into: videos are at most `DIR/wrapper/split/class/part/video`.
const DEPTH: usize = 5;

/// The split that goes by `name`, such as `train`, `Val` or `test_set`.
pub(super) fn split_named(name: &str) -> Option<Split> {
    let name = name.trim().to_ascii_lowercase();
    let name = ["_set", "-set", " set", "set", "_split", "_videos", "_data"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(&name);
    SPLITS.iter().find(|(known, _)| *known == name).map(|(_, split)| *split)
}

/// The split that a file's name tells, such as `something-something-v2-train.json`; `None` if it names none or several.
pub(super) fn split_of_file(path: &Path) -> Option<Split> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let words = stem.split(|c: char| !c.is_ascii_alphanumeric());
    // UCF-101's are called trainlist01.
    let plain = |word: &str| word.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches("list").to_owned();
    let splits: BTreeSet<Split> = words.filter_map(|word| split_named(&plain(word))).collect();
    match splits.len() {
        1 => splits.first().copied(),
        _ => None,
    }
}

/// Whether `path` has a name as videos have.
pub(crate) fn is_video(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|extension| VIDEO_EXTENSIONS.contains(&extension.as_str()))
}

/// A name or path without its ending, if that is one of videos.
pub(super) fn without_video_ending(path: &str) -> &str {
    match path.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() && is_video(Path::new(path)) => stem,
        _ => path,
    }
}

/// A folder and what is below it.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) path: PathBuf,
    pub(super) folders: Vec<Tree>,
    /// Files and folders of frames.
    pub(super) videos: Vec<PathBuf>,
    pub(super) others: Vec<PathBuf>,
}

impl Tree {
    /// Lists `dir` and the folders below it.
    pub(super) fn list(dir: &Path) -> Result<Self, DatasetError> {
        Self::list_to(dir, DEPTH)
    }

    fn list_to(dir: &Path, depth: usize) -> Result<Self, DatasetError> {
        let Contents { folders, mut videos, others } = list(dir)?;
        let mut tree = Self { path: dir.to_owned(), folders: Vec::new(), videos: Vec::new(), others };
        if depth > 0 {
            for folder in folders {
                let below = Self::list_to(&folder, depth - 1)?;
                if below.is_frames() {
                    videos.push(folder);
                } else {
                    tree.folders.push(below);
                }
            }
        }
        tree.videos = videos;
        Ok(tree)
    }

    /// Whether these are the frames of one video.
    fn is_frames(&self) -> bool {
        let pictures = || self.others.iter().filter(|file| frames::is_picture(file)).count();
        self.videos.is_empty() && self.folders.is_empty() && pictures() > 1
    }

    pub(super) fn name(&self) -> String {
        name_of(&self.path)
    }

    fn has_videos(&self) -> bool {
        !self.videos.is_empty() || self.folders.iter().any(Self::has_videos)
    }

    /// All videos in it and below.
    fn all_videos(&self) -> Vec<&PathBuf> {
        self.videos.iter().chain(self.folders.iter().flat_map(Self::all_videos)).collect()
    }

    /// The files in it and below that are neither videos nor pictures of one.
    fn any_other(&self) -> Option<&PathBuf> {
        self.others.first().or_else(|| self.folders.iter().find_map(Self::any_other))
    }
}

/// Reads class folders below `tree`.
pub(super) fn read(tree: &Tree) -> Result<Gathered, DatasetError> {
    let dir = &tree.path;
    let splits: Vec<(Split, &Tree)> =
        tree.folders.iter().filter_map(|folder| Some((split_named(&folder.name())?, folder))).collect();
    // A class may be called "test", but then there are others that are not called as splits are.
    let has_splits = splits.iter().any(|(split, _)| *split == Split::Train) || splits.len() == tree.folders.len();
    if !has_splits
        && let [only] = tree.folders.as_slice()
        && tree.videos.is_empty()
        && only.videos.is_empty()
        && only.folders.len() > 1
    {
        // Archives unpack to such.
        return read(only);
    }
    let mut gathered = Gathered::new(dir);
    gathered.in_folders = true;
    if has_splits {
        for (split, folder) in splits {
            match folder.folders.as_slice() {
                [] if !folder.videos.is_empty() => {
                    let found = format!("{} has videos, but no class folders", folder.path.display());
                    let advice = "each class has a folder, which gives it its name".to_owned();
                    return Err(DatasetError::Layout { found, advice });
                }
                _ => read_classes(dir, folder, Some(split), &mut gathered)?,
            }
        }
    } else {
        read_classes(dir, tree, None, &mut gathered)?;
    }
    Ok(gathered)
}

fn read_classes(dir: &Path, folder: &Tree, split: Option<Split>, gathered: &mut Gathered) -> Result<(), DatasetError> {
    for class in &folder.folders {
        let label = class.name();
        let below: Vec<&Tree> = class.folders.iter().filter(|folder| folder.has_videos()).collect();
        let inner_splits: Option<Vec<Split>> = below.iter().map(|folder| split_named(&folder.name())).collect();
        match inner_splits {
            // DIR/{class}/train/*.mp4
            Some(splits) if split.is_none() && class.videos.is_empty() && !splits.is_empty() => {
                for (split, folder) in splits.into_iter().zip(below) {
                    add(dir, &label, Some(split), folder.all_videos(), gathered);
                }
            }
            _ if class.videos.is_empty() && below.len() > 1 => return Err(too_deep(folder, class, &below)),
            _ => add(dir, &label, split, class.all_videos(), gathered),
        }
        if !class.has_videos() {
            gathered.others.extend(class.any_other().map(|file| file.strip_prefix(dir).unwrap_or(file).to_owned()));
        }
    }
    Ok(())
}

fn add(dir: &Path, label: &str, split: Option<Split>, videos: Vec<&PathBuf>, gathered: &mut Gathered) {
    gathered.see_class(split, label);
    for video in videos {
        let id = video.strip_prefix(dir).unwrap_or(video).display().to_string();
        let labelled = Labelled { id, label: label.to_owned(), split, range: TimeRange::ALL, weight: 1.0 };
        gathered.found.push((labelled, video.clone()));
    }
}

/// Which of two levels of folders are the classes, their names don't say.
fn too_deep(folder: &Tree, class: &Tree, below: &[&Tree]) -> DatasetError {
    let inner = Listing(below.iter().map(|folder| folder.name()).collect());
    let found = format!(
        "videos are one folder deeper than in class folders, as {} of {}",
        inner,
        class.path.strip_prefix(&folder.path).unwrap_or(&class.path).display()
    );
    let advice = format!(
        "if the classes are the outer folders, move the videos up to them; if they are the inner ones, move these up to {}; or \
         list the videos with their labels in a CSV file",
        folder.path.display()
    );
    DatasetError::Layout { found, advice }
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
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if name_of(&path).starts_with('.') {
            continue;
        }
        // Links are followed; of others the listing says what they are.
        let is_folder = match entry.file_type() {
            Ok(kind) if !kind.is_symlink() => kind.is_dir(),
            _ => path.is_dir(),
        };
        if is_folder {
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
