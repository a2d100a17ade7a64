//! What a worker runs: a model on a device, from pixels to logits.

use std::time::Duration;

use candle_conv3d::graph::Graph;
use candle_conv3d::plan::{Input, InstructionSet, Layer, Plan, PlanError, PlanOptions};

use super::ClipOutput;
use crate::model::file::Model;
use crate::model::plan::{self, ModelPlanError};

/// A model on a device.
pub trait Executor: Send {
    /// Runs `n >= 1` clips of 8-bit RGB `(t, h, w, 3)`.
    fn run(&mut self, clips: &[&[u8]]) -> Result<Outputs, ExecutorError>;

    /// Runs `n >= 1` clips that are normalised already, each `(3, t, h, w)`.
    fn run_normalised(&mut self, clips: &[&[f32]]) -> Result<Outputs, ExecutorError>;

    /// Bytes that it holds, on its device or here; 0 if it can't tell.
    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// What a model says about `n` clips, row after row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outputs {
    /// `(n, classes)`.
    pub logits: Vec<f32>,
    /// `(n, features)`: the pooled features before the last layer. May be empty if the model has none to give.
    pub embeddings: Vec<f32>,
}

impl Outputs {
    /// The rows of `n` clips.
    pub(super) fn rows(&self, n: usize) -> impl Iterator<Item = ClipOutput> + '_ {
        let (classes, features) = (self.logits.len() / n.max(1), self.embeddings.len() / n.max(1));
        (0..n).map(move |row| ClipOutput {
            logits: self.logits[row * classes..][..classes].to_vec(),
            embedding: self.embeddings[row * features..][..features].to_vec(),
        })
    }
}

/// Why a model can't be built or run.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The network can't be compiled.
    #[error(transparent)]
    Compile(#[from] ModelPlanError),
    /// The plan refused its input.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The model can't be read again after a failure.
    #[error("can't load the model again: {0}")]
    Reload(String),
    /// A GPU failed or can't be used.
    #[cfg(feature = "cuda")]
    #[error("GPU {ordinal}: {error}")]
    Gpu {
        /// The driver's number for it.
        ordinal: usize,
        /// What went wrong.
        error: candle_conv3d::cuda::CudaError,
    },
    /// A GPU computes something else than a CPU.
    #[cfg(feature = "cuda")]
    #[error("GPU {ordinal}: scores are {difference:.1e} away from a CPU's; allowed are {tolerance:.1e}")]
    SelfCheck {
        /// The driver's number for it.
        ordinal: usize,
        /// Largest difference of a softmax.
        difference: f32,
        /// Largest one allowed.
        tolerance: f32,
    },
}

/// An inference plan on the CPU in f32.
pub struct CpuExecutor {
    plan: Plan,
    classes: usize,
    features: usize,
    /// Network input for each channel and pixel value.
    table: [[f32; 256]; 3],
}

impl CpuExecutor {
    /// Compiles the model for batches of up to `max_batch` clips on `threads` threads.
    pub fn new(model: &Model, threads: usize, max_batch: usize) -> Result<Self, ExecutorError> {
        Self::with_options(model, PlanOptions { threads, max_batch, ..PlanOptions::default() })
    }

    /// What [`memory_bytes`](Executor::memory_bytes) of such an executor will be, found without its weights and without
    /// taking that memory.
    pub(super) fn memory_bytes_of(graph: &Graph, threads: usize, max_batch: usize) -> Result<u64, ExecutorError> {
        let options = PlanOptions { threads, max_batch, ..PlanOptions::default() };
        Ok(graph.memory_bytes(options)? as u64)
    }

    /// Compiles the model.
    pub fn with_options(model: &Model, options: PlanOptions) -> Result<Self, ExecutorError> {
        let plan = plan::compile(model, options)?;
        let table = model.spec.preprocessing.lookup_table();
        let [classes, features] = model.output_lens();
        Ok(Self { plan, classes, features, table })
    }

    /// The plan's layers in the order they run.
    pub fn layers(&self) -> &[Layer] {
        self.plan.layers()
    }

    /// The vector instructions in use.
    pub fn instruction_set(&self) -> InstructionSet {
        self.plan.instruction_set()
    }

    /// Multiply-adds that direct convolution would take for a clip, those with zero padding included.
    pub fn multiply_adds(&self) -> u64 {
        self.layers().iter().map(|layer| layer.multiply_adds).sum()
    }

    /// Runs a batch and tells the time that each of [`layers`](Self::layers) took.
    pub fn profile(&mut self, clips: &[&[u8]]) -> Result<Vec<Duration>, ExecutorError> {
        let mut outputs = self.outputs(clips.len());
        let input = Input::Rgb { clips, table: &self.table };
        Ok(self.plan.run_profiled(input, &mut [&mut outputs.logits, &mut outputs.embeddings])?)
    }

    fn outputs(&self, clips: usize) -> Outputs {
        Outputs { logits: vec![0.0; clips * self.classes], embeddings: vec![0.0; clips * self.features] }
    }
}

impl Executor for CpuExecutor {
    fn run(&mut self, clips: &[&[u8]]) -> Result<Outputs, ExecutorError> {
        let mut outputs = self.outputs(clips.len());
        let input = Input::Rgb { clips, table: &self.table };
        self.plan.run(input, &mut [&mut outputs.logits, &mut outputs.embeddings])?;
        Ok(outputs)
    }

    fn run_normalised(&mut self, clips: &[&[f32]]) -> Result<Outputs, ExecutorError> {
        let mut outputs = self.outputs(clips.len());
        let input = Input::F32 { values: &clips.concat(), batch: clips.len() };
        self.plan.run(input, &mut [&mut outputs.logits, &mut outputs.embeddings])?;
        Ok(outputs)
    }

    fn memory_bytes(&self) -> u64 {
        self.plan.memory_bytes() as u64
    }
}
