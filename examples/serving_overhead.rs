//! What the server adds to decoding and to the model: latencies of requests to an idle server whose model answers at
//! once, over gRPC and over HTTP/1.1, beside servers that do nothing.
//!
//!     cargo run --release --example serving_overhead

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
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
use tonic::codegen::http::Request;
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
    let address = listener.local_addr()?;
    let connection = Connection { server: address.to_string(), ..Connection::default() };
    let pool = PoolOptions { threads: 1, open_videos: 4 };
    let classifier = Classifier::new(Limits::default(), Isolation::None, pool, Arc::clone(&metrics));
    let models = vec![engine(&metrics, &large)?, engine(&metrics, &small)?];
    let services = Services { classifier, models: Arc::new(Repository::of(models)), metrics };
    let listeners = Listeners { grpc: listener.into(), http: None };
    tokio::spawn(serve(listeners, services, ServeOptions::default(), std::future::pending()));
    let mut client = Client::connect(&connection, Duration::from_secs(5)).await?;
    time("a call that does nothing (GetModel)", async || client.model("").await.map(drop)).await?;
    let rgb = Bytes::from(vec![7; large.clip.rgb_len()]);
    let web = HttpClient::builder(TokioExecutor::new()).build_http();
    let bare = bare_axum().await?;
    time("HTTP: bytes of a clip, to a server that only reads them", async || {
        post(&web, &bare, None, rgb.clone()).await
    })
    .await?;
    let (infer, json_length, body) = inference(&address.to_string(), &large, &rgb);
    time(&format!("HTTP: a clip of {} bytes (/v2/models/.../infer)", rgb.len()), async || {
        post(&web, &infer, Some(json_length), body.clone()).await
    })
    .await?;
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

type WebClient = HttpClient<HttpConnector, Full<Bytes>>;

/// Sends a body and reads the answer.
async fn post(client: &WebClient, url: &str, json_length: Option<usize>, body: Bytes) -> Result<(), WebError> {
    let mut request = Request::post(url);
    if let Some(length) = json_length {
        request = request.header("inference-header-content-length", length);
    }
    let response = client.request(request.body(Full::new(body))?).await?;
    let is_success = response.status().is_success();
    let answer = response.into_body().collect().await?.to_bytes();
    if is_success { Ok(()) } else { Err(String::from_utf8_lossy(&answer).into()) }
}

type WebError = Box<dyn std::error::Error>;

/// The URL of a server that reads a body and says how long it is.
async fn bare_axum() -> std::io::Result<String> {
    let read = |body: axum::body::Body| async {
        body.collect().await.map(|body| body.to_bytes().len().to_string()).unwrap_or_default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let router = axum::Router::new().route("/", axum::routing::post(read));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

/// A request of one clip: its URL, the length of its JSON, and its body.
fn inference(address: &str, spec: &ModelSpec, rgb: &Bytes) -> (String, usize, Bytes) {
    let ClipSpec { frames, size, .. } = spec.clip;
    let json = serde_json::json!({"inputs": [{
        "name": "CLIPS", "datatype": "UINT8", "shape": [1, frames, size, size, 3],
        "parameters": {"binary_data_size": rgb.len()},
    }], "parameters": {"binary_data_output": true}})
    .to_string();
    let body = [json.as_bytes(), rgb].concat().into();
    (format!("http://{address}/v2/models/{}/infer", spec.name), json.len(), body)
}
