//! Load for a running server, and what its clients see of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::codegen::http::Uri;

use crate::client::Client as RpcClient;
use crate::model::counter::CounterStream;
use crate::proto;
use crate::server::code_name;

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// Closed loop: so many clients, each sending its next request when it has an answer. Shows throughput; a slow
    /// server gets less load, so latencies say little.
    Closed {
        /// Requests under way at any time.
        concurrency: usize,
    },
    /// Open loop: at fixed times whatever the answers do, as from many independent users. Latency counts from the
    /// time a request was due, so that a server that stalls can't hide it (coordinated omission).
    Open {
        /// Requests a second.
        rate: f64,
    },
}

/// A load.
#[derive(Debug, Clone)]
pub struct Load {
    /// When requests are sent.
    pub arrivals: Arrivals,
    /// How long new ones are sent.
    pub duration: Duration,
    /// Time that each may take.
    pub timeout: Duration,
    /// What is sent.
    pub payload: Payload,
}

/// What requests are about.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Encoded videos, in turn, to ClassifyVideo.
    Videos {
        /// Whole files.
        videos: Vec<Bytes>,
        /// What is asked about each.
        options: proto::ClassificationOptions,
    },
    /// Clips of pixels, to ModelInfer of the Open Inference Protocol: the model without decoding.
    Clips {
        /// The model's name.
        model: String,
        /// `(n, t, h, w, 3)`.
        shape: [usize; 5],
        /// 8-bit RGB.
        rgb: Bytes,
    },
}

impl Payload {
    /// `clips` clips of noise for a model.
    pub fn noise(model: &proto::Model, clips: usize) -> Self {
        let proto::ClipGeometry { frames, size, .. } = model.clip.unwrap_or_default();
        let shape = [clips, frames as usize, size as usize, size as usize, 3];
        let stream = CounterStream::new(0, "bench");
        let rgb = (0..shape.iter().product::<usize>() as u64).map(|index| stream.byte(index)).collect();
        Self::Clips { model: model.name.clone(), shape, rgb }
    }
}

/// What clients saw.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Requests sent.
    pub requests: u64,
    /// Time until the last was answered.
    pub seconds: f64,
    /// Videos answered a second.
    pub videos_per_second: f64,
    /// Clips in them.
    pub clips_per_second: f64,
    /// Of requests that got an answer.
    pub latency_ms: Latency,
    /// Requests that got none, by status code.
    pub errors: BTreeMap<&'static str, u64>,
    /// What the server's CPU time went into; only with its metrics at hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processors: Option<Processors>,
}

/// CPU seconds a second: processors in use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Processors {
    /// By decoding.
    pub decode: f64,
    /// By the model.
    pub model: f64,
    /// By all else in the server.
    pub rest: f64,
}

/// A server's page of metrics, for [`Processors`].
#[derive(Debug, Clone)]
pub struct MetricsPage(Uri);

impl MetricsPage {
    /// The page at `http://HOST:PORT/metrics`, or wherever it is.
    pub fn new(uri: Uri) -> Self {
        Self(uri)
    }

    async fn cpu_seconds(&self) -> Result<Processors, MetricsError> {
        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        let answer = client.get(self.0.clone()).await?;
        if !answer.status().is_success() {
            return Err(MetricsError::Refused(answer.status().as_u16()));
        }
        let page = answer.into_body().collect().await.map_err(|error| MetricsError::Broken(error.into()))?.to_bytes();
        let page = String::from_utf8_lossy(&page);
        let part = |name: &str| {
            let start = format!("kinetoscope_cpu_seconds_total{{part=\"{name}\"}} ");
            let value = page.lines().find_map(|line| line.strip_prefix(&start)?.trim().parse().ok());
            value.ok_or(MetricsError::NotThere)
        };
        Ok(Processors { decode: part("decode")?, model: part("model")?, rest: part("rest")? })
    }
}

/// Why a server's CPU time is not known.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// Nobody answers.
    #[error("the metrics can't be reached: {0}")]
    Unreachable(#[from] hyper_util::client::legacy::Error),
    /// The answer breaks off.
    #[error("the metrics can't be read: {0}")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer is an error.
    #[error("the metrics are refused with HTTP status {0}")]
    Refused(u16),
    /// The page is another program's.
    #[error("the metrics have no `kinetoscope_cpu_seconds_total`")]
    NotThere,
}

/// Percentiles in milliseconds; zero if nothing was answered.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// One in ten takes longer.
    pub p90: f64,
    /// One in a hundred takes longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// Sends a load over the connections in turn and waits for all answers. With the server's page of metrics, the report
/// tells what its CPU time went into.
pub async fn run(clients: &[RpcClient], load: Load, metrics: Option<&MetricsPage>) -> Result<Report, MetricsError> {
    let before = match metrics {
        Some(page) => Some(page.cpu_seconds().await?),
        None => None,
    };
    let begun = Instant::now();
    let report = send(clients, load).await;
    let processors = match (metrics, before) {
        (Some(page), Some(before)) => {
            let after = page.cpu_seconds().await?;
            let rate = |after: f64, before: f64| (after - before) / begun.elapsed().as_secs_f64();
            Some(Processors {
                decode: rate(after.decode, before.decode),
                model: rate(after.model, before.model),
                rest: rate(after.rest, before.rest),
            })
        }
        _ => None,
    };
    Ok(Report { processors, ..report })
}

