//! `kinetoscope classify`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use clap::{Args as ClapArgs, ValueEnum};
use humantime::Duration;
use tonic::Status;
use tonic_types::StatusExt;

use super::model::{self, DecodeIsolation, EngineArgs};
use super::report::Report;
use crate::classify::{Classifier, ClassifyOptions};
use crate::engine::{Engine, EngineConfig};
use crate::metrics::Metrics;
use crate::rpc::client::Client;
use crate::rpc::proto;
use crate::video::{Limits, PoolOptions, Source};

/// Classifies videos with a model on this machine, or on a server with --server. The exit status is 1 if any video
/// failed; the others are still classified.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Video files; `-` reads one from standard input
    #[arg(required = true, value_name = "VIDEO")]
    videos: Vec<PathBuf>,

    /// Model file; the built-in model if absent
    #[arg(long, env = "KINETOSCOPE_MODEL", value_name = "FILE", conflicts_with = "server")]
    model: Option<PathBuf>,

    /// Ask this server, such as 127.0.0.1:50051, instead of running a model here
    #[arg(long, env = "KINETOSCOPE_SERVER", value_name = "URL")]
    server: Option<String>,

    /// Name of the server's model to ask; its default one if absent
    #[arg(long, value_name = "NAME", requires = "server")]
    model_name: Option<String>,

    /// Give up on a video after this time
    #[arg(long, value_name = "TIME", requires = "server")]
    timeout: Option<Duration>,

    #[command(flatten)]
    engine: EngineArgs,

    /// Where videos are decoded: in locked-in processes (`process`), so that a video that breaks a decoder breaks
    /// nothing else, or in this one (`none`)
    #[arg(long, env = "KINETOSCOPE_DECODE_ISOLATION", value_enum, value_name = "WHERE", default_value = "process")]
    decode_isolation: DecodeIsolation,

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

    /// Print one JSON object a video, a line each
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Segments {
    Merged,
    Clips,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let options = proto::ClassificationOptions {
        model: args.model_name.clone().map(|name| proto::ModelSelector { name, version: String::new() }),
        top_k: Some(args.top_k),
        score_threshold: args.threshold,
        segments: match args.segments {
            None => proto::SegmentMode::Unspecified,
            Some(Segments::Merged) => proto::SegmentMode::Merged,
            Some(Segments::Clips) => proto::SegmentMode::Clip,
        }
        .into(),
        ..Default::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut backend = Backend::start(&args).await?;
        let mut printer = Printer { json: args.json, warned: Vec::new() };
        let mut failed = false;
        for path in &args.videos {
            match backend.classify(path, &options).await {
                Ok(answer) => {
                    let video = path.display().to_string();
                    printer.print(&Report::new(video, answer, args.segments.is_some()))?;
                }
                Err(error) => {
                    failed = true;
                    eprintln!("kinetoscope: {}: {error:#}", path.display());
                }
            }
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })
}

/// Where videos are classified.
enum Backend {
    Local { engine: Box<Engine>, classifier: Classifier },
    Server { client: Client, timeout: Option<std::time::Duration> },
}

impl Backend {
    async fn start(args: &Args) -> anyhow::Result<Self> {
        if let Some(server) = &args.server {
            const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
            let client = Client::connect(server, CONNECT_TIMEOUT)
                .await
                .with_context(|| format!("can't connect to the server {server}"))?;
            return Ok(Self::Server { client, timeout: args.timeout.map(Into::into) });
        }
        let config = EngineConfig { threads: args.engine.threads(), ..EngineConfig::default() };
        let metrics = Arc::new(Metrics::default());
        let engine = Engine::start(model::load(args.model.as_deref())?, config, &metrics)?;
        let pool = PoolOptions { threads: 1, open_videos: 1 };
        let classifier = Classifier::new(Limits::default(), args.decode_isolation.into(), pool, metrics);
        Ok(Self::Local { engine: Box::new(engine), classifier })
    }

    async fn classify(
        &mut self,
        path: &Path,
        options: &proto::ClassificationOptions,
    ) -> anyhow::Result<proto::VideoClassification> {
        match self {
            Self::Local { engine, classifier } => {
                let source = match read_stdin(path)? {
                    Some(bytes) => Source::Bytes(bytes),
                    None => Source::Path(path.to_owned()),
                };
                Ok(classifier.classify(engine, source, &options.try_into()?, None).await?.into())
            }
            Self::Server { client, timeout } => {
                let content = match read_stdin(path)? {
                    Some(bytes) => bytes,
                    None => tokio::fs::read(path).await?.into(),
                };
                client.classify_video(content, options.clone(), *timeout).await.map_err(|status| describe(&status))
            }
        }
    }
}

/// Standard input's bytes if the path is `-`.
fn read_stdin(path: &Path) -> std::io::Result<Option<Bytes>> {
    if path != Path::new("-") {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(Some(bytes.into()))
}

/// A server's refusal in words.
fn describe(status: &Status) -> anyhow::Error {
    let reason = status.get_details_error_info().map_or_else(String::new, |info| format!(" ({})", info.reason));
    anyhow::anyhow!("{:?}{reason}: {}", status.code(), status.message())
}

struct Printer {
    json: bool,
    warned: Vec<String>,
}

impl Printer {
    fn print(&mut self, report: &Report) -> std::io::Result<()> {
        // A warning is about the model, so once is enough.
        for warning in report.warnings() {
            if !self.warned.contains(warning) {
                eprintln!("kinetoscope: warning: {warning}");
                self.warned.push(warning.clone());
            }
        }
        let mut out = std::io::stdout().lock();
        if self.json { writeln!(out, "{}", report.to_json()) } else { out.write_all(report.to_text().as_bytes()) }
    }
}
