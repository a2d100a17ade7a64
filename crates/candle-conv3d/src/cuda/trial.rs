//! Convolutions on trial: a pass of one by some algorithm, checked against its definition and timed.
#![allow(unsafe_code)]

use cudarc::driver::CudaSlice;

use super::CudaError;
use super::cudnn::{Addresses, Algorithm, ConvGraph};
use super::kernels::DirectShape;
use super::program::{Gpu, REPEATS, address, run_conv};
use super::search::Trial;
use super::shape::{Pass, Signature};
use super::train::machine::{Grid, arguments};

/// Values of a result that are compared with their definition.
const SAMPLES: usize = 4096;
/// Of a weight's gradient, whose values are long sums.
const LONG_SAMPLES: usize = 512;
/// An algorithm that wants more scratch memory is none.
const WORKSPACE_LIMIT: usize = 1 << 30;

/// A convolution on trial, on noise.
pub(super) struct ConvTrial<'a> {
    gpu: &'a Gpu,
    signature: Signature,
    candidates: usize,
    input: CudaSlice<u8>,
    weight: CudaSlice<u8>,
    bias: CudaSlice<u8>,
    residual: Option<CudaSlice<u8>>,
    output: CudaSlice<u8>,
    pairs: CudaSlice<u8>,
    graphs: [Option<ConvGraph>; 2],
}

impl<'a> ConvTrial<'a> {
    /// Of at most `candidates` algorithms of each kind that cuDNN proposes.
    pub(super) fn new(gpu: &'a Gpu, signature: Signature, candidates: usize) -> Result<Self, CudaError> {
        let element = signature.precision.element().bytes();
        let noise = |len: usize, seed: u64, scale: f32| {
            let slice = gpu.zeroed(len * element)?;
            // SAFETY: memory of `len` elements that was just allocated on the same stream.
            unsafe { gpu.kernels.noise(address(&slice, &gpu.stream), len, seed, scale)? };
            Ok::<_, CudaError>(slice)
        };
        // Sums of about size one.
        let scale = (3.0 / signature.products() as f32).sqrt();
        let (of_weight, of_output) = if signature.pass == Pass::WeightGradient { (1.0, scale) } else { (scale, 1.0) };
        let [input, weight, output] = signature.lens();
        let residual = signature.residual.then(|| noise(output, 3, 1.0)).transpose()?;
        let (input, weight, output) =
            (noise(input, 1, 1.0)?, noise(weight, 2, of_weight)?, noise(output, 4, of_output)?);
        let biases = (0..signature.shape.output[0]).flat_map(|k| ((k % 17) as f32 / 8.0 - 1.0).to_ne_bytes());
        let bias = gpu.upload(&biases.collect::<Vec<u8>>())?;
        let pairs = gpu.zeroed(2 * 4 * SAMPLES)?;
        Ok(Self { gpu, signature, candidates, input, weight, bias, residual, output, pairs, graphs: [None, None] })
    }

    fn graph(&mut self, fused: bool) -> Result<&ConvGraph, CudaError> {
        let slot = &mut self.graphs[usize::from(fused)];
        if slot.is_none() {
            *slot = Some(ConvGraph::new(&self.gpu.session, &self.signature, fused)?);
        }
        Ok(slot.as_ref().expect("it was just made"))
    }

    fn addresses(&self, workspace: &CudaSlice<u8>) -> Addresses {
        let of = |slice| address(slice, &self.gpu.stream);
        Addresses {
            input: of(&self.input),
            weight: of(&self.weight),
            bias: of(&self.bias),
            residual: self.residual.as_ref().map_or(0, of),
            output: of(&self.output),
            workspace: of(workspace),
        }
    }

