//! Average precision: how well a class's scores rank the videos that show it before those that don't.

/// The average precision of scores and whether each one's video shows the class: the sum over ranks of precision times the rise
/// of recall, equal scores being one rank, as scikit-learn's `average_precision_score`. Sorts `scored`. `None` if no video shows
/// the class.
fn average_precision(scored: &mut [(f32, bool)]) -> Option<f64> {
    let positives = scored.iter().filter(|(_, shows)| *shows).count();
    if positives == 0 {
        return None;
    }
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut seen, mut hits, mut sum) = (0, 0, 0.0);
    for ties in scored.chunk_by(|a, b| a.0 == b.0) {
        let new_hits = ties.iter().filter(|(_, shows)| *shows).count();
        seen += ties.len();
        hits += new_hits;
        sum += new_hits as f64 * hits as f64 / seen as f64;
    }
    Some(sum / positives as f64)
}

/// The average precision of each of `classes` classes, from rows of scores `(n, classes)` and the classes that each row shows.
pub(in crate::train) fn average_precisions<'a>(
    rows: impl Iterator<Item = (&'a [f32], &'a [usize])> + Clone,
    classes: usize,
) -> Vec<Option<f64>> {
    let mut scored = Vec::new();
    let of_class = |class| {
        scored.clear();
        scored.extend(rows.clone().map(|(scores, shown)| (scores[class], shown.contains(&class))));
        average_precision(&mut scored)
    };
    (0..classes).map(of_class).collect()
}

/// The mean of what is known; `None` if nothing is.
pub(in crate::train) fn mean(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let known: Vec<f64> = values.into_iter().flatten().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(scores: &[f32], shows: &[u8]) -> Option<f64> {
        let mut scored: Vec<_> = scores.iter().copied().zip(shows.iter().map(|&shows| shows == 1)).collect();
        average_precision(&mut scored)
    }

    #[test]
    fn average_precision_is_that_of_scikit_learn() {
        // sklearn.metrics.average_precision_score of version 1.7.
        assert_eq!(of(&[0.9, 0.8, 0.7, 0.1], &[1, 1, 0, 0]), Some(1.0));
        let of_half = of(&[0.1, 0.4, 0.35, 0.8], &[0, 0, 1, 1]).unwrap();
        assert!((of_half - 0.833_333_333_333_333_3).abs() < 1e-12, "{of_half}");
        let of_few = of(&[0.2, 0.9, 0.6, 0.5, 0.3], &[1, 0, 1, 0, 1]).unwrap();
        assert!((of_few - 0.533_333_333_333_333_3).abs() < 1e-12, "{of_few}");
    }

    #[test]
    fn equal_scores_are_one_rank_whatever_their_order() {
        // Precision over all four is one half; over the first three two thirds.
        assert_eq!(of(&[0.5; 4], &[1, 0, 1, 0]), Some(0.5));
        assert_eq!(of(&[0.5; 4], &[0, 0, 1, 1]), Some(0.5));
        assert_eq!(of(&[0.7, 0.7, 0.7, 0.1], &[0, 1, 1, 0]), Some(2.0 / 3.0));
    }

    #[test]
    fn class_that_no_video_shows_has_none_and_does_not_count() {
        assert_eq!(of(&[0.5, 0.2], &[0, 0]), None);
        let scores: [&[f32]; 2] = [&[0.9, 0.1, 0.3], &[0.2, 0.8, 0.4]];
        let shown: [&[usize]; 2] = [&[0], &[0, 1]];
        let each = average_precisions(scores.into_iter().zip(shown), 3);
        assert_eq!(each, [Some(1.0), Some(1.0), None]);
        assert_eq!((mean(each), mean([None])), (Some(1.0), None));
    }
}
