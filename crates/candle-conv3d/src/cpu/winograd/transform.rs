//! One-dimensional Winograd transforms for kernels of three taps.
//!
//! Toom-Cook at the points 0, infinity, 1, -1, 2, -2, in this order. A tile of `m` outputs reads `m + 2` inputs and
//! takes the first `m + 2` points, so tiles of every size share one set of transformed weights: the scale of each point
//! sits in the data transform. Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015); the
//! matrices of the shorter tiles follow from the weights' by solving for the data transform.

use super::super::simd::Simd;

/// Most points of an axis: those of a tile of four outputs.
pub(super) const POINTS: usize = 6;

/// The data transform of a tile of `M` outputs: `M + 2` inputs to `M + 2` points.
///
/// # Safety
/// The processor supports `S`.
#[inline(always)]
pub(super) unsafe fn data<S: Simd, const M: usize>(d: &[S::V; POINTS]) -> [S::V; POINTS] {
    let [two, three, four, five, six] = [2.0, 3.0, 4.0, 5.0, 6.0].map(|x| S::splat(x));
    let zero = S::splat(0.0);
    match M {
        1 => {
            let at_zero = S::mul(four, S::sub(d[0], d[1]));
            [at_zero, S::sub(d[2], d[1]), S::sub(zero, S::mul(six, d[1])), zero, zero, zero]
        }
        2 => {
            let at_zero = S::mul(four, S::sub(d[0], d[2]));
            let at_one = S::sub(zero, S::mul(three, S::add(d[1], d[2])));
            let at_minus_one = S::mul(three, S::sub(d[1], d[2]));
            [at_zero, S::sub(d[3], d[1]), at_one, at_minus_one, zero, zero]
        }
        3 => {
            let difference = S::sub(d[3], d[1]);
            let at_zero = S::mul_add(two, difference, S::mul(four, S::sub(d[0], d[2])));
            let at_infinity = S::sub(S::sub(d[4], d[2]), S::mul(two, difference));
            let at_one = S::mul(three, S::sub(S::sub(difference, d[1]), d[2]));
            let at_minus_one = S::mul_add(two, d[1], S::sub(d[3], S::mul(three, d[2])));
            [at_zero, at_infinity, at_one, at_minus_one, S::mul(four, difference), zero]
        }
        _ => {
            let at_zero = S::add(S::sub(S::mul(four, d[0]), S::mul(five, d[2])), d[4]);
            let at_infinity = S::add(S::sub(S::mul(four, d[1]), S::mul(five, d[3])), d[5]);
            let (even, odd) = (S::sub(d[4], S::mul(four, d[2])), S::sub(d[3], S::mul(four, d[1])));
            let (even2, odd2) = (S::sub(d[4], d[2]), S::mul(two, S::sub(d[3], d[1])));
            [at_zero, at_infinity, S::add(even, odd), S::sub(even, odd), S::add(even2, odd2), S::sub(even2, odd2)]
        }
    }
}

/// The inverse transform of a tile of `M` outputs: `M + 2` points to `M` results.
///
/// # Safety
/// The processor supports `S`.
#[inline(always)]
pub(super) unsafe fn inverse<S: Simd, const M: usize>(p: &[S::V; POINTS]) -> [S::V; 4] {
    let zero = S::splat(0.0);
    match M {
        1 => [S::add(S::add(p[0], p[1]), p[2]), zero, zero, zero],
        2 => [S::add(p[0], S::add(p[2], p[3])), S::add(p[1], S::sub(p[2], p[3])), zero, zero],
        3 => {
            let (sum, difference) = (S::add(p[2], p[3]), S::sub(p[2], p[3]));
            let third = S::mul_add(S::splat(4.0), p[4], S::add(p[1], sum));
            [S::add(S::add(p[0], sum), p[4]), S::mul_add(S::splat(2.0), p[4], difference), third, zero]
        }
        _ => {
            let (sum, difference) = (S::add(p[2], p[3]), S::sub(p[2], p[3]));
            let (sum2, difference2) = (S::add(p[4], p[5]), S::sub(p[4], p[5]));
            [
                S::add(S::add(p[0], sum), sum2),
                S::mul_add(S::splat(2.0), difference2, difference),
                S::mul_add(S::splat(4.0), sum2, sum),
                S::mul_add(S::splat(8.0), difference2, S::add(p[1], difference)),
            ]
        }
    }
}

