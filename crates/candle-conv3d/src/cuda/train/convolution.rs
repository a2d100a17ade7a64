//! A convolution on a GPU, forward and backward.
#![allow(unsafe_code)]

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::super::rearrange::{LoadShape, Packing, STEM_CHANNELS, Source, StemForm, padded};
use super::super::shape::{ConvShape, Pass, Signature};
use super::machine::{Grid, Machine, Memory, launch};
use crate::Conv3dConfig;
use crate::cpu::Shape;

/// A convolution of volumes (n, t, h, w, c) by a weight (oc, ic, kt, kh, kw).
#[derive(Debug)]
pub(super) struct Convolution {
    machine: Arc<dyn Machine>,
    clips: usize,
    shape: ConvShape,
    packing: Packing,
    /// (oc, ic, kt, kh, kw)
    weight: [usize; 5],
    /// (n, t, h, w, c) of the output.
    pub(super) output: [usize; 5],
}

/// Dimensions of a convolution, if they fit together.
pub(super) struct Geometry {
    source: Source,
    clips: usize,
    weight: [usize; 5],
    output: [usize; 5],
}

impl Geometry {
    /// Of an input (n, t, h, w, ic) and a weight (oc, ic, kt, kh, kw). No axis may have more padding than kernel.
    pub(super) fn new(input: [usize; 5], weight: [usize; 5], config: &Conv3dConfig) -> Option<Self> {
        let (window, [to, ho, wo]) = config.fit(input, weight)?;
        let ([clips, t, h, w, in_channels], [out_channels, ..]) = (input, weight);
        let from = Shape { c: in_channels, t, h, w };
        let source = Source { from, to: Shape { c: out_channels, t: to, h: ho, w: wo }, window };
        Some(Self { source, clips, weight, output: [clips, to, ho, wo, out_channels] })
    }

    /// Of a volume.
    pub(super) fn convolution(&self, machine: &Arc<dyn Machine>) -> Convolution {
        let rearranged = self.source.plain();
        self.with(machine, rearranged.shape, rearranged.packing.expect("time is not folded"))
    }

    /// Of clips (n, c, t, h, w), and how they are loaded for it: if they have few channels, in the form that is fastest on
    /// this machine.
    pub(super) fn stem(&self, machine: &Arc<dyn Machine>, trained: bool) -> Result<(LoadShape, Convolution)> {
        let from = self.source.from;
        if from.c > STEM_CHANNELS {
            return Ok((LoadShape::whole(from, padded(from.c)), self.convolution(machine)));
        }
        let passes = if trained { &[Pass::Forward, Pass::WeightGradient][..] } else { &[Pass::Forward] };
        let mut best: Option<(f32, LoadShape, Convolution)> = None;
        let mut last = None;
        for form in StemForm::ALL {
            let (load, rearranged) = self.source.stem(form);
            let packing = rearranged.packing.expect("time is not folded");
            let convolution = self.with(machine, rearranged.shape, packing);
            match passes.iter().map(|pass| machine.micros(&convolution.signature(*pass))).sum::<Result<f32>>() {
                Ok(micros) => {
                    if best.as_ref().is_none_or(|(least, ..)| micros < *least) {
                        best = Some((micros, load, convolution));
                    }
                }
                // Another form may do.
                Err(error) => last = Some(error),
            }
        }
        match best {
            Some((_, load, convolution)) => Ok((load, convolution)),
            None => Err(last.expect("a form failed")),
        }
    }

    fn with(&self, machine: &Arc<dyn Machine>, shape: ConvShape, packing: Packing) -> Convolution {
        let &Self { clips, weight, output, .. } = self;
        Convolution { machine: Arc::clone(machine), clips, shape, packing, weight, output }
    }
}

impl Convolution {
    fn signature(&self, pass: Pass) -> Signature {
        let precision = self.machine.precision();
        Signature { pass, shape: self.shape, batch: self.clips, precision, residual: false, relu: false }
    }

    fn allocate(&self, values: usize) -> Result<Memory> {
        self.machine.allocate(values * self.machine.precision().element().bytes())
    }

    /// The weight, f32, as the passes read it.
    pub(super) fn pack(&self, weight: &Tensor) -> Result<Memory> {
        let weight = weight.to_dtype(DType::F32)?.contiguous()?;
        let values = self.shape.output[0] * self.shape.fan_in();
        let packed = self.allocate(values)?;
        let (from, to) = (self.machine.address(&weight)?, packed.address());
        // SAFETY: a weight of the packing's dimensions, and room for as many values as are packed.
        unsafe { launch!(self.machine, pack_weight, Grid::Work(values), from, to, self.packing)? };
        Ok(packed)
    }

    /// The output of an input that is stored as this convolution wants it, by a packed weight.
    pub(super) fn forward(&self, input: &Memory, weight: &Memory) -> Result<Memory> {
        let signature = self.signature(Pass::Forward);
        let output = self.allocate(signature.result_len())?;
        // SAFETY: an input and a weight of the convolution's shape, and room for its output.
        unsafe { self.machine.convolve(&signature, [input, weight, &output].map(Memory::address))? };
        Ok(output)
    }

    /// The gradient of the input.
    pub(super) fn input_gradient(&self, weight: &Memory, upstream: &Memory) -> Result<Memory> {
        let signature = self.signature(Pass::InputGradient);
        let gradient = self.allocate(signature.result_len())?;
        // SAFETY: as in `forward`.
        unsafe { self.machine.convolve(&signature, [&gradient, weight, upstream].map(Memory::address))? };
        Ok(gradient)
    }

    /// The gradient of the weight, f32.
    pub(super) fn weight_gradient(&self, input: &Memory, upstream: &Memory) -> Result<Tensor> {
        let signature = self.signature(Pass::WeightGradient);
        let packed = self.allocate(signature.result_len())?;
        // SAFETY: as in `forward`.
        unsafe { self.machine.convolve(&signature, [input, &packed, upstream].map(Memory::address))? };
        let values = self.weight.iter().product::<usize>();
        let gradient = self.machine.allocate(4 * values)?;
        let (from, to) = (packed.address(), gradient.address());
        // SAFETY: as many values as the packing has, and room for the weight's.
        unsafe { launch!(self.machine, unpack_weight, Grid::Work(values), from, to, self.packing)? };
        self.machine.to_tensor(gradient, &self.weight.as_slice().into(), DType::F32)
    }
}

/// Bytes of a volume (n, t, h, w, c) with its channels padded.
pub(super) fn volume_bytes(machine: &dyn Machine, dims: [usize; 5]) -> usize {
    volume_len(dims) * machine.precision().element().bytes()
}

/// Values of a volume (n, t, h, w, c) with its channels padded.
pub(super) fn volume_len([n, t, h, w, c]: [usize; 5]) -> usize {
    n * t * h * w * padded(c)
}
