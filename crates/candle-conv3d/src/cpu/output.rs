//! Copies an activation out of the arena into the caller's (n, c, t, h, w) slice.

use super::Shape;
use super::memory::Slot;
use super::program::{Clips, Context, Operator};
use super::simd::Simd;

/// The last steps of every program, one an output.
pub(crate) struct StoreOutput {
    input: Slot,
    /// Which of the caller's slices.
    index: usize,
}

impl StoreOutput {
    pub(crate) fn new(input: Slot, index: usize) -> Self {
        Self { input, index }
    }
}

impl Operator for StoreOutput {
    fn check(&self, batch: usize, _clips: &Clips<'_>, outputs: &[&mut [f32]]) {
        assert_eq!(outputs[self.index].len(), batch * self.input.shape.len());
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context) {
        let shape @ Shape { c, t, h, w } = self.input.shape;
        let (cp, positions) = (shape.cp(), t * h * w);
        context.member.share(context.batch, |clip| {
            let from = context.arena.at(self.input.offset + clip * self.input.clip_len);
            let to = context.outputs[self.index].at(clip * shape.len());
            for channel in 0..c {
                for position in 0..positions {
                    *to.add(channel * positions + position) = *from.add(position * cp + channel);
                }
            }
        });
    }
}
