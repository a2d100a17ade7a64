//! Many open videos, few of them decoding at a time, in turns.
//!
//! Two things are bounded apart: how many videos are open (memory) and how many decode (CPU). A decode holds a turn only
//! while it has work to do: it gives it up at each clip boundary, while nobody takes its clips and while the bytes
//! it needs next have not arrived, and stands in line for the next. So a long video can't starve a short one, and
//! neither a slow model nor a slow uploader keeps others waiting. In both lines, videos of different priorities go on in
//! the ratio of their weights.
//!
//! A place among the open videos is for work that can go on. Videos that are still arriving have a part of the places only,
//! and one whose bytes are fetched on demand takes the place of another that has been waiting for bytes for a while. That
//! one begins again, from the clip it had come to, when it is here as a whole.

use std::any::Any;
use std::io;
use std::ops::ControlFlow;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, info_span};

use super::assembly::Passed;
use super::ffmpeg::thread_cpu_time;
use super::permits::{Arrival, Bounds, Permit, Permits, Request};
use super::waiting::WhileWaiting;
use super::{Clip, DecodeOptions, Decoder, Isolation, Source, VideoError, VideoSummary};
use crate::model::spec::{ClipSpec, Preprocessing};
use crate::priority::Priority;

/// Clips of one video that are decoded and not yet taken; a decode beyond them waits without holding a turn.
const CLIPS_AHEAD: usize = 2;

/// A decode that has waited so long for its next bytes may lose its place: longer than any healthy source takes.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// More videos than this in one pool would run out of threads long before.
const MOST_VIDEOS: usize = 1 << 16;

/// How many videos a [`DecodePool`] handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    /// Videos that decode at a time, one thread each.
    pub threads: usize,
    /// Videos that are open at a time; at least `threads`. Each costs the memory of a decoder, 20 to 120 MB up to 1080p, and
    /// in isolation a process, which stays for the next video. Up to `threads` more are opened for videos of a higher
    /// priority than some that are open.
    pub open_videos: usize,
}

impl Default for PoolOptions {
    /// As many threads as there are CPUs, and four open videos for each: some wait for bytes or for the model.
    fn default() -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        Self { threads, open_videos: 4 * threads }
    }
}

/// What a pool does at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolState {
    /// Videos that wait to be opened.
    pub waiting: usize,
    /// Videos that are open.
    pub open: usize,
    /// Those of them that decode at this moment.
    pub running: usize,
    /// Decoder processes that died or had to be ended over their videos, since the pool was made.
    pub worker_restarts: u64,
}

/// Decodes videos, a bounded number at a time; see the module. Share it by reference or in an [`Arc`].
#[derive(Debug)]
pub struct DecodePool {
    decoder: Arc<Decoder>,
    /// One permit an open video.
    places: Arc<Permits>,
    /// One permit a video that decodes.
    turns: Arc<Permits>,
    /// Nanoseconds of CPU time of the pool's threads that ended.
    cpu_time: Arc<AtomicU64>,
}

impl DecodePool {
    /// A pool that decodes in this process or in others. It starts neither threads nor processes before the first video.
    pub fn new(isolation: Isolation, options: PoolOptions) -> Self {
        let threads = options.threads.clamp(1, MOST_VIDEOS);
        let all = options.open_videos.clamp(threads, MOST_VIDEOS);
        Self {
            decoder: Arc::new(Decoder::new(isolation)),
            places: Permits::new(Bounds { all, arriving: (all - threads).max(1), overtaking: threads }),
            turns: Permits::new(Bounds { all: threads, arriving: threads, overtaking: 0 }),
            cpu_time: Arc::default(),
        }
    }

    /// CPU time that the pool's threads spent on videos that are done, however they ended. That of decoder processes is
    /// theirs and not counted here.
    pub fn cpu_time(&self) -> Duration {
        Duration::from_nanos(self.cpu_time.load(Ordering::Relaxed))
    }

    /// What the pool does now. The numbers are read one after the other, so they may be from different moments.
    pub fn state(&self) -> PoolState {
        PoolState {
            waiting: self.places.waiting(),
            open: self.places.held(),
            running: self.turns.held(),
            worker_restarts: self.decoder.lost_processes(),
        }
    }

