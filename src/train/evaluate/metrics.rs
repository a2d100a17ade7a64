//! How often a model is right: top-1, top-5 and their average, for each class and as a confusion matrix.

use serde::Serialize;

/// How often the right class was among the best ones. Equal scores rank in the order of the classes, as in answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accuracy {
    /// Predictions.
    pub total: u64,
    /// Those whose best class was right.
    pub top_1: u64,
    /// Those with the right class among the best five.
    pub top_5: u64,
}

/// [`Accuracy`] in parts of one, as it is printed: the columns of the paper's table 2.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rates {
    /// Predictions.
    pub total: u64,
    /// From 0 to 1.
    pub top_1: f64,
    /// From 0 to 1.
    pub top_5: f64,
    /// Mean of the two.
    pub average: f64,
}

impl Accuracy {
    /// Counts one prediction: classes, best first. All of them if there are fewer than five. Of several right classes, one of
    /// them has to be there.
    pub fn add(&mut self, truths: &[usize], best_first: &[usize]) {
        self.total += 1;
        self.top_1 += u64::from(best_first.first().is_some_and(|best| truths.contains(best)));
        self.top_5 += u64::from(best_first.iter().take(5).any(|class| truths.contains(class)));
    }

    /// Counts what another one counted too.
    pub fn merge(&mut self, other: &Self) {
        self.total += other.total;
        self.top_1 += other.top_1;
        self.top_5 += other.top_5;
    }

    /// `None` without predictions.
    pub fn rates(&self) -> Option<Rates> {
        if self.total == 0 {
            return None;
        }
        let rate = |count| count as f64 / self.total as f64;
        let (top_1, top_5) = (rate(self.top_1), rate(self.top_5));
        Some(Rates { total: self.total, top_1, top_5, average: (top_1 + top_5) / 2.0 })
    }
}

/// For which videos a class was predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Detection {
    /// Videos of the class for which it was.
    pub hits: u64,
    /// Videos of others for which it was.
    pub false_alarms: u64,
    /// Videos of the class for which it was not.
    pub misses: u64,
}

impl Detection {
    /// Counts one video.
    pub fn add(&mut self, is_shown: bool, is_predicted: bool) {
        self.hits += u64::from(is_shown && is_predicted);
        self.false_alarms += u64::from(!is_shown && is_predicted);
        self.misses += u64::from(is_shown && !is_predicted);
    }

    /// The part of its predictions that is right; `None` if it was never predicted.
    pub fn precision(&self) -> Option<f64> {
        part(self.hits, self.hits + self.false_alarms)
    }

    /// The part of its videos that was found; `None` if it has none.
    pub fn recall(&self) -> Option<f64> {
        part(self.hits, self.hits + self.misses)
    }

    /// The harmonic mean of precision and recall, 0 without hits; `None` for a class without videos that was never predicted.
    pub fn f1(&self) -> Option<f64> {
        part(2 * self.hits, 2 * self.hits + self.false_alarms + self.misses)
    }
}

fn part(count: u64, of: u64) -> Option<f64> {
    (of > 0).then(|| count as f64 / of as f64)
}

/// How often each class was taken for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// Row by row: a row a true class, a column a predicted one, and a last column for all other predictions.
    counts: Vec<u64>,
}

