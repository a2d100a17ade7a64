//! From a graph to a program: algorithms, memory, transformed weights.

use super::graph::{GraphBuilder, Node, Operation};
use super::{Algorithm, Layer, Plan, PlanError, PlanOptions};
use crate::cpu::direct::{Direct, Storage};
use crate::cpu::input::{Layout, LoadInput};
use crate::cpu::linear::Linear;
use crate::cpu::memory::{Arena, Slot};
use crate::cpu::output::StoreOutput;
use crate::cpu::pooling::{GlobalAvgPool, MaxPool};
use crate::cpu::program::{self, Epilogue, Program, ResidualSource, Step};
use crate::cpu::stem::Stem;
use crate::cpu::team::Team;
use crate::cpu::winograd::Winograd;
use crate::cpu::{CHANNEL_BLOCK, InstructionSet, Shape};
use crate::geometry::Window;

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

impl GraphBuilder<'_> {
    /// Compiles the part of the graph that `outputs` need.
    pub fn compile(self, outputs: &[Node], options: PlanOptions) -> Result<Plan, PlanError> {
        if self.is_sketch {
            return Err(PlanError::Sketch);
        }
        check_option("threads", options.threads, MAX_THREADS)?;
        let team = Team::new(options.threads)?;
        let max_batch = options.max_batch;
        let Compiled { steps, layers, arena_len, input, outputs, instruction_set, team } =
            self.lower(outputs, options, Some(team))?;
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

    /// What [`Plan::memory_bytes`] will be, found without taking that memory. Serves [sketches](Self::sketch) too.
    pub fn memory_bytes(self, outputs: &[Node], options: PlanOptions) -> Result<usize, PlanError> {
        check_option("threads", options.threads, MAX_THREADS)?;
        let threads = options.threads;
        let Compiled { steps, arena_len, .. } = self.lower(outputs, options, None)?;
        Ok(program::memory_bytes(&steps, arena_len, threads))
    }

    /// The steps of a plan; their weights are left out where no `team` packs them.
    fn lower(mut self, outputs: &[Node], options: PlanOptions, team: Option<Team>) -> Result<Compiled, PlanError> {
        let PlanOptions { threads, max_batch, instruction_set, winograd } = options;
        check_option("max_batch", max_batch, MAX_BATCH)?;
        check_option("outputs", outputs.len(), usize::MAX)?;
        let instruction_set = instruction_set.unwrap_or_else(InstructionSet::detect);
        if !instruction_set.is_available() {
            return Err(PlanError::InstructionSet(instruction_set));
        }
        let output_shapes: Vec<Shape> =
            outputs.iter().map(|&node| self.shape_of("output", node)).collect::<Result<_, _>>()?;
        let input = self.layers[0].shape;
        let input_layout = self.input_layout(outputs, winograd);
        let pooled = if input_layout == Layout::Phases { self.merge_pooling(outputs) } else { None };
        let last_reads = self.last_reads(outputs);
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
        for (index, layer) in self.layers.into_iter().enumerate() {
            let Some(last_read) = last_reads[index] else {
                compiler.slots.push(None);
                continue;
            };
            let reads: Vec<Node> = layer.operation.reads().collect();
            let unpooled = pooled.filter(|&(node, _)| node == index).map(|(_, shape)| shape);
            compiler.add(layer.name, layer.operation, layer.shape, unpooled);
            for node in reads {
                if last_reads[node.0] == Some(index) {
                    compiler.free(node);
                }
            }
            debug_assert!(last_read > index, "a node nobody reads is not compiled");
        }
        for (index, (&node, shape)) in outputs.iter().zip(&output_shapes).enumerate() {
            let step = Step::StoreOutput(StoreOutput::new(compiler.slot(node), index));
            compiler.push(format!("output {index}"), Algorithm::Store, step, *shape, *shape, 0);
        }
        let Compiler { team, arena, steps, layers, .. } = compiler;
        Ok(Compiled { steps, layers, arena_len: arena.len(), input, outputs: output_shapes, instruction_set, team })
    }

    /// Makes one layer of a convolution of the input and the max pooling that alone reads it, where one kernel does both.
    /// Returns the pooling's node, which has become the convolution, and the shape before pooling.
    fn merge_pooling(&mut self, outputs: &[Node]) -> Option<(usize, Shape)> {
        let first = self
            .layers
            .iter()
            .position(|layer| matches!(layer.operation, Operation::Conv { input: Node(0), residual: None, .. }))?;
        let mut readers =
            (0..self.layers.len()).filter(|&i| self.layers[i].operation.reads().any(|node| node.0 == first));
        let (Some(only), None) = (readers.next(), readers.next()) else { return None };
        match &self.layers[only].operation {
            Operation::MaxPool { window, .. } if Stem::pools(window) && !outputs.contains(&Node(first)) => {}
            _ => return None,
        }
        let name = format!("{} + {}", self.layers[first].name, self.layers[only].name);
        // Nobody reads the node any more, so it is not compiled.
        let convolution = std::mem::replace(&mut self.layers[first].operation, Operation::Input);
        self.layers[only].operation = convolution;
        self.layers[only].name = name;
        Some((only, self.layers[first].shape))
    }

    /// For each node the last layer that reads it (the number of layers for an output), or `None` if nothing that
    /// `outputs` need reads it.
    pub(crate) fn last_reads(&self, outputs: &[Node]) -> Vec<Option<usize>> {
        let mut last_reads = vec![None; self.layers.len()];
        for node in outputs {
            last_reads[node.0] = Some(self.layers.len());
        }
        for (index, layer) in self.layers.iter().enumerate().rev() {
            if last_reads[index].is_none() {
                continue;
            }
            for node in layer.operation.reads() {
                last_reads[node.0].get_or_insert(index);
            }
        }
        // The input is always loaded, whether or not an output depends on it.
        last_reads[0].get_or_insert(self.layers.len());
        last_reads
    }

    /// A few-channel input that only one convolution reads is stored as that one reads it fastest.
    fn input_layout(&self, outputs: &[Node], winograd: bool) -> Layout {
        let from = self.layers[0].shape;
        let readers: Vec<_> =
            self.layers.iter().filter(|layer| layer.operation.reads().any(|node| node.0 == 0)).collect();
        match readers[..] {
            [only] if from.c < CHANNEL_BLOCK && !outputs.contains(&Node(0)) => match only.operation {
                Operation::Conv { window, residual, .. } if residual.is_none_or(|(node, _)| node.0 != 0) => {
                    if winograd && Stem::serves(&window, from, only.shape) {
                        Layout::Phases
                    } else {
                        Layout::Haloed([window.padding[1], window.padding[2]])
                    }
                }
                _ => Layout::Activation,
            },
            _ => Layout::Activation,
        }
    }
}

