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
    /// Without weights, which [`pack`](Self::pack) brings.
    pub(crate) fn new(input: Slot, output: Slot, bias: &[f32]) -> Self {
        let mut padded = Buffer::zeroed(output.shape.cp());
        padded[..bias.len()].copy_from_slice(bias);
        Self { input, output, weights: Buffer::zeroed(0), bias: padded }
    }

    /// Takes its weights, (out, in).
    pub(crate) fn pack(&mut self, weight: &[f32], lanes: usize) {
        let (k, columns) = (self.input.shape.cp(), self.output.shape.cp());
        let mut weights = Buffer::zeroed(self.weight_len());
        for (oc, row) in weight.chunks_exact(self.input.shape.c).enumerate() {
            for (i, &w) in row.iter().enumerate() {
                weights[packed_index(k, columns, lanes, i, oc)] = w;
            }
        }
        self.weights = weights;
    }

    /// Floats of weights as they are packed.
    pub(crate) fn weight_len(&self) -> usize {
        self.input.shape.cp() * self.output.shape.cp()
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
