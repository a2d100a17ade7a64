//! What a network's answers to the validation clips come to, counted over all processes.

use candle_core::{Device, Result, Tensor};

use super::checkpoint::Tally;
use super::distributed::{Collective, CollectiveError};
use super::evaluate::{Confusion, average_precisions, mean};
use super::loader::Batch;
use super::loss::Labels;
use crate::model::scores::ScoreFunction;
use crate::model::spec::ModelSpec;

/// Clips that are shown.
const SHOWN: usize = 8;

/// The figures of a pass over the validation clips.
#[derive(Debug)]
pub(super) struct Validated {
    /// Losses and hits.
    pub(super) tally: Tally,
    /// What the clips of each class were taken for. Nothing is counted where they show several.
    pub(super) confusion: Confusion,
    /// Scores and classes of each clip, where they show several.
    ranked: Vec<Ranked>,
    scores: ScoreFunction,
    /// Some of this process's clips, from all over its part of the data.
    pub(super) shown: Vec<Shown>,
    /// Clips from one that is shown to the next.
    distance: usize,
    /// From values of the network's input to those of pixels: factor and addend a channel.
    to_pixels: [(f32, f32); 3],
}

/// A clip of several classes.
#[derive(Debug)]
struct Ranked {
    scores: Vec<f32>,
    shown: Vec<usize>,
}

/// A clip and what the network says of it.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    /// Of its example.
    pub(super) name: String,
    /// Its middle frame `(size, size, 3)`, RGB, 0-255.
    pub(super) rgb: Vec<u8>,
    /// Height and width.
    pub(super) size: usize,
    /// Its classes.
    pub(super) truth: Vec<usize>,
    /// The best class.
    pub(super) predicted: usize,
    /// Of the predicted class, 0 to 1.
    pub(super) score: f32,
}

impl Validated {
    /// Nothing yet of `clips` clips.
    pub(super) fn new(spec: &ModelSpec, clips: usize) -> Self {
        let inverse = |values: &[f32; 256]| {
            let factor = 255.0 / (values[255] - values[0]);
            (factor, -values[0] * factor)
        };
        Self {
            tally: Tally::default(),
            confusion: Confusion::new(spec.labels.len()),
            ranked: Vec::new(),
            scores: spec.scores,
            shown: Vec::new(),
            distance: clips.div_ceil(SHOWN).max(1),
            to_pixels: std::array::from_fn(|channel| inverse(&spec.preprocessing.lookup_table()[channel])),
        }
    }

    /// Counts a batch with these logits `(n, classes)` and this mean loss.
    pub(super) fn add(
        &mut self,
        batch: &Batch,
        logits: &Tensor,
        loss: f64,
        name: impl Fn(usize) -> String,
    ) -> Result<()> {
        let truths = classes_of(&batch.labels)?;
        for (clip, (logits, truth)) in logits.detach().to_vec2::<f32>()?.iter().zip(truths).enumerate() {
            let predicted = highest(logits);
            let scores = self.scores.scores(logits);
            if (self.tally.clips as usize + clip).is_multiple_of(self.distance) && self.shown.len() < SHOWN {
                let (rgb, size) = self.middle_frame(&batch.clips.get(clip)?)?;
                let (name, score) = (name(batch.examples[clip]), scores[predicted]);
                self.shown.push(Shown { name, rgb, size, truth: truth.clone(), predicted, score });
            }
            match truth.as_slice() {
                &[truth] if !self.scores.is_multi_label() => self.confusion.add(truth, Some(predicted)),
                _ if self.scores.is_multi_label() => self.ranked.push(Ranked { scores, shown: truth }),
                _ => {}
            }
        }
        let clips = batch.examples.len() as u64;
        self.tally.add(loss, batch.labels.count_correct(&logits.to_device(&Device::Cpu)?)?, clips);
        Ok(())
    }

    /// The middle frame of a clip `(3, t, h, w)` as pixels, and its side.
    fn middle_frame(&self, clip: &Tensor) -> Result<(Vec<u8>, usize)> {
        let (_, frames, size, _) = clip.dims4()?;
        let planes = clip.narrow(1, frames / 2, 1)?.flatten_from(1)?.to_vec2::<f32>()?;
        let pixel = |place: usize| {
            let channel = move |(plane, (factor, addend)): (&Vec<f32>, (f32, f32))| plane[place] * factor + addend;
            planes.iter().zip(self.to_pixels).map(channel).map(|value| value.round().clamp(0.0, 255.0) as u8)
        };
        Ok(((0..size * size).flat_map(pixel).collect(), size))
    }

