//! Keeps a server at twice what it can do for minutes, with clients that misbehave among those that do not, and checks
//! that every answer is the right one, that refusals are the clear ones, and that nothing grows or is left behind.
//!
//!     cargo build --release && cargo run --release --example soak -- VIDEO... --duration 10m
//!
//! The right answers are those of `kinetoscope classify` without a server. The exit status is 1 if anything is wrong.

mod clients;
mod process;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Parser;
use clients::{Clients, Kind, Tally, Video};
use kinetoscope::bench::serve::{Arrivals, Load, Payload, run};
use kinetoscope::client::{Client, Connection};
use kinetoscope::model::counter::CounterStream;
use kinetoscope::proto;
use process::{Server, Usage};
use tokio::task::JoinSet;

#[derive(Parser)]
struct Args {
    /// Videos that clients send, in turn
    #[arg(required = true)]
    videos: Vec<PathBuf>,

    /// The program
    #[arg(long, default_value = "target/release/kinetoscope")]
    kinetoscope: PathBuf,

    /// How long the load lasts
    #[arg(long, default_value = "10m")]
    duration: humantime::Duration,

    /// Videos sent a second, as a multiple of what the server can answer
    #[arg(long, default_value_t = 2.0)]
    overload: f64,

    /// Time that a well-behaved call may take
    #[arg(long, default_value = "30s")]
    timeout: humantime::Duration,

    /// Threads that the server computes with
    #[arg(long, default_value_t = 2)]
    threads: usize,

    /// Which clients do what, and when
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A server may grow by so much after the first fifth of the load, which fills allocators and caches.
const MAX_GROWTH: u64 = 64 << 20;

/// Time in which a server without load must have let go of everything.
const SETTLE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let videos = right_answers(&args)?;
    let spool = tempfile::tempdir()?;
    let mut server = Server::start(&args.kinetoscope, args.threads, spool.path())?;
    let connection = Connection { server: server.address.clone(), ..Connection::default() };
    let client = Client::connect(&connection, Duration::from_secs(5)).await?;

    let capacity = capacity(&client, &videos, args.timeout.into()).await?;
    println!("capacity {capacity:.1} videos a second; load {:.1} for {}", capacity * args.overload, args.duration);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = server.usage()?;

    let clients = Arc::new(Clients { connection, videos, timeout: args.timeout.into() });
    let (tally, samples) = load(&args, capacity, &clients, &server).await?;
    let settled = settle(&server, &before).await?;
    // One of each video more: the server is as good as before.
    let mut after = Tally::default();
    for index in 0..clients.videos.len() {
        clients.call(Kind::Unary, index as u64, &CounterStream::new(args.seed, "after"), &mut after).await;
    }
    let exit = server.stop()?;

