//! Who classifies the videos of a command: a model on this machine, or a server.

use std::error::Error;
use std::io::Read;
use std::iter;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use tokio::sync::mpsc;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::input::{Input, bytes_of, chunks};
use super::limits::LocalLimitArgs;
use super::model::{self, DecodeIsolation, DeviceArgs, EngineArgs, ServerArgs};
use super::progress::Watch;
use crate::app::{App, AppError, AppOptions, ClassifyRequest, ModelSelector, Services, VideoSource};
use crate::classify::{Classification, Classifier};
use crate::client::{Client, with_retries};
use crate::engine::{Engine, EngineConfig};
use crate::hub::ModelSource;
use crate::metrics::Metrics;
use crate::model::spec::ModelSpec;
use crate::proto;
use crate::repository::Repository;
use crate::uri;
use crate::video::{PoolOptions, ReadPosition, Source, SpoolOptions};

/// Where videos are classified: by a model on this machine or by a server.
#[derive(Debug, Args)]
pub(super) struct BackendArgs {
    /// Model file, or one on the Hugging Face Hub as hf:ORG/REPO[/FILE][@REVISION]; the built-in model if absent
    #[arg(long, env = "KINETOSCOPE_MODEL", value_name = "FILE", help_heading = "Model or server")]
    pub(super) model: Option<ModelSource>,

    /// Ask this server, such as 127.0.0.1:50051, https://HOST:PORT or unix:PATH, instead of running a model here
    #[arg(long, env = "KINETOSCOPE_SERVER", value_name = "URL", help_heading = "Model or server")]
    pub(super) server: Option<String>,

    /// Whether a variable names the server, of which not everybody thinks.
    #[arg(skip)]
    server_is_from_variable: bool,

    #[command(flatten)]
    pub(super) connection: ServerArgs,

    /// Name of the server's model to ask; its default one if absent
    #[arg(long, value_name = "NAME", requires = "server", help_heading = "Model or server")]
    pub(super) model_name: Option<String>,

    /// Give up on a video after this time
    #[arg(long, value_name = "TIME", requires = "server", help_heading = "Model or server")]
    pub(super) timeout: Option<humantime::Duration>,

    /// Try a video again so often while the server is full, stopping or away
    #[arg(long, value_name = "N", default_value_t = 8, requires = "server", help_heading = "Model or server")]
    pub(super) retries: u32,

    /// Videos worked on at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Work")]
    pub(super) concurrency: u16,

    #[command(flatten)]
    pub(super) device: DeviceArgs,

    #[command(flatten)]
    pub(super) engine: EngineArgs,

    /// Where videos are decoded: in locked-in processes (`process`), so that a video that breaks a decoder breaks
    /// nothing else, or in this one (`none`)
    #[arg(
        long,
        env = "KINETOSCOPE_DECODE_ISOLATION",
        value_enum,
        value_name = "WHERE",
        default_value = "process",
        help_heading = "Work"
    )]
    pub(super) decode_isolation: DecodeIsolation,

    /// Where what comes through pipes is kept while it is worked on, without a name; the system's directory for temporary
    /// files if absent
    #[arg(long, value_name = "DIR", help_heading = "Work")]
    spool: Option<PathBuf>,

    #[command(flatten)]
    pub(super) limits: LocalLimitArgs,
}

impl BackendArgs {
    /// Settles who classifies where arguments and variables name both a model and a server: arguments win over variables.
    /// Also finds arguments that are of no use to who it is.
    pub(super) fn settle(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let conflict =
            |message: String| Err(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, message + "\n"));
        let is_argument = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        match (is_argument("model"), is_argument("server")) {
            (true, true) => {
                return conflict("--model runs a model here and --server asks another machine: give one".into());
            }
            (true, false) => self.server = None,
            (false, _) if self.server.is_some() => self.model = None,
            (false, _) => {}
        }
        self.server_is_from_variable = self.server.is_some() && !is_argument("server");
        if self.server.is_some()
            && let Some(flag) = self.limits.given()
        {
            return conflict(format!("{flag} is for videos that are decoded here; a server has limits of its own"));
        }
        Ok(())
    }

    /// Tells people what they may not expect of a command without --server.
    pub(super) fn announce(&self) {
        if let Some(server) = self.server.as_ref().filter(|_| self.server_is_from_variable) {
            eprintln!("kinetoscope: asking the server {server}, which KINETOSCOPE_SERVER names");
        }
    }

    /// The server's model to ask.
    pub(super) fn model_selector(&self) -> ModelSelector {
        ModelSelector { name: self.model_name.clone().unwrap_or_default(), version: String::new() }
    }
}