    /// Compares values spread over the whole result with their definition.
    fn verify(&self, addresses: &Addresses) -> Result<(), CudaError> {
        let Signature { pass, shape, batch, precision, relu, .. } = self.signature;
        let total = self.signature.result_len();
        let count = total.min(if pass == Pass::WeightGradient { LONG_SAMPLES } else { SAMPLES });
        // An odd step meets all channels and columns.
        let every = total / count - usize::from((total / count).is_multiple_of(2));
        let Addresses { input, weight, bias, residual, output, .. } = *addresses;
        let (direct, pairs) = (DirectShape::new(&shape, relu), address(&self.pairs, &self.gpu.stream));
        let (kernels, grid, step, samples, n) =
            (&self.gpu.kernels, Grid::Work(count), every as u64, count as i32, batch as i32);
        // SAFETY: this trial's memory, of the signature's shape; `count` times `every` is at most `total`.
        unsafe {
            match pass {
                Pass::Inference => {
                    kernels.direct_conv(input, weight, bias, residual, output, pairs, &direct, (0, step, count))?;
                }
                Pass::Forward => {
                    kernels.direct_conv(input, weight, 0, 0, output, pairs, &direct, (0, step, count))?;
                }
                Pass::InputGradient => {
                    let arguments = arguments!(input, weight, output, pairs, direct, step, samples);
                    kernels.launch("direct_input_gradient", grid, arguments)?;
                }
                Pass::WeightGradient => {
                    let arguments = arguments!(input, weight, output, pairs, direct, step, samples, n);
                    kernels.launch("direct_weight_gradient", grid, arguments)?;
                }
            }
        }
        let mut bytes = vec![0; 2 * 4 * SAMPLES];
        self.gpu.stream.memcpy_dtoh(&self.pairs, &mut bytes).map_err(CudaError::driver("cuMemcpyDtoH"))?;
        self.gpu.synchronize()?;
        let value = |bytes: &[u8]| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        for pair in bytes.chunks_exact(8).take(count) {
            let (expected, actual) = (value(pair), value(&pair[4..]));
            let error = (expected - actual).abs() / (1.0 + expected.abs());
            if error.is_nan() || error > precision.convolution_tolerance() {
                return Err(CudaError::Input(format!("a wrong result: {actual} instead of {expected}")));
            }
        }
        Ok(())
    }
}

impl Trial for ConvTrial<'_> {
    fn algorithms(&mut self, fused: bool) -> Result<Vec<Algorithm>, CudaError> {
        if fused && self.signature.pass != Pass::Inference {
            return Ok(Vec::new());
        }
        let (gpu, candidates) = (self.gpu, self.candidates);
        self.graph(fused)?.algorithms(&gpu.session, candidates)
    }

    fn time(&mut self, algorithm: &Algorithm) -> Result<f32, CudaError> {
        let gpu = self.gpu;
        let plan = self.graph(algorithm.fused)?.plan(&gpu.session, algorithm)?;
        if plan.workspace > WORKSPACE_LIMIT {
            return Err(CudaError::Input(format!("it needs {} bytes of scratch memory", plan.workspace)));
        }
        let workspace = gpu.zeroed(plan.workspace)?;
        let addresses = self.addresses(&workspace);
        let bound = plan.bind(&addresses)?;
        let Signature { pass, shape, relu, .. } = self.signature;
        let values = self.signature.result_len();
        // SAFETY: this trial's memory, of the signature's shape, which lives until the stream is done below and longer than
        // the graph.
        let run = || unsafe {
            match pass {
                Pass::Inference => run_conv(gpu, &plan, &bound, &addresses, shape.output[0], relu, values),
                _ => plan.run(&gpu.session, &bound),
            }
        };
        let result = match pass {
            Pass::Inference | Pass::Forward => addresses.output,
            Pass::InputGradient => addresses.input,
            Pass::WeightGradient => addresses.weight,
        };
        // Whatever is left of the one before must not pass for a result.
        // SAFETY: this trial's memory, of `values` elements.
        unsafe { gpu.kernels.noise(result, values, 5, 1e3)? };
        run()?;
        self.verify(&addresses)?;
        let graph = gpu.capture(|| (0..REPEATS).try_for_each(|_| run()))?;
        let time = gpu.time(&graph)?;
        drop(graph);
        Ok(1e6 * time.as_secs_f32() / REPEATS as f32)
    }
}
