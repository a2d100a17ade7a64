//! Functions of single values: scales, sums, products, nonlinearities.

use super::Shape;
use super::memory::{Buffer, Slot};
use super::program::{Context, Operator, apply};
use super::simd::Simd;
use crate::graph::Nonlinearity;

/// What joins a value with another one.
pub(crate) enum Join {
    /// Nothing.
    None,
    /// Factor and offset of its channel, one a stored channel.
    Scale {
        /// Factors.
        factor: Buffer,
        /// Offsets.
        offset: Buffer,
    },
    /// The sum with the value at its position in another activation.
    Add(Slot),
    /// The product with the value at its position in another activation.
    Multiply(Slot),
    /// The product with the value of its channel in an activation of one position.
    MultiplyChannels(Slot),
}

/// `y = f(join(x))` for every value.
pub(crate) struct Elementwise {
    pub(crate) input: Slot,
    pub(crate) output: Slot,
    pub(crate) join: Join,
    pub(crate) nonlinearity: Option<Nonlinearity>,
}

impl Join {
    /// A factor and an offset for each of `shape`'s channels.
    pub(crate) fn scale(shape: Shape, factors: &[f32], offsets: &[f32]) -> Self {
        let padded = |values: &[f32]| {
            let mut padded = Buffer::zeroed(shape.cp());
            padded[..values.len()].copy_from_slice(values);
            padded
        };
        Self::Scale { factor: padded(factors), offset: padded(offsets) }
    }
}

impl Operator for Elementwise {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context<'_>) {
        let shape @ Shape { c: channels, t, h, w } = self.output.shape;
        let cp = shape.cp();
        // One row of one clip is an item.
        context.member.share(context.batch * t * h, |item| {
            let (clip, row) = (item / (t * h), item % (t * h) * w * cp);
            let at = |slot: &Slot| context.arena.at(slot.offset + clip * slot.clip_len).cast_const();
            let (from, to) = (at(&self.input).add(row), at(&self.output).add(row).cast_mut());
            for x in 0..w {
                for c in (0..cp).step_by(S::LANES) {
                    let index = x * cp + c;
                    let value = S::load(from.add(index));
                    let joined = match &self.join {
                        Join::None => value,
                        Join::Scale { factor, offset } => {
                            S::mul_add(value, S::load(factor.as_ptr().add(c)), S::load(offset.as_ptr().add(c)))
                        }
                        Join::Add(other) => S::add(value, S::load(at(other).add(row + index))),
                        Join::Multiply(other) => S::mul(value, S::load(at(other).add(row + index))),
                        Join::MultiplyChannels(other) => S::mul(value, S::load(at(other).add(c))),
                    };
                    S::store(to.add(index), apply::<S>(self.nonlinearity, joined, channels.saturating_sub(c)));
                }
            }
        });
    }
}
