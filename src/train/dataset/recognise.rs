//! Which format a path is of, by what is there.

use std::collections::HashSet;
use std::mem;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{DatasetError, Listing, malformed_json};
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

/// What a file holds. Several files of one format are read as one.
#[derive(Debug)]
enum Annotations {
    Kinetics,
    KineticsJson(Value),
    Authors(Value),
    ActivityNet(Value),
    SomethingJson(Value),
    SomethingText(String),
    Charades(String),
    Table(Table),
    List(String),
}

impl Annotations {
    fn is_kinetics(&self) -> bool {
        matches!(self, Self::Kinetics)
    }
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
        let kinetics_alone = files.iter().all(|(_, found)| found.is_kinetics());
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

/// The annotation files in a folder, and what they hold.
fn annotations(folder: &Tree, spec: &DataSpec) -> Result<Vec<(PathBuf, Annotations)>, DatasetError> {
    let mut found = Vec::new();
    for file in &folder.others {
        let extension = file.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        let may_be = extension.is_some_and(|extension| ANNOTATION_EXTENSIONS.contains(&extension.as_str()));
        if !may_be || name_of(file) == SPLIT_FILE {
            continue;
        }
        // What is no text, or damaged, is no annotations that anybody named.
        let Ok(text) = read_text(file) else { continue };
        let Ok(annotations) = recognise(file, &text, spec) else { continue };
        found.extend(annotations.map(|annotations| (file.clone(), annotations)));
    }
    let formats: HashSet<_> = found.iter().map(|(_, annotations)| mem::discriminant(annotations)).collect();
    if found.iter().any(|(_, annotations)| annotations.is_kinetics()) {
        found.retain(|(_, annotations)| annotations.is_kinetics());
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
    match recognise(path, &text, spec)? {
        Some(annotations) => read_all(path, vec![(path.clone(), annotations)], videos, spec),
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

/// What the text of a file holds; `None` if it is in no format that is known.
fn recognise(path: &Path, text: &str, spec: &DataSpec) -> Result<Option<Annotations>, DatasetError> {
    let columns = spec.columns.as_ref();
    if let Some(json) = parse_json(path, text)? {
        return Ok(match json {
            json if authors::matches(&json) => Some(Annotations::Authors(json)),
            json if activitynet::matches(&json) => Some(Annotations::ActivityNet(json)),
            json if something::matches_json(&json) => Some(Annotations::SomethingJson(json)),
            Value::Array(items) => Table::of_objects(path, &items, columns)?.map(Annotations::Table),
            json if kinetics::matches_json(&json) => Some(Annotations::KineticsJson(json)),
            _ => None,
        });
    }
    Ok(if columns.is_none() && kinetics::is_table(path) {
        Some(Annotations::Kinetics)
    } else if columns.is_none() && charades::matches(text) {
        Some(Annotations::Charades(text.to_owned()))
    } else if columns.is_none() && something::matches_text(text) {
        Some(Annotations::SomethingText(text.to_owned()))
    } else if let Some(table) = Table::of_csv(path, text, columns)? {
        Some(Annotations::Table(table))
    } else {
        lists::matches(text).then(|| Annotations::List(text.to_owned()))
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
    files: Vec<(PathBuf, Annotations)>,
    videos: &Path,
    spec: &DataSpec,
) -> Result<Gathered, DatasetError> {
    if files.iter().all(|(_, annotations)| annotations.is_kinetics()) {
        let tables: Vec<PathBuf> = files.into_iter().map(|(path, _)| path).collect();
        return kinetics::read(source, &tables, videos);
    }
    let are_several = files.len() > 1;
    let video_files = VideoFiles::below(videos)?;
    let mut gathered = Gathered::of_annotations(source, videos);
    let mut has_numbers = false;
    for (path, annotations) in files {
        match annotations {
            Annotations::Authors(_) | Annotations::ActivityNet(_) if are_several => {
                let found = format!("{} has several annotation files of one format", source.display());
                return Err(DatasetError::Layout { found, advice: "--data names one of them".to_owned() });
            }
            Annotations::Authors(json) => authors::read(&path, json, &video_files, &mut gathered)?,
            Annotations::ActivityNet(json) => activitynet::read(&path, json, &video_files, &mut gathered)?,
            Annotations::Kinetics => unreachable!("files are of one format, and not of this"),
            Annotations::KineticsJson(json) => kinetics::read_json(&path, json, &video_files, &mut gathered)?,
            Annotations::SomethingJson(json) => something::read_json(&path, json, &video_files, &mut gathered)?,
            Annotations::SomethingText(text) => something::read_text(&path, &text, &video_files, &mut gathered)?,
            Annotations::Charades(text) => charades::read(&path, &text, &video_files, &mut gathered)?,
            Annotations::Table(table) => {
                table.read(&path, &video_files, &mut gathered)?;
                has_numbers = true;
            }
            Annotations::List(text) => {
                lists::read(&path, &text, &video_files, &mut gathered)?;
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
