//! A compiled inference plan: a whole 3D network on its own buffers and threads, CPU only.
//!
//! [`Graph::compile`](crate::graph::Graph::compile) chooses an algorithm for each layer's shape, transforms the weights once
//! and assigns every activation its part of one buffer. [`Plan::run`] then allocates nothing for a layer.
//!
//! Results are the same to the last bit whatever the number of threads and whatever else is in the batch, for one
//! compiled plan on one instruction set. Between instruction sets, and between plans whose
//! [`max_batch`](PlanOptions::max_batch) made them choose other algorithms, they differ by rounding.

mod compile;

pub use crate::cpu::InstructionSet;

use crate::cpu::program::{Clips, Program};
use crate::graph::GraphError;
use std::fmt;
use std::time::Duration;

/// What can be wrong with a network or with the slices it is run on.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// An operation does not fit, or has no values.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The processor lacks the instruction set asked for.
    #[error("this processor has no {0:?}; it has {found:?}", found = InstructionSet::available())]
    InstructionSet(InstructionSet),
    /// An option is zero or too large.
    #[error("{option} is {actual}; allowed are 1 to {limit}")]
    PlanOption {
        /// Name of the option.
        option: &'static str,
        /// Value found.
        actual: usize,
        /// Largest value allowed.
        limit: usize,
    },
    /// The system started no thread.
    #[error("could not start the plan's threads: {0}")]
    Threads(#[from] std::io::Error),
    /// More clips than the plan's buffers hold.
    #[error("a batch of {actual} clips; the plan takes 1 to {limit}")]
    Batch {
        /// Clips given.
        actual: usize,
        /// Clips allowed.
        limit: usize,
    },
    /// An input slice of the wrong length.
    #[error("the input has {actual} values; expected are {expected}")]
    InputLength {
        /// Values given.
        actual: usize,
        /// Values expected.
        expected: usize,
    },
    /// RGB clips for a network of other than three channels.
    #[error("RGB clips need a network of 3 input channels; this one has {0}")]
    RgbChannels(usize),
    /// Not one slice an output.
    #[error("{actual} output slices; the plan has {expected} outputs")]
    OutputCount {
        /// Slices given.
        actual: usize,
        /// Outputs of the plan.
        expected: usize,
    },
    /// An output slice of the wrong length.
    #[error("output {index} has room for {actual} values; needed are {expected}")]
    OutputLength {
        /// Which output.
        index: usize,
        /// Values given.
        actual: usize,
        /// Values needed.
        expected: usize,
    },
}

/// How to compile a plan.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// Threads of the plan's own pool, the calling one included. Default: the processors available to the process.
    pub threads: usize,
    /// Most clips of one run. Buffers are sized for it, and algorithms are chosen to be fastest at it. Default: 8.
    pub max_batch: usize,
    /// Vector instructions to use; `None` takes the best of the processor.
    pub instruction_set: Option<InstructionSet>,
    /// Whether layers may use Winograd's algorithms: several times less arithmetic, several times more memory for
    /// weights, rounding errors about ten times those of direct convolution. Default: yes.
    pub winograd: bool,
}

impl Default for PlanOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { threads, max_batch: 8, instruction_set: None, winograd: true }
    }
}

/// A batch of clips.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// One slice a clip, (t, h, w, 3), and the value of each byte in each channel, normalisation included. Zero padding
    /// of the first layer comes after normalisation, as in training.
    Rgb {
        /// Clips, each (t, h, w, 3).
        clips: &'a [&'a [u8]],
        /// Value of byte `b` in channel `c`: `table[c][b]`.
        table: &'a [[f32; 256]; 3],
    },
    /// Normalised values, (n, c, t, h, w).
    F32 {
        /// `batch * c * t * h * w` values.
        values: &'a [f32],
        /// Number of clips n.
        batch: usize,
    },
}

