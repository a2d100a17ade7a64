//! The files of annotated videos, wherever below a folder they are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::error::DatasetError;
use super::folders::{list, name_of};
use super::gather::{Gathered, Labelled};
use super::{Split, folders};

/// Files by their names without endings: re-encoded ones have others than the annotations say.
#[derive(Debug)]
pub(super) struct VideoFiles {
    by_stem: HashMap<String, Vec<PathBuf>>,
}

/// `DIR/video`, `DIR/label/video`, `DIR/split/label/video`.
const DEPTH: usize = 3;

impl VideoFiles {
    /// Lists all videos below `dir`.
    pub(super) fn below(dir: &Path) -> Result<Self, DatasetError> {
        let mut by_stem: HashMap<String, Vec<PathBuf>> = HashMap::new();
        let mut folders = vec![(dir.to_owned(), 1)];
        while let Some((folder, depth)) = folders.pop() {
            let contents = list(&folder)?;
            for video in contents.videos {
                let stem = video.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                by_stem.entry(stem).or_default().push(video);
            }
            if depth < DEPTH {
                folders.extend(contents.folders.into_iter().map(|folder| (folder, depth + 1)));
            }
        }
        // Which one is taken must not depend on the order in which folders are listed.
        by_stem.values_mut().for_each(|files| files.sort());
        Ok(Self { by_stem })
    }

    /// The file of a video that may be called by any of `stems`. Of several, the one below folders named after its label (with
    /// blanks or underscores) and split.
    fn find(&self, stems: &[String], label: &str, split: Option<Split>) -> Option<PathBuf> {
        let files = stems.iter().find_map(|stem| self.by_stem.get(stem))?;
        let fits = |file: &&PathBuf| {
            let folders: Vec<String> = file.iter().map(|part| part.to_string_lossy().replace('_', " ")).collect();
            let in_label = folders.contains(&label.replace('_', " "));
            let in_split = folders.iter().any(|name| split.is_some() && folders::split_named(name) == split);
            (in_label, in_split)
        };
        // Reversed, so that the first of equals is taken.
        files.iter().rev().max_by_key(fits).cloned()
    }
}

impl Gathered {
    /// Adds a video if its file is there, or else notes that it is missing.
    pub(super) fn look_up(&mut self, files: &VideoFiles, stems: &[String], labelled: Labelled) {
        match files.find(stems, &labelled.label, labelled.split) {
            Some(file) => self.found.push((labelled, file)),
            None => self.missing.push((labelled, format!("{}.*", stems.join(".* or ")))),
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
