//! From a graph to steps for a GPU: layouts, exact rearrangements of convolutions, packed weights, memory.
//!
//! Nothing here knows a device. Four rearrangements give the same sums with less work or with better kernels:
//!
//! * Taps that meet only padding, whatever the output's place, are cut off.
//! * **Folding**: where the kernel is at least as long as the input (layer3 and layer4 of a 3D ResNet), nearly every output
//!   frame meets every input frame. Time becomes part of the channels, `(h, w, t, c)`, and the convolution one of pictures
//!   without time: two frames take 4 products instead of 6, one frame 1 instead of 3.
//! * A 1x1x1 convolution is one of pictures in either layout.
//! * The stem's 3 channels are too few for tensor cores. See [`StemForm`].

use super::CudaError;
use super::rearrange::{LoadShape, POINTWISE, Rearranged, STEM_CHANNELS, Source, StemForm, padded};
use super::shape::{ConvShape, Element};
use crate::cpu::Shape;
use crate::geometry::Window;
use crate::graph::{Conv, Graph, Linear, Node, NodeId, Operation, Parameter};

/// Alignment of weights and activations.
const ALIGNMENT: usize = 256;
/// Kernels count their work in 32 bits.
const WORK_LIMIT: usize = 1 << 31;

/// Where time stands in an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `(t, h, w, c)`
    Plain,
    /// `(h, w, t, c)`
    Folded,
}

/// Number of a value in [`Network::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ValueId(pub(crate) usize);

/// A range of [`Network::constants`], in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Constant {
    pub(crate) offset: usize,
}

/// Memory of an activation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Bytes before it for each clip of the largest batch.
    pub(crate) offset: usize,
    /// Bytes of one clip.
    pub(crate) bytes: usize,
}

/// Mirrors `Pool` in kernels.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolShape {
    pub(crate) channels: i32,
    pub(crate) input: [i32; 3],
    pub(crate) output: [i32; 3],
    pub(crate) kernel: [i32; 3],
    pub(crate) stride: [i32; 3],
    pub(crate) padding: [i32; 3],
}

impl PoolShape {
    /// Of a volume with so many stored channels, (t, h, w) of input and output.
    pub(super) fn new(stored: usize, input: [usize; 3], output: [usize; 3], window: &Window) -> Self {
        let dims = |dims: [usize; 3]| dims.map(|dim| dim as i32);
        Self {
            channels: stored as i32,
            input: dims(input),
            output: dims(output),
            kernel: dims(window.kernel),
            stride: dims(window.stride),
            padding: dims(window.padding),
        }
    }
}

/// Mirrors `Gather` in kernels.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct GatherShape {
    pub(crate) channels_in: i32,
    pub(crate) channels: i32,
    pub(crate) dims: [i32; 3],
    /// Elements between clips, frames, rows and columns.
    pub(crate) from: [i32; 4],
    pub(crate) to: [i32; 4],
}

impl GatherShape {
    /// From every `stride`-th place of an activation to another one, each with its stored channels and layout.
    pub(super) fn new(
        (from, stored, layout): (Shape, usize, Layout),
        stride: [usize; 3],
        (to, stored_to, layout_to): (Shape, usize, Layout),
    ) -> Self {
        let [n, t, h, w] = strides(from, stored, layout);
        Self {
            channels_in: stored as i32,
            channels: stored_to as i32,
            dims: [to.t, to.h, to.w].map(|dim| dim as i32),
            from: [n, t * stride[0], h * stride[1], w * stride[2]].map(|stride| stride as i32),
            to: strides(to, stored_to, layout_to).map(|stride| stride as i32),
        }
    }
}

/// A convolution with its ends.
#[derive(Clone, Debug)]
pub(crate) struct ConvStep {
    pub(crate) name: String,
    pub(crate) shape: ConvShape,
    pub(crate) input: ValueId,
    pub(crate) output: ValueId,
    pub(crate) residual: Option<ValueId>,
    /// (k, kt, kh, kw, c)
    pub(crate) weight: Constant,
    /// f32, one a stored channel.
    pub(crate) bias: Constant,
    pub(crate) relu: bool,
}