/// Where videos are classified.
pub(super) enum Backend {
    Local(Box<Local>),
    Server(Box<Server>),
}

/// A model of this machine.
pub(super) struct Local {
    pub(super) model: Arc<ModelSpec>,
    models: Arc<Repository>,
    app: App,
    spool: SpoolOptions,
}

/// Another process, often on another machine.
pub(super) struct Server {
    pub(super) client: Client,
    timeout: Option<std::time::Duration>,
    retries: u32,
    spool: SpoolOptions,
}

/// Files of more bytes are streamed, not sent as one message.
const UPLOAD_FROM: u64 = 1 << 20;

/// Clips whose answers wait to be told.
const CLIPS_AHEAD: usize = 16;

impl Backend {
    pub(super) async fn start(args: &BackendArgs) -> anyhow::Result<Self> {
        if let Some(server) = &args.server {
            let spool = spool_options(args);
            let client = args.connection.connect(server).await?;
            let (timeout, retries) = (args.timeout.map(Into::into), args.retries);
            return Ok(Self::Server(Box::new(Server { client, timeout, retries, spool })));
        }
        Self::start_here(args, args.model.as_ref())
    }

    /// Runs a model on this machine, whatever the arguments say of servers; the built-in one if none is named.
    pub(super) fn start_here(args: &BackendArgs, source: Option<&ModelSource>) -> anyhow::Result<Self> {
        let (limits, spool) = (args.limits.limits(), spool_options(args));
        let threads = args.engine.threads();
        let metrics = Arc::new(Metrics::default());
        let devices = args.device.choose()?;
        let config = EngineConfig::new(threads, devices.default_max_batch());
        let engine = Engine::start_on(&devices, model::load(source)?, config, &metrics)?;
        let pool = PoolOptions { threads, open_videos: args.concurrency.into() };
        let isolation = args.decode_isolation.within(&limits);
        let classifier = Classifier::new(limits, isolation, pool, Arc::clone(&metrics));
        let model = Arc::clone(engine.spec());
        let models = Arc::new(Repository::of(vec![engine]));
        let services = Services { classifier, models: Arc::clone(&models), metrics };
        let options = AppOptions { max_requests: args.concurrency.into(), ..AppOptions::default() };
        Ok(Self::Local(Box::new(Local { model, models, app: App::local(services, options), spool })))
    }

    /// Classifies a file, what comes through a pipe, or what a URI names, and lets `watch` see how far that is.
    pub(super) async fn classify(
        &self,
        name: &Path,
        request: &ClassifyRequest,
        watch: &Watch<'_>,
    ) -> anyhow::Result<Classification> {
        match self {
            Self::Local(_) if names_uri(name) => bail!("a URI is for a server to read: name one with --server"),
            Self::Local(local) => local.classify(name, request, watch).await,
            Self::Server(server) if names_uri(name) => server.classify_uri(name, request).await,
            Self::Server(server) => server.classify(name, request, watch).await,
        }
    }
}

impl Local {
    /// What runs the model.
    pub(super) fn engine(&self) -> anyhow::Result<Arc<Engine>> {
        self.models.served().engines().next().cloned().context("the model has ended")
    }

    async fn classify(
        &self,
        name: &Path,
        request: &ClassifyRequest,
        watch: &Watch<'_>,
    ) -> anyhow::Result<Classification> {
        match open(name, &self.spool).await? {
            Input::File(file, len) => {
                watch.reads(len);
                self.run(Source::File(file), request, watch).await
            }
            Input::Frames(bytes) => self.run(Source::Bytes(bytes), request, watch).await,
            Input::Stream(reader, coming) => coming.or_failure(self.run(Source::Spool(reader), request, watch)).await,
        }
    }

