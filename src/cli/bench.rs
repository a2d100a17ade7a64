//! `kinetoscope bench`.

#[cfg(feature = "cuda")]
mod gpu;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use candle_conv3d::plan::{InstructionSet, PlanOptions};
use clap::{Args as ClapArgs, Subcommand};
use serde_json::json;

use super::model::{self, DeviceArgs, EngineArgs, ShortcutArg};
use crate::bench::model::{Effort, LayerTiming, peak_rss_bytes, profile, time_batch};
use crate::engine::{CpuExecutor, Devices};
use crate::hub::ModelSource;
use crate::model::file::Model;
use crate::model::spec::ModelSpec;
use crate::model::{builtin, init};
use crate::zoo::{Architecture, resnet3d};

/// Measure speed on this machine
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Target {
    /// Time a model on clips of noise: from 8-bit RGB to logits
    Model(ModelArgs),
    /// Time decoding alone and with the transform to clips, as CPU time, on real videos
    #[cfg(feature = "video")]
    Decode(DecodeArgs),
    /// Time the loader of training: clips of random times and crops of labelled videos
    #[cfg(feature = "video")]
    Load(LoadArgs),
    /// Load a running server and tell throughput, latencies and errors as its clients see them
    #[cfg(feature = "video")]
    Serve(ServeArgs),
}

#[cfg(feature = "video")]
#[derive(Debug, ClapArgs)]
struct ServeArgs {
    /// Video files, sent in turn
    #[arg(required_unless_present = "clips", value_name = "FILE")]
    videos: Vec<PathBuf>,

    /// Send so many clips of noise a request, as pixels, instead of videos: the model without decoding
    #[arg(long, value_name = "N", conflicts_with = "videos", value_parser = clap::value_parser!(u16).range(1..=1024))]
    clips: Option<u16>,

    /// The server: HOST:PORT, https://HOST:PORT or unix:PATH
    #[arg(long, env = "KINETOSCOPE_SERVER", value_name = "URL", default_value = "127.0.0.1:50051")]
    server: String,

    #[command(flatten)]
    connection: model::ServerArgs,

    /// Closed loop: requests under way at any time, each client sending its next when it has an answer
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    concurrency: u32,

    /// Open loop instead: requests a second at fixed times, whatever the answers do. Latency counts from the time a
    /// request was due
    #[arg(long, value_name = "PER SECOND", conflicts_with = "concurrency", value_parser = parse_rate)]
    rate: Option<f64>,

    /// How long to send
    #[arg(long, value_name = "TIME", default_value = "10s")]
    duration: humantime::Duration,

    /// Time that a request may take
    #[arg(long, value_name = "TIME", default_value = "60s")]
    timeout: humantime::Duration,

    /// Connections to spread the requests over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,

    /// Name of the server's model to ask; its default one if absent
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,

    /// The server's page of metrics (see its --http), to tell how many processors decoding and the model took
    #[arg(long, value_name = "URL")]
    metrics: Option<tonic::codegen::http::Uri>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[cfg(feature = "video")]
#[derive(Debug, ClapArgs)]
struct DecodeArgs {
    /// Video files
    #[arg(required = true, value_name = "FILE")]
    videos: Vec<PathBuf>,

    /// Videos that decode at a time, one thread each, for the frames a second
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,

    /// Where videos are decoded for the frames a second; with `process`, also measure what that costs
    #[arg(long, value_enum, value_name = "WHERE", default_value = "none")]
    isolation: model::DecodeIsolation,

    /// Rounds; medians are printed
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,

    /// Print one JSON object a video, a line each
    #[arg(long)]
    json: bool,
}

#[cfg(feature = "video")]
#[derive(Debug, ClapArgs)]
struct LoadArgs {
    #[command(flatten)]
    data: super::data::DataArgs,

    /// Threads that decode; several numbers separated by commas
    #[arg(long, value_name = "THREADS", value_delimiter = ',', default_value = "1,2",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,

    /// Clips in a batch
    #[arg(long, value_name = "CLIPS", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,

    /// Measure each number of threads for at least this long
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    seconds: f32,

    /// Also train a full-width network on the batches, on the CPU, and tell which part of a step it waits for them
    #[arg(long)]
    train: bool,

    /// Depth of that network: 10, 18, 34, 50, 101, 152 or 200
    #[arg(long, value_name = "N", default_value_t = 34, requires = "train")]
    depth: u32,

