//! `kinetoscope classify`.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Args as ClapArgs, ValueEnum};
use tokio::task::JoinSet;

use super::backend::{Backend, BackendArgs};
use super::name::{escaped, unescaped};
use super::progress::{Progress, Watch};
use super::report::{Asked, Report};
use super::time;
use super::videos::{Named, gather};
use crate::app::ClassifyRequest;
use crate::classify::ClassifyOptions;
use crate::classify::scores::SegmentMode;
use crate::video::TimeRange;

/// Classify videos, here or on a server
///
/// With a model on this machine, or with that of a server (--server). The exit status is 1 if any video failed; the others are
/// still classified.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Video files, pipes among them; `-` is standard input. They are decoded while they come. With --server also URIs (file,
    /// http, https, s3, gs, az), which the server reads itself if its operator allows them
    #[arg(required_unless_present = "from", value_name = "VIDEO")]
    videos: Vec<PathBuf>,

    /// Also classify the files and URIs that this file names, one a line; `-` is standard input. Names are taken as they are,
    /// byte by byte
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    /// Take the videos in directories that are named, and in those below them: files with the usual endings, such as .mp4
    #[arg(long)]
    recursive: bool,

    #[command(flatten)]
    answer: AnswerArgs,

    #[command(flatten)]
    part: PartArgs,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    pub(super) backend: BackendArgs,
}

/// What is asked about a video.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Answer")]
struct AnswerArgs {
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

    /// Let each clip count as much as it has different frames, instead of the same for all as in the paper: the last one is
    /// often short and repeated
    #[arg(long)]
    weight_by_frames: bool,

    /// Give the network's features of each video too, the mean over its clips: in JSON, as they are many numbers
    #[arg(long)]
    embedding: bool,
}

/// What of a video is looked at.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Part of a video")]
struct PartArgs {
    /// Begin at this time of each video, such as 1:23:45, 90 (seconds) or 1m30s
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    start: Option<Duration>,

    /// End at this time of each video
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    end: Option<Duration>,

    /// Look at every n-th clip only
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    clip_stride: u32,

    /// Look at so many clips of a video at most. Of a pipe no more is read than they need
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_clips: Option<u64>,
}

