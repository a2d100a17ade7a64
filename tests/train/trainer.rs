//! The training loop on clips in memory.

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use candle_core::{Device, Tensor};
use kinetoscope::model::file::Model;
use kinetoscope::model::spec::{Architecture, ClipSpec, Family, ModelSpec, Preprocessing, Shortcut, Stem};
use kinetoscope::train::distributed::{Alone, Collective, Tcp};
use kinetoscope::train::loader::{Batch, LoaderError};
use kinetoscope::train::network::{self, Layer};
use kinetoscope::train::optimizer::OptimizerConfig;
use kinetoscope::train::report::EpochRecord;
use kinetoscope::train::schedule::Schedule;
use kinetoscope::train::sgd::SgdConfig;
use kinetoscope::train::trainer::{
    BEST_FILE, BatchSource, CHECKPOINT_FILE, LAST_FILE, Observer, Outcome, Pass, Start, TrainError, TrainOptions,
    Trainer,
};
use tokio_util::sync::CancellationToken;

const CLASSES: usize = 4;

fn model(seed: u64) -> Model {
    let spec = ModelSpec {
        name: "small".to_owned(),
        version: "1".to_owned(),
        trained: false,
        license: None,
        origin: None,
        architecture: Architecture {
            family: Family::ResNet3d,
            depth: 10,
            shortcut: Shortcut::B,
            widen_factor: 0.125,
            stem: Stem::AUTHORS,
        },
        clip: ClipSpec { frames: 8, size: 32, temporal_stride: 1 },
        preprocessing: Preprocessing::AUTHORS_2020,
        labels: (0..CLASSES).map(|class| format!("class {class}")).collect(),
    };
    network::from_scratch(spec, seed).unwrap()
}

/// Clips of noise, `per_batch` a batch; the same in each epoch.
struct Noise {
    batches: Vec<Batch>,
}

impl Noise {
    fn new(clips: usize, per_batch: usize) -> Self {
        let values: Vec<f32> = {
            let stream = kinetoscope::model::counter::CounterStream::new(1, "noise");
            (0..(clips * 3 * 8 * 32 * 32) as u64).map(|index| stream.uniform(index)).collect()
        };
        let all = Tensor::from_vec(values, (clips, 3, 8, 32, 32), &Device::Cpu).unwrap();
        let batch = |start: usize| {
            let len = per_batch.min(clips - start);
            let labels: Vec<u32> = (start..start + len).map(|clip| (clip % CLASSES) as u32).collect();
            Batch {
                clips: all.narrow(0, start, len).unwrap().contiguous().unwrap(),
                labels: Tensor::from_vec(labels, len, &Device::Cpu).unwrap(),
                examples: (start..start + len).collect(),
            }
        };
        Self { batches: (0..clips).step_by(per_batch).map(batch).collect() }
    }

    /// Every `world_size`-th batch.
    fn share(self, rank: usize, world_size: usize) -> Self {
        Self { batches: self.batches.into_iter().skip(rank).step_by(world_size).collect() }
    }
}

impl BatchSource for Noise {
    fn epoch(&self, _epoch: u64, first: usize) -> Box<dyn Iterator<Item = Result<Batch, LoaderError>> + '_> {
        Box::new(self.batches.iter().skip(first).cloned().map(Ok))
    }

    fn batches_per_epoch(&self) -> usize {
        self.batches.len()
    }

    fn clips_per_epoch(&self) -> usize {
        self.batches.iter().map(|batch| batch.examples.len()).sum()
    }
}

fn options(epochs: u64) -> TrainOptions {
    let optimizer = OptimizerConfig::Sgd(SgdConfig { learning_rate: 0.05, ..SgdConfig::default() });
    let schedule = Schedule::Plateau { patience: 1, gamma: 0.5 };
    TrainOptions::new(epochs, 1, optimizer, schedule, Device::Cpu)
}

/// Remembers the epochs, and stops after so many batches of training.
#[derive(Default)]
struct Watcher {
    records: Vec<EpochRecord>,
    stop: Option<(u64, CancellationToken)>,
    training: bool,
}

impl Observer for Watcher {
    fn begin(&mut self, pass: Pass, _clips: u64, _done: u64) {
        self.training = matches!(pass, Pass::Training { .. });
    }

