//! Batches of clips, decoded by threads while the network works on those before.
//!
//! Videos are decoded in this process, each by one thread: a person trains on files of their own, and a decoder process
//! for each thread would only cost time. The usual [`Limits`](crate::video::Limits) hold.
//!
//! Everything random about a batch depends on `(seed, epoch, position)` alone. So batches are the same whatever the number
//! of threads, and the same again when an epoch is begun in its midst.

mod order;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::augment::{Augment, Draws, Variation};
use super::clip_cache::{ClipCache, ClipKey};
use super::dataset::{Example, FRAME_RATE, FrameFolder, Unreadable};
use super::loss::Labels;
use crate::model::spec::{ClipSpec, Preprocessing};
use crate::video::{Choice, Clip, DecodeOptions, Extent, Source, TimeRange, VideoError, decode_chosen_clip};
pub use order::Share;

/// Clips for one step.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `(n, 3, t, h, w)`, f32, normalised, on the CPU.
    pub clips: Tensor,
    /// What each clip shows, on the CPU.
    pub labels: Labels,
    /// Which example each clip is of.
    pub examples: Vec<usize>,
}

/// How batches are made.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Clips in a batch, at least 1; the last one may have less.
    pub batch_size: usize,
    /// Threads that decode, at least 1.
    pub threads: usize,
    /// Batches that are made ahead, at least 1: memory is bounded by so many and the one in use.
    pub prefetch_batches: usize,
    /// Seed of the order and of all that [`Augment`] draws.
    pub seed: u64,
    /// How clips are taken from videos.
    pub augment: Augment,
    /// Which part of each epoch is this process's.
    pub shard: Shard,
    /// Leaves out a last batch of less than [`LoaderOptions::batch_size`] clips.
    pub drop_last: bool,
    /// Takes as many examples of each class in an epoch: those of rare classes several times, some of frequent ones not.
    /// Only where [`Augment::train`] is set.
    pub balanced: bool,
    /// How much of an epoch each source of examples is; each example once if empty. Only where [`Augment::train`] is set.
    pub shares: Vec<Share>,
    /// Where decoded clips are kept, if they are.
    pub cache: Option<CachedClips>,
    /// The number of classes where clips show parts of several, or several at a time. `None` where each shows one.
    pub parts_of: Option<usize>,
    /// How long a file that can't be read is tried again, a minute; a volume may be away for a while.
    pub patience: Duration,
}

/// Clips that are decoded once and read from disk from then on.
#[derive(Debug, Clone)]
pub struct CachedClips {
    /// Where they are.
    pub cache: Arc<ClipCache>,
    /// Different clips of a video that training takes in turn, at least 1: an epoch takes the next one of each.
    pub clips: u64,
}

/// One of several processes that train together. Each sees other examples, and as many batches as the others: where examples
/// don't divide evenly, the first ones of the order are seen twice, or with [`LoaderOptions::drop_last`] the last ones not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0 to less than [`Shard::world_size`].
    pub rank: usize,
    /// Processes in all, at least 1.
    pub world_size: usize,
}

impl Shard {
    /// All examples in one process.
    pub const ALL: Self = Self { rank: 0, world_size: 1 };
}

impl Default for LoaderOptions {
    /// The paper's augmentation, 8 clips a batch, two threads.
    fn default() -> Self {
        Self {
            batch_size: 8,
            threads: 2,
            prefetch_batches: 4,
            seed: 0,
            augment: Augment::PAPER,
            shard: Shard::ALL,
            drop_last: false,
            balanced: false,
            shares: Vec::new(),
            cache: None,
            parts_of: None,
            patience: Duration::from_secs(60),
        }
    }
}

/// Why there are no batches.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoaderError {
    /// All videos failed.
    #[error("none of {examples} videos can be decoded; the first tried was {}: {error}", .video.display())]
    NothingReadable {
        /// How many were tried.
        examples: usize,
        /// One of them.
        video: PathBuf,
        /// What is wrong with it.
        error: VideoError,
    },
    /// The files are not where they were.
    #[error("the videos can't be read, {} for {:?}: {error}", .video.display(), .patience)]
    Unavailable {
        /// One of them.
        video: PathBuf,
        /// How long it was tried.
        patience: Duration,
        /// What the system says.
        error: VideoError,
    },
    /// A bug of this program.
    #[error("a thread of the loader panicked; its message is above")]
    Panicked,
}