/// How and where answers are written.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Output")]
struct OutputArgs {
    /// Print one JSON object a video, a line each. A name that is no UTF-8 text is written with `\xNN` for each byte that is
    /// none and `\\` for a backslash; `"video_escaped": true` says so
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
    args.backend.announce();
    let mut videos = gather(&args.videos, args.from.as_deref(), args.recursive)?;
    let mut out = match &args.output.output {
        Some(path) => Out::file(path, args.output.resume)?,
        None => Out::stdout(args.output.json),
    };
    let asked = videos.len();
    videos.retain(|video| !out.has(video.name.as_os_str()));
    if videos.len() < asked {
        eprintln!("kinetoscope: {} of {asked} videos were done before", asked - videos.len());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let failed = runtime.block_on(classify_all(&args, videos, &mut out))?;
    // A read of a pipe may still wait for bytes that nobody wants.
    runtime.shutdown_background();
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Gives the number of videos that failed.
async fn classify_all(args: &Args, videos: Vec<Named>, out: &mut Out) -> anyhow::Result<usize> {
    let backend = Arc::new(Backend::start(&args.backend).await?);
    let request = request(args);
    let asked = Asked { segments: args.answer.segments.is_some(), threshold: args.answer.threshold };
    let progress = Arc::new(Progress::new(videos.len()));
    let mut waiting = videos.into_iter().enumerate();
    let mut tasks = JoinSet::new();
    let mut failed = 0;
    loop {
        while tasks.len() < usize::from(args.backend.concurrency)
            && let Some((index, video)) = waiting.next()
        {
            let (backend, request, progress) = (Arc::clone(&backend), request.clone(), Arc::clone(&progress));
            tasks.spawn(async move {
                let answer = match &video.trouble {
                    Some(trouble) => Err(anyhow!("{trouble}")),
                    None => backend.classify(&video.name, &request, &Watch::new(Some(&progress))).await,
                };
                (index, video, answer)
            });
        }
        let Some(ended) = tasks.join_next().await else { break };
        let (index, video, answer) = ended?;
        let report = match answer {
            Ok(answer) => Some(Report::new(video.name.as_os_str(), answer, asked)),
            Err(error) => {
                failed += 1;
                progress.suspend(|| eprintln!("kinetoscope: {}: {}", video.title(), super::with_causes(&error)));
                None
            }
        };
        progress.done(report.is_none());
        progress.suspend(|| out.put(index, report))?;
    }
    Ok(failed)
}

fn request(args: &Args) -> ClassifyRequest {
    let options = ClassifyOptions {
        top_k: (args.answer.top_k > 0).then_some(args.answer.top_k as usize),
        score_threshold: args.answer.threshold,
        segments: args.answer.segments.map(|segments| match segments {
            Segments::Merged => SegmentMode::Merged,
            Segments::Clips => SegmentMode::Clips,
        }),
        embedding: args.answer.embedding,
        range: TimeRange { start: args.part.start.unwrap_or_default(), end: args.part.end },
        clip_stride: args.part.clip_stride as usize,
        max_clips: args.part.max_clips,
        weight_by_frames: args.answer.weight_by_frames,
        ..ClassifyOptions::default()
    };
    ClassifyRequest { model: args.backend.model_selector(), options, ..ClassifyRequest::default() }
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
    File { file: File, path: PathBuf, done: HashSet<OsString> },
}

impl Out {
    fn stdout(json: bool) -> Self {
        Self { target: Target::Stdout { json, next: 0, early: BTreeMap::new() }, warned: Vec::new() }
    }

    fn file(path: &Path, resume: bool) -> anyhow::Result<Self> {
        let context = || format!("can't write to {}", escaped(path.as_os_str()));
        let mut file = File::options().create(true).append(true).read(true).open(path).with_context(context)?;
        let done = match file.metadata().with_context(context)?.len() {
            0 => HashSet::new(),
            _ if resume => mend(&mut file).with_context(context)?,
            _ => bail!("{}: it is there already; --resume goes on with it", context()),
        };
        Ok(Self { target: Target::File { file, path: path.to_owned(), done }, warned: Vec::new() })
    }

    /// Whether the file has this video's answer from an earlier run.
    fn has(&self, name: &OsStr) -> bool {
        matches!(&self.target, Target::File { done, .. } if done.contains(name))
    }

    fn put(&mut self, index: usize, report: Option<Report>) -> anyhow::Result<()> {
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
                    if *json {
                        println!("{}", report.to_json());
                    } else {
                        print!("{}", report.to_text());
                    }
                }
                Ok(())
            }
            // In one call, so that a line is there as a whole or is the last.
            Target::File { file, path, .. } => report.map_or(Ok(()), |report| {
                let line = report.to_json() + "\n";
                file.write_all(line.as_bytes()).with_context(|| format!("can't write to {}", escaped(path.as_os_str())))
            }),
        }
    }
}

/// Takes off the last line of an earlier run if it was cut off, and gives the names of the videos that are done.
fn mend(file: &mut File) -> anyhow::Result<HashSet<OsString>> {
    let mut done = HashSet::new();
    let mut lines = BufReader::new(&*file);
    let (mut whole, mut line) = (0, Vec::new());
    for number in 1.. {
        line.clear();
        let len = lines.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            break;
        }
        whole += len as u64;
        done.extend(name_in(&line).with_context(|| format!("line {number} is no answer of an earlier run"))?);
    }
    file.set_len(whole)?;
    file.seek(std::io::SeekFrom::End(0))?;
    Ok(done)
}

/// The name in a line of output; none in lines of other programs.
fn name_in(line: &[u8]) -> anyhow::Result<Option<OsString>> {
    let value: serde_json::Value = serde_json::from_slice(line)?;
    let Some(video) = value.get("video").and_then(|video| video.as_str()) else { return Ok(None) };
    match value.get("video_escaped").and_then(|escaped| escaped.as_bool()) {
        Some(true) => unescaped(video).map(Some).context("the video's name is not escaped"),
        _ => Ok(Some(video.into())),
    }
}
