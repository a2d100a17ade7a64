//! A machine without a GPU: training's kernels compiled for the host, and convolutions by their definitions.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ops::Deref;
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Device, Error, Result, Shape, Storage, Tensor, Var};
use libloading::Library;

use super::super::emulation::{UNWRITTEN, library};
use super::super::kernels::DirectShape;
use super::super::shape::{Pass, Signature};
use super::super::testing::noise;
use super::machine::{Grid, Machine, Memory, Owner, launch};
use super::plain::{self, PlainConvolution};
use super::{Activations, DEVICES, Data};
use crate::{
    Activation, BatchStatistics, Conv3dConfig, ConvNormLayer, Following, MaxPool3dConfig, Precision, Statistics, Tape,
    Volume,
};

/// Threads of a block: few enough to be threads of the host, no power of two.
const THREADS: u32 = 24;

#[derive(Debug)]
struct StandIn {
    precision: Precision,
    library: &'static Library,
}

/// `None` where there is no compiler.
fn stand_in(precision: Precision) -> Option<Arc<dyn Machine>> {
    let library = library(precision.element())?;
    Some(Arc::new(StandIn { precision, library }))
}

impl Machine for StandIn {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn allocate(&self, bytes: usize) -> Result<Memory> {
        let host = vec![UNWRITTEN; bytes.div_ceil(16).max(1)];
        Ok(Memory::new(host.as_ptr() as u64, bytes, Owner::Host(host)))
    }

    fn address(&self, tensor: &Tensor) -> Result<u64> {
        assert!(tensor.is_contiguous());
        let (storage, layout) = tensor.storage_and_layout();
        let begin = layout.start_offset();
        Ok(match storage.deref() {
            Storage::Cpu(CpuStorage::F32(values)) => values[begin..].as_ptr() as u64,
            Storage::Cpu(CpuStorage::F16(values)) => values[begin..].as_ptr() as u64,
            Storage::Cpu(CpuStorage::BF16(values)) => values[begin..].as_ptr() as u64,
            _ => panic!("a tensor of another kind"),
        })
    }

    fn to_tensor(&self, memory: Memory, shape: &Shape, dtype: DType) -> Result<Tensor> {
        let len = memory.bytes();
        assert_eq!(len, shape.elem_count() * dtype.size_in_bytes());
        let Owner::Host(host) = memory.into_owner() else { panic!("memory of another machine") };
        let bytes: Vec<u8> = host.iter().flat_map(|value| value.to_ne_bytes()).take(len).collect();
        Tensor::from_raw_buffer(&bytes, dtype, shape.dims(), &Device::Cpu)
    }

    unsafe fn launch(&self, kernel: &'static str, grid: Grid, arguments: &mut [*mut c_void]) -> Result<()> {
        type Launch = unsafe extern "C" fn(*mut *mut c_void, u32, u32, u32);
        let (x, y, threads) = match grid {
            Grid::Work(_) => (3, 1, 1),
            Grid::Blocks([x, y]) => (x as u32, y as u32, THREADS),
        };
        // SAFETY: the function's signature; the caller vouches for the arguments.
        unsafe {
            let function = self.library.get::<Launch>(format!("launch_{kernel}").as_bytes()).map_err(Error::wrap)?;
            function(arguments.as_mut_ptr(), x, y, threads);
        }
        Ok(())
    }

    unsafe fn convolve(&self, signature: &Signature, [input, weight, output]: [u64; 3]) -> Result<()> {
        let (shape, len) = (DirectShape::new(&signature.shape, false), signature.result_len());
        let (count, n, first, every, none) = (len as i32, signature.batch as i32, 0u64, 1u64, 0u64);
        let pairs = self.allocate(8 * len)?;
        let to = pairs.address();
        let grid = Grid::Work(len);
        // SAFETY: the caller vouches for the operands; there is room for a pair of each value.
        let result = unsafe {
            match signature.pass {
                Pass::Inference | Pass::Forward => {
                    launch!(
                        self,
                        direct_conv,
                        grid,
                        input,
                        weight,
                        none,
                        none,
                        output,
                        to,
                        shape,
                        first,
                        every,
                        count
                    )?;
                    output
                }
                Pass::InputGradient => {
                    launch!(self, direct_input_gradient, grid, input, weight, output, to, shape, every, count)?;
                    input
                }
                Pass::WeightGradient => {
                    launch!(self, direct_weight_gradient, grid, input, weight, output, to, shape, every, count, n)?;
                    weight
                }
            }
        };
        let pairs = self.to_tensor(pairs, &Shape::from((len, 2)), DType::F32)?.to_vec2::<f32>()?;
        let mut bytes = Vec::new();
        pairs.iter().for_each(|pair| self.precision.element().encode(pair[0], &mut bytes));
        // SAFETY: the caller vouches that the result is memory of as many elements, which nobody else uses now.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), result as *mut u8, bytes.len()) };
        Ok(())
    }

