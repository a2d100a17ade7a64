//! A second model, or what an earlier evaluation found, beside the evaluated one.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser, ValueParser, ValueParserFactory};

use super::ask::Asked;
use crate::hub::{InvalidName, ModelSource};
use crate::train::evaluate::{Comparison, EarlierResults, Evaluation, Paired};

/// What to compare with.
#[derive(Debug, Clone)]
pub(super) enum Other {
    Model(ModelSource),
    /// The `results.json` of an earlier evaluation.
    Results(PathBuf),
}

impl Other {
    fn parse(argument: OsString) -> Result<Self, InvalidName> {
        match Path::new(&argument).extension() {
            Some(extension) if extension == "json" => Ok(Self::Results(argument.into())),
            _ => ModelSource::parse(argument).map(Self::Model),
        }
    }
}

impl ValueParserFactory for Other {
    type Parser = ValueParser;

    fn value_parser() -> ValueParser {
        ValueParser::new(OsStringValueParser::new().try_map(Self::parse))
    }
}

/// Beside another model on the videos that both answered; `None` if there are none.
pub(super) fn with_model(evaluation: &Evaluation, source: &ModelSource, other: &Asked) -> Option<Comparison> {
    let theirs: HashMap<usize, bool> = right(&other.evaluation).collect();
    let pairs: Vec<(bool, bool)> =
        right(evaluation).filter_map(|(example, ours)| Some((*theirs.get(&example)?, ours))).collect();
    comparison(source.to_string(), &pairs)
}

/// Beside the results of an earlier evaluation, whose videos have these ids.
pub(super) fn with_results(
    evaluation: &Evaluation,
    ids: &[String],
    path: &Path,
    results: &EarlierResults,
) -> Option<Comparison> {
    let pair = |(example, ours): (usize, bool)| {
        let theirs = results.best(&ids[example])?;
        Some((theirs == evaluation.truth(example), ours))
    };
    let pairs: Vec<(bool, bool)> = right(evaluation).filter_map(pair).collect();
    comparison(path.display().to_string(), &pairs)
}

fn right(evaluation: &Evaluation) -> impl Iterator<Item = (usize, bool)> {
    evaluation.answers().map(|(example, answer)| (example, evaluation.is_right(example, answer)))
}

fn comparison(other: String, pairs: &[(bool, bool)]) -> Option<Comparison> {
    let part = |right: &dyn Fn(&(bool, bool)) -> bool| {
        pairs.iter().filter(|&pair| right(pair)).count() as f64 / pairs.len().max(1) as f64
    };
    let (other_accuracy, accuracy) = (part(&|pair| pair.0), part(&|pair| pair.1));
    Some(Comparison { other, other_accuracy, accuracy, paired: Paired::of(pairs)? })
}
