//! All metrics and their names, in OpenMetrics text as Prometheus reads it.
//!
//! Labels are few and fixed: our own methods, status codes, reasons and stages, and the names of loaded models. Nothing
//! that a client sends becomes a label.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Half a millisecond to two minutes.
const SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

const BATCH_CLIPS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];

/// What a measured time was spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// A video: until its last byte is here.
    Receive,
    /// A video: from its request to the start of its decoding.
    DecodeWait,
    /// A video: decoding, with its waits for other videos and for the model.
    Decode,
    /// A clip: until the model's queue has a place for it.
    Queue,
    /// A clip: in the queue until its batch starts.
    BatchWait,
    /// A batch: in the model.
    Compute,
    /// A video: from its request to its answer.
    Total,
}

impl Stage {
    const fn name(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::DecodeWait => "decode_wait",
            Self::Decode => "decode",
            Self::Queue => "queue",
            Self::BatchWait => "batch_wait",
            Self::Compute => "compute",
            Self::Total => "total",
        }
    }
}

/// The metrics of one server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels<2>, Counter>,
    in_flight: Family<Labels<1>, Gauge>,
    rejected: Family<Labels<1>, Counter>,
    stages: Family<Labels<1>, Histogram, fn() -> Histogram>,
    batch_clips: Family<Labels<1>, Histogram, fn() -> Histogram>,
    clips: Family<Labels<1>, Counter>,
    failed_batches: Family<Labels<1>, Counter>,
    worker_restarts: Family<Labels<1>, Counter>,
    compute_seconds: Family<Labels<1>, Counter<f64, AtomicU64>>,
    queue_clips: Family<Labels<1>, Gauge>,
    workers: Family<Labels<2>, Gauge>,
    model_memory: Family<Labels<1>, Gauge>,
    frames: Counter,
    video_bytes: Counter,
    corrupt_packets: Counter,
    decodes: Family<Labels<1>, Gauge>,
    decoder_restarts: Gauge,
    buffered_bytes: Gauge,
    cpu_seconds: Family<Labels<1>, Counter<f64, AtomicU64>>,
    encoding: Mutex<()>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("kinetoscope");
        let seconds: fn() -> Histogram = || Histogram::new(SECONDS);
        let batches: fn() -> Histogram = || Histogram::new(BATCH_CLIPS);
        let metrics = Self {
            requests: Family::default(),
            in_flight: Family::default(),
            rejected: Family::default(),
            stages: Family::new_with_constructor(seconds),
            batch_clips: Family::new_with_constructor(batches),
            clips: Family::default(),
            failed_batches: Family::default(),
            worker_restarts: Family::default(),
            compute_seconds: Family::default(),
            queue_clips: Family::default(),
            workers: Family::default(),
            model_memory: Family::default(),
            frames: Counter::default(),
            video_bytes: Counter::default(),
            corrupt_packets: Counter::default(),
            decodes: Family::default(),
            decoder_restarts: Gauge::default(),
            buffered_bytes: Gauge::default(),
            cpu_seconds: Family::default(),
            encoding: Mutex::default(),
            registry: Registry::default(),
        };
        let build = prometheus_client::metrics::info::Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the server", build);
        registry.register("requests", "Calls answered, by method and status code", metrics.requests.clone());
        registry.register("requests_in_flight", "Calls being worked on, by method", metrics.in_flight.clone());
        registry.register("rejected", "Requests refused before any work, by reason", metrics.rejected.clone());
        registry.register_with_unit("stage", "Time spent, by stage", Unit::Seconds, metrics.stages.clone());
        registry.register("batch_clips", "Clips in a batch, by model", metrics.batch_clips.clone());
        registry.register("clips", "Clips classified, by model", metrics.clips.clone());
        registry.register(
            "failed_batches",
            "Batches that the model failed on, by model",
            metrics.failed_batches.clone(),
        );
        registry.register("worker_restarts", "Workers replaced, by model", metrics.worker_restarts.clone());
        registry.register_with_unit(
            "model_compute",
            "Time in which workers were computing, by model",
            Unit::Seconds,
            metrics.compute_seconds.clone(),
        );
        registry.register("queue_clips", "Clips that wait for a batch, by model", metrics.queue_clips.clone());
        registry.register("workers", "Workers, by model and state", metrics.workers.clone());
        registry.register_with_unit(
            "model_memory",
            "Bytes that workers hold, by model",
            Unit::Bytes,
            metrics.model_memory.clone(),
        );
        registry.register("frames", "Frames decoded", metrics.frames.clone());
        registry.register_with_unit(
            "video",
            "Encoded bytes of decoded videos",
            Unit::Bytes,
            metrics.video_bytes.clone(),
        );
        registry.register("corrupt_packets", "Packets that could not be decoded", metrics.corrupt_packets.clone());
        registry.register("decodes", "Videos in the decode pool, by state", metrics.decodes.clone());
        registry.register(
            "decoder_restarts",
            "Decoder processes lost since the start",
            metrics.decoder_restarts.clone(),
        );
        registry.register_with_unit(
            "buffered",
            "Bytes of request messages held in memory",
            Unit::Bytes,
            metrics.buffered_bytes.clone(),
        );
        registry.register_with_unit(
            "cpu",
            "CPU time of the server and its decoder processes, by what it was spent on",
            Unit::Seconds,
            metrics.cpu_seconds.clone(),
        );
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// Everything, as OpenMetrics text, with how the engines of each model are right now.
    pub fn encode(&self, engines: &BTreeMap<String, EngineGauges>) -> String {
        // Of two scrapes at a time, none sees the other's gap.
        let _encoding = self.encoding.lock().unwrap_or_else(PoisonError::into_inner);
        self.queue_clips.clear();
        self.workers.clear();
        self.model_memory.clear();
        for (model, gauges) in engines {
            let name = || Cow::Owned(model.clone());
            self.queue_clips.get_or_create(&[("model", name())]).set(gauges.queued_clips as i64);
            self.model_memory.get_or_create(&[("model", name())]).set(gauges.memory_bytes as i64);
            let states = [
                ("starting", gauges.starting),
                ("failed", gauges.failed),
                ("idle", gauges.idle),
                ("busy", gauges.busy),
            ];
            for (state, count) in states {
                self.workers.get_or_create(&[("model", name()), ("state", state.into())]).set(count as i64);
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes all text");
        text
    }

    /// A call began; drop the guard when it ends.
    pub fn request_started(&self, method: &'static str) -> InFlight {
        let gauge = self.in_flight.get_or_create_owned(&[("method", method.into())]);
        gauge.inc();
        InFlight(gauge)
    }

    /// A call was answered.
    pub fn request_ended(&self, method: &'static str, code: &'static str) {
        self.requests.get_or_create(&[("method", method.into()), ("code", code.into())]).inc();
    }

    /// A request was refused before any work.
    pub fn rejected(&self, reason: &'static str) {
        self.rejected.get_or_create(&[("reason", reason.into())]).inc();
    }

    /// Time spent.
    pub fn stage(&self, stage: Stage, elapsed: Duration) {
        self.stages.get_or_create(&[("stage", stage.name().into())]).observe(elapsed.as_secs_f64());
    }

    /// A model's metrics, to be kept by its engine.
    pub(crate) fn model(&self, model: &str) -> ModelMetrics {
        let labels = [("model", Cow::Owned(model.to_owned()))];
        ModelMetrics {
            batch_clips: self.batch_clips.get_or_create_owned(&labels),
            clips: self.clips.get_or_create_owned(&labels),
            failed_batches: self.failed_batches.get_or_create_owned(&labels),
            worker_restarts: self.worker_restarts.get_or_create_owned(&labels),
            compute_seconds: self.compute_seconds.get_or_create_owned(&labels),
            compute: self.stages.get_or_create_owned(&[("stage", Stage::Compute.name().into())]),
            batch_wait: self.stages.get_or_create_owned(&[("stage", Stage::BatchWait.name().into())]),
        }
    }

    /// A video was decoded.
    pub fn decoded(&self, frames: u64, corrupt_packets: u64) {
        self.frames.inc_by(frames);
        self.corrupt_packets.inc_by(corrupt_packets);
    }

    /// Encoded bytes of videos came in.
    pub fn received(&self, bytes: u64) {
        self.video_bytes.inc_by(bytes);
    }

    /// How the decode pool is right now.
    pub fn set_decodes(&self, states: &[(&'static str, usize)], restarts: u64) {
        for &(state, count) in states {
            self.decodes.get_or_create(&[("state", state.into())]).set(count as i64);
        }
        self.decoder_restarts.set(restarts as i64);
    }

    /// CPU time since the start of the server, by what it was spent on.
    pub fn set_cpu(&self, parts: &[(&'static str, Duration)]) {
        for &(part, time) in parts {
            let counter = self.cpu_seconds.get_or_create(&[("part", part.into())]);
            // Never back, though accounts are read one after the other; positive floats are ordered as their bits are.
            counter.inner().fetch_max(time.as_secs_f64().to_bits(), Ordering::Relaxed);
        }
    }

    /// Bytes of request messages in memory right now.
    pub fn set_buffered_bytes(&self, bytes: usize) {
        self.buffered_bytes.set(bytes as i64);
    }
}

/// How the engines of a model are right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineGauges {
    /// Bytes that workers hold.
    pub memory_bytes: u64,
    /// Clips that wait for a batch.
    pub queued_clips: usize,
    /// Workers that are being built.
    pub starting: usize,
    /// Workers that can't be built and try again from time to time.
    pub failed: usize,
    /// Workers that wait for clips.
    pub idle: usize,
    /// Workers that run a batch.
    pub busy: usize,
}

/// What an engine counts.
#[derive(Debug, Clone)]
pub(crate) struct ModelMetrics {
    pub(crate) batch_clips: Histogram,
    pub(crate) clips: Counter,
    pub(crate) failed_batches: Counter,
    pub(crate) worker_restarts: Counter,
    pub(crate) compute_seconds: Counter<f64, AtomicU64>,
    pub(crate) compute: Histogram,
    pub(crate) batch_wait: Histogram,
}

/// A call that is being worked on.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_what_was_counted() {
        let metrics = Metrics::default();
        let in_flight = metrics.request_started("ClassifyVideo");
        metrics.request_ended("ClassifyVideo", "OK");
        metrics.stage(Stage::Decode, Duration::from_millis(3));
        let engines =
            BTreeMap::from([("m".to_owned(), EngineGauges { queued_clips: 4, idle: 1, ..Default::default() })]);
        let text = metrics.encode(&engines);
        for line in [
            "kinetoscope_requests_total{method=\"ClassifyVideo\",code=\"OK\"} 1",
            "kinetoscope_requests_in_flight{method=\"ClassifyVideo\"} 1",
            "kinetoscope_stage_seconds_bucket{le=\"0.005\",stage=\"decode\"} 1",
            "kinetoscope_queue_clips{model=\"m\"} 4",
            "kinetoscope_workers{model=\"m\",state=\"idle\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(in_flight);
        let text = metrics.encode(&BTreeMap::new());
        assert!(text.contains("kinetoscope_requests_in_flight{method=\"ClassifyVideo\"} 0"), "{text}");
        assert!(!text.contains("model=\"m\""), "a model that has gone is no longer told of\n{text}");
    }
}
