//! cuDNN's graph API: one convolution with its bias, residual and ReLU as one operation graph, the engines that can run
//! it, and plans of them.
//!
//! Attributes and their types are those that `cudnn_graph.h` lists at each descriptor.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::fmt;
use std::ptr;
use std::str::FromStr;

use cudarc::cudnn::sys::{
    self, cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Kind,
    cudnnBackendDescriptorType_t as Object, cudnnDataType_t as DataType, cudnnStatus_t as Status,
};

use super::CudaError;
use super::device;
use super::shape::{Element, Pass, Signature};
use crate::Precision;

/// Below, 3D convolutions were seen to be wrong.
const LEAST_VERSION: usize = 91_500;
/// Knobs of an engine; more than any has.
const MAX_KNOBS: usize = 64;
/// Alignment that cuDNN may rely on, in bytes.
const TENSOR_ALIGNMENT: i64 = 16;

/// An algorithm of cuDNN, by the numbers it goes by in one version of cuDNN.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Algorithm {
    /// Whether bias, residual and ReLU are in it, or follow in a kernel of their own.
    pub(crate) fused: bool,
    engine: i64,
    knobs: Vec<(i32, i64)>,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", if self.fused { "fused" } else { "plain" }, self.engine)?;
        self.knobs.iter().try_for_each(|(knob, value)| write!(f, ":{knob}={value}"))
    }
}

impl FromStr for Algorithm {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(':');
        let fused = match parts.next() {
            Some("fused") => true,
            Some("plain") => false,
            _ => return Err(()),
        };
        let engine = parts.next().and_then(|engine| engine.parse().ok()).ok_or(())?;
        let knob = |part: &str| {
            let (knob, value) = part.split_once('=').ok_or(())?;
            Ok((knob.parse().map_err(|_| ())?, value.parse().map_err(|_| ())?))
        };
        Ok(Self { fused, engine, knobs: parts.map(knob).collect::<Result<_, ()>>()? })
    }
}

/// cuDNN on one stream, or for a GPU that is only described.
pub(crate) struct Session {
    handle: sys::cudnnHandle_t,
    /// The GPU that plans are made for, if it is not there.
    described: Option<Descriptor>,
}

impl Session {
    /// # Safety
    /// The stream belongs to the context that is current on this thread, which outlive the session.
    pub(crate) unsafe fn on_stream(stream: cudarc::driver::sys::CUstream) -> Result<Self, CudaError> {
        check_version()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the library is there, and `handle` has room for a handle.
        check("cudnnCreate", unsafe { sys::cudnnCreate(&mut handle) })?;
        let session = Self { handle, described: None };
        // SAFETY: the handle was just made; the driver's and the runtime's stream are one and the same type.
        check("cudnnSetStream", unsafe { sys::cudnnSetStream(handle, stream.cast()) })?;
        Ok(session)
    }

    /// For a GPU described as cuDNN describes it, in JSON: plans can be made and not run.
    #[cfg(test)]
    fn described(json: &str) -> Result<Self, CudaError> {
        check_version()?;
        let mut device = Descriptor::new(Object::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)?;
        device.set_chars(Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, json)?;
        Ok(Self { handle: ptr::null_mut(), described: Some(device.finalize()?) })
    }

    /// Where a descriptor has to say for whom it is.
    fn name_device(&self, to: &mut Descriptor, described: Name) -> Result<(), CudaError> {
        match &self.described {
            Some(device) => to.set_descriptors(described, &[device]),
            None => Ok(()),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: made by `cudnnCreate` and not destroyed before. There is nobody to tell of a failure.
            unsafe { sys::cudnnDestroy(self.handle) };
        }
    }
}

/// Version of the library, as `cudnnGetVersion` tells it.
pub(crate) fn version() -> Result<usize, CudaError> {
    device::require_cudnn()?;
    // SAFETY: the library is there.
    Ok(unsafe { sys::cudnnGetVersion() })
}

