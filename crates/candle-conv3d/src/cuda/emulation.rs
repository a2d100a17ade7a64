//! The kernels compiled for the host, and whole networks run through them: what a GPU would compute, but for cuDNN.
#![allow(unsafe_code)]

use std::process::Command;
use std::sync::OnceLock;

use libloading::Library;

use super::kernels::{DirectShape, SOURCES};
use super::lower::{ConvStep, GatherShape, Network, PoolShape, Step, ValueId, lower};
use super::rearrange::{LoadShape, StemForm};
use super::shape::Element;
use super::testing::{bottleneck_network, noise, residual_network};
use super::train::machine;
use crate::graph::{Graph, passes};
use crate::plan::{Input, PlanOptions};

/// What CUDA C has and C++ lacks. Kernels that are called run as a grid of one thread.
const PRELUDE: &str = r#"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <immintrin.h>
#include <mutex>
#include <pthread.h>
#include <thread>
#include <utility>
#include <vector>
using std::max;
using std::min;
#define HOST
#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __restrict__ __restrict
#define __align__(n) alignas(n)
struct Index { unsigned x, y; };
static thread_local Index threadIdx = {0, 0}, blockIdx = {0, 0}, blockDim = {1, 1}, gridDim = {1, 1};
static pthread_barrier_t barrier;
static inline void __syncthreads() { if (blockDim.x > 1) pthread_barrier_wait(&barrier); }
static inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
#if TYPE == 1
static inline float widen(unsigned short x) { return _cvtsh_ss(x); }
static inline unsigned short narrow(float x) { return _cvtss_sh(x, 0); }
#endif
"#;

/// Functions that run kernels by pointers to their arguments, as the driver does: block after block, the threads of a block
/// as threads.
const LAUNCH: &str = r#"
template <class... A, size_t... I> void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}
static std::mutex one_at_a_time;
template <class... A> void launch(void (*kernel)(A...), void** arguments, unsigned x, unsigned y, unsigned threads) {
    std::unique_lock<std::mutex> lock(one_at_a_time, std::defer_lock);
    auto blocks = [&](unsigned thread) {
        threadIdx = {thread, 0}, blockDim = {threads, 1}, gridDim = {x, y};
        for (unsigned block = 0; block < x * y; block++) {
            blockIdx = {block % x, block / x};
            call(kernel, arguments, std::index_sequence_for<A...>());
            __syncthreads();
        }
        threadIdx = {0, 0}, blockIdx = {0, 0}, blockDim = {1, 1}, gridDim = {1, 1};
    };
    if (threads == 1) return blocks(0);
    lock.lock();
    pthread_barrier_init(&barrier, nullptr, threads);
    std::vector<std::thread> all;
    for (unsigned thread = 0; thread < threads; thread++) all.emplace_back(blocks, thread);
    for (auto& thread : all) thread.join();
    pthread_barrier_destroy(&barrier);
}
#define LAUNCH(name) \
    extern "C" void launch_##name(void** arguments, unsigned x, unsigned y, unsigned threads) { \
        launch(name, arguments, x, y, threads); \
    }
"#;

pub(super) const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::Bf16];

/// The kernels for an element; `None` where there is no compiler.
pub(super) fn library(element: Element) -> Option<&'static Library> {
    static BUILT: OnceLock<Option<Vec<Library>>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("kernels.cpp");
        let launches: String = machine::KERNELS.iter().map(|name| format!("LAUNCH({name})\n")).collect();
        std::fs::write(&source, [PRELUDE, &SOURCES.concat(), LAUNCH, &launches].concat()).unwrap();
        let mut all = Vec::new();
        for element in ELEMENTS {
            let library = directory.path().join(format!("kernels-{element:?}.so"));
            let arguments = ["-std=c++17", "-O2", "-mf16c", "-fPIC", "-shared", "-pthread", "-fno-fast-math", "-o"];
            let define = format!("-DTYPE={}", element.kernel_type());
            let compiler = Command::new("c++").args(arguments).arg(&library).arg(define).arg(&source).output();
            let Ok(output) = compiler else { return None };
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            // SAFETY: loading our own kernels runs no code.
            all.push(unsafe { Library::new(&library) }.unwrap());
        }
        Some(all)
    });
    if built.is_none() {
        eprintln!("skipped: there is no C++ compiler");
    }
    let index = ELEMENTS.iter().position(|other| *other == element)?;
    built.as_ref().map(|built| &built[index])
}

