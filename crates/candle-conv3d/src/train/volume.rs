//! Volumes as the kernels want them: channels last, with zeros around height and width.

use rayon::prelude::*;

use super::kernel::{PANEL, transpose};
use super::scratch::Scratch;

/// A volume (n, t, h, w, c) with zeros around height and width. Time is never padded: taps that meet no frame are
/// skipped.
pub(crate) struct Padded {
    pub(crate) data: Scratch,
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
        let mut data = Scratch::zeros(n * frames * rows * columns * channels);
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
pub(crate) fn channel_panels(src: &[f32], dims: [usize; 5]) -> Scratch {
    let [n, channels, frames, h, w] = dims;
    let places = h * w;
    let mut panels = Scratch::zeros(channels.div_ceil(PANEL) * frames * n * places * PANEL);
    panels.par_chunks_mut(places * PANEL).enumerate().for_each(|(i, dst)| {
        let (clip, t, first) = (i % n, i / n % frames, i / n / frames * PANEL);
        let src = &src[((clip * channels + first) * frames + t) * places..];
        transpose([PANEL.min(channels - first), places], src, |c| c * frames * places, dst, |place| place * PANEL);
    });
    panels
}

/// A volume (n, c, t, h, w) that is read in bands of rows, channels last: its rows and columns are padded as those of
/// [`Padded`], but only the rows at hand are ever copied.
pub(crate) trait Banded: Sync {
    /// Columns of a row, padding included.
    fn columns(&self) -> usize;

    /// Channels of a place.
    fn channels(&self) -> usize;

    /// Copies the padded rows from `first` on of a frame into `band` (rows, columns, channels), which is all zeros.
    fn copy(&self, clip: usize, frame: usize, first: usize, band: &mut [f32]);

    /// Floats of a row.
    fn row_len(&self) -> usize {
        self.columns() * self.channels()
    }
}

/// A volume with zeros around height and width.
pub(crate) struct Bordered<'a> {
    pub(crate) src: &'a [f32],
    /// (n, c, t, h, w) of `src`.
    pub(crate) dims: [usize; 5],
    /// Zero rows above and zero columns to the left.
    pub(crate) before: usize,
    pub(crate) columns: usize,
}

impl Banded for Bordered<'_> {
    fn columns(&self) -> usize {
        self.columns
    }

    fn channels(&self) -> usize {
        self.dims[1]
    }

    fn copy(&self, clip: usize, frame: usize, first: usize, band: &mut [f32]) {
        let [_, channels, frames, h, w] = self.dims;
        for (row, band) in (first..).zip(band.chunks_exact_mut(self.row_len())) {
            let Some(row) = row.checked_sub(self.before).filter(|&row| row < h) else { continue };
            let src = &self.src[((clip * channels * frames + frame) * h + row) * w..];
            let band = &mut band[self.before * channels..];
            transpose([channels, w], src, |c| c * frames * h * w, band, |x| x * channels);
        }
    }
}
