//! What the server adds to decoding and to the model: latencies of requests to an idle server whose model answers at
//! once.
//!
//!     cargo run --release --example serving_overhead

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kinetoscope::classify::Classifier;
use kinetoscope::engine::batcher::Priority;
use kinetoscope::engine::{ClipInput, Engine, EngineConfig, Executor, ExecutorError, Outputs};
use kinetoscope::metrics::Metrics;
use kinetoscope::model::builtin;
use kinetoscope::repository::Repository;
use kinetoscope::rpc::client::{Client, Connection};
use kinetoscope::rpc::{Listeners, ServeOptions, Services, serve};
use kinetoscope::video::{Isolation, Limits, PoolOptions};
use tokio::net::TcpListener;

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

fn engine(metrics: &Metrics) -> Result<Engine, ExecutorError> {
    let spec = builtin::spec();
    let classes = spec.labels.len();
    let build = move || -> Result<Box<dyn Executor>, ExecutorError> { Ok(Box::new(Null { classes })) };
    Engine::with_workers(spec, EngineConfig::new(1, 8), 1, Box::new(build), metrics)
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |quantile: f64| times[(quantile * (times.len() - 1) as f64) as usize].as_secs_f64() * 1e6;
    println!("{what:<52} median {:>6.0} us, 90% {:>6.0} us, 99% {:>6.0} us", at(0.5), at(0.9), at(0.99));
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let metrics = Arc::new(Metrics::default());
    let spec = builtin::spec();
    let rgb = Bytes::from(vec![7; spec.clip.rgb_len()]);

    let alone = engine(&metrics)?;
    let video = alone.video(Priority::Normal);
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let begun = Instant::now();
        video.submit(ClipInput::Rgb(rgb.clone())).await?.await?;
        times.push(begun.elapsed());
    }
    tell("a clip through queue, batch and worker", times);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let connection = Connection { server: listener.local_addr()?.to_string(), ..Connection::default() };
    let pool = PoolOptions { threads: 1, open_videos: 4 };
    let classifier = Classifier::new(Limits::default(), Isolation::None, pool, Arc::clone(&metrics));
    let services = Services { classifier, models: Arc::new(Repository::of(vec![engine(&metrics)?])), metrics };
    let listeners = Listeners { grpc: listener, http: None };
    tokio::spawn(serve(listeners, services, ServeOptions::default(), std::future::pending()));
    let mut client = Client::connect(&connection, Duration::from_secs(5)).await?;

    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let begun = Instant::now();
        client.model("").await?;
        times.push(begun.elapsed());
    }
    tell("a call that does nothing (GetModel)", times);

    let shape = [1, spec.clip.frames, spec.clip.size, spec.clip.size, 3];
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let begun = Instant::now();
        client.infer_clips(&spec.name, shape, rgb.clone(), None).await?;
        times.push(begun.elapsed());
    }
    tell("a clip of 602,112 bytes over gRPC (ModelInfer)", times);
    Ok(())
}