    fn micros(&self, signature: &Signature) -> Result<f32> {
        // Not the first form of a stem.
        Ok(signature.shape.kernel[2].abs_diff(4) as f32)
    }
}

struct Layer {
    weight: Tensor,
    config: Conv3dConfig,
    scale: Tensor,
    bias: Tensor,
    fixed: Option<[Tensor; 2]>,
}

/// A tensor of repeatable values around `centre`.
fn tensor(seed: u64, shape: &[usize], centre: f32, spread: f32) -> Tensor {
    let values = noise(seed, shape.iter().product()).iter().map(|x| centre + spread * x).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn variable(tensor: &Tensor) -> Tensor {
    Var::from_tensor(tensor).unwrap().into_inner()
}

impl Layer {
    fn new(seed: u64, weight: [usize; 5], stride: usize, trained: bool, fixed: bool) -> Self {
        let [out, channels, kt, kh, kw] = weight;
        let bound = (3.0 / (channels * kt * kh * kw) as f32).sqrt();
        let parameters =
            [tensor(seed, &weight, 0.0, bound), tensor(seed + 1, &[out], 1.0, 0.5), tensor(seed + 2, &[out], 0.0, 0.5)];
        let [weight, scale, bias] = if trained { parameters.each_ref().map(variable) } else { parameters };
        let time = if kt == 7 { 1 } else { stride };
        let config = Conv3dConfig { stride: [time, stride, stride], padding: [kt / 2, kh / 2, kw / 2] };
        let fixed = fixed.then(|| [tensor(seed + 3, &[out], 0.0, 0.3), tensor(seed + 4, &[out], 1.0, 0.5)]);
        Self { weight, config, scale, bias, fixed }
    }

    fn run(
        &self,
        tape: &mut Tape,
        input: &Volume,
        activation: Activation,
        following: Following<'_>,
        statistics: &mut Vec<BatchStatistics>,
    ) -> Volume {
        let layer = ConvNormLayer {
            weight: &self.weight,
            config: self.config,
            norm_weight: &self.scale,
            norm_bias: &self.bias,
            statistics: match &self.fixed {
                Some([mean, variance]) => Statistics::Fixed { mean, variance },
                None => Statistics::Batch,
            },
            epsilon: 1e-5,
            activation,
            following,
        };
        let (output, of_batch) = tape.conv_norm(input, &layer).unwrap();
        statistics.extend(of_batch);
        output
    }
}

/// A residual network with both kinds of shortcuts, channels that are padded, and a last stage of a single frame.
struct Network {
    layers: Vec<Layer>,
}

impl Network {
    /// Layers from `trained` on have variables, those from `fixed` on fixed statistics.
    fn new(trained: usize, fixed: usize) -> Self {
        let shapes = [
            ([12, 3, 7, 7, 7], 2),
            ([12, 12, 3, 3, 3], 1),
            ([12, 12, 3, 3, 3], 1),
            ([20, 12, 3, 3, 3], 2),
            ([20, 20, 3, 3, 3], 1),
            ([40, 20, 3, 3, 3], 2),
            ([40, 40, 3, 3, 3], 1),
            ([40, 20, 1, 1, 1], 2),
        ];
        let layers = shapes.into_iter().enumerate().map(|(index, (weight, stride))| {
            Layer::new(10 * index as u64, weight, stride, index >= trained, index >= fixed)
        });
        Self { layers: layers.collect() }
    }

    /// Features, statistics and the gradient of each variable.
    fn pass(&self, clips: Volume, upstream: &Tensor) -> Vec<Tensor> {
        let (mut tape, mut statistics) = (Tape::default(), Vec::new());
        let [stem, a1, a2, b1, b2, c1, c2, projection] = &self.layers[..] else { panic!("eight layers") };
        let pool = MaxPool3dConfig { kernel: [3; 3], stride: [2; 3], padding: [1; 3] };
        let mut run = |tape: &mut Tape, layer: &Layer, x: &Volume, activation, following: Following<'_>| {
            layer.run(tape, x, activation, following, &mut statistics)
        };
        let (relu, nothing) = (Activation::Relu, Following::Nothing);
        let x = run(&mut tape, stem, &clips, relu, Following::MaxPool(pool));
        let y = run(&mut tape, a1, &x, relu, nothing);
        let x = run(&mut tape, a2, &y, relu, Following::Add(&x));
        let y = run(&mut tape, b1, &x, relu, nothing);
        let shortcut = tape.strided_shortcut(&x, 2, 20).unwrap();
        let x = run(&mut tape, b2, &y, relu, Following::Add(&shortcut));
        let shortcut = run(&mut tape, projection, &x, Activation::Identity, nothing);
        let y = run(&mut tape, c1, &x, relu, nothing);
        let x = run(&mut tape, c2, &y, relu, Following::Add(&shortcut));
        let features = tape.mean(&x).unwrap();
        let mut gradients = (&features * upstream).unwrap().sum_all().unwrap().backward().unwrap();
        tape.backward(&mut gradients).unwrap();
        let mut results = vec![features.detach()];
        results.extend(statistics.into_iter().flat_map(|of_batch| [of_batch.mean, of_batch.variance]));
        let variables = self.layers.iter().flat_map(|layer| [&layer.weight, &layer.scale, &layer.bias]);
        results.extend(variables.filter_map(|variable| gradients.get(variable).cloned()));
        results
    }
}

