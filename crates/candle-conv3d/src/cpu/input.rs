//! Brings a caller's clips into the arena: normalisation, channels-last, zero padding.

use super::memory::Slot;
use super::program::{Clips, Context};
use super::simd::Simd;
use super::stem::Phases;
use super::{CHANNEL_BLOCK, Shape};

/// How the clip is stored for the layers that read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As every activation.
    Activation,
    /// As [`Storage::Haloed`](super::direct::Storage::Haloed), with this padding, `[h, w]`.
    Haloed([usize; 2]),
    /// As [`Phases`].
    Phases,
}

impl Layout {
    /// Floats of one clip.
    pub(crate) fn clip_len(self, shape: Shape) -> usize {
        match self {
            Self::Activation => shape.stored_len(),
            Self::Haloed([ph, pw]) => shape.t * (shape.h + 2 * ph) * (shape.w + 2 * pw) * shape.c,
            Self::Phases => shape.t * Phases::new(shape).frame_len(),
        }
    }
}

/// The first step of every program.
pub(crate) struct LoadInput {
    output: Slot,
    layout: Layout,
}

impl LoadInput {
    pub(crate) fn new(output: Slot, layout: Layout) -> Self {
        Self { output, layout }
    }

    /// # Panics
    /// If the clips are not `batch` of the input's shape.
    pub(crate) fn check(&self, batch: usize, clips: &Clips) {
        let len = self.output.shape.len();
        match clips {
            Clips::Rgb { clips, .. } => {
                assert!(clips.len() == batch && self.output.shape.c == 3 && clips.iter().all(|clip| clip.len() == len));
            }
            Clips::F32 { values } => assert_eq!(values.len(), batch * len),
        }
    }

    /// # Safety
    /// As [`Context`] says, and [`check`](Self::check) passed.
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd>(&self, context: &Context) {
        let Shape { c, t, h, w } = self.output.shape;
        let (cp, [ph, pw]) = match self.layout {
            Layout::Activation => (self.output.shape.cp(), [0, 0]),
            Layout::Haloed(padding) => (c, padding),
            Layout::Phases => return self.load_phases(context),
        };
        let row_len = (w + 2 * pw) * cp;
        let frame_len = (h + 2 * ph) * row_len;
        context.member.share(context.batch * t, |item| {
            let (clip, frame) = (item / t, item % t);
            let to = context.arena.at(self.output.offset + clip * self.output.clip_len + frame * frame_len);
            // SAFETY: one frame of the slot, which only this thread writes.
            let to = std::slice::from_raw_parts_mut(to, frame_len);
            to[..ph * row_len].fill(0.0);
            to[(ph + h) * row_len..].fill(0.0);
            for y in 0..h {
                let row = &mut to[(ph + y) * row_len..][..row_len];
                row[..pw * cp].fill(0.0);
                row[(pw + w) * cp..].fill(0.0);
                self.load_row(context.clips, clip, frame, y, cp, &mut row[pw * cp..][..w * cp]);
            }
        });
    }

    /// # Safety
    /// As [`run`](Self::run).
    #[inline(always)]
    unsafe fn load_phases(&self, context: &Context) {
        let Shape { c, t, h, w } = self.output.shape;
        let phases = Phases::new(self.output.shape);
        let frame_len = phases.frame_len();
        context.member.share(context.batch * t, |item| {
            let (clip, frame) = (item / t, item % t);
            let to = context.arena.at(self.output.offset + clip * self.output.clip_len + frame * frame_len);
            // SAFETY: one frame of the slot, which only this thread writes.
            let to = std::slice::from_raw_parts_mut(to, frame_len);
            let squares = to.as_chunks_mut::<CHANNEL_BLOCK>().0;
            if let Clips::Rgb { clips, table } = context.clips
                && [h % 2, w % 2] == [0; 2]
            {
                let pixels = &clips[clip][frame * h * w * 3..][..h * w * 3];
                return load_whole_squares(pixels, w, table, &phases, squares);
            }
            squares.fill([0.0; CHANNEL_BLOCK]);
            for y in 0..h {
                for parity in 0..2.min(w) {
                    let (first, channel) = phases.place(y, parity, c);
                    let squares = squares[first..].iter_mut().zip((parity..w).step_by(2));
                    match context.clips {
                        Clips::Rgb { clips, table: [red, green, blue] } => {
                            let row = &clips[clip][(frame * h + y) * w * 3..][..w * 3];
                            for (square, x) in squares {
                                let to = &mut square[channel..channel + 3];
                                to[0] = red[usize::from(row[3 * x])];
                                to[1] = green[usize::from(row[3 * x + 1])];
                                to[2] = blue[usize::from(row[3 * x + 2])];
                            }
                        }
                        Clips::F32 { values } => {
                            for (square, x) in squares {
                                for i in 0..c {
                                    square[channel + i] = values[(((clip * c + i) * t + frame) * h + y) * w + x];
                                }
                            }
                        }
                    }
                }
            }
        });
    }

    #[inline(always)]
    fn load_row(&self, clips: Clips, clip: usize, frame: usize, y: usize, cp: usize, row: &mut [f32]) {
        let Shape { c, t, h, w } = self.output.shape;
        match clips {
            Clips::Rgb { clips, table: [red, green, blue] } => {
                let from = &clips[clip][(frame * h + y) * w * 3..][..w * 3];
                for (to, pixel) in row.chunks_exact_mut(cp).zip(from.chunks_exact(3)) {
                    to[0] = red[usize::from(pixel[0])];
                    to[1] = green[usize::from(pixel[1])];
                    to[2] = blue[usize::from(pixel[2])];
                    to[3..].fill(0.0);
                }
            }
            Clips::F32 { values } => {
                for (x, to) in row.chunks_exact_mut(cp).enumerate() {
                    for (channel, value) in to[..c].iter_mut().enumerate() {
                        *value = values[(((clip * c + channel) * t + frame) * h + y) * w + x];
                    }
                    to[c..].fill(0.0);
                }
            }
        }
    }
}

/// A frame of even sides, (h, w, 3): each square is written once, with its padding channels, and so are those around.
fn load_whole_squares(
    pixels: &[u8],
    w: usize,
    table: &[[f32; 256]; 3],
    phases: &Phases,
    squares: &mut [[f32; CHANNEL_BLOCK]],
) {
    const ZERO: [f32; CHANNEL_BLOCK] = [0.0; CHANNEL_BLOCK];
    // First channel of each phase, `[y][x]`.
    let channels = [0, 1].map(|y| [0, 1].map(|x| phases.place(y, x, 3).1));
    let mut written = 0;
    for (y, rows) in pixels.chunks_exact(2 * w * 3).enumerate() {
        let (begin, _) = phases.place(2 * y, 0, 3);
        squares[written..begin].fill(ZERO);
        written = begin + w / 2;
        let (upper, lower) = rows.split_at(w * 3);
        let pairs = upper.as_chunks::<6>().0.iter().zip(lower.as_chunks::<6>().0);
        for (square, (upper, lower)) in squares[begin..written].iter_mut().zip(pairs) {
            let mut values = ZERO;
            for (row, channels) in [upper, lower].into_iter().zip(channels) {
                for (x, first) in channels.into_iter().enumerate() {
                    for c in 0..3 {
                        values[first + c] = table[c][usize::from(row[3 * x + c])];
                    }
                }
            }
            *square = values;
        }
    }
    squares[written..].fill(ZERO);
}
