//! `kinetoscope evaluate`.

mod ask;
mod compare;
mod output;
mod views;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args as ClapArgs, ValueEnum};

use super::backend::{Backend, BackendArgs};
use super::data::DataArgs;
use super::model;
use crate::model::scores::ScoreFunction;
use crate::train::dataset::{Dataset, Example, LabelMode, Split};
use crate::train::evaluate::{EarlierResults, Evaluation, FittedTemperature, NoAnswer, Summary, Views, ids_with_times};
use ask::{Asked, ModelInfo, Trouble, ask, describe_model};
use compare::Other;

/// Measure how good a model is on labelled videos
///
/// Prints top-1 and top-5 accuracy and their average, of whole videos and of single clips; precision, recall, F1 and average
/// precision of each class; and how far scores are from how often they are right. Classes are matched by name (underscores,
/// spaces and case don't matter); one that the model doesn't have is an error before anything is decoded.
///
/// Videos that can't be decoded are listed and don't count; the exit status is 0 all the same, since large datasets
/// always have some. It is 1 if there are no figures at all, or if they are not those of the whole split because videos
/// got no answer for another reason, such as a server that went away.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,

    /// Which videos to evaluate on; `all` takes every labelled one
    #[arg(long, value_enum, value_name = "SPLIT", default_value = "validation")]
    split: SplitArg,

    #[command(flatten)]
    pub(super) backend: BackendArgs,

    /// Print the figures as one JSON object
    #[arg(long)]
    json: bool,

    /// Write to this folder: summary.json (as --json prints), results.json (the authors' format, which their
    /// eval_accuracy.py reads), classes.csv, confusion.csv, confusion.png, reliability.png, and examples.png (frames of some
    /// videos with true and predicted labels)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Videos in examples.png; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(0..=100))]
    examples: u16,

    /// Take N clips of each video, in the middles of N equal parts, instead of all clips one after the other. They are decoded
    /// in this process
    #[arg(long, value_name = "N", conflicts_with = "server", value_parser = clap::value_parser!(u16).range(1..=1000),
          help_heading = "Clips")]
    clips: Option<u16>,

    /// Parts of each frame: 1, the middle, or 3, along the longer side
    #[arg(long, value_name = "1|3", default_value = "1", requires = "clips", value_parser = ["1", "3"], help_heading = "Clips")]
    crops: String,

    /// Write a page of HTML to this file: all figures, and the videos that the model got wrong with frames, the surest ones first
    #[arg(long, value_name = "FILE", help_heading = "More")]
    report: Option<PathBuf>,

    /// Videos on the page at most
    #[arg(long, value_name = "N", default_value_t = 100, requires = "report", help_heading = "More")]
    report_errors: u16,

    /// Fit the temperature that makes scores as high as they are often right, and write the model with it to this file, which
    /// may be that of --model. Best on videos that were not trained on
    #[arg(long, value_name = "FILE", conflicts_with = "server", help_heading = "More")]
    calibrate: Option<PathBuf>,

    /// Compare with another model on the same videos: a model file, hf:ORG/REPO, or the results.json of an earlier evaluation.
    /// Tells the difference with its 95% interval, and whether chance alone may do that
    #[arg(long, value_name = "MODEL|JSON", help_heading = "More")]
    compare: Option<Other>,
}

impl Args {
    /// Some views of each video; all clips if `None`.
    fn views(&self) -> Option<Views> {
        let crops = if self.crops == "3" { 3 } else { 1 };
        self.clips.map(|clips| Views { clips: clips.into(), crops })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SplitArg {
    Train,
    Validation,
    Test,
    All,
}

impl SplitArg {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
            Self::All => "all",
        }
    }

