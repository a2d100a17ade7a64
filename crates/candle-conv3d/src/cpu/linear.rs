//! The fully connected layer.

use super::memory::{Buffer, Slot};
use super::microkernel::{Gemm, packed_index, panels};
use super::program::{Context, Operator, apply};
use super::simd::Simd;
use super::team::Team;
use crate::graph::Nonlinearity;

/// `y = f(W x + b)` on activations of one position.
pub(crate) struct Linear {
    input: Slot,
    output: Slot,
    weights: Buffer,
    bias: Buffer,
    nonlinearity: Option<Nonlinearity>,
}

impl Linear {
    /// Without weights, which [`pack`](Operator::pack) brings.
    pub(crate) fn new(input: Slot, output: Slot, bias: &[f32], nonlinearity: Option<Nonlinearity>) -> Self {
        let mut padded = Buffer::zeroed(output.shape.cp());
        padded[..bias.len()].copy_from_slice(bias);
        Self { input, output, weights: Buffer::zeroed(0), bias: padded, nonlinearity }
    }
}

impl Operator for Linear {
    fn pack(&mut self, weight: &[f32], lanes: usize, _team: &mut Team) {
        let (k, columns) = (self.input.shape.cp(), self.output.shape.cp());
        let mut weights = Buffer::zeroed(self.weight_len());
        for (oc, row) in weight.chunks_exact(self.input.shape.c).enumerate() {
            for (i, &w) in row.iter().enumerate() {
                weights[packed_index(k, columns, lanes, i, oc)] = w;
            }
        }
        self.weights = weights;
    }

    fn weight_len(&self) -> usize {
        self.input.shape.cp() * self.output.shape.cp()
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context) {
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
                    let sum = S::add(S::load(to), S::load(self.bias.as_ptr().add(column + v)));
                    let channels = self.output.shape.c.saturating_sub(column + v);
                    S::store(to, apply::<S>(self.nonlinearity, sum, channels));
                }
            }
        });
    }
}
