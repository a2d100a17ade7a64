//! How good a model is on labelled videos: accuracies as in the paper's table 2, precision, recall, F1 and average precision of
//! each class, calibration, a confusion matrix, the authors' result file, a picture of some videos like the paper's figure 4, and
//! a page of the errors; and whether another model is better.
//!
//! This module only counts and draws. Who asks a model or a server adds its answers to an [`Evaluation`].

mod answer;
mod calibration;
mod classes;
mod confusion;
mod metrics;
mod page;
mod paired;
mod ranking;
mod reliability;
mod results;
mod strips;
mod summary;
mod temperature;
mod views;

use std::collections::BTreeMap;

pub use answer::{Answer, Score};
pub use calibration::{Bin, Calibration, Confidence};
pub use classes::{ClassMatch, ClassMatchError, MissingClass, Side, match_classes};
pub(in crate::train) use confusion::picture as confusion_picture;
pub use confusion::{draw as draw_confusion, png as confusion_png};
pub use metrics::{Accuracy, Confusion, Detection, Rates};
pub use page::{ErrorRow, Page, PredictedLabel};
pub use paired::Paired;
pub(in crate::train) use ranking::{average_precisions, mean};
pub use reliability::{draw as draw_reliability, png as reliability_png};
pub use results::{EarlierResults, EarlierResultsError, ResultFile, ids_with_times};
pub(in crate::train) use strips::picture as strips_picture;
pub use strips::{FRAMES as STRIP_FRAMES, SIZE as STRIP_FRAME_SIZE, Strip, draw as draw_strips, side_by_side};
pub use summary::{ClassRow, Comparison, FittedTemperature, NoAnswer, Summary, confusion_csv};
pub use temperature::{ClipLogits, TemperatureError, fit_temperature};
pub use views::Views;

use crate::model::scores::Activation;
use temperature::{scores_at, video_log_loss};

/// A score from which a class of several is said to be shown.
pub const SHOWN_FROM: f32 = 0.5;

/// A model's answers to the examples of a dataset, and which of them were right.
#[derive(Debug)]
pub struct Evaluation {
    /// The model's labels.
    labels: Vec<String>,
    activation: Activation,
    /// For each example, its classes among the evaluated ones: one, or with sigmoids any number.
    truths: Vec<Vec<usize>>,
    /// The classes that have examples: the dataset's names, in its order.
    names: Vec<String>,
    /// The same classes among the model's labels.
    model_indices: Vec<usize>,
    /// From the model's labels to the evaluated classes.
    evaluated: BTreeMap<usize, usize>,
    respelled: Vec<(String, String)>,
    answers: BTreeMap<usize, Answer>,
}

/// How well one class does.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassResult {
    /// The dataset's name.
    pub name: String,
    /// Of its videos.
    pub accuracy: Accuracy,
    /// Which videos it was predicted for.
    pub detection: Detection,
    /// How well its scores rank its videos before the others; `None` if it has none.
    pub average_precision: Option<f64>,
    /// The wrong class that it is most often taken for (the first of equal ones), and how often. Of one label a video only.
    pub mostly_taken_for: Option<(String, u64)>,
}