/// One step of a network.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Load {
        output: ValueId,
        shape: LoadShape,
    },
    Conv(ConvStep),
    MaxPool {
        input: ValueId,
        output: ValueId,
        shape: PoolShape,
    },
    Gather {
        input: ValueId,
        output: ValueId,
        shape: GatherShape,
    },
    /// The mean over `rows` rows of `stored` channels, f32 after it.
    Mean {
        input: ValueId,
        output: ValueId,
        rows: usize,
        stored: usize,
        channels: usize,
    },
    /// f32; the weight is (in, out).
    Linear {
        input: ValueId,
        output: ValueId,
        weight: Constant,
        bias: Constant,
        inputs: usize,
        outputs: usize,
    },
    /// To f32 (c, t, h, w).
    Store {
        input: ValueId,
        output: ValueId,
        channels: usize,
        stored: usize,
        positions: usize,
    },
}

impl Step {
    pub(crate) fn output(&self) -> ValueId {
        match self {
            Self::Conv(conv) => conv.output,
            Self::Load { output, .. }
            | Self::MaxPool { output, .. }
            | Self::Gather { output, .. }
            | Self::Mean { output, .. }
            | Self::Linear { output, .. }
            | Self::Store { output, .. } => *output,
        }
    }

    pub(crate) fn inputs(&self) -> impl Iterator<Item = ValueId> {
        let (first, second) = match self {
            Self::Load { .. } => (None, None),
            Self::Conv(conv) => (Some(conv.input), conv.residual),
            Self::MaxPool { input, .. }
            | Self::Gather { input, .. }
            | Self::Mean { input, .. }
            | Self::Linear { input, .. }
            | Self::Store { input, .. } => (Some(*input), None),
        };
        first.into_iter().chain(second)
    }
}

/// A network as steps over memory that is laid out.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) input: [usize; 4],
    pub(crate) steps: Vec<Step>,
    pub(crate) values: Vec<Memory>,
    /// Bytes of one clip's activations.
    pub(crate) clip_bytes: usize,
    /// Weights and biases.
    pub(crate) constants: Vec<u8>,
    /// For each output where it is, f32, and the values of one clip.
    pub(crate) outputs: Vec<(ValueId, [usize; 4])>,
    /// Multiply-adds of a clip that direct convolution takes, those with padding included.
    pub(crate) multiply_adds: u64,
}

impl Network {
    pub(crate) fn convs(&self) -> impl Iterator<Item = &ConvStep> {
        self.steps.iter().filter_map(|step| if let Step::Conv(conv) = step { Some(conv) } else { None })
    }

    /// The step that reads the clips.
    pub(crate) fn load(&self) -> &LoadShape {
        let load =
            self.steps.iter().find_map(|step| if let Step::Load { shape, .. } = step { Some(shape) } else { None });
        load.expect("the first step of a network loads its input")
    }
}

/// Lowers what the outputs of a [prepared](crate::graph::passes::prepare) graph need, for batches of up to `max_batch` clips.
pub(crate) fn lower(graph: &Graph, element: Element, form: StemForm, max_batch: usize) -> Result<Network, CudaError> {
    for parameter in graph.parameters() {
        parameter.values()?;
    }
    let needed = graph.last_reads();
    let stem = stem_node(graph);
    let mut lowering = Lowering {
        element,
        form: stem.map(|_| form),
        made: vec![Vec::new(); graph.nodes.len()],
        steps: Vec::new(),
        bytes: Vec::new(),
        constants: Vec::new(),
        multiply_adds: 0,
    };
    for (index, node) in graph.nodes.iter().enumerate() {
        if needed[index].is_some() {
            lowering.add(index, node, graph)?;
        }
    }
    let mut stored = Vec::new();
    for &output in &graph.outputs {
        let shape = graph.nodes[output.0].shape;
        stored.push((lowering.stored(output, shape), shape.dims()));
    }
    lowering.finish(graph.nodes[0].shape.dims(), stored, max_batch)
}

/// The convolution that is the only reader of an input of few channels.
pub(crate) fn stem_node(graph: &Graph) -> Option<NodeId> {
    let readers: Vec<(NodeId, &Node)> =
        graph.nodes().filter(|(_, node)| node.inputs.contains(&graph.input())).collect();
    let &[(id, only)] = readers.as_slice() else { return None };
    let is_conv = matches!(&only.operation, Operation::Conv(Conv { groups: 1, .. }));
    let reads_once = only.inputs.iter().filter(|input| **input == graph.input()).count() == 1;
    let few_channels = graph.nodes[0].shape.c <= STEM_CHANNELS;
    (is_conv && reads_once && few_channels && !graph.outputs.contains(&graph.input())).then_some(id)
}

