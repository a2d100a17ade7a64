//! Which format a path is of, by what is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{DatasetError, Listing};
use super::folders::{self, Tree, name_of, split_named};
use super::gather::{Gathered, read_class_list, read_text};
use super::lookup::VideoFiles;
use super::split_list::SPLIT_FILE;
use super::table::{Table, name_numbers};
use super::{DataSpec, activitynet, authors, charades, frames, hmdb51, kinetics, lists, something, ucf101};

const EXPECTED: &str = "a folder of class folders (with or without train, val and test above them), or annotations in one of \
    the formats of docs/datasets.md";

/// Endings of files that are looked at for annotations where nobody names one.
const ANNOTATION_EXTENSIONS: [&str; 6] = ["csv", "tsv", "txt", "json", "jsonl", "list"];

/// Formats of single files. Several files of one format are read as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Format {
    Kinetics,
    KineticsJson,
    Authors,
    ActivityNet,
    SomethingJson,
    SomethingText,
    Charades,
    Table,
    List,
}

/// Reads `spec.annotations`, whatever it is.
pub(super) fn read(spec: &DataSpec) -> Result<Gathered, DatasetError> {
    let path = &spec.annotations;
    let kind = std::fs::metadata(path).map_err(|error| DatasetError::Read { path: path.clone(), error })?;
    if kind.is_dir() { read_folder(spec) } else { read_file(spec) }
}

/// The folder of a file. That of a bare name is the present one.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn read_folder(spec: &DataSpec) -> Result<Gathered, DatasetError> {
    let path = &spec.annotations;
    let tree = Tree::list(path)?;
    let videos = spec.videos.as_deref().unwrap_or(path);
    // Datasets come as a folder of lists beside a folder of videos.
    let lists: Vec<&Tree> =
        std::iter::once(&tree).chain(tree.folders.iter().filter(|folder| folder.videos.is_empty())).collect();
    for folder in &lists {
        if folder.others.iter().any(|file| ucf101::is_list(file)) {
            return ucf101::read(&folder.path, spec.split, videos);
        }
        if folder.others.iter().any(|file| hmdb51::is_list(file)) {
            return hmdb51::read(&folder.path, spec.split, videos);
        }
    }
    let has_class_folders = has_class_folders(&tree);
    for folder in lists {
        let files = annotations(folder, spec)?;
        let kinetics_alone = files.iter().all(|(_, format)| *format == Format::Kinetics);
        if !files.is_empty() && (!has_class_folders || kinetics_alone) {
            return read_all(&folder.path, files, videos, spec);
        }
    }
    match tree.folders.as_slice() {
        [] => Err(unrecognised(path, describe(&tree))),
        _ => folders::read(&tree),
    }
}

/// Whether at least two folders with videos look like classes, or those of splits.
fn has_class_folders(tree: &Tree) -> bool {
    let classes = |tree: &Tree| tree.folders.iter().filter(|folder| !folder.videos.is_empty()).count();
    let of_splits = tree.folders.iter().filter(|folder| split_named(&folder.name()).is_some());
    let splits: Vec<&Tree> = of_splits.collect();
    match (splits.as_slice(), tree.folders.as_slice()) {
        ([], [only]) => classes(only) > 1,
        ([], _) => classes(tree) > 1,
        (splits, _) => splits.iter().any(|split| classes(split) > 1),
    }
}

/// The annotation files in a folder, and their formats.
fn annotations(folder: &Tree, spec: &DataSpec) -> Result<Vec<(PathBuf, Format)>, DatasetError> {
    let mut found = Vec::new();
    for file in &folder.others {
        let extension = file.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        let may_be = extension.is_some_and(|extension| ANNOTATION_EXTENSIONS.contains(&extension.as_str()));
        if !may_be || name_of(file) == SPLIT_FILE {
            continue;
        }
        // What is no text, or damaged, is no annotations that anybody named.
        let Ok(text) = read_text(file) else { continue };
        let Ok(format) = format_of(file, &text, spec) else { continue };
        found.extend(format.map(|format| (file.clone(), format)));
    }
    let formats: BTreeSet<Format> = found.iter().map(|(_, format)| *format).collect();
    if formats.contains(&Format::Kinetics) {
        found.retain(|(_, format)| *format == Format::Kinetics);
    } else if formats.len() > 1 {
        let names = Listing(found.iter().map(|(file, _)| name_of(file)).collect());
        let found = format!("{} has annotations in {} formats: {names}", folder.path.display(), formats.len());
        return Err(DatasetError::Layout { found, advice: "--data names one of the files".to_owned() });
    }
    Ok(found)
}

fn read_file(spec: &DataSpec) -> Result<Gathered, DatasetError> {
    let path = &spec.annotations;
    let videos = spec.videos.as_deref().unwrap_or(folder_of(path));
    if let Some(split) = ucf101::split_of_list(path) {
        return ucf101::read(folder_of(path), split, videos);
    }
    if hmdb51::is_list(path) {
        return hmdb51::read(folder_of(path), spec.split, videos);
    }
    if folders::is_video(path) {
        return Err(unrecognised(path, "a single video".to_owned()));
    }
    let text = read_text(path)?;
    match format_of(path, &text, spec)? {
        Some(format) => read_all(path, vec![(path.clone(), format)], videos, spec),
        None if text.trim_start().starts_with('{') => {
            let json: Value = serde_json::from_str(&text).map_err(|error| malformed_json(path, &error))?;
            let keys: Vec<&str> = json.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).take(8).collect();
            Err(unrecognised(path, format!("JSON with the keys {}", keys.join(", "))))
        }
        None => {
            let first: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
            Err(unrecognised(path, format!("a file that begins with {first:?}")))
        }
    }
}

