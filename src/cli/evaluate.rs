//! `kinetoscope evaluate`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args as ClapArgs, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tonic::Code;

use super::backend::{Backend, BackendArgs, Refusal};
use super::data::DataArgs;
use super::progress::Watch;
use crate::app::{AppError, Category, ClassifyRequest};
use crate::classify::scores::{LabelScore, SegmentMode};
use crate::classify::{Classification, ClassifyOptions};
use crate::model::spec::{ClipSpec, ColorMatrix, Preprocessing};
use crate::proto;
use crate::replacement::write_whole;
use crate::train::dataset::{DataSpec, Dataset, Example, Split};
use crate::train::evaluate::{
    Answer, Evaluation, NoAnswer, ResultFile, STRIP_FRAME_SIZE, STRIP_FRAMES, Score, Strip, Summary, confusion_csv,
    draw_confusion, draw_strips, ids_with_times,
};
use crate::video::{DecodeOptions, Decoder};

/// Measure how good a model is on labelled videos
///
/// Prints top-1 and top-5 accuracy and their average, of whole videos, of single clips, and for each class. Classes are
/// matched by name (underscores, spaces and case don't matter); one that the model doesn't have is an error before
/// anything is decoded.
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
    /// eval_accuracy.py reads), classes.csv, confusion.csv, confusion.png, and examples.png (frames of some videos with
    /// true and predicted labels)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Videos in examples.png; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(0..=100))]
    examples: u16,
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
    let (spec, dataset) = open(&args)?;
    let examples = args.split.examples(&dataset);
    if examples.is_empty() {
        let [train, validation, test] = Split::ALL.map(|split| dataset.split(split).len());
        let (split, data) = (args.split.name(), spec.annotations.display());
        bail!(
            "the {split} split of {data} is empty; it has {train} training, {validation} validation, {test} test videos"
        );
    }
    if let Some(out) = &args.out {
        // Not after hours of work.
        std::fs::create_dir_all(out).with_context(|| format!("can't make the folder {}", out.display()))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (model, evaluation, troubles) = runtime.block_on(evaluate(&args, &dataset, &examples))?;

    let ids: Vec<_> = examples.iter().map(|example| (example.id.as_str(), example.range)).collect();
    let ids = ids_with_times(&ids);
    let no_answers = |which: &[Trouble]| -> Vec<NoAnswer> {
        let no_answer = |trouble: &Trouble| NoAnswer { id: ids[trouble.example].clone(), error: trouble.error.clone() };
        which.iter().map(no_answer).collect()
    };
    let summary = Summary {
        model,
        data: spec.annotations.display().to_string(),
        split: args.split.name().to_owned(),
        videos: None,
        clips: None,
        mean_class_top_1: None,
        partial: 0,
        missing: dataset.missing.len() as u64,
        unreadable: no_answers(&troubles.unreadable),
        failed: no_answers(&troubles.failed),
        seconds: begun.elapsed().as_secs_f64(),
        classes: Vec::new(),
    }
    .with(&evaluation);
    if summary.videos.is_none() {
        bail!("none of {} videos got an answer", examples.len());
    }
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        print!("{summary}");
    }
    if let Some(out) = &args.out {
        write_files(&args, out, &summary, &evaluation, &examples, &ids)?;
    }
    Ok(if summary.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn open(args: &Args) -> anyhow::Result<(DataSpec, Dataset)> {
    let mut spec = args.data.spec();
    if args.split == SplitArg::All {
        // No class needs enough videos for two splits.
        spec.validation_fraction = 0.0;
    }
    let dataset = Dataset::open(&spec)?;
    for warning in &dataset.warnings {
        eprintln!("kinetoscope: warning: {warning}");
    }
    Ok((spec, dataset))
}

/// Videos without an answer.
#[derive(Debug, Default)]
struct Troubles {
    unreadable: Vec<Trouble>,
    failed: Vec<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    example: usize,
    error: String,
}

/// Asks the model about all examples; gives its name too.
async fn evaluate(
    args: &Args,
    dataset: &Dataset,
    examples: &[Example],
) -> anyhow::Result<(String, Evaluation, Troubles)> {
    /// Failures one after the other, of which no video is the cause, before the rest is not even tried.
    const HOPELESS: usize = 16;

    let backend = Arc::new(Backend::start(&args.backend).await?);
    let model = describe_model(&backend, args.backend.model_name.as_deref()).await?;
    let truths: Vec<usize> = examples.iter().map(|example| example.class).collect();
    let mut evaluation = Evaluation::new(&dataset.classes, &truths, &model.labels)?;
    tell_about(&model, &evaluation);

    let progress = Progress::new(examples.len());
    let mut waiting = examples.iter().enumerate();
    let mut tasks = JoinSet::new();
    let (mut troubles, mut failed_in_a_row) = (Troubles::default(), 0);
    loop {
        while tasks.len() < usize::from(args.backend.concurrency)
            && let Some((index, example)) = waiting.next()
        {
            let (backend, request) = (Arc::clone(&backend), request(args, example));
            let path = example.video.clone();
            tasks.spawn(async move { (index, backend.classify(&path, &request, &Watch::new(None)).await) });
        }
        let Some(ended) = tasks.join_next().await else { break };
        let (index, outcome) = ended?;
        match outcome {
            Ok(classification) => {
                failed_in_a_row = 0;
                evaluation.add(index, answer(classification));
            }
            Err(error) => {
                let words = super::with_causes(&error);
                progress.suspend(|| eprintln!("kinetoscope: {}: {words}", examples[index].video.display()));
                let trouble = Trouble { example: index, error: words };
                if is_about_the_video(&error) {
                    troubles.unreadable.push(trouble);
                } else {
                    troubles.failed.push(trouble);
                    failed_in_a_row += 1;
                    if failed_in_a_row == HOPELESS {
                        return Err(error.context(format!("{HOPELESS} videos in a row got no answer; the last one")));
                    }
                }
            }
        }
        progress.advance(&evaluation, troubles.unreadable.len() + troubles.failed.len());
    }
    for list in [&mut troubles.unreadable, &mut troubles.failed] {
        list.sort_by_key(|trouble| trouble.example);
    }
    Ok((model.name, evaluation, troubles))
}

/// What is asked for each example: the ten best labels, as the authors' files have them, of the video and of each clip.
fn request(args: &Args, example: &Example) -> ClassifyRequest {
    let options = ClassifyOptions {
        top_k: Some(10),
        segments: Some(SegmentMode::Clips),
        range: example.range,
        ..ClassifyOptions::default()
    };
    ClassifyRequest { model: args.backend.model_selector(), options, ..ClassifyRequest::default() }
}

fn answer(classification: Classification) -> Answer {
    let class = |label: &LabelScore| label.index;
    Answer {
        video: classification.labels.iter().map(|label| Score { class: class(label), score: label.score }).collect(),
        clips: classification.segments.iter().map(|clip| clip.labels.iter().map(class).collect()).collect(),
        partial: classification.partial.is_some(),
        frames: classification.video.frames,
    }
}

/// Whether the video is to blame, and not the model, the server or this machine.
fn is_about_the_video(error: &anyhow::Error) -> bool {
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return refusal.code == Code::InvalidArgument;
    }
    match error.downcast_ref::<AppError>() {
        Some(error) => error.reason.category() == Category::InvalidArgument,
        // A file that can't be read before it is sent.
        None => error.downcast_ref::<std::io::Error>().is_some(),
    }
}

