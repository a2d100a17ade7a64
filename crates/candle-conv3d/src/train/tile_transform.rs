//! The transforms of Winograd's F(4x4, 3x3) and F(4x4, 4x4), for 16 channels at a time.
//!
//! Output tiles of 4 x 4 come from input tiles of 6 x 6 with 36 products instead of 144, or of 7 x 7 with 49 instead of
//! 256 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", section 4.3). With
//! Y = A' [(G g G') * (B' d B)] A, the gradient of g is G' [(B' d B) * (A dY A')] G: the same matrices serve training.

use super::kernel::PANEL;

/// Places of an output tile along an axis.
pub(crate) const OUT: usize = 4;

/// 16 neighbouring channels.
pub(crate) type Lanes = [f32; PANEL];

const ZERO: Lanes = [0.; PANEL];

/// A square of places or points, for 16 channels.
pub(crate) type Square<const N: usize> = [[Lanes; N]; N];

pub(crate) const fn zeros<const N: usize>() -> Square<N> {
    [[ZERO; N]; N]
}

/// The transforms of one axis, for T taps and P points.
pub(crate) trait Axis<const T: usize, const P: usize> {
    /// B' d
    fn input(d: [f32; P]) -> [f32; P];

    /// A' m
    fn output(m: [f32; P]) -> [f32; OUT];

    /// A dy
    fn upstream(dy: [f32; OUT]) -> [f32; P];

    /// G g
    fn weight(g: [f32; T]) -> [f32; P];

    /// G' u
    fn weight_gradient(u: [f32; P]) -> [f32; T];
}

/// Three taps by the points 0, 1, -1, 2, -2 and infinity.
pub(crate) struct ThreeTaps;

impl Axis<3, 6> for ThreeTaps {
    #[inline(always)]
    fn input(d: [f32; 6]) -> [f32; 6] {
        let (a, b) = (d[4] - 4. * d[2], d[3] - 4. * d[1]);
        let (c, e) = (d[4] - d[2], 2. * (d[3] - d[1]));
        [4. * d[0] - 5. * d[2] + d[4], a + b, a - b, c + e, c - e, 4. * d[1] - 5. * d[3] + d[5]]
    }

    #[inline(always)]
    fn output(m: [f32; 6]) -> [f32; OUT] {
        let (a, b) = (m[1] + m[2], m[1] - m[2]);
        let (c, d) = (m[3] + m[4], m[3] - m[4]);
        [m[0] + a + c, b + 2. * d, a + 4. * c, b + 8. * d + m[5]]
    }

    #[inline(always)]
    fn upstream(dy: [f32; OUT]) -> [f32; 6] {
        let (a, b) = (dy[0] + dy[2], dy[1] + dy[3]);
        let (c, d) = (dy[0] + 4. * dy[2], 2. * dy[1] + 8. * dy[3]);
        [dy[0], a + b, a - b, c + d, c - d, dy[3]]
    }

    #[inline(always)]
    fn weight(g: [f32; 3]) -> [f32; 6] {
        let (a, b) = ((g[0] + g[2]) * (1. / 6.), g[1] * (1. / 6.));
        let (c, d) = (g[0] * (1. / 24.) + g[2] * (1. / 6.), g[1] * (1. / 12.));
        [g[0] * 0.25, -a - b, b - a, c + d, c - d, g[2]]
    }

    #[inline(always)]
    fn weight_gradient(u: [f32; 6]) -> [f32; 3] {
        let (a, b) = (u[1] + u[2], u[2] - u[1]);
        let (c, d) = (u[3] + u[4], u[3] - u[4]);
        [u[0] * 0.25 - a * (1. / 6.) + c * (1. / 24.), b * (1. / 6.) + d * (1. / 12.), (c - a) * (1. / 6.) + u[5]]
    }
}

/// Four taps by the points 0, 1, -1, 2, -2, 1/2 and infinity.
pub(crate) struct FourTaps;

/// G of [`FourTaps`]: powers of the point a over the product of its distances to the other points.
const FOUR_TAPS_WEIGHT: [[f32; 4]; 7] = [
    [-1. / 2., 0., 0., 0.],
    [-1. / 3., -1. / 3., -1. / 3., -1. / 3.],
    [1. / 9., -1. / 9., 1. / 9., -1. / 9.],
    [1. / 36., 2. / 36., 4. / 36., 8. / 36.],
    [-1. / 60., 2. / 60., -4. / 60., 8. / 60.],
    [32. / 45., 16. / 45., 8. / 45., 4. / 45.],
    [0., 0., 0., 1.],
];

