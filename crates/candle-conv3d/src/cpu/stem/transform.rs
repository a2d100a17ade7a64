//! One-dimensional Winograd transforms for tiles of four outputs and kernels of three or four taps.
//!
//! Toom-Cook at the points 0, 1, -1, 2, -2, infinity and, with four taps, 1/2, in this order. Both kinds of kernel share
//! the inverse transform, so that products of the two are summed before it; a three-tap kernel has nothing at 1/2.
//! Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), section 4.3.

use super::super::simd::Simd;

/// Outputs of a tile along an axis.
pub(super) const TILE: usize = 4;
/// Points of a three-tap kernel.
pub(super) const THREE_TAP_POINTS: usize = 6;
/// Points of a four-tap kernel.
pub(super) const POINTS: usize = 7;
/// Inputs of a tile: four taps at four outputs.
pub(super) const INPUTS: usize = 7;

/// Six inputs of a three-tap kernel to its points.
///
/// # Safety
/// The processor supports `S`.
#[inline(always)]
pub(super) unsafe fn data_three<S: Simd>(d: &[S::V; THREE_TAP_POINTS]) -> [S::V; THREE_TAP_POINTS] {
    let [two, four, five] = [2.0, 4.0, 5.0].map(|x| S::splat(x));
    let (even, odd) = (S::sub(d[4], S::mul(four, d[2])), S::sub(d[3], S::mul(four, d[1])));
    let (even2, odd2) = (S::sub(d[4], d[2]), S::mul(two, S::sub(d[3], d[1])));
    [
        S::add(S::sub(S::mul(four, d[0]), S::mul(five, d[2])), d[4]),
        S::add(even, odd),
        S::sub(even, odd),
        S::add(even2, odd2),
        S::sub(even2, odd2),
        S::add(S::sub(S::mul(four, d[1]), S::mul(five, d[3])), d[5]),
    ]
}

/// Seven inputs of a four-tap kernel to its points.
///
/// One point more than [`data_three`] multiplies that one's rows by (x - 1/2). Lanes where `minus_half` is 0 instead of
/// -1/2 hold a kernel whose first tap is zero, as the three taps that are left; their last point is of no use.
///
/// # Safety
/// The processor supports `S`.
#[inline(always)]
pub(super) unsafe fn data_four<S: Simd>(d: &[S::V; INPUTS], minus_half: S::V) -> [S::V; POINTS] {
    let mut e = [minus_half; THREE_TAP_POINTS];
    for (i, e) in e.iter_mut().enumerate() {
        *e = S::mul_add(minus_half, d[i], d[i + 1]);
    }
    let [a, b, c, d4, d5, infinity] = data_three::<S>(&e);
    let half = S::add(S::sub(S::mul(S::splat(4.0), d[1]), S::mul(S::splat(5.0), d[3])), d[5]);
    [a, b, c, d4, d5, infinity, half]
}

/// The points' products to the results of a tile.
///
/// # Safety
/// The processor supports `S`.
#[inline(always)]
pub(super) unsafe fn inverse<S: Simd>(p: &[S::V; POINTS]) -> [S::V; TILE] {
    let (sum, difference) = (S::add(p[1], p[2]), S::sub(p[1], p[2]));
    let (sum2, difference2) = (S::add(p[3], p[4]), S::sub(p[3], p[4]));
    [
        S::add(S::add(S::add(p[0], sum), sum2), p[6]),
        S::mul_add(S::splat(0.5), p[6], S::mul_add(S::splat(2.0), difference2, difference)),
        S::mul_add(S::splat(0.25), p[6], S::mul_add(S::splat(4.0), sum2, sum)),
        S::mul_add(S::splat(0.125), p[6], S::mul_add(S::splat(8.0), difference2, S::add(p[5], difference))),
    ]
}

/// Transforms four taps.
pub(super) fn weights_four(g: [f64; 4]) -> [f64; POINTS] {
    // 1 over the product of the point's distances to the others; the data transform has no scale.
    let at = |x: f64, scale: f64| scale * (g[0] + x * (g[1] + x * (g[2] + x * g[3])));
    [
        at(0.0, -1.0 / 2.0),
        at(1.0, -1.0 / 3.0),
        at(-1.0, 1.0 / 9.0),
        at(2.0, 1.0 / 36.0),
        at(-2.0, -1.0 / 60.0),
        g[3],
        at(0.5, 32.0 / 45.0),
    ]
}

/// Transforms three taps; the last point is 0.
pub(super) fn weights_three(g: [f64; 3]) -> [f64; POINTS] {
    let at = |x: f64, scale: f64| scale * (g[0] + x * (g[1] + x * g[2]));
    [
        at(0.0, 1.0 / 4.0),
        at(1.0, -1.0 / 6.0),
        at(-1.0, -1.0 / 6.0),
        at(2.0, 1.0 / 24.0),
        at(-2.0, 1.0 / 24.0),
        g[2],
        0.0,
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::simd::Portable;
    use super::*;

    fn assert_convolves(d: [f32; INPUTS], g: [f64; 4], minus_half: f32, weights: [f64; POINTS]) {
        let mut products = [[0.0; 8]; POINTS];
        // SAFETY: the portable vectors need no processor feature.
        let points = unsafe { data_four::<Portable>(&d.map(|x| [x; 8]), [minus_half; 8]) };
        for (product, (point, weight)) in products.iter_mut().zip(points.iter().zip(weights)) {
            *product = point.map(|x| (f64::from(x) * weight) as f32);
        }
        // SAFETY: as above.
        let y = unsafe { inverse::<Portable>(&products) };
        for (o, y) in y.iter().enumerate() {
            let expected: f64 = (0..4).map(|j| f64::from(d[o + j]) * g[j]).sum();
            // Some twenty roundings of values up to 100.
            assert!((f64::from(y[0]) - expected).abs() < 1e-4, "output {o}: {} {expected}", y[0]);
        }
    }

    #[test]
    fn kernels_of_three_and_four_taps_share_one_inverse() {
        let d = [1.5, -2.25, 3.0, 0.5, -1.0, 2.0, 0.75];
        assert_convolves(d, [0.75, -1.5, 2.0, 1.25], -0.5, weights_four([0.75, -1.5, 2.0, 1.25]));
        assert_convolves(d, [0.0, -1.5, 2.0, 1.25], 0.0, weights_three([-1.5, 2.0, 1.25]));
    }
}
