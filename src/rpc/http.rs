//! Plain HTTP for those who watch: metrics for Prometheus, health for Kubernetes.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State as Extract;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::error;

use super::Services;
use super::admission::MessageMemory;
use super::cpu_time::CpuMeter;
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

pub(super) async fn serve(listener: TcpListener, state: State) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(state);
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
    metrics.set_buffered_bytes(state.memory.held());
    if let Ok(spent) = state.cpu.read(state.services.classifier.decode_cpu_time()) {
        metrics.set_cpu(&[("decode", spent.decode), ("model", spent.model), ("rest", spent.rest)]);
    }
    let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::accepted(&accept.join(","));
    let about = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")];
    (about, metrics.encode(format, &engines, &memory))
}
