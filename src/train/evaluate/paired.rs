//! Two models on the same videos: whether one is better, or only luckier.

use serde::Serialize;

use crate::train::augment::Draws;

/// What two models did on the same videos.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Paired {
    /// Videos that both answered.
    pub videos: u64,
    /// Videos that only the first one got right.
    pub only_first: u64,
    /// Videos that only the second one got right.
    pub only_second: u64,
    /// Accuracy of the second minus that of the first, -1 to 1.
    pub difference: f64,
    /// Between which it lies in 95 of 100 such sets of videos: percentiles of 10,000 bootstrap samples.
    pub interval: [f64; 2],
    /// How likely two equally good models differ as much or more: McNemar's exact test, two-sided.
    pub p_value: f64,
}

impl Paired {
    /// Of whether the first and the second are right, video by video; `None` without videos.
    pub fn of(pairs: &[(bool, bool)]) -> Option<Self> {
        if pairs.is_empty() {
            return None;
        }
        let count = |wanted: (bool, bool)| pairs.iter().filter(|&&pair| pair == wanted).count() as u64;
        let (only_first, only_second) = (count((true, false)), count((false, true)));
        let gains: Vec<i8> = pairs.iter().map(|&(first, second)| i8::from(second) - i8::from(first)).collect();
        let mean = |sum: i64| sum as f64 / pairs.len() as f64;
        let interval = bootstrap(10_000, |draws| {
            let sum = (0..gains.len()).map(|_| i64::from(gains[draws.below(gains.len() as u64) as usize])).sum();
            mean(sum)
        });
        Some(Self {
            videos: pairs.len() as u64,
            only_first,
            only_second,
            difference: mean(only_second as i64 - only_first as i64),
            interval,
            p_value: mcnemar(only_first, only_second),
        })
    }
}

/// The 2.5th and the 97.5th percentile of what `samples` bootstrap samples give. The same whenever it is asked for.
pub(in crate::train) fn bootstrap(samples: usize, mut sample: impl FnMut(&mut Draws) -> f64) -> [f64; 2] {
    let mut draws = Draws::new(0, "bootstrap", 0, 0);
    let mut values: Vec<f64> = (0..samples).map(|_| sample(&mut draws)).collect();
    values.sort_by(f64::total_cmp);
    [0.025, 0.975].map(|part| percentile(&values, part))
}

/// Between the values around it in proportion, as NumPy's default.
fn percentile(sorted: &[f64], part: f64) -> f64 {
    let place = part * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The two-sided p-value of McNemar's exact test: that of a fair coin which shows one side `first` and the other `second` times.
fn mcnemar(first: u64, second: u64) -> f64 {
    let (tosses, fewer) = (first + second, first.min(second));
    // Of terms of the binomial distribution: each from the one before, as logarithms, since the first may be too small.
    let (mut log_term, mut sum) = (-(tosses as f64) * std::f64::consts::LN_2, 0.0);
    for heads in 0..=fewer {
        sum += log_term.exp();
        log_term += ((tosses - heads) as f64 / (heads + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paired_of(both: usize, only_first: usize, only_second: usize, neither: usize) -> Paired {
        let pairs = [
            vec![(true, true); both],
            vec![(true, false); only_first],
            vec![(false, true); only_second],
            vec![(false, false); neither],
        ];
        Paired::of(&pairs.concat()).unwrap()
    }

    #[test]
    fn p_values_are_those_of_scipy() {
        // scipy.stats.binomtest(k, n, 0.5).pvalue
        for ((first, second), expected) in
            [((1, 9), 0.021_484_375), ((5, 5), 1.0), ((0, 0), 1.0), ((0, 5), 0.0625), ((30, 52), 0.019_826_915_8)]
        {
            let actual = mcnemar(first, second);
            assert!((actual - expected).abs() < 1e-8, "{first}, {second}: {actual}, not {expected}");
            assert_eq!(actual, mcnemar(second, first));
        }
        let tiny = mcnemar(0, 20_000);
        assert!((0.0..1e-300).contains(&tiny));
    }

    #[test]
    fn interval_is_that_of_the_mean_of_gains() {
        let paired = paired_of(60, 5, 15, 20);
        assert_eq!((paired.videos, paired.difference), (100, 0.1));
        // The normal approximation: 0.1 with a deviation of sqrt((0.2 - 0.01) / 100) = 0.0436.
        let [low, high] = paired.interval;
        assert!((low - 0.015).abs() < 0.01 && (high - 0.185).abs() < 0.01, "{low} to {high}");
        assert_eq!(paired.interval, paired_of(60, 5, 15, 20).interval);
    }

    #[test]
    fn models_that_agree_do_not_differ() {
        let paired = paired_of(3, 0, 0, 2);
        assert_eq!((paired.difference, paired.interval, paired.p_value), (0.0, [0.0; 2], 1.0));
        assert_eq!(Paired::of(&[]), None);
    }
}