/// What memory holds that was not written: nothing may rely on it.
pub(super) const UNWRITTEN: u128 = 0x7f3f_7f3f_7f3f_7f3f_7f3f_7f3f_7f3f_7f3f;

/// Memory that is aligned as a GPU's is.
struct Memory(Vec<u128>);

impl Memory {
    fn new(bytes: usize) -> Self {
        Self(vec![UNWRITTEN; bytes.div_ceil(16) + 1])
    }

    fn of(bytes: &[u8]) -> Self {
        let mut memory = Self::new(bytes.len());
        memory.at(0, bytes.len()).copy_from_slice(bytes);
        memory
    }

    fn at(&mut self, offset: usize, len: usize) -> &mut [u8] {
        // SAFETY: any 16 bytes are also bytes, and the length is in bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast::<u8>(), 16 * self.0.len()) };
        &mut bytes[offset..][..len]
    }

    fn address(&mut self, offset: usize) -> *mut u8 {
        self.at(offset, 0).as_mut_ptr()
    }
}

struct Emulation<'a> {
    library: &'a Library,
    element: Element,
    network: &'a Network,
    arena: Memory,
    constants: Memory,
    max_batch: usize,
}

enum Source<'a> {
    Rgb { bytes: &'a [u8], table: &'a [f32] },
    Values(&'a [f32]),
}

impl<'a> Emulation<'a> {
    fn new(library: &'a Library, element: Element, network: &'a Network, max_batch: usize) -> Self {
        let (arena, constants) = (Memory::new(network.clip_bytes * max_batch), Memory::of(&network.constants));
        Self { library, element, network, arena, constants, max_batch }
    }

    fn value(&mut self, value: ValueId) -> *mut u8 {
        let offset = self.network.values[value.0].offset * self.max_batch;
        self.arena.address(offset)
    }

    /// The outputs of `n` clips.
    fn run(&mut self, source: &Source<'_>, n: usize) -> Vec<Vec<f32>> {
        let batch = n as i32;
        for step in &self.network.steps {
            // SAFETY: the signatures are those of kernels.cu, the memory that of the network, as on a GPU.
            unsafe {
                match step {
                    Step::Load { output, shape } => {
                        let out = self.value(*output);
                        match source {
                            Source::Rgb { bytes, table } => {
                                type F = unsafe extern "C" fn(*const u8, *const f32, *mut u8, LoadShape, i32);
                                let f = self.library.get::<F>(b"load_rgb").unwrap();
                                f(bytes.as_ptr(), table.as_ptr(), out, *shape, batch);
                            }
                            Source::Values(values) => {
                                type F = unsafe extern "C" fn(*const f32, *mut u8, LoadShape, i32);
                                let f = self.library.get::<F>(b"load_values").unwrap();
                                f(values.as_ptr(), out, *shape, batch);
                            }
                        }
                    }
                    Step::Conv(conv) => self.conv(conv, n),
                    Step::MaxPool { input, output, shape } => {
                        type F = unsafe extern "C" fn(*const u8, *mut u8, PoolShape, i32);
                        let (x, y) = (self.value(*input), self.value(*output));
                        self.library.get::<F>(b"max_pool").unwrap()(x, y, *shape, batch);
                    }
                    Step::Gather { input, output, shape } => {
                        type F = unsafe extern "C" fn(*const u8, *mut u8, GatherShape, i32);
                        let (x, y) = (self.value(*input), self.value(*output));
                        self.library.get::<F>(b"gather").unwrap()(x, y, *shape, batch);
                    }
                    Step::Mean { input, output, rows, stored, channels } => {
                        type F = unsafe extern "C" fn(*const u8, *mut u8, i32, i32, i32, i32);
                        let (x, y) = (self.value(*input), self.value(*output));
                        let f = self.library.get::<F>(b"mean").unwrap();
                        f(x, y, *rows as i32, *stored as i32, *channels as i32, batch);
                    }
                    Step::Linear { input, output, weight, bias, inputs, outputs } => {
                        type F = unsafe extern "C" fn(*const u8, *const u8, *const u8, *mut u8, i32, i32, i32);
                        let (x, y) = (self.value(*input), self.value(*output));
                        let (weight, bias) =
                            (self.constants.address(weight.offset), self.constants.address(bias.offset));
                        let f = self.library.get::<F>(b"linear").unwrap();
                        f(x, weight, bias, y, *inputs as i32, *outputs as i32, batch);
                    }
                    Step::Store { input, output, channels, stored, positions } => {
                        type F = unsafe extern "C" fn(*const u8, *mut u8, i32, i32, i32, i32);
                        let (x, y) = (self.value(*input), self.value(*output));
                        let f = self.library.get::<F>(b"store").unwrap();
                        f(x, y, *channels as i32, *stored as i32, *positions as i32, batch);
                    }
                }
            }
        }
        let outputs = self.network.outputs.iter();
        let place = |value: ValueId| self.network.values[value.0].offset * self.max_batch;
        let floats = |bytes: &[u8]| bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect();
        outputs
            .map(|(value, dims)| floats(self.arena.at(place(*value), 4 * n * dims.iter().product::<usize>())))
            .collect()
    }

