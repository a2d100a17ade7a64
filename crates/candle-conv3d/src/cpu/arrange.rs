//! Values that only move: concatenation, flattening, strided picks.

use super::Shape;
use super::memory::Slot;
use super::program::{Context, Operator};
use super::simd::Simd;

/// The channels of several activations, one after the other.
pub(crate) struct Concat {
    pub(crate) inputs: Vec<Slot>,
    pub(crate) output: Slot,
}

impl Operator for Concat {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context<'_>) {
        let Shape { c, t, h, w } = self.output.shape;
        let cp = self.output.shape.cp();
        context.member.share(context.batch * t * h, |item| {
            let (clip, row) = (item / (t * h), item % (t * h) * w);
            let to = context.arena.at(self.output.offset + clip * self.output.clip_len + row * cp);
            for x in 0..w {
                let mut position = to.add(x * cp);
                for input in &self.inputs {
                    let stored = input.shape.cp();
                    let from = context.arena.at(input.offset + clip * input.clip_len + (row + x) * stored);
                    std::ptr::copy_nonoverlapping(from.cast_const(), position, input.shape.c);
                    position = position.add(input.shape.c);
                }
                position.write_bytes(0, cp - c);
            }
        });
    }
}

/// All values as channels of one position, in (c, t, h, w) order.
pub(crate) struct Flatten {
    pub(crate) input: Slot,
    pub(crate) output: Slot,
}

impl Operator for Flatten {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context<'_>) {
        let Shape { c, t, h, w } = self.input.shape;
        let (stored, positions) = (self.input.shape.cp(), t * h * w);
        context.member.share(context.batch, |clip| {
            let from = context.arena.at(self.input.offset + clip * self.input.clip_len);
            let to = context.arena.at(self.output.offset + clip * self.output.clip_len);
            for channel in 0..c {
                for position in 0..positions {
                    *to.add(channel * positions + position) = *from.add(position * stored + channel);
                }
            }
            to.add(c * positions).write_bytes(0, self.output.shape.cp() - c * positions);
        });
    }
}

/// Every `stride`-th position, with zeros for further channels.
pub(crate) struct StridedPick {
    pub(crate) input: Slot,
    pub(crate) output: Slot,
    pub(crate) stride: [usize; 3],
}

impl Operator for StridedPick {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context<'_>) {
        let Shape { t, h, w, .. } = self.output.shape;
        let (stored, cp) = (self.input.shape.cp(), self.output.shape.cp());
        let [st, sh, sw] = self.stride;
        context.member.share(context.batch * t * h, |item| {
            let (clip, frame, y) = (item / h / t, item / h % t, item % h);
            let row = (frame * st * self.input.shape.h + y * sh) * self.input.shape.w;
            let from = context.arena.at(self.input.offset + clip * self.input.clip_len + row * stored);
            let to = context.arena.at(self.output.offset + clip * self.output.clip_len + (frame * h + y) * w * cp);
            for x in 0..w {
                std::ptr::copy_nonoverlapping(from.add(x * sw * stored).cast_const(), to.add(x * cp), stored);
                to.add(x * cp + stored).write_bytes(0, cp - stored);
            }
        });
    }
}