async fn send(clients: &[RpcClient], load: Load) -> Report {
    let load = Arc::new(load);
    let begun = Instant::now();
    let mut seen = Seen::new();
    match load.arrivals {
        Arrivals::Closed { concurrency } => {
            let next = Arc::new(AtomicUsize::new(0));
            let mut tasks = JoinSet::new();
            for index in 0..concurrency.max(1) {
                let (mut client, load, next) =
                    (clients[index % clients.len()].clone(), Arc::clone(&load), next.clone());
                tasks.spawn(async move {
                    let mut seen = Seen::new();
                    while begun.elapsed() < load.duration {
                        let due = Instant::now();
                        let answer = request(&mut client, &load, next.fetch_add(1, Ordering::Relaxed)).await;
                        seen.add(due, answer);
                    }
                    seen
                });
            }
            while let Some(part) = tasks.join_next().await {
                seen.merge(part.expect("no part of a load panics"));
            }
        }
        Arrivals::Open { rate } => {
            let mut tasks = JoinSet::new();
            for index in 0.. {
                let after = Duration::from_secs_f64(f64::from(index) / rate);
                if after >= load.duration {
                    break;
                }
                let due = begun + after;
                tokio::time::sleep_until(due.into()).await;
                let index = index as usize;
                let (mut client, load) = (clients[index % clients.len()].clone(), Arc::clone(&load));
                tasks.spawn(async move { (due, request(&mut client, &load, index).await) });
                while let Some(ended) = tasks.try_join_next() {
                    let (due, answer) = ended.expect("no part of a load panics");
                    seen.add(due, answer);
                }
            }
            while let Some(ended) = tasks.join_next().await {
                let (due, answer) = ended.expect("no part of a load panics");
                seen.add(due, answer);
            }
        }
    }
    seen.report(begun.elapsed())
}

/// Clips of the answer and when it came.
async fn request(client: &mut RpcClient, load: &Load, index: usize) -> Result<(u64, Instant), Status> {
    let clips = match &load.payload {
        Payload::Videos { videos, options } => {
            let video = videos[index % videos.len()].clone();
            let answer = client.classify_video(video, options.clone(), Some(load.timeout)).await?;
            answer.video.map_or(0, |video| video.clips)
        }
        Payload::Clips { model, shape, rgb } => {
            client.infer_clips(model, *shape, rgb.clone(), Some(load.timeout)).await?;
            shape[0] as u64
        }
    };
    Ok((clips, Instant::now()))
}

struct Seen {
    requests: u64,
    clips: u64,
    /// Microseconds.
    latency: Histogram<u64>,
    errors: BTreeMap<&'static str, u64>,
}

impl Seen {
    fn new() -> Self {
        let latency = Histogram::new(3).expect("three digits are allowed");
        Self { requests: 0, clips: 0, latency, errors: BTreeMap::new() }
    }

    fn add(&mut self, due: Instant, answer: Result<(u64, Instant), Status>) {
        self.requests += 1;
        match answer {
            Ok((clips, at)) => {
                self.clips += clips;
                let micros = u64::try_from((at - due).as_micros()).unwrap_or(u64::MAX);
                self.latency.record(micros).expect("the histogram grows by itself");
            }
            Err(status) => *self.errors.entry(code_name(status.code())).or_default() += 1,
        }
    }

    fn merge(&mut self, other: Self) {
        self.requests += other.requests;
        self.clips += other.clips;
        self.latency.add(other.latency).expect("the histogram grows by itself");
        for (code, count) in other.errors {
            *self.errors.entry(code).or_default() += count;
        }
    }

    fn report(self, elapsed: Duration) -> Report {
        let seconds = elapsed.as_secs_f64();
        let percentile = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1e3;
        Report {
            requests: self.requests,
            seconds,
            videos_per_second: self.latency.len() as f64 / seconds,
            clips_per_second: self.clips as f64 / seconds,
            latency_ms: Latency {
                p50: percentile(0.5),
                p90: percentile(0.9),
                p99: percentile(0.99),
                max: self.latency.max() as f64 / 1e3,
            },
            errors: self.errors,
            processors: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_counts_answers_and_errors_apart() {
        let mut seen = Seen::new();
        let due = Instant::now();
        for milliseconds in 1..=100 {
            seen.add(due, Ok((2, due + Duration::from_millis(milliseconds))));
        }
        seen.add(due, Err(Status::resource_exhausted("full")));
        let report = seen.report(Duration::from_secs(10));
        assert_eq!((report.requests, report.videos_per_second, report.clips_per_second), (101, 10.0, 20.0));
        assert_eq!(report.errors, BTreeMap::from([("RESOURCE_EXHAUSTED", 1)]));
        // Three digits.
        assert!((report.latency_ms.p50 - 50.0).abs() < 0.1 && (report.latency_ms.p99 - 99.0).abs() < 0.1);
    }
}
