//! Arguments that say what is minimised.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::train::dataset::{Dataset, LabelKind, LabelMode};
use crate::train::loss::{balanced_positive_weights, balanced_weights};

/// `--loss`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LossArg {
    /// Cross entropy of the softmax: one class a video, or parts that add up to 1
    CrossEntropy,
    /// Binary cross entropy of each class's sigmoid: any number of classes a video
    Bce,
}

impl LossArg {
    pub(super) fn label_mode(self) -> LabelMode {
        match self {
            Self::CrossEntropy => LabelMode::Single,
            Self::Bce => LabelMode::Multi,
        }
    }
}

/// `--class-weights`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ClassWeightsArg {
    Balanced,
    File(PathBuf),
}

impl std::str::FromStr for ClassWeightsArg {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "balanced" { Self::Balanced } else { Self::File(text.into()) })
    }
}

impl ClassWeightsArg {
    /// The weights of the classes of `dataset`, which have so many training videos each.
    pub(super) fn of(&self, dataset: &Dataset, counts: &[usize]) -> anyhow::Result<Vec<f32>> {
        Ok(match self {
            Self::Balanced if dataset.kind == LabelKind::Multi => {
                balanced_positive_weights(counts, dataset.train.len())
            }
            Self::Balanced => balanced_weights(counts),
            Self::File(path) => read_class_weights(path, &dataset.classes)?,
        })
    }
}

/// The weights in a file of lines `CLASS,WEIGHT`, in the order of `classes`.
fn read_class_weights(path: &Path, classes: &[String]) -> anyhow::Result<Vec<f32>> {
    let name = path.display();
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .trim(csv::Trim::All)
        .from_path(path)
        .with_context(|| format!("can't read the class weights {name}"))?;
    let mut weights = vec![None; classes.len()];
    for (line, row) in (1..).zip(reader.records()) {
        let row = row.with_context(|| format!("can't read the class weights {name}"))?;
        let (Some(class), Some(weight), None) = (row.get(0), row.get(1), row.get(2)) else {
            bail!("{name}, line {line}: expected is CLASS,WEIGHT");
        };
        let weight = match weight.parse::<f32>() {
            Ok(weight) if weight.is_finite() && weight >= 0.0 => weight,
            // A line of headings.
            _ if line == 1 && !classes.iter().any(|known| known == class) => continue,
            _ => bail!("{name}, line {line}: the weight is {weight:?}; allowed are numbers from 0 on"),
        };
        let Some(place) = classes.iter().position(|known| known == class) else {
            bail!("{name}, line {line}: the data has no class {class:?}");
        };
        weights[place] = Some(weight);
    }
    let weight = |(class, weight): (&String, Option<f32>)| {
        weight.with_context(|| format!("{name} has no weight for the class {class:?}"))
    };
    let weights: Vec<f32> = classes.iter().zip(weights).map(weight).collect::<anyhow::Result<_>>()?;
    if weights.iter().all(|&weight| weight == 0.0) {
        bail!("{name}: all weights are 0");
    }
    Ok(weights)
}
