//! Sends damaged videos through isolated decoding and checks that nothing panics, hangs or is left behind.
//!
//!     cargo run --release --example mutation_drill -- DIRECTORY... --count 2000
//!
//! Half of the videos are decoded from memory and half while they are uploaded; a few callers go away in the middle.
//! The same seed gives the same damage. The exit status is 1 if anything is wrong; a decoder process that dies is
//! counted but not wrong, because that is what it is for.

mod drill;
mod mutate;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use drill::Drill;
use kinetoscope::video::{WorkerOptions, run_worker};

#[derive(Parser)]
struct Args {
    /// Videos, and directories of videos with all below them
    #[arg(required = true)]
    paths: Vec<PathBuf>,

    /// Damaged videos to decode
    #[arg(long, default_value_t = 2000)]
    count: u64,

    /// Which damage is done
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Videos decoded at a time
    #[arg(long, default_value_t = 2)]
    threads: usize,

    /// Keep damaged videos that kill a decoder, in this directory
    #[arg(long, value_name = "DIRECTORY")]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    // The decoder processes are this very program.
    if std::env::args().nth(1).as_deref() == Some("decode-worker") {
        return run_worker();
    }
    let Args { paths, count, seed, threads, keep } = Args::parse();
    let mut videos = Vec::new();
    for path in &paths {
        if let Err(error) = collect(path, &mut videos) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    println!("{count} damaged copies of {} videos, seed {seed}, {threads} at a time", videos.len());
    let begin = Instant::now();
    let outcome = Drill { videos, count, seed, threads, workers: WorkerOptions::default(), keep }.run();

    println!("\n{:>7} {:>7}  answer", "file", "upload");
    for (answer, [file, upload]) in &outcome.answers {
        println!("{file:>7} {upload:>7}  {answer}");
    }
    println!("\n{:>7}  damage", "times");
    for (mutation, times) in &outcome.mutations {
        println!("{times:>7}  {mutation}");
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let [warm, end] = outcome.memory;
    println!(
        "\n{} clips in {:.0?}, slowest video {:.1?}; memory {:.0} MiB after a tenth, {:.0} MiB at the end; largest \
         decoder process {:.0} MiB",
        outcome.clips,
        begin.elapsed(),
        outcome.slowest,
        mib(warm),
        mib(end),
        mib(outcome.worker_peak)
    );
    println!("{} videos killed their decoder process twice", outcome.crashes.len());
    for line in outcome.crashes.iter().chain(&outcome.faults) {
        println!("  {line}");
    }
    println!("{} faults", outcome.faults.len());
    if outcome.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Reads all files at and below `path`, in the order of their names.
fn collect(path: &Path, videos: &mut Vec<(String, Vec<u8>)>) -> std::io::Result<()> {
    if path.is_file() {
        videos.push((path.display().to_string(), std::fs::read(path)?));
        return Ok(());
    }
    let mut entries = std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    entries.iter().try_for_each(|entry| collect(entry, videos))
}
