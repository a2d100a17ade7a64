//! Brings the videos to a model, here or on a server, and its answers to an [`Evaluation`].

use std::sync::Arc;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tonic::Code;

use super::super::backend::{Backend, Refusal};
use super::super::progress::Watch;
use super::{Args, views};
use crate::app::{AppError, Category, ClassifyRequest};
use crate::classify::scores::{LabelScore, SegmentMode};
use crate::classify::{Classification, ClassifyOptions};
use crate::model::scores::ScoreFunction;
use crate::proto;
use crate::train::dataset::{Dataset, Example};
use crate::train::evaluate::{Answer, Evaluation};

/// A model's answers to all examples.
pub(super) struct Asked {
    pub(super) model: ModelInfo,
    pub(super) evaluation: Evaluation,
    pub(super) troubles: Troubles,
}

/// Videos without an answer.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    pub(super) unreadable: Vec<Trouble>,
    pub(super) failed: Vec<Trouble>,
}

#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) example: usize,
    pub(super) error: String,
}

/// What has to be known of a model.
pub(super) struct ModelInfo {
    pub(super) name: String,
    pub(super) scores: ScoreFunction,
    labels: Vec<String>,
    trained: bool,
}

/// Asks `backend`, which runs `model`, about all examples.
pub(super) async fn ask(
    args: &Args,
    backend: Backend,
    model: ModelInfo,
    dataset: &Dataset,
    examples: &[Example],
) -> anyhow::Result<Asked> {
    /// Failures one after the other, of which no video is the cause, before the rest is not even tried.
    const HOPELESS: usize = 16;

    let backend = Arc::new(backend);
    let mut evaluation = begin(&model, dataset, examples)?;
    tell_about(&model, &evaluation);

    let progress = Progress::new(examples.len());
    let mut queued = examples.iter().enumerate();
    let mut tasks = JoinSet::new();
    let (mut troubles, mut failed_in_a_row) = (Troubles::default(), 0);
    loop {
        while tasks.len() < usize::from(args.backend.concurrency)
            && let Some((index, example)) = queued.next()
        {
            let answering = answer_to(args, &backend, example, model.labels.len());
            tasks.spawn(async move { (index, answering.await) });
        }
        let Some(ended) = tasks.join_next().await else { break };
        let (index, outcome) = ended?;
        match outcome {
            Ok(answer) => {
                failed_in_a_row = 0;
                evaluation.add(index, answer);
            }
            Err(error) => {
                let words = super::super::with_causes(&error);
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
    Ok(Asked { model, evaluation, troubles })
}

fn begin(model: &ModelInfo, dataset: &Dataset, examples: &[Example]) -> anyhow::Result<Evaluation> {
    let truth = |example: &Example| match model.scores.is_multi_label() {
        true => example.classes(),
        false => example.main_class().into_iter().collect(),
    };
    let truths: Vec<Vec<usize>> = examples.iter().map(truth).collect();
    Ok(Evaluation::new(&dataset.classes, &truths, &model.labels, model.scores.activation)?)
}

/// The answer to one example. Owns all that it needs.
fn answer_to(
    args: &Args,
    backend: &Arc<Backend>,
    example: &Example,
    labels: usize,
) -> impl Future<Output = anyhow::Result<Answer>> + Send + 'static {
    let keep_scores = args.calibrate.is_some();
    let (backend, request, limits) = (Arc::clone(backend), request(args, example), args.backend.limits.limits());
    let (example, views) = (example.clone(), args.views());
    async move {
        match (&*backend, views) {
            (Backend::Local(local), Some(views)) => {
                let engine = local.engine()?;
                views::classify(&engine, &example, views, limits, keep_scores).await
            }
            _ => {
                let classification = backend.classify(&example.video, &request, &Watch::new(None)).await?;
                answer(&classification, labels, keep_scores)
            }
        }
    }
}

/// What is asked for each example: all labels, of the video and of each clip.
fn request(args: &Args, example: &Example) -> ClassifyRequest {
    let options = ClassifyOptions {
        top_k: None,
        segments: Some(SegmentMode::Clips),
        range: example.range,
        ..ClassifyOptions::default()
    };
    ClassifyRequest { model: args.backend.model_selector(), options, ..ClassifyRequest::default() }
}

fn answer(classification: &Classification, labels: usize, keep_scores: bool) -> anyhow::Result<Answer> {
    let scores = |answered: &[LabelScore]| {
        let mut scores = vec![0.0; labels];
        for LabelScore { index, score, .. } in answered {
            let Some(place) = scores.get_mut(*index) else {
                bail!("the answer has a label of index {index}; the model has {labels}");
            };
            *place = *score;
        }
        Ok(scores)
    };
    let clips: Vec<Vec<f32>> =
        classification.segments.iter().map(|clip| scores(&clip.labels)).collect::<anyhow::Result<_>>()?;
    Ok(Answer {
        partial: classification.partial.is_some(),
        frames: classification.video.frames,
        ..Answer::of_scores(scores(&classification.labels)?).with_clips(clips, keep_scores)
    })
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

/// What `backend` says of its model; of a server's models, of that called `name`.
pub(super) async fn describe_model(backend: &Backend, name: Option<&str>) -> anyhow::Result<ModelInfo> {
    match backend {
        Backend::Local(local) => {
            let spec = &local.model;
            let (name, labels) = (spec.name.clone(), spec.labels.clone());
            Ok(ModelInfo { name, labels, trained: spec.trained, scores: spec.scores })
        }
        Backend::Server(server) => {
            let model = server.client.clone().model(name.unwrap_or_default()).await;
            let model = model.map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()));
            let proto::Model { name, labels, trained, score_function, .. } =
                model.context("the server can't describe the model")?;
            // Servers of earlier versions know nothing else.
            let scores = score_function.map_or_else(ScoreFunction::default, Into::into);
            Ok(ModelInfo { name, labels, trained, scores })
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