    fn examples(self, dataset: &Dataset) -> Vec<Example> {
        let splits: &[Split] = match self {
            Self::Train => &[Split::Train],
            Self::Validation => &[Split::Validation],
            Self::Test => &[Split::Test],
            Self::All => &Split::ALL,
        };
        splits.iter().flat_map(|&split| dataset.split(split)).cloned().collect()
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.backend.announce();
    let begun = Instant::now();
    let earlier = prepare_output(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // The model first: it says whether videos may have several labels.
    let (backend, model) = runtime.block_on(start(&args))?;
    let dataset = open(&args, model.scores)?;
    let examples = args.split.examples(&dataset);
    if examples.is_empty() {
        let [train, validation, test] = Split::ALL.map(|split| dataset.split(split).len());
        let (split, data) = (args.split.name(), args.data.names());
        bail!(
            "the {split} split of {data} is empty; it has {train} training, {validation} validation, {test} test videos"
        );
    }
    let ids: Vec<_> = examples.iter().map(|example| (example.id.as_str(), example.range)).collect();
    let ids = ids_with_times(&ids);
    let (Asked { model, evaluation, troubles }, other) = runtime.block_on(async {
        let asked = ask(&args, backend, model, &dataset, &examples).await?;
        let other = match &args.compare {
            Some(Other::Model(source)) => {
                let backend = Backend::start_here(&args.backend, Some(source))?;
                let model = describe_model(&backend, None).await?;
                if model.scores.activation != asked.model.scores.activation {
                    bail!("one of {source} and {} answers with several labels, the other with one", asked.model.name);
                }
                Some(ask(&args, backend, model, &dataset, &examples).await.context("the model to compare with")?)
            }
            _ => None,
        };
        Ok((asked, other))
    })?;

    let comparison = match (&args.compare, &earlier, &other) {
        (Some(Other::Results(path)), Some(results), _) => compare::with_results(&evaluation, &ids, path, results),
        (Some(Other::Model(source)), _, Some(other)) => compare::with_model(&evaluation, source, other),
        _ => None,
    };
    if comparison.is_none() && args.compare.is_some() {
        bail!("there is nothing to compare: no video was answered by both");
    }
    let no_answers = |which: &[Trouble]| -> Vec<NoAnswer> {
        let no_answer = |trouble: &Trouble| NoAnswer { id: ids[trouble.example].clone(), error: trouble.error.clone() };
        which.iter().map(no_answer).collect()
    };
    let mut summary = Summary {
        model: model.name,
        data: args.data.names(),
        split: args.split.name().to_owned(),
        scores: model.scores,
        clips_per_video: args.views().map(|views| views.clips),
        crops: args.views().map_or(1, |views| views.crops),
        comparison,
        missing: dataset.missing.len() as u64,
        unreadable: no_answers(&troubles.unreadable),
        failed: no_answers(&troubles.failed),
        seconds: begun.elapsed().as_secs_f64(),
        ..Summary::default()
    }
    .with(&evaluation);
    if summary.videos.is_none() {
        bail!("none of {} videos got an answer", examples.len());
    }
    if args.calibrate.is_some() {
        summary.fitted = Some(fit(&summary, &evaluation)?);
    }
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        print!("{summary}");
    }
    if let Some(out) = &args.out {
        output::write_folder(&args, out, &summary, &evaluation, &examples, &ids)?;
    }
    if let Some(path) = &args.report {
        output::write_page(&args, path, &summary, &evaluation, &examples)?;
    }
    if let (Some(path), Some(fitted)) = (&args.calibrate, &summary.fitted) {
        let mut calibrated = model::load(args.backend.model.as_ref())?;
        calibrated.spec.scores.temperature = fitted.temperature;
        calibrated.write(path).with_context(|| format!("can't write {}", path.display()))?;
        eprintln!("kinetoscope: wrote {} with the temperature {:.4}", path.display(), fitted.temperature);
    }
    Ok(if summary.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Finds out whether results can be written and compared, not after hours of work. Gives the earlier ones, if there are.
fn prepare_output(args: &Args) -> anyhow::Result<Option<EarlierResults>> {
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).with_context(|| format!("can't make the folder {}", out.display()))?;
    }
    for file in [&args.report, &args.calibrate].into_iter().flatten() {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            bail!("can't write {}: there is no folder {}", file.display(), folder.display());
        }
    }
    match &args.compare {
        Some(Other::Results(path)) => Ok(Some(EarlierResults::read(path)?)),
        _ => Ok(None),
    }
}

/// The temperature for the model, and what it brings.
fn fit(summary: &Summary, evaluation: &Evaluation) -> anyhow::Result<FittedTemperature> {
    /// Fewer tell little.
    const FEW: u64 = 50;
    let videos = summary.videos.map_or(0, |rates| rates.total);
    if videos < FEW {
        eprintln!(
            "kinetoscope: warning: the temperature is fitted to {videos} videos only; some hundreds tell it well"
        );
    }
    if summary.split == "train" || summary.split == "all" {
        eprintln!("kinetoscope: warning: of videos that a model was trained on it is surer than of others");
    }
    let factor = evaluation.fit_temperature().context("the temperature can't be fitted")?;
    let calibration = evaluation.calibration_at(factor).context("no video got an answer")?;
    Ok(FittedTemperature { temperature: summary.scores.temperature * factor, calibration })
}

async fn start(args: &Args) -> anyhow::Result<(Backend, ModelInfo)> {
    let backend = Backend::start(&args.backend).await?;
    let model = describe_model(&backend, args.backend.model_name.as_deref()).await?;
    Ok((backend, model))
}

fn open(args: &Args, scores: ScoreFunction) -> anyhow::Result<Dataset> {
    let labels = if scores.is_multi_label() { LabelMode::Multi } else { LabelMode::Single };
    let mut specs = args.data.specs(labels);
    if args.split == SplitArg::All {
        // No class needs enough videos for two splits.
        specs.iter_mut().for_each(|spec| spec.validation_fraction = 0.0);
    }
    let (dataset, _) = Dataset::open_all(&specs)?;
    for warning in &dataset.warnings {
        eprintln!("kinetoscope: warning: {warning}");
    }
    Ok(dataset)
}
