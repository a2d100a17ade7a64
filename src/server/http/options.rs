//! Options of a classification in queries, forms and JSON.

use std::time::Duration;

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind};
use serde_json::{Map, Value, json};

use super::json::{decode, descriptor};
use crate::app::quote::Quoted;
use crate::app::{AppError, Reason};
use crate::proto::ClassificationOptions;

/// Seconds, with or without an `s`.
pub(in crate::server) fn parse_seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_suffix('s').unwrap_or(text).parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Options as they come, by their names in JSON.
#[derive(Debug, Clone, Default)]
pub(super) struct Options(Map<String, Value>);

impl Options {
    /// Adds one of a query or a form.
    pub(super) fn set(&mut self, name: &str, text: &str) -> Result<(), AppError> {
        let part = match name {
            "model" | "model.name" => Some("name"),
            "modelVersion" | "model_version" | "model.version" => Some("version"),
            _ => None,
        };
        if let Some(part) = part {
            let model = self.0.entry("model").or_insert_with(|| json!({}));
            model[part] = text.into();
            return Ok(());
        }
        let field = field(name)?;
        let value = value(&field, text).ok_or_else(|| {
            let message = format!("{name} is {}; it takes {}", Quoted::text(text), takes(&field));
            AppError::new(Reason::InvalidOption, message)
        })?;
        self.0.insert(field.json_name().to_owned(), value);
        Ok(())
    }

    /// Adds those of a JSON object, in whose place those that are there already stand back.
    pub(super) fn extend(&mut self, options: Map<String, Value>) -> Result<(), AppError> {
        for (name, value) in options {
            self.0.insert(field(&name)?.json_name().to_owned(), value);
        }
        Ok(())
    }

    pub(super) fn read(self) -> Result<ClassificationOptions, AppError> {
        decode(Value::Object(self.0))
    }
}

fn field(name: &str) -> Result<FieldDescriptor, AppError> {
    let options = descriptor::<ClassificationOptions>();
    options.get_field_by_json_name(name).or_else(|| options.get_field_by_name(name)).ok_or_else(|| {
        let names: Vec<String> = options.fields().map(|field| field.json_name().to_owned()).collect();
        let message = format!("there is no option {}; there are {}", Quoted::text(name), names.join(", "));
        AppError::new(Reason::InvalidOption, message)
    })
}

fn value(field: &FieldDescriptor, text: &str) -> Option<Value> {
    Some(match field.kind() {
        Kind::Bool => match text.to_ascii_lowercase().as_str() {
            "" | "1" | "true" => true.into(),
            "0" | "false" => false.into(),
            _ => return None,
        },
        Kind::Uint32 => text.parse::<u32>().ok()?.into(),
        Kind::Uint64 => text.parse::<u64>().ok()?.into(),
        Kind::Float => text.parse::<f32>().ok().filter(|value| value.is_finite())?.into(),
        Kind::Enum(values) => enum_name(&values, text)?.into(),
        // Times are the only messages but the model.
        Kind::Message(_) => {
            let time = parse_seconds(text)?;
            format!("{}.{:09}s", time.as_secs(), time.subsec_nanos()).into()
        }
        _ => return None,
    })
}

/// `merged` is `SEGMENT_MODE_MERGED`.
fn enum_name(values: &EnumDescriptor, text: &str) -> Option<String> {
    let text = text.to_ascii_uppercase();
    let names = values.values().map(|value| value.name().to_owned());
    let mut found = names.filter(|name| *name == text || short_name(values, name) == text);
    found.next()
}

/// Without the name of the enum.
fn short_name<'a>(values: &EnumDescriptor, name: &'a str) -> &'a str {
    let unspecified = values.default_value();
    let prefix = unspecified.name().strip_suffix("UNSPECIFIED").unwrap_or_default();
    name.strip_prefix(prefix).unwrap_or(name)
}

fn takes(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Bool => "true or false".to_owned(),
        Kind::Uint32 | Kind::Uint64 => "a whole number".to_owned(),
        Kind::Enum(values) => {
            let names = values.values().skip(1).map(|value| short_name(&values, value.name()).to_ascii_lowercase());
            names.collect::<Vec<_>>().join(", ")
        }
        Kind::Message(_) => "seconds, such as 90 or 2.5s".to_owned(),
        _ => "a number".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<ClassificationOptions, AppError> {
        let mut options = Options::default();
        for (name, text) in pairs {
            options.set(name, text)?;
        }
        options.read()
    }

    #[test]
    fn options_of_queries_are_those_of_the_message() {
        let options = read(&[
            ("topK", "3"),
            ("score_threshold", "0.5"),
            ("segments", "merged"),
            ("priority", "PRIORITY_HIGH"),
            ("embedding", "true"),
            ("start", "90"),
            ("end", "92.5s"),
            ("model", "m"),
            ("modelVersion", "2"),
        ])
        .unwrap();
        let time = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        assert_eq!((options.top_k, options.score_threshold, options.embedding), (Some(3), 0.5, true));
        assert_eq!((options.segments, options.priority), (2, 3));
        assert_eq!((options.start, options.end), (time(90, 0), time(92, 500_000_000)));
        let model = options.model.unwrap();
        assert_eq!((model.name.as_str(), model.version.as_str()), ("m", "2"));
    }

    #[test]
    fn what_is_no_option_is_named_with_what_it_takes() {
        for (name, text, expected) in [
            ("topk", "3", "there is no option \"topk\""),
            ("topK", "-1", "topK is \"-1\"; it takes a whole number"),
            ("segments", "all", "it takes clip, merged"),
            ("start", "-1", "it takes seconds"),
            ("start", "1e400", "it takes seconds"),
            ("embedding", "maybe", "it takes true or false"),
            ("scoreThreshold", "NaN", "it takes a number"),
        ] {
            let error = read(&[(name, text)]).unwrap_err();
            assert_eq!(error.reason, Reason::InvalidOption);
            assert!(error.message.contains(expected), "{error}");
        }
    }

    #[test]
    fn options_of_the_body_count_more_than_those_of_the_query() {
        let mut options = Options::default();
        options.set("topK", "3").unwrap();
        options.set("segments", "clip").unwrap();
        options.extend(json!({"top_k": 7}).as_object().unwrap().clone()).unwrap();
        let options = options.read().unwrap();
        assert_eq!((options.top_k, options.segments), (Some(7), 1));
    }
}