/// Makes batches of examples.
#[derive(Debug, Clone)]
pub struct Loader {
    maker: Arc<Maker>,
}

impl Loader {
    /// A loader for `examples`; nothing is opened yet.
    ///
    /// # Panics
    ///
    /// If the shard's rank is not less than its world size.
    pub fn new(examples: Arc<[Example]>, clip: ClipSpec, preprocessing: Preprocessing, options: LoaderOptions) -> Self {
        let Shard { rank, world_size } = options.shard;
        assert!(rank < world_size, "rank {rank} is not one of {world_size} processes");
        let options = LoaderOptions { batch_size: options.batch_size.max(1), ..options };
        let lookup = Box::new(preprocessing.lookup_table());
        let maker = Maker {
            examples,
            clip,
            preprocessing,
            lookup,
            options,
            unreadable: Mutex::default(),
            outage: Mutex::default(),
            waited: AtomicU64::new(0),
        };
        Self { maker: Arc::new(maker) }
    }

    /// Batches of one epoch from batch `first` on.
    ///
    /// In training, the place of a video that can't be decoded is taken by another example, always the same. Otherwise it is left
    /// out, so that no other counts twice. See [`Loader::unreadable`].
    ///
    /// A file that can't be read is tried again for [`LoaderOptions::patience`]. If others can, it is taken for one that can't be
    /// decoded, until the next epoch.
    pub fn epoch(&self, epoch: u64, first: usize) -> Epoch {
        Epoch::start(Arc::clone(&self.maker), epoch, first)
    }

    /// How many batches an epoch has; 0 if there are no examples, or too few for one batch with
    /// [`LoaderOptions::drop_last`].
    pub fn batches_per_epoch(&self) -> usize {
        self.maker.slots().div_ceil(self.maker.options.batch_size)
    }

    /// How many clips an epoch has.
    pub fn clips_per_epoch(&self) -> usize {
        self.maker.slots()
    }

    /// An example by its index in a batch.
    ///
    /// # Panics
    ///
    /// If there is no such example.
    pub fn example(&self, index: usize) -> &Example {
        &self.maker.examples[index]
    }

    /// The videos that could not be decoded so far, each once, in the order of the examples.
    pub fn unreadable(&self) -> Vec<Unreadable> {
        lock(&self.maker.unreadable).values().cloned().collect()
    }

    /// How long [`Epoch`] kept its caller waiting for batches so far.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.maker.waited.load(Ordering::Relaxed))
    }
}

/// The batches of one epoch. Dropping it ends its threads. After an error it ends.
#[derive(Debug)]
pub struct Epoch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    next: usize,
    end: usize,
    /// Whether a clip was given.
    given: bool,
}

impl Epoch {
    fn start(maker: Arc<Maker>, epoch: u64, first: usize) -> Self {
        let (slots, batch_size) = (maker.slots(), maker.options.batch_size);
        let end = slots.div_ceil(batch_size);
        let threads = maker.options.threads.max(1);
        let order = maker.order(epoch);
        maker.forget_outage();
        let state = State { next_slot: first.saturating_mul(batch_size).min(slots), taken: first, ..State::default() };
        let shared = Arc::new(Shared {
            maker,
            epoch,
            order,
            cancel: CancellationToken::new(),
            state: Mutex::new(state),
            room: Condvar::new(),
            ready: Condvar::new(),
        });
        let spawn = |number: usize| {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name(format!("load-{number}"));
            thread.spawn(move || shared.work()).expect("a thread can be started")
        };
        let threads = if first < end { (0..threads).map(spawn).collect() } else { Vec::new() };
        Self { shared, threads, next: first.min(end), end, given: first > 0 }
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch, LoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.end {
            let asked = Instant::now();
            let batch = self.shared.wait_for(self.next);
            let waited = asked.elapsed().as_nanos() as u64;
            self.shared.maker.waited.fetch_add(waited, Ordering::Relaxed);
            self.next = if batch.is_ok() { self.next + 1 } else { self.end };
            match batch.transpose() {
                Some(batch) => {
                    self.given = true;
                    return Some(batch);
                }
                // All its clips are left out. A batch of none has no loss.
                None if self.next == self.end && !self.given => return self.shared.maker.nothing_readable().map(Err),
                None => {}
            }
        }
        None
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.end - self.next))
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
        {
            // With the lock, so that no thread is between looking at the token and waiting.
            let _state = lock(&self.shared.state);
            self.shared.room.notify_all();
        }
        for thread in self.threads.drain(..) {
            // Panics were caught, and told by `next`.
            let _ = thread.join();
        }
    }
}

