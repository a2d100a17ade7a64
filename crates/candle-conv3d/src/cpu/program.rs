//! A compiled network: steps over one arena, walked by a team.

use super::CHANNEL_BLOCK as MAX_LANES;
use super::memory::{Buffer, SharedMut, Slot};
use super::simd::{Kernel, Simd, dispatch};
use super::team::{Member, Team};
use super::{InstructionSet, Shape};
use crate::graph::Nonlinearity;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Clips as the caller has them.
#[derive(Clone, Copy)]
pub(crate) enum Clips<'a> {
    /// One (t, h, w, 3) slice a clip, and what each byte means in each channel.
    Rgb { clips: &'a [&'a [u8]], table: &'a [[f32; 256]; 3] },
    /// (n, c, t, h, w)
    F32 { values: &'a [f32] },
}

/// What a step works on.
///
/// Steps run between barriers; within one step every thread writes its own claimed parts of the step's output slot and
/// scratch, and reads slots that nobody writes. Slots come from one [`Arena`](super::memory::Arena), whose length is
/// that of `arena`, and hold at least `batch` clips.
pub(crate) struct Context<'a> {
    pub(crate) arena: SharedMut,
    pub(crate) scratch: SharedMut,
    pub(crate) batch: usize,
    pub(crate) member: &'a Member<'a>,
    pub(crate) clips: Clips<'a>,
    /// One a [`StoreOutput`] step, each of `batch * shape.len()` floats.
    pub(crate) outputs: &'a [SharedMut],
}

/// An operation as it is computed on a CPU.
pub(crate) trait Operator: Send + Sync {
    /// Floats of scratch that all `threads` need together.
    fn scratch_len(&self, _threads: usize) -> usize {
        0
    }

    /// Takes its weights, in the layout of its layer's parameter, for vectors of `lanes`.
    fn pack(&mut self, _weight: &[f32], _lanes: usize, _team: &mut Team) {}

    /// Floats of weights as it holds them once it has them.
    fn weight_len(&self) -> usize {
        0
    }

    /// # Panics
    /// If the caller's slices do not have the lengths that the operation needs.
    fn check(&self, _batch: usize, _clips: &Clips<'_>, _outputs: &[&mut [f32]]) {}

    /// Computes its part on one thread. Must be `#[inline(always)]`, as [`Kernel::run`].
    ///
    /// # Safety
    /// As [`Context`] says; the scratch has [`scratch_len`](Self::scratch_len) floats, [`check`](Self::check) passed.
    unsafe fn run<S: Simd>(&self, context: &Context<'_>);
}

/// One step of a program: any [`Operator`].
pub(crate) trait Step: Send + Sync {
    /// As [`Operator::scratch_len`].
    fn scratch_len(&self, threads: usize) -> usize;
    /// As [`Operator::pack`].
    fn pack(&mut self, weight: &[f32], lanes: usize, team: &mut Team);
    /// As [`Operator::weight_len`].
    fn weight_len(&self) -> usize;
    /// As [`Operator::check`].
    fn check(&self, batch: usize, clips: &Clips<'_>, outputs: &[&mut [f32]]);
    /// As [`Operator::run`], with the vectors of `instruction_set`.
    ///
    /// # Safety
    /// As there.
    unsafe fn run(&self, instruction_set: InstructionSet, context: &Context<'_>);
}

impl<T: Operator> Step for T {
    fn scratch_len(&self, threads: usize) -> usize {
        Operator::scratch_len(self, threads)
    }

    fn pack(&mut self, weight: &[f32], lanes: usize, team: &mut Team) {
        Operator::pack(self, weight, lanes, team);
    }

    fn weight_len(&self) -> usize {
        Operator::weight_len(self)
    }

    fn check(&self, batch: usize, clips: &Clips<'_>, outputs: &[&mut [f32]]) {
        Operator::check(self, batch, clips, outputs);
    }

    unsafe fn run(&self, instruction_set: InstructionSet, context: &Context<'_>) {
        dispatch(instruction_set, Run { operator: self, context });
    }
}

/// An operator on one thread.
struct Run<'a, T> {
    operator: &'a T,
    context: &'a Context<'a>,
}

impl<T: Operator> Kernel for Run<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        self.operator.run::<S>(self.context);
    }
}

/// Steps, the memory they work in and the threads that walk them.
pub(crate) struct Program {
    steps: Vec<Box<dyn Step>>,
    arena: Buffer,
    scratch: Buffer,
    team: Team,
    instruction_set: InstructionSet,
    max_batch: usize,
}

impl Program {
    /// `steps` in the order they run; their slots come from one arena of `arena_len` floats made for `max_batch`.
    pub(crate) fn new(
        steps: Vec<Box<dyn Step>>,
        arena_len: usize,
        team: Team,
        instruction_set: InstructionSet,
        max_batch: usize,
    ) -> Self {
        let scratch_len = scratch_len(&steps, team.threads());
        Self {
            steps,
            arena: Buffer::zeroed(arena_len),
            scratch: Buffer::zeroed(scratch_len),
            team,
            instruction_set,
            max_batch,
        }
    }

    pub(crate) fn threads(&self) -> usize {
        self.team.threads()
    }

    /// Bytes of activations, scratch and weights.
    pub(crate) fn memory_bytes(&self) -> usize {
        memory_bytes(&self.steps, self.arena.len(), self.team.threads())
    }