    /// Waits for a place among the open videos (by priority, then first come, first served, but of videos that are still
    /// arriving only so many that as many places as there are threads are left), then begins to decode. Dropping the
    /// future gives up the wait. Has to be called within a tokio runtime.
    pub async fn decode(
        &self,
        source: Source,
        clip: ClipSpec,
        preprocessing: Preprocessing,
        options: DecodeOptions,
        priority: Priority,
    ) -> Decoding {
        let decoder = Arc::clone(&self.decoder);
        let line = Line::of(&source, priority);
        self.begin(options.cancel.child_token(), line, move |turn| {
            let options = DecodeOptions { cancel: turn.cancel.clone(), ..options };
            let mut source = source;
            let mut next_clip = 0;
            loop {
                let bytes = source.clone().with(Arc::clone(turn) as Arc<dyn WhileWaiting>);
                let result = decoder.decode(&bytes, &clip, &preprocessing, &options, |passed| match passed {
                    // What comes after bytes that were not waited for is none of the video's.
                    _ if turn.was_displaced() => ControlFlow::Break(()),
                    Passed::Clip(clip, _) if clip.index < next_clip => turn.pass(),
                    Passed::Clip(clip, so_far) => {
                        next_clip = clip.index + 1;
                        turn.note(*so_far);
                        turn.hand_over(clip)
                    }
                    Passed::Unwanted => turn.pass(),
                });
                if !turn.was_displaced() {
                    return result;
                }
                source = turn.wait_for_all_of(source)?;
            }
        })
        .await
    }

    /// Runs `work` on a thread of its own once there is a place for it.
    async fn begin(
        &self,
        cancel: CancellationToken,
        line: Line,
        work: impl FnOnce(&Arc<Turn>) -> Result<VideoSummary, VideoError> + Send + 'static,
    ) -> Decoding {
        let (sender, clips) = mpsc::channel(CLIPS_AHEAD);
        let (send_result, result) = oneshot::channel();
        let so_far = Arc::default();
        let decoding = Decoding { clips, result, so_far: Arc::clone(&so_far), cancel: cancel.clone().drop_guard() };
        let place = async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => None,
                place = line.wait(&self.places) => Some(place),
            }
        };
        let Some(place) = place.instrument(info_span!("decode_wait")).await else {
            let _ = send_result.send(Err(VideoError::Cancelled));
            return decoding;
        };
        let turn = Arc::new(Turn {
            line,
            places: Arc::clone(&self.places),
            place: Mutex::new(Some(place)),
            turns: Arc::clone(&self.turns),
            held: Mutex::new(None),
            clips: sender,
            so_far,
            cancel: cancel.clone(),
            waits_since: Mutex::new(None),
            displaced: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            runtime: Handle::current(),
        });
        let cpu_time = Arc::clone(&self.cpu_time);
        let span = info_span!("decode");
        let run = move || {
            let _entered = span.entered();
            let result = panic::catch_unwind(AssertUnwindSafe(|| {
                // Whether a video can be opened is told even to who wants no clips.
                let _ = turn.take_unless(turn.cancel.cancelled());
                work(&turn)
            }));
            let result = match result {
                // However waits and jobs end that are cancelled, it is no news to who cancelled them.
                Ok(_) if turn.cancel.is_cancelled() => Err(VideoError::Cancelled),
                Ok(Err(_)) if turn.was_interrupted() => Err(VideoError::Cancelled),
                Ok(Ok(summary)) if turn.was_interrupted() => Ok(VideoSummary { partial: None, ..summary }),
                Ok(result) => result,
                Err(panic) => Err(VideoError::DecoderCrashed { detail: words_of(panic.as_ref()) }),
            };
            // The thread has done nothing else.
            cpu_time.fetch_add(thread_cpu_time().as_nanos() as u64, Ordering::Relaxed);
            // Whoever learns the result finds place and turn free.
            turn.give_up();
            turn.leave();
            drop(turn);
            let _ = send_result.send(result);
        };
        // Not tokio's threads for blocking calls: a decode may wait for its uploader or its reader for minutes, and those
        // threads are for short calls of everybody. Starting a thread costs less than opening any video.
        if let Err(error) = thread::Builder::new().name("decode".into()).spawn(run) {
            let (send_result, result) = oneshot::channel();
            let _ = send_result.send(Err(VideoError::NoDecoder(format!("no thread could be started: {error}"))));
            return Decoding { result, ..decoding };
        }
        decoding
    }
}

