//! The files of annotated videos, wherever below a folder they are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::error::DatasetError;
use super::folders::{Tree, name_of, without_video_ending};
use super::gather::{Gathered, Labelled};
use super::{Split, folders};

/// Files by their names without endings: re-encoded ones have others than the annotations say. A folder of frames is a video too.
#[derive(Debug)]
pub(super) struct VideoFiles {
    root: PathBuf,
    by_stem: HashMap<String, Vec<PathBuf>>,
}

impl VideoFiles {
    /// Lists all videos below `dir`.
    pub(super) fn below(dir: &Path) -> Result<Self, DatasetError> {
        let mut by_stem: HashMap<String, Vec<PathBuf>> = HashMap::new();
        let mut trees = vec![Tree::list(dir)?];
        while let Some(Tree { folders, videos, .. }) = trees.pop() {
            for video in videos {
                by_stem.entry(without_video_ending(&name_of(&video)).to_owned()).or_default().push(video);
            }
            trees.extend(folders);
        }
        // Which one is taken must not depend on the order in which folders are listed.
        by_stem.values_mut().for_each(|files| files.sort());
        Ok(Self { root: dir.to_owned(), by_stem })
    }

    /// The file of a video that may be called by any of `stems`. Of several, the one below folders named after its label (with
    /// blanks or underscores) and split.
    fn find(&self, stems: &[String], label: &str, split: Option<Split>) -> Option<PathBuf> {
        let files = stems.iter().find_map(|stem| self.by_stem.get(stem))?;
        best(files, label, split).cloned()
    }

    /// The file that annotations call `path`: there, below the folder, or, as the annotations may have been made elsewhere,
    /// where the most of the folders that `path` names are the same.
    fn find_path(&self, path: &str, label: &str, split: Option<Split>) -> Option<PathBuf> {
        let path = Path::new(path);
        let as_it_stands = self.root.join(path);
        if as_it_stands.exists() {
            return Some(as_it_stands);
        }
        let files = self.by_stem.get(without_video_ending(&name_of(path)))?;
        let parents = |path: &Path| -> Vec<String> {
            path.parent().into_iter().flatten().rev().map(|part| part.to_string_lossy().into_owned()).collect()
        };
        let wanted = parents(path);
        let shared = |file: &PathBuf| parents(file).iter().zip(&wanted).take_while(|(a, b)| a == b).count();
        let most = files.iter().map(shared).max()?;
        let alike: Vec<PathBuf> = files.iter().filter(|file| shared(file) == most).cloned().collect();
        match alike.as_slice() {
            [only] => Some(only.clone()),
            // Any of several would be a guess, unless the label tells.
            several => best(several, label, split).filter(|file| fits(file, label, split).0).cloned(),
        }
    }
}

/// Whether a file is below folders named after its label and split.
fn fits(file: &Path, label: &str, split: Option<Split>) -> (bool, bool) {
    let folders: Vec<String> = file.iter().map(|part| part.to_string_lossy().replace('_', " ")).collect();
    let in_label = folders.contains(&label.replace('_', " "));
    let in_split = folders.iter().any(|name| split.is_some() && folders::split_named(name) == split);
    (in_label, in_split)
}

fn best<'a>(files: &'a [PathBuf], label: &str, split: Option<Split>) -> Option<&'a PathBuf> {
    // Reversed, so that the first of equals is taken.
    files.iter().rev().max_by_key(|file| fits(file, label, split))
}

impl Gathered {
    /// Adds a video if its file is there, or else notes that it is missing.
    pub(super) fn look_up(&mut self, files: &VideoFiles, stems: &[String], labelled: Labelled) {
        match files.find(stems, &labelled.label, labelled.split) {
            Some(file) => self.found.push((labelled, file)),
            None => self.missing.push((labelled, format!("{}.*", stems.join(".* or ")))),
        }
    }

    /// The same for a video that the annotations give a path.
    pub(super) fn look_up_path(&mut self, files: &VideoFiles, path: &str, labelled: Labelled) {
        match files.find_path(path, &labelled.label, labelled.split) {
            Some(file) => self.found.push((labelled, file)),
            None => self.missing.push((labelled, path.to_owned())),
        }
    }

    /// Says that some videos have no label, as those of a challenge's test split.
    pub(super) fn warn_of_unlabelled(&mut self, count: usize) {
        if count > 0 {
            let source = name_of(&self.source);
            self.warnings.push(format!("{count} video(s) of {source} have no label and are left out"));
        }
    }
}
