//! Losses beside PyTorch's, and a recipe with warm-up, cosine, clipped gradients and averaged weights beside PyTorch's parts.

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};
use kinetoscope::model::counter::CounterStream;
use kinetoscope::model::file::Model;
use kinetoscope::train::distributed::Alone;
use kinetoscope::train::loader::{Batch, LoaderError};
use kinetoscope::train::loss::{Criterion, Labels, LossConfig, LossKind};
use kinetoscope::train::optimizer::OptimizerConfig;
use kinetoscope::train::schedule::Schedule;
use kinetoscope::train::sgd::SgdConfig;
use kinetoscope::train::trainer::{BatchSource, LAST_FILE, Observer, Start, TrainOptions, Trainer};
use tokio_util::sync::CancellationToken;

use crate::golden::{self, Golden};

const CLIPS: usize = 6;
const CLASSES: usize = 5;

fn uniform(seed: u64, name: &str, len: usize) -> Vec<f32> {
    let stream = CounterStream::new(seed, name);
    (0..len as u64).map(|index| stream.uniform(index)).collect()
}

/// The classes of clips, and parts of them and of those of the clips before.
fn one_and_mixed() -> (Labels, Labels) {
    let one = [0u32, 4, 2, 2, 1, 3];
    let mut mixed = vec![0.0f32; CLIPS * CLASSES];
    for clip in 0..CLIPS {
        mixed[clip * CLASSES + one[clip] as usize] += 0.7;
        mixed[clip * CLASSES + one[(clip + CLIPS - 1) % CLIPS] as usize] += 0.3;
    }
    let mixed = Tensor::from_vec(mixed, (CLIPS, CLASSES), &Device::Cpu).unwrap();
    (Labels::Classes(Tensor::new(&one, &Device::Cpu).unwrap()), Labels::Parts(mixed))
}

#[test]
fn losses_and_their_gradients_are_pytorchs() {
    let golden = candle_core::safetensors::load(golden::path("losses.safetensors"), &Device::Cpu).unwrap();
    let weights: Vec<f32> = uniform(3, "weights", CLASSES).into_iter().map(|value| 1.5 + value).collect();
    let (one, mixed) = one_and_mixed();
    let several = Labels::Parts(golden["several"].clone());
    let config = |kind, class_weights, label_smoothing| LossConfig { kind, class_weights, label_smoothing };
    let (softmax, sigmoid) = (LossKind::CrossEntropy, LossKind::BinaryCrossEntropy);
    for (case, labels, config) in [
        ("plain", &one, config(softmax, None, 0.0)),
        ("smoothed", &one, config(softmax, None, 0.1)),
        ("weighted", &one, config(softmax, Some(weights.clone()), 0.0)),
        ("weighted-and-smoothed", &one, config(softmax, Some(weights.clone()), 0.2)),
        ("mixed", &mixed, config(softmax, None, 0.0)),
        ("mixed-and-smoothed", &mixed, config(softmax, None, 0.1)),
        ("binary", &several, config(sigmoid, None, 0.0)),
        ("binary-weighted", &several, config(sigmoid, Some(weights), 0.0)),
    ] {
        let logits = uniform(3, "logits", CLIPS * CLASSES).into_iter().map(|value| 3.0 * value).collect();
        let logits = Var::from_tensor(&Tensor::from_vec(logits, (CLIPS, CLASSES), &Device::Cpu).unwrap()).unwrap();
        let criterion = Criterion::new(&config, &Device::Cpu).unwrap();
        let loss = criterion.loss(&logits, labels).unwrap().mean().unwrap();
        let expected = golden[&format!("{case}.loss")].to_vec1::<f32>().unwrap()[0];
        let actual = loss.to_scalar::<f32>().unwrap();
        assert!((actual - expected).abs() <= 2e-6 * expected, "{case}: {actual} instead of {expected}");
        let gradient = loss.backward().unwrap().remove(&logits).unwrap();
        let distance = golden::relative_distance(&gradient, &golden[&format!("{case}.gradient")]);
        assert!(distance <= 2e-6, "the gradient of {case} is {distance:.1e} off");
    }
}

/// Five batches of four clips.
struct Batches(u64);

