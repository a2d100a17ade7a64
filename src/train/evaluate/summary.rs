//! The figures of an evaluation: a table for people, an object for `--json`, rows for spreadsheets.

use std::fmt;

use serde::Serialize;

use super::{Calibration, ClassResult, Evaluation, Paired, Rates, mean};
use crate::model::scores::ScoreFunction;

/// What an evaluation comes to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// The model's name.
    pub model: String,
    /// Where the labelled videos are.
    pub data: String,
    /// Which of them were taken: `train`, `validation`, `test` or `all`.
    pub split: String,
    /// How the model makes scores of logits.
    pub scores: ScoreFunction,
    /// Whether videos may have several labels.
    pub multi_label: bool,
    /// Clips at equal distances that were taken of each video; all of them, one after the other, if `None`.
    pub clips_per_video: Option<u32>,
    /// Parts of each frame that were taken: 1, the middle, or 3, along the longer side.
    pub crops: u32,
    /// Accuracy of whole videos: of the mean of their clips' scores. `None` if none could be decoded. Of several labels, one of
    /// them has to be the best one, or among the best five.
    pub videos: Option<Rates>,
    /// Accuracy of single clips.
    pub clips: Option<Rates>,
    /// Mean over classes of the top-1 accuracy of their videos, whatever number of videos each has.
    pub mean_class_top_1: Option<f64>,
    /// Mean over classes with videos of their precision; that of a class which was never predicted is 0.
    pub mean_precision: Option<f64>,
    /// Mean over classes with videos of their recall.
    pub mean_recall: Option<f64>,
    /// Mean over classes with videos of their F1 ("macro").
    pub mean_f1: Option<f64>,
    /// Mean over classes with videos of their average precision (mAP).
    pub mean_average_precision: Option<f64>,
    /// How far scores are from how often they are right.
    pub calibration: Option<Calibration>,
    /// What was fitted to these videos, if it was.
    pub fitted: Option<FittedTemperature>,
    /// Beside another model, if there is one.
    pub comparison: Option<Comparison>,
    /// Videos of which a part could not be decoded, and which count all the same.
    pub partial: u64,
    /// Videos that the dataset names but that are not there.
    pub missing: u64,
    /// Videos that could not be decoded. They don't count.
    pub unreadable: Vec<NoAnswer>,
    /// Videos that got no answer for another reason. They don't count, and the figures are not those of the dataset.
    pub failed: Vec<NoAnswer>,
    /// How long it took.
    pub seconds: f64,
    /// In the dataset's order.
    pub classes: Vec<ClassRow>,
}

/// A temperature for the model, and what it brings on the videos that it was fitted to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FittedTemperature {
    /// What logits are to be divided by, instead of by the model's temperature.
    pub temperature: f64,
    /// With it.
    pub calibration: Calibration,
}

/// Two models on the videos that both answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The other model, or the file of its results.
    pub other: String,
    /// The part of the videos that it got right, 0 to 1.
    pub other_accuracy: f64,
    /// The part of them that the evaluated model got right, 0 to 1.
    pub accuracy: f64,
    /// The other model is the first one.
    #[serde(flatten)]
    pub paired: Paired,
}

/// A video that got no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NoAnswer {
    /// The example's id.
    pub id: String,
    /// Why.
    pub error: String,
}

/// One class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassRow {
    /// The dataset's name.
    pub class: String,
    /// Its accuracy; `None` if none of its videos could be decoded.
    #[serde(flatten)]
    pub rates: Option<Rates>,
    /// The part of its predictions that is right; `None` if it was never predicted.
    pub precision: Option<f64>,
    /// The part of its videos for which it was predicted; `None` without videos.
    pub recall: Option<f64>,
    /// Harmonic mean of precision and recall.
    pub f1: Option<f64>,
    /// How well its scores rank its videos before the others.
    pub average_precision: Option<f64>,
    /// The class that it is most often taken for.
    pub mostly_taken_for: Option<String>,
    /// How often.
    pub times: u64,
}

impl From<ClassResult> for ClassRow {
    fn from(class: ClassResult) -> Self {
        let (mostly_taken_for, times) = class.mostly_taken_for.unzip();
        Self {
            class: class.name,
            rates: class.accuracy.rates(),
            precision: class.detection.precision(),
            recall: class.detection.recall(),
            f1: class.detection.f1(),
            average_precision: class.average_precision,
            mostly_taken_for,
            times: times.unwrap_or(0),
        }
    }
}

