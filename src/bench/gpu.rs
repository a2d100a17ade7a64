//! How fast a model runs on a GPU: what the GPU does by itself, and with clips that come from the host.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_conv3d::cuda::{Clips, GpuInfo, Lane, LayerChoice, Plan, PlanOptions};

use super::model::{Effort, noise_clips};
use crate::engine::gpu::SelfCheck;
use crate::engine::{ExecutorError, Precision};
use crate::model::file::Model;
use crate::model::spec::ClipSpec;

/// A model on one GPU, without queue and workers.
pub struct GpuModel {
    plan: Plan,
    self_check: f32,
    clip: ClipSpec,
    classes: usize,
    features: usize,
}

/// What was measured for one batch size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GpuTiming {
    /// Clips a second that are on the GPU already.
    pub device: f64,
    /// Median time from clips in the host's memory to logits there, one batch at a time.
    pub latency: Duration,
    /// Clips a second from the host's memory to logits there, two batches at a time.
    pub throughput: f64,
    /// Counted runs of each kind.
    pub runs: usize,
}

/// How a model is built for measuring.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// The driver's number for the GPU.
    pub ordinal: usize,
    /// What it computes with.
    pub precision: Precision,
    /// Batch sizes that get algorithms and a CUDA graph.
    pub batches: Vec<usize>,
    /// Algorithms that are tried for a convolution, of each kind.
    pub candidates: usize,
    /// Directory for what was found.
    pub cache: Option<PathBuf>,
    /// Of the CPU, for the self-check.
    pub threads: usize,
}

impl GpuModel {
    /// Builds the model and compares it with the CPU.
    pub fn new(model: &Model, options: GpuOptions) -> Result<Self, ExecutorError> {
        let GpuOptions { ordinal, precision, mut batches, candidates, cache, threads } = options;
        batches.sort_unstable();
        batches.dedup();
        let max_batch = batches.last().copied().unwrap_or(1);
        let options = PlanOptions {
            precision,
            batches,
            candidates,
            cache,
            ..PlanOptions::new(ordinal, max_batch, model.spec.preprocessing.lookup_table())
        };
        let (plan, self_check) = SelfCheck::new(model, threads)?.build(model, options)?;
        let [classes, features] = model.output_lens();
        Ok(Self { plan, self_check, clip: model.spec.clip, classes, features })
    }

    /// The GPU.
    pub fn info(&self) -> &GpuInfo {
        self.plan.gpu()
    }

    /// The largest difference of a score from a CPU's.
    pub fn self_check(&self) -> f32 {
        self.self_check
    }

    /// Bytes of GPU memory.
    pub fn memory_bytes(&self) -> usize {
        self.plan.memory_bytes()
    }

    /// Multiply-adds that direct convolution would take for a clip.
    pub fn multiply_adds(&self) -> u64 {
        self.plan.multiply_adds()
    }

    /// How the convolutions of the largest batch are computed.
    pub fn layers(&self) -> &[LayerChoice] {
        self.plan.layers()
    }

    /// Times batches of noise. Gives the clips' logits too.
    pub fn time(&self, batch: usize, effort: Effort) -> Result<(GpuTiming, Vec<f32>), ExecutorError> {
        let ordinal = self.plan.gpu().ordinal;
        let failed = |error| ExecutorError::Gpu { ordinal, error };
        let clips = noise_clips(&self.clip, batch);
        let clips: Vec<&[u8]> = clips.iter().map(Vec::as_slice).collect();
        let mut lane = self.plan.lane().map_err(failed)?;
        let logits = self.run(&mut lane, &clips)?;
        let one = Instant::now();
        self.run(&mut lane, &clips)?;
        let wanted = effort.min_time.as_secs_f64() / one.elapsed().as_secs_f64().max(1e-6);
        let runs = (wanted.ceil() as usize).clamp(effort.min_runs.max(1), 100_000);

        let device = batch as f64 / self.plan.time(batch, runs).map_err(failed)?.as_secs_f64();
        let mut times = Vec::with_capacity(runs);
        for _ in 0..runs {
            let begin = Instant::now();
            self.run(&mut lane, &clips)?;
            times.push(begin.elapsed());
        }
        times.sort_unstable();
        let mut other = self.plan.lane().map_err(failed)?;
        let begin = Instant::now();
        let lanes = std::thread::scope(|scope| {
            let run = |lane: &mut Lane| (0..runs).try_for_each(|_| self.run(lane, &clips).map(drop));
            let threads = [&mut lane, &mut other].map(|lane| scope.spawn(move || run(lane)));
            threads.map(|thread| thread.join().expect("a lane does not panic"))
        });
        let elapsed = begin.elapsed().as_secs_f64();
        lanes.into_iter().collect::<Result<(), _>>()?;
        let throughput = (2 * runs * batch) as f64 / elapsed;
        Ok((GpuTiming { device, latency: times[runs / 2], throughput, runs }, logits))
    }

    fn run(&self, lane: &mut Lane, clips: &[&[u8]]) -> Result<Vec<f32>, ExecutorError> {
        let n = clips.len();
        let (mut logits, mut embeddings) = (vec![0.0; n * self.classes], vec![0.0; n * self.features]);
        let ordinal = self.plan.gpu().ordinal;
        lane.run(Clips::Rgb(clips), &mut [&mut logits, &mut embeddings])
            .map_err(|error| ExecutorError::Gpu { ordinal, error })?;
        Ok(logits)
    }
}
