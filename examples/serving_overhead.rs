//! What the server adds to decoding and to the model: latencies of requests to an idle server whose model answers at
//! once.
//!
//!     cargo run --release --example serving_overhead

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kinetoscope::classify::Classifier;
use kinetoscope::client::{Client, Connection};
use kinetoscope::engine::batcher::Priority;
use kinetoscope::engine::{ClipInput, Engine, EngineConfig, Executor, ExecutorError, Outputs};
use kinetoscope::metrics::Metrics;
use kinetoscope::model::builtin;
use kinetoscope::model::spec::{ClipSpec, ModelSpec};
use kinetoscope::repository::Repository;
use kinetoscope::server::{Listeners, ServeOptions, Services, serve};
use kinetoscope::video::{Isolation, Limits, PoolOptions};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const REQUESTS: usize = 2000;

/// Knows nothing and says so at once.
struct Null {
    classes: usize,
}

impl Executor for Null {
    fn run(&mut self, clips: &[&[u8]]) -> Result<Outputs, ExecutorError> {
        Ok(Outputs { logits: vec![0.0; clips.len() * self.classes], embeddings: Vec::new() })
    }

    fn run_normalised(&mut self, clips: &[&[f32]]) -> Result<Outputs, ExecutorError> {
        Ok(Outputs { logits: vec![0.0; clips.len() * self.classes], embeddings: Vec::new() })
    }
}

fn engine(metrics: &Metrics, spec: &ModelSpec) -> Result<Engine, ExecutorError> {
    let classes = spec.labels.len();
    let build = move || -> Result<Box<dyn Executor>, ExecutorError> { Ok(Box::new(Null { classes })) };
    Engine::with_workers(spec.clone(), EngineConfig::new(1, 8), 1, Box::new(build), metrics)
}

/// Times calls one after the other.
async fn time<E>(what: &str, mut call: impl AsyncFnMut() -> Result<(), E>) -> Result<(), E> {
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let begun = Instant::now();
        call().await?;
        times.push(begun.elapsed());
    }
    times.sort();
    let at = |quantile: f64| times[(quantile * (times.len() - 1) as f64) as usize].as_secs_f64() * 1e6;
    println!("{what:<60} median {:>6.0} us, 90% {:>6.0} us, 99% {:>6.0} us", at(0.5), at(0.9), at(0.99));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let metrics = Arc::new(Metrics::default());
    let large = builtin::spec();
    let clip = ClipSpec { frames: 4, size: 32, temporal_stride: 1 };
    let small = ModelSpec { name: "small".to_owned(), clip, ..large.clone() };

    let alone = engine(&metrics, &large)?;
    let video = alone.video(Priority::Normal);
    let rgb = Bytes::from(vec![7; large.clip.rgb_len()]);
    time("a clip through queue, batch and worker", async || {
        video.submit(ClipInput::Rgb(rgb.clone())).await?.await.map(drop)
    })
    .await?;

    // What gRPC itself takes, from client to client.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let channel = Channel::from_shared(format!("http://{}", listener.local_addr()?))?.connect_lazy();
    let (_, bare) = tonic_health::server::health_reporter();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(Server::builder().add_service(bare).serve_with_incoming(incoming));
    let mut health = HealthClient::new(channel);
    time("a call that does nothing, to a server that does nothing else", async || {
        health.check(HealthCheckRequest::default()).await.map(drop)
    })
    .await?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let connection = Connection { server: listener.local_addr()?.to_string(), ..Connection::default() };
    let pool = PoolOptions { threads: 1, open_videos: 4 };
    let classifier = Classifier::new(Limits::default(), Isolation::None, pool, Arc::clone(&metrics));
    let models = vec![engine(&metrics, &large)?, engine(&metrics, &small)?];
    let services = Services { classifier, models: Arc::new(Repository::of(models)), metrics };
    let listeners = Listeners { grpc: listener.into(), http: None };
    tokio::spawn(serve(listeners, services, ServeOptions::default(), std::future::pending()));
    let mut client = Client::connect(&connection, Duration::from_secs(5)).await?;
    time("a call that does nothing (GetModel)", async || client.model("").await.map(drop)).await?;
    for spec in [small, large] {
        let ClipSpec { frames, size, .. } = spec.clip;
        let rgb = Bytes::from(vec![7; spec.clip.rgb_len()]);
        time(&format!("a clip of {} bytes (ModelInfer)", rgb.len()), async || {
            client.infer_clips(&spec.name, [1, frames, size, size, 3], rgb.clone(), None).await.map(drop)
        })
        .await?;
    }
    Ok(())
}