impl Evaluation {
    /// Gets ready to evaluate a model with these labels on examples whose classes among `classes` are `truths`. Of the
    /// classes, those without examples don't matter. With sigmoids an example may have any number of classes, otherwise one.
    pub fn new(
        classes: &[String],
        truths: &[Vec<usize>],
        labels: &[String],
        activation: Activation,
    ) -> Result<Self, ClassMatchError> {
        let mut used = truths.concat();
        used.sort_unstable();
        used.dedup();
        let names: Vec<String> = used.iter().map(|&class| classes[class].clone()).collect();
        let ClassMatch { model_indices, respelled } = match_classes(&names, labels)?;
        let place = |truth: &usize| used.binary_search(truth).expect("each class of an example is used");
        Ok(Self {
            labels: labels.to_vec(),
            activation,
            truths: truths.iter().map(|truths| truths.iter().map(place).collect()).collect(),
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

    /// Whether a video may show several classes.
    pub fn is_multi_label(&self) -> bool {
        self.activation == Activation::Sigmoid
    }

    /// Names of the classes that have examples.
    pub fn classes(&self) -> &[String] {
        &self.names
    }

    /// Classes whose names the dataset spells in another way than the model does.
    pub fn respelled(&self) -> &[(String, String)] {
        &self.respelled
    }

    /// The right classes' names in the dataset, separated by commas.
    pub fn truth(&self, example: usize) -> String {
        let names: Vec<&str> = self.truths[example].iter().map(|&place| self.names[place].as_str()).collect();
        if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
    }

    /// What the model says of an example, by name: its best label, or all labels of several that score enough.
    pub fn predicted(&self, answer: &Answer) -> String {
        let best = |count: usize| answer.video.iter().take(count).map(|best| self.name(best.class)).collect::<Vec<_>>();
        if !self.is_multi_label() {
            return best(1).join(", ");
        }
        let shown = answer.video.iter().filter(|best| best.score >= SHOWN_FROM).count();
        if shown == 0 { "nothing".to_owned() } else { best(shown).join(", ") }
    }

    /// The `count` best labels of an example.
    pub fn predicted_labels(&self, example: usize, answer: &Answer, count: usize) -> Vec<PredictedLabel> {
        let shown = self.shown(example);
        let label = |best: &Score| PredictedLabel {
            name: self.name(best.class).to_owned(),
            score: best.score,
            right: shown.contains(&best.class),
            given: self.predicts(answer, best.class),
        };
        answer.video.iter().take(count).map(label).collect()
    }

    /// A label of the model, as the dataset spells it if it has that class.
    pub fn name(&self, class: usize) -> &str {
        self.evaluated.get(&class).map_or(&self.labels[class], |&place| &self.names[place])
    }

    /// Whether the best label is the right one; of several labels, whether exactly the right ones score enough.
    pub fn is_right(&self, example: usize, answer: &Answer) -> bool {
        let shown = self.shown(example);
        if !self.is_multi_label() {
            return answer.video.first().is_some_and(|best| shown.contains(&best.class));
        }
        let is_right = |(class, &score): (usize, &f32)| (score >= SHOWN_FROM) == shown.contains(&class);
        answer.scores.iter().enumerate().all(is_right)
    }

    /// Accuracy of whole videos.
    pub fn videos(&self) -> Accuracy {
        let mut accuracy = Accuracy::default();
        for (&example, answer) in &self.answers {
            accuracy.add(&self.shown(example), &answer.best_first());
        }
        accuracy
    }

    /// Accuracy of single clips, those of all videos together.
    pub fn clips(&self) -> Accuracy {
        let mut accuracy = Accuracy::default();
        for (&example, answer) in &self.answers {
            let shown = self.shown(example);
            answer.clips.iter().for_each(|clip| accuracy.add(&shown, clip));
        }
        accuracy
    }

    /// How well each class does.
    pub fn per_class(&self) -> Vec<ClassResult> {
        let count = self.names.len();
        let mut accuracies = vec![Accuracy::default(); count];
        let mut detections = vec![Detection::default(); count];
        let mut taken_for = vec![BTreeMap::<usize, u64>::new(); count];
        for (&example, answer) in &self.answers {
            let (truths, shown, best_first) = (&self.truths[example], self.shown(example), answer.best_first());
            for &truth in truths {
                accuracies[truth].add(&[self.model_indices[truth]], &best_first);
            }
            for (place, detection) in detections.iter_mut().enumerate() {
                let index = self.model_indices[place];
                detection.add(shown.contains(&index), self.predicts(answer, index));
            }
            if let (&[truth], Some(&best), false) = (truths.as_slice(), best_first.first(), self.is_multi_label())
                && best != self.model_indices[truth]
            {
                *taken_for[truth].entry(best).or_default() += 1;
            }
        }
        let mut precisions = self.average_precisions().into_iter();
        let classes = self.names.iter().zip(accuracies).zip(detections).zip(taken_for);
        let class = |(((name, accuracy), detection), taken_for): (((&String, _), _), BTreeMap<usize, u64>)| {
            // The first of those that are equally often.
            let mostly = taken_for.into_iter().reduce(|most, next| if next.1 > most.1 { next } else { most });
            let mostly_taken_for = mostly.map(|(class, times)| (self.name(class).to_owned(), times));
            let average_precision = precisions.next().flatten();
            ClassResult { name: name.clone(), accuracy, detection, average_precision, mostly_taken_for }
        };
        classes.map(class).collect()
    }

    /// Of each evaluated class.
    fn average_precisions(&self) -> Vec<Option<f64>> {
        let scores: Vec<Vec<f32>> = self
            .answers
            .values()
            .map(|answer| self.model_indices.iter().map(|&index| answer.score(index)).collect())
            .collect();
        let shown = self.answers.keys().map(|&example| self.truths[example].as_slice());
        average_precisions(scores.iter().map(Vec::as_slice).zip(shown), self.names.len())
    }

    /// How far scores are from how often they are right: those of the best labels, or of several labels those of all.
    pub fn calibration(&self) -> Option<Calibration> {
        let scores = self.answers.iter().map(|(&example, answer)| (example, answer.scores.as_slice()));
        self.calibration_of(scores)
    }

    /// The same if the model's temperature were multiplied by `factor`. Needs the clips' scores.
    pub fn calibration_at(&self, factor: f64) -> Option<Calibration> {
        let videos = self.clip_logits();
        let scores_of = |video: &ClipLogits| in_f32(&scores_at(video, self.activation, factor));
        let scores: Vec<Vec<f32>> = videos.iter().map(scores_of).collect();
        self.calibration_of(self.answers.keys().copied().zip(scores.iter().map(Vec::as_slice)))
    }

    fn calibration_of<'a>(&self, scores: impl Iterator<Item = (usize, &'a [f32])>) -> Option<Calibration> {
        let (mut confidences, mut losses, mut videos) = (Vec::new(), 0.0, 0u64);
        for (example, scores) in scores {
            let shown = self.shown(example);
            let confidence = |class: usize| Confidence { score: scores[class], right: shown.contains(&class) };
            if self.is_multi_label() {
                confidences.extend((0..scores.len()).map(confidence));
            } else {
                let answer = Answer::of_scores(scores.to_vec());
                confidences.extend(answer.video.first().map(|best| confidence(best.class)));
            }
            losses += self.log_loss(scores, &shown);
            videos += 1;
        }
        Calibration::of(&confidences, losses / videos.max(1) as f64)
    }

    /// The clips of all videos, as temperatures are fitted to them. Answers need their clips' scores for it.
    pub fn clip_logits(&self) -> Vec<ClipLogits> {
        let video = |(&example, answer): (&usize, &Answer)| ClipLogits {
            clips: answer.clip_scores.iter().map(|scores| self.activation.logits(scores)).collect(),
            shown: self.shown(example),
        };
        self.answers.iter().map(video).collect()
    }

    /// The temperature by which that of the model would have to be multiplied for scores that mean what they say.
    pub fn fit_temperature(&self) -> Result<f64, TemperatureError> {
        fit_temperature(&self.clip_logits(), self.activation)
    }

    /// What the videos of each class were taken for. Nothing is counted where a video may show several.
    pub fn confusion(&self) -> Confusion {
        let mut confusion = Confusion::new(self.names.len());
        for (&example, answer) in &self.answers {
            if let ([truth], false) = (self.truths[example].as_slice(), self.is_multi_label()) {
                let predicted = answer.video.first().and_then(|best| self.evaluated.get(&best.class).copied());
                confusion.add(*truth, predicted);
            }
        }
        confusion
    }

    /// The examples that the model got wrong, and how wrong it was; the worst first. That is the wrong label's score, or of
    /// several labels their mean log loss.
    pub fn errors(&self) -> Vec<(usize, f64)> {
        let how_wrong = |example: usize, answer: &Answer| {
            if self.is_multi_label() {
                self.log_loss(&answer.scores, &self.shown(example))
            } else {
                answer.video.first().map_or(0.0, |best| f64::from(best.score))
            }
        };
        let wrong = self.answers().filter(|(example, answer)| !self.is_right(*example, answer));
        let mut errors: Vec<(usize, f64)> =
            wrong.map(|(example, answer)| (example, how_wrong(example, answer))).collect();
        errors.sort_by(|a, b| b.1.total_cmp(&a.1));
        errors
    }

    /// What the right class of an example scores, the highest of several.
    pub fn truth_score(&self, example: usize, answer: &Answer) -> Option<f32> {
        self.shown(example).into_iter().map(|class| answer.score(class)).max_by(f32::total_cmp)
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

    /// The right classes among the model's labels.
    fn shown(&self, example: usize) -> Vec<usize> {
        self.truths[example].iter().map(|&place| self.model_indices[place]).collect()
    }

    fn log_loss(&self, scores: &[f32], shown: &[usize]) -> f64 {
        let scores: Vec<f64> = scores.iter().map(|&score| score.into()).collect();
        video_log_loss(&scores, shown, self.activation)
    }

    fn predicts(&self, answer: &Answer, class: usize) -> bool {
        match self.activation {
            Activation::Softmax => answer.video.first().is_some_and(|best| best.class == class),
            Activation::Sigmoid => answer.score(class) >= SHOWN_FROM,
        }
    }
}

fn in_f32(scores: &[f64]) -> Vec<f32> {
    scores.iter().map(|&score| score as f32).collect()
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
        let mut scores = vec![0.0; 1 + best_first.iter().max().unwrap()];
        best_first.iter().enumerate().for_each(|(rank, &class)| scores[class] = 0.5 / (1.0 + rank as f32));
        Answer { clips: clips.iter().map(|clip| clip.to_vec()).collect(), frames: 16, ..Answer::of_scores(scores) }
    }

    fn one_each(truths: &[usize]) -> Vec<Vec<usize>> {
        truths.iter().map(|&truth| vec![truth]).collect()
    }

    /// The model's order is another, it has a class more, and the dataset has one that no example is of.
    fn evaluation() -> Evaluation {
        let dataset = names(&["bowling", "unused", "air_drumming", "yoga"]);
        let model = names(&["yoga", "air drumming", "zumba", "bowling"]);
        let mut evaluation = Evaluation::new(&dataset, &one_each(&[0, 0, 2, 3]), &model, Activation::Softmax).unwrap();
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
        assert_eq!(
            (evaluation.name(1), evaluation.name(2), evaluation.truth(3).as_str()),
            ("air_drumming", "zumba", "yoga")
        );
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
        let mut many =
            Evaluation::new(&names(&["a", "b"]), &one_each(&[0; 100]), &names(&["a", "b"]), Activation::Softmax)
                .unwrap();
        (0..100).for_each(|example| many.add(example, answer(if example % 10 == 0 { &[1, 0] } else { &[0, 1] }, &[])));
        let chosen = many.chosen(6);
        let wrong = chosen.iter().filter(|&&example| example % 10 == 0).count();
        assert_eq!((chosen.len(), wrong), (6, 3));
        assert!(chosen[5] - chosen[0] > 50, "{chosen:?}");
    }

    #[test]
    fn precision_recall_and_average_precision_are_of_each_class() {
        let classes = evaluation().per_class();
        let figures = |class: usize| {
            let ClassResult { detection, average_precision, .. } = &classes[class];
            (detection.precision(), detection.recall(), detection.f1(), *average_precision)
        };
        assert_eq!(figures(0), (Some(1.0), Some(0.5), Some(2.0 / 3.0), Some(1.0)));
        assert_eq!(figures(1), (None, None, None, None));
        // Taken for yoga wrongly once, and its only video for zumba. Its scores: 0.25, 0.5 and, of the right video, 0.125.
        assert_eq!(figures(2), (Some(0.0), Some(0.0), Some(0.0), Some(1.0 / 3.0)));
    }

    #[test]
    fn errors_are_worst_first() {
        let mut evaluation = evaluation();
        evaluation.add(2, Answer::of_scores(vec![0.9, 0.05, 0.03, 0.02]));
        assert_eq!(evaluation.errors().iter().map(|error| error.0).collect::<Vec<_>>(), [2, 1, 3]);
        assert_eq!(evaluation.predicted(&evaluation.answers[&2]), "yoga");
        assert_eq!(evaluation.truth_score(2, &evaluation.answers[&2]), Some(0.05));
    }

    #[test]
    fn of_several_labels_those_that_score_enough_are_predicted() {
        let classes = names(&["run", "jump", "swim"]);
        let truths = [vec![0, 1], vec![2], vec![]];
        let mut evaluation = Evaluation::new(&classes, &truths, &classes, Activation::Sigmoid).unwrap();
        evaluation.add(0, Answer::of_scores(vec![0.9, 0.6, 0.1]));
        evaluation.add(1, Answer::of_scores(vec![0.7, 0.2, 0.4]));
        evaluation.add(2, Answer::of_scores(vec![0.1, 0.1, 0.1]));
        let is_right = |example: usize| evaluation.is_right(example, &evaluation.answers[&example]);
        assert_eq!([0, 1, 2].map(is_right), [true, false, true]);
        let predicted = |example: usize| evaluation.predicted(&evaluation.answers[&example]);
        assert_eq!([0, 1, 2].map(predicted), ["run, jump", "run", "nothing"]);
        assert_eq!([0, 2].map(|example| evaluation.truth(example)), ["run, jump", "nothing"]);
        let classes = evaluation.per_class();
        assert_eq!(classes[0].detection.precision(), Some(0.5));
        assert_eq!(classes.iter().map(|class| class.average_precision).collect::<Vec<_>>(), [Some(1.0); 3]);
        // All nine scores count, and the logarithms of those that are right.
        let calibration = evaluation.calibration().unwrap();
        assert_eq!(calibration.bins.iter().map(|bin| bin.predictions).sum::<u64>(), 9);
        let right = [0.9, 0.6, 0.9, 0.3, 0.8, 0.4, 0.9, 0.9, 0.9f64];
        let expected = -right.iter().map(|score| score.ln()).sum::<f64>() / 9.0;
        assert!((calibration.negative_log_likelihood - expected).abs() < 1e-6, "{calibration:?}");
    }

    #[test]
    fn temperature_is_fitted_to_the_clips_scores() {
        let classes = names(&["a", "b"]);
        let truths: Vec<Vec<usize>> = (0..10).map(|video| vec![usize::from(video >= 8)]).collect();
        let mut evaluation = Evaluation::new(&classes, &truths, &classes, Activation::Softmax).unwrap();
        let scores = Activation::Softmax.scores(&[5.0, 0.0], 1.0);
        for example in 0..10 {
            evaluation.add(example, Answer { clip_scores: vec![scores.clone()], ..Answer::of_scores(scores.clone()) });
        }
        let factor = evaluation.fit_temperature().unwrap();
        // The answers' scores are rounded to f32.
        assert!((factor - 5.0 / 4f64.ln()).abs() < 1e-2, "{factor}");
        let (before, after) = (evaluation.calibration().unwrap(), evaluation.calibration_at(factor).unwrap());
        assert!(before.expected_calibration_error > 0.19 && after.expected_calibration_error < 1e-3);
    }
}
