//! Class lists, in the forms in which those of Kinetics and other data sets go around.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Largest class list that is read: the authors' `kinetics.json` also lists every video.
const MAX_BYTES: u64 = 128 << 20;

/// Why a class list is refused.
#[derive(Debug, thiserror::Error)]
pub enum LabelsError {
    /// The file could not be read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Bigger than any class list.
    #[error("{path}: class list has {actual} bytes; the limit is {limit}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes.
        actual: u64,
        /// Bytes.
        limit: u64,
    },
    /// A JSON file of some other form.
    #[error(
        "{path}: JSON class list is {found}; expected an array of names, an object of names to indices 0, 1, ... or \
         of indices to names, or an object with an array under `labels`"
    )]
    Json {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        found: String,
    },
    /// A class without a name.
    #[error("{path}: line {line} is empty; expected one class a line")]
    Empty {
        /// The file.
        path: PathBuf,
        /// One-based.
        line: usize,
    },
    /// Two classes of one name.
    #[error("{path}: label {label:?} stands twice, at {first} and {second}")]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The label.
        label: String,
        /// Zero-based class index.
        first: usize,
        /// Zero-based class index.
        second: usize,
    },
}

/// Reads the class names of `path`, in the order of the network's outputs. Taken are
///
/// * text, one name a line;
/// * text or CSV whose lines are all numbered from 0 or 1 in order (`0 abseiling`, `1,"air drumming"`), with or
///   without a header such as `id,name`;
/// * JSON: an array of names, an object of names to indices from 0 or of indices to names, or the authors'
///   annotation file, which has an array under `labels`.
pub fn read_labels(path: &Path) -> Result<Vec<String>, LabelsError> {
    let io = |error| LabelsError::Io { path: path.to_owned(), error };
    let actual = std::fs::metadata(path).map_err(io)?.len();
    if actual > MAX_BYTES {
        return Err(LabelsError::TooLarge { path: path.to_owned(), actual, limit: MAX_BYTES });
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    let text = text.trim_start_matches('\u{feff}');
    let labels = if text.trim_start().starts_with(['[', '{']) {
        from_json(text).map_err(|found| LabelsError::Json { path: path.to_owned(), found })?
    } else {
        from_lines(text).map_err(|line| LabelsError::Empty { path: path.to_owned(), line })?
    };
    let mut seen = std::collections::HashMap::new();
    for (second, label) in labels.iter().enumerate() {
        if let Some(first) = seen.insert(label, second) {
            return Err(LabelsError::Duplicate { path: path.to_owned(), label: label.clone(), first, second });
        }
    }
    Ok(labels)
}

/// The error is the number of an empty line.
fn from_lines(text: &str) -> Result<Vec<String>, usize> {
    let lines: Vec<&str> = text.trim_end().lines().map(str::trim).collect();
    if let Some(empty) = lines.iter().position(|line| line.is_empty()) {
        return Err(empty + 1);
    }
    let numbered = |lines: &[&str]| {
        let pairs: Option<Vec<(usize, &str)>> = lines.iter().map(|line| split_number(line)).collect();
        let pairs = pairs?;
        let first = pairs.first()?.0;
        let in_order = first <= 1 && pairs.iter().enumerate().all(|(index, pair)| pair.0 == index + first);
        in_order.then(|| pairs.into_iter().map(|(_, label)| label.to_owned()).collect::<Vec<_>>())
    };
    // A header can't be numbered, so that only the lines below it decide.
    let labels = numbered(&lines).or_else(|| match lines.as_slice() {
        [header, rest @ ..] if header.contains(',') => numbered(rest),
        _ => None,
    });
    Ok(labels.unwrap_or_else(|| lines.iter().map(|line| unquoted(line).to_owned()).collect()))
}

/// `12 label`, `12,label`, `12:label` or with a tab.
fn split_number(line: &str) -> Option<(usize, &str)> {
    let (number, label) = line.split_once([' ', ',', '\t', ':'])?;
    let label = unquoted(label.trim());
    if label.is_empty() {
        return None;
    }
    Some((unquoted(number).parse().ok()?, label))
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

/// The error says what was found.
fn from_json(text: &str) -> Result<Vec<String>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("malformed ({error})"))?;
    let array = |items: &[Value]| {
        let names = items.iter().map(|item| item.as_str().map(|name| name.trim().to_owned()));
        names.collect::<Option<Vec<_>>>().ok_or_else(|| "an array with something other than names".to_owned())
    };
    match &value {
        Value::Array(items) => array(items),
        Value::Object(object) => {
            if let Some(Value::Array(items)) = object.get("labels") {
                return array(items);
            }
            let mut labels = vec![None; object.len()];
            for (key, value) in object {
                let (name, index) = match value {
                    Value::String(name) => (name, key.parse().ok()),
                    other => (key, other.as_u64()),
                };
                let slot = index.and_then(|index| labels.get_mut(usize::try_from(index).ok()?));
                match slot {
                    // PyTorchVideo's list has its names in quotes of their own.
                    Some(slot @ None) => *slot = Some(unquoted(name.trim()).to_owned()),
                    Some(_) => return Err(format!("an object with two names of one index ({key:?}: {value})")),
                    None => return Err(format!("an object of {} names with {key:?}: {value}", object.len())),
                }
            }
            labels.into_iter().collect::<Option<_>>().ok_or_else(|| "an object with indices missing".to_owned())
        }
        _ => Err("a single value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Result<Vec<String>, LabelsError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        read_labels(file.path())
    }

    #[test]
    fn one_name_a_line_is_taken_as_it_stands() {
        assert_eq!(read("abseiling\nair drumming\r\n\n").unwrap(), ["abseiling", "air drumming"]);
        assert_eq!(read("\u{feff}3 point shot\nbowling").unwrap(), ["3 point shot", "bowling"]);
    }

    #[test]
    fn numbers_in_order_are_taken_off() {
        for content in [
            "0 abseiling\n1 air drumming\n",
            "1 abseiling\n2 air drumming",
            "id,name\n0,abseiling\n1,air drumming\n",
            "0,\"abseiling\"\n1,\"air drumming\"",
            "0\tabseiling\n1\tair drumming",
        ] {
            assert_eq!(read(content).unwrap(), ["abseiling", "air drumming"], "{content:?}");
        }
        // Not numbers but names: out of order.
        assert_eq!(read("100 metres\n50 metres").unwrap(), ["100 metres", "50 metres"]);
    }

    #[test]
    fn json_lists_of_the_common_forms_are_taken() {
        for content in [
            r#"["abseiling", "air drumming"]"#,
            r#"{"air drumming": 1, "abseiling": 0}"#,
            r#"{"0": "abseiling", "1": "air drumming"}"#,
            r#"{"\"air drumming\"": 1, "\"abseiling\"": 0}"#,
            r#"{"labels": ["abseiling", "air drumming"], "database": {"x": {"subset": "training"}}}"#,
        ] {
            assert_eq!(read(content).unwrap(), ["abseiling", "air drumming"], "{content}");
        }
    }

    #[test]
    fn lists_that_leave_a_class_unclear_are_refused() {
        assert!(matches!(read("a\nb\na"), Err(LabelsError::Duplicate { first: 0, second: 2, .. })));
        assert!(matches!(read("a\n\nb"), Err(LabelsError::Empty { line: 2, .. })));
        for content in ["{\"a\": 0, \"b\": 0}", "{\"a\": 0, \"b\": 7}", "[1, 2]", "{", "{\"a\": -1}"] {
            assert!(matches!(read(content), Err(LabelsError::Json { .. })), "{content}");
        }
    }
}
