//! Repeatable test values, and how far results may be from one another.

/// A repeatable value in -1..1 for each (seed, index): splitmix64's finaliser on a counter.
pub(crate) fn noise(seed: u64, index: usize) -> f32 {
    let mut z = (seed << 32).wrapping_add(index as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

pub(crate) fn noise_vec(seed: u64, len: usize) -> Vec<f32> {
    (0..len).map(|i| noise(seed, i)).collect()
}

/// Weights in the range that keeps activations of size about one.
pub(crate) fn he_weights(seed: u64, out_channels: usize, fan_in: usize) -> Vec<f32> {
    let scale = (6.0 / fan_in as f32).sqrt();
    noise_vec(seed, out_channels * fan_in).into_iter().map(|w| w * scale).collect()
}

/// Largest difference over the largest value, or over 1 if that is more: [`he_weights`] make sums of about that size, and
/// a few small ones, left over where large terms cancel, say nothing of how exact the sums can be.
pub(crate) fn error(actual: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let scale = expected.iter().fold(1.0, |max: f64, x| max.max(x.abs()));
    actual.iter().zip(expected).fold(0.0, |max: f64, (&a, &e)| {
        let difference = (f64::from(a) - e).abs() / scale;
        if difference.is_nan() { f64::INFINITY } else { max.max(difference) }
    })
}
