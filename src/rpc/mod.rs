//! The gRPC service: [`proto`] is the wire format, [`serve`] runs a server, [`client`] calls one.

mod admission;
mod auth;
mod batch;
pub mod client;
mod connections;
mod cpu_time;
mod credentials;
mod health;
mod http;
mod inference;
mod listener;
pub mod process;
mod quote;
mod reason;
mod request;
mod service;
mod status;
mod stream;
mod tls;
mod wire;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic_health::pb::health_server::HealthServer;
use tracing::{info, warn};

use crate::classify::Classifier;
use crate::metrics::Metrics;
pub use crate::pace::Pace;
use crate::repository::Repository;
use crate::uri::Uris;
use admission::{Admission, MessageMemory};
pub use auth::{Tokens, TokensError};
use connections::{Connections, UntilPreface};
pub use credentials::{Credentials, CredentialsError};
pub use listener::{ListenAddress, Listener, NoListenAddress, SocketFile};
use oip::grpc_inference_service_server::GrpcInferenceServiceServer;
use proto::video_classification_service_server::VideoClassificationServiceServer;
pub use reason::Reason;
pub use status::code_name;
use tls::Secured;
pub use tls::{Tls, TlsError, TlsFiles, TlsPem};

/// Generated from `proto/kinetoscope/v1/kinetoscope.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    tonic::include_proto!("kinetoscope.v1");

    /// The compiled definitions, for reflection and for the check against the committed set.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("kinetoscope.v1");
}

/// Generated from `proto/inference/grpc_service.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod oip {
    tonic::include_proto!("inference");

    /// The compiled definitions, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("inference");
}

/// Domain of the `google.rpc.ErrorInfo` in every error.
pub const ERROR_DOMAIN: &str = "kinetoscope";

/// What a request message may be longer than the video in it.
const MESSAGE_OVERHEAD_BYTES: usize = 64 << 10;

/// An idle connection is asked for a sign of life after this time, so that vanished clients free their places.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// Calls of one connection that are open at a time; its client waits with more.
const MAX_CALLS_OF_CONNECTION: u32 = 256;

/// Bytes of a call, and of all calls of a connection, that come before they are read. A call that is made to wait holds back
/// its client, and not the other calls of its connection.
const CALL_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// How soon health follows the workers.
const HEALTH_PERIOD: Duration = Duration::from_millis(500);

/// How a server runs.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Videos worked on at a time of which all bytes are here; one more is refused with RESOURCE_EXHAUSTED.
    pub max_requests: usize,
    /// ClassifyVideoStream calls that are open at a time, those whose bytes are still coming included; one more is
    /// refused with RESOURCE_EXHAUSTED.
    pub max_uploads: usize,
    /// Videos of one ClassifyVideos stream that are worked on at a time; others wait to be read.
    pub videos_per_stream: usize,
    /// ClassifyVideos and ModelStreamInfer calls that are open at a time; one more is refused with RESOURCE_EXHAUSTED.
    pub max_streams: usize,
    /// Calls of any kind that are open at a time; one more is refused with RESOURCE_EXHAUSTED. Health and reflection have a
    /// quarter of them.
    pub max_calls: usize,
    /// Connections that are open at a time. Of more, one without calls is closed.
    pub max_connections: usize,
    /// How long a connection may take until it speaks HTTP/2.
    pub handshake_timeout: Duration,
    /// Bytes that the messages of all requests may take in memory, or one message's worth if that is more. Calls with
    /// one message are refused beyond it with RESOURCE_EXHAUSTED. Streams are read no further beyond three quarters of
    /// it, or one message's worth.
    pub message_memory: usize,
    /// Where long uploads are kept while they are decoded; the system's temporary directory if `None`.
    pub spool: Option<PathBuf>,
    /// Whether callers may load and unload models.
    pub model_control: bool,
    /// Opens videos that come as URIs; by default there are none to be opened.
    pub uris: Uris,
    /// Who may call; everybody if `None`.
    pub tokens: Option<Tokens>,
    /// Encrypts connections; they are plain if `None`.
    pub tls: Option<Tls>,
    /// How fast clients have to send while they are waited for; a call whose client is slower, or takes no answers for the
    /// idle timeout, ends with DEADLINE_EXCEEDED. Clients that hang can't hold places and memory for ever.
    pub pace: Pace,
    /// A connection takes no new calls after this time, so that clients connect anew and find servers that have been started
    /// since; for ever if `None`.
    pub max_connection_age: Option<Duration>,
    /// How long running requests may take to finish after the shutdown signal.
    pub grace: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            max_requests: 64,
            max_uploads: 128,
            videos_per_stream: 8,
            max_streams: 128,
            max_calls: 4096,
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            message_memory: 512 << 20,
            spool: None,
            model_control: false,
            uris: Uris::default(),
            tokens: None,
            tls: None,
            pace: Pace::default(),
            max_connection_age: None,
            grace: Duration::from_secs(30),
        }
    }
}

/// The models and the classifier that requests share.
#[derive(Debug)]
pub struct Services {
    /// Decodes and classifies.
    pub classifier: Classifier,
    /// Running models.
    pub models: Arc<Repository>,
    /// What all of them count.
    pub metrics: Arc<Metrics>,
}

