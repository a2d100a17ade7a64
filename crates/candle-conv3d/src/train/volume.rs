//! Volumes as the kernels want them: (n, t, h, w, c), channels last, some of them with zeros around height and width.

use rayon::prelude::*;

use super::kernel::{PANEL, transpose};
use super::scratch::Scratch;

/// Places that a task rearranges.
const TASK_PLACES: usize = 1024;

/// `src` (n, c, places) as (n, places, c).
pub(crate) fn channels_last(src: &[f32], channels: usize, places: usize) -> Scratch {
    let mut volume = Scratch::any(src.len());
    volume.par_chunks_mut(channels * places).zip(src.par_chunks(channels * places)).for_each(|(volume, src)| {
        volume.par_chunks_mut(TASK_PLACES * channels).enumerate().for_each(|(task, volume)| {
            let first = task * TASK_PLACES;
            let count = volume.len() / channels;
            transpose([channels, count], src, |c| c * places + first, volume, |place| place * channels);
        });
    });
    volume
}

/// `src` (n, places, c) as (n, c, places).
pub(crate) fn channels_first(src: &[f32], channels: usize, places: usize) -> Vec<f32> {
    let mut volume = vec![0f32; src.len()];
    volume.par_chunks_mut(channels * places).zip(src.par_chunks(channels * places)).for_each(|(volume, src)| {
        volume.par_chunks_mut(PANEL * places).enumerate().for_each(|(panel, volume)| {
            let count = volume.len() / places;
            transpose([places, count], src, |place| place * channels + panel * PANEL, volume, |c| c * places);
        });
    });
    volume
}

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
    /// Copies `src`, a volume of `dims` (n, t, h, w, c), with `before` rows above and columns left and `after` below and
    /// right.
    pub(crate) fn new(src: &[f32], dims: [usize; 5], before: [usize; 2], after: [usize; 2]) -> Self {
        let [n, frames, h, w, channels] = dims;
        let (rows, columns) = (before[0] + h + after[0], before[1] + w + after[1]);
        let mut data = Scratch::any(n * frames * rows * columns * channels);
        let frame_pairs = data.par_chunks_mut(rows * columns * channels).zip(src.par_chunks(h * w * channels));
        frame_pairs.for_each(|(padded, src)| {
            padded.fill(0.);
            for (row, src) in src.chunks_exact(w * channels).enumerate() {
                padded[((before[0] + row) * columns + before[1]) * channels..][..src.len()].copy_from_slice(src);
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

/// `src`, a volume of `dims` (n, t, h, w, c), as panels (c / 16, t, n, h w, 16), the last filled up with zeros.
pub(crate) fn channel_panels(src: &[f32], dims: [usize; 5]) -> Scratch {
    let [n, frames, h, w, channels] = dims;
    let places = h * w;
    let mut panels = Scratch::any(channels.div_ceil(PANEL) * frames * n * places * PANEL);
    panels.par_chunks_mut(places * PANEL).enumerate().for_each(|(i, panel)| {
        let (clip, t, first) = (i % n, i / n % frames, i / n / frames * PANEL);
        let src = &src[(clip * frames + t) * places * channels..][..places * channels];
        let count = PANEL.min(channels - first);
        for (lanes, src) in panel.as_chunks_mut::<PANEL>().0.iter_mut().zip(src.chunks_exact(channels)) {
            lanes[..count].copy_from_slice(&src[first..first + count]);
            lanes[count..].fill(0.);
        }
    });
    panels
}

/// A volume that is read in bands of rows: its rows and columns are padded as those of [`Padded`], but only the rows at
/// hand are ever copied.
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
    /// (n, t, h, w, c) of `src`.
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
        self.dims[4]
    }

    fn copy(&self, clip: usize, frame: usize, first: usize, band: &mut [f32]) {
        let [_, frames, h, w, channels] = self.dims;
        for (row, band) in (first..).zip(band.chunks_exact_mut(self.row_len())) {
            let Some(row) = row.checked_sub(self.before).filter(|&row| row < h) else { continue };
            let src = &self.src[((clip * frames + frame) * h + row) * w * channels..][..w * channels];
            band[self.before * channels..][..src.len()].copy_from_slice(src);
        }
    }
}
