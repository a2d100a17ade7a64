//! The figures of an evaluation: a table for people, an object for `--json`, rows for spreadsheets.

use std::fmt;

use serde::Serialize;

use super::{ClassAccuracy, Evaluation, Rates};

/// What an evaluation comes to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The model's name.
    pub model: String,
    /// Where the labelled videos are.
    pub data: String,
    /// Which of them were taken: `train`, `validation`, `test` or `all`.
    pub split: String,
    /// Accuracy of whole videos: of the mean of their clips' softmax. `None` if none could be decoded.
    pub videos: Option<Rates>,
    /// Accuracy of single clips.
    pub clips: Option<Rates>,
    /// Mean over classes of the top-1 accuracy of their videos, whatever number of videos each has.
    pub mean_class_top_1: Option<f64>,
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
    /// The class that it is most often taken for.
    pub mostly_taken_for: Option<String>,
    /// How often.
    pub times: u64,
}

impl From<ClassAccuracy> for ClassRow {
    fn from(class: ClassAccuracy) -> Self {
        let (mostly_taken_for, times) = class.mostly_taken_for.unzip();
        Self { class: class.name, rates: class.accuracy.rates(), mostly_taken_for, times: times.unwrap_or(0) }
    }
}

impl Summary {
    /// Fills in what `evaluation` counted.
    #[must_use]
    pub fn with(self, evaluation: &Evaluation) -> Self {
        let classes: Vec<ClassRow> = evaluation.per_class().into_iter().map(ClassRow::from).collect();
        let top_1: Vec<f64> = classes.iter().filter_map(|class| Some(class.rates?.top_1)).collect();
        Self {
            videos: evaluation.videos().rates(),
            clips: evaluation.clips().rates(),
            mean_class_top_1: (!top_1.is_empty()).then(|| top_1.iter().sum::<f64>() / top_1.len() as f64),
            partial: evaluation.answers().filter(|(_, answer)| answer.partial).count() as u64,
            classes,
            ..self
        }
    }

    /// The classes as CSV.
    pub fn classes_csv(&self) -> String {
        let header = ["class", "videos", "top_1", "top_5", "mostly_taken_for", "times"].map(str::to_owned);
        let row = |class: &ClassRow| {
            let (videos, top_1, top_5) = class.rates.map_or((0, String::new(), String::new()), |rates| {
                (rates.total, rates.top_1.to_string(), rates.top_5.to_string())
            });
            let mostly = class.mostly_taken_for.clone().unwrap_or_default();
            [class.class.clone(), videos.to_string(), top_1, top_5, mostly, class.times.to_string()]
        };
        csv(std::iter::once(header).chain(self.classes.iter().map(row)))
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
        let which = if self.split == "all" { "all videos" } else { &format!("the {} split", self.split) };
        writeln!(f, "{} on {which} of {}, {} classes", self.model, self.data, self.classes.len())?;

        writeln!(f, "\n              top-1    top-5  average")?;
        for (name, rates) in [("videos", self.videos), ("clips", self.clips)] {
            let Some(Rates { total, top_1, top_5, average }) = rates else { continue };
            writeln!(f, "  {name:<9}{}{}{}   {total} {name}", percent(top_1), percent(top_5), percent(average))?;
        }
        if let Some(mean) = self.mean_class_top_1 {
            writeln!(f, "  classes  {}                     mean over classes", percent(mean))?;
        }
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
        Ok(())
    }
}

impl Summary {
    fn write_classes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<&ClassRow> = self.classes.iter().collect();
        if rows.len() > MOST_CLASSES {
            let top_1 = |class: &ClassRow| class.rates.map_or(f64::INFINITY, |rates| rates.top_1);
            rows.sort_by(|a, b| top_1(a).total_cmp(&top_1(b)));
            rows.truncate(WORST_CLASSES);
            writeln!(f, "  the {WORST_CLASSES} worst of {} classes\n", self.classes.len())?;
        }
        let longest = rows.iter().map(|class| class.class.chars().count()).max().unwrap_or(0).max(5);
        writeln!(f, "  {:<longest$}  videos    top-1    top-5  mostly taken for", "class")?;
        for class in rows {
            let Some(rates) = class.rates else {
                writeln!(f, "  {:<longest$}       0        -        -", class.class)?;
                continue;
            };
            let mostly =
                class.mostly_taken_for.as_ref().map_or_else(String::new, |name| format!("  {name} ({})", class.times));
            let (top_1, top_5) = (percent(rates.top_1), percent(rates.top_5));
            writeln!(f, "  {:<longest$}  {:>6}{top_1}{top_5}{mostly}", class.class, rates.total)?;
        }
        Ok(())
    }
}

fn percent(value: f64) -> String {
    format!("{:8.2}%", 100.0 * value)
}

#[cfg(test)]
mod tests {
    use super::super::{Answer, Score};
    use super::*;

    fn summary(unreadable: usize) -> (Evaluation, Summary) {
        let names = ["bowling".to_owned(), "tango, slow".to_owned()];
        let mut evaluation = Evaluation::new(&names, &[0, 0, 1, 1], &names).unwrap();
        for (example, best) in [(0, 0), (1, 1), (2, 1)] {
            let video = [best, 1 - best].map(|class| Score { class, score: 0.5 }).to_vec();
            evaluation.add(example, Answer { video, clips: vec![vec![best]], partial: example == 0, frames: 16 });
        }
        let empty = Summary {
            model: "small".to_owned(),
            data: "videos".to_owned(),
            split: "validation".to_owned(),
            videos: None,
            clips: None,
            mean_class_top_1: None,
            partial: 0,
            missing: 0,
            unreadable: vec![NoAnswer { id: "x".to_owned(), error: "broken".to_owned() }; unreadable],
            failed: Vec::new(),
            seconds: 1.5,
            classes: Vec::new(),
        };
        let summary = empty.with(&evaluation);
        (evaluation, summary)
    }

    #[test]
    fn the_table_has_the_columns_of_the_papers_table_2() {
        let text = summary(1).1.to_string();
        let expected = "\
small on the validation split of videos, 2 classes

              top-1    top-5  average
  videos      66.67%  100.00%   83.33%   3 videos
  clips       66.67%   66.67%   66.67%   3 clips
  classes     75.00%                     mean over classes

  class        videos    top-1    top-5  mostly taken for
  bowling           2   50.00%  100.00%  tango, slow (1)
  tango, slow       1  100.00%  100.00%

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
        assert_eq!(summary.classes_csv().lines().last(), Some("\"tango, slow\",1,1,1,,0"));
        let confusion = confusion_csv(&evaluation);
        assert_eq!(confusion, "true class,bowling,\"tango, slow\",(others)\nbowling,1,1,0\n\"tango, slow\",0,1,0\n");
    }
}