impl Confusion {
    /// Nothing counted yet.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * (classes + 1)] }
    }

    /// Counts one prediction; `None` stands for a class that is not in the matrix.
    pub fn add(&mut self, truth: usize, predicted: Option<usize>) {
        let column = predicted.unwrap_or(self.classes);
        self.counts[truth * (self.classes + 1) + column] += 1;
    }

    /// Rows and columns, but for that of other predictions.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How often `truth` was taken for each class, and last for one that is not in the matrix.
    pub fn row(&self, truth: usize) -> &[u64] {
        &self.counts[truth * (self.classes + 1)..][..self.classes + 1]
    }

    /// All counts, row by row.
    pub(in crate::train) fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Takes other counts, as [`counts`](Self::counts) gives them.
    pub(in crate::train) fn replace_counts(&mut self, counts: Vec<u64>) {
        assert_eq!(counts.len(), self.counts.len(), "a count for each cell");
        self.counts = counts;
    }

    /// Mean over classes of the part of their predictions that is right; classes without predictions don't count.
    pub fn mean_class_accuracy(&self) -> Option<f64> {
        let rates: Vec<f64> = (0..self.classes)
            .filter_map(|truth| {
                let row = self.row(truth);
                let total: u64 = row.iter().sum();
                (total > 0).then(|| row[truth] as f64 / total as f64)
            })
            .collect();
        (!rates.is_empty()).then(|| rates.iter().sum::<f64>() / rates.len() as f64)
    }

    /// Whether any prediction was a class that is not in the matrix.
    pub fn has_others(&self) -> bool {
        (0..self.classes).any(|truth| self.row(truth)[self.classes] > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::scores::top_labels;

    fn accuracy(predictions: &[(usize, &[usize])]) -> Accuracy {
        let mut accuracy = Accuracy::default();
        predictions.iter().for_each(|(truth, best_first)| accuracy.add(&[*truth], best_first));
        accuracy
    }

    #[test]
    fn average_is_that_of_top_1_and_top_5() {
        let best_first = [7, 3, 9, 1, 4, 8];
        let rates =
            accuracy(&[(7, &best_first), (4, &best_first), (8, &best_first), (0, &best_first)]).rates().unwrap();
        assert_eq!((rates.total, rates.top_1, rates.top_5, rates.average), (4, 0.25, 0.5, 0.375));
    }

    #[test]
    fn with_fewer_than_five_classes_all_of_them_are_the_top_five() {
        let counted = accuracy(&[(2, &[0, 1, 2]), (1, &[1, 2, 0])]);
        assert_eq!((counted.top_1, counted.top_5), (1, 2));
    }

    #[test]
    fn of_equal_scores_the_first_class_is_the_best() {
        let labels: Vec<String> = (0..7).map(|class| class.to_string()).collect();
        let best_first: Vec<usize> =
            top_labels(&[1.0 / 7.0; 7], &labels, None, 0.0).iter().map(|label| label.index).collect();
        assert_eq!(accuracy(&[(0, &best_first)]).top_1, 1);
        assert_eq!(accuracy(&[(1, &best_first)]), Accuracy { total: 1, top_1: 0, top_5: 1 });
        assert_eq!(accuracy(&[(5, &best_first)]), Accuracy { total: 1, top_1: 0, top_5: 0 });
    }

    #[test]
    fn nothing_counted_has_no_rate() {
        assert_eq!(Accuracy::default().rates(), None);
        // A video without an answer is wrong.
        assert_eq!(accuracy(&[(0, &[])]), Accuracy { total: 1, top_1: 0, top_5: 0 });
    }

    #[test]
    fn precision_recall_and_f1_are_those_of_scikit_learn() {
        let detection = Detection { hits: 2, false_alarms: 1, misses: 3 };
        assert_eq!(
            (detection.precision(), detection.recall(), detection.f1()),
            (Some(2.0 / 3.0), Some(0.4), Some(0.5))
        );
        // Never predicted: scikit-learn has a precision of 0 and a warning, F1 is 0.
        let missed = Detection { misses: 3, ..Detection::default() };
        assert_eq!((missed.precision(), missed.recall(), missed.f1()), (None, Some(0.0), Some(0.0)));
        let wrong = Detection { false_alarms: 3, ..Detection::default() };
        assert_eq!((wrong.precision(), wrong.recall(), wrong.f1()), (Some(0.0), None, Some(0.0)));
        assert_eq!(Detection::default().f1(), None);
    }

    #[test]
    fn clips_of_all_videos_count_alike() {
        let mut clips = accuracy(&[(0, &[0, 1])]);
        clips.merge(&accuracy(&[(1, &[0, 1]), (1, &[0, 1]), (1, &[1, 0])]));
        assert_eq!(clips, Accuracy { total: 4, top_1: 2, top_5: 4 });
    }

    #[test]
    fn confusion_has_truth_in_rows_and_others_apart() {
        let mut confusion = Confusion::new(3);
        for (truth, predicted) in [(0, Some(0)), (0, Some(2)), (0, Some(1)), (0, Some(2)), (1, Some(1)), (2, Some(2))] {
            confusion.add(truth, predicted);
        }
        assert!(!confusion.has_others());
        confusion.add(1, None);
        assert_eq!([confusion.row(0), confusion.row(1)], [[1, 1, 2, 0], [0, 1, 0, 1]]);
        assert!(confusion.has_others());
    }
}
