//! What the transform to clips costs on top of decoding, and what decoding in other processes costs on top of both.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use crate::model::spec::{ClipSpec, Preprocessing};
use crate::priority::Priority;
use crate::video::{
    DecodeOptions, DecodePool, Decoder, Isolation, Limits, PoolOptions, Source, VideoError, time_decoding,
};

/// How to measure.
#[derive(Debug, Clone)]
pub struct Effort {
    /// Where requests are decoded; decoding alone and with the transform is measured in this process anyhow.
    pub isolation: Isolation,
    /// Videos that are decoded at a time.
    pub threads: usize,
    /// Rounds, of which medians are taken.
    pub rounds: usize,
}

/// What one video costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The file.
    pub video: String,
    /// Frames in it.
    pub frames: u64,
    /// CPU time of decoding alone, in milliseconds a frame; median over the rounds.
    pub decode_ms_per_frame: f64,
    /// CPU time of decoding and transforming to clips, in milliseconds a frame; median over the rounds.
    pub decode_transform_ms_per_frame: f64,
    /// The second by the first.
    pub ratio: f64,
    /// Frames decoded and transformed a second of wall-clock time by all threads together, each decoding whole files one
    /// after the other as requests do, opening included; median over the rounds.
    pub frames_per_second: f64,
    /// What decoding in another process costs, where that was asked for.
    #[serde(flatten)]
    pub isolation: Option<IsolationCost>,
}

/// What decoding in another process costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct IsolationCost {
    /// CPU time of a request in this process, opening included, in milliseconds a frame; median over the rounds.
    pub request_ms_per_frame: f64,
    /// CPU time of both processes for a request, in milliseconds a frame; median over the rounds.
    pub isolated_request_ms_per_frame: f64,
    /// The second by the first, round by round; median over the rounds.
    pub isolation_ratio: f64,
    /// CPU time that a process takes to start, in milliseconds; one does up to
    /// [`WorkerOptions::max_videos`](crate::video::WorkerOptions::max_videos) requests.
    pub process_start_ms: f64,
    /// Peak resident memory of the process in bytes.
    pub process_peak_rss_bytes: u64,
}

/// Measures one video. What is compared takes turns, so that all see the same machine. Decoding alone and with the
/// transform leave opening the file out. With one decoder thread, as requests are served.
pub fn measure(video: &Path, effort: &Effort) -> Result<Row, VideoError> {
    let source = Source::Path(video.to_path_buf());
    let (clip, preprocessing) = (ClipSpec::default(), Preprocessing::AUTHORS_2018);
    let options = DecodeOptions { limits: Limits::UNLIMITED, ..DecodeOptions::default() };
    let (mut alone, mut whole, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    let mut frames = 0;
    let threads = effort.threads.max(1);
    let pool = Arc::new(DecodePool::new(effort.isolation.clone(), PoolOptions { threads, open_videos: 2 * threads }));
    let mut comparison = match &effort.isolation {
        Isolation::None => None,
        isolation => Some(Comparison::new(isolation.clone(), &source)?),
    };
    for _ in 0..effort.rounds.max(1) {
        let (count, time) = time_decoding(&source, None, &options)?;
        alone.push(per_frame(time, count));
        let (count, time) = time_decoding(&source, Some((&clip, &preprocessing)), &options)?;
        whole.push(per_frame(time, count));
        frames = count;
        rates.push(frames_per_second(&pool, threads, &source)?);
        if let Some(comparison) = &mut comparison {
            comparison.round(&source)?;
        }
    }
    let (decode_ms_per_frame, decode_transform_ms_per_frame) = (median(alone), median(whole));
    Ok(Row {
        video: video.display().to_string(),
        frames,
        decode_ms_per_frame,
        decode_transform_ms_per_frame,
        ratio: decode_transform_ms_per_frame / decode_ms_per_frame,
        frames_per_second: median(rates),
        isolation: comparison.map(Comparison::cost),
    })
}

/// Long enough for the end of a batch, where not all threads are busy, to matter little.
const BATCH_TIME: Duration = Duration::from_millis(500);

/// Keeps the pool busy for some time with requests for one video.
fn frames_per_second(pool: &Arc<DecodePool>, threads: usize, source: &Source) -> Result<f64, VideoError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let begin = Instant::now();
    let frames = runtime.block_on(async {
        let mut clients = JoinSet::new();
        // More than threads, so that a next video is open when one is done.
        for _ in 0..2 * threads {
            clients.spawn(request_for(BATCH_TIME, Arc::clone(pool), source.clone()));
        }
        clients.join_all().await.into_iter().sum::<Result<u64, VideoError>>()
    })?;
    Ok(frames as f64 / begin.elapsed().as_secs_f64())
}