impl BatchSource for Batches {
    fn epoch(&self, _epoch: u64, first: usize) -> Box<dyn Iterator<Item = Result<Batch, LoaderError>> + '_> {
        let batch = move |step: usize| {
            let values = uniform(self.0, &format!("clips {step}"), 4 * 3 * 8 * 32 * 32);
            Ok(Batch {
                clips: Tensor::from_vec(values, (4, 3, 8, 32, 32), &Device::Cpu).unwrap(),
                labels: Labels::Classes(Tensor::new(&[0u32, 1, 2, 1], &Device::Cpu).unwrap()),
                examples: (0..4).collect(),
            })
        };
        Box::new((first..5).map(batch))
    }

    fn batches_per_epoch(&self) -> usize {
        5
    }

    fn clips_per_epoch(&self) -> usize {
        20
    }
}

/// No clips.
struct Nothing;

impl BatchSource for Nothing {
    fn epoch(&self, _epoch: u64, _first: usize) -> Box<dyn Iterator<Item = Result<Batch, LoaderError>> + '_> {
        Box::new(std::iter::empty())
    }

    fn batches_per_epoch(&self) -> usize {
        0
    }

    fn clips_per_epoch(&self) -> usize {
        0
    }
}

struct Losses(Vec<f64>);

impl Observer for Losses {
    fn batch(&mut self, _clips: u64, loss: f64) {
        self.0.push(loss);
    }
}

#[test]
fn warm_up_cosine_smoothing_clipping_and_averaging_are_pytorchs_together() {
    let mut golden = Golden::read("recipe-10-b");
    let expected: HashMap<String, Tensor> = std::mem::take(&mut golden.tensors);
    let number = |name: &str| f64::from(expected[name].to_vec1::<f32>().unwrap()[0]);
    // Fresh statistics: those that the golden names are what became of them.
    for name in expected.keys().filter_map(|name| name.strip_prefix("size.")) {
        let channels = |layer: &str| golden.model_channels(layer);
        if let Some(layer) = name.strip_suffix(".running_mean") {
            golden.tensors.insert(
                name.to_owned(),
                Tensor::zeros(channels(layer), candle_core::DType::F32, &Device::Cpu).unwrap(),
            );
        } else if let Some(layer) = name.strip_suffix(".running_var") {
            golden
                .tensors
                .insert(name.to_owned(), Tensor::ones(channels(layer), candle_core::DType::F32, &Device::Cpu).unwrap());
        }
    }
    let optimizer = OptimizerConfig::Sgd(SgdConfig { learning_rate: 0.05, ..SgdConfig::default() });
    let options = TrainOptions {
        warmup_steps: 2,
        loss: LossConfig { label_smoothing: 0.1, ..LossConfig::default() },
        clip_norm: Some(0.5),
        average_decay: Some(0.9),
        ..TrainOptions::new(1, 1, optimizer, Schedule::Cosine { steps: 5 }, Device::Cpu)
    };
    let out = tempfile::tempdir().unwrap();
    let mut model = golden.model();
    model.spec.clip.frames = 8;
    model.spec.clip.size = 32;
    let mut trainer = Trainer::open(&model, options, out.path(), Start::New, Box::new(Alone)).unwrap();
    let mut losses = Losses(Vec::new());
    trainer.run(&Batches(golden.recipe.seed), &Nothing, &CancellationToken::new(), &mut losses).unwrap();
    for (step, actual) in losses.0.iter().enumerate() {
        let expected = number(&format!("loss.{step}"));
        // Each step goes through what the ones before rounded; batch norms of four values enlarge it.
        assert!((actual - expected).abs() <= 2e-4 * expected, "step {step}: {actual} instead of {expected}");
    }
    for (name, tensor) in Model::read(&out.path().join(LAST_FILE)).unwrap().tensors {
        let size = tensor.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
        let wanted = number(&format!("size.{name}"));
        assert!((f64::from(size) - wanted).abs() <= 1e-4 * wanted.max(1e-3), "{name}: {size} instead of {wanted}");
        if let Some(values) = expected.get(&name) {
            let distance = golden::relative_distance(&tensor, values);
            assert!(distance <= 2e-4, "{name} is {distance:.1e} off");
        }
    }
}
