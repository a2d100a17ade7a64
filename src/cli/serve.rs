//! `kinetoscope serve`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use bytesize::ByteSize;
use clap::Args as ClapArgs;
use humantime::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use super::limits::ServerLimitArgs;
use super::model::{DecodeIsolation, DeviceArgs, EngineArgs};
use crate::classify::Classifier;
use crate::config;
use crate::engine::EngineConfig;
use crate::hub::ModelSource;
use crate::metrics::Metrics;
use crate::repository::{self, Repository, RepositoryOptions};
use crate::server::{
    self, AllowedOrigin, Credentials, ListenAddress, Listener, Listeners, Pace, ServeOptions, Services, TlsFiles,
    process,
};
use crate::uri::{Prefix, UriOptions, Uris};
use crate::video::{PoolOptions, WorkerOptions};

const NETWORK: &str = "Network";
const MODELS: &str = "Models";
const WORK: &str = "Work";
const LOAD: &str = "Load";
const VIDEOS_BY_URI: &str = "Videos by URI";

/// Serve models over gRPC and HTTP, with a page for browsers
///
/// Serves until SIGTERM or SIGINT, then lets running requests finish; a second signal stops at once.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Settings from a TOML file: a key is a flag's name with `_` for `-`, as in `max_batch = 16`. A flag wins over its
    /// variable, that over the file
    #[arg(long, env = "KINETOSCOPE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Check settings, files and models, and end without serving
    #[arg(long)]
    check: bool,

    /// Where to listen: HOST:PORT, port 0 being a free one, or unix:PATH, a socket in the file system. Beyond loopback, turn on
    /// --tls-certificate and --tokens
    #[arg(long, env = "KINETOSCOPE_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:50051", help_heading = NETWORK)]
    listen: ListenAddress,

    /// Certificate for TLS, a PEM file with those between it and its root; connections are not encrypted if absent
    #[arg(long, env = "KINETOSCOPE_TLS_CERTIFICATE", value_name = "FILE", requires = "tls_key", help_heading = NETWORK)]
    tls_certificate: Option<PathBuf>,

    /// Private key of the certificate, a PEM file
    #[arg(long, env = "KINETOSCOPE_TLS_KEY", value_name = "FILE", requires = "tls_certificate", help_heading = NETWORK)]
    tls_key: Option<PathBuf>,

    /// Roots of the certificates that clients have to show (mTLS), a PEM file; clients need none if absent
    #[arg(long, env = "KINETOSCOPE_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_certificate", help_heading = NETWORK)]
    tls_client_ca: Option<PathBuf>,

    /// Tokens that clients have to send, a file of lines `NAME SHA256 [REQUESTS]`: a name for the log, what
    /// `printf %s TOKEN | sha256sum` prints, calls at a time. Everybody may call if absent
    #[arg(long, env = "KINETOSCOPE_TOKENS", value_name = "FILE", help_heading = NETWORK)]
    tokens: Option<PathBuf>,

    /// Let web pages of this origin call, such as https://app.example.org; may be given several times. Pages of the server itself
    /// always may. Also a host by which a server on loopback is known, as behind a reverse proxy
    #[arg(long, env = "KINETOSCOPE_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', help_heading = NETWORK)]
    allow_origin: Vec<AllowedOrigin>,

    /// Model file, or a directory of model files and of NAME/VERSION/FILE, or a file on the Hugging Face Hub as
    /// hf:ORG/REPO[/FILE][@REVISION]; may be given several times, the first model answers requests that name none. The
    /// built-in model if absent. SIGHUP reads them again
    #[arg(long, env = "KINETOSCOPE_MODEL", value_name = "PATH", value_delimiter = ',', help_heading = MODELS)]
    model: Vec<ModelSource>,

    /// Memory that all models may take. One that is replaced counts until the new one has its place and its last request
    /// has ended, so leave room for two. No limit if absent
    #[arg(long, env = "KINETOSCOPE_MODEL_MEMORY", value_name = "SIZE", help_heading = MODELS)]
    model_memory: Option<ByteSize>,

    /// Let whoever may call load and unload models (RepositoryModelLoad and RepositoryModelUnload of the Open Inference
    /// Protocol)
    #[arg(long, env = "KINETOSCOPE_MODEL_CONTROL", help_heading = MODELS)]
    model_control: bool,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    engine: EngineArgs,

    /// Clips in one batch at most; 8 on the CPU and 64 on GPUs if absent
    #[arg(long, env = "KINETOSCOPE_MAX_BATCH", value_name = "CLIPS", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = WORK)]
    max_batch: Option<u16>,

    /// How long a clip waits for its batch to fill while the model is idle. Zero starts at once, which is best for
    /// answer times and costs no throughput under load: batches fill while the one before runs
    #[arg(long, env = "KINETOSCOPE_MAX_DELAY", value_name = "TIME", default_value = "0s", help_heading = WORK)]
    max_delay: Duration,

    /// Open the page in a browser
    #[cfg(feature = "web")]
    #[arg(long, help_heading = NETWORK)]
    open: bool,

    /// Another address, for plain HTTP and without tokens: /metrics for Prometheus, /healthz and /readyz for Kubernetes. None if
    /// absent
    #[arg(long, env = "KINETOSCOPE_HTTP", value_name = "HOST:PORT", value_parser = parse_port, help_heading = NETWORK)]
    http: Option<String>,

    /// Videos decoded at a time, a thread each; half of the threads (at least one) if absent
    #[arg(long, env = "KINETOSCOPE_DECODERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = WORK)]
    decoders: Option<u16>,

    /// Videos open at a time, those that wait for bytes or for the model included; four for each decoder if absent
    #[arg(long, env = "KINETOSCOPE_OPEN_VIDEOS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = WORK)]
    open_videos: Option<u16>,

    /// Where videos are decoded: in locked-in processes (`process`), so that a video that breaks a decoder breaks
    /// nothing else, or in this one (`none`)
    #[arg(long, env = "KINETOSCOPE_DECODE_ISOLATION", value_enum, value_name = "WHERE", default_value = "process", help_heading = WORK)]
    decode_isolation: DecodeIsolation,

    /// Videos that one decoder process decodes, one after the other, before another takes its place. 1 gives each video,
    /// and so each caller, a process of its own, which has to start first
    #[arg(long, env = "KINETOSCOPE_VIDEOS_PER_DECODER", value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = WORK)]
    videos_per_decoder: u32,

    /// Videos worked on at a time, uploads that are not complete left out; more are refused with RESOURCE_EXHAUSTED
    #[arg(long, env = "KINETOSCOPE_MAX_REQUESTS", value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = LOAD)]
    max_requests: u32,

    /// Videos uploaded in chunks (ClassifyVideoStream) at a time; more are refused with RESOURCE_EXHAUSTED
    #[arg(long, env = "KINETOSCOPE_MAX_UPLOADS", value_name = "N", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = LOAD)]
    max_uploads: u32,

    /// Videos of one ClassifyVideos stream that are worked on at a time; others wait
    #[arg(long, env = "KINETOSCOPE_VIDEOS_PER_STREAM", value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = LOAD)]
    videos_per_stream: u32,

    /// Calls of many videos (ClassifyVideos, ModelStreamInfer) that are open at a time; more are refused with
    /// RESOURCE_EXHAUSTED
    #[arg(long, env = "KINETOSCOPE_MAX_STREAMS", value_name = "N", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = LOAD)]
    max_streams: u32,

    /// Calls of any kind that are open at a time; more are refused with RESOURCE_EXHAUSTED. Health and reflection have a quarter
    /// of them
    #[arg(long, env = "KINETOSCOPE_MAX_CALLS", value_name = "N", default_value_t = 4096,
          value_parser = clap::value_parser!(u32).range(4..=1_000_000), help_heading = LOAD)]
    max_calls: u32,

    /// Connections open at a time; of more, one without calls is closed. Fewer if the process may not open as many files
    #[arg(long, env = "KINETOSCOPE_MAX_CONNECTIONS", value_name = "N", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = NETWORK)]
    max_connections: u32,

    /// How long a new connection may take until its first request
    #[arg(long, env = "KINETOSCOPE_HANDSHAKE_TIMEOUT", value_name = "TIME", default_value = "10s", help_heading = NETWORK)]
    handshake_timeout: Duration,

    /// Memory for the messages of all requests together, taken as their bytes come; calls beyond are refused or, if they
    /// stream, wait. Streams leave a quarter of it to other calls
    #[arg(long, env = "KINETOSCOPE_MESSAGE_MEMORY", value_name = "SIZE", default_value = "512MiB", help_heading = LOAD)]
    message_memory: ByteSize,

    /// Where uploads are kept while they are decoded, without names; the system's directory for temporary files if
    /// absent
    #[arg(long, env = "KINETOSCOPE_SPOOL", value_name = "DIR", help_heading = LOAD)]
    spool: Option<PathBuf>,

    /// Take videos by URI below this prefix: file:///srv/videos/, https://media.example.org/clips/, s3://bucket/clips/,
    /// gs://bucket/, az://container/. May be given several times; no URI is taken if absent. Clouds are set up by their
    /// usual variables, such as AWS_ACCESS_KEY_ID, AWS_REGION and AWS_ENDPOINT
    #[arg(long, env = "KINETOSCOPE_ALLOW_URI", value_name = "PREFIX", value_delimiter = ',', help_heading = VIDEOS_BY_URI)]
    allow_uri: Vec<Prefix>,

    /// Let http and https URIs lead to addresses that are not public: this machine, private networks, metadata services.
    /// Anybody who may call, and who controls a name below --allow-uri, can then reach them
    #[arg(long, env = "KINETOSCOPE_ALLOW_PRIVATE_ADDRESSES", help_heading = VIDEOS_BY_URI)]
    allow_private_addresses: bool,

    #[command(flatten)]
    limits: ServerLimitArgs,

    /// OpenTelemetry collector that traces of calls are sent to (OTLP over gRPC), such as http://localhost:4317; nobody if
    /// absent
    #[cfg(feature = "otlp")]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub(super) otlp: Option<String>,

    /// How long a client may send nothing, or take no answers, in the midst of a call before the call is ended; and how
    /// long the server of a URI may send nothing
    #[arg(long, env = "KINETOSCOPE_IDLE_TIMEOUT", value_name = "TIME", default_value = "30s", help_heading = NETWORK)]
    idle_timeout: Duration,

    /// Bytes a second that a client has to send in the midst of a call, and the server of a URI, on average over
    /// --idle-timeout; slower ones are ended. 0 for any
    #[arg(long, env = "KINETOSCOPE_MIN_RATE", value_name = "SIZE", default_value = "1KiB", help_heading = NETWORK)]
    min_rate: ByteSize,

    /// How long one message of a client may take to come
    #[arg(long, env = "KINETOSCOPE_MESSAGE_TIMEOUT", value_name = "TIME", default_value = "10m", help_heading = NETWORK)]
    message_timeout: Duration,

    /// How long a connection takes new calls, running ones finish: clients that keep theirs then find servers that have
    /// been started since. For ever if absent
    #[arg(long, env = "KINETOSCOPE_MAX_CONNECTION_AGE", value_name = "TIME", help_heading = NETWORK)]
    max_connection_age: Option<Duration>,

    /// How long running requests may take to finish after SIGTERM
    #[arg(long, env = "KINETOSCOPE_GRACE", value_name = "TIME", default_value = "30s", help_heading = NETWORK)]
    grace: Duration,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let credentials = Credentials::read(tls_files(&args), args.tokens.clone())?;
    let pace = Pace {
        idle_timeout: args.idle_timeout.into(),
        min_rate: args.min_rate.as_u64(),
        message_timeout: args.message_timeout.into(),
    };
    let uris = Uris::new(UriOptions {
        allow: args.allow_uri.clone(),
        allow_private_addresses: args.allow_private_addresses,
        cloud_settings: config::cloud_settings(),
        idle_timeout: pace.idle_timeout,
        min_rate: pace.min_rate,
        spool: args.spool.clone(),
    })?;
    if args.check {
        repository::check(&args.model, config::hub_options())?;
        println!("the configuration is valid");
        return Ok(ExitCode::SUCCESS);
    }
    // Not part of the check, which another user may run on another machine.
    let spool = args.spool.clone().unwrap_or_else(std::env::temp_dir);
    tempfile::tempfile_in(&spool)
        .and_then(|mut file| file.write_all(&[0]))
        .with_context(|| format!("can't write to the spool {}", spool.display()))?;
    // Before anything that takes long: a SIGHUP that comes early would end the process. It is heeded once models are there.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let hangup = {
        let _runtime = runtime.enter();
        signal(SignalKind::hangup())?
    };
    let threads = args.engine.threads();
    let devices = args.device.choose()?;
    let max_batch = args.max_batch.map_or_else(|| devices.default_max_batch(), usize::from);
    let engine_config = EngineConfig { max_delay: args.max_delay.into(), ..EngineConfig::new(threads, max_batch) };
    let metrics = Arc::new(Metrics::default());
    let max_bytes = args.model_memory.map_or(u64::MAX, |size| size.as_u64());
    info!(%devices, max_batch, "computing");
    let hub = config::hub_options();
    let options = RepositoryOptions { sources: args.model, hub, engine: engine_config, devices, max_bytes };
    let models = Arc::new(Repository::open(options, Arc::clone(&metrics))?);
    let limits = args.limits.limits();
    let decoders = args.decoders.map_or((threads / 2).max(1), usize::from);
    let pool = PoolOptions { threads: decoders, open_videos: args.open_videos.map_or(4 * decoders, usize::from) };
    let workers = WorkerOptions { max_videos: args.videos_per_decoder, ..WorkerOptions::for_limits(&limits) };
    let isolation = args.decode_isolation.with(workers);
    // Each decoder has a few; each video may be in a file.
    let files = 8 * (pool.threads + pool.open_videos) + (args.max_requests + args.max_uploads) as usize;
    let classifier = Classifier::new(limits, isolation, pool, Arc::clone(&metrics));
    let services = Services { classifier, models: Arc::clone(&models), metrics };
    let options = ServeOptions {
        max_requests: args.max_requests as usize,
        videos_per_stream: args.videos_per_stream as usize,
        max_uploads: args.max_uploads as usize,
        max_streams: args.max_streams as usize,
        max_calls: args.max_calls as usize,
        max_connections: process::connections(args.max_connections as usize, files),
        handshake_timeout: args.handshake_timeout.into(),
        message_memory: usize::try_from(args.message_memory.as_u64())?,
        spool: args.spool,
        model_control: args.model_control,
        uris,
        tokens: credentials.tokens(),
        tls: credentials.tls(),
        allowed_origins: args.allow_origin,
        pace,
        max_connection_age: args.max_connection_age.map(Into::into),
        grace: args.grace.into(),
    };

    runtime.block_on(async {
        let listener =
            Listener::bind(&args.listen).await.with_context(|| format!("can't listen on {}", args.listen))?;
        let address = listener.address()?;
        let http = match args.http {
            Some(at) => Some(TcpListener::bind(&at).await.with_context(|| format!("can't listen on {at}"))?),
            None => None,
        };
        let http_address = http.as_ref().map(TcpListener::local_addr).transpose()?.map(tracing::field::display);
        let shutdown = shutdown_signal()?;
        refresh_on_hangup(models, credentials, hangup);
        if !listener.is_local()? && (options.tls.is_none() || options.tokens.is_none()) {
            let (tls, tokens) = (options.tls.is_some(), options.tokens.is_some());
            warn!(%address, tls, tokens, "others can reach this address: see --tls-certificate and --tokens");
        }
        info!(%address, http_address, threads, decoders, "listening");
        #[cfg(feature = "web")]
        if let Some(page) = page_address(&address, options.tls.is_some()) {
            println!("Open {page} in a browser, or: curl --data-binary @VIDEO {page}v1/videos:classify");
            if args.open {
                open_in_browser(&page);
            }
        }
        server::serve(Listeners { grpc: listener, http }, services, options, shutdown).await?;
        info!("stopped");
        anyhow::Ok(())
    })?;
    // Decoders of dropped requests stop by themselves; nothing waits for them.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

