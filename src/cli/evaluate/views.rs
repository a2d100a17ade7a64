//! Some clips of a video and several parts of their frames, decoded in this process as in training.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::app::AppError;
use crate::classify::ClassifyError;
use crate::engine::batcher::Priority;
use crate::engine::{ClipInput, Engine, EngineError};
use crate::train::dataset::Example;
use crate::train::evaluate::{Answer, Views};
use crate::video::{DecodeOptions, Limits, VideoError, decode_chosen_clip};

/// The answer to an example: the mean over its views.
pub(super) async fn classify(
    engine: &Engine,
    example: &Example,
    views: Views,
    limits: Limits,
    keep_scores: bool,
) -> anyhow::Result<Answer> {
    let spec = engine.spec();
    let queue = engine.video(Priority::Normal);
    let options = DecodeOptions { limits, range: example.range, ..DecodeOptions::default() };
    let (sender, mut decoded) = tokio::sync::mpsc::channel::<Vec<u8>>(2);
    let (example, clip, preprocessing) = (example.clone(), spec.clip, spec.preprocessing);
    let decode = tokio::task::spawn_blocking(move || {
        let frames = AtomicU64::new(0);
        let source = example.source()?;
        for view in 0..views.count() {
            let choose = |video: crate::video::Extent| {
                frames.store(video.frames, Ordering::Relaxed);
                views.choice(view, &clip, &preprocessing, video)
            };
            let taken = decode_chosen_clip(&source, &clip, &preprocessing, &options, choose)?;
            if sender.blocking_send(taken.rgb).is_err() {
                break;
            }
        }
        Ok::<u64, VideoError>(frames.into_inner())
    });
    let failed = |error| AppError::from(ClassifyError::Engine(error));
    let mut pending = Vec::new();
    while let Some(rgb) = decoded.recv().await {
        // A task for each, so that the engine's queue is never waited for by who would empty it.
        let clip = queue.submit(ClipInput::Rgb(rgb.into())).await.map_err(failed)?;
        pending.push(tokio::spawn(clip));
    }
    let frames = decode.await?.map_err(AppError::from)?;
    let mut clips = Vec::with_capacity(pending.len());
    for clip in pending {
        let output: Result<_, EngineError> = clip.await?;
        clips.push(spec.scores.scores(&output.map_err(failed)?.logits));
    }
    Ok(Answer { frames, ..Answer::of_clips(clips, keep_scores) })
}