/// An activation that has been made.
#[derive(Clone, Copy, Debug)]
enum Value {
    Activation {
        id: ValueId,
        shape: Shape,
        stored: usize,
        layout: Layout,
    },
    /// f32, one position a clip.
    Vector {
        id: ValueId,
    },
}

struct Lowering {
    element: Element,
    /// For a network whose input only a stem reads.
    form: Option<StemForm>,
    /// What has been made of each node, in one or both layouts.
    made: Vec<Vec<Value>>,
    steps: Vec<Step>,
    /// Of each value, for one clip.
    bytes: Vec<usize>,
    constants: Vec<u8>,
    multiply_adds: u64,
}

impl Lowering {
    fn add(&mut self, index: usize, node: &Node, graph: &Graph) -> Result<(), CudaError> {
        let (name, shape) = (node.name.as_str(), node.shape);
        self.multiply_adds += node.multiply_adds();
        match &node.operation {
            Operation::Input => {
                // A stem loads it in its own way.
                if self.form.is_none() {
                    let load = LoadShape::whole(shape, padded(shape.c));
                    let value = self.load(shape, load);
                    self.made[index].push(value);
                }
            }
            Operation::Conv(conv) => {
                if conv.groups > 1 {
                    return Err(unsupported(name, "a convolution in groups"));
                }
                let Conv { window, weight, bias, residual, nonlinearity, .. } = conv;
                let (input, relu) = (node.inputs[0], nonlinearity.is_some());
                let from = graph.nodes[input.0].shape;
                let source = Source { from, to: shape, window: *window };
                let stem = self.form.filter(|_| input == graph.input());
                let (conv, taken, layout) = match stem {
                    Some(form) => {
                        let (load, conv) = source.stem(form);
                        (conv, self.load(from, load), Layout::Plain)
                    }
                    None => self.rearrange(name, input, &source)?,
                };
                let Value::Activation { id: input, .. } = taken else {
                    return Err(unsupported(name, "a convolution after a pooling over everything"));
                };
                let residual = match residual {
                    None => None,
                    Some(stride) => Some(self.residual(name, node.inputs[1], *stride, shape, layout)?),
                };
                let output = self.value(shape.t * shape.h * shape.w * padded(shape.c) * self.element.bytes());
                let bias = bias
                    .as_ref()
                    .map(Parameter::values)
                    .transpose()?
                    .map_or_else(|| vec![0.0; shape.c], <[f32]>::to_vec);
                let (weight, bias) = (self.pack(&conv, weight.values()?), self.floats(&conv.biases(&bias)));
                let shape_of_conv = conv.shape;
                let name = name.to_owned();
                self.steps.push(Step::Conv(ConvStep {
                    name,
                    shape: shape_of_conv,
                    input,
                    output,
                    residual,
                    weight,
                    bias,
                    relu,
                }));
                self.made[index].push(Value::Activation { id: output, shape, stored: padded(shape.c), layout });
            }
            Operation::MaxPool(window) => {
                let (id, from, stored) = self.want(name, node.inputs[0], Layout::Plain)?;
                let output = self.value(shape.t * shape.h * shape.w * stored * self.element.bytes());
                let pool = PoolShape::new(stored, [from.t, from.h, from.w], [shape.t, shape.h, shape.w], window);
                self.steps.push(Step::MaxPool { input: id, output, shape: pool });
                self.made[index].push(Value::Activation { id: output, shape, stored, layout: Layout::Plain });
            }
            Operation::GlobalAvgPool => {
                let id = self.mean(name, node.inputs[0])?;
                self.made[index].push(Value::Vector { id });
            }
            Operation::Linear(Linear { weight, bias: Some(bias), nonlinearity: None }) => {
                let (weight, bias) = (weight.values()?, bias.values()?);
                let (inputs, outputs) = (weight.len() / bias.len(), bias.len());
                let input = node.inputs[0];
                let id = match self.made[input.0].first() {
                    Some(Value::Vector { id }) => *id,
                    _ => self.mean(name, input)?,
                };
                let mut transposed = vec![0.0; weight.len()];
                for (out, row) in weight.chunks_exact(inputs).enumerate() {
                    for (input, value) in row.iter().enumerate() {
                        transposed[input * outputs + out] = *value;
                    }
                }
                let (weight, bias) = (self.floats(&transposed), self.floats(bias));
                let output = self.value(4 * outputs);
                self.steps.push(Step::Linear { input: id, output, weight, bias, inputs, outputs });
                self.made[index].push(Value::Vector { id: output });
            }
            _ => return Err(unsupported(name, "an operation that GPUs do not compute yet")),
        }
        Ok(())
    }