/// How a video stands in the lines for places and turns.
struct Line {
    priority: Priority,
    arrival: Arrival,
    /// Cancelled when no more bytes will come.
    ended: CancellationToken,
}

impl Line {
    fn of(source: &Source, priority: Priority) -> Self {
        let (arrival, ended) = match source {
            Source::Spool(reader) => (Arrival::Coming, reader.ended()),
            Source::Ranged(_) => (Arrival::OnDemand, CancellationToken::new()),
            Source::Path(_) | Source::File(_) | Source::Bytes(_) => (Arrival::Here, CancellationToken::new()),
            Source::Watched(source, _) => return Self::of(source, priority),
        };
        Self { priority, arrival, ended }
    }

    fn request(&self, arrival: Arrival) -> Request {
        Request { priority: self.priority, arrival }
    }

    /// Waits for a place. What becomes whole meanwhile waits among those that are here.
    async fn wait(&self, places: &Arc<Permits>) -> Permit {
        tokio::select! {
            biased;
            () = self.ended.cancelled() => places.acquire(self.request(Arrival::Here)).await,
            place = places.acquire(self.request(self.arrival)) => place,
        }
    }
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", message.unwrap_or("without a message"))
}

/// A video that is being decoded. Dropping it ends that: thread, process and whatever waits for its upload are free within
/// a tenth of a second.
#[derive(Debug)]
pub struct Decoding {
    clips: mpsc::Receiver<Clip>,
    result: oneshot::Receiver<Result<VideoSummary, VideoError>>,
    so_far: Arc<Mutex<Option<VideoSummary>>>,
    /// Cancels when dropped.
    #[expect(dead_code, reason = "its drop is what it is for")]
    cancel: DropGuard,
}

impl Decoding {
    /// The next clip in order; `None` after the last, be it of the video or before an error, which
    /// [`Decoding::finish`] tells. Cancel safe.
    pub async fn next(&mut self) -> Option<Clip> {
        self.clips.recv().await
    }

    /// What was decoded, or why that failed. Called before [`Decoding::next`] gave `None`, it asks to stop soon: clips
    /// not yet taken are lost, and the summary covers what was decoded until then.
    pub async fn finish(mut self) -> Result<VideoSummary, VideoError> {
        self.clips.close();
        let lost = || VideoError::NoDecoder("its thread is gone".to_string());
        (&mut self.result).await.unwrap_or_else(|_| Err(lost()))
    }

    /// Ends decoding at once, whatever it is in the midst of, and tells what was decoded up to the last clip; `None` before
    /// the first.
    pub fn stop(self) -> Option<VideoSummary> {
        lock(&self.so_far).take()
    }
}

/// One decode's part in the turns, as its thread sees it.
struct Turn {
    line: Line,
    places: Arc<Permits>,
    place: Mutex<Option<Permit>>,
    turns: Arc<Permits>,
    held: Mutex<Option<Permit>>,
    clips: mpsc::Sender<Clip>,
    so_far: Arc<Mutex<Option<VideoSummary>>>,
    cancel: CancellationToken,
    /// Since when it has been waiting for bytes.
    waits_since: Mutex<Option<Instant>>,
    /// It lost its place while it waited for bytes.
    displaced: AtomicBool,
    /// A wait for bytes was ended because nobody wants more clips.
    interrupted: AtomicBool,
    runtime: Handle,
}

impl Turn {
    /// Stands in line for the next turn; tells whether more clips are wanted at all.
    fn take(&self) -> ControlFlow<()> {
        self.take_unless(self.unwanted())
    }

    async fn unwanted(&self) {
        tokio::select! {
            () = self.cancel.cancelled() => {}
            () = self.clips.closed() => {}
        }
    }

