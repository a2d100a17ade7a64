//! The temporal half of the algorithm, between the spatial transforms.

use super::super::CHANNEL_BLOCK;
use super::super::simd::Simd;
use super::product::{PRODUCTS, TapProduct, TileProducts};
use super::transform::{POINTS, THREE_TAP_POINTS, TILE, data_four, data_three, weights_four, weights_three};

/// How the temporal taps meet the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// Every tap that meets data.
    Direct,
    /// Three taps, tiles of four frames: 6 products for 12.
    Three,
    /// Seven taps as four and three whose products are summed before one inverse: 13 for 28.
    Seven,
}

/// The temporal geometry of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time {
    pub(super) method: Method,
    kernel: usize,
    padding: usize,
    /// Frames of the input and of the output.
    input: usize,
    output: usize,
}

impl Time {
    /// Takes the method of the fewest products.
    pub(super) fn new(kernel: usize, padding: usize, input: usize, output: usize) -> Self {
        let direct = Self { method: Method::Direct, kernel, padding, input, output };
        let tiled = match kernel {
            3 => Self { method: Method::Three, ..direct },
            7 => Self { method: Method::Seven, ..direct },
            _ => return direct,
        };
        if tiled.products() < direct.products() { tiled } else { direct }
    }

    fn tiles(&self) -> usize {
        self.output.div_ceil(TILE)
    }

    /// Products of one channel pair at one spatial point.
    pub(super) fn products(&self) -> usize {
        match self.method {
            Method::Direct => (0..self.output).map(|t| self.valid_taps(t).len()).sum(),
            Method::Three | Method::Seven => self.tiles() * self.weight_taps(),
        }
    }

    fn valid_taps(&self, t: usize) -> std::ops::Range<usize> {
        let begin = self.padding.saturating_sub(t).min(self.kernel);
        begin..(self.input + self.padding).saturating_sub(t).clamp(begin, self.kernel)
    }

    /// Frames of `V`: the input's and those of padding that tiles read, which stay zero.
    pub(super) fn padded_frames(&self) -> usize {
        match self.method {
            Method::Direct => self.input + self.padding,
            Method::Three | Method::Seven => self.padding + self.input.max(self.tiles() * TILE + self.kernel - 1),
        }
    }

    /// Where the first frame of the input stands among them.
    pub(super) fn first_frame(&self) -> usize {
        self.padding
    }

    /// Taps after the weight transform.
    pub(super) fn weight_taps(&self) -> usize {
        match self.method {
            Method::Direct => self.kernel,
            Method::Three => THREE_TAP_POINTS,
            Method::Seven => POINTS + THREE_TAP_POINTS,
        }
    }

    /// Taps of each product, in the order of the transformed weights.
    pub(super) fn sets(&self) -> impl Iterator<Item = usize> {
        let (count, taps) = match self.method {
            Method::Direct => (1, self.kernel),
            Method::Three => (THREE_TAP_POINTS, 1),
            Method::Seven => (POINTS, 2),
        };
        (0..count).map(move |point| if point == THREE_TAP_POINTS { 1 } else { taps })
    }

    /// The weight transform.
    pub(super) fn weights(&self, taps: &[f64]) -> Vec<f64> {
        match (self.method, taps) {
            (Method::Three, &[a, b, c]) => weights_three([a, b, c])[..THREE_TAP_POINTS].to_vec(),
            (Method::Seven, &[a, b, c, d, e, f, g]) => {
                let (four, three) = (weights_four([a, b, c, d]), weights_three([e, f, g]));
                let pairs = four.into_iter().zip(three).flat_map(|(four, three)| [four, three]);
                pairs.take(self.weight_taps()).collect()
            }
            (_, taps) => taps.to_vec(),
        }
    }

    /// Floats of scratch for [`multiply`](Self::multiply): the points' data of a tile, then a block's products.
    pub(super) fn scratch_len(&self, rows: usize) -> usize {
        match self.method {
            Method::Direct => 0,
            Method::Three | Method::Seven => rows * self.weight_taps() * CHANNEL_BLOCK + PRODUCTS,
        }
    }

