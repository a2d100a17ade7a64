//! From a graph to a program: algorithms, memory, transformed weights.

use super::{Algorithm, Layer, Plan, PlanError, PlanOptions};
use crate::cpu::arrange::{Concat, Flatten, StridedPick};
use crate::cpu::depthwise::Depthwise;
use crate::cpu::direct::{Direct, Storage};
use crate::cpu::elementwise::{Elementwise, Join};
use crate::cpu::input::{Layout, LoadInput};
use crate::cpu::linear::Linear;
use crate::cpu::memory::{Arena, Slot};
use crate::cpu::output::StoreOutput;
use crate::cpu::pooling::{AvgPool, GlobalAvgPool, MaxPool};
use crate::cpu::program::{self, Epilogue, Program, ResidualSource, Step};
use crate::cpu::stem::Stem;
use crate::cpu::team::Team;
use crate::cpu::winograd::Winograd;
use crate::cpu::{CHANNEL_BLOCK, InstructionSet, Shape};
use crate::graph::{Conv, Graph, Node, NodeId, Operation, Parameter, passes};

const MAX_THREADS: usize = 1024;
const MAX_BATCH: usize = 4096;

/// Reading weights from memory, by two cores; behind the choice of algorithms, as [`products_per_second`].
const WEIGHT_BYTES_PER_SECOND: f64 = 25e9;

/// Multiply-adds of two cores, with what goes on around them. Measured on Zen 3, Zen 4 and Sapphire Rapids; only the
/// ratio to [`WEIGHT_BYTES_PER_SECOND`] matters.
fn products_per_second(instruction_set: InstructionSet) -> f64 {
    match instruction_set.lanes() {
        16 => 160e9,
        _ => 90e9,
    }
}

impl Graph {
    /// Compiles what the outputs need for CPUs. The graph is [bound](Graph::bind).
    pub fn compile(self, options: PlanOptions) -> Result<Plan, PlanError> {
        check_option("threads", options.threads, MAX_THREADS)?;
        for parameter in self.parameters() {
            parameter.values()?;
        }
        let team = Team::new(options.threads)?;
        let max_batch = options.max_batch;
        let Compiled { steps, layers, arena_len, input, outputs, instruction_set, team } =
            lower(passes::prepare(self), options, Some(team))?;
        let team = team.expect("handed in");
        Ok(Plan {
            program: Program::new(steps, arena_len, team, instruction_set, max_batch),
            layers,
            input: input.dims(),
            outputs: outputs.iter().map(Shape::dims).collect(),
            instruction_set,
            max_batch,
        })
    }

    /// What [`Plan::memory_bytes`] will be, found without taking that memory. Needs no values of parameters.
    pub fn memory_bytes(&self, options: PlanOptions) -> Result<usize, PlanError> {
        check_option("threads", options.threads, MAX_THREADS)?;
        let threads = options.threads;
        let Compiled { steps, arena_len, .. } = lower(passes::prepare(self.without_values()), options, None)?;
        Ok(program::memory_bytes(&steps, arena_len, threads))
    }
}

