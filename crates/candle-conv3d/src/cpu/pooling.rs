//! Max pooling and global average pooling, channels-last.

use super::Shape;
use super::memory::Slot;
use super::program::Context;
use super::simd::Simd;
use crate::geometry::Window;

/// Maximum over a window; padding never wins.
pub(crate) struct MaxPool {
    input: Slot,
    output: Slot,
    window: Window,
}

impl MaxPool {
    /// Every window of `window` meets data.
    pub(crate) fn new(input: Slot, output: Slot, window: Window) -> Self {
        Self { input, output, window }
    }

    /// # Safety
    /// As [`Context`] says.
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd>(&self, context: &Context) {
        let output = self.output.shape;
        let input = self.input.shape;
        let cp = output.cp();
        let [st, sh, sw] = self.window.stride;
        let [pt, ph, pw] = self.window.padding;
        context.member.share(context.batch * output.t * output.h, |item| {
            let (clip, t, y) = (item / output.h / output.t, item / output.h % output.t, item % output.h);
            let from = context.arena.at(self.input.offset + clip * self.input.clip_len).cast_const();
            let to =
                context.arena.at(self.output.offset + clip * self.output.clip_len + (t * output.h + y) * output.w * cp);
            let (kt_begin, kt_end) = self.window.valid_taps(0, t, input.t);
            let (kh_begin, kh_end) = self.window.valid_taps(1, y, input.h);
            for x in 0..output.w {
                let (kw_begin, kw_end) = self.window.valid_taps(2, x, input.w);
                for c in (0..cp).step_by(S::LANES) {
                    let mut max = S::splat(f32::NEG_INFINITY);
                    for kt in kt_begin..kt_end {
                        for kh in kh_begin..kh_end {
                            let row = ((t * st + kt - pt) * input.h + y * sh + kh - ph) * input.w;
                            for kw in kw_begin..kw_end {
                                max = S::max(max, S::load(from.add((row + x * sw + kw - pw) * cp + c)));
                            }
                        }
                    }
                    S::store(to.add(x * cp + c), max);
                }
            }
        });
    }
}

/// Mean over time and space.
pub(crate) struct GlobalAvgPool {
    input: Slot,
    output: Slot,
}

impl GlobalAvgPool {
    pub(crate) fn new(input: Slot, output: Slot) -> Self {
        Self { input, output }
    }

    /// # Safety
    /// As [`Context`] says.
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd>(&self, context: &Context) {
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