fn check_version() -> Result<(), CudaError> {
    let actual = version()?;
    if actual < LEAST_VERSION {
        return Err(CudaError::CudnnVersion { actual });
    }
    Ok(())
}

/// What cuDNN calls the parts of a convolution in each pass. Input, weight and output are the same tensors in all of them or
/// their gradients.
struct ConvolutionNames {
    operation: Object,
    alpha: Name,
    beta: Name,
    settings: Name,
    input: Name,
    weight: Name,
    output: Name,
}

impl ConvolutionNames {
    fn of(pass: Pass) -> Self {
        match pass {
            Pass::Inference | Pass::Forward => Self {
                operation: Object::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                alpha: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                beta: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
                settings: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                input: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                weight: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                output: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
            },
            Pass::InputGradient => Self {
                operation: Object::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                alpha: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                beta: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
                settings: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                input: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                weight: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                output: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
            },
            Pass::WeightGradient => Self {
                operation: Object::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                alpha: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                beta: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
                settings: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                input: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                weight: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                output: Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
            },
        }
    }
}

/// Names of the tensors of an operation graph.
#[derive(Clone, Copy)]
#[repr(i64)]
enum Tensor {
    Input = 1,
    Weight = 2,
    Bias = 3,
    Residual = 4,
    Output = 5,
    /// And those after it: between operations, never in memory.
    Inner = 6,
}

/// Device addresses of a convolution's tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) input: u64,
    pub(crate) weight: u64,
    pub(crate) bias: u64,
    /// 0 without one.
    pub(crate) residual: u64,
    pub(crate) output: u64,
    pub(crate) workspace: u64,
}

/// A convolution as cuDNN sees it.
pub(crate) struct ConvGraph {
    graph: Descriptor,
    fused: bool,
    residual: bool,
    precision: Precision,
    // The graph refers to these.
    parts: Vec<Descriptor>,
}