    fn take_unless(&self, unwanted: impl Future<Output = ()>) -> ControlFlow<()> {
        if self.line.ended.is_cancelled()
            && let Some(place) = &mut *lock(&self.place)
        {
            place.arrived();
        }
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = unwanted => ControlFlow::Break(()),
                turn = self.turns.acquire(self.line.request(Arrival::Here)) => {
                    *lock(&self.held) = Some(turn);
                    ControlFlow::Continue(())
                }
            }
        })
    }

    /// Waits without a place until `source` is here as a whole, then for a place and a turn.
    fn wait_for_all_of(self: &Arc<Self>, source: Source) -> Result<Source, VideoError> {
        self.give_up();
        self.leave();
        let whole = source.whole(Arc::new(WithoutPlace(Arc::clone(self))))?;
        let place = self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.unwanted() => None,
                place = self.places.acquire(self.line.request(Arrival::Here)) => Some(place),
            }
        });
        let Some(place) = place else {
            self.interrupted.store(true, Ordering::Relaxed);
            return Err(VideoError::Cancelled);
        };
        *lock(&self.place) = Some(place);
        self.displaced.store(false, Ordering::Relaxed);
        let _ = self.take();
        Ok(whole)
    }

    /// Lets the next in line have this place.
    fn leave(&self) {
        drop(lock(&self.place).take());
    }

    fn was_displaced(&self) -> bool {
        self.displaced.load(Ordering::Relaxed)
    }

    /// An error once nobody wants more clips.
    fn check_wanted(&self) -> io::Result<()> {
        if self.cancel.is_cancelled() || self.clips.is_closed() {
            self.interrupted.store(true, Ordering::Relaxed);
            return Err(io::Error::other("nobody wants the rest"));
        }
        Ok(())
    }

    /// Lets the next in line have this turn.
    fn give_up(&self) {
        drop(lock(&self.held).take());
    }

    fn was_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn note(&self, so_far: VideoSummary) {
        *lock(&self.so_far) = Some(so_far);
    }

    /// Hands over a clip, waiting for room out of turn, and ends the turn.
    fn hand_over(&self, clip: Clip) -> ControlFlow<()> {
        let full = self.clips.try_send(clip);
        self.give_up();
        if let Err(mpsc::error::TrySendError::Full(clip)) = full {
            self.runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = self.cancel.cancelled() => ControlFlow::Break(()),
                    sent = self.clips.send(clip) => sent.map_or(ControlFlow::Break(()), ControlFlow::Continue),
                }
            })?;
        }
        self.take()
    }

    /// Ends the turn at a clip that nobody wants.
    fn pass(&self) -> ControlFlow<()> {
        self.give_up();
        self.take()
    }
}

impl WhileWaiting for Turn {
    fn begin(&self) {
        self.give_up();
        *lock(&self.waits_since) = Some(Instant::now());
    }

    fn check(&self) -> io::Result<()> {
        self.check_wanted()?;
        let waits_long = lock(&self.waits_since).is_some_and(|since| since.elapsed() >= LONG_WAIT);
        if waits_long && lock(&self.place).as_mut().is_some_and(Permit::is_wanted_back) {
            self.displaced.store(true, Ordering::Relaxed);
            return Err(io::Error::other("another video takes the place of this one"));
        }
        Ok(())
    }

    fn end(&self) {
        *lock(&self.waits_since) = None;
        // Who is not wanted any more goes on without a turn, to its end, and so does who lost its place.
        if !self.was_displaced() {
            let _ = self.take();
        }
    }
}

/// Waits for bytes with neither place nor turn.
struct WithoutPlace(Arc<Turn>);

impl WhileWaiting for WithoutPlace {
    fn check(&self) -> io::Result<()> {
        self.0.check_wanted()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they hold is whole at every point where a holder could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arrival: Arrival) -> Line {
        Line { priority: Priority::Normal, arrival, ended: CancellationToken::new() }
    }

    fn pool(threads: usize, open_videos: usize) -> DecodePool {
        DecodePool::new(Isolation::None, PoolOptions { threads, open_videos })
    }