    /// Becomes the figures of all processes.
    pub(super) fn join(&mut self, collective: &mut dyn Collective) -> std::result::Result<(), CollectiveError> {
        let mut sums = vec![self.tally.loss_sum(), self.tally.correct as f64, self.tally.clips as f64];
        sums.extend(self.confusion.counts().iter().map(|&count| count as f64));
        collective.sum_exact(&mut sums)?;
        self.tally = Tally::of_sums(sums[0], sums[1] as u64, sums[2] as u64);
        self.confusion.replace_counts(sums[3..].iter().map(|&count| count as u64).collect());
        self.join_ranked(collective)
    }

    /// Each process writes its clips into a place of its own among zeros, so that the sum is the clips of all.
    fn join_ranked(&mut self, collective: &mut dyn Collective) -> std::result::Result<(), CollectiveError> {
        if !self.scores.is_multi_label() || collective.world_size() == 1 {
            return Ok(());
        }
        let (rank, classes) = (collective.rank(), self.confusion.classes());
        let mut counts = vec![0.0; collective.world_size()];
        counts[rank] = self.ranked.len() as f64;
        collective.sum_exact(&mut counts)?;
        let counts: Vec<usize> = counts.into_iter().map(|count| count as usize).collect();
        // A score and whether the class is shown.
        let width = 2 * classes;
        let mut rows = vec![0.0; counts.iter().sum::<usize>() * width];
        let before = counts[..rank].iter().sum::<usize>() * width;
        for (row, clip) in rows[before..].chunks_exact_mut(width).zip(&self.ranked) {
            row[..classes].iter_mut().zip(&clip.scores).for_each(|(place, &score)| *place = f64::from(score));
            clip.shown.iter().for_each(|class| row[classes + class] = 1.0);
        }
        collective.sum_exact(&mut rows)?;
        let ranked = |row: &[f64]| Ranked {
            scores: row[..classes].iter().map(|&score| score as f32).collect(),
            shown: (0..classes).filter(|class| row[classes + class] > 0.0).collect(),
        };
        self.ranked = rows.chunks_exact(width).map(ranked).collect();
        Ok(())
    }

    /// Mean accuracy of the classes that have clips, each counting alike; `None` if none has, or clips show several.
    pub(super) fn mean_class_accuracy(&self) -> Option<f64> {
        self.confusion.mean_class_accuracy()
    }

    /// Mean over classes of the average precision of clips; `None` where clips show one class.
    pub(super) fn mean_average_precision(&self) -> Option<f64> {
        let rows = self.ranked.iter().map(|clip| (clip.scores.as_slice(), clip.shown.as_slice()));
        mean(average_precisions(rows, self.confusion.classes()))
    }

    /// The figure in which each class counts alike.
    pub(super) fn mean_over_classes(&self) -> Option<f64> {
        self.mean_class_accuracy().or_else(|| self.mean_average_precision())
    }
}

/// The classes of each clip: those of which it shows the most.
fn classes_of(labels: &Labels) -> Result<Vec<Vec<usize>>> {
    Ok(match labels {
        Labels::Classes(classes) => classes.to_vec1::<u32>()?.into_iter().map(|class| vec![class as usize]).collect(),
        Labels::Parts(parts) => parts.to_vec2::<f32>()?.iter().map(|row| most_shown(row)).collect(),
    })
}

/// At least half of the class is shown, or of parts of 1 no other class more.
fn most_shown(row: &[f32]) -> Vec<usize> {
    let most = row.iter().copied().fold(0.0, f32::max);
    (0..row.len()).filter(|&class| row[class] > 0.0 && row[class] >= most.min(0.5)).collect()
}

