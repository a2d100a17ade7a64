//! Many videos through one pool, in this process and in others.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kinetoscope::engine::batcher::Priority;
use kinetoscope::model::spec::{ClipSpec, Preprocessing};
use kinetoscope::video::{
    Clip, DecodeOptions, DecodePool, Decoding, Fetch, Isolation, PoolOptions, PoolState, RangedReader, Source,
    SpoolOptions, VideoError, VideoSummary, WorkerOptions, spool,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::media::{Media, decode};

/// Both ways to decode.
fn isolations() -> [Isolation; 2] {
    let workers = WorkerOptions { program: env!("CARGO_BIN_EXE_kinetoscope").into(), ..Default::default() };
    [Isolation::None, Isolation::Processes(workers)]
}

fn pool(isolation: Isolation, threads: usize, open_videos: usize) -> DecodePool {
    DecodePool::new(isolation, PoolOptions { threads, open_videos })
}

fn video(media: &Media, frames: usize, size: &str) -> PathBuf {
    let name = format!("{frames}.mp4");
    let args = format!(
        "-f lavfi -i testsrc2=size={size}:rate=25 -frames:v {frames} -c:v libx264 -preset ultrafast -g 12 \
         -pix_fmt yuv420p -movflags +faststart"
    );
    media.make(&name, &args)
}

async fn begin(pool: &DecodePool, source: Source) -> Decoding {
    let options = DecodeOptions::default();
    pool.decode(source, ClipSpec::default(), Preprocessing::AUTHORS_2018, options, Priority::Normal).await
}

async fn take_all(mut decoding: Decoding) -> Result<(Vec<Clip>, VideoSummary), VideoError> {
    let mut clips = Vec::new();
    while let Some(clip) = decoding.next().await {
        clips.push(clip);
    }
    decoding.finish().await.map(|summary| (clips, summary))
}

/// Waits for `state` and tells how long that took.
async fn wait_for(pool: &DecodePool, state: PoolState) -> Duration {
    let begin = Instant::now();
    while pool.state() != state {
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?} is not {state:?}", pool.state());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    begin.elapsed()
}

#[tokio::test]
async fn many_videos_at_a_time_give_the_clips_they_give_alone() {
    let media = Media::new();
    let paths = [5, 40, 70].map(|frames| video(&media, frames, "160x120"));
    for isolation in isolations() {
        let pool = Arc::new(pool(isolation, 2, 4));
        let mut all = JoinSet::new();
        for path in paths.iter().cycle().take(9) {
            let (pool, path) = (Arc::clone(&pool), path.clone());
            all.spawn(async move {
                let result = take_all(begin(&pool, Source::Path(path.clone())).await).await;
                assert!(result == decode(&path), "{}: {:?}", path.display(), result.map(|(_, summary)| summary));
            });
        }
        all.join_all().await;
        assert_eq!(pool.state(), PoolState::default());
    }
}

#[tokio::test]
async fn short_video_ends_long_before_the_long_one_that_came_first() {
    let media = Media::new();
    let [long, short] = [800, 32].map(|frames| Source::Path(video(&media, frames, "320x240")));
    for isolation in isolations() {
        let pool = pool(isolation, 1, 2);
        let (mut long, began) = (begin(&pool, long.clone()).await, Instant::now());
        assert!(long.next().await.is_some());
        let short = begin(&pool, short.clone()).await;
        let timed = |decoding| async move {
            let (clips, _) = take_all(decoding).await.expect("a good video");
            (clips.len(), began.elapsed())
        };
        let ((_, of_long), (clips, of_short)) = tokio::join!(timed(long), timed(short));
        // Of 50 clips at most a handful come before the two of the short one; a half leaves room for a busy machine.
        assert!(clips == 2 && of_short < of_long / 2, "{of_short:?} of {of_long:?}");
    }
}

#[tokio::test]
async fn stalled_upload_blocks_no_turn_and_goes_when_dropped() {
    let media = Media::new();
    let path = video(&media, 100, "320x240");
    let bytes = fs::read(&path).expect("made");
    for isolation in isolations() {
        let pool = pool(isolation, 1, 2);
        // It may stall before the first byte, or in the middle.
        for arrived in [0, bytes.len() / 2] {
            let (mut writer, reader) = spool(SpoolOptions::default(), CancellationToken::new());
            writer.write(&bytes[..arrived]).expect("wanted");
            let mut stalled = begin(&pool, Source::Spool(reader)).await;
            if arrived > 0 {
                assert!(stalled.next().await.is_some());
            }
            let other = take_all(begin(&pool, Source::Path(path.clone())).await).await;
            assert!(other == decode(&path));
            wait_for(&pool, PoolState { open: 1, ..Default::default() }).await;
            drop(stalled);
            let ended = wait_for(&pool, PoolState::default()).await;
            assert!(ended < Duration::from_millis(100), "{ended:?}");
            assert!(writer.write(b"more").is_err(), "nobody reads it any more");
        }
    }
}

/// A file of which only the beginning comes, until it is let go.
#[derive(Debug, Clone)]
struct Elsewhere {
    bytes: Bytes,
    go: CancellationToken,
}

impl Elsewhere {
    fn source(&self) -> Source {
        let first = self.bytes.slice(..self.bytes.len() / 3);
        Source::Ranged(RangedReader::new(self.bytes.len() as u64, first, self.clone(), CancellationToken::new()))
    }
}

impl Fetch for Elsewhere {
    fn fetch(&self, range: Range<u64>) -> Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>> {
        let (bytes, go) = (self.bytes.slice(range.start as usize..range.end as usize), self.go.clone());
        Box::pin(async move {
            go.cancelled().await;
            Ok(bytes)
        })
    }

    fn failed(&self, error: io::Error) {
        panic!("nothing fails here: {error}");
    }
}

#[tokio::test]
async fn a_video_that_is_fetched_waits_for_none_whose_bytes_do_not_come() {
    let media = Media::new();
    let path = video(&media, 100, "320x240");
    let whole = decode(&path);
    for isolation in isolations() {
        let pool = pool(isolation, 1, 2);
        let slow = Elsewhere { bytes: fs::read(&path).expect("made").into(), go: CancellationToken::new() };
        let quick = Elsewhere { go: CancellationToken::new(), ..slow.clone() };
        quick.go.cancel();
        let mut stalled = begin(&pool, slow.source()).await;
        let first = stalled.next().await.expect("its beginning is here");
        // There is one place for videos that are not here as a whole.
        let other = take_all(begin(&pool, quick.source()).await).await;
        assert!(other == whole, "{:?}", other.map(|(clips, summary)| (clips.len(), summary)));
        slow.go.cancel();
        let (rest, summary) = take_all(stalled).await.expect("it goes on where it was");
        let clips: Vec<Clip> = std::iter::once(first).chain(rest).collect();
        assert!(Ok((clips, summary)) == whole);
        assert_eq!(pool.state(), PoolState::default());
    }
}

#[tokio::test]
async fn finishing_early_does_not_wait_for_a_stalled_upload() {
    let media = Media::new();
    let bytes = fs::read(video(&media, 100, "320x240")).expect("made");
    for isolation in isolations() {
        let pool = pool(isolation, 1, 1);
        let (mut writer, reader) = spool(SpoolOptions::default(), CancellationToken::new());
        writer.write(&bytes[..bytes.len() / 2]).expect("wanted");
        let mut decoding = begin(&pool, Source::Spool(reader)).await;
        assert!(decoding.next().await.is_some());
        wait_for(&pool, PoolState { open: 1, ..Default::default() }).await;
        let began = Instant::now();
        let summary = decoding.finish().await.expect("half a video");
        assert!(summary.frames >= 16 && summary.partial.is_none(), "{summary:?}");
        assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn dropping_a_decoding_of_full_hd_frees_it_within_a_tenth_of_a_second() {
    let media = Media::new();
    let path = video(&media, 150, "1920x1080");
    for isolation in isolations() {
        let pool = pool(isolation, 1, 1);
        let mut decoding = begin(&pool, Source::Path(path.clone())).await;
        assert!(decoding.next().await.is_some());
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(decoding);
        let ended = wait_for(&pool, PoolState::default()).await;
        assert!(ended < Duration::from_millis(100), "{ended:?}");
    }
}

#[tokio::test]
async fn process_outlives_the_thread_that_needed_it_first() {
    let media = Media::new();
    let path = video(&media, 20, "64x48");
    let [_, processes] = isolations();
    let pool = pool(processes, 1, 1);
    for _ in 0..3 {
        take_all(begin(&pool, Source::Path(path.clone())).await).await.expect("a good video");
        // Each decode has its own thread, and that of the last has ended by now.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(pool.state().worker_restarts, 0);
}

#[tokio::test]
async fn stopping_tells_what_was_decoded_without_waiting_for_the_rest() {
    let media = Media::new();
    let bytes = fs::read(video(&media, 100, "160x120")).expect("made");
    for isolation in isolations() {
        let pool = pool(isolation, 1, 2);
        let (mut writer, reader) = spool(SpoolOptions::default(), CancellationToken::new());
        writer.write(&bytes[..bytes.len() / 2]).expect("wanted");
        let mut decoding = begin(&pool, Source::Spool(reader.clone())).await;
        assert!(decoding.next().await.is_some());
        // The decoder waits for bytes that do not come.
        let so_far = decoding.stop().expect("a clip was decoded");
        assert!(so_far.frames > 16 && so_far.clips > 0 && so_far.partial.is_none(), "{so_far:?}");
        assert_eq!((so_far.width, so_far.height, so_far.codec.as_str()), (160, 120, "h264"));
        let before_the_first = begin(&pool, Source::Spool(reader)).await;
        assert_eq!(before_the_first.stop(), None);
        wait_for(&pool, PoolState::default()).await;
    }
}