    /// Runs `batch` clips. Returns the wall time of each step.
    ///
    /// # Panics
    /// If the batch is larger than `max_batch` or a slice has not the length its step needs.
    pub(crate) fn run(&mut self, batch: usize, clips: Clips, outputs: &mut [&mut [f32]]) -> Vec<Duration> {
        assert!(batch <= self.max_batch, "a batch of {batch} in a program for {}", self.max_batch);
        for step in &self.steps {
            step.check(batch, &clips, outputs);
        }
        let outputs: Vec<SharedMut> = outputs.iter_mut().map(|output| SharedMut::new(output)).collect();
        let (arena, scratch) = (self.arena.shared(), self.scratch.shared());
        let (steps, instruction_set) = (&self.steps, self.instruction_set);
        let times = Mutex::new(Vec::with_capacity(steps.len()));
        self.team.run(&|member| {
            let context = Context { arena, scratch, batch, member, clips, outputs: &outputs };
            let mut own = Vec::with_capacity(if member.index() == 0 { steps.len() } else { 0 });
            for step in steps {
                let begin = Instant::now();
                // SAFETY: the arena and scratch have the lengths that the slots and `scratch_len` promise, the outside
                // slices were checked above, and the barrier keeps steps apart.
                unsafe { step.run(instruction_set, &context) };
                member.barrier();
                if member.index() == 0 {
                    own.push(begin.elapsed());
                }
            }
            if member.index() == 0 {
                *times.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = own;
            }
        });
        times.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Floats of scratch that `threads` need together: steps use it one after the other.
fn scratch_len(steps: &[Box<dyn Step>], threads: usize) -> usize {
    steps.iter().map(|step| step.scratch_len(threads)).max().unwrap_or(0)
}

/// Bytes that a program of these steps holds, whether or not they have their weights yet.
pub(crate) fn memory_bytes(steps: &[Box<dyn Step>], arena_len: usize, threads: usize) -> usize {
    let buffers = (arena_len + scratch_len(steps, threads)) * size_of::<f32>();
    buffers + steps.iter().map(|step| step.weight_len() * size_of::<f32>()).sum::<usize>()
}

/// A function of each value. Lanes from `channels` on are zero afterwards: they are padding.
///
/// # Safety
/// The processor supports `S`.
#[inline(always)]
pub(crate) unsafe fn apply<S: Simd>(function: Option<Nonlinearity>, v: S::V, channels: usize) -> S::V {
    match function {
        None => v,
        Some(Nonlinearity::Relu) => S::max(v, S::splat(0.0)),
        Some(function) => {
            let mut lanes = [0.0f32; MAX_LANES];
            S::store(lanes.as_mut_ptr(), v);
            for x in &mut lanes[..S::LANES.min(channels)] {
                let sigmoid = 1.0 / (1.0 + (-*x).exp());
                *x = if function == Nonlinearity::Silu { *x * sigmoid } else { sigmoid };
            }
            lanes[S::LANES.min(channels)..].fill(0.0);
            S::load(lanes.as_ptr())
        }
    }
}

/// What happens to a convolution's sum before it is stored.
pub(crate) struct Epilogue {
    /// One a stored channel.
    bias: Buffer,
    relu: bool,
    residual: Option<ResidualSource>,
}

/// An activation added to the sum: element (t, h, w) comes from (t, h, w) * stride, channels it does not have count as
/// zero (shortcut A of the paper).
#[derive(Clone, Copy)]
pub(crate) struct ResidualSource {
    pub(crate) slot: Slot,
    pub(crate) stride: [usize; 3],
}

impl Epilogue {
    /// `output` is the shape of the convolution's result.
    ///
    /// # Panics
    /// If the residual's geometry does not cover the output.
    pub(crate) fn new(bias: &[f32], relu: bool, residual: Option<ResidualSource>, output: Shape) -> Self {
        let mut padded = Buffer::zeroed(output.cp());
        padded[..bias.len()].copy_from_slice(bias);
        if let Some(ResidualSource { slot: Slot { shape, .. }, stride: [st, sh, sw] }) = residual {
            let covered =
                (output.t - 1) * st < shape.t && (output.h - 1) * sh < shape.h && (output.w - 1) * sw < shape.w;
            assert!(covered && shape.c <= output.c, "a residual of {shape:?} for {output:?}");
        }
        Self { bias: padded, relu, residual }
    }

    /// The residual of one output position, or null.
    ///
    /// # Safety
    /// `clip < batch` and the position is inside the output.
    #[inline(always)]
    pub(crate) unsafe fn residual_at(
        &self,
        context: &Context,
        clip: usize,
        t: usize,
        y: usize,
        x: usize,
    ) -> *const f32 {
        match &self.residual {
            None => std::ptr::null(),
            Some(ResidualSource { slot, stride: [st, sh, sw] }) => {
                let Shape { h, w, .. } = slot.shape;
                let position = (t * st * h + y * sh) * w + x * sw;
                context.arena.at(slot.offset + clip * slot.clip_len + position * slot.shape.cp())
            }
        }
    }

    /// Adds bias and residual to the sum of channels `column..column + LANES`, applies ReLU and stores it. `result` and
    /// `residual` point at channel 0 of the position.
    ///
    /// # Safety
    /// `column + LANES` is at most the stored channels; `result` has that many floats, `residual` is null or what
    /// [`residual_at`](Self::residual_at) gave.
    #[inline(always)]
    pub(crate) unsafe fn finish<S: Simd>(&self, sum: S::V, result: *mut f32, residual: *const f32, column: usize) {
        let mut v = S::add(sum, S::load(self.bias.as_ptr().add(column)));
        if let Some(source) = &self.residual
            && column < source.slot.shape.cp()
        {
            v = S::add(v, S::load(residual.add(column)));
        }
        if self.relu {
            v = S::max(v, S::splat(0.0));
        }
        S::store(result.add(column), v);
    }
}