    /// The frames of the output, as [`multiply`](Self::multiply) computes them at a time.
    pub(super) fn blocks(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let output = self.output;
        (0..self.tiles()).map(move |tile| tile * TILE..output.min((tile + 1) * TILE))
    }

    /// Convolves `v`, `[padded frame][row][CHANNEL_BLOCK]`, in time and over the channels `begin..begin + run`; `m` is
    /// `[frame][row][columns]` for the output frames `frames`, one of [`blocks`](Self::blocks). `weights` are the sets
    /// of one spatial point, each packed.
    ///
    /// # Safety
    /// The pointers have these extents and `scratch` [`scratch_len`](Self::scratch_len); no other thread uses `m` and
    /// `scratch` meanwhile. `rows > 0`; `columns` is a multiple of the lanes.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "one call site; each has its own meaning")]
    pub(super) unsafe fn multiply<S: Simd>(
        &self,
        v: *const f32,
        rows: usize,
        [begin, run]: [usize; 2],
        weights: *const f32,
        columns: usize,
        frames: std::ops::Range<usize>,
        m: *mut f32,
        scratch: *mut f32,
    ) {
        let from = rows * CHANNEL_BLOCK;
        let read = v.add(frames.start * from);
        match self.method {
            Method::Direct => {
                for t in frames.clone() {
                    let taps = self.valid_taps(t);
                    S::call(TapProduct {
                        a: v.add(begin + (t + taps.start) * from),
                        lda: CHANNEL_BLOCK,
                        tap_stride: from,
                        rows,
                        taps: taps.len(),
                        run,
                        b: weights,
                        all_taps: self.kernel,
                        first_tap: taps.start,
                        columns,
                        c: m.add((t - frames.start) * rows * columns),
                    });
                }
                return;
            }
            Method::Three => transform_three::<S>(read, from, scratch, from),
            Method::Seven => transform_seven::<S>(read, from, scratch, from),
        }
        S::call(TileProducts {
            time: self,
            a: scratch.add(begin),
            tap_stride: from,
            rows,
            run,
            b: weights,
            columns,
            products: scratch.add(self.weight_taps() * from),
            c: m,
            frames: frames.len(),
        });
    }
}

/// Ten frames of `len` floats to the points of taps 0 to 3 and 4 to 6, in pairs and the single last.
#[inline(always)]
unsafe fn transform_seven<S: Simd>(frames: *const f32, len: usize, points: *mut f32, stride: usize) {
    const FRAMES: usize = TILE + 6;
    let minus_half = S::splat(-0.5);
    for i in (0..len).step_by(S::LANES) {
        let mut d = [minus_half; FRAMES];
        for (frame, d) in d.iter_mut().enumerate() {
            *d = S::load(frames.add(frame * len + i));
        }
        let four = data_four::<S>(&[d[0], d[1], d[2], d[3], d[4], d[5], d[6]], minus_half);
        let three = data_three::<S>(&[d[4], d[5], d[6], d[7], d[8], d[9]]);
        for point in 0..THREE_TAP_POINTS {
            S::store(points.add(2 * point * stride + i), four[point]);
            S::store(points.add((2 * point + 1) * stride + i), three[point]);
        }
        S::store(points.add(2 * THREE_TAP_POINTS * stride + i), four[THREE_TAP_POINTS]);
    }
}

/// Six frames of `len` floats to the points of three taps.
#[inline(always)]
unsafe fn transform_three<S: Simd>(frames: *const f32, len: usize, points: *mut f32, stride: usize) {
    for i in (0..len).step_by(S::LANES) {
        let mut d = [S::splat(0.0); THREE_TAP_POINTS];
        for (frame, d) in d.iter_mut().enumerate() {
            *d = S::load(frames.add(frame * len + i));
        }
        for (point, &value) in data_three::<S>(&d).iter().enumerate() {
            S::store(points.add(point * stride + i), value);
        }
    }
}
