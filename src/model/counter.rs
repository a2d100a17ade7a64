//! Numbers from a counter: the same `(seed, name, index)` gives the same number in Rust and in
//! `tests/golden/generate.py`, so that goldens need no committed weights.
//!
//! Only integer arithmetic and exact f32 steps are used, so both languages agree to the bit.

/// A stream of numbers named after a tensor.
#[derive(Debug, Clone, Copy)]
pub struct CounterStream {
    key: u64,
}

const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3))
}

impl CounterStream {
    /// The stream for `name` under `seed`.
    pub fn new(seed: u64, name: &str) -> Self {
        Self { key: mix(fnv1a(name.as_bytes()) ^ mix(seed)) }
    }

    /// The 64 random bits at `index`.
    pub fn bits(&self, index: u64) -> u64 {
        mix(self.key.wrapping_add((index.wrapping_add(1)).wrapping_mul(GOLDEN_GAMMA)))
    }

    /// Uniform in [-1, 1): 24 bits, exact in f32.
    pub fn uniform(&self, index: u64) -> f32 {
        (self.bits(index) >> 40) as f32 / 8_388_608.0 - 1.0
    }

    /// Uniform in 0..=255.
    pub fn byte(&self, index: u64) -> u8 {
        (self.bits(index) >> 56) as u8
    }
}

/// The parameter `name` of an untrained network, by the convention of `tests/golden/generate.py`:
///
/// * convolution and fc weights: uniform with He's variance `2 / fan_in`, `shape` being `(out, in, ...)`;
/// * batch norm weights: 1 +- 0.2, a quarter of that for a bottleneck's last (at full weight a network of
///   bottlenecks amplifies rounding so much that parity could not be tested);
/// * biases: 0 +- 0.1.
pub fn weight(seed: u64, name: &str, shape: &[usize]) -> Vec<f32> {
    let stream = CounterStream::new(seed, name);
    let elements: usize = shape.iter().product();
    let uniform = (0..elements as u64).map(|index| stream.uniform(index));
    if let [_, fan_in @ ..] = shape
        && !fan_in.is_empty()
    {
        let bound = (6.0 / fan_in.iter().product::<usize>() as f64).sqrt() as f32;
        uniform.map(|u| u * bound).collect()
    } else if name.ends_with(".bias") {
        uniform.map(|u| u * 0.1).collect()
    } else {
        let scale = if name.ends_with(".bn3.weight") { 0.25 } else { 1.0 };
        uniform.map(|u| (1.0 + u * 0.2) * scale).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_match_those_of_the_python_generator() {
        // Printed by `python tests/golden/generate.py --print-counter`.
        let stream = CounterStream::new(0, "conv1.weight");
        assert_eq!(
            [0, 1, 2].map(|i| stream.bits(i)),
            [0x1302_bfcd_88b1_7346, 0x819f_4487_fbf6_9d46, 0x2f5d_c3e2_8ec4_4aea]
        );
        assert_eq!(
            [0, 1, 2].map(|i| f64::from(stream.uniform(i))),
            [-0.851_478_695_869_445_8, 0.012_672_901_153_564_453, -0.629_951_119_422_912_6]
        );
        assert_eq!([0, 1, 2].map(|i| stream.byte(i)), [19, 129, 47]);
        let stream = CounterStream::new(34, "layer1.0.bn1.bias");
        assert_eq!(
            [0, 1, 2].map(|i| stream.bits(i)),
            [0x00f3_f6c3_cf9a_7e91, 0x0dec_015a_ed47_3814, 0x1565_de8a_f059_32f8]
        );
        let stream = CounterStream::new(u64::MAX, "");
        assert_eq!(
            [0, 1, 2].map(|i| stream.bits(i)),
            [0x4ba3_b8a2_1a4c_03bb, 0xa316_c92f_42c0_3379, 0x33fe_3172_a136_e554]
        );
    }
}
