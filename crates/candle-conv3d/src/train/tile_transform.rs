//! The transforms of Winograd's F(4x4, 3x3), for 16 channels at a time.
//!
//! Output tiles of 4 x 4 come from input tiles of 6 x 6 with 36 products instead of 144 (Lavin and Gray, "Fast
//! Algorithms for Convolutional Neural Networks", section 4.3; points 0, 1, -1, 2, -2, infinity). With
//! Y = A' [(G g G') * (B' d B)] A, the gradient of g is G' [(B' d B) * (A dY A')] G: the same four matrices serve
//! training.

use super::kernel::PANEL;

/// Places of an output tile along an axis.
pub(crate) const OUT: usize = 4;

/// Places of an input tile along an axis, and points of the transform.
pub(crate) const POINTS: usize = 6;

/// Taps along an axis.
pub(crate) const TAPS: usize = 3;

/// 16 neighbouring channels.
pub(crate) type Lanes = [f32; PANEL];

const ZERO: Lanes = [0.; PANEL];

/// A square of places or points, for 16 channels.
pub(crate) type Square<const N: usize> = [[Lanes; N]; N];

pub(crate) const fn zeros<const N: usize>() -> Square<N> {
    [[ZERO; N]; N]
}

/// B' d B.
#[inline(always)]
pub(crate) fn input(tile: &Square<POINTS>) -> Square<POINTS> {
    both_axes(tile, |d: [f32; POINTS]| {
        let (a, b) = (d[4] - 4. * d[2], d[3] - 4. * d[1]);
        let (c, e) = (d[4] - d[2], 2. * (d[3] - d[1]));
        [4. * d[0] - 5. * d[2] + d[4], a + b, a - b, c + e, c - e, 4. * d[1] - 5. * d[3] + d[5]]
    })
}

/// A' m A.
#[inline(always)]
pub(crate) fn output(products: &Square<POINTS>) -> Square<OUT> {
    both_axes(products, |m: [f32; POINTS]| {
        let (a, b) = (m[1] + m[2], m[1] - m[2]);
        let (c, d) = (m[3] + m[4], m[3] - m[4]);
        [m[0] + a + c, b + 2. * d, a + 4. * c, b + 8. * d + m[5]]
    })
}

/// A dy A', the transpose of [`output`].
#[inline(always)]
pub(crate) fn upstream(tile: &Square<OUT>) -> Square<POINTS> {
    both_axes(tile, |y: [f32; OUT]| {
        let (a, b) = (y[0] + y[2], y[1] + y[3]);
        let (c, d) = (y[0] + 4. * y[2], 2. * y[1] + 8. * y[3]);
        [y[0], a + b, a - b, c + d, c - d, y[3]]
    })
}

/// G g G'.
#[inline(always)]
pub(crate) fn weight(taps: &Square<TAPS>) -> Square<POINTS> {
    both_axes(taps, |g: [f32; TAPS]| {
        let (a, b) = ((g[0] + g[2]) * (1. / 6.), g[1] * (1. / 6.));
        let (c, d) = (g[0] * (1. / 24.) + g[2] * (1. / 6.), g[1] * (1. / 12.));
        [g[0] * 0.25, -a - b, b - a, c + d, c - d, g[2]]
    })
}

/// G' u G, the transpose of [`weight`].
#[inline(always)]
pub(crate) fn weight_gradient(products: &Square<POINTS>) -> Square<TAPS> {
    both_axes(products, |u: [f32; POINTS]| {
        let (a, b) = (u[1] + u[2], u[2] - u[1]);
        let (c, d) = (u[3] + u[4], u[3] - u[4]);
        [u[0] * 0.25 - a * (1. / 6.) + c * (1. / 24.), b * (1. / 6.) + d * (1. / 12.), (c - a) * (1. / 6.) + u[5]]
    })
}

/// Applies a linear map of one axis to the columns and then to the rows of a square.
#[inline(always)]
fn both_axes<const N: usize, const M: usize>(square: &Square<N>, map: impl Fn([f32; N]) -> [f32; M]) -> Square<M> {
    let mut half = [[ZERO; N]; M];
    for column in 0..N {
        for lane in 0..PANEL {
            let mapped = map(std::array::from_fn(|row| square[row][column][lane]));
            for (row, value) in mapped.into_iter().enumerate() {
                half[row][column][lane] = value;
            }
        }
    }
    let mut whole = zeros::<M>();
    for row in 0..M {
        for lane in 0..PANEL {
            let mapped = map(std::array::from_fn(|column| half[row][column][lane]));
            for (column, value) in mapped.into_iter().enumerate() {
                whole[row][column][lane] = value;
            }
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square<const N: usize>(seed: usize) -> Square<N> {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500. - 1.;
        std::array::from_fn(|y| std::array::from_fn(|x| std::array::from_fn(|lane| value((y * N + x) * PANEL + lane))))
    }

    fn dot<const N: usize>(a: &Square<N>, b: &Square<N>) -> f32 {
        let (a, b) = (a.as_flattened().as_flattened(), b.as_flattened().as_flattened());
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    fn times(a: &Square<POINTS>, b: &Square<POINTS>) -> Square<POINTS> {
        std::array::from_fn(|y| std::array::from_fn(|x| std::array::from_fn(|lane| a[y][x][lane] * b[y][x][lane])))
    }

    #[test]
    fn products_of_transforms_are_a_convolution() {
        let (tile, taps) = (square::<POINTS>(1), square::<TAPS>(2));
        let result = output(&times(&input(&tile), &weight(&taps)));
        for y in 0..OUT {
            for x in 0..OUT {
                for lane in 0..PANEL {
                    let sum: f32 = (0..TAPS * TAPS)
                        .map(|tap| tile[y + tap / TAPS][x + tap % TAPS][lane] * taps[tap / TAPS][tap % TAPS][lane])
                        .sum();
                    // The points up to 2 cost two or three bits of f32.
                    assert!((result[y][x][lane] - sum).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn gradient_transforms_are_the_transposes() {
        let (tile, taps, above) = (square::<POINTS>(3), square::<TAPS>(4), square::<OUT>(5));
        let loss = dot(&output(&times(&input(&tile), &weight(&taps))), &above);
        let gradient = weight_gradient(&times(&input(&tile), &upstream(&above)));
        // The loss is linear in the taps, so it is the taps times their gradient. Sums of some 2,000 terms below 1.
        assert!((dot(&gradient, &taps) - loss).abs() < 1e-2, "{} instead of {loss}", dot(&gradient, &taps));
    }
}