impl Summary {
    /// Fills in what `evaluation` counted.
    #[must_use]
    pub fn with(self, evaluation: &Evaluation) -> Self {
        let classes: Vec<ClassRow> = evaluation.per_class().into_iter().map(ClassRow::from).collect();
        // Classes without videos tell nothing of the model.
        let over_classes = |value: &dyn Fn(&ClassRow) -> Option<f64>| {
            mean(classes.iter().filter(|class| class.rates.is_some()).map(|class| Some(value(class).unwrap_or(0.0))))
        };
        Self {
            multi_label: evaluation.is_multi_label(),
            videos: evaluation.videos().rates(),
            clips: evaluation.clips().rates(),
            mean_class_top_1: over_classes(&|class| Some(class.rates?.top_1)),
            mean_precision: over_classes(&|class| class.precision),
            mean_recall: over_classes(&|class| class.recall),
            mean_f1: over_classes(&|class| class.f1),
            mean_average_precision: over_classes(&|class| class.average_precision),
            calibration: evaluation.calibration(),
            partial: evaluation.answers().filter(|(_, answer)| answer.partial).count() as u64,
            classes,
            ..self
        }
    }

    /// The classes as CSV.
    pub fn classes_csv(&self) -> String {
        let header = [
            "class",
            "videos",
            "top_1",
            "top_5",
            "mostly_taken_for",
            "times",
            "precision",
            "recall",
            "f1",
            "average_precision",
        ];
        let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
        let row = |class: &ClassRow| {
            [
                class.class.clone(),
                class.rates.map_or(0, |rates| rates.total).to_string(),
                number(class.rates.map(|rates| rates.top_1)),
                number(class.rates.map(|rates| rates.top_5)),
                class.mostly_taken_for.clone().unwrap_or_default(),
                class.times.to_string(),
                number(class.precision),
                number(class.recall),
                number(class.f1),
                number(class.average_precision),
            ]
        };
        csv(std::iter::once(header.map(str::to_owned)).chain(self.classes.iter().map(row)))
    }

    /// Which videos, in words.
    pub(super) fn which_videos(&self) -> String {
        if self.split == "all" { "all videos".to_owned() } else { format!("the {} split", self.split) }
    }

    /// Which clips, in words.
    pub(super) fn sampling_words(&self) -> String {
        let crops = if self.crops > 1 { format!(", {} crops", self.crops) } else { String::new() };
        match self.clips_per_video {
            Some(1) => format!("one clip of each video{crops}"),
            Some(clips) => format!("{clips} clips of each video{crops}"),
            None => "all clips".to_owned(),
        }
    }

    /// The figures of the whole dataset: name, value, and what it is.
    pub(super) fn figures(&self) -> Vec<(&'static str, String, String)> {
        let mut figures = Vec::new();
        let mut add = |name, value: Option<f64>, what: &str| {
            figures.extend(value.map(|value| (name, percent(value).trim().to_owned(), what.to_owned())));
        };
        let several = if self.multi_label { "; one of the right labels has to be there" } else { "" };
        add("mAP", self.mean_average_precision, "mean over classes of the average precision");
        let videos = self.videos;
        add("top-1", videos.map(|rates| rates.top_1), &format!("of {} videos{several}", videos.map_or(0, |r| r.total)));
        add("top-5", videos.map(|rates| rates.top_5), "the right label is among the best five");
        add("mean class accuracy", self.mean_class_top_1.filter(|_| !self.multi_label), "each class counts the same");
        let threshold = if self.multi_label { ", of labels that score at least 50%" } else { "" };
        add("F1", self.mean_f1, &format!("mean over classes{threshold}"));
        add("precision", self.mean_precision, &format!("mean over classes{threshold}"));
        add("recall", self.mean_recall, &format!("mean over classes{threshold}"));
        if let Some(calibration) = &self.calibration {
            add(
                "calibration error",
                Some(calibration.expected_calibration_error),
                "mean distance of score and accuracy (ECE)",
            );
        }
        figures
    }
}

/// The confusion matrix as CSV: a row a true class, a column a predicted one, and last those of no class of the dataset.
pub fn confusion_csv(evaluation: &Evaluation) -> String {
    let confusion = evaluation.confusion();
    let names = evaluation.classes().iter().cloned();
    let header: Vec<String> =
        std::iter::once("true class".to_owned()).chain(names).chain(["(others)".to_owned()]).collect();
    let row = |(truth, name): (usize, &String)| {
        std::iter::once(name.clone()).chain(confusion.row(truth).iter().map(u64::to_string)).collect()
    };
    csv(std::iter::once(header).chain(evaluation.classes().iter().enumerate().map(row)))
}