/// The weight transform: three taps to six points.
pub(super) fn weights(g: [f64; 3]) -> [f64; POINTS] {
    let [g0, g1, g2] = g;
    [
        g0 / 4.0,
        g2,
        -(g0 + g1 + g2) / 6.0,
        (g1 - g0 - g2) / 6.0,
        (g0 + 2.0 * g1 + 4.0 * g2) / 24.0,
        (g0 - 2.0 * g1 + 4.0 * g2) / 24.0,
    ]
}

/// One axis cut into tiles of `tile` outputs and, where that leaves a rest, one shorter tile at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub(super) len: usize,
    tile: usize,
}

impl Axis {
    /// `tile` is 2 or 4.
    pub(super) fn new(len: usize, tile: usize) -> Self {
        Self { len, tile }
    }

    pub(super) fn tiles(&self) -> usize {
        self.len.div_ceil(self.tile)
    }

    /// First output and number of outputs of a tile.
    #[inline(always)]
    pub(super) fn tile(&self, index: usize) -> (usize, usize) {
        let first = index * self.tile;
        (first, self.tile.min(self.len - first))
    }

    /// Points of the largest tile.
    pub(super) fn points(&self) -> usize {
        self.tile.min(self.len) + 2
    }

    /// Points of the last tile.
    #[inline(always)]
    pub(super) fn points_of_last(&self) -> usize {
        self.tile(self.tiles() - 1).1 + 2
    }

    /// Tiles that have a point: all, or all but the last.
    #[inline(always)]
    pub(super) fn tiles_with(&self, point: usize) -> usize {
        self.tiles() - usize::from(point >= self.points_of_last())
    }

    /// Products a channel pair, summed over the tiles.
    pub(super) fn products(&self) -> usize {
        (0..self.tiles()).map(|i| self.tile(i).1 + 2).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::simd::Portable;
    use super::*;

    fn convolve<const M: usize>(d: [f64; POINTS], g: [f64; 3]) {
        let splat = d.map(|x| [x as f32; 8]);
        // SAFETY: the portable vectors need no processor feature.
        let points = unsafe { data::<Portable, M>(&splat) };
        let w = weights(g);
        let mut products = [[0.0; 8]; POINTS];
        for i in 0..M + 2 {
            products[i] = points[i].map(|x| (f64::from(x) * w[i]) as f32);
        }
        // SAFETY: as above.
        let y = unsafe { inverse::<Portable, M>(&products) };
        for o in 0..M {
            let expected: f64 = (0..3).map(|j| d[o + j] * g[j]).sum();
            // A dozen roundings of values up to 100.
            assert!((f64::from(y[o][0]) - expected).abs() < 1e-4, "tile of {M}, output {o}: {} {expected}", y[o][0]);
        }
    }

    #[test]
    fn tiles_of_every_size_convolve_with_the_same_weights() {
        let (d, g) = ([1.5, -2.25, 3.0, 0.5, -1.0, 2.0], [0.75, -1.5, 2.0]);
        convolve::<1>(d, g);
        convolve::<2>(d, g);
        convolve::<3>(d, g);
        convolve::<4>(d, g);
    }

    #[test]
    fn tiles_cover_an_axis() {
        for len in 1..20 {
            for tile in [2, 4] {
                let axis = Axis::new(len, tile);
                let outputs: usize = (0..axis.tiles()).map(|i| axis.tile(i).1).sum();
                assert_eq!(outputs, len);
                let products: usize = (0..axis.points()).map(|point| axis.tiles_with(point)).sum();
                assert_eq!(products, axis.products());
            }
        }
    }
}
