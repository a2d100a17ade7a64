//! Any table with named columns: CSV with commas, semicolons, tabs or bars, or JSON as a list of objects or one object a line.
//!
//! ```text
//! path,label,split                      [{"video": "clips/1.mp4", "class": "run"}, ...]
//! clips/1.mp4,run,train
//! ```
//!
//! Beside the path and the label there may be a split, and the start and end of the labelled part in seconds. Instead of a label
//! there may be `labels`: several separated by `;` or `|`, or a JSON list of them, each with a weight if it has one: `run=0.7;walk=0.3`.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::TimeRange;
use super::error::{DatasetError, Listing, malformed_csv};
use super::folders::{split_named, split_of_file};
use super::gather::{Gathered, Labelled};
use super::lookup::VideoFiles;

/// Which columns of a table say what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    names: BTreeMap<Role, String>,
}

/// What a column says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Path,
    Label,
    Labels,
    Split,
    Start,
    End,
}

impl Role {
    const ALL: [Self; 6] = [Self::Path, Self::Label, Self::Labels, Self::Split, Self::Start, Self::End];

    fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Label => "label",
            Self::Labels => "labels",
            Self::Split => "split",
            Self::Start => "start",
            Self::End => "end",
        }
    }

    /// Names that columns of this role usually have, the surest first.
    fn usual(self) -> &'static [&'static str] {
        match self {
            Self::Path => &[
                "path",
                "video_path",
                "videopath",
                "filepath",
                "file_path",
                "clip_path",
                "file",
                "filename",
                "file_name",
                "video_file",
                "video_name",
                "videoname",
                "clip_name",
                "video",
                "clip",
                "video_id",
                "videoid",
                "vid_id",
                "clip_id",
                "name",
                "id",
            ],
            Self::Label => &[
                "label",
                "class",
                "label_name",
                "class_name",
                "classname",
                "category",
                "action",
                "activity",
                "gesture",
                "target",
                "tag",
                "label_id",
                "class_id",
                "class_index",
            ],
            Self::Labels => &["labels", "classes", "tags", "actions", "categories", "label_weights"],
            Self::Split => &["split", "subset", "set", "partition", "part", "usage"],
            Self::Start => &["start", "start_time", "time_start", "t_start", "start_sec", "start_seconds", "begin"],
            Self::End => &["end", "end_time", "time_end", "t_end", "end_sec", "end_seconds", "stop"],
        }
    }
}

impl FromStr for Columns {
    type Err = String;

    /// Reads `path=file,label=class`, with `split`, `start` and `end` besides.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut names = BTreeMap::new();
        for pair in text.split(',') {
            let allowed = || {
                "allowed is path=COLUMN,label=COLUMN (or labels=COLUMN), and split, start and end besides".to_owned()
            };
            let (role, name) = pair.split_once('=').ok_or_else(allowed)?;
            let role = Role::ALL.into_iter().find(|known| known.name() == role.trim()).ok_or_else(allowed)?;
            names.insert(role, name.trim().to_owned());
        }
        Ok(Self { names })
    }
}

/// What a table's columns mean: the index of each.
type Layout = BTreeMap<Role, usize>;

impl Columns {
    /// Finds the columns in `header`. The error says which one is not there.
    fn find(columns: Option<&Self>, header: &[String]) -> Result<Option<Layout>, String> {
        let plain = |name: &str| {
            let name = name.trim().trim_start_matches('\u{feff}').trim_matches('"').to_ascii_lowercase();
            name.replace([' ', '-'], "_")
        };
        let header: Vec<String> = header.iter().map(|name| plain(name)).collect();
        let place = |name: &str| header.iter().position(|column| *column == plain(name));
        let mut layout = Layout::new();
        for role in Role::ALL {
            if let Some(name) = columns.and_then(|columns| columns.names.get(&role)) {
                let missing = || format!("there is no column {name:?}; there are {}", header.join(", "));
                layout.insert(role, place(name).ok_or_else(missing)?);
            }
        }
        for role in Role::ALL {
            let free = |place: &usize| !layout.values().any(|taken| taken == place);
            if !layout.contains_key(&role)
                && let Some(place) = role.usual().iter().find_map(|name| place(name).filter(free))
            {
                layout.insert(role, place);
            }
        }
        let has_label = layout.contains_key(&Role::Label) || layout.contains_key(&Role::Labels);
        Ok((layout.contains_key(&Role::Path) && has_label).then_some(layout))
    }
}

