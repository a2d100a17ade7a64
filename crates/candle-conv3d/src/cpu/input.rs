//! Brings a caller's clips into the arena: normalisation, channels-last, zero padding.

use super::memory::Slot;
use super::program::{Clips, Context, Operator};
use super::simd::Simd;
use super::stem::Phases;
use super::{CHANNEL_BLOCK, Shape};

/// How the clip is stored for the layers that read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As every activation.
    Activation,
    /// As [`Storage::Haloed`](super::direct::Storage::Haloed), with this padding before and after, `[h, w]` each.
    Haloed([[usize; 2]; 2]),
    /// As [`Phases`].
    Phases,
}

impl Layout {
    /// Floats of one clip.
    pub(crate) fn clip_len(self, shape: Shape) -> usize {
        match self {
            Self::Activation => shape.stored_len(),
            Self::Haloed([[top, left], [bottom, right]]) => {
                shape.t * (top + shape.h + bottom) * (left + shape.w + right) * shape.c
            }
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
            let values = match context.clips {
                Clips::Rgb { clips, table } => {
                    let pixels = &clips[clip][frame * h * w * 3..][..h * w * 3];
                    return load_squares(pixels, w, table, &phases, squares);
                }
                Clips::F32 { values } => values,
            };
            squares.fill([0.0; CHANNEL_BLOCK]);
            for y in 0..h {
                for x in 0..w {
                    let (square, channel) = phases.place(y, x, c);
                    for i in 0..c {
                        squares[square][channel + i] = values[(((clip * c + i) * t + frame) * h + y) * w + x];
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

/// A frame, (h, w, 3): each square is written once, with its padding channels, and so are those around. What a square has
/// beyond a frame of odd sides is zero.
fn load_squares(
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
    for (y, rows) in pixels.chunks(2 * w * 3).enumerate() {
        let (begin, _) = phases.place(2 * y, 0, 3);
        squares[written..begin].fill(ZERO);
        written = begin + w.div_ceil(2);
        let (upper, lower) = rows.split_at(w * 3);
        for (x, square) in squares[begin..written].iter_mut().enumerate() {
            let mut values = ZERO;
            for (row, channels) in [upper, lower].into_iter().zip(channels) {
                let pixels = row.get(6 * x..).unwrap_or_default().as_chunks::<3>().0;
                for (&[red, green, blue], first) in pixels.iter().zip(channels) {
                    values[first] = table[0][usize::from(red)];
                    values[first + 1] = table[1][usize::from(green)];
                    values[first + 2] = table[2][usize::from(blue)];
                }
            }
            *square = values;
        }
    }
    squares[written..].fill(ZERO);
}

impl Operator for LoadInput {
    fn check(&self, batch: usize, clips: &Clips<'_>, _outputs: &[&mut [f32]]) {
        let len = self.output.shape.len();
        match clips {
            Clips::Rgb { clips, .. } => {
                assert!(clips.len() == batch && self.output.shape.c == 3 && clips.iter().all(|clip| clip.len() == len));
            }
            Clips::F32 { values } => assert_eq!(values.len(), batch * len),
        }
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context) {
        let Shape { c, t, h, w } = self.output.shape;
        let (cp, [[top, left], [bottom, right]]) = match self.layout {
            Layout::Activation => (self.output.shape.cp(), [[0; 2]; 2]),
            Layout::Haloed(padding) => (c, padding),
            Layout::Phases => return self.load_phases(context),
        };
        let row_len = (left + w + right) * cp;
        let frame_len = (top + h + bottom) * row_len;
        context.member.share(context.batch * t, |item| {
            let (clip, frame) = (item / t, item % t);
            let to = context.arena.at(self.output.offset + clip * self.output.clip_len + frame * frame_len);
            // SAFETY: one frame of the slot, which only this thread writes.
            let to = std::slice::from_raw_parts_mut(to, frame_len);
            to[..top * row_len].fill(0.0);
            to[(top + h) * row_len..].fill(0.0);
            for y in 0..h {
                let row = &mut to[(top + y) * row_len..][..row_len];
                row[..left * cp].fill(0.0);
                row[(left + w) * cp..].fill(0.0);
                self.load_row(context.clips, clip, frame, y, cp, &mut row[left * cp..][..w * cp]);
            }
        });
    }
}