/// What has to be known of a model.
struct ModelInfo {
    name: String,
    labels: Vec<String>,
    trained: bool,
}

async fn describe_model(backend: &Backend, name: Option<&str>) -> anyhow::Result<ModelInfo> {
    match backend {
        Backend::Local(local) => {
            let spec = &local.model;
            Ok(ModelInfo { name: spec.name.clone(), labels: spec.labels.clone(), trained: spec.trained })
        }
        Backend::Server(server) => {
            let model = server.client.clone().model(name.unwrap_or_default()).await;
            let model = model.map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()));
            let proto::Model { name, labels, trained, .. } = model.context("the server can't describe the model")?;
            Ok(ModelInfo { name, labels, trained })
        }
    }
}

fn tell_about(model: &ModelInfo, evaluation: &Evaluation) {
    if !model.trained {
        eprintln!("kinetoscope: warning: the model {} is untrained: its labels mean nothing", model.name);
    }
    if let [(theirs, ours), ..] = evaluation.respelled() {
        let count = evaluation.respelled().len();
        eprintln!(
            "kinetoscope: {count} classes are spelled otherwise in the model, such as {theirs:?}, there {ours:?}"
        );
    }
}

fn write_files(
    args: &Args,
    out: &Path,
    summary: &Summary,
    evaluation: &Evaluation,
    examples: &[Example],
    ids: &[String],
) -> anyhow::Result<()> {
    let write = |name: &str, write: &dyn Fn(&Path) -> std::io::Result<()>| {
        let path = out.join(name);
        write(&path).with_context(|| format!("can't write {}", path.display()))
    };
    let text = |text: String| move |path: &Path| write_whole(path, text.as_bytes());
    write("summary.json", &text(serde_json::to_string_pretty(summary)? + "\n"))?;
    write("results.json", &text(serde_json::to_string(&ResultFile::new(evaluation, ids))?))?;
    write("classes.csv", &text(summary.classes_csv()))?;
    write("confusion.csv", &text(confusion_csv(evaluation)))?;
    let (confusion, names) = (evaluation.confusion(), evaluation.classes());
    write("confusion.png", &|path| draw_confusion(&confusion, names, path))?;
    if args.examples > 0 {
        let strips = strips(args, evaluation, examples);
        write("examples.png", &|path| draw_strips(&strips, path))?;
    }
    Ok(())
}