/// Where a server listens.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC.
    pub grpc: Listener,
    /// Plain HTTP: `/metrics`, `/healthz` (the process answers) and `/readyz` (it takes requests).
    pub http: Option<TcpListener>,
}

/// Serves until `shutdown` resolves, then finishes the requests that run, for up to the grace period. Health turns
/// to NOT_SERVING at once, so that load balancers look elsewhere, and whoever watches it is told; connections without
/// requests are closed.
pub async fn serve(
    listeners: Listeners,
    services: Services,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (grace, max_age) = (options.grace, options.max_connection_age);
    let (tokens, tls, idle_timeout) = (options.tokens.clone(), options.tls.clone(), options.pace.idle_timeout);
    let max_message = usize::try_from(services.classifier.limits().max_bytes)
        .unwrap_or(usize::MAX)
        .saturating_add(MESSAGE_OVERHEAD_BYTES);
    let metrics = Arc::clone(&services.metrics);
    let memory = MessageMemory::new(options.message_memory, max_message);
    let admission = Admission { memory: memory.clone(), pace: options.pace, metrics: Arc::clone(&metrics) };
    let calls = request::Calls::new(options.max_calls);
    let connections = Connections::new(options.max_connections, options.handshake_timeout);
    let services = Arc::new(services);
    let (ready, is_ready) = watch::channel(true);
    let (drain, drained) = watch::channel(false);
    let service = service::Service::new(Arc::clone(&services), options, is_ready.clone(), drained.clone());
    // Longer messages than it takes were refused before they were read.
    let classification = VideoClassificationServiceServer::new(service.clone())
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    let inference = GrpcInferenceServiceServer::new(service)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);

    let (health, health_state) = watch::channel(health::State::Serving);
    let health_service = HealthServer::new(health::HealthService(health_state));
    let watching = watch_health(Arc::clone(&services), health, ready, drained.clone());
    let watching = AbortOnDropHandle::new(tokio::spawn(watching));
    let http = listeners.http.map(|listener| {
        let state =
            http::State { services: Arc::clone(&services), memory: memory.clone(), is_ready, cpu: Arc::default() };
        AbortOnDropHandle::new(tokio::spawn(http::serve(listener, state)))
    });

    let (reflection_v1, reflection_v1alpha) = (reflection_builder(), reflection_builder());
    let mut until_drained = drained.clone();
    let until_preface = |io: tls::Connection<connections::Connection<_>>| {
        let handle = tls::inner(&io).handle();
        UntilPreface::new(io, handle)
    };
    let incoming = Secured::new(connections.incoming(listeners.grpc), tls).map(|io| io.map(until_preface));
    let mut builder = Server::builder();
    if let Some(max_age) = max_age {
        builder = builder.max_connection_age(max_age);
    }
    let server = builder
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .max_concurrent_streams(MAX_CALLS_OF_CONNECTION)
        .initial_stream_window_size(CALL_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .layer(request::RequestLayer { admission, metrics, calls: calls.clone(), tokens, idle_timeout })
        .add_service(health_service)
        .add_service(reflection_v1.build_v1().expect("our own descriptors are valid"))
        .add_service(reflection_v1alpha.build_v1alpha().expect("our own descriptors are valid"))
        .add_service(classification)
        .add_service(inference)
        .serve_with_incoming_shutdown(incoming, async move {
            let _ = until_drained.wait_for(|drained| *drained).await;
        });
    tokio::pin!(server);
    tokio::select! {
        result = &mut server => return result,
        () = shutdown => {}
    }
    info!(?grace, "draining: no new connections, running requests finish");
    drain.send_replace(true);
    let stop = async {
        // Who watches is told before connections close.
        let _ = watching.await;
        calls.end_those_about_server();
        // The server ends when all connections have gone.
        connections.close_unused().await
    };
    let ended = tokio::time::timeout(grace, async {
        tokio::select! {
            result = &mut server => result,
            never = stop => match never {},
        }
    });
    let ended = ended.await;
    drop(http);
    ended.unwrap_or_else(|_| {
        let requests = calls.requests();
        if requests > 0 {
            warn!(?grace, requests, "requests still ran at the end of the grace period and were dropped");
        }
        Ok(())
    })
}

/// Keeps health true to the workers until the server drains.
async fn watch_health(
    services: Arc<Services>,
    health: watch::Sender<health::State>,
    ready: watch::Sender<bool>,
    mut drained: watch::Receiver<bool>,
) {
    loop {
        let stops = *drained.borrow();
        let serves = !stops && services.models.served().engines().all(|engine| engine.state().is_serving());
        let state = match serves {
            true => health::State::Serving,
            false if stops => health::State::Stopping,
            false => health::State::NotServing,
        };
        if ready.send_if_modified(|ready| std::mem::replace(ready, serves) != serves) && !stops {
            warn!(serves, "health changed");
        }
        health.send_if_modified(|told| std::mem::replace(told, state) != state);
        if stops {
            return;
        }
        let _ = tokio::time::timeout(HEALTH_PERIOD, drained.changed()).await;
    }
}

fn reflection_builder() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(oip::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