    /// The convolution as it is computed, what it reads, and the layout of its output.
    fn rearrange(
        &mut self,
        name: &str,
        input: NodeId,
        source: &Source,
    ) -> Result<(Rearranged, Value, Layout), CudaError> {
        let Source { from, window, .. } = source;
        let taps = source.taps(0);
        let (conv, layout) = if *window == POINTWISE {
            // Either layout will do.
            let layout = match self.made[input.0].first() {
                Some(Value::Activation { layout, .. }) => *layout,
                _ => Layout::Plain,
            };
            (source.pointwise(), layout)
        } else if from.t <= taps.1 - taps.0 {
            (source.folded(), Layout::Folded)
        } else {
            (source.plain(), Layout::Plain)
        };
        let (id, shape, stored) = self.want(name, input, layout)?;
        Ok((conv, Value::Activation { id, shape, stored, layout }, layout))
    }

    /// An activation in a layout, rearranged if it is not there yet.
    fn want(&mut self, name: &str, node: NodeId, wanted: Layout) -> Result<(ValueId, Shape, usize), CudaError> {
        let mut other = None;
        for value in &self.made[node.0] {
            let &Value::Activation { id, shape, stored, layout } = value else {
                return Err(unsupported(name, "a layer of activations after a pooling over everything"));
            };
            if layout == wanted || shape.t == 1 {
                return Ok((id, shape, stored));
            }
            other = Some((id, shape, stored, layout));
        }
        let (id, shape, stored, layout) = other.expect("layers only read nodes that were lowered before them");
        let to = self.gather(id, shape, stored, layout, [1; 3], (shape, stored), wanted);
        self.made[node.0].push(Value::Activation { id: to, shape, stored, layout: wanted });
        Ok((to, shape, stored))
    }

    fn residual(
        &mut self,
        name: &str,
        node: NodeId,
        stride: [usize; 3],
        to: Shape,
        layout: Layout,
    ) -> Result<ValueId, CudaError> {
        let same = |value: &Value| matches!(value, Value::Activation { stored, .. } if *stored == padded(to.c));
        if stride == [1; 3] && self.made[node.0].iter().all(same) {
            return Ok(self.want(name, node, layout)?.0);
        }
        match self.made[node.0].first() {
            Some(&Value::Activation { id, shape, stored, layout: from }) => {
                Ok(self.gather(id, shape, stored, from, stride, (to, padded(to.c)), layout))
            }
            _ => Err(unsupported(name, "a residual after a pooling over everything")),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "both ends of a copy")]
    fn gather(
        &mut self,
        input: ValueId,
        from: Shape,
        stored: usize,
        layout: Layout,
        stride: [usize; 3],
        (to, stored_to): (Shape, usize),
        layout_to: Layout,
    ) -> ValueId {
        let output = self.value(to.t * to.h * to.w * stored_to * self.element.bytes());
        let shape = GatherShape::new((from, stored, layout), stride, (to, stored_to, layout_to));
        self.steps.push(Step::Gather { input, output, shape });
        output
    }

    fn mean(&mut self, name: &str, node: NodeId) -> Result<ValueId, CudaError> {
        // The order of positions does not matter, so either layout will do.
        let Some(&Value::Activation { id, shape, stored, .. }) = self.made[node.0].first() else {
            return Err(unsupported(name, "a pooling after a pooling over everything"));
        };
        let output = self.value(4 * shape.c);
        let rows = shape.t * shape.h * shape.w;
        self.steps.push(Step::Mean { input: id, output, rows, stored, channels: shape.c });
        Ok(output)
    }

    /// A node as f32 (c, t, h, w).
    fn stored(&mut self, node: NodeId, shape: Shape) -> ValueId {
        if let Some(Value::Vector { id }) = self.made[node.0].first() {
            return *id;
        }
        let (input, _, stored) = self.want("output", node, Layout::Plain).expect("it is no vector");
        let output = self.value(4 * shape.len());
        let positions = shape.t * shape.h * shape.w;
        self.steps.push(Step::Store { input, output, channels: shape.c, stored, positions });
        output
    }

