//! The training loop on clips in memory.

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use candle_core::{Device, Tensor};
use kinetoscope::model::file::Model;
use kinetoscope::model::scores::ScoreFunction;
use kinetoscope::model::spec::{ClipSpec, ModelSpec, Preprocessing};
use kinetoscope::train::checkpoint::{Checkpoint, Metric};
use kinetoscope::train::distributed::{Alone, Collective, CollectiveError, Tcp};
use kinetoscope::train::loader::{Batch, LoaderError};
use kinetoscope::train::loss::{Labels, LossConfig, Mix};
use kinetoscope::train::network::{self, BeginAt};
use kinetoscope::train::optimizer::OptimizerConfig;
use kinetoscope::train::report::EpochRecord;
use kinetoscope::train::schedule::Schedule;
use kinetoscope::train::sgd::SgdConfig;
use kinetoscope::train::trainer::{
    BEST_FILE, BatchSource, CHECKPOINT_FILE, LAST_FILE, Observer, Outcome, Pass, Start, TrainError, TrainOptions,
    Trainer,
};
use kinetoscope::zoo::Architecture;
use kinetoscope::zoo::resnet3d::{Config, Shortcut};
use tokio_util::sync::CancellationToken;

const CLASSES: usize = 4;

fn model(seed: u64) -> Model {
    let spec = ModelSpec {
        name: "small".to_owned(),
        version: "1".to_owned(),
        trained: false,
        license: None,
        origin: None,
        architecture: Architecture::ResNet3d(Config { widen_factor: 0.125, ..Config::paper(10, Shortcut::B) }),
        clip: ClipSpec { frames: 8, size: 32, temporal_stride: 1 },
        preprocessing: Preprocessing::AUTHORS_2020,
        labels: (0..CLASSES).map(|class| format!("class {class}")).collect(),
        scores: ScoreFunction::default(),
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
                labels: Labels::Classes(Tensor::from_vec(labels, len, &Device::Cpu).unwrap()),
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

/// One of two processes, here threads.
fn connect(rank: usize, address: &str) -> Tcp {
    Tcp::connect(rank, 2, address, Duration::from_secs(20), CancellationToken::new()).unwrap()
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
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
        for (accumulate, adamw, varied) in [(1, false, false), (2, false, false), (1, true, false), (2, false, true)] {
            let mut options = options(4);
            if varied {
                let class_weights = Some(vec![1.0, 2.0, 0.5, 1.0]);
                options.loss = LossConfig { class_weights, label_smoothing: 0.1, ..LossConfig::default() };
                options.mix = Mix { mixup: 0.4, cutmix: 1.0 };
                options.clip_norm = Some(1.0);
                options.average_decay = Some(0.9);
                options.schedule = Schedule::Cosine { steps: 8 };
            }
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
    let begin_at_last_stage =
        TrainOptions { begin_at: BeginAt::Group("layer4".to_owned()), backbone_factor: 0.1, ..options(1) };
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
    let address = free_address();
    let outs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let process = |rank: usize| {
        let (address, out) = (address.clone(), outs[rank].path().to_owned());
        std::thread::spawn(move || {
            let tcp: Box<dyn Collective> = Box::new(connect(rank, &address));
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
    assert!(text.contains("diverged at step 4 (epoch 2): the loss is NaN at learning rate 0.05"), "{text}");
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
    deeper.architecture = deeper.architecture.with_setting("depth", "18").unwrap();
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

/// A source whose batch of this number can't be made.
struct Broken {
    source: Noise,
    at: usize,
}

impl BatchSource for Broken {
    fn epoch(&self, epoch: u64, first: usize) -> Box<dyn Iterator<Item = Result<Batch, LoaderError>> + '_> {
        let batches = self.source.epoch(epoch, first).zip(first..);
        Box::new(batches.map(|(batch, number)| if number == self.at { Err(LoaderError::Panicked) } else { batch }))
    }

    fn batches_per_epoch(&self) -> usize {
        self.source.batches_per_epoch()
    }

    fn clips_per_epoch(&self) -> usize {
        self.source.clips_per_epoch()
    }
}

fn checkpoint(out: &Path) -> Checkpoint {
    Checkpoint::read(&out.join(CHECKPOINT_FILE)).unwrap().expect("a checkpoint was written")
}

fn assert_same_models(one: &Path, other: &Path) {
    for file in [LAST_FILE, BEST_FILE] {
        assert!(values(&one.join(file)) == values(&other.join(file)), "{file} differs");
    }
}

#[test]
fn an_error_of_the_data_costs_the_step_under_way_and_no_more() {
    single_threaded(|| {
        // Of the step that breaks, no batch was seen, or one of two, which moved the running statistics.
        for (accumulate, at, steps) in [(1, 2, 2), (2, 3, 1)] {
            let options = TrainOptions { accumulate, ..options(2) };
            let [whole, broken] = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let (source, validation) = (|| Noise::new(16, 4), Noise::new(8, 4));
            let never = CancellationToken::new();
            open(whole.path(), options.clone(), Start::New)
                .unwrap()
                .run(&source(), &validation, &never, &mut ())
                .unwrap();

            let mut trainer = open(broken.path(), options.clone(), Start::New).unwrap();
            let failed = trainer.run(&Broken { source: source(), at }, &validation, &never, &mut ()).unwrap_err();
            assert!(matches!(failed, TrainError::Loader(_)), "{failed}");
            drop(trainer);
            assert_eq!(checkpoint(broken.path()).progress.step, steps);
            let mut trainer = open(broken.path(), options, Start::Resume).unwrap();
            trainer.run(&source(), &validation, &never, &mut ()).unwrap();
            assert_same_models(whole.path(), broken.path());
        }
    });
}

#[test]
fn an_error_of_validation_or_report_costs_no_step() {
    single_threaded(|| {
        let never = CancellationToken::new();
        let whole = tempfile::tempdir().unwrap();
        let (source, validation) = (Noise::new(12, 4), || Noise::new(8, 4));
        open(whole.path(), options(2), Start::New).unwrap().run(&source, &validation(), &never, &mut ()).unwrap();

        let out = tempfile::tempdir().unwrap();
        let mut trainer = open(out.path(), options(2), Start::New).unwrap();
        trainer.run(&source, &Broken { source: validation(), at: 1 }, &never, &mut ()).unwrap_err();
        drop(trainer);
        let progress = checkpoint(out.path()).progress;
        assert_eq!((progress.epoch, progress.batch, progress.step), (0, 3, 3));

        // A folder stands where the history is to be written.
        let history = out.path().join("history.csv");
        let mut trainer = open(out.path(), options(2), Start::Resume).unwrap();
        std::fs::remove_file(&history).unwrap();
        std::fs::create_dir(&history).unwrap();
        let failed = trainer.run(&source, &validation(), &never, &mut ()).unwrap_err();
        assert!(matches!(failed, TrainError::Report(_)), "{failed}");
        drop(trainer);
        let progress = checkpoint(out.path()).progress;
        assert_eq!((progress.epoch, progress.batch, progress.best), (0, 3, None));

        std::fs::remove_dir(&history).unwrap();
        let mut trainer = open(out.path(), options(2), Start::Resume).unwrap();
        trainer.run(&source, &validation(), &never, &mut ()).unwrap();
        assert_same_models(whole.path(), out.path());
    });
}

/// Two processes of which the other one says nothing more after so many exchanges.
#[derive(Debug)]
struct Failing {
    exchanges: usize,
    how: fn() -> CollectiveError,
}

impl Collective for Failing {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        2
    }

    fn sum(&mut self, _values: &mut [f32]) -> Result<(), CollectiveError> {
        self.sum_exact(&mut [])
    }

    fn sum_exact(&mut self, values: &mut [f64]) -> Result<(), CollectiveError> {
        // The agreement at the beginning: the other says what this one says.
        if let [mine, theirs] = values {
            *theirs = *mine;
            return Ok(());
        }
        self.exchanges = self.exchanges.checked_sub(1).ok_or_else(self.how)?;
        Ok(())
    }
}

#[test]
fn steps_are_saved_when_a_process_is_lost_or_waited_for_in_vain() {
    let lost = || CollectiveError::Lost { rank: 1, source: std::io::ErrorKind::UnexpectedEof.into() };
    // Each step exchanges counts and gradients: the third breaks at either of them.
    for exchanges in [4, 5] {
        let out = tempfile::tempdir().unwrap();
        let run = |how: fn() -> CollectiveError, start| {
            let failing = Box::new(Failing { exchanges, how });
            let mut trainer = Trainer::open(&model(1), options(2), out.path(), start, failing).unwrap();
            trainer.run(&Noise::new(16, 4), &Noise::new(8, 4), &CancellationToken::new(), &mut ())
        };
        let failed = run(lost, Start::New).unwrap_err();
        assert!(matches!(failed, TrainError::Collective(CollectiveError::Lost { .. })), "{failed}");
        assert_eq!(checkpoint(out.path()).progress.step, 2);
        let before = values_of(&checkpoint(out.path()));

        assert_eq!(run(|| CollectiveError::Stopped, Start::Resume).unwrap(), Outcome::Stopped);
        let after = checkpoint(out.path());
        assert_eq!(after.progress.step, 4);
        assert!(values_of(&after) != before);
    }
}

fn values_of(checkpoint: &Checkpoint) -> HashMap<String, Vec<f32>> {
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
    checkpoint.weights.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
}

#[test]
fn resumed_run_goes_on_from_the_checkpoint_whatever_model_it_is_given() {
    single_threaded(|| {
        let frozen = |epochs| TrainOptions { begin_at: BeginAt::Group("layer4".to_owned()), ..options(epochs) };
        let frozen_norm = |epochs| TrainOptions { frozen_norm: true, ..options(epochs) };
        for options in [&frozen as &dyn Fn(u64) -> TrainOptions, &frozen_norm] {
            let [whole, mixed] = [(); 2].map(|()| tempfile::tempdir().unwrap());
            train(whole.path(), options(2), Start::New, None);
            train(mixed.path(), options(1), Start::New, None);
            // The same network with other weights and statistics.
            let other = model(2);
            let mut tensors = other.tensors.clone();
            for (name, tensor) in &mut tensors {
                if name.ends_with("running_var") {
                    *tensor = (&*tensor * 7.0).unwrap();
                }
            }
            let other = Model::new(other.spec, tensors).unwrap();
            let mut trainer = Trainer::open(&other, options(2), mixed.path(), Start::Resume, Box::new(Alone)).unwrap();
            trainer.run(&Noise::new(12, 4), &Noise::new(8, 4), &CancellationToken::new(), &mut ()).unwrap();
            assert!(values(&mixed.path().join(LAST_FILE)) == values(&whole.path().join(LAST_FILE)));
        }
    });
}

#[test]
fn processes_with_different_weights_do_not_train_together() {
    let address = free_address();
    let process = |rank: usize| {
        let address = address.clone();
        std::thread::spawn(move || {
            let out = tempfile::tempdir().unwrap();
            let tcp = Box::new(connect(rank, &address));
            let mut trainer = Trainer::open(&model(1 + rank as u64), options(1), out.path(), Start::New, tcp).unwrap();
            let source = Noise::new(16, 4).share(rank, 2);
            trainer.run(&source, &Noise::new(0, 4), &CancellationToken::new(), &mut ()).unwrap_err().to_string()
        })
    };
    for thread in [process(0), process(1)] {
        let error = thread.join().unwrap();
        let expected = "process 1 was started with other weights (--init, or those of its checkpoint) than process 0";
        assert_eq!(error, expected);
    }
}

#[test]
fn a_folder_has_one_training_at_a_time() {
    let out = tempfile::tempdir().unwrap();
    let first = open(out.path(), options(1), Start::Resume).unwrap();
    let second = open(out.path(), options(1), Start::Resume).unwrap_err();
    assert!(second.to_string().contains("another process trains in"), "{second}");
    drop(first);
    open(out.path(), options(1), Start::Resume).unwrap();
}

#[test]
fn epoch_figures_of_several_processes_are_right_after_a_stop_in_the_midst() {
    let run = |out: &Path, start: Start, stop_after: Option<u64>| {
        let address = free_address();
        let process = |rank: usize| {
            let (address, out) = (address.clone(), out.to_owned());
            std::thread::spawn(move || {
                single_threaded(move || {
                    let token = CancellationToken::new();
                    let tcp = Box::new(connect(rank, &address));
                    let mut trainer = Trainer::open(&model(1), options(1), &out, start, tcp).unwrap();
                    // One process is told to stop; the other hears of it from that one.
                    let stop = stop_after.filter(|_| rank == 1).map(|left| (left, token.clone()));
                    let mut watcher = Watcher { stop, ..Watcher::default() };
                    let source = Noise::new(24, 4).share(rank, 2);
                    trainer.run(&source, &Noise::new(8, 4).share(rank, 2), &token, &mut watcher).unwrap();
                    watcher.records
                })
            })
        };
        let mut records = [process(0), process(1)].map(|thread| thread.join().unwrap());
        records[0].pop()
    };
    let [whole, stopped] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let expected = run(whole.path(), Start::New, None).unwrap();
    assert_eq!(run(stopped.path(), Start::Resume, Some(2)), None);
    let resumed = run(stopped.path(), Start::Resume, None).unwrap();
    assert_eq!(resumed.train_loss, expected.train_loss);
    assert_eq!(resumed.train_accuracy, expected.train_accuracy);
}

#[test]
fn training_ends_early_when_no_epoch_is_better() {
    let out = tempfile::tempdir().unwrap();
    // Nothing moves: no epoch is better than the first.
    let optimizer = OptimizerConfig::Sgd(SgdConfig { learning_rate: 1e-30, ..SgdConfig::default() });
    let options = TrainOptions { optimizer, frozen_norm: true, early_stop: Some(2), ..options(9) };
    let (outcome, records) = train(out.path(), options.clone(), Start::New, None);
    assert_eq!((outcome, records.len()), (Outcome::NoBetter, 3));
    let (outcome, records) = train(out.path(), options, Start::Resume, None);
    assert_eq!((outcome, records.len()), (Outcome::NoBetter, 0), "it does not begin anew when resumed");
}

#[test]
fn best_epoch_is_that_of_the_metric() {
    use kinetoscope::train::checkpoint::{Best, Tally};
    // More clips right, those of rare classes wrong; and the other way round; and a lower loss.
    let frequent = Best::of(&Tally::of_sums(10.0, 9, 10), Some(0.5), 0);
    let rare = Best::of(&Tally::of_sums(10.0, 8, 10), Some(0.9), 1);
    let low = Best::of(&Tally::of_sums(1.0, 7, 10), Some(0.4), 2);
    for (metric, best) in [(Metric::Accuracy, frequent), (Metric::MeanClassAccuracy, rare), (Metric::Loss, low)] {
        for other in [frequent, rare, low].into_iter().filter(|other| *other != best) {
            assert!(best.beats(&other, metric) && !other.beats(&best, metric), "{metric}");
        }
    }
}

#[test]
fn weights_are_averaged_over_steps() {
    let out = tempfile::tempdir().unwrap();
    let options = TrainOptions { average_decay: Some(0.5), schedule: Schedule::Constant, ..options(1) };
    train(out.path(), options, Start::New, None);
    let (averaged, last) = (values(&out.path().join(LAST_FILE)), values_of(&checkpoint(out.path())));
    let (begin, name) = (model(1), "fc.weight");
    let begin = begin.tensors[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>();
    let (to_begin, to_last) = (distance(&averaged[name], &begin), distance(&averaged[name], &last[name]));
    let way = distance(&last[name], &begin);
    assert!(to_begin > 0.0 && to_last > 0.0 && to_begin < way && to_last < way, "{to_begin} {to_last} of {way}");
}

#[test]
fn gradients_are_clipped_to_their_longest_and_clips_are_mixed() {
    let run = |options: TrainOptions| {
        let out = tempfile::tempdir().unwrap();
        train(out.path(), options, Start::New, None);
        values(&out.path().join(LAST_FILE))
    };
    let plain = OptimizerConfig::Sgd(SgdConfig {
        learning_rate: 1.0,
        momentum: 0.0,
        weight_decay: 0.0,
        ..SgdConfig::default()
    });
    let options = TrainOptions { optimizer: plain, schedule: Schedule::Constant, ..options(1) };
    let clipped = run(TrainOptions { clip_norm: Some(1e-3), ..options.clone() });
    let begin = model(1);
    let moved: f32 = clipped
        .iter()
        .filter(|(name, _)| !name.contains("running"))
        .map(|(name, values)| {
            let begin = begin.tensors[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.iter().zip(begin).map(|(a, b)| (a - b) * (a - b)).sum::<f32>()
        })
        .sum();
    // Three steps of at most a thousandth each.
    assert!(moved.sqrt() <= 3.1e-3 && moved > 0.0, "{}", moved.sqrt());
    let mixed = run(TrainOptions { clip_norm: Some(1e-3), mix: Mix { mixup: 0.8, cutmix: 0.0 }, ..options });
    assert!(mixed != clipped);
}
