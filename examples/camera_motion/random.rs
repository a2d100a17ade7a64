//! Draws from a counter, the same everywhere for the same seed and name.

use kinetoscope::model::counter::CounterStream;

/// A stream of draws.
pub(crate) struct Random {
    stream: CounterStream,
    next: u64,
}

impl Random {
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        Self { stream: CounterStream::new(seed, name), next: 0 }
    }

    fn bits(&mut self) -> u64 {
        self.next += 1;
        self.stream.bits(self.next)
    }

    /// Uniform in [low, high).
    pub(crate) fn uniform(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * ((self.bits() >> 40) as f32 / (1u64 << 24) as f32)
    }

    /// As likely between 1 and 2 as between 2 and 4.
    pub(crate) fn log_uniform(&mut self, low: f32, high: f32) -> f32 {
        self.uniform(low.ln(), high.ln()).exp()
    }

    pub(crate) fn chance(&mut self, probability: f32) -> bool {
        self.uniform(0.0, 1.0) < probability
    }

    /// Uniform in 0..count.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        (self.bits() % count as u64) as usize
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Mean 0, standard deviation 1, nearly normal: a sum of four uniform numbers.
    pub(crate) fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xFFFF).sum();
        (sum as f32 / 65_536.0 - 2.0) * 3f32.sqrt()
    }
}