fn parse_port(text: &str) -> Result<String, String> {
    match text.parse() {
        Ok(ListenAddress::Port(address)) => Ok(address),
        Ok(ListenAddress::Path(_)) | Err(_) => Err("expected HOST:PORT, such as 127.0.0.1:9090".to_owned()),
    }
}

/// Where a browser of this machine finds the page.
#[cfg(feature = "web")]
fn page_address(address: &ListenAddress, is_encrypted: bool) -> Option<String> {
    let ListenAddress::Port(address) = address else { return None };
    let scheme = if is_encrypted { "https" } else { "http" };
    let (host, port) = address.rsplit_once(':')?;
    let is_any = host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_unspecified());
    Some(format!("{scheme}://{}:{port}/", if is_any { "localhost" } else { host }))
}

/// The desktop knows which browser. Without one, the server serves all the same.
#[cfg(feature = "web")]
fn open_in_browser(page: &str) {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    if let Err(error) = std::process::Command::new(program).arg(page).spawn() {
        warn!(program, %error, "no browser could be opened");
    }
}

fn tls_files(args: &Args) -> Option<TlsFiles> {
    let (certificate, key) = args.tls_certificate.clone().zip(args.tls_key.clone())?;
    Some(TlsFiles { certificate, key, client_ca: args.tls_client_ca.clone() })
}

/// Reads models, certificates and tokens anew at each SIGHUP, and the latter two whenever their files change.
fn refresh_on_hangup(models: Arc<Repository>, credentials: Credentials, mut hangup: Signal) {
    // One that is pending is enough.
    let (ask, asked) = tokio::sync::mpsc::channel(1);
    tokio::spawn(credentials.watch(asked));
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            info!("SIGHUP: reading models, certificates and tokens again");
            let _ = ask.try_send(());
            let models = Arc::clone(&models);
            match tokio::task::spawn_blocking(move || models.refresh()).await {
                Ok(Ok(())) => info!("the models are served as their files have them"),
                Ok(Err(error)) => warn!(%error, "not all models are served as their files have them"),
                Err(error) => warn!(%error, "reading the models again failed"),
            }
        }
    });
}

/// Resolves at the first SIGTERM or SIGINT; the second one ends the process.
fn shutdown_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut signals =
        Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    Ok(async move {
        let signal = signals.next().await;
        info!(signal, "stopping; a second signal stops at once");
        tokio::spawn(async move {
            let signal = signals.next().await;
            warn!(signal, "stopping at once");
            std::process::exit(1);
        });
    })
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