    /// The bare sum by its definition, then `finish`: what an algorithm that is not fused does.
    fn conv(&mut self, conv: &ConvStep, n: usize) {
        type Direct = unsafe extern "C" fn(
            *const u8,
            *const u8,
            *const u8,
            *const u8,
            *const u8,
            *mut f32,
            DirectShape,
            u64,
            u64,
            i32,
        );
        type Finish = unsafe extern "C" fn(*mut u8, *const u8, *const u8, i32, i32, u64);
        let count = n * conv.shape.output.iter().product::<usize>();
        let mut pairs = vec![0.0f32; 2 * count];
        let (x, y) = (self.value(conv.input), self.value(conv.output));
        let residual = conv.residual.map_or(std::ptr::null_mut(), |value| self.value(value));
        let (weight, bias) = (self.constants.address(conv.weight.offset), self.constants.address(conv.bias.offset));
        let shape = DirectShape::new(&conv.shape, false);
        let (none, all) = (std::ptr::null(), pairs.as_mut_ptr());
        // SAFETY: as above.
        unsafe {
            let direct = self.library.get::<Direct>(b"direct_conv").unwrap();
            direct(x, weight, none, none, y, all, shape, 0, 1, count as i32);
        }
        let mut bytes = Vec::new();
        pairs.chunks_exact(2).for_each(|pair| self.element.encode(pair[0], &mut bytes));
        let offset = self.network.values[conv.output.0].offset * self.max_batch;
        self.arena.at(offset, bytes.len()).copy_from_slice(&bytes);
        // SAFETY: as above.
        unsafe {
            let finish = self.library.get::<Finish>(b"finish").unwrap();
            finish(y, bias, residual, conv.shape.output[0] as i32, i32::from(conv.relu), count as u64);
        }
    }
}

/// Largest difference over the largest value.
fn error(actual: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    let scale = expected.iter().fold(1e-3, |max: f32, x| max.max(x.abs()));
    actual.iter().zip(expected).fold(0.0, |max, (a, e)| {
        let error = (a - e).abs() / scale;
        if error.is_nan() { f32::INFINITY } else { max.max(error) }
    })
}

fn table() -> Vec<f32> {
    (0..3 * 256).map(|i| ((i % 256) as f32 - [114.8, 107.7, 99.5][i / 256]) / 64.0).collect()
}

/// Compares all outputs with those of the plan for CPUs.
fn assert_same(graph: &Graph, n: usize, tolerances: [f32; 3]) {
    let input = graph.shape(graph.input()).unwrap();
    let clip: usize = input.iter().product();
    let values = noise(7, n * clip);
    let bytes: Vec<u8> = values.iter().map(|x| ((x + 1.0) * 127.9) as u8).collect();
    let table = table();
    let options = PlanOptions { threads: 2, max_batch: n, winograd: false, ..PlanOptions::default() };
    let mut plan = graph.clone().compile(options).unwrap();
    let mut run = |input: Input<'_>| {
        let lens = plan.output_shapes().iter().map(|dims| n * dims.iter().product::<usize>());
        let mut expected: Vec<Vec<f32>> = lens.map(|len| vec![0.0; len]).collect();
        plan.run(input, &mut expected.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>()).unwrap();
        expected
    };
    let clips: Vec<&[u8]> = bytes.chunks(clip).collect();
    let channels = std::array::from_fn(|channel| table[channel * 256..][..256].try_into().unwrap());
    let from_bytes = if input[0] == 3 { run(Input::Rgb { clips: &clips, table: &channels }) } else { Vec::new() };
    let from_values = run(Input::F32 { values: &values, batch: n });
    for (element, tolerance) in ELEMENTS.into_iter().zip(tolerances) {
        let Some(library) = library(element) else { return };
        for form in StemForm::ALL {
            let network = lower(&passes::prepare(graph.clone()), element, form, n + 1).unwrap();
            let mut emulation = Emulation::new(library, element, &network, n + 1);
            let sources =
                [(Source::Rgb { bytes: &bytes, table: &table }, &from_bytes), (Source::Values(&values), &from_values)];
            // Twice: what the last run left must not leak into the next.
            for (source, expected) in sources.iter().chain(&sources) {
                if matches!(source, Source::Rgb { .. }) && input[0] != 3 {
                    continue;
                }
                for (actual, expected) in emulation.run(source, n).iter().zip(*expected) {
                    let error = error(actual, expected);
                    assert!(error < tolerance, "{element:?}, {form:?}: {error:e}");
                }
            }
        }
    }
}