/// The steps of a plan; their weights are left out where no `team` packs them.
fn lower(mut graph: Graph, options: PlanOptions, team: Option<Team>) -> Result<Compiled, PlanError> {
    let PlanOptions { threads, max_batch, instruction_set, winograd } = options;
    check_option("max_batch", max_batch, MAX_BATCH)?;
    check_option("outputs", graph.outputs().len(), usize::MAX)?;
    let instruction_set = instruction_set.unwrap_or_else(InstructionSet::detect);
    if !instruction_set.is_available() {
        return Err(PlanError::InstructionSet(instruction_set));
    }
    let input = graph.nodes[0].shape;
    let input_layout = input_layout(&graph, winograd);
    let pooled = if input_layout == Layout::Phases { merge_pooling(&mut graph) } else { None };
    let last_reads = graph.last_reads();
    let mut compiler = Compiler {
        team,
        threads,
        arena: Arena::new(max_batch),
        lanes: instruction_set.lanes(),
        products_per_second: products_per_second(instruction_set),
        winograd,
        max_batch,
        slots: Vec::new(),
        steps: Vec::new(),
        layers: Vec::new(),
        input_layout,
    };
    let output_nodes = graph.outputs;
    let output_shapes: Vec<Shape> = output_nodes.iter().map(|output| graph.nodes[output.0].shape).collect();
    for (index, node) in graph.nodes.into_iter().enumerate() {
        if last_reads[index].is_none() {
            compiler.slots.push(None);
            continue;
        }
        let mut inputs = node.inputs.clone();
        let unpooled = pooled.filter(|&(merged, _)| merged == index).map(|(_, shape)| shape);
        compiler.add(node, unpooled);
        inputs.sort_unstable();
        inputs.dedup();
        for input in inputs {
            if last_reads[input.0] == Some(index) {
                compiler.free(input);
            }
        }
    }
    for (index, (&node, &shape)) in output_nodes.iter().zip(&output_shapes).enumerate() {
        let step = StoreOutput::new(compiler.slot(node), index);
        compiler.push(format!("output {index}"), Algorithm::Store, step, shape, shape, 0);
    }
    let Compiler { team, arena, steps, layers, .. } = compiler;
    Ok(Compiled { steps, layers, arena_len: arena.len(), input, outputs: output_shapes, instruction_set, team })
}

/// Makes one layer of a convolution of the input and the max pooling that alone reads it, where one kernel does both.
/// Returns the pooling's node, which has become the convolution, and the shape before pooling.
fn merge_pooling(graph: &mut Graph) -> Option<(usize, Shape)> {
    let first = graph.nodes.iter().position(|node| {
        matches!(&node.operation, Operation::Conv(conv) if conv.residual.is_none()) && node.inputs == [NodeId(0)]
    })?;
    let mut readers = (0..graph.nodes.len()).filter(|&i| graph.nodes[i].inputs.contains(&NodeId(first)));
    let (Some(only), None) = (readers.next(), readers.next()) else { return None };
    match &graph.nodes[only].operation {
        Operation::MaxPool(window) if Stem::pools(window) && !graph.outputs.contains(&NodeId(first)) => {}
        _ => return None,
    }
    let name = format!("{} + {}", graph.nodes[first].name, graph.nodes[only].name);
    // Nobody reads the node any more, so it is not compiled.
    let convolution = std::mem::replace(&mut graph.nodes[first].operation, Operation::Input);
    let unpooled = graph.nodes[first].shape;
    let node = &mut graph.nodes[only];
    (node.name, node.operation, node.inputs) = (name, convolution, vec![NodeId(0)]);
    Some((only, unpooled))
}

/// A few-channel input that only one convolution reads is stored as that one reads it fastest.
fn input_layout(graph: &Graph, winograd: bool) -> Layout {
    let from = graph.nodes[0].shape;
    let readers: Vec<&Node> = graph.nodes.iter().filter(|node| node.inputs.contains(&NodeId(0))).collect();
    let &[only] = readers.as_slice() else { return Layout::Activation };
    let Operation::Conv(Conv { window, groups: 1, .. }) = &only.operation else { return Layout::Activation };
    let reads_once = only.inputs[0] == NodeId(0) && !only.inputs[1..].contains(&NodeId(0));
    if from.c >= CHANNEL_BLOCK || !reads_once || graph.outputs.contains(&NodeId(0)) {
        return Layout::Activation;
    }
    if winograd && Stem::serves(window, from, only.shape) {
        return Layout::Phases;
    }
    Layout::Haloed([window.padding, window.padding_after].map(|[_, h, w]| [h, w]))
}

/// What a plan is made of.
struct Compiled {
    steps: Vec<Box<dyn Step>>,
    layers: Vec<Layer>,
    /// Floats that the steps' slots need.
    arena_len: usize,
    input: Shape,
    outputs: Vec<Shape>,
    instruction_set: InstructionSet,
    team: Option<Team>,
}

