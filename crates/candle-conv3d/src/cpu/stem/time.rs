//! The temporal half of the algorithm, between the spatial transforms.

use super::super::CHANNEL_BLOCK;
use super::super::simd::Simd;
use super::product::TapProduct;
use super::transform::{POINTS, THREE_TAP_POINTS, TILE, data_four, data_three, inverse, weights_four, weights_three};

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

    /// Floats of scratch for [`multiply`](Self::multiply): points' data, then their products.
    pub(super) fn scratch_len(&self, rows: usize, columns: usize) -> usize {
        match self.method {
            Method::Direct => 0,
            Method::Three => self.tiles() * rows * THREE_TAP_POINTS * (CHANNEL_BLOCK + columns),
            Method::Seven => self.tiles() * rows * (self.weight_taps() * CHANNEL_BLOCK + POINTS * columns),
        }
    }

    /// Convolves `v`, `[padded frame][row][CHANNEL_BLOCK]`, in time and over the channels `begin..begin + run`; `m` is
    /// `[frame][row][columns]`. `weights` are the sets of one spatial point, each packed.
    ///
    /// # Safety
    /// The pointers have these extents and `scratch` [`scratch_len`](Self::scratch_len); no other thread uses `m` and
    /// `scratch` meanwhile. `rows > 0`; `columns` is a multiple of the lanes.
    #[inline(always)]
    pub(super) unsafe fn multiply<S: Simd>(
        &self,
        v: *const f32,
        rows: usize,
        [begin, run]: [usize; 2],
        weights: *const f32,
        columns: usize,
        m: *mut f32,
        scratch: *mut f32,
    ) {
        let (from, to) = (rows * CHANNEL_BLOCK, rows * columns);
        let product = TapProduct {
            a: v.add(begin),
            lda: CHANNEL_BLOCK,
            tap_stride: from,
            rows,
            taps: self.kernel,
            run,
            b: weights,
            all_taps: self.kernel,
            first_tap: 0,
            columns,
            c: m,
        };
        if self.method == Method::Direct {
            for t in 0..self.output {
                let taps = self.valid_taps(t);
                S::call(TapProduct {
                    a: product.a.add((t + taps.start) * from),
                    taps: taps.len(),
                    first_tap: taps.start,
                    c: m.add(t * to),
                    ..product
                });
            }
            return;
        }
        let tiles = self.tiles();
        let products = scratch.add(self.weight_taps() * tiles * from);
        for tile in 0..tiles {
            let (read, write) = (v.add(tile * TILE * from), scratch.add(tile * from));
            match self.method {
                Method::Seven => transform_seven::<S>(read, from, write, tiles * from),
                _ => transform_three::<S>(read, from, write, tiles * from),
            }
        }
        let mut tap = 0;
        for (point, taps) in self.sets().enumerate() {
            S::call(TapProduct {
                a: scratch.add(tap * tiles * from + begin),
                tap_stride: tiles * from,
                rows: tiles * rows,
                taps,
                b: weights.add(tap * run * columns),
                all_taps: taps,
                c: products.add(point * tiles * to),
                ..product
            });
            tap += taps;
        }
        for tile in 0..tiles {
            let frames = TILE.min(self.output - tile * TILE);
            let (read, write) = (products.add(tile * to), m.add(tile * TILE * to));
            match self.method {
                Method::Seven => inverse_frames::<S, POINTS>(read, tiles * to, write, to, frames),
                _ => inverse_frames::<S, THREE_TAP_POINTS>(read, tiles * to, write, to, frames),
            }
        }
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

/// Products at `P` points to the first `count` of four frames of `len` floats.
#[inline(always)]
unsafe fn inverse_frames<S: Simd, const P: usize>(
    points: *const f32,
    stride: usize,
    frames: *mut f32,
    len: usize,
    count: usize,
) {
    for i in (0..len).step_by(S::LANES) {
        let mut p = [S::splat(0.0); POINTS];
        for (point, p) in p.iter_mut().enumerate().take(P) {
            *p = S::load(points.add(point * stride + i));
        }
        for (frame, &value) in inverse::<S>(&p).iter().enumerate().take(count) {
            S::store(frames.add(frame * len + i), value);
        }
    }
}