impl Axis<4, 7> for FourTaps {
    /// One point more than [`ThreeTaps`]: its rows are those times (x - 1/2), and one without.
    #[inline(always)]
    fn input(d: [f32; 7]) -> [f32; 7] {
        let [a, b, c, e, f, last] = ThreeTaps::input(std::array::from_fn(|i| d[i + 1] - 0.5 * d[i]));
        [a, b, c, e, f, 4. * d[1] - 5. * d[3] + d[5], last]
    }

    #[inline(always)]
    fn output(m: [f32; 7]) -> [f32; OUT] {
        let [y0, y1, y2, y3] = ThreeTaps::output([m[0], m[1], m[2], m[3], m[4], m[6]]);
        [y0 + m[5], y1 + 0.5 * m[5], y2 + 0.25 * m[5], y3 + 0.125 * m[5]]
    }

    #[inline(always)]
    fn upstream(dy: [f32; OUT]) -> [f32; 7] {
        let [a, b, c, d, e, last] = ThreeTaps::upstream(dy);
        [a, b, c, d, e, dy[0] + 0.5 * dy[1] + 0.25 * dy[2] + 0.125 * dy[3], last]
    }

    #[inline(always)]
    fn weight(g: [f32; 4]) -> [f32; 7] {
        FOUR_TAPS_WEIGHT.map(|row| row[0] * g[0] + row[1] * g[1] + row[2] * g[2] + row[3] * g[3])
    }

    #[inline(always)]
    fn weight_gradient(u: [f32; 7]) -> [f32; 4] {
        std::array::from_fn(|tap| (0..7).map(|point| FOUR_TAPS_WEIGHT[point][tap] * u[point]).sum())
    }
}

/// Applies a linear map of one axis to the columns and then to the rows of a square.
#[inline(always)]
pub(crate) fn both_axes<const N: usize, const M: usize>(
    square: &Square<N>,
    map: impl Fn([f32; N]) -> [f32; M],
) -> Square<M> {
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

    fn times<const P: usize>(a: &Square<P>, b: &Square<P>) -> Square<P> {
        std::array::from_fn(|y| std::array::from_fn(|x| std::array::from_fn(|lane| a[y][x][lane] * b[y][x][lane])))
    }

    fn assert_convolution<A: Axis<T, P>, const T: usize, const P: usize>() {
        let (tile, taps) = (square::<P>(1), square::<T>(2));
        let result = both_axes(&times(&both_axes(&tile, A::input), &both_axes(&taps, A::weight)), A::output);
        for y in 0..OUT {
            for x in 0..OUT {
                for lane in 0..PANEL {
                    let sum: f32 =
                        (0..T * T).map(|tap| tile[y + tap / T][x + tap % T][lane] * taps[tap / T][tap % T][lane]).sum();
                    // The points up to 2 cost two or three bits of f32.
                    assert!((result[y][x][lane] - sum).abs() < 1e-4, "{} instead of {sum}", result[y][x][lane]);
                }
            }
        }
    }

    fn assert_transposes<A: Axis<T, P>, const T: usize, const P: usize>() {
        let (tile, taps, above) = (square::<P>(3), square::<T>(4), square::<OUT>(5));
        let tile = both_axes(&tile, A::input);
        let loss = dot(&both_axes(&times(&tile, &both_axes(&taps, A::weight)), A::output), &above);
        let gradient = both_axes(&times(&tile, &both_axes(&above, A::upstream)), A::weight_gradient);
        // The loss is linear in the taps, so it is the taps times their gradient. Sums of some 2,000 terms below 1.
        assert!((dot(&gradient, &taps) - loss).abs() < 1e-2, "{} instead of {loss}", dot(&gradient, &taps));
    }

    #[test]
    fn products_of_transforms_are_a_convolution() {
        assert_convolution::<ThreeTaps, 3, 6>();
        assert_convolution::<FourTaps, 4, 7>();
    }

    #[test]
    fn gradient_transforms_are_the_transposes() {
        assert_transposes::<ThreeTaps, 3, 6>();
        assert_transposes::<FourTaps, 4, 7>();
    }
}