/// Frames of some videos and what the model says about them.
fn strips(args: &Args, evaluation: &Evaluation, examples: &[Example]) -> Vec<Strip> {
    let decoder = Decoder::new(args.backend.decode_isolation.within(&args.backend.limits.limits()));
    let strip = |example: usize| {
        let (_, answer) = evaluation.answers().find(|(other, _)| *other == example)?;
        let best = answer.video.first()?;
        Some(Strip {
            name: examples[example].id.clone(),
            size: STRIP_FRAME_SIZE,
            rgb: frames(&decoder, &examples[example], answer.frames),
            truth: evaluation.truth(example).to_owned(),
            predicted: evaluation.name(best.class).to_owned(),
            score: best.score,
            right: evaluation.is_right(example, answer),
        })
    };
    evaluation.chosen(args.examples.into()).into_iter().filter_map(strip).collect()
}

/// Frames at equal distances, cropped at the centre.
fn frames(decoder: &Decoder, example: &Example, frames: u64) -> Option<Vec<u8>> {
    let temporal_stride = usize::try_from(frames / STRIP_FRAMES as u64).ok()?.max(1);
    let clip = ClipSpec { frames: STRIP_FRAMES, size: STRIP_FRAME_SIZE, temporal_stride };
    let preprocessing = Preprocessing { color_matrix: ColorMatrix::Tagged, ..Preprocessing::AUTHORS_2018 };
    let options = DecodeOptions { range: example.range, max_clips_wanted: Some(1), ..DecodeOptions::default() };
    let mut rgb = None;
    let first_only = |clip: crate::video::Clip| {
        rgb = Some(clip.rgb);
        ControlFlow::Break(())
    };
    let source = example.source().ok()?;
    let decoded = decoder.decode_clips(&source, &clip, &preprocessing, &options, first_only);
    decoded.ok().and(rgb)
}

/// A bar on the terminal, if there is one.
struct Progress(ProgressBar);

impl Progress {
    fn new(videos: usize) -> Self {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} videos, {per_sec}, {eta} left{msg}");
        Self(ProgressBar::new(videos as u64).with_style(style.expect("the template is right")))
    }

    fn advance(&self, evaluation: &Evaluation, without_answer: usize) {
        self.0.inc(1);
        // Counting all answers for each one would take longer than some videos do.
        if self.0.is_hidden() || !(self.0.position() < 100 || self.0.position().is_multiple_of(100)) {
            return;
        }
        let rates = evaluation.videos().rates();
        let mut message = rates.map_or_else(String::new, |rates| format!(", top-1 {:.1}% so far", 100.0 * rates.top_1));
        if without_answer > 0 {
            message += &format!(" ({without_answer} without an answer)");
        }
        self.0.set_message(message);
    }

    fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::ClassifyError;
    use crate::engine::EngineError;
    use crate::video::VideoError;

    #[test]
    fn only_the_videos_own_faults_leave_the_figures_whole() {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        assert!(is_about_the_video(&AppError::from(VideoError::Empty).into()));
        assert!(is_about_the_video(&Refusal::of(Code::InvalidArgument).into()));
        assert!(is_about_the_video(&missing.into()));

        assert!(!is_about_the_video(&AppError::from(VideoError::NoDecoder("no program".to_owned())).into()));
        assert!(!is_about_the_video(&AppError::from(ClassifyError::Engine(EngineError::Stopped)).into()));
        for code in [Code::Unavailable, Code::ResourceExhausted, Code::DeadlineExceeded, Code::Internal] {
            assert!(!is_about_the_video(&Refusal::of(code).into()), "{code:?}");
        }
    }
}
