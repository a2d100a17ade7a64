//! Training on GPUs: what a [`Tape`](crate::Tape) does with volumes on one, and convolutions of candle's CUDA tensors.
//!
//! A [`Machine`] is a GPU in one precision, or what stands in for it in tests. Volumes are channels-last, in the precision's
//! type, their channels padded with zeros. Convolutions run through cuDNN, by the fastest of its algorithms that are right and
//! give the same in every run; they are measured when a shape is met for the first time. Everything else are kernels of
//! training.cu.
#![allow(unsafe_code)]

#[cfg(feature = "candle-cuda")]
pub(crate) mod candle;
mod convolution;
pub(super) mod machine;
mod norm;
mod plain;
#[cfg(test)]
mod stand_in;

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Shape, Tensor, bail};

use super::lower::{GatherShape, Layout};
use super::rearrange::{LoadShape, padded};
use crate::cpu;
use crate::train::tape::{Backward, DEVICES, Data, Made, Volume, VolumeGradients};
use convolution::{volume_bytes, volume_len};
use machine::{Grid, Machine, Memory, launch};

pub(crate) use norm::conv_norm;

/// Activations or their gradients on a machine.
#[derive(Debug)]
pub(crate) struct Activations {
    machine: Arc<dyn Machine>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// The input of a network as it came, (n, c, t, h, w) in f32: a first convolution loads it in its own way.
    Clips(Tensor),
    /// (n, t, h, w, c)
    Volume(Memory),
}

impl Activations {
    /// The input of a network, f32.
    pub(crate) fn clips(machine: Arc<dyn Machine>, clips: Tensor) -> Self {
        Self { machine, content: Content::Clips(clips) }
    }

    fn volume(machine: &Arc<dyn Machine>, memory: Memory) -> Self {
        Self { machine: Arc::clone(machine), content: Content::Volume(memory) }
    }

    /// Memory of a volume, which clips are not.
    fn memory(&self) -> Result<&Memory> {
        match &self.content {
            Content::Volume(memory) => Ok(memory),
            Content::Clips(_) => bail!("clips are read by convolutions only"),
        }
    }

    /// As [`memory`](Self::memory); an error too for what another machine has.
    fn memory_on(&self, machine: &Arc<dyn Machine>) -> Result<&Memory> {
        if !Arc::ptr_eq(&self.machine, machine) {
            bail!("{DEVICES}, in one precision");
        }
        self.memory()
    }

    fn into_memory(self) -> Result<Memory> {
        match self.content {
            Content::Volume(memory) => Ok(memory),
            Content::Clips(_) => bail!("clips have no gradient"),
        }
    }

    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        let (sum, other) = (self.memory()?, other.memory()?);
        if sum.bytes() != other.bytes() {
            bail!("gradients of {} and of {} bytes can't be added", sum.bytes(), other.bytes());
        }
        let values = (sum.bytes() / self.machine.precision().element().bytes()) as u64;
        let (sum, other) = (sum.address(), other.address());
        // SAFETY: two volumes of as many values.
        unsafe { launch!(self.machine, add, Grid::Work(values as usize / 8), sum, other, values) }
    }

    /// The mean (n, c) over all places of a volume (n, t, h, w, c), f32.
    pub(crate) fn means(&self, [n, t, h, w, c]: [usize; 5]) -> Result<Tensor> {
        let means = self.machine.allocate(4 * n * c)?;
        let (from, to) = (self.memory()?.address(), means.address());
        let (rows, stored, channels, clips) = ((t * h * w) as i32, padded(c) as i32, c as i32, n as i32);
        // SAFETY: a volume of these dimensions, and room for a float of each channel of each clip.
        unsafe { launch!(self.machine, mean, Grid::Work(n * c), from, to, rows, stored, channels, clips)? };
        self.machine.to_tensor(means, &Shape::from((n, c)), DType::F32)
    }

    /// The gradient of a volume (n, t, h, w, c) from that of its means (n, c).
    pub(crate) fn spread(&self, upstream: &Tensor, dims: [usize; 5]) -> Result<Self> {
        let upstream = upstream.to_dtype(DType::F32)?.contiguous()?;
        let [n, t, h, w, c] = dims;
        let gradient = self.machine.allocate(volume_bytes(&*self.machine, dims))?;
        let (from, to) = (self.machine.address(&upstream)?, gradient.address());
        let (places, channels, stored, clips) = ((t * h * w) as i32, c as i32, padded(c) as i32, n as i32);
        let grid = Grid::Work(volume_len(dims));
        // SAFETY: a float of each channel of each clip, and a volume of these dimensions.
        unsafe { launch!(self.machine, spread, grid, from, to, places, channels, stored, clips)? };
        Ok(Self::volume(&self.machine, gradient))
    }
}