/// The first of the highest ones.
fn highest(logits: &[f32]) -> usize {
    (0..logits.len()).reduce(|best, class| if logits[class] > logits[best] { class } else { best }).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::builtin;
    use crate::model::scores::Activation;

    #[test]
    fn clips_of_several_classes_are_ranked() {
        let mut spec = builtin::spec();
        spec.labels.truncate(3);
        spec.scores.activation = Activation::Sigmoid;
        let mut validated = Validated::new(&spec, 2);
        let labels = Labels::Parts(Tensor::new(&[[1f32, 0.0, 1.0], [0.0, 0.0, 1.0]], &Device::Cpu).unwrap());
        let clips = Tensor::zeros((2, 3, 1, 16, 16), candle_core::DType::F32, &Device::Cpu).unwrap();
        let batch = Batch { clips, labels, examples: vec![0, 1] };
        let logits = Tensor::new(&[[2f32, 1.0, 1.0], [3.0, 0.0, 2.0]], &Device::Cpu).unwrap();
        validated.add(&batch, &logits, 0.5, |example| example.to_string()).unwrap();
        // Of class 0 the wrong clip is first; class 1 is never shown; class 2 is shown by both.
        assert_eq!((validated.mean_average_precision(), validated.mean_class_accuracy()), (Some(0.75), None));
        assert_eq!((validated.tally.correct, validated.shown[0].truth.as_slice()), (1, [0, 2].as_slice()));
        assert_eq!(validated.mean_over_classes(), Some(0.75));
    }

    #[test]
    fn the_class_that_is_shown_most_is_that_of_soft_labels() {
        assert_eq!(most_shown(&[0.3, 0.45, 0.25]), [1]);
        assert_eq!(most_shown(&[1.0, 0.6, 0.4]), [0, 1]);
        assert!(most_shown(&[0.0; 3]).is_empty());
    }

    /// Two processes of one test: what each brings is added up.
    struct Pair {
        rank: usize,
        meeting: std::sync::Arc<(std::sync::Barrier, std::sync::Mutex<Vec<f64>>)>,
    }

    impl Collective for Pair {
        fn rank(&self) -> usize {
            self.rank
        }

        fn world_size(&self) -> usize {
            2
        }

        fn sum(&mut self, _values: &mut [f32]) -> std::result::Result<(), CollectiveError> {
            unreachable!("validation sums exactly")
        }

        fn sum_exact(&mut self, values: &mut [f64]) -> std::result::Result<(), CollectiveError> {
            let (barrier, sums) = &*self.meeting;
            {
                let mut sums = sums.lock().unwrap();
                sums.resize(values.len(), 0.0);
                sums.iter_mut().zip(&*values).for_each(|(sum, value)| *sum += value);
            }
            barrier.wait();
            values.copy_from_slice(&sums.lock().unwrap());
            if barrier.wait().is_leader() {
                sums.lock().unwrap().clear();
            }
            barrier.wait();
            Ok(())
        }
    }

    impl std::fmt::Debug for Pair {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "process {}", self.rank)
        }
    }

    #[test]
    fn clips_of_several_processes_are_ranked_together() {
        let mut spec = builtin::spec();
        spec.labels.truncate(2);
        spec.scores.activation = Activation::Sigmoid;
        let meeting = std::sync::Arc::new((std::sync::Barrier::new(2), std::sync::Mutex::new(Vec::new())));
        let validate = |rank: usize, logits: Vec<[f32; 2]>, shown: Vec<[f32; 2]>| {
            let count = logits.len();
            let mut validated = Validated::new(&spec, count);
            let clips = Tensor::zeros((count, 3, 1, 16, 16), candle_core::DType::F32, &Device::Cpu).unwrap();
            let labels = Labels::Parts(Tensor::from_vec(shown.concat(), (count, 2), &Device::Cpu).unwrap());
            let batch = Batch { clips, labels, examples: (0..count).collect() };
            let logits = Tensor::from_vec(logits.concat(), (count, 2), &Device::Cpu).unwrap();
            validated.add(&batch, &logits, 0.5, |example| example.to_string()).unwrap();
            validated.join(&mut Pair { rank, meeting: meeting.clone() }).unwrap();
            (validated.mean_average_precision(), validated.tally.clips)
        };
        let (first, second) = std::thread::scope(|scope| {
            let other = scope.spawn(|| validate(1, vec![[2.0, 0.0]], vec![[0.0, 1.0]]));
            (validate(0, vec![[3.0, 1.0], [1.0, -1.0]], vec![[1.0, 0.0], [1.0, 1.0]]), other.join().unwrap())
        });
        // Class 0: right, wrong, right. Class 1: wrong, right, right.
        let expected = ((1.0 + 2.0 / 3.0) / 2.0 + (1.0 / 2.0 + 2.0 / 3.0) / 2.0) / 2.0;
        assert!((first.0.unwrap() - expected).abs() < 1e-12, "{first:?}");
        assert_eq!((first, first.1), (second, 3));
    }
}