    /// Print one JSON object for each number of threads, a line each
    #[arg(long)]
    json: bool,
}

#[derive(Debug, ClapArgs)]
struct ModelArgs {
    /// Model file, or one on the Hugging Face Hub as hf:ORG/REPO[/FILE][@REVISION]; a freshly initialised network (see
    /// --depth) if absent
    #[arg(long, env = "KINETOSCOPE_MODEL", value_name = "FILE")]
    model: Option<ModelSource>,

    /// Depth of the initialised network: 10, 18, 34, 50, 101, 152 or 200
    #[arg(long, value_name = "N", default_value_t = 34, conflicts_with = "model")]
    depth: u32,

    /// Shortcut of the initialised network
    #[arg(long, value_enum, default_value = "a", conflicts_with = "model")]
    shortcut: ShortcutArg,

    /// Clips in a batch; several sizes separated by commas
    #[arg(long, value_name = "CLIPS", value_delimiter = ',', default_value = "1,8",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: Vec<u16>,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    engine: EngineArgs,

    /// On CPUs: vector instructions to keep to, as `portable`, `avx2` or `avx512`; the best there are if absent
    #[arg(long, value_name = "SET", value_parser = parse_instruction_set)]
    instruction_set: Option<InstructionSet>,

    /// On GPUs: algorithms of cuDNN that are tried for a convolution, of each kind that it proposes
    #[cfg(feature = "cuda")]
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=100))]
    candidates: u16,

    /// Measure each batch size for at least this long
    #[arg(long, value_name = "SECONDS", default_value_t = Effort::default().min_time.as_secs_f32(), value_parser = parse_seconds)]
    seconds: f32,

    /// Write the logits of the last batch size's clips to this file, as little-endian f32 (n, classes), to compare them
    /// with another engine's: byte i of clip k is that of the counter stream `bench` with seed k
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,

    /// Print how each layer is computed and how long it takes, for each batch size
    #[arg(long, conflicts_with = "json")]
    layers: bool,

    /// Print one JSON object a batch size, a line each
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.target {
        Target::Model(args) => bench_model(args),
        #[cfg(feature = "video")]
        Target::Decode(args) => bench_decode(args),
        #[cfg(feature = "video")]
        Target::Load(args) => bench_load(args),
        #[cfg(feature = "video")]
        Target::Serve(args) => bench_serve(args),
    }
}

#[cfg(feature = "video")]
fn bench_serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    use crate::bench::serve::{Arrivals, Load, MetricsPage, Payload, run};
    use crate::proto;

    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("can't read {}", path.display()));
    let videos: anyhow::Result<Vec<bytes::Bytes>> = args.videos.iter().map(|path| Ok(read(path)?.into())).collect();
    let videos = videos?;
    let arrivals = match args.rate {
        Some(rate) => Arrivals::Open { rate },
        None => Arrivals::Closed { concurrency: args.concurrency as usize },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..args.connections {
            clients.push(args.connection.connect(&args.server).await?);
        }
        let name = args.model_name.unwrap_or_default();
        let payload = match args.clips {
            Some(clips) => {
                let model = clients[0].model(&name).await.map_err(|status| super::backend::describe(&status))?;
                Payload::noise(&model, clips.into())
            }
            None => {
                let model = Some(proto::ModelSelector { name, version: String::new() });
                Payload::Videos { videos, options: proto::ClassificationOptions { model, ..Default::default() } }
            }
        };
        let load = Load { arrivals, duration: args.duration.into(), timeout: args.timeout.into(), payload };
        let metrics = args.metrics.map(MetricsPage::new);
        anyhow::Ok(run(&clients, load, metrics.as_ref()).await?)
    })?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        let latency = report.latency_ms;
        println!("{} requests in {:.1} s", report.requests, report.seconds);
        println!("{:.2} videos/s, {:.2} clips/s", report.videos_per_second, report.clips_per_second);
        println!(
            "latency: median {:.1} ms, 90% {:.1} ms, 99% {:.1} ms, longest {:.1} ms",
            latency.p50, latency.p90, latency.p99, latency.max
        );
        if let Some(used) = report.processors {
            println!(
                "processors in use: {:.2} decode, {:.2} model, {:.2} rest of the server",
                used.decode, used.model, used.rest
            );
        }
        for (code, count) in &report.errors {
            println!("{code}: {count}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "video")]
fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (0.001..=1e6).contains(rate));
    rate.ok_or_else(|| "expected requests a second from 0.001 to 1000000".to_owned())
}

