//! The split lists of UCF-101.
//!
//! ```text
//! classInd.txt      1 ApplyEyeMakeup
//! trainlist01.txt   ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
//! testlist01.txt    ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi
//! ```
//!
//! The test list becomes the validation split, as in the authors' code: there is no third one.

use std::path::Path;

use super::error::DatasetError;
use super::folders::name_of;
use super::gather::{Gathered, Labelled, read_class_list, read_text};
use super::lookup::VideoFiles;
use super::{Split, TimeRange};

const CLASS_LIST: &str = "classInd.txt";

/// Whether a file is one of these lists, by its name.
pub(super) fn is_list(path: &Path) -> bool {
    split_of_list(path).is_some()
}

/// Which of the official splits a list is of.
pub(super) fn split_of_list(path: &Path) -> Option<u32> {
    let name = name_of(path);
    let number = name.strip_prefix("trainlist").or(name.strip_prefix("testlist"))?.strip_suffix(".txt")?;
    number.parse().ok()
}

pub(super) fn read(folder: &Path, split: u32, videos: &Path) -> Result<Gathered, DatasetError> {
    let files = VideoFiles::below(videos)?;
    let mut gathered = Gathered::of_annotations(folder, videos);
    let class_list = folder.join(CLASS_LIST);
    if class_list.exists() {
        gathered.classes = Some(read_class_list(&class_list)?);
    }
    for (name, part) in [("trainlist", Split::Train), ("testlist", Split::Validation)] {
        let list = &folder.join(format!("{name}{split:02}.txt"));
        for (line, text) in (1..).zip(read_text(list)?.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            let malformed = |detail: String| DatasetError::Malformed { path: list.clone(), line: Some(line), detail };
            let (video, number) = match text.trim().rsplit_once(' ') {
                Some((video, number)) => (video, Some(number)),
                None => (text.trim(), None),
            };
            let expected = || malformed(format!("found {text:?}; expected CLASS/VIDEO and in training lists a number"));
            let (label, file) = video.split_once('/').ok_or_else(expected)?;
            if let (Some(number), Some(classes)) = (number, &gathered.classes) {
                let named = number.parse::<usize>().ok().and_then(|number| classes.get(number.checked_sub(1)?));
                if named.is_none_or(|named| named != label) {
                    let named = named.map_or("no class", String::as_str);
                    return Err(malformed(format!(
                        "class {number} is {named} in {CLASS_LIST}, but the video is of {label}"
                    )));
                }
            }
            let stem = Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let (id, label) = (format!("{label}/{stem}"), label.to_owned());
            let labelled = Labelled { id, label, split: Some(part), range: TimeRange::ALL, weight: 1.0 };
            gathered.look_up(&files, &[stem], labelled);
        }
    }
    Ok(gathered)
}