/// How a layer is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Conversion of the input to the plan's layout.
    Load,
    /// Direct convolution as an implicit matrix product.
    Direct,
    /// Winograd's algorithm on tiles of `tile` x `tile` outputs, and in time.
    Winograd {
        /// Outputs of a tile's side.
        tile: usize,
    },
    /// Convolution of each channel for itself.
    Depthwise,
    /// Pooling.
    Pooling,
    /// A function of single values.
    Elementwise,
    /// Values only move.
    Copy,
    /// Matrix product.
    MatrixProduct,
    /// Conversion of an output to (n, c, t, h, w).
    Store,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load => f.write_str("load"),
            Self::Direct => f.write_str("direct"),
            Self::Winograd { tile } => write!(f, "Winograd {tile}x{tile}"),
            Self::Depthwise => f.write_str("depthwise"),
            Self::Pooling => f.write_str("pooling"),
            Self::Elementwise => f.write_str("elementwise"),
            Self::Copy => f.write_str("copy"),
            Self::MatrixProduct => f.write_str("matrix product"),
            Self::Store => f.write_str("store"),
        }
    }
}

/// One layer of a compiled plan.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The name its spec gave it.
    pub name: String,
    /// How it is computed.
    pub algorithm: Algorithm,
    /// Input shape of one clip, (c, t, h, w).
    pub input: [usize; 4],
    /// Output shape of one clip, (c, t, h, w).
    pub output: [usize; 4],
    /// Multiply-adds a clip that direct convolution takes, those with zero padding included.
    pub multiply_adds: u64,
    /// Bytes of its weights as the plan holds them.
    pub weight_bytes: usize,
}

/// A network ready to run. See the [module](self).
pub struct Plan {
    program: Program,
    layers: Vec<Layer>,
    input: [usize; 4],
    outputs: Vec<[usize; 4]>,
    instruction_set: InstructionSet,
    max_batch: usize,
}

impl Plan {
    /// Computes the outputs of a batch of 1 to [`max_batch`](Self::max_batch) clips. `outputs` has one slice an output,
    /// in the order they were compiled in, each (n, c, t, h, w) of exactly the batch's size.
    pub fn run(&mut self, input: Input<'_>, outputs: &mut [&mut [f32]]) -> Result<(), PlanError> {
        self.run_profiled(input, outputs).map(drop)
    }

    /// As [`run`](Self::run); returns the wall time of each of [`layers`](Self::layers).
    pub fn run_profiled(&mut self, input: Input<'_>, outputs: &mut [&mut [f32]]) -> Result<Vec<Duration>, PlanError> {
        let clip_len: usize = self.input.iter().product();
        let batch = match input {
            Input::Rgb { clips, .. } => clips.len(),
            Input::F32 { batch, .. } => batch,
        };
        if batch == 0 || batch > self.max_batch {
            return Err(PlanError::Batch { actual: batch, limit: self.max_batch });
        }
        let clips = match input {
            Input::Rgb { clips, table } => {
                if self.input[0] != 3 {
                    return Err(PlanError::RgbChannels(self.input[0]));
                }
                if let Some(clip) = clips.iter().find(|clip| clip.len() != clip_len) {
                    return Err(PlanError::InputLength { actual: clip.len(), expected: clip_len });
                }
                Clips::Rgb { clips, table }
            }
            Input::F32 { values, .. } => {
                if values.len() != batch * clip_len {
                    return Err(PlanError::InputLength { actual: values.len(), expected: batch * clip_len });
                }
                Clips::F32 { values }
            }
        };
        if outputs.len() != self.outputs.len() {
            return Err(PlanError::OutputCount { actual: outputs.len(), expected: self.outputs.len() });
        }
        for (index, (slice, shape)) in outputs.iter().zip(&self.outputs).enumerate() {
            let expected = batch * shape.iter().product::<usize>();
            if slice.len() != expected {
                return Err(PlanError::OutputLength { index, actual: slice.len(), expected });
            }
        }
        Ok(self.program.run(batch, clips, outputs))
    }

    /// The layers in the order they run. A max pooling that the convolution before it does as well is one layer with it.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Shape of one input clip, (c, t, h, w).
    pub fn input_shape(&self) -> [usize; 4] {
        self.input
    }

    /// Shapes of the outputs of one clip, (c, t, h, w).
    pub fn output_shapes(&self) -> &[[usize; 4]] {
        &self.outputs
    }

    /// Most clips of one run.
    pub fn max_batch(&self) -> usize {
        self.max_batch
    }

    /// Threads that take part in a run.
    pub fn threads(&self) -> usize {
        self.program.threads()
    }

    /// The vector instructions in use.
    pub fn instruction_set(&self) -> InstructionSet {
        self.instruction_set
    }

    /// Bytes of weights, activations and scratch together.
    pub fn memory_bytes(&self) -> usize {
        self.program.memory_bytes()
    }
}
