//! Arguments that say where labelled videos are, shared by the subcommands that train.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::{Args, ValueEnum};

use crate::train::dataset::{Columns, DataSpec, Dataset, LabelMode, SplitRule};

/// Labelled videos.
#[derive(Debug, Clone, Args)]
pub(super) struct DataArgs {
    /// Labelled videos: a folder of class folders (with or without train, val and test above them), or annotations: of Kinetics,
    /// ActivityNet, 3D-ResNets-PyTorch, UCF-101, HMDB-51, Something-Something, Jester, Charades, lists of mmaction2 or SlowFast,
    /// or any table with named columns (docs/datasets.md has samples). `train` and `evaluate` take several: give it once for each
    #[arg(long, value_name = "PATH", required = true, help_heading = "Data")]
    data: Vec<PathBuf>,

    /// Where the videos of annotations are; beside the annotations if absent
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    videos: Option<PathBuf>,

    /// Names of all classes in their order, one a line, as in classInd.txt
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    classes: Option<PathBuf>,

    /// Which of the official splits of UCF-101 or HMDB-51
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Data")]
    split_number: u32,

    /// Part of the videos to set apart for validation where the data names none
    #[arg(long, value_name = "PART", default_value_t = 0.2, help_heading = "Data")]
    validation_fraction: f64,

    /// By what videos are set apart: `stem`, their names without endings, or `name`, with them, as the first versions did
    #[arg(long, value_enum, value_name = "RULE", default_value = "stem", help_heading = "Data")]
    split_by: SplitArg,

    /// Columns of a table: path=COLUMN,label=COLUMN (labels=COLUMN for several separated by `;` or `|`), and split, start and end (seconds) besides; the usual names are known
    #[arg(long, value_name = "ROLE=COLUMN,...", help_heading = "Data")]
    columns: Option<Columns>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SplitArg {
    Stem,
    Name,
}

impl DataArgs {
    /// Each source, read so where videos have several labels.
    pub(super) fn specs(&self, labels: LabelMode) -> Vec<DataSpec> {
        self.data.iter().map(|annotations| DataSpec { labels, ..self.spec(annotations) }).collect()
    }

    /// The sources in words.
    pub(super) fn names(&self) -> String {
        self.data.iter().map(|data| data.display().to_string()).collect::<Vec<_>>().join(", ")
    }

    fn spec(&self, annotations: &Path) -> DataSpec {
        DataSpec {
            annotations: annotations.to_owned(),
            videos: self.videos.clone(),
            classes: self.classes.clone(),
            validation_fraction: self.validation_fraction,
            split: self.split_number,
            split_rule: match self.split_by {
                SplitArg::Stem => SplitRule::Stem,
                SplitArg::Name => SplitRule::FileName,
            },
            columns: self.columns.clone(),
            labels: LabelMode::Auto,
        }
    }

    /// The only source, of commands that take one.
    pub(super) fn open(&self) -> anyhow::Result<Dataset> {
        let [only] = self.data.as_slice() else { bail!("this command takes one --data, not {}", self.data.len()) };
        Ok(Dataset::open(&self.spec(only))?)
    }
}