struct Compiler {
    /// Packs weights; without it steps get none.
    team: Option<Team>,
    threads: usize,
    arena: Arena,
    lanes: usize,
    products_per_second: f64,
    winograd: bool,
    max_batch: usize,
    /// Of each node seen so far.
    slots: Vec<Option<Slot>>,
    steps: Vec<Box<dyn Step>>,
    layers: Vec<Layer>,
    input_layout: Layout,
}

impl Compiler {
    /// `unpooled` is the shape before max pooling of a convolution that includes it.
    fn add(&mut self, node: Node, unpooled: Option<Shape>) {
        let multiply_adds = node.multiply_adds();
        let Node { name, operation, inputs, shape } = node;
        let clip_len = match operation {
            Operation::Input => self.input_layout.clip_len(shape),
            _ => shape.stored_len(),
        };
        let output = self.arena.allocate(shape, clip_len);
        self.slots.push(Some(output));
        let sources: Vec<Slot> = inputs.iter().map(|&input| self.slot(input)).collect();
        let input = sources.first().copied().unwrap_or(output);
        let from = input.shape;
        match operation {
            Operation::Input => {
                self.push(name, Algorithm::Load, LoadInput::new(output, self.input_layout), shape, shape, 0);
            }
            Operation::Conv(conv) => {
                let layout = if inputs[0] == NodeId(0) { self.input_layout } else { Layout::Activation };
                self.add_conv(name, &conv, &sources, output, layout, unpooled);
            }
            Operation::MaxPool(window) => {
                self.push(name, Algorithm::Pooling, MaxPool { input, output, window }, from, shape, 0);
            }
            Operation::AvgPool(pool) => {
                self.push(name, Algorithm::Pooling, AvgPool { input, output, pool }, from, shape, 0);
            }
            Operation::GlobalAvgPool => {
                self.push(name, Algorithm::Pooling, GlobalAvgPool { input, output }, from, shape, 0);
            }
            Operation::Linear(linear) => {
                let bias = linear.bias.as_ref().map_or(&[][..], known);
                let mut step = Linear::new(input, output, bias, linear.nonlinearity);
                self.pack(&mut step, &linear.weight);
                self.push(name, Algorithm::MatrixProduct, step, from, shape, multiply_adds);
            }
            Operation::Scale(scale) => {
                let join = Join::scale(shape, known(&scale.factor), known(&scale.offset));
                let step = Elementwise { input, output, join, nonlinearity: scale.nonlinearity };
                self.push(name, Algorithm::Elementwise, step, from, shape, 0);
            }
            Operation::Nonlinearity(function) => {
                let step = Elementwise { input, output, join: Join::None, nonlinearity: Some(function) };
                self.push(name, Algorithm::Elementwise, step, from, shape, 0);
            }
            Operation::Add | Operation::Multiply => {
                let join = match operation {
                    Operation::Add => Join::Add(sources[1]),
                    _ if sources[1].shape == shape => Join::Multiply(sources[1]),
                    _ => Join::MultiplyChannels(sources[1]),
                };
                let step = Elementwise { input, output, join, nonlinearity: None };
                self.push(name, Algorithm::Elementwise, step, from, shape, 0);
            }
            Operation::Concat => {
                self.push(name, Algorithm::Copy, Concat { inputs: sources, output }, from, shape, 0);
            }
            Operation::Flatten => self.push(name, Algorithm::Copy, Flatten { input, output }, from, shape, 0),
            Operation::StridedPick(stride) => {
                self.push(name, Algorithm::Copy, StridedPick { input, output, stride }, from, shape, 0);
            }
            Operation::BatchNorm(_) | Operation::Dropout(_) => {
                unreachable!("{name}: passes::prepare leaves no {}", operation.kind())
            }
        }
    }

