//! `kinetoscope prepare`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressStyle};

use super::data::DataArgs;
use super::train::Signals;
use crate::train::prepare::{Outcome, PrepareOptions, jobs, prepare, write_split};

/// Re-encode a dataset for faster training
///
/// Writes videos of at most 360 pixels' height, H.264 with a key frame every 16 frames, no sound. Names and folders stay, so the
/// same annotations fit. Each video is counted against its source before it gets its name. A run that was stopped, in whatever
/// way, goes on where it was; runs at the same time share the work. The exit status is 1 if any video failed; the others are still
/// done. After an interrupt it is 130, after a termination 143.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,

    /// Folder for the new videos, made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Largest height in pixels; lower videos keep theirs
    #[arg(long, value_name = "PIXELS", default_value_t = PrepareOptions::default().height,
          value_parser = clap::value_parser!(u32).range(16..=4096))]
    height: u32,

    /// Frames from one key frame to the next: less makes training faster and files larger
    #[arg(long, value_name = "FRAMES", default_value_t = PrepareOptions::default().key_frame_distance,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    key_frame_distance: u32,

    /// x264's constant rate factor: less is better and larger
    #[arg(long, value_name = "CRF", default_value_t = PrepareOptions::default().quality,
          value_parser = clap::value_parser!(u32).range(0..=51))]
    quality: u32,

    /// Videos re-encoded at a time; one for each core if absent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,

    /// The FFmpeg command
    #[arg(long, value_name = "COMMAND", default_value = "ffmpeg")]
    ffmpeg: PathBuf,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let dataset = args.data.open()?;
    let jobs = jobs(&dataset, &args.out)?;
    write_split(&dataset, &jobs, &args.out)?;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let options = PrepareOptions {
        height: args.height,
        key_frame_distance: args.key_frame_distance,
        quality: args.quality,
        jobs: args.jobs.map_or_else(cores, usize::from),
        ffmpeg: args.ffmpeg,
    };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} videos, {per_sec}, {eta} left");
    let bar = ProgressBar::new(jobs.len() as u64).with_style(style.expect("the template is right"));
    let [done, were_there, failed, stopped] = [(); 4].map(|()| AtomicUsize::new(0));
    let signals = Signals::listen("stopping")?;
    prepare(&jobs, &options, signals.token(), |job, outcome| {
        let say = |words: String| bar.suspend(|| eprintln!("kinetoscope: {}: {words}", job.from.display()));
        let counter = match outcome {
            Outcome::Done => &done,
            Outcome::WasThere => &were_there,
            Outcome::Stopped => &stopped,
            Outcome::Damaged(words) => {
                say(format!("is damaged, what could be decoded of it was re-encoded: {words}"));
                &done
            }
            Outcome::Failed(words) => {
                say(words);
                &failed
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    let [done, were_there, failed, stopped] = [done, were_there, failed, stopped].map(AtomicUsize::into_inner);
    println!("{done} videos re-encoded, {were_there} were there already, {failed} failed");
    if stopped > 0 {
        eprintln!("kinetoscope: stopped with {stopped} videos to go; the same command goes on");
        return Ok(signals.exit_code());
    }
    Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
