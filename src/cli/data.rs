//! Arguments that say where labelled videos are, shared by the subcommands that train.

use std::path::PathBuf;

use clap::Args;

use crate::train::dataset::{DataSpec, Dataset, DatasetError};

/// Labelled videos.
#[derive(Debug, Clone, Args)]
pub(super) struct DataArgs {
    /// Labelled videos: a folder of class folders (with or without train, val and test above them), or annotations of
    /// Kinetics (CSV), ActivityNet or 3D-ResNets-PyTorch (JSON), UCF-101 or HMDB-51 (the folder of their lists)
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    data: PathBuf,

    /// Where the videos of annotations are; beside the annotations if absent
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    videos: Option<PathBuf>,

    /// Names of all classes in their order, one a line, as in classInd.txt
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    classes: Option<PathBuf>,

    /// Which of the official splits of UCF-101 or HMDB-51
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Data")]
    split_number: u32,

    /// Part of the videos to set apart for validation where the data has no splits
    #[arg(long, value_name = "PART", default_value_t = 0.2, help_heading = "Data")]
    validation_fraction: f64,
}

impl DataArgs {
    pub(super) fn spec(&self) -> DataSpec {
        DataSpec {
            annotations: self.data.clone(),
            videos: self.videos.clone(),
            classes: self.classes.clone(),
            validation_fraction: self.validation_fraction,
            split: self.split_number,
        }
    }

    pub(super) fn open(&self) -> Result<Dataset, DatasetError> {
        Dataset::open(&self.spec())
    }
}