/// Roundings of f32 sums; of 11 and of 8 bits in every layer.
const TOLERANCES: [f32; 3] = [2e-5, 1e-2, 6e-2];

#[test]
fn a_residual_network_computes_what_the_plan_for_cpus_does() {
    // Four, two and one frames, maps that are no multiples of anything, channels that are padded.
    assert_same(&residual_network([3, 8, 40, 44], [8, 12, 16, 20]), 2, TOLERANCES);
    assert_same(&residual_network([3, 15, 22, 26], [4, 8, 16, 24]), 1, TOLERANCES);
}

#[test]
fn bottlenecks_and_projections_compute_what_the_plan_for_cpus_does() {
    assert_same(&bottleneck_network([3, 8, 20, 24], 8), 2, TOLERANCES);
    assert_same(&bottleneck_network([2, 5, 18, 18], 4), 1, TOLERANCES);
}

#[test]
fn late_layers_are_convolutions_of_pictures_with_few_taps() {
    let graph = passes::prepare(residual_network([3, 16, 112, 112], [64, 128, 256, 512]));
    let network = lower(&graph, Element::Bf16, StemForm::Phases, 4).unwrap();
    let shapes: Vec<_> = network.convs().map(|conv| (conv.shape.input, conv.shape.output, conv.shape.kernel)).collect();
    let expected = [
        // 2 phases of 3 channels; a kernel of 4 columns instead of 7.
        ([8, 16, 112, 59], [64, 16, 56, 56], [7, 7, 4]),
        ([64, 8, 28, 28], [64, 8, 28, 28], [3, 3, 3]),
        ([64, 8, 28, 28], [64, 8, 28, 28], [3, 3, 3]),
        ([64, 8, 28, 28], [128, 4, 14, 14], [3, 3, 3]),
        ([128, 4, 14, 14], [128, 4, 14, 14], [3, 3, 3]),
        ([128, 4, 14, 14], [256, 2, 7, 7], [3, 3, 3]),
        // Two frames side by side in the channels: 4 products of frames instead of 6.
        ([512, 1, 7, 7], [512, 1, 7, 7], [1, 3, 3]),
        // Two frames into one.
        ([512, 1, 7, 7], [512, 1, 4, 4], [1, 3, 3]),
        // One frame meets the middle taps only.
        ([512, 1, 4, 4], [512, 1, 4, 4], [1, 3, 3]),
    ];
    assert_eq!(shapes, expected);
}

#[test]
fn values_that_are_needed_at_a_time_do_not_overlap() {
    let graph = passes::prepare(bottleneck_network([3, 16, 64, 64], 16));
    let network = lower(&graph, Element::F16, StemForm::Padded, 4).unwrap();
    // From the step that makes it to the last one that reads it, or to the end.
    let lives = |value: usize| {
        let made = network.steps.iter().position(|step| step.output().0 == value).unwrap();
        let read = network.steps.iter().rposition(|step| step.inputs().any(|input| input.0 == value));
        let is_output = network.outputs.iter().any(|(output, _)| output.0 == value);
        (made, if is_output { network.steps.len() } else { read.unwrap() })
    };
    let mut whole = 0;
    for (index, memory) in network.values.iter().enumerate() {
        assert!(memory.offset + memory.bytes <= network.clip_bytes);
        whole += memory.bytes;
        let (made, read) = lives(index);
        for (other_index, other) in network.values.iter().enumerate().skip(index + 1) {
            let (other_made, other_read) = lives(other_index);
            if made <= other_read && other_made <= read {
                let apart = memory.offset + memory.bytes <= other.offset || other.offset + other.bytes <= memory.offset;
                assert!(apart, "{index} {memory:?} and {other_index} {other:?}");
            }
        }
    }
    assert!(network.clip_bytes < 3 * whole / 4, "{} of {whole}", network.clip_bytes);
}