/// Distance over length.
fn error(actual: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(actual.dims(), expected.dims());
    let length = |tensor: &Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let error = length(&(actual - expected).unwrap()) / length(expected).max(1e-6);
    if error.is_nan() { f32::INFINITY } else { error }
}

fn on(machine: &Arc<dyn Machine>, clips: &Tensor) -> Volume {
    let [n, c, t, h, w] = clips.dims5().unwrap().into();
    let activations = Activations::clips(Arc::clone(machine), clips.clone());
    Volume { dims: [n, t, h, w, c], data: Arc::new(Data::Gpu(activations)), id: None }
}

#[test]
fn a_tape_gives_on_a_gpu_what_it_gives_on_the_cpu() {
    // Roundings of f32 sums. With 11 and 8 bits some values fall to the other side of a ReLU or a maximum, and in the first
    // layers gradients are sums that cancel: how good those precisions are is not for a small network to tell.
    let tolerances = [(Precision::F32, 5e-5), (Precision::F16, 8e-2), (Precision::Bf16, 0.6)];
    // Everything trained, the last stages alone, and all normalised by fixed statistics.
    for (trained, fixed) in [(0, 8), (3, 8), (0, 0), (0, 5)] {
        let network = Network::new(trained, fixed);
        let clips = tensor(90, &[2, 3, 5, 38, 44], 0.3, 1.0);
        let upstream = tensor(91, &[2, 40], 0.0, 1.0);
        let expected = network.pass(Volume::from_tensor(&clips).unwrap(), &upstream);
        for (precision, tolerance) in tolerances {
            let Some(machine) = stand_in(precision) else { return };
            let actual = network.pass(on(&machine, &clips), &upstream);
            assert_eq!(actual.len(), expected.len());
            for (index, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                let error = error(actual, expected);
                let shape = expected.shape();
                assert!(
                    error < tolerance,
                    "{precision}, trained from {trained}, fixed from {fixed}, {index}, {shape:?}: {error:e}"
                );
            }
        }
    }
}

#[test]
fn clips_of_many_channels_are_taken_as_they_are() {
    let Some(machine) = stand_in(Precision::F32) else { return };
    let clips = tensor(1, &[2, 11, 3, 6, 5], 0.0, 1.0);
    let layer = Layer::new(2, [12, 11, 3, 3, 3], 1, true, false);
    let run = |volume: &Volume| {
        let (mut tape, mut statistics) = (Tape::default(), Vec::new());
        let volume = layer.run(&mut tape, volume, Activation::Relu, Following::Nothing, &mut statistics);
        let features = tape.mean(&volume).unwrap();
        let mut gradients = features.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        tape.backward(&mut gradients).unwrap();
        [features.detach(), gradients.get(&layer.weight).unwrap().clone()]
    };
    let expected = run(&Volume::from_tensor(&clips).unwrap());
    for (actual, expected) in run(&on(&machine, &clips)).iter().zip(&expected) {
        let error = error(actual, expected);
        assert!(error < 1e-5, "{:?}: {error:e}", expected.shape());
    }
}