    fn add_conv(
        &mut self,
        name: String,
        conv: &Conv,
        sources: &[Slot],
        output: Slot,
        layout: Layout,
        unpooled: Option<Shape>,
    ) {
        let (input, window, groups) = (sources[0], conv.window, conv.groups);
        let (from, to) = (input.shape, unpooled.unwrap_or(output.shape));
        let residual = conv.residual.map(|stride| ResidualSource { slot: sources[1], stride });
        let bias = conv.bias.as_ref().map_or(&[][..], known);
        let epilogue = Epilogue::new(bias, conv.nonlinearity.is_some(), residual, to);
        let multiply_adds = (to.len() * conv.weight.shape[1..].iter().product::<usize>()) as u64;
        let (batch, threads) = (self.max_batch, self.threads);
        let algorithm = self.choose(from, to, conv, layout);
        let mut step: Box<dyn Step> = match algorithm {
            Algorithm::Winograd { .. } if layout == Layout::Phases => {
                Box::new(Stem::new(input, output, unpooled, window, epilogue, batch, threads))
            }
            Algorithm::Winograd { tile } => {
                Box::new(Winograd::new(input, output, window.kernel[0], tile, epilogue, batch, threads))
            }
            Algorithm::Depthwise => Box::new(Depthwise::new(input, output, window, epilogue)),
            _ => {
                let haloed = matches!(layout, Layout::Haloed(_));
                let storage = if haloed { Storage::Haloed } else { Storage::Activation };
                Box::new(Direct::new(input, output, window, groups, storage, epilogue))
            }
        };
        self.pack(&mut *step, &conv.weight);
        self.push_boxed(name, algorithm, step, from, output.shape, multiply_adds);
    }

    /// The algorithm with the least estimated time for a whole batch. Not a function of the number of threads, so that
    /// results are not either.
    fn choose(&self, from: Shape, to: Shape, conv: &Conv, layout: Layout) -> Algorithm {
        let (window, groups) = (conv.window, conv.groups);
        if groups > 1 && groups == from.c && groups == to.c {
            return Algorithm::Depthwise;
        }
        match layout {
            Layout::Phases => return Algorithm::Winograd { tile: 4 },
            Layout::Activation if self.winograd && groups == 1 && Winograd::serves(&window) => {}
            _ => return Algorithm::Direct,
        }
        let channels = [from.cp(), to.cp()];
        let seconds = |(products, weights): (usize, usize)| {
            (self.max_batch * products) as f64 / self.products_per_second
                + (4 * weights) as f64 / WEIGHT_BYTES_PER_SECOND
        };
        [
            (Algorithm::Winograd { tile: 4 }, seconds(Winograd::cost(to, channels, window.kernel[0], 4))),
            (Algorithm::Winograd { tile: 2 }, seconds(Winograd::cost(to, channels, window.kernel[0], 2))),
            (Algorithm::Direct, seconds(Direct::cost(from, to, &window, groups))),
        ]
        .into_iter()
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map_or(Algorithm::Direct, |best| best.0)
    }

    fn pack(&mut self, step: &mut dyn Step, weight: &Parameter) {
        if let Some(team) = &mut self.team {
            step.pack(known(weight), self.lanes, team);
        }
    }

    fn push(
        &mut self,
        name: String,
        algorithm: Algorithm,
        step: impl Step + 'static,
        from: Shape,
        to: Shape,
        multiply_adds: u64,
    ) {
        self.push_boxed(name, algorithm, Box::new(step), from, to, multiply_adds);
    }

    fn push_boxed(
        &mut self,
        name: String,
        algorithm: Algorithm,
        step: Box<dyn Step>,
        from: Shape,
        to: Shape,
        multiply_adds: u64,
    ) {
        self.layers.push(Layer {
            name,
            algorithm,
            input: from.dims(),
            output: to.dims(),
            multiply_adds,
            weight_bytes: step.weight_len() * size_of::<f32>(),
        });
        self.steps.push(step);
    }

    fn slot(&self, node: NodeId) -> Slot {
        self.slots[node.0].expect("nodes only read nodes that were compiled before them")
    }

    fn free(&mut self, node: NodeId) {
        let slot = self.slot(node);
        self.arena.free(&slot);
    }
}

/// Values of a parameter; none of one that is not bound, in an estimate.
fn known(parameter: &Parameter) -> &[f32] {
    parameter.values().unwrap_or_default()
}

fn check_option(option: &'static str, actual: usize, limit: usize) -> Result<(), PlanError> {
    if (1..=limit).contains(&actual) {
        return Ok(());
    }
    Err(PlanError::PlanOption { option, actual, limit })
}
