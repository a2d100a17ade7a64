//! Lists without a header, one video a line, as mmaction2 and SlowFast have them.
//!
//! ```text
//! clips/1.mp4 3            path and class
//! clips/1.mp4,3            the same with a comma; the class may have a name
//! frames/1 120 3           folder of frames, number of frames, class
//! clips/1.mp4 3 7 12       several classes
//! ```
//!
//! Numbers count from 0. Their names are in `label_map.txt`, `classes.txt` or `labels.txt` beside the list, or `--classes`.

use std::path::{Path, PathBuf};

use super::TimeRange;
use super::error::DatasetError;
use super::folders::{is_video, split_of_file};
use super::gather::{Gathered, Labelled, read_class_list};
use super::lookup::VideoFiles;

/// Names of files with class names, beside lists of numbers.
const CLASS_LISTS: [&str; 3] = ["label_map.txt", "classes.txt", "labels.txt"];

/// A line's video and its label.
struct Entry<'a> {
    video: &'a str,
    /// Or several, by blanks or commas.
    label: &'a str,
    several: bool,
}

const NEITHER: &str = "expected a video and its class";

/// What a line is; the error says why it is none of a list.
fn entry(line: &str) -> Result<Entry<'_>, &'static str> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let all_numbers = |text: &str, separator: char| text.split(separator).all(|part| is_number(part.trim()));
    if let Some(separator) = ['\t', ',', ';'].into_iter().find(|&separator| line.contains(separator)) {
        // After a video, the rest is the label, in which there may be commas.
        let (video, label) = match line.split_once(separator) {
            Some((video, rest)) if is_video(Path::new(video.trim())) => (video, rest),
            _ => line.rsplit_once(separator).unwrap_or_default(),
        };
        let (video, label) = (video.trim().trim_matches('"'), label.trim().trim_matches('"'));
        let several = label.contains(separator) && all_numbers(label, separator);
        let is_label = is_number(label) || several || is_video(Path::new(video));
        let fits = !video.is_empty() && !label.is_empty() && is_label;
        return if fits { Ok(Entry { video, label, several }) } else { Err(NEITHER) };
    }
    // Names with blanks, and classes with blanks, are told apart by the ending of the video.
    let mut blanks = line.match_indices(' ').map(|(at, _)| at);
    let after_video = blanks.find(|&at| is_video(Path::new(&line[..at])));
    if let Some(at) = after_video {
        let (video, label) = (&line[..at], line[at..].trim());
        let several = label.split_whitespace().count() > 1 && label.split_whitespace().all(is_number);
        return if label.is_empty() { Err(NEITHER) } else { Ok(Entry { video, label, several }) };
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [.., frames, label] if words.len() > 2 && is_number(frames) && is_number(label) => {
            let video = line.trim_end_matches(label).trim_end().trim_end_matches(frames).trim_end();
            Ok(Entry { video, label, several: false })
        }
        [.., label] if words.len() > 1 && is_number(label) => {
            Ok(Entry { video: line.trim_end_matches(label).trim_end(), label, several: false })
        }
        _ => Err(NEITHER),
    }
}

fn lines(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let text = text.trim_start_matches('\u{feff}');
    (1..).zip(text.lines().map(str::trim)).filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// Whether `text` is such a list, by its first lines.
pub(super) fn matches(text: &str) -> bool {
    const LOOKED_AT: usize = 50;
    let mut some = false;
    lines(text).take(LOOKED_AT).all(|(_, line)| {
        some = true;
        entry(line).is_ok()
    }) && some
}

/// Adds the videos of a list to `gathered`.
pub(super) fn read(path: &Path, text: &str, files: &VideoFiles, gathered: &mut Gathered) -> Result<(), DatasetError> {
    let split = split_of_file(path);
    for (line, text) in lines(text) {
        let malformed = |why: &str| DatasetError::Malformed {
            path: path.to_owned(),
            line: Some(line),
            detail: format!("{why}: {text:?}"),
        };
        let Entry { video, label, several } = entry(text).map_err(malformed)?;
        let labels: Vec<&str> = match several {
            true => {
                label.split(|c: char| c.is_whitespace() || ",;".contains(c)).filter(|part| !part.is_empty()).collect()
            }
            false => vec![label],
        };
        gathered.has_several |= several;
        for label in labels {
            let label = label.to_owned();
            let labelled = Labelled { id: video.to_owned(), label, split, range: TimeRange::ALL, weight: 1.0 };
            gathered.look_up_path(files, video, labelled);
        }
    }
    Ok(())
}

/// The names of numbered classes in the folder of `list`, if there are any.
pub(super) fn class_names(folder: &Path) -> Result<Option<Vec<String>>, DatasetError> {
    let lists = CLASS_LISTS.iter().map(|name| folder.join(name));
    let list: Option<PathBuf> = lists.into_iter().find(|list| list.is_file());
    list.map(|list| read_class_list(&list)).transpose()
}
