//! How good a model is on labelled videos: accuracies as in the paper's table 2, for each class, as a confusion matrix,
//! as the authors' result file, and as a picture of some videos like the paper's figure 4.
//!
//! This module only counts and draws. Who asks a model or a server adds its answers to an [`Evaluation`].

mod classes;
mod confusion;
mod metrics;
mod results;
mod strips;
mod summary;

use std::collections::BTreeMap;

pub use classes::{ClassMatch, ClassMatchError, MissingClass, Side, match_classes};
pub use confusion::draw as draw_confusion;
pub(in crate::train) use confusion::picture as confusion_picture;
pub use metrics::{Accuracy, Confusion, Rates};
pub use results::{ResultFile, ids_with_times};
pub(in crate::train) use strips::picture as strips_picture;
pub use strips::{FRAMES as STRIP_FRAMES, SIZE as STRIP_FRAME_SIZE, Strip, draw as draw_strips};
pub use summary::{ClassRow, NoAnswer, Summary, confusion_csv};

/// A model's answers to the examples of a dataset, and which of them were right.
#[derive(Debug)]
pub struct Evaluation {
    /// The model's labels.
    labels: Vec<String>,
    /// For each example, its class among the evaluated ones.
    truths: Vec<usize>,
    /// The classes that have examples: the dataset's names, in its order.
    names: Vec<String>,
    /// The same classes among the model's labels.
    model_indices: Vec<usize>,
    /// From the model's labels to the evaluated classes.
    evaluated: BTreeMap<usize, usize>,
    respelled: Vec<(String, String)>,
    answers: BTreeMap<usize, Answer>,
}

/// What a model says about an example.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The best labels of the video, at least five if there are so many.
    pub video: Vec<Score>,
    /// The best labels of each clip, likewise.
    pub clips: Vec<Vec<usize>>,
    /// Whether it is about a part of the video, since the rest could not be decoded.
    pub partial: bool,
    /// Frames that were decoded.
    pub frames: u64,
}

/// A label's score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Index among the model's labels.
    pub class: usize,
    /// 0 to 1.
    pub score: f32,
}

/// How well one class does.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassAccuracy {
    /// The dataset's name.
    pub name: String,
    /// Of its videos.
    pub accuracy: Accuracy,
    /// The wrong class that it is most often taken for (the first of equal ones), and how often.
    pub mostly_taken_for: Option<(String, u64)>,
}

impl Evaluation {
    /// Gets ready to evaluate a model with these labels on examples whose classes among `classes` are `truths`. Of the
    /// classes, those without examples don't matter.
    pub fn new(classes: &[String], truths: &[usize], labels: &[String]) -> Result<Self, ClassMatchError> {
        let mut used = truths.to_vec();
        used.sort_unstable();
        used.dedup();
        let names: Vec<String> = used.iter().map(|&class| classes[class].clone()).collect();
        let ClassMatch { model_indices, respelled } = match_classes(&names, labels)?;
        let place = |truth: &usize| used.binary_search(truth).expect("each class of an example is used");
        Ok(Self {
            labels: labels.to_vec(),
            truths: truths.iter().map(place).collect(),
            evaluated: model_indices.iter().enumerate().map(|(place, &index)| (index, place)).collect(),
            names,
            model_indices,
            respelled,
            answers: BTreeMap::new(),
        })
    }

    /// Takes the answer to an example.
    pub fn add(&mut self, example: usize, answer: Answer) {
        self.answers.insert(example, answer);
    }

    /// Answers so far, in the order of the examples.
    pub fn answers(&self) -> impl DoubleEndedIterator<Item = (usize, &Answer)> {
        self.answers.iter().map(|(&example, answer)| (example, answer))
    }

    /// Names of the classes that have examples.
    pub fn classes(&self) -> &[String] {
        &self.names
    }

    /// Classes whose names the dataset spells in another way than the model does.
    pub fn respelled(&self) -> &[(String, String)] {
        &self.respelled
    }

    /// The right class's name in the dataset.
    pub fn truth(&self, example: usize) -> &str {
        &self.names[self.truths[example]]
    }

    /// A label of the model, as the dataset spells it if it has that class.
    pub fn name(&self, class: usize) -> &str {
        self.evaluated.get(&class).map_or(&self.labels[class], |&place| &self.names[place])
    }

    /// Whether the best label is the right one.
    pub fn is_right(&self, example: usize, answer: &Answer) -> bool {
        answer.video.first().is_some_and(|best| best.class == self.model_indices[self.truths[example]])
    }

    /// Accuracy of whole videos.
    pub fn videos(&self) -> Accuracy {
        let mut all = Accuracy::default();
        self.per_class().iter().for_each(|class| all.merge(&class.accuracy));
        all
    }

    /// Accuracy of single clips, those of all videos together.
    pub fn clips(&self) -> Accuracy {
        let mut accuracy = Accuracy::default();
        for (&example, answer) in &self.answers {
            let truth = self.model_indices[self.truths[example]];
            answer.clips.iter().for_each(|clip| accuracy.add(truth, clip));
        }
        accuracy
    }