#[test]
fn convolutions_of_tensors_give_on_a_gpu_what_they_give_on_the_cpu() {
    // Channels that are padded, windows that skip places, a kernel that meets padding first, a single place.
    for (input, weight, stride, padding) in [
        ([2, 3, 5, 9, 8], [12, 3, 3, 5, 3], [1, 2, 2], [1, 2, 1]),
        ([1, 12, 4, 7, 7], [20, 12, 3, 3, 3], [2, 2, 2], [1, 1, 1]),
        ([2, 16, 1, 4, 4], [8, 16, 3, 3, 3], [1, 1, 1], [1, 1, 1]),
        ([3, 8, 2, 3, 5], [9, 8, 1, 1, 1], [2, 2, 2], [0, 0, 0]),
        ([1, 8, 1, 1, 1], [8, 8, 3, 3, 3], [1, 1, 1], [1, 1, 1]),
    ] {
        let config = Conv3dConfig { stride, padding };
        let bound = (3.0 / weight[1..].iter().product::<usize>() as f32).sqrt();
        let (x, w) = (variable(&tensor(1, &input, 0.0, 1.0)), variable(&tensor(2, &weight, 0.0, bound)));
        let y = crate::reference::conv3d(&x, &w, &config).unwrap();
        let upstream = tensor(3, y.dims(), 0.0, 1.0);
        let gradients = (&y * &upstream).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = [&y, gradients.get(&x).unwrap(), gradients.get(&w).unwrap()];
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
            let Some(machine) = stand_in(plain::precision(dtype).unwrap()) else { return };
            let [x, w, upstream] = [&x, &w, &upstream].map(|tensor| tensor.detach().to_dtype(dtype).unwrap());
            let convolution = PlainConvolution::new(&machine, &x, &w, &config).unwrap().unwrap();
            let forward = convolution.forward(&x, &w).unwrap();
            let actual = [
                machine.to_tensor(forward, &convolution.output_shape(), dtype).unwrap(),
                convolution.input_gradient(&w, &upstream).unwrap(),
                convolution.weight_gradient(&x, &upstream).unwrap(),
            ];
            for (actual, expected) in actual.iter().zip(expected) {
                assert_eq!(actual.dtype(), dtype);
                let error = error(&actual.to_dtype(DType::F32).unwrap(), expected);
                assert!(error < tolerance, "{dtype:?}, {input:?}, {weight:?}, {:?}: {error:e}", expected.shape());
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let Some(machine) = stand_in(Precision::F32) else { return };
    let clips = tensor(1, &[1, 3, 4, 8, 8], 0.0, 1.0);
    let mut tape = Tape::default();
    let layer = Layer::new(1, [12, 4, 3, 3, 3], 1, true, false);
    fn conv_norm(
        machine: &Arc<dyn Machine>,
        clips: &Tensor,
        layer: &Layer,
        tape: &mut Tape,
        following: Following<'_>,
    ) -> Result<Volume> {
        let layer = ConvNormLayer {
            weight: &layer.weight,
            config: layer.config,
            norm_weight: &layer.scale,
            norm_bias: &layer.bias,
            statistics: Statistics::Batch,
            epsilon: 1e-5,
            activation: Activation::Relu,
            following,
        };
        tape.conv_norm(&on(machine, clips), &layer).map(|(volume, _)| volume)
    }
    let others = on(&machine, &clips);
    let elsewhere = Volume::from_tensor(&tensor(2, &[1, 12, 4, 8, 8], 0.0, 1.0)).unwrap();
    let mut run = |layer, following| conv_norm(&machine, &clips, layer, &mut tape, following);
    assert!(run(&layer, Following::Nothing).is_err(), "four channels of three");
    let layer = Layer::new(1, [12, 3, 3, 3, 3], 1, true, false);
    let volume = run(&layer, Following::Nothing).unwrap();
    assert!(run(&layer, Following::Add(&others)).is_err(), "other dimensions");
    let error = run(&layer, Following::Add(&elsewhere)).unwrap_err().to_string();
    assert!(error.contains(DEVICES), "{error}");
    assert!(run(&layer, Following::Add(&volume)).is_ok());
    let precise = stand_in(Precision::F32).expect("there is one already");
    let other = conv_norm(&precise, &clips, &layer, &mut tape, Following::Nothing).unwrap();
    let error = conv_norm(&machine, &clips, &layer, &mut tape, Following::Add(&other)).unwrap_err().to_string();
    assert!(error.contains(DEVICES), "{error}");
    assert!(tape.strided_shortcut(&on(&machine, &clips), 2, 8).is_err(), "clips are read by convolutions only");
}
