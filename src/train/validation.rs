//! What a network's answers to the validation clips come to, counted over all processes.

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::checkpoint::Tally;
use super::distributed::{Collective, CollectiveError};
use super::evaluate::Confusion;
use super::loader::Batch;
use crate::model::spec::ModelSpec;

/// Clips that are shown.
const SHOWN: usize = 8;

/// The figures of a pass over the validation clips.
#[derive(Debug)]
pub(super) struct Validated {
    /// Losses and hits.
    pub(super) tally: Tally,
    /// What the clips of each class were taken for.
    pub(super) confusion: Confusion,
    /// Some of this process's clips, from all over its part of the data.
    pub(super) shown: Vec<Shown>,
    /// Clips from one that is shown to the next.
    distance: usize,
    /// From values of the network's input to those of pixels: factor and addend a channel.
    to_pixels: [(f32, f32); 3],
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
    pub(super) truth: usize,
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
        let logits = logits.detach();
        let predicted = logits.argmax(1)?.to_vec1::<u32>()?;
        let truths = batch.labels.to_vec1::<u32>()?;
        for (clip, (&truth, &predicted)) in truths.iter().zip(&predicted).enumerate() {
            let (truth, predicted) = (truth as usize, predicted as usize);
            self.confusion.add(truth, Some(predicted));
            if (self.tally.clips as usize + clip).is_multiple_of(self.distance) && self.shown.len() < SHOWN {
                let score = softmax_last_dim(&logits)?.get(clip)?.get(predicted)?.to_scalar::<f32>()?;
                let (rgb, size) = self.middle_frame(&batch.clips.get(clip)?)?;
                self.shown.push(Shown { name: name(batch.examples[clip]), rgb, size, truth, predicted, score });
            }
        }
        let correct = truths.iter().zip(&predicted).filter(|(truth, predicted)| truth == predicted).count();
        self.tally.add(loss, correct as u64, truths.len() as u64);
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
        Ok(())
    }

    /// Mean accuracy of the classes that have clips, each counting alike; `None` if none has.
    pub(super) fn mean_class_accuracy(&self) -> Option<f64> {
        self.confusion.mean_class_accuracy()
    }
}

/// How many clips have their highest logit at their label.
pub(super) fn count_correct(logits: &Tensor, labels: &Tensor) -> Result<u64> {
    let hits = logits.detach().argmax(1)?.eq(labels)?.to_dtype(DType::F32)?;
    Ok(hits.sum_all()?.to_scalar::<f32>()? as u64)
}
