//! The server: [`serve`] runs it. `grpc` and `oip` are its APIs; the rest is what surrounds every call: connections, TLS,
//! tokens, limits, request ids, metrics.

mod answer;
mod auth;
mod calls;
mod connections;
mod cpu_time;
mod credentials;
mod grpc;
mod http;
mod listener;
mod monitor;
mod oip;
mod origin;
pub mod process;
mod protocol;
mod request;
mod tls;

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

use crate::app::{App, AppOptions};
pub use crate::app::{Reason, Services};
use crate::oip as inference;
pub use crate::pace::Pace;
use crate::proto;
use crate::uri::Uris;
pub use auth::{Tokens, TokensError};
use calls::Calls;
use connections::{Connections, UntilPreface};
pub use credentials::{Credentials, CredentialsError};
use grpc::health;
use grpc::messages::Admission;
pub use grpc::status::code_name;
use grpc::web::WebLayer;
use http::router;
use inference::grpc_inference_service_server::GrpcInferenceServiceServer;
pub use listener::{ListenAddress, Listener, NoListenAddress, SocketFile};
use origin::OriginPolicy;
pub use origin::{AllowedOrigin, NoOrigin};
use proto::video_classification_service_server::VideoClassificationServiceServer;
use tls::Secured;
pub use tls::{Tls, TlsError, TlsFiles, TlsPem};

/// Domain of the `google.rpc.ErrorInfo` in every error.
pub const ERROR_DOMAIN: &str = "kinetoscope";

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
    /// Origins of web pages that may call, besides the server's own.
    pub allowed_origins: Vec<AllowedOrigin>,
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
            allowed_origins: Vec::new(),
            pace: Pace::default(),
            max_connection_age: None,
            grace: Duration::from_secs(30),
        }
    }
}

impl ServeOptions {
    fn of_app(self) -> AppOptions {
        AppOptions {
            max_requests: self.max_requests,
            max_uploads: self.max_uploads,
            max_streams: self.max_streams,
            message_memory: self.message_memory,
            videos_per_stream: self.videos_per_stream,
            spool: self.spool,
            model_control: self.model_control,
            uris: self.uris,
            pace: self.pace,
        }
    }
}

/// Where a server listens.
#[derive(Debug)]
pub struct Listeners {
    /// Calls: gRPC, gRPC-web and HTTP.
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
    let (pace, metrics) = (options.pace, Arc::clone(&services.metrics));
    let origins = OriginPolicy {
        allowed: options.allowed_origins.clone(),
        is_local: matches!(&listeners.grpc, Listener::Port(_)) && listeners.grpc.is_local().unwrap_or(false),
    };
    let calls = Calls::new(options.max_calls);
    let connections = Connections::new(options.max_connections, options.handshake_timeout);
    let services = Arc::new(services);
    let (ready, is_ready) = watch::channel(true);
    let (drain, drained) = watch::channel(false);
    let app = App::new(Arc::clone(&services), options.of_app(), is_ready.clone(), drained.clone());
    let memory = app.memory.clone();
    let admission = Admission { memory: memory.clone(), pace, metrics: Arc::clone(&metrics) };
    let http = router(app.clone());
    let service = grpc::service::Service(app);
    // Longer messages than it takes were refused before they were read.
    let classification = VideoClassificationServiceServer::new(service.clone())
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    let inference_service = GrpcInferenceServiceServer::new(service)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);

    let (health, health_state) = watch::channel(health::State::Serving);
    let health_service = HealthServer::new(health::HealthService(health_state));
    let watching = watch_health(Arc::clone(&services), health, ready, drained.clone());
    let watching = AbortOnDropHandle::new(tokio::spawn(watching));
    let monitor = listeners.http.map(|listener| {
        let state =
            monitor::State { services: Arc::clone(&services), memory: memory.clone(), is_ready, cpu: Arc::default() };
        AbortOnDropHandle::new(tokio::spawn(monitor::serve(listener, state)))
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
        .accept_http1(true)
        .layer(WebLayer)
        .layer(request::RequestLayer { admission, metrics, calls: calls.clone(), tokens, origins, idle_timeout, http })
        .add_service(health_service)
        .add_service(reflection_v1.build_v1().expect("our own descriptors are valid"))
        .add_service(reflection_v1alpha.build_v1alpha().expect("our own descriptors are valid"))
        .add_service(classification)
        .add_service(inference_service)
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
    drop(monitor);
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
        .register_encoded_file_descriptor_set(inference::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
