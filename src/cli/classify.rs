//! `kinetoscope classify`.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use humantime::Duration;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;

use super::backend::{Backend, BackendArgs};
use super::report::Report;
use crate::classify::ClassifyOptions;
use crate::rpc::proto;

/// Classify videos, here or on a server
///
/// With a model on this machine, or with that of a server (--server). The exit status is 1 if any video failed; the others are
/// still classified.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Video files; `-` reads one from standard input. With --server also URIs (file, http, https, s3, gs, az), which the
    /// server reads itself if its operator allows them
    #[arg(required_unless_present = "from", value_name = "VIDEO")]
    videos: Vec<PathBuf>,

    /// Also classify the files and URIs that this file names, one a line
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    #[command(flatten)]
    backend: BackendArgs,

    /// Labels to print, best first; 0 prints all
    #[arg(long, value_name = "N", default_value_t = ClassifyOptions::DEFAULT_TOP_K as u32)]
    top_k: u32,

    /// Leave out labels that score less than this, from 0 to 1
    #[arg(long, value_name = "SCORE", default_value_t = 0.0)]
    threshold: f32,

    /// Print labels for parts of each video too: for runs of clips with the same best label (`merged`) or for every
    /// clip (`clips`)
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_missing_value = "merged")]
    segments: Option<Segments>,

    /// Begin at this time of each video
    #[arg(long, value_name = "TIME")]
    start: Option<Duration>,

    /// End at this time of each video
    #[arg(long, value_name = "TIME")]
    end: Option<Duration>,

    /// Look at every n-th clip only
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    clip_stride: u32,

    /// Look at so many clips of a video at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_clips: Option<u64>,

    /// Let each clip count as much as it has different frames, instead of the same for all as in the paper: the last one is
    /// often short and repeated
    #[arg(long)]
    weight_by_frames: bool,

    /// Print the network's features of each video too, in JSON
    #[arg(long)]
    embedding: bool,

    /// Print one JSON object a video, a line each
    #[arg(long)]
    json: bool,

    /// Append the JSON objects to this file as videos get done, instead of printing them
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Skip the videos that the output file has already, and mend its last line if that was cut off
    #[arg(long, requires = "output")]
    resume: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Segments {
    Merged,
    Clips,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut videos = args.videos.clone();
    if let Some(list) = &args.from {
        let list = std::fs::read_to_string(list).with_context(|| format!("can't read {}", list.display()))?;
        videos.extend(list.lines().map(str::trim).filter(|line| !line.is_empty()).map(PathBuf::from));
    }
    let mut out = match &args.output {
        Some(path) => Out::file(path, args.resume)?,
        None => Out::stdout(args.json),
    };
    let asked = videos.len();
    videos.retain(|path| !out.has(path));
    if videos.len() < asked {
        eprintln!("kinetoscope: {} of {asked} videos were done before", asked - videos.len());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let failed = runtime.block_on(classify_all(&args, videos, &mut out))?;
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Gives the number of videos that failed.
async fn classify_all(args: &Args, videos: Vec<PathBuf>, out: &mut Out) -> anyhow::Result<usize> {
    let backend = Arc::new(Backend::start(&args.backend).await?);
    let options = options(args);
    let progress = Progress::new(videos.len());
    let mut waiting = videos.into_iter().enumerate();
    let mut tasks = JoinSet::new();
    let mut failed = 0;
    loop {
        while tasks.len() < usize::from(args.backend.concurrency)
            && let Some((index, path)) = waiting.next()
        {
            let (backend, options) = (Arc::clone(&backend), options.clone());
            tasks.spawn(async move {
                let answer = backend.classify(&path, &options).await;
                (index, path, answer)
            });
        }
        let Some(ended) = tasks.join_next().await else { break };
        let (index, path, answer) = ended?;
        let report = match answer {
            Ok(answer) => Some(Report::new(path.display().to_string(), answer, args.segments.is_some())),
            Err(error) => {
                failed += 1;
                progress.suspend(|| eprintln!("kinetoscope: {}: {error:#}", path.display()));
                None
            }
        };
        progress.suspend(|| out.put(index, report))?;
        progress.advance(failed);
    }
    Ok(failed)
}

fn options(args: &Args) -> proto::ClassificationOptions {
    // Only times of more than ten thousand years don't fit.
    let time = |time: Option<Duration>| time.and_then(|time| (*time).try_into().ok());
    proto::ClassificationOptions {
        model: args.backend.model_selector(),
        top_k: Some(args.top_k),
        score_threshold: args.threshold,
        segments: match args.segments {
            None => proto::SegmentMode::Unspecified,
            Some(Segments::Merged) => proto::SegmentMode::Merged,
            Some(Segments::Clips) => proto::SegmentMode::Clip,
        }
        .into(),
        embedding: args.embedding,
        start: time(args.start),
        end: time(args.end),
        clip_stride: args.clip_stride,
        max_clips: args.max_clips.unwrap_or(0),
        weight_by_frames: args.weight_by_frames,
        ..Default::default()
    }
}

/// Where answers go.
struct Out {
    target: Target,
    warned: Vec<String>,
}

enum Target {
    /// In the order of the command line: what came before its turn waits.
    Stdout { json: bool, next: usize, early: BTreeMap<usize, Option<Report>> },
    /// As they come.
    File { file: File, done: HashSet<String> },
}

impl Out {
    fn stdout(json: bool) -> Self {
        Self { target: Target::Stdout { json, next: 0, early: BTreeMap::new() }, warned: Vec::new() }
    }

    fn file(path: &Path, resume: bool) -> anyhow::Result<Self> {
        let open = || -> std::io::Result<(File, HashSet<String>)> {
            let mut file = File::options().create(true).append(true).read(true).open(path)?;
            let mut done = HashSet::new();
            let mut text = String::new();
            if file.metadata()?.len() > 0 && !resume {
                return Err(std::io::Error::other("it is there already; --resume goes on with it"));
            }
            file.read_to_string(&mut text)?;
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            file.set_len(whole as u64)?;
            for line in text[..whole].lines() {
                let value: serde_json::Value = serde_json::from_str(line)?;
                done.extend(value.get("video").and_then(|video| video.as_str()).map(str::to_owned));
            }
            Ok((file, done))
        };
        let (file, done) = open().with_context(|| format!("can't write to {}", path.display()))?;
        Ok(Self { target: Target::File { file, done }, warned: Vec::new() })
    }

    /// Whether the file has this video's answer from an earlier run.
    fn has(&self, path: &Path) -> bool {
        matches!(&self.target, Target::File { done, .. } if done.contains(&path.display().to_string()))
    }

    fn put(&mut self, index: usize, report: Option<Report>) -> std::io::Result<()> {
        // A warning is about the model, so once is enough.
        for warning in report.iter().flat_map(Report::warnings) {
            if !self.warned.contains(warning) {
                eprintln!("kinetoscope: warning: {warning}");
                self.warned.push(warning.clone());
            }
        }
        match &mut self.target {
            Target::Stdout { json, next, early } => {
                early.insert(index, report);
                while let Some(report) = early.remove(next) {
                    *next += 1;
                    let Some(report) = report else { continue };
                    let mut out = std::io::stdout().lock();
                    if *json {
                        writeln!(out, "{}", report.to_json())?;
                    } else {
                        out.write_all(report.to_text().as_bytes())?;
                    }
                }
                Ok(())
            }
            // In one call, so that a line is there as a whole or is the last.
            Target::File { file, .. } => report.map_or(Ok(()), |report| {
                let line = report.to_json() + "\n";
                file.write_all(line.as_bytes())
            }),
        }
    }
}

/// A bar on the terminal, if there is one and more than one video.
struct Progress(ProgressBar);

impl Progress {
    fn new(videos: usize) -> Self {
        let bar = if videos > 1 { ProgressBar::new(videos as u64) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} videos, {per_sec}, {eta} left {msg}");
        Self(bar.with_style(style.expect("the template is right")))
    }

    fn advance(&self, failed: usize) {
        self.0.inc(1);
        if failed > 0 {
            self.0.set_message(format!("({failed} failed)"));
        }
    }

    fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