    /// A decode of `clips` clips that notes its `name` for each of them in `log`.
    async fn begin(pool: &DecodePool, name: char, clips: usize, log: &Arc<Mutex<String>>) -> Decoding {
        let log = Arc::clone(log);
        pool.begin(CancellationToken::new(), line(Arrival::Here), move |turn| {
            for index in 0..clips {
                log.lock().unwrap().push(name);
                // Work enough for readers to keep up.
                thread::sleep(Duration::from_millis(1));
                if turn.hand_over(clip(index)).is_break() {
                    break;
                }
            }
            Ok(summary())
        })
        .await
    }

    fn clip(index: usize) -> Clip {
        Clip { index, frames: 1, start: Duration::ZERO, end: Duration::ZERO, rgb: Vec::new() }
    }

    fn summary() -> VideoSummary {
        VideoSummary {
            frames: 0,
            clips: 0,
            duration: Duration::ZERO,
            corrupt_packets: 0,
            partial: None,
            width: 0,
            height: 0,
            codec: String::new(),
            container: String::new(),
            stream_index: 0,
        }
    }

    async fn take_all(mut decoding: Decoding) -> Result<usize, VideoError> {
        let mut clips = 0;
        while decoding.next().await.is_some() {
            clips += 1;
        }
        decoding.finish().await.map(|_| clips)
    }