#[cfg(feature = "video")]
fn bench_decode(args: DecodeArgs) -> anyhow::Result<ExitCode> {
    use crate::bench::decode::{Effort, measure};

    let effort = Effort {
        isolation: args.isolation.within(&crate::video::Limits::UNLIMITED),
        threads: args.threads.into(),
        rounds: args.rounds.into(),
    };
    if !args.json {
        println!("{:>9} {:>12} {:>12} {:>7} {:>10}  video", "frames", "decode", "+ transform", "ratio", "frames/s");
    }
    let mut failed = false;
    for video in &args.videos {
        let row = match measure(video, &effort) {
            Ok(row) => row,
            Err(error) => {
                failed = true;
                eprintln!("kinetoscope: {}: {error}", video.display());
                continue;
            }
        };
        if args.json {
            println!("{}", serde_json::to_string(&row)?);
        } else {
            println!(
                "{:>9} {:>9.3} ms {:>9.3} ms {:>6.2}x {:>10.0}  {}",
                row.frames,
                row.decode_ms_per_frame,
                row.decode_transform_ms_per_frame,
                row.ratio,
                row.frames_per_second,
                row.video
            );
            if let Some(cost) = row.isolation {
                println!(
                    "{:>9} {:>9.3} ms here, {:.3} ms in a process: {:.3}x; its start {:.1} ms, its memory {:.0} MiB",
                    "request",
                    cost.request_ms_per_frame,
                    cost.isolated_request_ms_per_frame,
                    cost.isolation_ratio,
                    cost.process_start_ms,
                    cost.process_peak_rss_bytes as f64 / f64::from(1 << 20),
                );
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[cfg(feature = "video")]
fn bench_load(args: LoadArgs) -> anyhow::Result<ExitCode> {
    use crate::bench::load::{time_feeding, time_loading};
    use crate::train::loader::{Loader, LoaderOptions};

    let dataset = args.data.open()?;
    let network = if args.train { Some(initialised(args.depth, ShortcutArg::A)?) } else { None };
    let spec = network.as_ref().map_or_else(builtin::spec, |model| model.spec.clone());
    let (time, examples) = (Duration::from_secs_f32(args.seconds), dataset.train.into());
    if !args.json {
        println!("{:>7} {:>10} {:>15} {:>12} {:>8}", "threads", "clips/s", "CPU ms per clip", "ms per step", "waiting");
    }
    let mut unreadable = 0;
    for threads in args.threads {
        let options =
            LoaderOptions { batch_size: args.batch.into(), threads: threads.into(), ..LoaderOptions::default() };
        let loader = Loader::new(std::sync::Arc::clone(&examples), spec.clip, spec.preprocessing, options);
        let loading = time_loading(&loader, time)?;
        let feeding = match &network {
            Some(model) => Some(time_feeding(&loader, model, time)?),
            None => None,
        };
        unreadable = loader.unreadable().len();
        if args.json {
            println!("{}", json!({"threads": threads, "batch": args.batch, "loading": loading, "feeding": feeding}));
        } else {
            print!("{threads:>7} {:>10.1} {:>15.1}", loading.clips_per_second, loading.cpu_ms_per_clip);
            match feeding {
                Some(feeding) => {
                    println!(" {:>12.0} {:>7.1}%", feeding.ms_per_step, 100.0 * feeding.waited_fraction);
                }
                None => println!(),
            }
        }
    }
    // Which ones was logged.
    Ok(if unreadable > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn parse_instruction_set(name: &str) -> Result<InstructionSet, String> {
    let available = InstructionSet::available();
    available.iter().copied().find(|set| set.to_string() == name).ok_or_else(|| {
        let names: Vec<String> = available.iter().map(InstructionSet::to_string).collect();
        format!("this processor has {}", names.join(", "))
    })
}

fn bench_model(args: ModelArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let model = match &args.model {
        Some(source) => model::load(Some(source))?,
        None => initialised(args.depth, args.shortcut)?,
    };
    let threads = args.engine.threads();
    match args.device.choose()? {
        Devices::Cpu => {}
        #[cfg(feature = "cuda")]
        Devices::Gpus { ordinals, precision, cache } => {
            return gpu::run(&args, &model, &ordinals, precision, cache, started);
        }
    }
    let max_batch = args.batch.iter().copied().max().unwrap_or(1);
    let options = PlanOptions {
        threads,
        max_batch: max_batch.into(),
        instruction_set: args.instruction_set,
        ..PlanOptions::default()
    };
    let mut executor = CpuExecutor::with_options(&model, options)?;
    let instruction_set = executor.instruction_set();
    let load_seconds = started.elapsed().as_secs_f64();
    let spec = model.spec;
    drop(model.tensors);

    if !args.json {
        print_network(&spec);
        println!("cpu, {instruction_set}, {threads} threads, loaded in {load_seconds:.2} s");
        println!("{:>6} {:>12} {:>10} {:>10} {:>6}", "batch", "ms per clip", "clips/s", "GFLOP/s", "runs");
    }
    let effort = Effort { min_time: Duration::from_secs_f32(args.seconds), ..Effort::default() };
    let mut last_logits = Vec::new();
    for batch in args.batch {
        let (timing, logits) = time_batch(&mut executor, &spec.clip, batch.into(), effort)?;
        last_logits = logits;
        // As if every product of direct convolution were computed: comparable between algorithms.
        let gflops = 2e-9 * executor.multiply_adds() as f64 * timing.clips_per_second;
        if args.json {
            let line = json!({
                "model": spec.name, "device": "cpu", "instruction_set": instruction_set.to_string(),
                "batch": timing.batch, "threads": threads,
                "ms_per_clip": timing.ms_per_clip, "clips_per_second": timing.clips_per_second,
                "gflops_direct_equivalent": gflops, "runs": timing.runs,
                "peak_rss_bytes": peak_rss_bytes(), "load_seconds": load_seconds,
            });
            println!("{line}");
        } else {
            let (ms, clips) = (timing.ms_per_clip, timing.clips_per_second);
            println!("{batch:>6} {ms:>12.2} {clips:>10.2} {gflops:>10.0} {:>6}", timing.runs);
        }
        if args.layers {
            print_layers(&profile(&mut executor, &spec.clip, batch.into(), effort)?);
        }
    }
    if !args.json
        && let Some(peak) = peak_rss_bytes()
    {
        println!("peak memory {:.0} MiB", peak as f64 / f64::from(1 << 20));
    }
    write_logits(args.logits.as_deref(), &last_logits)?;
    Ok(ExitCode::SUCCESS)
}

fn print_network(spec: &ModelSpec) {
    let ModelSpec { name, architecture, labels, clip, .. } = spec;
    println!("{name} ({architecture}), {} classes, {} frames of {} pixels", labels.len(), clip.frames, clip.size);
}

fn write_logits(path: Option<&Path>, logits: &[f32]) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    std::fs::write(path, bytes).with_context(|| format!("can't write {}", path.display()))
}

fn parse_seconds(text: &str) -> Result<f32, String> {
    let seconds = text.parse::<f32>().ok().filter(|seconds| (0.0..=3600.0).contains(seconds));
    seconds.ok_or_else(|| "expected seconds from 0 to 3600".to_owned())
}

fn print_layers(layers: &[LayerTiming]) {
    let total: f64 = layers.iter().map(|layer| layer.ms_per_clip).sum();
    for LayerTiming { layer, ms_per_clip } in layers {
        println!(
            "       {:<24} {:<34} {:>20} {ms_per_clip:>9.3} ms {:>5.1}% {:>7.0} GFLOP/s {:>8.1} MB",
            layer.name,
            layer.algorithm.to_string(),
            format!("{:?}", layer.output),
            100.0 * ms_per_clip / total,
            2e-6 * layer.multiply_adds as f64 / ms_per_clip,
            layer.weight_bytes as f64 / 1e6,
        );
    }
}

/// A network of the paper with 400 classes and weights that mean nothing.
fn initialised(depth: u32, shortcut: ShortcutArg) -> anyhow::Result<Model> {
    let shortcut = shortcut.into();
    let architecture = Architecture::ResNet3d(resnet3d::Config::paper(depth, shortcut));
    let spec = ModelSpec {
        name: format!("resnet-{depth}-initialised"),
        trained: false,
        architecture,
        labels: (0..400).map(|class| format!("class {class}")).collect(),
        ..builtin::spec()
    };
    Ok(init::initialise(spec, 0)?)
}