/// One request after the other; gives the frames in all.
async fn request_for(time: Duration, pool: Arc<DecodePool>, source: Source) -> Result<u64, VideoError> {
    let (clip, preprocessing) = (ClipSpec::default(), Preprocessing::AUTHORS_2018);
    let (begin, mut frames) = (Instant::now(), 0);
    while begin.elapsed() < time {
        let options = DecodeOptions { limits: Limits::UNLIMITED, ..DecodeOptions::default() };
        let mut decoding = pool.decode(source.clone(), clip, preprocessing, options, Priority::Normal).await;
        while decoding.next().await.is_some() {}
        frames += decoding.finish().await?.frames;
    }
    Ok(frames)
}

/// The same request in this process and in another, again and again.
struct Comparison {
    here: Decoder,
    there: Decoder,
    costs: Vec<[f64; 2]>,
    process_start_ms: f64,
}

impl Comparison {
    /// Starts the other process with a first request.
    fn new(isolation: Isolation, source: &Source) -> Result<Self, VideoError> {
        let (here, there) = (Decoder::new(Isolation::None), Decoder::new(isolation));
        let mut comparison = Self { here, there, costs: Vec::new(), process_start_ms: 0.0 };
        let (first, _) = comparison.request(&comparison.there, source)?;
        let (second, _) = comparison.request(&comparison.there, source)?;
        comparison.process_start_ms = first.saturating_sub(second).as_secs_f64() * 1e3;
        Ok(comparison)
    }

    fn round(&mut self, source: &Source) -> Result<(), VideoError> {
        let [here, there] = [&self.here, &self.there].map(|decoder| self.request(decoder, source));
        let ((here, frames), (there, _)) = (here?, there?);
        self.costs.push([per_frame(here, frames), per_frame(there, frames)]);
        Ok(())
    }

    /// CPU time of a request in both processes, and the frames it gave.
    fn request(&self, decoder: &Decoder, source: &Source) -> Result<(Duration, u64), VideoError> {
        let (clip, preprocessing) = (ClipSpec::default(), Preprocessing::AUTHORS_2018);
        let before = self.cpu_time();
        let keep_going = |_| ControlFlow::Continue(());
        let summary = decoder.decode_clips(
            source,
            &clip,
            &preprocessing,
            &DecodeOptions { limits: Limits::UNLIMITED, ..DecodeOptions::default() },
            keep_going,
        )?;
        Ok((self.cpu_time().saturating_sub(before), summary.frames))
    }

    /// CPU time of this process and the other, as far as that is idle and not yet replaced.
    fn cpu_time(&self) -> Duration {
        let here = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let here = Duration::new(here.tv_sec.unsigned_abs(), here.tv_nsec.unsigned_abs() as u32);
        // The first number is the time on a CPU in nanoseconds (Documentation/scheduler/sched-stats.rst of Linux).
        let there = self.there.idle_processes().into_iter().map(|pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|time| time.parse().ok()).unwrap_or(0)
        });
        here + Duration::from_nanos(there.sum())
    }

    fn cost(self) -> IsolationCost {
        let column = |i: usize| median(self.costs.iter().map(|cost| cost[i]).collect());
        let process_peak_rss_bytes = self.there.idle_processes().first().map_or(0, |pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
            peak.and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or(0) << 10
        });
        IsolationCost {
            request_ms_per_frame: column(0),
            isolated_request_ms_per_frame: column(1),
            isolation_ratio: median(self.costs.iter().map(|[here, there]| there / here).collect()),
            process_start_ms: self.process_start_ms,
            process_peak_rss_bytes,
        }
    }
}

fn per_frame(time: Duration, frames: u64) -> f64 {
    time.as_secs_f64() * 1e3 / frames as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