fn csv<R: IntoIterator<Item = String>>(rows: impl Iterator<Item = R>) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(row.into_iter().collect::<Vec<_>>()).expect("memory takes rows of one length");
    }
    let bytes = writer.into_inner().expect("memory takes all");
    String::from_utf8(bytes).expect("the fields are UTF-8")
}

/// Classes that are printed one by one; of more, only the worst ones.
const MOST_CLASSES: usize = 40;
const WORST_CLASSES: usize = 15;

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: usize, thing: &str| format!("{count} {thing}{}", if count == 1 { "" } else { "s" });
        let (which, classes) = (self.which_videos(), self.classes.len());
        writeln!(f, "{} on {which} of {}, {classes} classes, {}", self.model, self.data, self.sampling_words())?;

        writeln!(f, "\n              top-1    top-5  average")?;
        for (name, rates) in [("videos", self.videos), ("clips", self.clips)] {
            let Some(Rates { total, top_1, top_5, average }) = rates else { continue };
            writeln!(f, "  {name:<9}{}{}{}   {total} {name}", percent(top_1), percent(top_5), percent(average))?;
        }
        if let Some(mean) = self.mean_class_top_1.filter(|_| !self.multi_label) {
            writeln!(f, "  classes  {}                     mean over classes", percent(mean))?;
        }
        self.write_means(f)?;
        writeln!(f)?;
        self.write_classes(f)?;
        if let (1.., Some(videos)) = (self.unreadable.len(), self.videos) {
            let all = videos.total as f64 / (videos.total as f64 + self.unreadable.len() as f64);
            let (top_1, top_5) = (100.0 * videos.top_1 * all, 100.0 * videos.top_5 * all);
            let unreadable = count(self.unreadable.len(), "video");
            writeln!(f, "\nnot decoded and not counted: {unreadable} (counted as wrong: {top_1:.2}%, {top_5:.2}%)")?;
        }
        if self.partial > 0 {
            writeln!(f, "\ndecoded in part only, but counted: {}", count(self.partial as usize, "video"))?;
        }
        if !self.failed.is_empty() {
            let failed = count(self.failed.len(), "video");
            writeln!(f, "\nwithout an answer: {failed}, so these are not the figures of all there are")?;
        }
        if let Some(comparison) = &self.comparison {
            writeln!(f, "\n{comparison}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { other, other_accuracy, accuracy, paired } = self;
        let [theirs, ours] = [other_accuracy, accuracy].map(|accuracy| 100.0 * accuracy);
        writeln!(f, "compared with {other} on {} videos: {ours:.2}%, the other {theirs:.2}%", paired.videos)?;
        write!(f, "  {paired}")
    }
}

impl fmt::Display for Paired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { only_first, only_second, difference, interval: [low, high], p_value, .. } = self;
        let [difference, low, high] = [difference, low, high].map(|part| 100.0 * part);
        write!(
            f,
            "{difference:+.2} points, 95% interval {low:+.2} to {high:+.2}; only this one is right on {only_second} videos, only \
             the other on {only_first}; McNemar's exact test p = {p_value:.3}: "
        )?;
        f.write_str(match *p_value < 0.05 {
            true => "more than chance makes likely",
            false => "chance alone may do that",
        })
    }
}

impl Summary {
    /// The means over classes, and how sure the model is.
    fn write_means(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = [self.mean_precision, self.mean_recall, self.mean_f1, self.mean_average_precision]
            .map(Option::unwrap_or_default);
        let [precision, recall, f1, map] = values.map(|value| format!("{:.2}%", 100.0 * value));
        writeln!(f, "\n  mean over classes: precision {precision}, recall {recall}, F1 {f1}, average precision {map}")?;
        let Some(calibration) = &self.calibration else { return Ok(()) };
        write!(f, "  calibration: {calibration}")?;
        match &self.fitted {
            Some(FittedTemperature { temperature, calibration }) => {
                writeln!(f, "; with the temperature {temperature:.4} fitted to these videos {calibration}")
            }
            None => writeln!(f),
        }
    }