    fn load(&mut self, from: Shape, shape: LoadShape) -> Value {
        let stored = shape.stored_c as usize;
        let output = self.value(from.t * from.h * shape.stored_w as usize * stored * self.element.bytes());
        self.steps.push(Step::Load { output, shape });
        Value::Activation { id: output, shape: from, stored, layout: Layout::Plain }
    }

    fn value(&mut self, bytes: usize) -> ValueId {
        self.bytes.push(bytes.next_multiple_of(ALIGNMENT));
        ValueId(self.bytes.len() - 1)
    }

    fn pack(&mut self, conv: &Rearranged, weight: &[f32]) -> Constant {
        let offset = self.align();
        let ConvShape { input: [c, ..], output: [k, ..], kernel: [kt, kh, kw], .. } = conv.shape;
        for k in 0..k {
            for tap in 0..kt * kh * kw {
                let place = [tap / (kh * kw), tap / kw % kh, tap % kw];
                for c in 0..c {
                    let value = (conv.source)(k, place, c).map_or(0.0, |index| weight[index]);
                    self.element.encode(value, &mut self.constants);
                }
            }
        }
        Constant { offset }
    }

    fn floats(&mut self, values: &[f32]) -> Constant {
        let offset = self.align();
        self.constants.extend(values.iter().flat_map(|value| value.to_ne_bytes()));
        Constant { offset }
    }

    fn align(&mut self) -> usize {
        self.constants.resize(self.constants.len().next_multiple_of(ALIGNMENT), 0);
        self.constants.len()
    }

    fn finish(
        self,
        input: [usize; 4],
        outputs: Vec<(ValueId, [usize; 4])>,
        max_batch: usize,
    ) -> Result<Network, CudaError> {
        let largest = self.bytes.iter().max().copied().unwrap_or(0) / self.element.bytes();
        if largest.saturating_mul(max_batch) >= WORK_LIMIT {
            return Err(unsupported("the network", "an activation of 2^31 values in a batch"));
        }
        let (offsets, clip_bytes) = place(&self.bytes, &self.steps, &outputs);
        let values = offsets.into_iter().zip(self.bytes).map(|(offset, bytes)| Memory { offset, bytes }).collect();
        let Self { steps, constants, multiply_adds, .. } = self;
        Ok(Network { input, steps, values, clip_bytes, constants, outputs, multiply_adds })
    }
}

/// Elements between clips, frames, rows and columns.
fn strides(shape: Shape, stored: usize, layout: Layout) -> [usize; 4] {
    let clip = shape.t * shape.h * shape.w * stored;
    match layout {
        Layout::Plain => [clip, shape.h * shape.w * stored, shape.w * stored, stored],
        Layout::Folded => [clip, stored, shape.w * shape.t * stored, shape.t * stored],
    }
}

fn unsupported(layer: &str, reason: &'static str) -> CudaError {
    CudaError::Unsupported { layer: layer.to_owned(), reason }
}

/// Gives each value a place for the time that it is needed. Returns the places and the bytes of all together.
fn place(bytes: &[usize], steps: &[Step], outputs: &[(ValueId, [usize; 4])]) -> (Vec<usize>, usize) {
    let mut last = vec![0; bytes.len()];
    for (index, step) in steps.iter().enumerate() {
        step.inputs().for_each(|value| last[value.0] = index);
    }
    outputs.iter().for_each(|(value, _)| last[value.0] = steps.len());
    let mut offsets = vec![0; bytes.len()];
    // Taken ranges, by their place.
    let mut taken: Vec<(usize, usize, usize)> = Vec::new();
    let mut end = 0;
    for (index, step) in steps.iter().enumerate() {
        taken.retain(|&(_, _, value)| last[value] >= index);
        let value = step.output().0;
        let mut offset = 0;
        for &(from, to, _) in &taken {
            if offset + bytes[value] <= from {
                break;
            }
            offset = to;
        }
        offsets[value] = offset;
        end = end.max(offset + bytes[value]);
        let at = taken.partition_point(|&(from, ..)| from < offset);
        taken.insert(at, (offset, offset + bytes[value], value));
    }
    (offsets, end)
}