    fn batch(&mut self, _clips: u64, _loss: f64) {
        if let (true, Some((left, token))) = (self.training, &mut self.stop) {
            *left -= 1;
            if *left == 0 {
                token.cancel();
            }
        }
    }

    fn epoch(&mut self, record: &EpochRecord) {
        self.records.push(*record);
    }
}

fn open(out: &Path, options: TrainOptions, start: Start) -> Result<Trainer, TrainError> {
    Trainer::open(&model(1), options, out, start, Box::new(Alone))
}

/// Trains with 12 clips in batches of 4; validates with 8.
fn train(out: &Path, options: TrainOptions, start: Start, stop_after: Option<u64>) -> (Outcome, Vec<EpochRecord>) {
    let token = CancellationToken::new();
    let mut watcher = Watcher { stop: stop_after.map(|left| (left, token.clone())), ..Watcher::default() };
    let mut trainer = open(out, options, start).unwrap();
    let outcome = trainer.run(&Noise::new(12, 4), &Noise::new(8, 4), &token, &mut watcher).unwrap();
    (outcome, watcher.records)
}

fn values(path: &Path) -> HashMap<String, Vec<f32>> {
    let model = Model::read(path).unwrap();
    assert!(model.spec.trained);
    model.tensors.into_iter().map(|(name, tensor)| (name, tensor.flatten_all().unwrap().to_vec1().unwrap())).collect()
}

fn single_threaded<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(run)
}

#[test]
fn eight_clips_are_learnt_by_heart() {
    let out = tempfile::tempdir().unwrap();
    let clips = Noise::new(8, 8);
    let mut watcher = Watcher::default();
    let mut trainer = open(out.path(), options(40), Start::New).unwrap();
    trainer.run(&clips, &clips, &CancellationToken::new(), &mut watcher).unwrap();
    let last = watcher.records.last().unwrap();
    assert_eq!((last.train_accuracy, last.validation_accuracy), (1.0, Some(1.0)), "{:?}", watcher.records);
    assert!(last.train_loss < watcher.records[0].train_loss / 4.0);
    Model::read(&out.path().join(BEST_FILE)).unwrap();
}

#[test]
fn resumed_run_ends_as_one_that_never_stopped() {
    single_threaded(|| {
        for (accumulate, adamw) in [(1, false), (2, false), (1, true)] {
            let mut options = options(4);
            options.accumulate = accumulate;
            options.warmup_steps = 3;
            if adamw {
                options.optimizer = OptimizerConfig::AdamW { learning_rate: 0.001, weight_decay: 0.01 };
            }
            let [whole, stopped] = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let (outcome, expected) = train(whole.path(), options.clone(), Start::New, None);
            assert_eq!(outcome, Outcome::Finished);
            // Stops within an epoch, at the end of one, and again.
            let mut records = Vec::new();
            for stop_after in [Some(2), Some(1), Some(5), None] {
                let (outcome, more) = train(stopped.path(), options.clone(), Start::Resume, stop_after);
                assert_eq!(outcome, if stop_after.is_some() { Outcome::Stopped } else { Outcome::Finished });
                records.extend(more);
            }
            for file in [LAST_FILE, BEST_FILE] {
                assert!(values(&stopped.path().join(file)) == values(&whole.path().join(file)), "{file} differs");
            }
            let losses = |records: &[EpochRecord]| -> Vec<_> {
                let row =
                    |r: &EpochRecord| (r.epoch, r.learning_rate, r.train_loss, r.validation_loss, r.train_accuracy);
                records.iter().map(row).collect()
            };
            assert_eq!(losses(&records), losses(&expected));
        }
    });
}

#[test]
fn accumulated_batches_make_one_step() {
    // One epoch of three batches is one step.
    let out = tempfile::tempdir().unwrap();
    let mut trainer = open(out.path(), TrainOptions { accumulate: 3, ..options(2) }, Start::New).unwrap();
    trainer.run(&Noise::new(12, 4), &Noise::new(0, 4), &CancellationToken::new(), &mut ()).unwrap();
    assert_eq!(trainer.progress().step, 2);
}