/// All that makes a clip, but for where in which epoch it is.
#[derive(Debug)]
struct Maker {
    examples: Arc<[Example]>,
    clip: ClipSpec,
    preprocessing: Preprocessing,
    lookup: Box<[[f32; 256]; 3]>,
    options: LoaderOptions,
    unreadable: Mutex<BTreeMap<usize, Unreadable>>,
    /// Since when files can't be read.
    outage: Mutex<Option<Instant>>,
    /// Nanoseconds.
    waited: AtomicU64,
}

/// A clip, normalised `(3, t, h, w)`, its time in the video, and its example.
struct Made {
    clip: Vec<f32>,
    time: Range<Duration>,
    example: usize,
}

/// What became of a place in the epoch's order.
enum Slot {
    Made(Made),
    /// Its video can't be decoded, and no other takes its place.
    LeftOut,
    /// The epoch was dropped.
    Cancelled,
}

impl Maker {
    /// Clips in an epoch of this shard.
    fn slots(&self) -> usize {
        let LoaderOptions { batch_size, drop_last, shard: Shard { world_size, .. }, .. } = self.options;
        let examples = self.examples.len();
        if drop_last { examples / (world_size * batch_size) * batch_size } else { examples.div_ceil(world_size) }
    }

    /// Examples in the order of `epoch`, of all shards.
    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.examples.len()).collect();
        if !self.options.augment.train {
            return order;
        }
        let mut draws = Draws::new(self.options.seed, "order", epoch, 0);
        order::shuffle(&mut order, &mut draws);
        match self.options.shares.as_slice() {
            [] if self.options.balanced => order::balanced(&self.examples, &order, &mut draws),
            [] => order,
            shares => order::shared(shares, &order, &mut draws),
        }
    }

    /// The clip of the example that stands at `position` of an epoch's order, or in training of the first of its substitutes that
    /// can be decoded.
    fn make(
        &self,
        order: &[usize],
        epoch: u64,
        position: usize,
        cancel: &CancellationToken,
    ) -> Result<Slot, LoaderError> {
        let substitutes = if self.options.augment.train { usize::MAX } else { 1 };
        // Which can't be read, rather than decoded.
        let mut away: Vec<(usize, VideoError)> = Vec::new();
        for example in self.candidates(order, epoch, position).take(substitutes) {
            if lock(&self.unreadable).contains_key(&example) {
                continue;
            }
            let variation = self.variation(epoch, position, example);
            match self.decode_with_patience(example, &variation, cancel) {
                Ok((clip, time)) => {
                    // Others can be read, so it is these files.
                    away.into_iter().for_each(|(example, error)| self.note_unreadable(example, error));
                    return Ok(Slot::Made(Made { clip, time, example }));
                }
                Err(VideoError::Cancelled) => return Ok(Slot::Cancelled),
                Err(error) if is_outage(&error) => away.push((example, error)),
                Err(error) => self.note_unreadable(example, error),
            }
        }
        match (away.pop(), self.options.augment.train) {
            (Some((example, error)), true) => {
                let video = self.examples[example].video.clone();
                Err(LoaderError::Unavailable { video, patience: self.options.patience, error })
            }
            (Some((example, error)), false) => {
                self.note_unreadable(example, error);
                Ok(Slot::LeftOut)
            }
            (None, true) => Err(self.nothing_readable().expect("every candidate was noted")),
            (None, false) => Ok(Slot::LeftOut),
        }
    }

    /// How the clip of an example is taken. Where clips are cached, an example has so many, which the epochs take in turn; how
    /// they are mirrored and coloured is drawn each time.
    fn variation(&self, epoch: u64, position: usize, example: usize) -> Variation {
        let LoaderOptions { augment, seed, cache, .. } = &self.options;
        let drawn = augment.draw(*seed, epoch, position as u64);
        match cache {
            Some(CachedClips { clips, .. }) => {
                let turn = epoch % (*clips).max(1);
                drawn.of_clip(&augment.draw(*seed, turn, example as u64))
            }
            None => drawn,
        }
    }

    /// The error of an epoch without clips, if any video was tried.
    fn nothing_readable(&self) -> Option<LoaderError> {
        let unreadable = lock(&self.unreadable);
        let Unreadable { video, error, .. } = unreadable.values().next()?.clone();
        Some(LoaderError::NothingReadable { examples: unreadable.len(), video, error })
    }

    /// Decodes; if the file can't be read, again after pauses until that was so for the loader's patience. The patience is one for
    /// all files: when a whole folder is away, they are not waited for one after the other.
    fn decode_with_patience(
        &self,
        example: usize,
        variation: &Variation,
        cancel: &CancellationToken,
    ) -> Result<(Vec<f32>, Range<Duration>), VideoError> {
        const FIRST_PAUSE: Duration = Duration::from_millis(100);
        const LONGEST_PAUSE: Duration = Duration::from_secs(5);
        let (mut pause, mut was_away) = (FIRST_PAUSE, false);
        loop {
            match self.decode(example, variation, cancel) {
                Err(error) if is_outage(&error) => {
                    let patience = self.options.patience;
                    let left = {
                        let mut outage = lock(&self.outage);
                        if outage.is_none() {
                            let video = self.examples[example].video.display();
                            warn!(%video, %error, ?patience, "a video can't be read; it is tried again");
                        }
                        patience.saturating_sub(outage.get_or_insert_with(Instant::now).elapsed())
                    };
                    if left.is_zero() {
                        return Err(error);
                    }
                    was_away = true;
                    wait(pause.min(left), cancel)?;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                decoded => {
                    if was_away {
                        *lock(&self.outage) = None;
                    }
                    return decoded;
                }
            }
        }
    }

    /// What could not be read may be there again, and is worth some patience again.
    fn forget_outage(&self) {
        *lock(&self.outage) = None;
        lock(&self.unreadable).retain(|_, unreadable| !is_outage(&unreadable.error));
    }

    /// The example at `position`, then some at random, so that one that follows an unreadable one is not seen too often,
    /// then all.
    fn candidates(&self, order: &[usize], epoch: u64, position: usize) -> impl Iterator<Item = usize> {
        const AT_RANDOM: usize = 16;
        let count = order.len();
        let first = order[position % count];
        let mut draws = Draws::new(self.options.seed, "substitute", epoch, position as u64);
        let random = std::iter::repeat_with(move || draws.below(count as u64) as usize).take(AT_RANDOM);
        std::iter::once(first).chain(random).chain((1..count).map(move |step| (first + step) % count))
    }

    fn decode(
        &self,
        example: usize,
        variation: &Variation,
        cancel: &CancellationToken,
    ) -> Result<(Vec<f32>, Range<Duration>), VideoError> {
        let example = &self.examples[example];
        let clip = self.cached_rgb(example, variation, cancel);
        // A file that can't be read to its end looks like a broken one to FFmpeg.
        let mut clip = clip.map_err(|error| match error.is_input_fault() {
            true => reading_error(&example.video).unwrap_or(error),
            false => error,
        })?;
        if let Some(colors) = variation.colors {
            colors.apply(&mut clip.rgb);
        }
        Ok((normalise(&clip.rgb, self.clip.size, variation.flip, &self.lookup), clip.start..clip.end))
    }

    /// From the cache, or decoded and kept there.
    fn cached_rgb(
        &self,
        example: &Example,
        variation: &Variation,
        cancel: &CancellationToken,
    ) -> Result<Clip, VideoError> {
        let decode = || self.decode_rgb(example, variation, cancel);
        let Some(CachedClips { cache, .. }) = &self.options.cache else { return decode() };
        let rest = (example.range, variation.clip_text(), self.clip, self.preprocessing);
        let Some(key) = ClipKey::of(&example.video, &rest) else { return decode() };
        if let Some(clip) = cache.get(&key).filter(|clip| clip.rgb.len() == self.clip.rgb_len()) {
            return Ok(clip);
        }
        let clip = decode()?;
        cache.put(&key, &clip);
        Ok(clip)
    }

    fn decode_rgb(
        &self,
        example: &Example,
        variation: &Variation,
        cancel: &CancellationToken,
    ) -> Result<Clip, VideoError> {
        let options = DecodeOptions { range: example.range, cancel: cancel.clone(), ..DecodeOptions::default() };
        let decode = |source: &Source, choose: &dyn Fn(Extent) -> Choice| {
            decode_chosen_clip(source, &self.clip, &self.preprocessing, &options, choose)
        };
        let choose = |extent| variation.choose(&self.clip, extent);
        if example.range != TimeRange::ALL || !example.video.is_dir() {
            return decode(&example.source()?, &choose);
        }
        // Of a folder of frames, only those of the clip are read.
        let frames = FrameFolder::open(&example.video)?;
        let Choice { first_frame, crop } = choose(frames.extent()?);
        let span = (self.clip.frames.max(1) as u64 - 1) * self.clip.temporal_stride.max(1) as u64 + 1;
        let bytes = frames.range(first_frame..first_frame.saturating_add(span))?;
        let clip = decode(&Source::Bytes(bytes), &|_| Choice { first_frame: 0, crop })?;
        let before = Duration::from_secs_f64(first_frame as f64 / f64::from(FRAME_RATE));
        Ok(Clip { start: clip.start + before, end: clip.end + before, ..clip })
    }

    /// What clips show, of videos with several labels at their times.
    fn labels(&self, clips: &[Made]) -> Labels {
        let Some(classes) = self.options.parts_of else {
            let class = |made: &Made| self.examples[made.example].main_class().unwrap_or(0) as u32;
            let labels: Vec<u32> = clips.iter().map(class).collect();
            return Labels::Classes(
                Tensor::from_vec(labels, clips.len(), &Device::Cpu).expect("a label for each clip"),
            );
        };
        let mut parts = vec![0.0f32; clips.len() * classes];
        for (row, made) in parts.chunks_exact_mut(classes).zip(clips) {
            let shown = self.examples[made.example].labels.iter().filter(|label| overlaps(label.range, &made.time));
            shown.for_each(|label| row[label.class] = row[label.class].max(label.weight));
        }
        Labels::Parts(Tensor::from_vec(parts, (clips.len(), classes), &Device::Cpu).expect("a row for each clip"))
    }

    fn note_unreadable(&self, example: usize, error: VideoError) {
        let video = self.examples[example].video.clone();
        let mut unreadable = lock(&self.unreadable);
        unreadable.entry(example).or_insert_with(|| {
            if self.options.augment.train {
                warn!(video = %video.display(), %error, "a video can't be decoded; others take its place");
            } else {
                warn!(video = %video.display(), %error, "a video can't be decoded; it is left out");
            }
            Unreadable { example, video, error }
        });
    }
}

