//! The gRPC service: [`proto`] is the wire format, [`serve`] runs a server, [`client`] calls one.

pub mod client;
mod request;
mod service;
mod status;
mod wire;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::classify::Classifier;
use crate::engine::Engine;
use proto::video_classification_service_server::VideoClassificationServiceServer;

/// Generated from `proto/kinetoscope/v1/kinetoscope.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    tonic::include_proto!("kinetoscope.v1");

    /// The compiled definitions, for reflection and for the check against the committed set.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("kinetoscope.v1");
}

/// Domain of the `google.rpc.ErrorInfo` in every error.
pub const ERROR_DOMAIN: &str = "kinetoscope";

/// What a request message may be longer than the video in it.
const MESSAGE_OVERHEAD_BYTES: usize = 64 << 10;

/// An idle connection is asked for a sign of life after this time, so that vanished clients free their places.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// How a server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeOptions {
    /// Requests worked on at a time; one more is refused with RESOURCE_EXHAUSTED. Each may hold a whole video.
    pub max_requests: usize,
    /// How long running requests may take to finish after the shutdown signal.
    pub grace: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self { max_requests: 64, grace: Duration::from_secs(30) }
    }
}

/// The models and the classifier that requests share.
#[derive(Debug)]
pub struct Services {
    /// Decodes and classifies.
    pub classifier: Classifier,
    /// Running models, the default one first; at least one.
    pub models: Vec<Engine>,
}

/// Serves until `shutdown` resolves, then finishes the requests that run, for up to the grace period. Health turns
/// to NOT_SERVING at once, so that load balancers look elsewhere.
pub async fn serve(
    listener: TcpListener,
    services: Services,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    assert!(!services.models.is_empty(), "a server has a model");
    let max_message = usize::try_from(services.classifier.limits().max_bytes)
        .unwrap_or(usize::MAX)
        .saturating_add(MESSAGE_OVERHEAD_BYTES);
    let service = service::Service::new(Arc::new(services), options.max_requests);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<VideoClassificationServiceServer<service::Service>>().await;
    let classification = VideoClassificationServiceServer::new(service).max_decoding_message_size(max_message);
    let (reflection_v1, reflection_v1alpha) = (reflection_builder(), reflection_builder());

    let (drain, drained) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .layer(request::RequestLayer { max_message })
        .add_service(health_service)
        .add_service(reflection_v1.build_v1().expect("our own descriptors are valid"))
        .add_service(reflection_v1alpha.build_v1alpha().expect("our own descriptors are valid"))
        .add_service(classification)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
            let _ = drained.await;
        });
    tokio::pin!(server);
    tokio::select! {
        result = &mut server => return result,
        () = shutdown => {}
    }
    info!(grace = ?options.grace, "draining: no new connections, running requests finish");
    health.set_not_serving::<VideoClassificationServiceServer<service::Service>>().await;
    health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    drop(drain);
    match tokio::time::timeout(options.grace, server).await {
        Ok(result) => result,
        Err(_) => {
            warn!(grace = ?options.grace, "requests still ran at the end of the grace period and were dropped");
            Ok(())
        }
    }
}

fn reflection_builder() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