/// A table that was recognised.
#[derive(Debug)]
pub(super) struct Table {
    layout: Layout,
    /// Line, from 1, where there are lines, and values.
    rows: Vec<(Option<u64>, Vec<String>)>,
}

/// What separates the columns of `line`: what there is the most of.
fn separator(line: &str) -> u8 {
    let count = |separator: &u8| line.bytes().filter(|byte| byte == separator).count();
    *b"|\t;,".iter().max_by_key(|separator| count(separator)).expect("there are four")
}

impl Table {
    /// The table that `text` is, if its first line names columns as tables do.
    pub(super) fn of_csv(path: &Path, text: &str, columns: Option<&Columns>) -> Result<Option<Self>, DatasetError> {
        let malformed = |line: Option<u64>, detail| DatasetError::Malformed { path: path.to_owned(), line, detail };
        let first = text.lines().next().unwrap_or_default();
        let separator = separator(first);
        let header: Vec<String> = first.split(char::from(separator)).map(str::to_owned).collect();
        let found = Columns::find(columns, &header).map_err(|detail| malformed(Some(1), detail))?;
        let Some(layout) = found else {
            return match columns {
                Some(_) => Err(malformed(Some(1), "--columns names no column for the path or the label".to_owned())),
                None => Ok(None),
            };
        };
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .delimiter(separator)
            .flexible(true)
            .from_reader(text.as_bytes());
        let mut rows = Vec::new();
        for row in reader.records() {
            let row = row.map_err(|error| malformed_csv(path, &error))?;
            let line = row.position().map(csv::Position::line);
            rows.push((line, row.iter().map(str::to_owned).collect()));
        }
        Ok(Some(Self { layout, rows }))
    }

    /// The table that a list of JSON objects is, if they have the keys.
    pub(super) fn of_objects(
        path: &Path,
        items: &[Value],
        columns: Option<&Columns>,
    ) -> Result<Option<Self>, DatasetError> {
        let malformed = |detail| DatasetError::Malformed { path: path.to_owned(), line: None, detail };
        let Some(Value::Object(first)) = items.first() else { return Ok(None) };
        let header: Vec<String> = first.keys().cloned().collect();
        let Some(layout) = Columns::find(columns, &header).map_err(malformed)? else { return Ok(None) };
        let text = |value: Option<&Value>| match value {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => String::new(),
            Some(other) => other.to_string(),
        };
        let rows = items.iter().map(|item| (None, header.iter().map(|key| text(item.get(key))).collect())).collect();
        Ok(Some(Self { layout, rows }))
    }

    /// Adds the rows to `gathered`. Rows without a split are of that which the file's name tells, if any.
    pub(super) fn read(self, path: &Path, files: &VideoFiles, gathered: &mut Gathered) -> Result<(), DatasetError> {
        let Self { layout, rows } = self;
        let of_file = split_of_file(path);
        let mut unlabelled = 0;
        for (line, row) in rows {
            let malformed = |detail: String| DatasetError::Malformed { path: path.to_owned(), line, detail };
            let value =
                |role: Role| layout.get(&role).and_then(|&place| row.get(place)).map_or("", String::as_str).trim();
            let video = value(Role::Path);
            if video.is_empty() {
                return Err(malformed("a row has no video".to_owned()));
            }
            let labels = match value(Role::Label) {
                "" => several(value(Role::Labels)).map_err(malformed)?,
                label => vec![(label.to_owned(), 1.0)],
            };
            gathered.has_several |= labels.len() > 1;
            if labels.is_empty() {
                unlabelled += 1;
                continue;
            }
            let split = match value(Role::Split) {
                "" => of_file,
                name => {
                    let detail = || format!("found split {name:?}; expected train, validation or test");
                    Some(split_named(name).ok_or_else(|| malformed(detail()))?)
                }
            };
            let time = |role: Role| match value(role) {
                "" => Ok(None),
                text => {
                    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                    let detail = || format!("found {} {text:?}; expected seconds", role.name());
                    seconds.map(Some).ok_or_else(|| malformed(detail()))
                }
            };
            let range = TimeRange { start: time(Role::Start)?.unwrap_or_default(), end: time(Role::End)? };
            if range.end.is_some_and(|end| end <= range.start) {
                return Err(malformed("the labelled part ends before it begins".to_owned()));
            }
            for (label, weight) in labels {
                let labelled = Labelled { id: video.to_owned(), label, split, range, weight };
                gathered.look_up_path(files, video, labelled);
            }
        }
        gathered.warn_of_unlabelled(unlabelled);
        Ok(())
    }
}