    /// Accuracy of each class's videos.
    pub fn per_class(&self) -> Vec<ClassAccuracy> {
        let mut accuracies = vec![Accuracy::default(); self.names.len()];
        let mut taken_for = vec![BTreeMap::<usize, u64>::new(); self.names.len()];
        for (&example, answer) in &self.answers {
            let best_first: Vec<usize> = answer.video.iter().map(|score| score.class).collect();
            let truth = self.truths[example];
            accuracies[truth].add(self.model_indices[truth], &best_first);
            if let Some(&best) = best_first.first().filter(|&&best| best != self.model_indices[truth]) {
                *taken_for[truth].entry(best).or_default() += 1;
            }
        }
        let classes = self.names.iter().zip(accuracies).zip(taken_for);
        let class = |((name, accuracy), taken_for): ((&String, Accuracy), BTreeMap<usize, u64>)| {
            // The first of those that are equally often.
            let mostly = taken_for.into_iter().reduce(|most, next| if next.1 > most.1 { next } else { most });
            let mostly_taken_for = mostly.map(|(class, times)| (self.name(class).to_owned(), times));
            ClassAccuracy { name: name.clone(), accuracy, mostly_taken_for }
        };
        classes.map(class).collect()
    }

    /// What the videos of each class were taken for.
    pub fn confusion(&self) -> Confusion {
        let mut confusion = Confusion::new(self.names.len());
        for (&example, answer) in &self.answers {
            let predicted = answer.video.first().and_then(|best| self.evaluated.get(&best.class).copied());
            confusion.add(self.truths[example], predicted);
        }
        confusion
    }

    /// Up to `count` examples to show, in their order: right and wrong ones in equal parts if there are enough of both,
    /// from all over the dataset.
    pub fn chosen(&self, count: usize) -> Vec<usize> {
        let (right, wrong): (Vec<_>, Vec<_>) =
            self.answers().partition(|(example, answer)| self.is_right(*example, answer));
        let wrong_count = (count / 2).max(count.saturating_sub(right.len())).min(wrong.len());
        let right_count = (count - wrong_count).min(right.len());
        let mut chosen: Vec<usize> =
            spread(&right, right_count).chain(spread(&wrong, wrong_count)).map(|of| of.0).collect();
        chosen.sort_unstable();
        chosen
    }
}

/// `count` items at equal distances.
fn spread<T: Copy>(items: &[T], count: usize) -> impl Iterator<Item = T> {
    (0..count).map(move |place| items[(2 * place + 1) * items.len() / (2 * count)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn answer(best_first: &[usize], clips: &[&[usize]]) -> Answer {
        let score = |(rank, &class): (usize, &usize)| Score { class, score: 0.5 / (1.0 + rank as f32) };
        Answer {
            video: best_first.iter().enumerate().map(score).collect(),
            clips: clips.iter().map(|clip| clip.to_vec()).collect(),
            partial: false,
            frames: 16,
        }
    }

    /// The model's order is another, it has a class more, and the dataset has one that no example is of.
    fn evaluation() -> Evaluation {
        let dataset = names(&["bowling", "unused", "air_drumming", "yoga"]);
        let model = names(&["yoga", "air drumming", "zumba", "bowling"]);
        let mut evaluation = Evaluation::new(&dataset, &[0, 0, 2, 3], &model).unwrap();
        evaluation.add(0, answer(&[3, 0, 1, 2], &[&[3, 0, 1, 2], &[0, 3, 1, 2]]));
        evaluation.add(1, answer(&[0, 3, 1, 2], &[&[0, 3, 1, 2]]));
        evaluation.add(3, answer(&[2, 1, 3, 0], &[&[2, 1, 3, 0]]));
        evaluation
    }

    #[test]
    fn answers_are_counted_by_name_and_not_by_index() {
        let evaluation = evaluation();
        assert_eq!(evaluation.videos(), Accuracy { total: 3, top_1: 1, top_5: 3 });
        assert_eq!(evaluation.clips(), Accuracy { total: 4, top_1: 1, top_5: 4 });
        assert_eq!(evaluation.classes(), ["bowling", "air_drumming", "yoga"]);
        assert_eq!((evaluation.name(1), evaluation.name(2), evaluation.truth(3)), ("air_drumming", "zumba", "yoga"));
    }

    #[test]
    fn each_class_has_its_accuracy_and_its_worst_confusion() {
        let classes = evaluation().per_class();
        assert_eq!(classes[0].accuracy, Accuracy { total: 2, top_1: 1, top_5: 2 });
        assert_eq!(classes[0].mostly_taken_for, Some(("yoga".to_owned(), 1)));
        // Its only example was not answered.
        assert_eq!(classes[1].accuracy.rates(), None);
        // A class that the dataset does not have.
        assert_eq!(classes[2].mostly_taken_for, Some(("zumba".to_owned(), 1)));
        assert_eq!(evaluation().confusion().row(2), [0, 0, 0, 1]);
    }

    #[test]
    fn examples_to_show_are_right_and_wrong_ones() {
        assert_eq!(evaluation().chosen(2).len(), 2);
        assert!(evaluation().chosen(2).contains(&0), "the only one that is right");
        assert_eq!(evaluation().chosen(9), [0, 1, 3]);
        assert!(evaluation().chosen(0).is_empty());
        let mut many = Evaluation::new(&names(&["a", "b"]), &[0; 100], &names(&["a", "b"])).unwrap();
        (0..100).for_each(|example| many.add(example, answer(&[usize::from(example % 10 == 0)], &[])));
        let chosen = many.chosen(6);
        let wrong = chosen.iter().filter(|&&example| example % 10 == 0).count();
        assert_eq!((chosen.len(), wrong), (6, 3));
        assert!(chosen[5] - chosen[0] > 50, "{chosen:?}");
    }
}
