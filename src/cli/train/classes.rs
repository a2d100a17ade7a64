//! How many videos each class has, and what follows where those are very different.

use crate::train::dataset::{Dataset, Example, LabelKind, Split};

/// How many times as many videos the largest class has as the smallest before it is told.
const IMBALANCE: usize = 5;
/// Classes that are listed one by one at the start of a training.
const MOST_CLASSES: usize = 12;

/// Videos of each class.
pub(super) struct ClassCounts<'a> {
    classes: &'a [String],
    /// In the order of [`Split::ALL`].
    counts: [Vec<usize>; 3],
    kind: LabelKind,
}

impl<'a> ClassCounts<'a> {
    pub(super) fn of(dataset: &'a Dataset) -> Self {
        let classes = dataset.classes.len();
        let counts = Split::ALL.map(|split| count(dataset.split(split), classes));
        Self { classes: &dataset.classes, counts, kind: dataset.kind }
    }

    /// Training videos of each class.
    pub(super) fn train(&self) -> &[usize] {
        &self.counts[0]
    }

    /// A table with a row a class, for `--check`.
    pub(super) fn table(&self) -> String {
        let longest = self.classes.iter().map(|class| class.chars().count()).max().unwrap_or(0).max(5);
        let mut text = format!("  {:<longest$}  training  validation    test\n", "class");
        for (place, class) in self.classes.iter().enumerate() {
            let [train, validation, test] = [0, 1, 2].map(|split: usize| self.counts[split][place]);
            text += &format!("  {class:<longest$}  {train:>8}  {validation:>10}  {test:>6}\n");
        }
        text
    }

    /// One line for the start of a training: all classes, or of many the largest and the smallest.
    pub(super) fn line(&self) -> String {
        let train = self.train();
        let one = |place: usize| format!("{} {}", self.classes[place], train[place]);
        if self.classes.len() <= MOST_CLASSES {
            let all: Vec<String> = (0..self.classes.len()).map(one).collect();
            return format!("training videos: {}", all.join(", "));
        }
        let Some((largest, smallest)) = self.extremes() else { return "no classes".to_owned() };
        format!("training videos a class: from {} to {}", one(smallest), one(largest))
    }

    /// What a person should know if the largest class has many times the videos of the smallest.
    pub(super) fn warning(&self) -> Option<String> {
        let (largest, smallest) = self.extremes()?;
        let (most, fewest) = (self.train()[largest], self.train()[smallest]);
        (most >= IMBALANCE * fewest.max(1)).then(|| {
            let (largest, smallest) = (&self.classes[largest], &self.classes[smallest]);
            if self.kind == LabelKind::Multi {
                return format!(
                    "the class {largest} has {most} training videos, {smallest} has {fewest}: --class-weights balanced lets the \
                     videos that show a class count as much as those that don't"
                );
            }
            format!(
                "the class {largest} has {most} training videos, {smallest} has {fewest}: a network does well to always say \
                 {largest}. --class-weights balanced or --sampler balanced let rare classes count as much, --best \
                 mean-class-accuracy chooses the model that knows all"
            )
        })
    }

    fn extremes(&self) -> Option<(usize, usize)> {
        let by_count = |&place: &usize| self.train()[place];
        let places = 0..self.classes.len();
        // The first of equal ones.
        Some((places.clone().rev().max_by_key(by_count)?, places.clone().min_by_key(by_count)?))
    }
}

fn count(examples: &[Example], classes: usize) -> Vec<usize> {
    let mut counts = vec![0; classes];
    examples.iter().flat_map(|example| &example.labels).for_each(|label| counts[label.class] += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::video::TimeRange;

    fn dataset(counts: &[usize]) -> Dataset {
        let example =
            |class: usize| Example::of_class(String::new(), std::path::PathBuf::new(), class, TimeRange::default());
        let train = counts.iter().enumerate().flat_map(|(class, &count)| std::iter::repeat_n(class, count));
        Dataset {
            classes: (0..counts.len()).map(|class| format!("class {class}")).collect(),
            train: train.map(example).collect(),
            ..Dataset::default()
        }
    }

    #[test]
    fn a_class_five_times_as_large_as_another_is_told() {
        let warning = |counts: &[usize]| ClassCounts::of(&dataset(counts)).warning();
        assert_eq!(warning(&[14, 3, 4]), None);
        let told = warning(&[4, 15, 3]).unwrap();
        assert!(told.starts_with("the class class 1 has 15 training videos, class 2 has 3:"), "{told}");
        assert!(warning(&[5, 0]).is_some());
        assert_eq!(warning(&[]), None);
    }

    #[test]
    fn counts_stand_in_a_line_of_few_classes_and_in_a_table_of_all() {
        let few = dataset(&[2, 1]);
        assert_eq!(ClassCounts::of(&few).line(), "training videos: class 0 2, class 1 1");
        let rows = "  class    training  validation    test\n  class 0         2           0       0\n";
        assert!(ClassCounts::of(&few).table().starts_with(rows), "{}", ClassCounts::of(&few).table());
        let many = dataset(&[vec![3; 30], vec![1, 9]].concat());
        assert_eq!(ClassCounts::of(&many).line(), "training videos a class: from class 30 1 to class 31 9");
    }
}