/// What format a file's text is of; `None` if it is none that is known.
fn format_of(path: &Path, text: &str, spec: &DataSpec) -> Result<Option<Format>, DatasetError> {
    let columns = spec.columns.as_ref();
    if let Some(json) = parse_json(path, text)? {
        return Ok(match &json {
            json if authors::matches(json) => Some(Format::Authors),
            json if activitynet::matches(json) => Some(Format::ActivityNet),
            json if something::matches_json(json) => Some(Format::SomethingJson),
            Value::Array(items) => Table::of_objects(path, items, columns)?.map(|_| Format::Table),
            json if kinetics::matches_json(json) => Some(Format::KineticsJson),
            _ => None,
        });
    }
    Ok(if columns.is_none() && kinetics::is_table(path) {
        Some(Format::Kinetics)
    } else if columns.is_none() && charades::matches(text) {
        Some(Format::Charades)
    } else if columns.is_none() && something::matches_text(text) {
        Some(Format::SomethingText)
    } else if Table::of_csv(path, text, columns)?.is_some() {
        Some(Format::Table)
    } else {
        lists::matches(text).then_some(Format::List)
    })
}

/// The JSON that a text is, objects line by line taken for a list of them; `None` if it is something else.
fn parse_json(path: &Path, text: &str) -> Result<Option<Value>, DatasetError> {
    let text = text.trim_start_matches('\u{feff}').trim();
    if !text.starts_with(['{', '[']) {
        return Ok(None);
    }
    match serde_json::from_str(text) {
        Ok(json) => Ok(Some(json)),
        Err(error) => {
            let lines: Result<Vec<Value>, _> =
                text.lines().filter(|line| !line.trim().is_empty()).map(serde_json::from_str).collect();
            lines.map(|lines| Some(Value::Array(lines))).map_err(|_| malformed_json(path, &error))
        }
    }
}

/// Reads files of one format as one.
fn read_all(
    source: &Path,
    annotations: Vec<(PathBuf, Format)>,
    videos: &Path,
    spec: &DataSpec,
) -> Result<Gathered, DatasetError> {
    let paths = || annotations.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
    if annotations.iter().all(|(_, format)| *format == Format::Kinetics) {
        return kinetics::read(source, &paths(), videos);
    }
    let files = VideoFiles::below(videos)?;
    let mut gathered = Gathered::of_annotations(source, videos);
    let mut has_numbers = false;
    for (path, format) in &annotations {
        let text = read_text(path)?;
        let json = parse_json(path, &text)?.unwrap_or_default();
        match format {
            Format::Authors | Format::ActivityNet if annotations.len() > 1 => {
                let found = format!("{} has several annotation files of one format", source.display());
                return Err(DatasetError::Layout { found, advice: "--data names one of them".to_owned() });
            }
            Format::Authors => return authors::read(path, json, videos),
            Format::ActivityNet => return activitynet::read(path, json, videos),
            Format::Kinetics => unreachable!("files are of one format, and not of this"),
            Format::KineticsJson => kinetics::read_json(path, json, &files, &mut gathered)?,
            Format::SomethingJson => something::read_json(path, json, &files, &mut gathered)?,
            Format::SomethingText => something::read_text(path, &text, &files, &mut gathered)?,
            Format::Charades => charades::read(path, &text, &files, &mut gathered)?,
            Format::Table => {
                let columns = spec.columns.as_ref();
                let table = match &json {
                    Value::Array(items) => Table::of_objects(path, items, columns)?,
                    _ => Table::of_csv(path, &text, columns)?,
                };
                table.expect("it was recognised as one").read(path, &files, &mut gathered)?;
                has_numbers = true;
            }
            Format::List => {
                lists::read(path, &text, &files, &mut gathered)?;
                has_numbers = true;
            }
        }
    }
    if has_numbers {
        let beside = match source.is_dir() {
            true => source,
            false => folder_of(source),
        };
        let names = match &spec.classes {
            Some(list) => Some(read_class_list(list)?),
            None => lists::class_names(beside)?,
        };
        name_numbers(&mut gathered, names)?;
    }
    Ok(gathered)
}

/// JSON that is not what its format says.
pub(super) fn malformed_json(path: &Path, error: &serde_json::Error) -> DatasetError {
    let line = (error.line() > 0).then_some(error.line() as u64);
    DatasetError::Malformed { path: path.to_owned(), line, detail: error.to_string() }
}

fn unrecognised(path: &Path, found: String) -> DatasetError {
    DatasetError::Unrecognised { path: path.to_owned(), found, expected: EXPECTED }
}

fn describe(Tree { videos, others, .. }: &Tree) -> String {
    let of_frames = videos.iter().filter(|video| video.is_dir()).count();
    match (videos.len(), others.as_slice()) {
        (0, []) => "an empty folder".to_owned(),
        (0, [first, ..]) if frames::is_picture(first) => "pictures without a folder for each video".to_owned(),
        (0, [first, ..]) => format!("a folder of {} other file(s) such as {}", others.len(), name_of(first)),
        (_, _) if of_frames > 0 => {
            format!("{of_frames} folder(s) of pictures, each taken for one video, without class folders")
        }
        (videos, _) => format!("{videos} video(s) without class folders"),
    }
}
