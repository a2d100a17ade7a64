//! The data of a training: its sources, how much of an epoch each is, where decoded clips are kept; and that a resumed run goes on
//! with the data that it began with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use bytesize::ByteSize;
use clap::Args as ClapArgs;
use sha2::{Digest, Sha256};

use super::super::data::DataArgs;
use super::recipe::RecipeArgs;
use crate::train::checkpoint::Progress;
use crate::train::clip_cache::ClipCache;
use crate::train::dataset::{DataSpec, Dataset, Example, Label, Listing, SplitRule};
use crate::train::loader::{CachedClips, Share};
use crate::train::settings::Settings;
use crate::train::trainer::CHECKPOINT_FILE;
use crate::video::TimeRange;

/// What tells the data of a run from others, among its settings.
const DATA_SETTING: &str = "data";

/// How videos are taken from their sources.
#[derive(Debug, ClapArgs)]
pub(super) struct SourceArgs {
    /// How much of an epoch each --data is: `3,1` are three quarters and one, whatever number of videos each has. If absent each
    /// video is taken once
    #[arg(long, value_name = "WEIGHT,...", value_delimiter = ',', value_parser = super::recipe::positive, help_heading = "Data")]
    data_weights: Vec<f64>,

    /// Keep decoded clips in this folder and read them from there: worth it where videos are few and decoding takes the time.
    /// Several trainings may share it
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    cache: Option<PathBuf>,

    /// About so much is kept at most; what was used least recently goes first
    #[arg(long, value_name = "SIZE", default_value = "10GB", requires = "cache", help_heading = "Data")]
    cache_size: ByteSize,

    /// Different clips of a video that are kept: the epochs take them in turn, mirrored and coloured anew each time
    #[arg(long, value_name = "N", default_value_t = 8, requires = "cache",
          value_parser = clap::value_parser!(u16).range(1..), help_heading = "Data")]
    cache_clips: u16,
}

/// Labelled videos, of which the training ones are of sources of so many.
pub(super) struct Data {
    pub(super) dataset: Dataset,
    counts: Vec<usize>,
}

impl SourceArgs {
    /// The share of each source of `data`; none if each video is taken once.
    pub(super) fn shares(&self, data: &Data, recipe: &RecipeArgs) -> anyhow::Result<Vec<Share>> {
        let (weights, sources) = (&self.data_weights, data.counts.len());
        if weights.is_empty() {
            return Ok(Vec::new());
        }
        if weights.len() != sources {
            bail!("--data-weights has {} weights for {sources} --data", weights.len());
        }
        if recipe.balances() {
            bail!("--sampler balanced and --data-weights both say how often videos are taken: give one");
        }
        let mut begin = 0;
        let share = |(&count, &weight): (&usize, &f64)| {
            let examples = begin..begin + count;
            begin += count;
            Share { examples, weight }
        };
        Ok(data.counts.iter().zip(weights).map(share).collect())
    }

    /// Where clips are kept, if they are: of training videos.
    pub(super) fn cache(&self) -> anyhow::Result<Option<CachedClips>> {
        let Some(folder) = &self.cache else { return Ok(None) };
        let cache = Arc::new(ClipCache::open(folder, self.cache_size.as_u64())?);
        Ok(Some(CachedClips { cache, clips: self.cache_clips.into() }))
    }

    /// What must stay the same when a run is resumed.
    pub(super) fn describe(&self, data: &Data, settings: &mut Settings) {
        let weights = self.data_weights.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
        settings.set("weights of the data", if weights.is_empty() { "none".to_owned() } else { weights });
        let clips = self.cache.as_ref().map_or_else(|| "none".to_owned(), |_| self.cache_clips.to_string());
        settings.set("cached clips of a video", clips);
        settings.set(DATA_SETTING, data_setting(&data.dataset));
    }
}

/// The data. A run that is resumed goes on with the split that it began with, by whatever rule that was made, and with its
/// classes.
pub(super) fn open(data: &DataArgs, recipe: &RecipeArgs, resumed: Option<&Path>) -> anyhow::Result<Data> {
    let specs = data.specs(recipe.label_mode());
    let (dataset, counts) = Dataset::open_all(&specs)?;
    let begun = resumed.map(|out| Progress::read(&out.join(CHECKPOINT_FILE))).transpose()?.flatten();
    let (Some(progress), Some(out)) = (begun, resumed) else { return Ok(Data { dataset, counts }) };
    refuse_other_classes(&progress.spec.labels, &dataset.classes, out)?;
    let was = progress.settings.get(DATA_SETTING);
    if was != Some(&data_setting(&dataset)) {
        // The older rule may refuse what the newer one takes, and then it was not the run's.
        let by_name = |spec: DataSpec| DataSpec { split_rule: SplitRule::FileName, ..spec };
        let specs: Vec<DataSpec> = specs.into_iter().map(by_name).collect();
        if let Ok((dataset, counts)) = Dataset::open_all(&specs)
            && was == Some(&data_setting(&dataset))
        {
            println!("the split is that of the run's beginning, by names with their endings");
            return Ok(Data { dataset, counts });
        }
    }
    Ok(Data { dataset, counts })
}

fn data_setting(dataset: &Dataset) -> String {
    format!("{} examples, digest {}", dataset.train.len(), digest(dataset))
}

fn refuse_other_classes(run: &[String], data: &[String], out: &Path) -> anyhow::Result<()> {
    let only_in = |these: &[String], those: &[String]| {
        Listing(these.iter().filter(|class| !those.contains(class)).cloned().collect::<Vec<_>>())
    };
    let (added, gone) = (only_in(data, run), only_in(run, data));
    match (added.0.is_empty(), gone.0.is_empty()) {
        (true, true) => Ok(()),
        (false, true) => bail!("the data has classes that the run in {} has not: {added}", out.display()),
        (true, false) => bail!("the data lacks classes of the run in {}: {gone}", out.display()),
        (false, false) => {
            bail!("the data has other classes than the run in {}: {added}, and not {gone}", out.display())
        }
    }
}

/// Tells one dataset from another, and the same one at another place not.
fn digest(dataset: &Dataset) -> String {
    let mut digest = Sha256::new();
    for Example { id, labels, range, .. } in dataset.train.iter().chain(&dataset.validation) {
        match labels.as_slice() {
            [Label { class, weight: 1.0, range: TimeRange::ALL }] => {
                digest.update(format!("{id}\n{class}\n{range:?}\n"))
            }
            labels => digest.update(format!("{id}\n{labels:?}\n{range:?}\n")),
        }
    }
    digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