/// Whether a clip shows anything of a labelled part.
fn overlaps(range: TimeRange, clip: &Range<Duration>) -> bool {
    range.start < clip.end && range.end.is_none_or(|end| end > clip.start)
}

/// Whether a video could not be read, by no fault of its own: its folder may be away, files or memory exhausted.
fn is_outage(error: &VideoError) -> bool {
    matches!(error, VideoError::Read(_) | VideoError::OutOfMemory { .. })
}

/// The error of reading a file to its end, if there is one.
fn reading_error(video: &Path) -> Option<VideoError> {
    let read = || std::io::copy(&mut File::open(video)?, &mut std::io::sink());
    if video.is_dir() { None } else { read().err().map(Into::into) }
}

/// Sleeps, unless the epoch is dropped meanwhile.
fn wait(pause: Duration, cancel: &CancellationToken) -> Result<(), VideoError> {
    const GLANCE: Duration = Duration::from_millis(20);
    let end = Instant::now() + pause;
    while !cancel.is_cancelled() {
        match end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return Ok(()),
            left => thread::sleep(left.min(GLANCE)),
        }
    }
    Err(VideoError::Cancelled)
}

/// `(t, h, w, 3)` of bytes to `(3, t, h, w)` of the network's input, mirrored or not.
fn normalise(rgb: &[u8], size: usize, flip: bool, lookup: &[[f32; 256]; 3]) -> Vec<f32> {
    let pixels = rgb.as_chunks::<3>().0;
    let mut planes = Vec::with_capacity(rgb.len());
    for (channel, lookup) in lookup.iter().enumerate() {
        let value = |pixel: &[u8; 3]| lookup[usize::from(pixel[channel])];
        for row in pixels.chunks_exact(size) {
            if flip {
                planes.extend(row.iter().rev().map(value));
            } else {
                planes.extend(row.iter().map(value));
            }
        }
    }
    planes
}