    async fn wait_until(what: &str, ready: impl Fn() -> bool) {
        let begin = Instant::now();
        while !ready() {
            assert!(begin.elapsed() < Duration::from_secs(10), "{what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn videos_that_arrive_slowly_leave_places_to_those_that_are_here() {
        let pool = Arc::new(pool(1, 3));
        let cancel = CancellationToken::new();
        // They wait for their bytes, without a turn.
        let slow = |turn: &Arc<Turn>| {
            turn.give_up();
            turn.runtime.block_on(turn.cancel.cancelled());
            Ok(summary())
        };
        let first = [
            pool.begin(cancel.child_token(), line(Arrival::Coming), slow).await,
            pool.begin(cancel.child_token(), line(Arrival::Coming), slow).await,
        ];
        let (of_third, third) = (cancel.child_token(), Arc::clone(&pool));
        let third =
            tokio::spawn(async move { third.begin(of_third, line(Arrival::Coming), slow).await.finish().await });
        tokio::task::yield_now().await;
        let here = pool.begin(CancellationToken::new(), line(Arrival::Here), |_| Ok(summary())).await;
        assert!(here.finish().await.is_ok());
        assert_eq!((pool.state().waiting, pool.state().open), (1, 2));
        cancel.cancel();
        for decoding in first {
            assert!(matches!(decoding.finish().await, Err(VideoError::Cancelled)));
        }
        assert!(matches!(third.await.unwrap(), Err(VideoError::Cancelled)));
    }

    #[tokio::test]
    async fn open_videos_take_turns_clip_by_clip() {
        let pool = pool(1, 3);
        let log = Arc::default();
        // Holds the only turn until the others stand in line.
        let (go, held) = std::sync::mpsc::channel::<()>();
        let first = pool.begin(CancellationToken::new(), line(Arrival::Here), move |_| {
            held.recv().expect("told to go on");
            Ok(summary())
        });
        let first = first.await;
        wait_until("the first has the turn", || pool.state().running == 1).await;
        let long = begin(&pool, 'l', 30, &log).await;
        let short = begin(&pool, 's', 3, &log).await;
        assert_eq!(pool.state().open, 3);
        thread::sleep(Duration::from_millis(50));
        go.send(()).expect("it waits");
        let (_, long, short) = tokio::join!(first.finish(), take_all(long), take_all(short));
        assert_eq!((long, short), (Ok(30), Ok(3)));
        let log = log.lock().unwrap();
        let end_of_short = log.rfind('s').expect("it ran");
        // Each gets a turn in every round; two rounds' slack for clips that waited for their reader.
        assert!(end_of_short < 10, "{log}");
    }

    #[tokio::test]
    async fn decode_that_nobody_reads_waits_without_a_turn_and_not_far_ahead() {
        let pool = pool(1, 2);
        let log = Arc::new(Mutex::new(String::new()));
        let mut unread = begin(&pool, 'u', 100, &log).await;
        wait_until("it fills its channel", || log.lock().unwrap().len() > CLIPS_AHEAD && pool.state().running == 0)
            .await;
        assert_eq!(take_all(begin(&pool, 'o', 20, &log).await).await, Ok(20), "another is not held up");
        let made = log.lock().unwrap().matches('u').count();
        assert_eq!(made, CLIPS_AHEAD + 1, "what the channel holds, and one in hand");
        assert_eq!(unread.next().await.map(|clip| clip.index), Some(0));
        drop(unread);
        wait_until("it ends", || pool.state().open == 0).await;
    }

    #[tokio::test]
    async fn errors_panics_and_cancellations_leave_every_place_and_turn_free() {
        let pool = Arc::new(pool(2, 2));
        for round in 0..20 {
            let cancel = CancellationToken::new();
            let failing = pool.begin(CancellationToken::new(), line(Arrival::Here), |_| Err(VideoError::Empty)).await;
            let panicking =
                pool.begin(CancellationToken::new(), line(Arrival::Here), |_| panic!("clip {} is odd", 7)).await;
            let log = Arc::default();
            let cancelled = pool.begin(cancel.clone(), line(Arrival::Here), |turn| {
                while turn.hand_over(clip(0)).is_continue() {}
                Ok(summary())
            });
            let dropped = begin(&pool, 'd', 1000, &log);
            let given_up = tokio::time::timeout(Duration::from_micros(10), begin(&pool, 'g', 1, &log));
            let (failed, panicked, ..) = tokio::join!(failing.finish(), panicking.finish(), async {
                drop((dropped.await, given_up.await));
                let cancelled = cancelled.await;
                if round % 2 == 0 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                cancel.cancel();
                assert_eq!(cancelled.finish().await, Err(VideoError::Cancelled));
            });
            assert_eq!(failed, Err(VideoError::Empty));
            assert!(
                matches!(&panicked, Err(VideoError::DecoderCrashed { detail }) if detail.contains("clip 7 is odd"))
            );
        }
        wait_until("all is free", || pool.state() == PoolState::default()).await;
        let log = Arc::default();
        let all = [begin(&pool, 'a', 5, &log).await, begin(&pool, 'b', 5, &log).await];
        let [a, b] = all.map(take_all);
        assert_eq!(tokio::join!(a, b), (Ok(5), Ok(5)));
    }

    #[tokio::test]
    async fn videos_beyond_the_places_wait_and_are_counted() {
        let pool = Arc::new(pool(1, 1));
        let log = Arc::new(Mutex::new(String::new()));
        let first = begin(&pool, 'f', 100, &log).await;
        let waiting = tokio::spawn({
            let (pool, log) = (Arc::clone(&pool), Arc::clone(&log));
            async move { take_all(begin(&pool, 's', 1, &log).await).await }
        });
        wait_until("it stands in line", || pool.state().waiting == 1).await;
        assert_eq!(pool.state().open, 1);
        drop(first);
        assert_eq!(waiting.await.expect("no panic"), Ok(1));
        assert_eq!(pool.state(), PoolState::default());
    }

    #[tokio::test]
    async fn cancelled_wait_for_a_place_gives_a_cancelled_decoding() {
        let pool = pool(1, 1);
        let _first = begin(&pool, 'f', 100, &Arc::default()).await;
        let cancel = CancellationToken::new();
        cancel.cancel();
        let second = pool.begin(cancel, line(Arrival::Here), |_| Ok(summary())).await;
        assert_eq!(second.finish().await, Err(VideoError::Cancelled));
    }

    #[tokio::test]
    async fn finishing_early_ends_a_decode_soon_and_gives_its_summary() {
        let pool = pool(1, 1);
        let mut decoding = begin(&pool, 'f', 100_000, &Arc::default()).await;
        assert!(decoding.next().await.is_some());
        assert_eq!(decoding.finish().await, Ok(summary()));
        assert_eq!(pool.state(), PoolState::default());
    }
}