/// The labels of a cell and their weights: `run;jump`, `run=0.7|walk=0.3`, `["run", "jump"]` or `{"run": 0.7, "walk": 0.3}`. The error
/// says what is wrong.
fn several(cell: &str) -> Result<Vec<(String, f32)>, String> {
    let weight = |weight: f64| match (0.0..=1.0).contains(&weight) {
        true => Ok(weight as f32),
        false => Err(format!("found the weight {weight} of a label; allowed is 0 to 1")),
    };
    match serde_json::from_str::<Value>(cell) {
        Ok(Value::Array(items)) => {
            let text = |item: Value| if let Value::String(text) = item { text } else { item.to_string() };
            return Ok(items.into_iter().map(|item| (text(item), 1.0)).collect());
        }
        Ok(Value::Object(weights)) => {
            let number =
                |value: &Value| value.as_f64().ok_or_else(|| format!("found the weight {value}; expected a number"));
            return weights.iter().map(|(label, value)| Ok((label.clone(), weight(number(value)?)?))).collect();
        }
        _ => {}
    }
    let parts = cell.split([';', '|']).map(str::trim).filter(|part| !part.is_empty());
    let label = |part: &str| match part.rsplit_once('=').map(|(label, number)| (label.trim(), number.trim().parse())) {
        Some((label, Ok(number))) => Ok((label.to_owned(), weight(number)?)),
        _ => Ok((part.to_owned(), 1.0)),
    };
    parts.map(label).collect()
}

/// Classes that are numbers: named by the list that goes with them, or in the order of the numbers.
pub(super) fn name_numbers(gathered: &mut Gathered, names: Option<Vec<String>>) -> Result<(), DatasetError> {
    let labels = || gathered.found.iter().map(|(labelled, _)| labelled).chain(gathered.missing.iter().map(|(l, _)| l));
    let numbers: Option<Vec<usize>> = labels().map(|labelled| labelled.label.parse().ok()).collect();
    let Some(mut numbers) = numbers.filter(|numbers| !numbers.is_empty()) else { return Ok(()) };
    numbers.sort_unstable();
    numbers.dedup();
    let Some(names) = names else {
        gathered.classes = Some(numbers.into_iter().map(|number| number.to_string()).collect());
        return Ok(());
    };
    // Where the last number is one too many and the first is missing, they count from 1.
    let first = usize::from(numbers.last() == Some(&names.len()) && numbers.first() != Some(&0));
    let name_of = |number: usize| names.get(number.checked_sub(first)?);
    let beyond: Vec<String> =
        numbers.iter().filter(|&&number| name_of(number).is_none()).map(|number| number.to_string()).collect();
    if !beyond.is_empty() {
        let detail = format!("class numbers {} are not in the list of {} classes", Listing(beyond), names.len());
        return Err(DatasetError::Malformed { path: gathered.source.clone(), line: None, detail });
    }
    let all = gathered.found.iter_mut().map(|(labelled, _)| labelled);
    for labelled in all.chain(gathered.missing.iter_mut().map(|(labelled, _)| labelled)) {
        if let Some(name) = labelled.label.parse().ok().and_then(name_of) {
            labelled.label.clone_from(name);
        }
    }
    gathered.classes = Some(numbers.into_iter().filter_map(|number| name_of(number).cloned()).collect());
    Ok(())
}