/// What the threads of an epoch share.
#[derive(Debug)]
struct Shared {
    maker: Arc<Maker>,
    epoch: u64,
    order: Vec<usize>,
    cancel: CancellationToken,
    state: Mutex<State>,
    /// Signalled when a batch is taken: there is room for another.
    room: Condvar,
    /// Signalled when a batch is ready.
    ready: Condvar,
}

#[derive(Default)]
struct State {
    /// The next clip to make, counted from the start of this shard's epoch.
    next_slot: usize,
    /// Batches taken, those before the first included.
    taken: usize,
    /// Batches of which not all clips are made, by number.
    filling: BTreeMap<usize, Vec<Option<Slot>>>,
    /// Whole batches, by number; `None` if all their clips are left out.
    whole: BTreeMap<usize, Option<Batch>>,
    failed: Option<LoaderError>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("next_slot", &self.next_slot).field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl Shared {
    /// Makes clips until there are no more to make.
    fn work(&self) {
        while let Some(slot) = self.take_slot() {
            let Shard { rank, world_size } = self.maker.options.shard;
            let position = rank + slot * world_size;
            let make = || self.maker.make(&self.order, self.epoch, position, &self.cancel);
            let made = panic::catch_unwind(AssertUnwindSafe(make)).unwrap_or(Err(LoaderError::Panicked));
            match made {
                Ok(Slot::Cancelled) => return,
                Ok(made) => self.put(slot, made),
                Err(error) => {
                    lock(&self.state).failed.get_or_insert(error);
                    self.ready.notify_all();
                    self.room.notify_all();
                }
            }
        }
    }

    /// The next clip to make, once there is room for its batch.
    fn take_slot(&self) -> Option<usize> {
        let LoaderOptions { batch_size, prefetch_batches, .. } = self.maker.options;
        let mut state = lock(&self.state);
        loop {
            let slot = state.next_slot;
            if self.cancel.is_cancelled() || state.failed.is_some() || slot >= self.maker.slots() {
                return None;
            }
            if slot / batch_size < state.taken + prefetch_batches.max(1) {
                state.next_slot += 1;
                return Some(slot);
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Adds a clip to its batch, and makes that a tensor if it is the last.
    fn put(&self, slot: usize, made: Slot) {
        let batch_size = self.maker.options.batch_size;
        let number = slot / batch_size;
        let len = batch_size.min(self.maker.slots() - number * batch_size);
        let clips = {
            let mut state = lock(&self.state);
            let clips = state.filling.entry(number).or_insert_with(|| (0..len).map(|_| None).collect());
            clips[slot % batch_size] = Some(made);
            if clips.iter().any(Option::is_none) {
                return;
            }
            state.filling.remove(&number).expect("it was there a moment ago")
        };
        let made = |slot| if let Some(Slot::Made(made)) = slot { Some(made) } else { None };
        let made: Vec<Made> = clips.into_iter().filter_map(made).collect();
        let batch = (!made.is_empty()).then(|| self.batch(made));
        lock(&self.state).whole.insert(number, batch);
        self.ready.notify_all();
    }

    fn batch(&self, clips: Vec<Made>) -> Batch {
        let ClipSpec { frames, size, .. } = self.maker.clip;
        let examples: Vec<usize> = clips.iter().map(|made| made.example).collect();
        let labels = self.maker.labels(&clips);
        let mut pixels = Vec::with_capacity(clips.len() * frames * size * size * 3);
        for made in clips {
            pixels.extend_from_slice(&made.clip);
        }
        let shape = (examples.len(), 3, frames, size, size);
        Batch {
            clips: Tensor::from_vec(pixels, shape, &Device::Cpu).expect("every clip has the spec's shape"),
            labels,
            examples,
        }
    }

    /// Batch `number`, when it is whole; `None` if all its clips are left out.
    fn wait_for(&self, number: usize) -> Result<Option<Batch>, LoaderError> {
        let mut state = lock(&self.state);
        loop {
            if let Some(batch) = state.whole.remove(&number) {
                state.taken = number + 1;
                self.room.notify_all();
                return Ok(batch);
            }
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What a panic leaves behind here is as good as before: each change is made in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
