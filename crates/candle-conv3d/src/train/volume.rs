//! Volumes as the kernels want them: channels last, with zeros around height and width.

use rayon::prelude::*;

use super::kernel::{PANEL, transpose};

/// A volume (n, t, h, w, c) with zeros around height and width. Time is never padded: taps that meet no frame are
/// skipped.
pub(crate) struct Padded {
    pub(crate) data: Vec<f32>,
    pub(crate) frames: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) channels: usize,
    /// Zero rows above and zero columns to the left.
    pub(crate) before: [usize; 2],
}

impl Padded {
    /// Copies `src` (n, c, t, h, w), with `before` rows above and columns left and `after` below and right.
    pub(crate) fn new(src: &[f32], dims: [usize; 5], before: [usize; 2], after: [usize; 2]) -> Self {
        let [n, channels, frames, h, w] = dims;
        let (rows, columns) = (before[0] + h + after[0], before[1] + w + after[1]);
        let mut data = vec![0f32; n * frames * rows * columns * channels];
        data.par_chunks_mut(rows * columns * channels).enumerate().for_each(|(frame, padded)| {
            let (clip, t) = (frame / frames, frame % frames);
            for row in 0..h {
                let src = &src[((clip * channels * frames + t) * h + row) * w..];
                let dst = &mut padded[((before[0] + row) * columns + before[1]) * channels..][..w * channels];
                transpose([channels, w], src, |c| c * frames * h * w, dst, |x| x * channels);
            }
        });
        Self { data, frames, rows, columns, channels, before }
    }

    pub(crate) fn row_len(&self) -> usize {
        self.columns * self.channels
    }

    pub(crate) fn frame_len(&self) -> usize {
        self.rows * self.row_len()
    }

    pub(crate) fn clip_len(&self) -> usize {
        self.frames * self.frame_len()
    }
}

/// `src` (n, c, t, h, w) as panels (c / 16, t, n, h w, 16), the last filled up with zeros.
pub(crate) fn channel_panels(src: &[f32], dims: [usize; 5]) -> Vec<f32> {
    let [n, channels, frames, h, w] = dims;
    let places = h * w;
    let mut panels = vec![0f32; channels.div_ceil(PANEL) * frames * n * places * PANEL];
    panels.par_chunks_mut(places * PANEL).enumerate().for_each(|(i, dst)| {
        let (clip, t, first) = (i % n, i / n % frames, i / n / frames * PANEL);
        let src = &src[((clip * channels + first) * frames + t) * places..];
        transpose([PANEL.min(channels - first), places], src, |c| c * frames * places, dst, |place| place * PANEL);
    });
    panels
}
