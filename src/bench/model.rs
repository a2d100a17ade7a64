//! How fast a model runs on a device.

use std::time::{Duration, Instant};

use candle_conv3d::plan::Layer;
use serde::Serialize;

use crate::engine::{CpuExecutor, Executor, ExecutorError};
use crate::model::counter::CounterStream;
use crate::model::spec::ClipSpec;

/// How long one batch size is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Runs that are not counted, one at least.
    pub warmup: usize,
    /// Counted runs at least.
    pub min_runs: usize,
    /// Counted time at least.
    pub min_time: Duration,
}

impl Default for Effort {
    fn default() -> Self {
        Self { warmup: 1, min_runs: 5, min_time: Duration::from_secs(2) }
    }
}

/// What was measured for one batch size.
#[derive(Debug, Clone, Serialize)]
pub struct ModelTiming {
    /// Clips run at a time.
    pub batch: usize,
    /// Median time of a run divided by its clips, in milliseconds.
    pub ms_per_clip: f64,
    /// Inverse of it.
    pub clips_per_second: f64,
    /// Counted runs.
    pub runs: usize,
}

/// Times batches of noise, `batch` clips a run. Gives the clips' logits too.
pub fn time_batch(
    executor: &mut dyn Executor,
    clip: &ClipSpec,
    batch: usize,
    effort: Effort,
) -> Result<(ModelTiming, Vec<f32>), ExecutorError> {
    let clips = noise_clips(clip, batch);
    let clips: Vec<&[u8]> = clips.iter().map(Vec::as_slice).collect();
    let logits = executor.run(&clips)?.logits;
    for _ in 1..effort.warmup {
        executor.run(&clips)?;
    }
    let mut times = Vec::new();
    let started = Instant::now();
    while times.len() < effort.min_runs.max(1) || started.elapsed() < effort.min_time {
        let run = Instant::now();
        executor.run(&clips)?;
        times.push(run.elapsed());
    }
    let seconds = median(&mut times).as_secs_f64() / batch as f64;
    let timing = ModelTiming { batch, ms_per_clip: 1e3 * seconds, clips_per_second: 1.0 / seconds, runs: times.len() };
    Ok((timing, logits))
}

/// One layer's share of a batch.
#[derive(Debug, Clone)]
pub struct LayerTiming {
    /// What it computes and how.
    pub layer: Layer,
    /// Median time of a run divided by its clips, in milliseconds.
    pub ms_per_clip: f64,
}

/// Times each layer of a plan on batches of noise, `batch` clips a run.
pub fn profile(
    executor: &mut CpuExecutor,
    clip: &ClipSpec,
    batch: usize,
    effort: Effort,
) -> Result<Vec<LayerTiming>, ExecutorError> {
    let clips = noise_clips(clip, batch);
    let clips: Vec<&[u8]> = clips.iter().map(Vec::as_slice).collect();
    let mut runs = Vec::new();
    let started = Instant::now();
    while runs.len() < effort.min_runs.max(1) || started.elapsed() < effort.min_time {
        runs.push(executor.profile(&clips)?);
    }
    let layers = executor.layers().iter().enumerate().map(|(index, layer)| {
        let mut times: Vec<Duration> = runs.iter().map(|times| times[index]).collect();
        LayerTiming { layer: layer.clone(), ms_per_clip: 1e3 * median(&mut times).as_secs_f64() / batch as f64 }
    });
    Ok(layers.collect())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Bytes that look like no picture, the same at every run.
pub(super) fn noise_clips(clip: &ClipSpec, batch: usize) -> Vec<Vec<u8>> {
    let noise = |seed| {
        let stream = CounterStream::new(seed, "bench");
        (0..clip.rgb_len() as u64).map(|index| stream.byte(index)).collect()
    };
    (0..batch as u64).map(noise).collect()
}

/// Most memory this process ever held, in bytes; `None` where the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