impl ConvGraph {
    /// The convolution with bias, residual and ReLU (`fused`), or bare, as gradients always are.
    pub(crate) fn new(session: &Session, signature: &Signature, fused: bool) -> Result<Self, CudaError> {
        let Signature { pass, shape, batch, precision, residual, relu } = *signature;
        let data = data_type(precision.element());
        let flat = shape.is_flat();
        let spatial = |dims: [usize; 3]| dims[usize::from(flat)..].iter().map(|&dim| dim as i64).collect::<Vec<_>>();
        let volume = |n: usize, [c, t, h, w]: [usize; 4]| {
            let mut dims = vec![n as i64, c as i64];
            dims.extend(spatial([t, h, w]));
            dims
        };
        let input = volume(batch, shape.input);
        let weight = {
            let [t, h, w] = shape.kernel;
            volume(shape.output[0], [shape.input[0], t, h, w])
        };
        let output = volume(batch, shape.output);
        let mut bias = vec![1; output.len()];
        bias[1] = output[1];

        let mut parts = Vec::new();
        let mut inner = Tensor::Inner as i64;
        let mut next_inner = || {
            inner += 1;
            tensor(inner - 1, DataType::CUDNN_DATA_FLOAT, &output, true)
        };
        let x = tensor(Tensor::Input as i64, data, &input, false)?;
        let w = tensor(Tensor::Weight as i64, data, &weight, false)?;
        let last = tensor(Tensor::Output as i64, data, &output, false)?;

        let mut conv = Descriptor::new(Object::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?;
        let (pre, post) = (spatial(shape.pre), spatial(shape.post));
        conv.set_data_type(Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, DataType::CUDNN_DATA_FLOAT)?;
        let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION as i32;
        conv.set_enum(Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE, Kind::CUDNN_TYPE_CONVOLUTION_MODE, mode)?;
        conv.set_i64(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &[pre.len() as i64])?;
        conv.set_i64(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, &vec![1; pre.len()])?;
        conv.set_i64(Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, &spatial(shape.stride))?;
        conv.set_i64(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &pre)?;
        conv.set_i64(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &post)?;
        let conv = conv.finalize()?;

        let mut operations = Vec::new();
        let names = ConvolutionNames::of(pass);
        let mut convolution = Descriptor::new(names.operation)?;
        convolution.set_f32(names.alpha, 1.0)?;
        convolution.set_f32(names.beta, 0.0)?;
        convolution.set_descriptors(names.settings, &[&conv])?;
        convolution.set_descriptors(names.input, &[&x])?;
        convolution.set_descriptors(names.weight, &[&w])?;
        if fused {
            let mut sum = next_inner()?;
            convolution.set_descriptors(names.output, &[&sum])?;
            operations.push(convolution.finalize()?);
            // What is added, and whether something follows.
            let mut added = vec![tensor(Tensor::Bias as i64, DataType::CUDNN_DATA_FLOAT, &bias, false)?];
            if residual {
                added.push(tensor(Tensor::Residual as i64, data, &output, false)?);
            }
            let count = added.len();
            for (index, addend) in added.into_iter().enumerate() {
                let is_last = index + 1 == count && !relu;
                let to = if is_last { None } else { Some(next_inner()?) };
                let result = to.as_ref().unwrap_or(&last);
                let mode = sys::cudnnPointwiseMode_t::CUDNN_POINTWISE_ADD;
                operations.push(pointwise(&mut parts, mode, &sum, Some(&addend), result)?);
                parts.push(addend);
                if let Some(to) = to {
                    parts.push(std::mem::replace(&mut sum, to));
                }
            }
            if relu {
                let mode = sys::cudnnPointwiseMode_t::CUDNN_POINTWISE_RELU_FWD;
                operations.push(pointwise(&mut parts, mode, &sum, None, &last)?);
            }
            parts.push(sum);
        } else {
            convolution.set_descriptors(names.output, &[&last])?;
            operations.push(convolution.finalize()?);
        }
        let mut graph = Descriptor::new(Object::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        if session.described.is_none() {
            graph.set_handle(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, session)?;
        }
        graph.set_descriptors(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &operations.iter().collect::<Vec<_>>())?;
        let graph = graph.finalize()?;
        parts.extend([x, w, last, conv]);
        parts.extend(operations);
        Ok(Self { graph, fused, residual, precision, parts })
    }

    /// Engines that cuDNN thinks fit, at most `limit` of its best and as many of those it falls back to: on Hopper the
    /// fastest came only from these.
    pub(crate) fn algorithms(&self, session: &Session, limit: usize) -> Result<Vec<Algorithm>, CudaError> {
        let mut found: Vec<Algorithm> = Vec::new();
        for mode in
            [sys::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_A, sys::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_FALLBACK]
        {
            let mut heuristic = Descriptor::new(Object::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
            heuristic.set_descriptors(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &[&self.graph])?;
            heuristic.set_enum(Name::CUDNN_ATTR_ENGINEHEUR_MODE, Kind::CUDNN_TYPE_HEUR_MODE, mode as i32)?;
            session.name_device(&mut heuristic, Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP)?;
            // A graph that the mode has nothing for.
            let Ok(heuristic) = heuristic.finalize() else { continue };
            let configs = (0..limit)
                .map(|_| Descriptor::new(Object::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR))
                .collect::<Result<Vec<_>, _>>()?;
            let count = heuristic.get_descriptors(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, &configs)?;
            for config in &configs[..count.min(limit)] {
                if let Some(algorithm) = self.describe(config)?
                    && !found.contains(&algorithm)
                {
                    found.push(algorithm);
                }
            }
        }
        Ok(found)
    }

    /// An engine's numbers, unless it computes less exactly than asked.
    fn describe(&self, config: &Descriptor) -> Result<Option<Algorithm>, CudaError> {
        let engine = Descriptor::new(Object::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?;
        let engines = std::slice::from_ref(&engine);
        config.get_descriptors(Name::CUDNN_ATTR_ENGINECFG_ENGINE, engines)?;
        let notes = engine.get_i32s(Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, Kind::CUDNN_TYPE_NUMERICAL_NOTE, 16)?;
        use sys::cudnnBackendNumericalNote_t as Note;
        let mut refused =
            vec![Note::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION, Note::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC];
        if self.precision == Precision::F32 {
            refused.extend([Note::CUDNN_NUMERICAL_NOTE_TENSOR_CORE, Note::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS]);
        }
        if notes.iter().any(|note| refused.iter().any(|refused| *refused as i32 == *note)) {
            return Ok(None);
        }
        let index = engine.get_i64(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX)?;
        let choices = (0..MAX_KNOBS)
            .map(|_| Descriptor::new(Object::CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR))
            .collect::<Result<Vec<_>, _>>()?;
        let count = config.get_descriptors(Name::CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, &choices)?;
        let mut knobs = Vec::new();
        for choice in &choices[..count.min(MAX_KNOBS)] {
            let kind = choice.get_i32s(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, Kind::CUDNN_TYPE_KNOB_TYPE, 1)?;
            let value = choice.get_i64(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE)?;
            knobs.extend(kind.first().map(|&kind| (kind, value)));
        }
        Ok(Some(Algorithm { fused: self.fused, engine: index, knobs }))
    }

    /// As [`plan`](Self::plan); the plan keeps the graph.
    pub(crate) fn into_plan(self, session: &Session, algorithm: &Algorithm) -> Result<ConvPlan, CudaError> {
        let mut plan = self.plan(session, algorithm)?;
        plan.parts.push(self.graph);
        plan.parts.extend(self.parts);
        Ok(plan)
    }

    /// A plan that computes by this algorithm, to be dropped before the graph.
    pub(crate) fn plan(&self, session: &Session, algorithm: &Algorithm) -> Result<ConvPlan, CudaError> {
        let mut engine = Descriptor::new(Object::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?;
        engine.set_descriptors(Name::CUDNN_ATTR_ENGINE_OPERATION_GRAPH, &[&self.graph])?;
        engine.set_i64(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX, &[algorithm.engine])?;
        session.name_device(&mut engine, Name::CUDNN_ATTR_ENGINE_DEVICEPROP)?;
        let engine = engine.finalize()?;
        let mut choices = Vec::new();
        for &(knob, value) in &algorithm.knobs {
            let mut choice = Descriptor::new(Object::CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR)?;
            choice.set_enum(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, Kind::CUDNN_TYPE_KNOB_TYPE, knob)?;
            choice.set_i64(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, &[value])?;
            choices.push(choice.finalize()?);
        }
        let mut config = Descriptor::new(Object::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)?;
        config.set_descriptors(Name::CUDNN_ATTR_ENGINECFG_ENGINE, &[&engine])?;
        if !choices.is_empty() {
            let choices: Vec<&Descriptor> = choices.iter().collect();
            config.set_descriptors(Name::CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, &choices)?;
        }
        let config = config.finalize()?;
        let mut plan = Descriptor::new(Object::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        if session.described.is_none() {
            plan.set_handle(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, session)?;
        }
        plan.set_descriptors(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &[&config])?;
        session.name_device(&mut plan, Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP)?;
        let plan = plan.finalize()?;
        let workspace = plan.get_i64(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
        let workspace = usize::try_from(workspace).unwrap_or(usize::MAX);
        let (fused, residual) = (self.fused, self.fused && self.residual);
        let mut parts = vec![config, engine];
        parts.extend(choices);
        Ok(ConvPlan { plan, fused, residual, workspace, parts })
    }
}

/// A convolution that is ready to run.
pub(crate) struct ConvPlan {
    plan: Descriptor,
    /// Whether bias, residual and ReLU are in it.
    pub(crate) fused: bool,
    residual: bool,
    /// Bytes of scratch memory.
    pub(crate) workspace: usize,
    // The plan refers to these.
    parts: Vec<Descriptor>,
}

impl ConvPlan {
    /// The plan with its tensors in place.
    pub(crate) fn bind(&self, addresses: &Addresses) -> Result<Bound, CudaError> {
        let mut tensors = vec![
            (Tensor::Input, addresses.input),
            (Tensor::Weight, addresses.weight),
            (Tensor::Output, addresses.output),
        ];
        if self.fused {
            tensors.push((Tensor::Bias, addresses.bias));
        }
        if self.residual {
            tensors.push((Tensor::Residual, addresses.residual));
        }
        let mut pack = Descriptor::new(Object::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
        let ids: Vec<i64> = tensors.iter().map(|(tensor, _)| *tensor as i64).collect();
        let pointers: Vec<u64> = tensors.iter().map(|(_, address)| *address).collect();
        pack.set_i64(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &ids)?;
        pack.set_pointers(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &pointers)?;
        pack.set_pointers(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &[addresses.workspace])?;
        Ok(Bound(pack.finalize()?))
    }

    /// Puts the convolution on the session's stream.
    ///
    /// # Safety
    /// `bound` came from this plan's [`bind`](Self::bind); its addresses are device memory of the session's GPU that holds
    /// the tensors of the plan's signature and `workspace` bytes, until the stream has done the work or whatever it was
    /// captured into is gone. Plan and session live as long.
    pub(crate) unsafe fn run(&self, session: &Session, bound: &Bound) -> Result<(), CudaError> {
        // SAFETY: three live objects; the caller vouches for the memory.
        let status = unsafe { sys::cudnnBackendExecute(session.handle, self.plan.0, bound.0.0) };
        check("cudnnBackendExecute", status)
    }
}

/// Where a plan's tensors are.
pub(crate) struct Bound(Descriptor);

fn data_type(element: Element) -> DataType {
    match element {
        Element::F32 => DataType::CUDNN_DATA_FLOAT,
        Element::F16 => DataType::CUDNN_DATA_HALF,
        Element::Bf16 => DataType::CUDNN_DATA_BFLOAT16,
    }
}

/// A channels-last tensor of `dims` (n, c, spatial).
fn tensor(id: i64, data: DataType, dims: &[i64], is_virtual: bool) -> Result<Descriptor, CudaError> {
    let mut strides = vec![1; dims.len()];
    let mut stride = dims[1];
    for axis in (2..dims.len()).rev() {
        strides[axis] = stride;
        stride *= dims[axis];
    }
    strides[0] = stride;
    let mut tensor = Descriptor::new(Object::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
    tensor.set_i64(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[id])?;
    tensor.set_data_type(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, data)?;
    tensor.set_i64(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[TENSOR_ALIGNMENT])?;
    tensor.set_i64(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, dims)?;
    tensor.set_i64(Name::CUDNN_ATTR_TENSOR_STRIDES, &strides)?;
    tensor.set_bool(Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL, is_virtual)?;
    tensor.finalize()
}

/// An operation on each value; its settings join `parts`.
fn pointwise(
    parts: &mut Vec<Descriptor>,
    mode: sys::cudnnPointwiseMode_t,
    x: &Descriptor,
    b: Option<&Descriptor>,
    y: &Descriptor,
) -> Result<Descriptor, CudaError> {
    let mut settings = Descriptor::new(Object::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?;
    settings.set_enum(Name::CUDNN_ATTR_POINTWISE_MODE, Kind::CUDNN_TYPE_POINTWISE_MODE, mode as i32)?;
    settings.set_data_type(Name::CUDNN_ATTR_POINTWISE_MATH_PREC, DataType::CUDNN_DATA_FLOAT)?;
    let settings = settings.finalize()?;
    let mut operation = Descriptor::new(Object::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)?;
    operation.set_descriptors(Name::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, &[&settings])?;
    operation.set_descriptors(Name::CUDNN_ATTR_OPERATION_POINTWISE_XDESC, &[x])?;
    if let Some(b) = b {
        operation.set_descriptors(Name::CUDNN_ATTR_OPERATION_POINTWISE_BDESC, &[b])?;
    }
    operation.set_descriptors(Name::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, &[y])?;
    parts.push(settings);
    operation.finalize()
}

/// An object of cuDNN's.
struct Descriptor(sys::cudnnBackendDescriptor_t);

impl Descriptor {
    fn new(kind: Object) -> Result<Self, CudaError> {
        let mut descriptor = ptr::null_mut();
        // SAFETY: the library is there (a session was made before), and `descriptor` has room for a descriptor.
        check("cudnnBackendCreateDescriptor", unsafe { sys::cudnnBackendCreateDescriptor(kind, &mut descriptor) })?;
        Ok(Self(descriptor))
    }

    fn finalize(self) -> Result<Self, CudaError> {
        // SAFETY: a live descriptor.
        check("cudnnBackendFinalize", unsafe { sys::cudnnBackendFinalize(self.0) })?;
        Ok(self)
    }

    /// # Safety
    /// `values` holds what `kind` stands for.
    unsafe fn set<T>(&mut self, name: Name, kind: Kind, values: &[T]) -> Result<(), CudaError> {
        let elements = values.as_ptr().cast();
        // SAFETY: a live descriptor, and an array of as many elements of the kind, as the caller vouches. cuDNN copies it.
        let status = unsafe { sys::cudnnBackendSetAttribute(self.0, name, kind, values.len() as i64, elements) };
        check("cudnnBackendSetAttribute", status)
    }

    fn set_i64(&mut self, name: Name, values: &[i64]) -> Result<(), CudaError> {
        // SAFETY: 64-bit integers.
        unsafe { self.set(name, Kind::CUDNN_TYPE_INT64, values) }
    }

    fn set_f32(&mut self, name: Name, value: f32) -> Result<(), CudaError> {
        // SAFETY: a float.
        unsafe { self.set(name, Kind::CUDNN_TYPE_FLOAT, &[value]) }
    }

    fn set_bool(&mut self, name: Name, value: bool) -> Result<(), CudaError> {
        // SAFETY: a C++ bool, which is Rust's.
        unsafe { self.set(name, Kind::CUDNN_TYPE_BOOLEAN, &[value]) }
    }

    fn set_data_type(&mut self, name: Name, value: DataType) -> Result<(), CudaError> {
        // SAFETY: the enumeration as C has it.
        unsafe { self.set(name, Kind::CUDNN_TYPE_DATA_TYPE, &[value]) }
    }

    /// A value of one of cuDNN's enumerations, all of which C stores as `int`.
    fn set_enum(&mut self, name: Name, kind: Kind, value: i32) -> Result<(), CudaError> {
        // SAFETY: as wide as C's enumerations; cuDNN checks the value.
        unsafe { self.set(name, kind, &[value]) }
    }

    fn set_descriptors(&mut self, name: Name, values: &[&Descriptor]) -> Result<(), CudaError> {
        let values: Vec<sys::cudnnBackendDescriptor_t> = values.iter().map(|value| value.0).collect();
        // SAFETY: live descriptors.
        unsafe { self.set(name, Kind::CUDNN_TYPE_BACKEND_DESCRIPTOR, &values) }
    }

    fn set_handle(&mut self, name: Name, session: &Session) -> Result<(), CudaError> {
        // SAFETY: a live handle.
        unsafe { self.set(name, Kind::CUDNN_TYPE_HANDLE, &[session.handle]) }
    }

    /// Device addresses, which only a run looks at.
    fn set_pointers(&mut self, name: Name, addresses: &[u64]) -> Result<(), CudaError> {
        let pointers: Vec<*mut c_void> = addresses.iter().map(|&address| address as *mut c_void).collect();
        // SAFETY: pointers, which cuDNN only copies here.
        unsafe { self.set(name, Kind::CUDNN_TYPE_VOID_PTR, &pointers) }
    }

    #[cfg(test)]
    fn set_chars(&mut self, name: Name, text: &str) -> Result<(), CudaError> {
        // SAFETY: bytes.
        unsafe { self.set(name, Kind::CUDNN_TYPE_CHAR, text.as_bytes()) }
    }

    /// Reads up to `values.len()` elements. Returns how many there are.
    ///
    /// # Safety
    /// `values` holds what `kind` stands for.
    unsafe fn get<T>(&self, name: Name, kind: Kind, values: &mut [T]) -> Result<usize, CudaError> {
        let (room, mut count) = (values.len() as i64, 0);
        let elements = values.as_mut_ptr().cast();
        // SAFETY: a live descriptor, and room for as many elements of the kind, as the caller vouches.
        let status = unsafe { sys::cudnnBackendGetAttribute(self.0, name, kind, room, &mut count, elements) };
        check("cudnnBackendGetAttribute", status)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    fn get_i64(&self, name: Name) -> Result<i64, CudaError> {
        let mut value = [0];
        // SAFETY: a 64-bit integer.
        unsafe { self.get(name, Kind::CUDNN_TYPE_INT64, &mut value)? };
        Ok(value[0])
    }

    /// Values of an enumeration; as integers, because newer versions of cuDNN have values that this program has no names
    /// for.
    fn get_i32s(&self, name: Name, kind: Kind, limit: usize) -> Result<Vec<i32>, CudaError> {
        let mut values = vec![0i32; limit];
        // SAFETY: as wide as C's enumerations.
        let count = unsafe { self.get(name, kind, &mut values)? };
        values.truncate(count);
        Ok(values)
    }

    /// Fills descriptors of the right type that were made before. Returns how many there are.
    fn get_descriptors(&self, name: Name, values: &[Descriptor]) -> Result<usize, CudaError> {
        let mut values: Vec<sys::cudnnBackendDescriptor_t> = values.iter().map(|value| value.0).collect();
        // SAFETY: live descriptors, which cuDNN fills and does not replace.
        unsafe { self.get(name, Kind::CUDNN_TYPE_BACKEND_DESCRIPTOR, &mut values) }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by `cudnnBackendCreateDescriptor` and not destroyed before. There is nobody to tell of a failure.
        unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}

fn check(call: &'static str, status: Status) -> Result<(), CudaError> {
    if status == Status::CUDNN_STATUS_SUCCESS {
        return Ok(());
    }
    let mut text = [0u8; 512];
    // SAFETY: the buffer has as many bytes as it says; cuDNN ends what it writes with a zero.
    unsafe { sys::cudnnGetLastErrorString(text.as_mut_ptr().cast(), text.len()) };
    let text =
        CStr::from_bytes_until_nul(&text).map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned());
    let message = if text.is_empty() { text } else { format!(" ({text})") };
    Err(CudaError::Cudnn { call, status: format!("{status:?}"), message })
}

#[cfg(test)]
mod tests {
    use super::super::lower::{Network, lower};
    use super::super::rearrange::StemForm;
    use super::super::testing::residual_network;
    use super::*;
    use crate::graph::passes;

    /// An H100 as cuDNN describes it.
    const H100: &str = include_str!("h100.json");

    fn session() -> Option<Session> {
        match Session::described(H100) {
            Ok(session) => Some(session),
            Err(error) => {
                eprintln!("skipped: cuDNN makes no plans here: {error}");
                None
            }
        }
    }

    fn signatures(network: &Network, batch: usize, precision: Precision) -> Vec<Signature> {
        let mut all: Vec<Signature> = Vec::new();
        for conv in network.convs() {
            let (residual, relu) = (conv.residual.is_some(), conv.relu);
            let pass = Pass::Inference;
            let signature = Signature { pass, shape: conv.shape, batch, precision, residual, relu };
            if !all.contains(&signature) {
                all.push(signature);
            }
        }
        all
    }

    /// The first algorithm of which a plan can be made, compiled as for a run.
    fn first_plan(session: &Session, signature: &Signature, fused: bool) -> Option<(Algorithm, ConvPlan)> {
        let graph = ConvGraph::new(session, signature, fused).ok()?;
        let algorithms = graph.algorithms(session, 6).unwrap();
        println!("{signature}: {} algorithms", algorithms.len());
        algorithms.into_iter().find_map(|algorithm| Some((algorithm.clone(), graph.plan(session, &algorithm).ok()?)))
    }

    #[test]
    fn every_convolution_of_a_3d_resnet_has_a_fused_plan_on_an_h100() {
        let Some(session) = session() else { return };
        let graph = passes::prepare(residual_network([3, 16, 112, 112], [64, 128, 256, 512]));
        for form in StemForm::ALL {
            let network = lower(&graph, Element::Bf16, form, 64).unwrap();
            let convs = signatures(&network, 64, Precision::Bf16);
            // Of the stem's forms only the first layer differs.
            let count = if form == StemForm::Padded { convs.len() } else { 1 };
            for signature in &convs[..count] {
                let (algorithm, plan) = first_plan(&session, signature, true).expect("a plan that fuses");
                assert!(algorithm.fused && plan.fused && plan.residual == signature.residual, "{signature}");
            }
        }
    }

    #[test]
    fn half_floats_rounded_floats_and_single_clips_have_plans_too() {
        let Some(session) = session() else { return };
        let graph = passes::prepare(residual_network([3, 16, 112, 112], [64, 128, 256, 512]));
        for (precision, batch) in [(Precision::F16, 8), (Precision::Tf32, 8), (Precision::Bf16, 1)] {
            let network = lower(&graph, precision.element(), StemForm::Phases, batch).unwrap();
            // The stem, one with time and one of pictures.
            let convs = signatures(&network, batch, precision);
            for signature in [&convs[0], &convs[2], &convs[convs.len() - 1]] {
                let plan = [true, false].into_iter().find_map(|fused| first_plan(&session, signature, fused));
                assert!(plan.is_some(), "{signature}");
            }
        }
    }

    #[test]
    fn an_algorithm_is_itself_after_a_way_through_text() {
        let algorithm = Algorithm { fused: true, engine: 38, knobs: vec![(2, 1), (40, -3)] };
        assert_eq!(algorithm.to_string(), "fused:38:2=1:40=-3");
        assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
        for broken in ["", "fused", "fused:x", "other:1", "plain:1:2", "plain:1:2=y"] {
            assert_eq!(broken.parse::<Algorithm>(), Err(()), "{broken}");
        }
    }

    /// The passes of training, of all convolutions of a network.
    fn passes(network: &Network, batch: usize, precision: Precision) -> Vec<Signature> {
        let convs = signatures(network, batch, precision);
        let bare = convs.into_iter().map(|signature| Signature { residual: false, relu: false, ..signature });
        let passes = [Pass::Forward, Pass::InputGradient, Pass::WeightGradient];
        bare.flat_map(|signature| passes.map(|pass| Signature { pass, ..signature })).collect()
    }

    #[test]
    fn gradients_have_plans_that_give_the_same_in_every_run() {
        let Some(session) = session() else { return };
        let graph = passes::prepare(residual_network([3, 16, 112, 112], [64, 128, 256, 512]));
        for (precision, batch) in
            [(Precision::Bf16, 64), (Precision::F16, 8), (Precision::Tf32, 8), (Precision::F32, 8)]
        {
            let network = lower(&graph, precision.element(), StemForm::Phases, batch).unwrap();
            for signature in passes(&network, batch, precision) {
                assert!(first_plan(&session, &signature, false).is_some(), "{signature}");
            }
        }
    }

    #[test]
    fn exact_floats_need_no_tensor_cores() {
        let Some(session) = session() else { return };
        let graph = passes::prepare(residual_network([3, 16, 112, 112], [64, 128, 256, 512]));
        let network = lower(&graph, Element::F32, StemForm::Padded, 8).unwrap();
        for signature in signatures(&network, 8, Precision::F32) {
            let plan = [true, false].into_iter().find_map(|fused| first_plan(&session, &signature, fused));
            assert!(plan.is_some(), "{signature}");
        }
    }
}
