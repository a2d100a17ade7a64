//! Which examples an epoch takes, and in which order.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::train::augment::Draws;
use crate::train::dataset::Example;

/// A source of examples, and how much of an epoch is of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// Its examples among all.
    pub examples: Range<usize>,
    /// Beside those of the others: 3 and 1 are three quarters and one.
    pub weight: f64,
}

/// Changes the order of `items`, each order being as likely.
pub(super) fn shuffle<T>(items: &mut [T], draws: &mut Draws) {
    for i in (1..items.len()).rev() {
        items.swap(i, draws.below(i as u64 + 1) as usize);
    }
}

/// As many examples, of each class as many as of the others (but for one), each class's in turn in the order given.
pub(super) fn balanced(examples: &[Example], order: &[usize], draws: &mut Draws) -> Vec<usize> {
    let mut of_class: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
    order.iter().for_each(|&example| of_class.entry(examples[example].main_class()).or_default().push(example));
    // Which classes have one more differs from epoch to epoch.
    let mut classes: Vec<Vec<usize>> = of_class.into_values().collect();
    shuffle(&mut classes, draws);
    let place = |place: usize| {
        let class = &classes[place % classes.len()];
        class[place / classes.len() % class.len()]
    };
    let mut balanced: Vec<usize> = (0..order.len()).map(place).collect();
    shuffle(&mut balanced, draws);
    balanced
}

/// As many examples, of each source its share, each source's in turn in the order given: those of a small source with a large
/// share several times, some of others not.
pub(super) fn shared(shares: &[Share], order: &[usize], draws: &mut Draws) -> Vec<usize> {
    let total: f64 = shares.iter().map(|share| share.weight).sum();
    let (mut taken, mut before, mut weights) = (Vec::with_capacity(order.len()), 0, 0.0);
    for share in shares {
        weights += share.weight;
        // Rounded in sum, so that all shares together are the epoch.
        let end = (order.len() as f64 * weights / total).round() as usize;
        let own: Vec<usize> = order.iter().copied().filter(|example| share.examples.contains(example)).collect();
        if !own.is_empty() {
            taken.extend(own.iter().cycle().take(end - before));
        }
        before = end;
    }
    shuffle(&mut taken, draws);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_have_their_shares_of_an_epoch_whatever_their_sizes() {
        let order: Vec<usize> = (0..40).collect();
        let shares = [Share { examples: 0..4, weight: 3.0 }, Share { examples: 4..40, weight: 1.0 }];
        let taken = shared(&shares, &order, &mut Draws::new(1, "order", 0, 0));
        let of_first = taken.iter().filter(|&&example| example < 4).count();
        assert_eq!((taken.len(), of_first), (40, 30));
        let times: Vec<usize> = (0..4).map(|example| taken.iter().filter(|&&other| other == example).count()).collect();
        assert!(times.iter().all(|&times| times == 7 || times == 8), "each as often as the others: {times:?}");
        assert_eq!(taken, shared(&shares, &order, &mut Draws::new(1, "order", 0, 0)));
    }

    #[test]
    fn shares_that_do_not_divide_evenly_fill_the_epoch() {
        let shares: Vec<Share> = (0..3).map(|n| Share { examples: n..n + 1, weight: 1.0 }).collect();
        assert_eq!(shared(&shares, &[0, 1, 2, 0, 1, 2, 0][..], &mut Draws::new(1, "order", 0, 0)).len(), 7);
    }
}
