//! Convolution of each channel for itself.

use super::memory::{Buffer, Slot};
use super::program::{Context, Epilogue, Operator};
use super::simd::Simd;
use super::team::Team;
use super::{CHANNEL_BLOCK, Shape};
use crate::geometry::Window;

/// Positions of a row whose sums stay in registers.
const COLUMNS: usize = 4;

/// A depthwise convolution with bias, residual and ReLU: as many output channels as input channels and groups.
pub(crate) struct Depthwise {
    input: Slot,
    output: Slot,
    window: Window,
    /// `[tap][channel]`
    weights: Buffer,
    epilogue: Epilogue,
}

impl Depthwise {
    /// Without weights, which [`pack`](Operator::pack) brings.
    pub(crate) fn new(input: Slot, output: Slot, window: Window, epilogue: Epilogue) -> Self {
        Self { input, output, window, weights: Buffer::zeroed(0), epilogue }
    }

    /// Columns `x..x + N` of a row of output frame `t`, for channels `c..c + LANES`.
    ///
    /// # Safety
    /// As [`Context`] says; the columns are in the output.
    #[inline(always)]
    unsafe fn columns<S: Simd, const N: usize>(
        &self,
        context: &Context<'_>,
        clip: usize,
        [t, y, x]: [usize; 3],
        c: usize,
    ) {
        let Shape { h, w, .. } = self.input.shape;
        let cp = self.output.shape.cp();
        let from = context.arena.at(self.input.offset + clip * self.input.clip_len).cast_const();
        let [_, kh, kw] = self.window.kernel;
        let ([st, sh, sw], [pt, ph, pw]) = (self.window.stride, self.window.padding);
        let (kt_begin, kt_end) = self.window.valid_taps(0, t, self.input.shape.t);
        let (kh_begin, kh_end) = self.window.valid_taps(1, y, h);
        let mut sums = [S::splat(0.0); N];
        for kt in kt_begin..kt_end {
            for ky in kh_begin..kh_end {
                let row = ((t * st + kt - pt) * h + y * sh + ky - ph) * w;
                for kx in 0..kw {
                    let weight = S::load(self.weights.as_ptr().add(((kt * kh + ky) * kw + kx) * cp + c));
                    for (i, sum) in sums.iter_mut().enumerate() {
                        // Columns in the padding wrap round to huge numbers.
                        let column = ((x + i) * sw + kx).wrapping_sub(pw);
                        if column < w {
                            *sum = S::mul_add(S::load(from.add((row + column) * cp + c)), weight, *sum);
                        }
                    }
                }
            }
        }
        let Shape { t: frames, h: rows, w: width, .. } = self.output.shape;
        debug_assert!(t < frames && y < rows && x + N <= width);
        let to = context.arena.at(self.output.offset + clip * self.output.clip_len);
        for (i, sum) in sums.into_iter().enumerate() {
            let result = to.add(((t * rows + y) * width + x + i) * cp);
            let residual = self.epilogue.residual_at(context, clip, t, y, x + i);
            self.epilogue.finish::<S>(sum, result, residual, c);
        }
    }
}

impl Operator for Depthwise {
    fn pack(&mut self, weight: &[f32], _lanes: usize, _team: &mut Team) {
        let cp = self.output.shape.cp();
        let taps: usize = self.window.kernel.iter().product();
        let mut weights = Buffer::zeroed(self.weight_len());
        for (channel, values) in weight.chunks_exact(taps).enumerate() {
            for (tap, &value) in values.iter().enumerate() {
                weights[tap * cp + channel] = value;
            }
        }
        self.weights = weights;
    }

    fn weight_len(&self) -> usize {
        self.window.kernel.iter().product::<usize>() * self.output.shape.cp()
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context<'_>) {
        let Shape { t, h, w, .. } = self.output.shape;
        let cp = self.output.shape.cp();
        context.member.share(context.batch * t * h, |item| {
            let (clip, frame, y) = (item / h / t, item / h % t, item % h);
            for block in (0..cp).step_by(CHANNEL_BLOCK) {
                for c in (block..block + CHANNEL_BLOCK).step_by(S::LANES) {
                    let mut x = 0;
                    while x + COLUMNS <= w {
                        self.columns::<S, COLUMNS>(context, clip, [frame, y, x], c);
                        x += COLUMNS;
                    }
                    while x < w {
                        self.columns::<S, 1>(context, clip, [frame, y, x], c);
                        x += 1;
                    }
                }
            }
        });
    }
}
