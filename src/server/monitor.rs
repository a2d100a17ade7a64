//! Plain HTTP for those who watch: metrics for Prometheus, health for Kubernetes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State as Extract;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tracing::error;

use super::connections::{Connection, Connections};
use super::cpu_time::CpuMeter;
use super::process;
use crate::app::{MessageMemory, Services};
use crate::engine::WorkerState;
use crate::metrics::{EngineGauges, Format};

/// What the pages tell about.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) services: Arc<Services>,
    pub(super) memory: MessageMemory,
    pub(super) is_ready: watch::Receiver<bool>,
    pub(super) cpu: Arc<CpuMeter>,
}

/// Connections that are open at a time; of more, the one that was used longest ago is closed.
const CONNECTIONS: usize = 64;

/// How long a connection may stay, which is for one question or a few: clients that keep theirs open for the next one connect
/// anew, and those that never ask hold nothing.
const CONNECTION_TIME: Duration = Duration::from_secs(90);

/// Takes no more connections than it has places for.
struct Bounded {
    listener: TcpListener,
    connections: Connections,
}

impl Listener for Bounded {
    type Io = Connection<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        let connection = self.connections.accept(&self.listener).await;
        // Nobody asks who it is.
        (connection, SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

pub(super) async fn serve(listener: TcpListener, state: State) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(state);
    let listener = Bounded { listener, connections: Connections::new(CONNECTIONS, CONNECTION_TIME) };
    if let Err(error) = axum::serve(listener, router).await {
        error!(%error, "the HTTP server ended");
    }
}

async fn ready(Extract(state): Extract<State>) -> impl IntoResponse {
    if *state.is_ready.borrow() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: a model has no worker, or the server is stopping\n")
    }
}

async fn metrics(Extract(state): Extract<State>, headers: HeaderMap) -> impl IntoResponse {
    let metrics = &state.services.metrics;
    let mut engines: BTreeMap<String, EngineGauges> = BTreeMap::new();
    let mut memory = state.services.models.retired_bytes();
    // Versions of a model are added up.
    for engine in state.services.models.served().engines() {
        let now = engine.state();
        let gauges = engines.entry(engine.spec().name.clone()).or_default();
        *memory.entry(engine.spec().name.clone()).or_default() += engine.memory_bytes();
        gauges.queued_clips += now.queued_clips;
        for worker in now.workers {
            match worker {
                WorkerState::Starting => gauges.starting += 1,
                WorkerState::Failed => gauges.failed += 1,
                WorkerState::Idle => gauges.idle += 1,
                WorkerState::Busy => gauges.busy += 1,
            }
        }
    }
    let pool = state.services.classifier.pool_state();
    let decodes = [("waiting", pool.waiting), ("open", pool.open), ("running", pool.running)];
    metrics.set_decodes(&decodes, pool.worker_restarts);
    if let Ok(process) = process::read() {
        metrics.set_process(process);
    }
    metrics.set_buffered_bytes(state.memory.held());
    if let Ok(spent) = state.cpu.read(state.services.classifier.decode_cpu_time()) {
        metrics.set_cpu(&[("decode", spent.decode), ("model", spent.model), ("rest", spent.rest)]);
    }
    let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::accepted(&accept.join(","));
    let about = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")];
    (about, metrics.encode(format, &engines, &memory))
}
