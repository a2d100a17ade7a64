//! The fully connected layer.

use super::memory::{Buffer, Slot};
use super::microkernel::{Gemm, packed_index, panels};
use super::program::Context;
use super::simd::Simd;

/// `y = W x + b` on activations of one position.
pub(crate) struct Linear {
    input: Slot,
    output: Slot,
    weights: Buffer,
    bias: Buffer,
}

impl Linear {
    /// `weight` is (out, in).
    pub(crate) fn new(input: Slot, output: Slot, weight: &[f32], bias: &[f32], lanes: usize) -> Self {
        let (k, columns) = (input.shape.cp(), output.shape.cp());
        let mut weights = Buffer::zeroed(k * columns);
        for (oc, row) in weight.chunks_exact(input.shape.c).enumerate() {
            for (i, &w) in row.iter().enumerate() {
                weights[packed_index(k, columns, lanes, i, oc)] = w;
            }
        }
        let mut padded = Buffer::zeroed(columns);
        padded[..bias.len()].copy_from_slice(bias);
        Self { input, output, weights, bias: padded }
    }

    pub(crate) fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// # Safety
    /// As [`Context`] says.
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd>(&self, context: &Context) {
        let (k, columns) = (self.input.shape.cp(), self.output.shape.cp());
        let all: usize = panels(columns, S::LANES).count();
        context.member.share(all, |panel| {
            let Some((column, width)) = panels(columns, S::LANES).nth(panel) else { return };
            let c = context.arena.at(self.output.offset + column);
            S::call(Gemm {
                a: context.arena.at(self.input.offset),
                lda: self.input.clip_len,
                rows: context.batch,
                k,
                b: self.weights.as_ptr().add(column * k),
                columns: width,
                c,
                ldc: self.output.clip_len,
            });
            for clip in 0..context.batch {
                for v in (0..width).step_by(S::LANES) {
                    let to = c.add(clip * self.output.clip_len + v);
                    S::store(to, S::add(S::load(to), S::load(self.bias.as_ptr().add(column + v))));
                }
            }
        });
    }
}
