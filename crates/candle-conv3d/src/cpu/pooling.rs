//! Max pooling, average pooling and global average pooling, channels-last.

use super::Shape;
use super::memory::Slot;
use super::program::{Context, Operator};
use super::simd::Simd;
use crate::geometry::Window;
use crate::graph::AvgPool as AvgPoolConfig;

/// Maximum over a window; padding never wins.
pub(crate) struct MaxPool {
    pub(crate) input: Slot,
    pub(crate) output: Slot,
    /// Every window meets data.
    pub(crate) window: Window,
}

/// Mean over a window.
pub(crate) struct AvgPool {
    pub(crate) input: Slot,
    pub(crate) output: Slot,
    pub(crate) pool: AvgPoolConfig,
}

impl Operator for MaxPool {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context<'_>) {
        let join = |max: S::V, value: S::V| S::max(max, value);
        pool::<S>(context, [&self.input, &self.output], &self.window, f32::NEG_INFINITY, join, |max, _| max);
    }
}

impl Operator for AvgPool {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context<'_>) {
        let Shape { t, h, w, .. } = self.input.shape;
        let lens = [t, h, w];
        let mean = |sum: S::V, out: [usize; 3]| {
            let count: usize = (0..3).map(|axis| self.pool.counted_positions(axis, out[axis], lens[axis])).product();
            S::mul(sum, S::splat(1.0 / count as f32))
        };
        let join = |sum: S::V, value: S::V| S::add(sum, value);
        pool::<S>(context, [&self.input, &self.output], &self.pool.window, 0.0, join, mean);
    }
}

/// For each window and channel the values that meet data, joined from `start` on and finished.
///
/// # Safety
/// As [`Context`] says.
#[inline(always)]
unsafe fn pool<S: Simd>(
    context: &Context<'_>,
    [input_slot, output_slot]: [&Slot; 2],
    window: &Window,
    start: f32,
    join: impl Fn(S::V, S::V) -> S::V,
    finish: impl Fn(S::V, [usize; 3]) -> S::V,
) {
    let (input, output) = (input_slot.shape, output_slot.shape);
    let cp = output.cp();
    let [st, sh, sw] = window.stride;
    let [pt, ph, pw] = window.padding;
    context.member.share(context.batch * output.t * output.h, |item| {
        let (clip, t, y) = (item / output.h / output.t, item / output.h % output.t, item % output.h);
        let from = context.arena.at(input_slot.offset + clip * input_slot.clip_len).cast_const();
        let row = (t * output.h + y) * output.w * cp;
        let to = context.arena.at(output_slot.offset + clip * output_slot.clip_len + row);
        let (kt_begin, kt_end) = window.valid_taps(0, t, input.t);
        let (kh_begin, kh_end) = window.valid_taps(1, y, input.h);
        for x in 0..output.w {
            let (kw_begin, kw_end) = window.valid_taps(2, x, input.w);
            for c in (0..cp).step_by(S::LANES) {
                let mut joined = S::splat(start);
                for kt in kt_begin..kt_end {
                    for kh in kh_begin..kh_end {
                        let row = ((t * st + kt - pt) * input.h + y * sh + kh - ph) * input.w;
                        for kw in kw_begin..kw_end {
                            joined = join(joined, S::load(from.add((row + x * sw + kw - pw) * cp + c)));
                        }
                    }
                }
                S::store(to.add(x * cp + c), finish(joined, [t, y, x]));
            }
        }
    });
}

/// Mean over time and space.
pub(crate) struct GlobalAvgPool {
    pub(crate) input: Slot,
    pub(crate) output: Slot,
}

impl Operator for GlobalAvgPool {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context<'_>) {
        let Shape { t, h, w, .. } = self.input.shape;
        let cp = self.input.shape.cp();
        let scale = S::splat(1.0 / (t * h * w) as f32);
        context.member.share(context.batch, |clip| {
            let from = context.arena.at(self.input.offset + clip * self.input.clip_len).cast_const();
            let to = context.arena.at(self.output.offset + clip * self.output.clip_len);
            for c in (0..cp).step_by(S::LANES) {
                let mut sum = S::splat(0.0);
                for position in 0..t * h * w {
                    sum = S::add(sum, S::load(from.add(position * cp + c)));
                }
                S::store(to.add(c), S::mul(sum, scale));
            }
        });
    }
}
