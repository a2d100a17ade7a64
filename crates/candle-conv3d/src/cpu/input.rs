//! Brings a caller's clips into the arena: normalisation, channels-last, zero padding.

use super::direct::Storage;
use super::memory::Slot;
use super::program::{Clips, Context};
use super::simd::Simd;
use super::{Shape, Window};

/// The first step of every program.
pub(crate) struct LoadInput {
    output: Slot,
    storage: Storage,
    /// Spatial halo of [`Storage::Haloed`], `[h, w]`.
    halo: [usize; 2],
}

impl LoadInput {
    /// `window` is that of the convolution that reads a haloed input.
    pub(crate) fn new(output: Slot, storage: Storage, window: Option<Window>) -> Self {
        let halo = match window {
            Some(Window { padding: [_, ph, pw], .. }) if storage == Storage::Haloed => [ph, pw],
            _ => [0, 0],
        };
        Self { output, storage, halo }
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
        let Shape { t, h, w, .. } = self.output.shape;
        let cp = self.stored_channels();
        let [ph, pw] = self.halo;
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
                self.load_row(context.clips, clip, frame, y, &mut row[pw * cp..][..w * cp]);
            }
        });
    }

    fn stored_channels(&self) -> usize {
        match self.storage {
            Storage::Activation => self.output.shape.cp(),
            Storage::Haloed => self.output.shape.c,
        }
    }

    #[inline(always)]
    fn load_row(&self, clips: Clips, clip: usize, frame: usize, y: usize, row: &mut [f32]) {
        let Shape { c, t, h, w } = self.output.shape;
        let cp = self.stored_channels();
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