#[test]
fn frozen_layers_stay_as_they_are() {
    let out = tempfile::tempdir().unwrap();
    let begin_at_last_stage = TrainOptions { begin_at: Layer::Layer4, backbone_factor: 0.1, ..options(1) };
    train(out.path(), begin_at_last_stage, Start::New, None);
    let (before, after) = (model(1), values(&out.path().join(LAST_FILE)));
    for (name, after) in after {
        let before = before.tensors[&name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let trained = name.starts_with("layer4.") || name.starts_with("fc.");
        assert_eq!(before != after, trained, "{name}");
    }
}

#[test]
fn two_processes_train_as_one_that_accumulates() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let outs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let process = |rank: usize| {
        let (address, out) = (address.clone(), outs[rank].path().to_owned());
        std::thread::spawn(move || {
            let tcp: Box<dyn Collective> = Box::new(Tcp::connect(rank, 2, &address, Duration::from_secs(20)).unwrap());
            let mut trainer = Trainer::open(&model(1), options(2), &out, Start::New, tcp).unwrap();
            let source = Noise::new(16, 4).share(rank, 2);
            let validation = Noise::new(12, 4).share(rank, 2);
            let mut watcher = Watcher::default();
            trainer.run(&source, &validation, &CancellationToken::new(), &mut watcher).unwrap();
            watcher.records
        })
    };
    let records = [process(0), process(1)].map(|thread| thread.join().unwrap());
    let losses =
        |records: &[EpochRecord]| records.iter().map(|r| (r.train_loss, r.validation_loss)).collect::<Vec<_>>();
    assert_eq!(losses(&records[0]), losses(&records[1]), "both know the losses of all");
    assert!(!outs[1].path().join(LAST_FILE).exists(), "only the first one writes files");

    let mut trainer = open(outs[2].path(), TrainOptions { accumulate: 2, ..options(2) }, Start::New).unwrap();
    trainer.run(&Noise::new(16, 4), &Noise::new(12, 4), &CancellationToken::new(), &mut ()).unwrap();
    let (apart, alone) = (values(&outs[0].path().join(LAST_FILE)), values(&outs[2].path().join(LAST_FILE)));
    for (name, alone) in alone.into_iter().filter(|(name, _)| !name.contains("running")) {
        let distance: f32 = apart[&name].iter().zip(&alone).map(|(a, b)| (a - b).abs()).sum::<f32>();
        let size: f32 = alone.iter().map(|value| value.abs()).sum();
        // Only the order of the sums differs.
        assert!(distance <= 1e-4 * size, "{name} is {distance} off of {size}");
    }
}

#[test]
fn diverging_training_stops_and_keeps_what_it_had() {
    let out = tempfile::tempdir().unwrap();
    train(out.path(), options(1), Start::New, None);
    let before = std::fs::read(out.path().join(CHECKPOINT_FILE)).unwrap();
    let mut batch = Noise::new(4, 4);
    batch.batches[0].clips = (&batch.batches[0].clips * f64::NAN).unwrap();
    let mut trainer = open(out.path(), options(2), Start::Resume).unwrap();
    let error = trainer.run(&batch, &Noise::new(4, 4), &CancellationToken::new(), &mut ()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("diverged at step 3 (epoch 1): the loss is NaN at learning rate 0.05"), "{text}");
    assert_eq!(std::fs::read(out.path().join(CHECKPOINT_FILE)).unwrap(), before);
}

#[test]
fn run_in_the_folder_is_neither_overwritten_nor_taken_for_another() {
    let out = tempfile::tempdir().unwrap();
    train(out.path(), options(1), Start::New, None);
    let again = open(out.path(), options(1), Start::New).unwrap_err();
    assert!(matches!(again, TrainError::Exists { .. }), "{again}");

    let other = open(out.path(), TrainOptions { accumulate: 2, ..options(2) }, Start::Resume).unwrap_err();
    assert_eq!(other.to_string(), "the checkpoint is of another training: its accumulate is 1, now it is 2");

    let mut deeper = model(1).spec;
    deeper.architecture.depth = 18;
    let deeper = network::from_scratch(deeper, 1).unwrap();
    let other = Trainer::open(&deeper, options(2), out.path(), Start::Resume, Box::new(Alone)).unwrap_err();
    assert!(other.to_string().contains("its architecture is 3D ResNet-10"), "{other}");
}

#[test]
fn nothing_to_train_on_is_told() {
    let out = tempfile::tempdir().unwrap();
    let mut trainer = open(out.path(), options(1), Start::New).unwrap();
    let error = trainer.run(&Noise::new(0, 4), &Noise::new(0, 4), &CancellationToken::new(), &mut ()).unwrap_err();
    assert!(matches!(error, TrainError::NoBatches), "{error}");
}
