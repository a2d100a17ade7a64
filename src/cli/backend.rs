//! Who classifies the videos of a command: a model on this machine, or a server.

use std::error::Error;
use std::io::Read;
use std::iter;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tracing::warn;

use super::model::{self, DecodeIsolation, DeviceArgs, EngineArgs, ServerArgs};
use crate::classify::Classifier;
use crate::engine::{Engine, EngineConfig};
use crate::hub::ModelSource;
use crate::metrics::Metrics;
use crate::rpc::client::{Client, with_retries};
use crate::rpc::proto;
use crate::train::dataset::frames_as_video;
use crate::uri;
use crate::video::{Limits, PoolOptions, Source};

/// Where videos are classified: by a model on this machine or by a server.
#[derive(Debug, Args)]
pub(super) struct BackendArgs {
    /// Model file, or one on the Hugging Face Hub as hf:ORG/REPO[/FILE][@REVISION]; the built-in model if absent
    #[arg(long, env = "KINETOSCOPE_MODEL", value_name = "FILE", conflicts_with = "server")]
    pub(super) model: Option<ModelSource>,

    /// Ask this server, such as 127.0.0.1:50051, instead of running a model here
    #[arg(long, env = "KINETOSCOPE_SERVER", value_name = "URL")]
    pub(super) server: Option<String>,

    #[command(flatten)]
    pub(super) connection: ServerArgs,

    /// Name of the server's model to ask; its default one if absent
    #[arg(long, value_name = "NAME", requires = "server")]
    pub(super) model_name: Option<String>,

    /// Give up on a video after this time
    #[arg(long, value_name = "TIME", requires = "server")]
    pub(super) timeout: Option<humantime::Duration>,

    /// Try a video again so often while the server is full, stopping or away
    #[arg(long, value_name = "N", default_value_t = 8, requires = "server")]
    pub(super) retries: u32,

    /// Videos worked on at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) concurrency: u16,

    #[command(flatten)]
    pub(super) device: DeviceArgs,

    #[command(flatten)]
    pub(super) engine: EngineArgs,

    /// Where videos are decoded: in locked-in processes (`process`), so that a video that breaks a decoder breaks
    /// nothing else, or in this one (`none`)
    #[arg(long, env = "KINETOSCOPE_DECODE_ISOLATION", value_enum, value_name = "WHERE", default_value = "process")]
    pub(super) decode_isolation: DecodeIsolation,
}

impl BackendArgs {
    /// The server's model to ask; its default one if `None`.
    pub(super) fn model_selector(&self) -> Option<proto::ModelSelector> {
        let name = self.model_name.clone()?;
        Some(proto::ModelSelector { name, version: String::new() })
    }
}

/// Where videos are classified.
pub(super) enum Backend {
    Local { engine: Box<Engine>, classifier: Box<Classifier> },
    Server { client: Box<Client>, timeout: Option<std::time::Duration>, retries: u32 },
}

impl Backend {
    pub(super) async fn start(args: &BackendArgs) -> anyhow::Result<Self> {
        if let Some(server) = &args.server {
            let client = Box::new(args.connection.connect(server).await?);
            return Ok(Self::Server { client, timeout: args.timeout.map(Into::into), retries: args.retries });
        }
        let threads = args.engine.threads();
        let metrics = Arc::new(Metrics::default());
        let devices = args.device.choose()?;
        let config = EngineConfig::new(threads, devices.default_max_batch());
        let engine = Engine::start_on(&devices, model::load(args.model.as_ref())?, config, &metrics)?;
        let pool = PoolOptions { threads, open_videos: args.concurrency.into() };
        let classifier = Classifier::new(Limits::default(), args.decode_isolation.into(), pool, metrics);
        Ok(Self::Local { engine: Box::new(engine), classifier: Box::new(classifier) })
    }

    pub(super) async fn classify(
        &self,
        path: &Path,
        options: &proto::ClassificationOptions,
    ) -> anyhow::Result<proto::VideoClassification> {
        match self {
            Self::Local { .. } if names_uri(path) => bail!("a URI is for a server to read: name one with --server"),
            Self::Local { engine, classifier } => {
                let source = match bytes_of(path)? {
                    Some(bytes) => Source::Bytes(bytes),
                    None => Source::Path(path.to_owned()),
                };
                Ok(classifier.classify(engine, source, &options.try_into()?, None).await?.into())
            }
            Self::Server { client, timeout, retries } if names_uri(path) => {
                let uri = path.to_str().context("the URI is not UTF-8")?;
                let call = || async {
                    let (mut client, options) = (Client::clone(client), options.clone());
                    client.classify_uri(uri.to_owned(), options, *timeout).await
                };
                with_retries(*retries, call).await.map_err(|status| describe(&status))
            }
            Self::Server { client, timeout, retries } => {
                let content = match bytes_of(path)? {
                    Some(bytes) => Some(bytes),
                    None if tokio::fs::metadata(path).await?.len() <= UPLOAD_FROM => {
                        Some(tokio::fs::read(path).await?.into())
                    }
                    None => None,
                };
                let call = || async {
                    let (mut client, options) = (Client::clone(client), options.clone());
                    match &content {
                        Some(content) => client.classify_video(content.clone(), options, *timeout).await,
                        None => {
                            let file = tokio::fs::File::open(path).await?;
                            client.classify_upload(chunks(file), options, *timeout, |_| {}).await
                        }
                    }
                };
                with_retries(*retries, call).await.map_err(|status| describe(&status))
            }
        }
    }
}

/// Whether an argument is a URI and no file of this machine.
fn names_uri(path: &Path) -> bool {
    path.to_str().is_some_and(uri::is_uri) && !path.exists()
}

/// Files of more bytes are streamed, not sent as one message.
const UPLOAD_FROM: u64 = 1 << 20;

/// A file's bytes as they are wanted. One that can't be read to its end is cut off there, which the server notices.
fn chunks(mut file: tokio::fs::File) -> impl Stream<Item = Bytes> + Send + 'static {
    const CHUNK: usize = 256 << 10;
    let (sender, chunks) = mpsc::channel(2);
    tokio::spawn(async move {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            match (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await {
                Ok(0) => break,
                Ok(_) if sender.send(chunk.into()).await.is_ok() => {}
                Ok(_) => break,
                Err(error) => {
                    warn!(%error, "the video can't be read to its end");
                    break;
                }
            }
        }
    });
    ReceiverStream::new(chunks)
}

/// Bytes of what is no file: standard input if the path is `-`, and the video that a folder of frames makes.
fn bytes_of(path: &Path) -> anyhow::Result<Option<Bytes>> {
    if path.is_dir() {
        return Ok(Some(frames_as_video(path)?));
    }
    if path != Path::new("-") {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(Some(bytes.into()))
}

/// A server's refusal in words.
#[derive(Debug, thiserror::Error)]
#[error("{code:?}{reason}: {message}")]
pub(super) struct Refusal {
    pub(super) code: Code,
    reason: String,
    message: String,
}

#[cfg(test)]
impl Refusal {
    pub(super) fn of(code: Code) -> Self {
        Self { code, reason: String::new(), message: String::new() }
    }
}

pub(super) fn describe(status: &Status) -> anyhow::Error {
    let reason = status.get_details_error_info().map_or_else(String::new, |info| format!(" ({})", info.reason));
    // An error of the connection tells what it is by its causes only.
    let causes = iter::successors(status.source(), |&error| error.source()).map(ToString::to_string);
    let message = super::words_of(iter::once(status.message().to_owned()).chain(causes));
    Refusal { code: status.code(), reason, message }.into()
}