/// What a plan is made of.
struct Compiled {
    steps: Vec<Step>,
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
    steps: Vec<Step>,
    layers: Vec<Layer>,
    input_layout: Layout,
}

impl Compiler {
    /// `unpooled` is the shape before max pooling of a convolution that includes it.
    fn add(&mut self, name: String, operation: Operation<'_>, shape: Shape, unpooled: Option<Shape>) {
        let clip_len = match operation {
            Operation::Input => self.input_layout.clip_len(shape),
            _ => shape.stored_len(),
        };
        let output = self.arena.allocate(shape, clip_len);
        self.slots.push(Some(output));
        let input = operation.reads().next().map_or(output, |node| self.slot(node));
        let from = input.shape;
        match operation {
            Operation::Input => {
                let step = Step::LoadInput(LoadInput::new(output, self.input_layout));
                self.push(name, Algorithm::Load, step, shape, shape, 0);
            }
            Operation::Conv { input: node, window, weight, bias, residual, relu } => {
                let residual = residual.map(|(node, stride)| ResidualSource { slot: self.slot(node), stride });
                let result = unpooled.unwrap_or(shape);
                let epilogue = Epilogue::new(&bias, relu, residual, result);
                let layout = if node.0 == 0 { self.input_layout } else { Layout::Activation };
                let multiply_adds = (result.len() * from.c * window.kernel.iter().product::<usize>()) as u64;
                let algorithm = self.choose(from, result, window, layout);
                let (batch, threads) = (self.max_batch, self.threads);
                let mut step = match algorithm {
                    Algorithm::Winograd { .. } if layout == Layout::Phases => {
                        Step::Stem(Stem::new(input, output, unpooled, window, epilogue, batch, threads))
                    }
                    Algorithm::Winograd { tile } => {
                        let kt = window.kernel[0];
                        Step::Winograd(Winograd::new(input, output, kt, tile, epilogue, batch, threads))
                    }
                    _ => {
                        let haloed = matches!(layout, Layout::Haloed(_));
                        let storage = if haloed { Storage::Haloed } else { Storage::Activation };
                        Step::Direct(Direct::new(input, output, window, storage, epilogue))
                    }
                };
                self.pack(&mut step, &weight);
                self.push(name, algorithm, step, from, shape, multiply_adds);
            }
            Operation::MaxPool { window, .. } => {
                let step = Step::MaxPool(MaxPool::new(input, output, window));
                self.push(name, Algorithm::Pooling, step, from, shape, 0);
            }
            Operation::GlobalAvgPool { .. } => {
                let step = Step::GlobalAvgPool(GlobalAvgPool::new(input, output));
                self.push(name, Algorithm::Pooling, step, from, shape, 0);
            }
            Operation::Linear { weight, bias, .. } => {
                let multiply_adds = (from.c * shape.c) as u64;
                let mut step = Step::Linear(Linear::new(input, output, &bias));
                self.pack(&mut step, &weight);
                self.push(name, Algorithm::MatrixProduct, step, from, shape, multiply_adds);
            }
        }
    }

    /// The algorithm with the least estimated time for a whole batch. Not a function of the number of threads, so that
    /// results are not either.
    fn choose(&self, from: Shape, to: Shape, window: Window, layout: Layout) -> Algorithm {
        match layout {
            Layout::Phases => return Algorithm::Winograd { tile: 4 },
            Layout::Activation if self.winograd && Winograd::serves(&window) => {}
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
            (Algorithm::Direct, seconds(Direct::cost(from, to, &window))),
        ]
        .into_iter()
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map_or(Algorithm::Direct, |best| best.0)
    }

    fn pack(&mut self, step: &mut Step, weight: &[f32]) {
        if let Some(team) = &mut self.team {
            step.pack(weight, self.lanes, team);
        }
    }

    fn push(&mut self, name: String, algorithm: Algorithm, step: Step, from: Shape, to: Shape, multiply_adds: u64) {
        self.layers.push(Layer {
            name,
            algorithm,
            input: from.dims(),
            output: to.dims(),
            multiply_adds,
            weight_bytes: step.weight_bytes(),
        });
        self.steps.push(step);
    }

    fn slot(&self, node: Node) -> Slot {
        self.slots[node.0].expect("layers only read nodes that were compiled before them")
    }

    fn free(&mut self, node: Node) {
        let slot = self.slot(node);
        self.arena.free(&slot);
    }
}

fn check_option(option: &'static str, actual: usize, limit: usize) -> Result<(), PlanError> {
    if (1..=limit).contains(&actual) {
        return Ok(());
    }
    Err(PlanError::PlanOption { option, actual, limit })
}