impl Data {
    fn gpu(&self) -> Result<&Activations> {
        match self {
            Self::Gpu(activations) => Ok(activations),
            Self::Cpu(_) => bail!("{DEVICES}"),
        }
    }

    fn into_gpu(self) -> Result<Activations> {
        match self {
            Self::Gpu(activations) => Ok(activations),
            Self::Cpu(_) => bail!("{DEVICES}"),
        }
    }
}

/// Stores clips as a convolution reads them.
fn load(machine: &dyn Machine, clips: &Tensor, shape: LoadShape) -> Result<Memory> {
    let n = clips.dim(0)?;
    // Of four values each.
    let groups = n * shape.groups();
    let stored = machine.allocate(4 * groups * machine.precision().element().bytes())?;
    let (from, to, batch) = (machine.address(clips)?, stored.address(), n as i32);
    // SAFETY: clips of this shape, and room for them as they are stored.
    unsafe { launch!(machine, load_values, Grid::Work(groups), from, to, shape, batch)? };
    Ok(stored)
}

/// Every `stride`-th place along t, h and w of a volume, and zeros for more channels: (n, t, h, w, c) `dims`.
pub(crate) fn shortcut(from: &Activations, input: &Volume, stride: usize, dims: [usize; 5]) -> Result<Made> {
    let machine = &from.machine;
    let ([_, t_in, h_in, w_in, c_in], [n, t, h, w, c]) = (input.dims, dims);
    let (stored_in, stored) = (padded(c_in), padded(c));
    let place =
        |c: usize, t: usize, h: usize, w: usize, stored: usize| (cpu::Shape { c, t, h, w }, stored, Layout::Plain);
    let shape = GatherShape::new(place(c_in, t_in, h_in, w_in, stored_in), [stride; 3], place(c, t, h, w, stored));
    let memory = machine.allocate(volume_bytes(&**machine, dims))?;
    let (source, to, batch) = (from.memory()?.address(), memory.address(), n as i32);
    // SAFETY: volumes of these dimensions.
    unsafe { launch!(machine, gather, Grid::Work(volume_len(dims) / 8), source, to, shape, batch)? };
    let shape = ShortcutShape {
        input: [stored_in, t_in, h_in, w_in].map(|dim| dim as i32),
        output: [stored, t, h, w].map(|dim| dim as i32),
        stride: stride as i32,
    };
    let step = Shortcut { machine: Arc::clone(machine), dims: input.dims, shape, id: input.id };
    let data = Arc::new(Data::Gpu(Activations::volume(machine, memory)));
    Ok(Made { dims, data, statistics: None, step: Box::new(step) })
}

/// Mirrors `Shortcut` in training.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct ShortcutShape {
    /// (c, t, h, w)
    input: [i32; 4],
    output: [i32; 4],
    stride: i32,
}

#[derive(Debug)]
struct Shortcut {
    machine: Arc<dyn Machine>,
    /// (n, t, h, w, c) of the input.
    dims: [usize; 5],
    shape: ShortcutShape,
    /// Of the input, if its gradient is wanted.
    id: Option<usize>,
}

impl Backward for Shortcut {
    fn backward(self: Box<Self>, upstream: Data, volumes: &mut VolumeGradients, _: &mut GradStore) -> Result<()> {
        let Self { machine, dims, shape, id } = *self;
        let Some(id) = id else { return Ok(()) };
        let upstream = upstream.into_gpu()?.into_memory()?;
        let (known, accumulate) = match volumes.take(id) {
            Some(gradient) => (gradient.into_gpu()?.into_memory()?, 1),
            None => (machine.allocate(volume_bytes(&*machine, dims))?, 0),
        };
        let (from, to, clips) = (upstream.address(), known.address(), dims[0] as i32);
        let grid = Grid::Work(volume_len(dims) / 8);
        // SAFETY: volumes of the shape's dimensions; the second one is written before it is read, unless it is there already.
        unsafe { launch!(machine, shortcut_gradient, grid, from, to, shape, accumulate, clips)? };
        volumes.add(id, Data::Gpu(Activations::volume(&machine, known)))
    }
}