    fn write_classes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<&ClassRow> = self.classes.iter().collect();
        if rows.len() > MOST_CLASSES {
            let f1 = |class: &ClassRow| class.f1.filter(|_| class.rates.is_some()).unwrap_or(f64::INFINITY);
            rows.sort_by(|a, b| f1(a).total_cmp(&f1(b)));
            rows.truncate(WORST_CLASSES);
            writeln!(f, "  the {WORST_CLASSES} worst of {} classes\n", self.classes.len())?;
        }
        let longest = rows.iter().map(|class| class.class.chars().count()).max().unwrap_or(0).max(5);
        let mostly = if self.multi_label { "" } else { "  mostly taken for" };
        writeln!(f, "  {:<longest$}  videos    top-1 precision   recall       F1       AP{mostly}", "class")?;
        for class in rows {
            let Some(rates) = class.rates else {
                writeln!(f, "  {:<longest$}       0        -        -        -        -        -", class.class)?;
                continue;
            };
            let mostly =
                class.mostly_taken_for.as_ref().map_or_else(String::new, |name| format!("  {name} ({})", class.times));
            let numbers = [Some(rates.top_1), class.precision, class.recall, class.f1, class.average_precision];
            let numbers = numbers.map(|value| value.map_or_else(|| "        -".to_owned(), percent)).concat();
            writeln!(f, "  {:<longest$}  {:>6}{numbers}{mostly}", class.class, rates.total)?;
        }
        Ok(())
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = 100.0 * self.expected_calibration_error;
        let sureness = match self.overconfidence {
            over if over > 0.02 => ", too sure of itself",
            over if over < -0.02 => ", not sure enough",
            _ => "",
        };
        write!(f, "error (ECE) {error:.2}%{sureness}, log loss {:.4}", self.negative_log_likelihood)
    }
}

fn percent(value: f64) -> String {
    format!("{:8.2}%", 100.0 * value)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Answer;
    use super::*;
    use crate::model::scores::Activation;

    pub(in super::super) fn summary(unreadable: usize) -> (Evaluation, Summary) {
        let names = ["bowling".to_owned(), "tango, slow".to_owned()];
        let mut evaluation =
            Evaluation::new(&names, &[0, 0, 1, 1].map(|class| vec![class]), &names, Activation::Softmax).unwrap();
        for (example, best) in [(0, 0), (1, 1), (2, 1)] {
            let mut scores = vec![0.25; 2];
            scores[best] = 0.75;
            let answer = Answer::of_scores(scores);
            evaluation.add(example, Answer { clips: vec![vec![best]], partial: example == 0, frames: 16, ..answer });
        }
        let empty = Summary {
            model: "small".to_owned(),
            data: "videos".to_owned(),
            split: "validation".to_owned(),
            crops: 1,
            unreadable: vec![NoAnswer { id: "x".to_owned(), error: "broken".to_owned() }; unreadable],
            seconds: 1.5,
            ..Summary::default()
        };
        let summary = empty.with(&evaluation);
        (evaluation, summary)
    }

    #[test]
    fn the_table_has_the_columns_of_the_papers_table_2() {
        let text = summary(1).1.to_string();
        let expected = "\
small on the validation split of videos, 2 classes, all clips

              top-1    top-5  average
  videos      66.67%  100.00%   83.33%   3 videos
  clips       66.67%   66.67%   66.67%   3 clips
  classes     75.00%                     mean over classes

  mean over classes: precision 75.00%, recall 75.00%, F1 66.67%, average precision 66.67%
  calibration: error (ECE) 8.33%, too sure of itself, log loss 0.6539

  class        videos    top-1 precision   recall       F1       AP  mostly taken for
  bowling           2   50.00%  100.00%   50.00%   66.67%   83.33%  tango, slow (1)
  tango, slow       1  100.00%   50.00%  100.00%   66.67%   50.00%

not decoded and not counted: 1 video (counted as wrong: 50.00%, 75.00%)

decoded in part only, but counted: 1 video
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_object_has_rates_of_all_of_each_class() {
        let value = serde_json::to_value(summary(0).1).unwrap();
        assert_eq!(value["videos"]["total"], 3);
        assert_eq!(value["classes"][0]["average"], 0.75);
        assert_eq!((&value["classes"][1]["total"], &value["classes"][1]["top_1"]), (&1.into(), &1.0.into()));
        assert_eq!(value["classes"][0]["mostly_taken_for"], "tango, slow");
    }

    #[test]
    fn names_with_commas_stay_one_field() {
        let (evaluation, summary) = summary(0);
        assert_eq!(summary.classes_csv().lines().last(), Some("\"tango, slow\",1,1,1,,0,0.5,1,0.6666666666666666,0.5"));
        let confusion = confusion_csv(&evaluation);
        assert_eq!(confusion, "true class,bowling,\"tango, slow\",(others)\nbowling,1,1,0\n\"tango, slow\",0,1,0\n");
    }
}