    tally.print();
    let warm = &samples[samples.len() / 5];
    let last = samples.last().context("the load was too short to look at the server")?;
    let peak = samples.iter().map(|usage| usage.memory).max().unwrap_or_default();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "server memory with its decoders: {:.0} MiB before, {:.0} MiB after a fifth, {:.0} MiB at the end, {:.0} MiB at most",
        mib(before.memory),
        mib(warm.memory),
        mib(last.memory),
        mib(peak)
    );
    println!("before the load {before}; after it {settled}");

    let refused_after = after.count("ok") != clients.videos.len() as u64;
    let mut faults = tally.faults;
    faults.extend(after.faults);
    let mut fault = |wrong: bool, what: String| {
        if wrong {
            faults.push(what);
        }
    };
    fault(refused_after, "a server without load refuses videos".to_owned());
    fault(
        last.memory > warm.memory + MAX_GROWTH,
        format!("memory grew from {:.0} to {:.0} MiB", mib(warm.memory), mib(last.memory)),
    );
    fault(!settled.is_back_to(&before), format!("left behind: {settled}"));
    fault(!exit.success(), format!("the server ended with {exit}"));
    for line in faults.iter().take(20) {
        println!("  {line}");
    }
    println!("{} faults", faults.len());
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The videos with what the command line says about them.
fn right_answers(args: &Args) -> anyhow::Result<Vec<Video>> {
    let output = std::process::Command::new(&args.kinetoscope)
        .args(["classify", "--json", "--top-k", "0"])
        .args(&args.videos)
        .output()
        .with_context(|| format!("can't run {}; build it first", args.kinetoscope.display()))?;
    ensure!(output.status.success(), "classify failed: {}", String::from_utf8_lossy(&output.stderr));
    let lines = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let mut answers = BTreeMap::new();
    for line in lines {
        let answer: serde_json::Value = serde_json::from_slice(line)?;
        let labels = answer["labels"].as_array().context("an answer without labels")?;
        let score = |label: &serde_json::Value| {
            Some((u32::try_from(label["index"].as_u64()?).ok()?, label["score"].as_f64()? as f32))
        };
        let mut scores = labels.iter().map(score).collect::<Option<Vec<_>>>().context("a label without a score")?;
        scores.sort_by_key(|(index, _)| *index);
        let video = answer["video"].as_str().context("an answer without its video")?.to_owned();
        answers.insert(video, scores.into_iter().map(|(_, score)| score).collect::<Vec<_>>());
    }
    args.videos
        .iter()
        .map(|path| {
            let name = path.display().to_string();
            let scores = answers.remove(&name).with_context(|| format!("no answer for {name}"))?;
            Ok(Video { content: Bytes::from(std::fs::read(path)?), name, scores })
        })
        .collect()
}

/// Videos a second that eight patient clients get answered.
async fn capacity(client: &Client, videos: &[Video], timeout: Duration) -> anyhow::Result<f64> {
    let videos = videos.iter().map(|video| video.content.clone()).collect();
    let payload = Payload::Videos { videos, options: proto::ClassificationOptions::default() };
    let arrivals = Arrivals::Closed { concurrency: 8 };
    let load = Load { arrivals, duration: Duration::from_secs(10), timeout, payload };
    let report = run(std::slice::from_ref(client), load, None).await?;
    ensure!(report.errors.is_empty() && report.videos_per_second > 0.0, "without overload: {:?}", report.errors);
    Ok(report.videos_per_second)
}

/// Starts calls at fixed times whatever becomes of them, and looks at the server each second.
async fn load(
    args: &Args,
    capacity: f64,
    clients: &Arc<Clients>,
    server: &Server,
) -> anyhow::Result<(Tally, Vec<Usage>)> {
    let (duration, begun) = (Duration::from(args.duration), Instant::now());
    let period = Duration::from_secs_f64(1.0 / (capacity * args.overload));
    let (mut calls, mut tally, mut samples) = (JoinSet::new(), Tally::default(), Vec::new());
    let mut next_sample = begun;
    for index in 0u64.. {
        let due = begun + period.mul_f64(index as f64);
        if due - begun >= duration {
            break;
        }
        tokio::time::sleep_until(due.into()).await;
        let (clients, random) = (Arc::clone(clients), CounterStream::new(args.seed, &format!("call {index}")));
        calls.spawn(async move {
            let mut tally = Tally::default();
            clients.call(Kind::choose(&random), index, &random, &mut tally).await;
            tally
        });
        while let Some(ended) = calls.try_join_next() {
            tally.merge(ended?);
        }
        if Instant::now() >= next_sample {
            samples.push(server.usage()?);
            next_sample += Duration::from_secs(1);
        }
    }
    while let Some(ended) = calls.join_next().await {
        tally.merge(ended?);
    }
    Ok((tally, samples))
}

/// What the server still holds when it had time to let go.
async fn settle(server: &Server, before: &Usage) -> anyhow::Result<Usage> {
    let begun = Instant::now();
    loop {
        let usage = server.usage()?;
        if usage.is_back_to(before) || begun.elapsed() > SETTLE {
            return Ok(usage);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
