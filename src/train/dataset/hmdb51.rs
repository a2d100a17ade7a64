//! The split lists of HMDB-51, one a class.
//!
//! ```text
//! brush_hair_test_split1.txt   April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1
//! ```
//!
//! 1 is training, 2 test, 0 neither. The test videos become the validation split, as in the authors' code.

use std::path::Path;

use super::error::DatasetError;
use super::folders::{list, name_of};
use super::gather::{Gathered, Labelled, read_text};
use super::lookup::VideoFiles;
use super::{Split, TimeRange};

/// Whether a file is one of these lists, by its name.
pub(super) fn is_list(path: &Path) -> bool {
    class_and_split(path).is_some()
}

fn class_and_split(path: &Path) -> Option<(String, u32)> {
    let name = name_of(path);
    let (class, number) = name.strip_suffix(".txt")?.rsplit_once("_test_split")?;
    Some((class.to_owned(), number.parse().ok()?))
}

pub(super) fn read(folder: &Path, split: u32, videos: &Path) -> Result<Gathered, DatasetError> {
    let files = VideoFiles::below(videos)?;
    let mut gathered = Gathered::of_annotations(folder, videos);
    let mut lists = 0;
    for path in list(folder)?.others {
        let Some((label, _)) = class_and_split(&path).filter(|(_, number)| *number == split) else { continue };
        lists += 1;
        for (line, text) in (1..).zip(read_text(&path)?.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            let malformed = || DatasetError::Malformed {
                path: path.clone(),
                line: Some(line),
                detail: format!("found {text:?}; expected a video and 0, 1 or 2"),
            };
            let (file, number) = text.trim().rsplit_once(' ').ok_or_else(malformed)?;
            let split = match number {
                "0" => continue,
                "1" => Split::Train,
                "2" => Split::Validation,
                _ => return Err(malformed()),
            };
            let stem = Path::new(file.trim()).file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let (id, label) = (format!("{label}/{stem}"), label.clone());
            let labelled = Labelled { id, label, split: Some(split), range: TimeRange::ALL, weight: 1.0 };
            gathered.look_up(&files, &[stem], labelled);
        }
    }
    if lists == 0 {
        let detail = format!("there are lists of HMDB-51, but none of split {split} (CLASS_test_split{split}.txt)");
        return Err(DatasetError::Malformed { path: folder.to_owned(), line: None, detail });
    }
    Ok(gathered)
}