    async fn run(
        &self,
        source: Source,
        request: &ClassifyRequest,
        watch: &Watch<'_>,
    ) -> anyhow::Result<Classification> {
        let position = ReadPosition::default();
        let source = Source::Watched(Box::new(source), position.clone());
        let (sender, mut clips) = mpsc::channel(CLIPS_AHEAD);
        let classify = async {
            // The sender ends with this block, and with it the stream of clips.
            let sender = sender;
            self.app.classify(VideoSource::Local(source), request, Some(&sender)).await
        };
        let tell = async {
            while let Some(clip) = clips.recv().await {
                watch.clip(clip.end, position.get());
            }
        };
        let (answer, ()) = tokio::join!(classify, tell);
        answer.map_err(explain)
    }
}

impl Server {
    async fn classify(
        &self,
        name: &Path,
        request: &ClassifyRequest,
        watch: &Watch<'_>,
    ) -> anyhow::Result<Classification> {
        match open(name, &self.spool).await? {
            Input::File(file, len) if len <= UPLOAD_FROM => {
                let mut content = vec![0; len as usize];
                file.read_exact_at(&mut content, 0)?;
                self.send(content.into(), request).await
            }
            Input::Frames(bytes) => self.send(bytes, request).await,
            Input::File(file, _) => self.upload(|| bytes_of(&file), request, watch).await,
            Input::Stream(reader, coming) => {
                let bytes = || {
                    let mut reader = reader.clone();
                    move |out: &mut [u8]| reader.read(out)
                };
                coming.or_failure(self.upload(bytes, request, watch)).await
            }
        }
    }

    async fn classify_uri(&self, uri: &Path, request: &ClassifyRequest) -> anyhow::Result<Classification> {
        let uri = uri.to_str().context("the URI is not UTF-8")?;
        self.call(request, |mut client, options| async move {
            client.classify_uri(uri.to_owned(), options, self.timeout).await
        })
        .await
    }

    /// Sends a video in one message.
    async fn send(&self, content: Bytes, request: &ClassifyRequest) -> anyhow::Result<Classification> {
        let content = &content;
        self.call(request, |mut client, options| async move {
            client.classify_video(content.clone(), options, self.timeout).await
        })
        .await
    }

    /// Sends a video while it is read, which each try does anew.
    async fn upload<R>(
        &self,
        bytes: impl Fn() -> R,
        request: &ClassifyRequest,
        watch: &Watch<'_>,
    ) -> anyhow::Result<Classification>
    where
        R: FnMut(&mut [u8]) -> std::io::Result<usize> + Send + 'static,
    {
        let bytes = &bytes;
        self.call(request, |mut client, options| async move {
            watch.begins();
            client.classify_upload(chunks(bytes()), options, self.timeout, |event| watch.event(event)).await
        })
        .await
    }

    /// Calls the server, again where that may help.
    async fn call<F>(
        &self,
        request: &ClassifyRequest,
        call: impl Fn(Client, proto::ClassificationOptions) -> F,
    ) -> anyhow::Result<Classification>
    where
        F: Future<Output = Result<proto::VideoClassification, Status>>,
    {
        let call = || call(self.client.clone(), request.into());
        let answer = with_retries(self.retries, call).await;
        answer.map(Classification::from).map_err(|status| describe(&status))
    }
}

/// What a failure here is in words: nobody reads a log for the rest.
fn explain(error: AppError) -> anyhow::Error {
    match error.detail {
        Some(detail) => anyhow::anyhow!(detail),
        None => error.into(),
    }
}

fn spool_options(args: &BackendArgs) -> SpoolOptions {
    let max_bytes = args.limits.limits().max_bytes;
    SpoolOptions { max_bytes, directory: args.spool.clone(), ..SpoolOptions::default() }
}

/// Whether an argument is a URI and no file of this machine.
fn names_uri(path: &Path) -> bool {
    path.to_str().is_some_and(uri::is_uri) && !path.exists()
}

async fn open(name: &Path, spool: &SpoolOptions) -> anyhow::Result<Input> {
    let (name, spool) = (name.to_owned(), spool.clone());
    Ok(tokio::task::spawn_blocking(move || Input::open(&name, spool)).await??)
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
