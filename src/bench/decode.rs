//! What the transform to clips costs on top of decoding.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::model::spec::{ClipSpec, Preprocessing};
use crate::video::{DecodeOptions, Source, VideoError, decode_clips, time_decoding};

/// What one video costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The file.
    pub video: String,
    /// Frames in it.
    pub frames: u64,
    /// CPU time of decoding alone, in milliseconds a frame; median over the rounds.
    pub decode_ms_per_frame: f64,
    /// CPU time of decoding and transforming to clips, in milliseconds a frame; median over the rounds.
    pub decode_transform_ms_per_frame: f64,
    /// The second by the first.
    pub ratio: f64,
    /// Frames decoded and transformed a second of wall-clock time by all threads together, each decoding the whole
    /// file as a request does, opening included; median over the rounds.
    pub frames_per_second: f64,
}

/// Measures one video. Decoding alone and with the transform take turns, so that both see the same machine; opening
/// the file is left out of both. With one decoder thread, as requests are served.
pub fn measure(video: &Path, threads: usize, rounds: usize) -> Result<Row, VideoError> {
    let source = Source::Path(video.to_path_buf());
    let (clip, preprocessing) = (ClipSpec::default(), Preprocessing::AUTHORS_2018);
    let options = DecodeOptions::default();
    let (mut alone, mut whole, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    let mut frames = 0;
    for _ in 0..rounds.max(1) {
        let (count, time) = time_decoding(&source, None, &options)?;
        alone.push(per_frame(time, count));
        let (count, time) = time_decoding(&source, Some((&clip, &preprocessing)), &options)?;
        whole.push(per_frame(time, count));
        frames = count;
        rates.push(frames_per_second(&source, threads.max(1), &clip, &preprocessing, &options)?);
    }
    let (decode_ms_per_frame, decode_transform_ms_per_frame) = (median(alone), median(whole));
    Ok(Row {
        video: video.display().to_string(),
        frames,
        decode_ms_per_frame,
        decode_transform_ms_per_frame,
        ratio: decode_transform_ms_per_frame / decode_ms_per_frame,
        frames_per_second: median(rates),
    })
}

fn frames_per_second(
    source: &Source,
    threads: usize,
    clip: &ClipSpec,
    preprocessing: &Preprocessing,
    options: &DecodeOptions,
) -> Result<f64, VideoError> {
    let begin = Instant::now();
    let frames = std::thread::scope(|scope| {
        let decode = || decode_clips(source, clip, preprocessing, options, |_| ControlFlow::Continue(()));
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(decode)).collect();
        let results = workers.into_iter().map(|worker| worker.join().expect("decoding does not panic"));
        results.map(|result| result.map(|summary| summary.frames)).sum::<Result<u64, VideoError>>()
    })?;
    Ok(frames as f64 / begin.elapsed().as_secs_f64())
}

fn per_frame(time: Duration, frames: u64) -> f64 {
    time.as_secs_f64() * 1e3 / frames as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
