//! All metrics and their names, in OpenMetrics or in Prometheus' older text, as whoever scrapes prefers.
//!
//! Labels are few and fixed: our own methods, status codes, reasons and stages, and the names of loaded models. Nothing
//! that a client sends becomes a label.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// How [`Metrics::encode`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4, which all tools read.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What an `Accept` header asks for: OpenMetrics if it is named and not liked less, else text.
    pub fn accepted(accept: &str) -> Self {
        let (mut text, mut open_metrics) = (0.0f32, 0.0f32);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut version) = (1.0, None);
            for (name, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            match media_type.as_str() {
                "application/openmetrics-text" if !matches!(version, Some("1.0.0" | "0.0.1") | None) => {}
                "application/openmetrics-text" => open_metrics = open_metrics.max(quality),
                "text/plain" if !matches!(version, Some("0.0.4") | None) => {}
                "text/plain" | "text/*" | "*/*" => text = text.max(quality),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// Its media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// OpenMetrics as text 0.0.4: there, what describes a counter has the name of its samples, an info is a gauge, and units
/// and the end are not told.
fn to_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        let describes = |what: &str| line.strip_prefix("# ")?.strip_prefix(what)?.strip_prefix(' ')?.split_once(' ');
        if let Some((_, words)) = describes("HELP") {
            help = words;
        } else if let Some((name, kind)) = describes("TYPE") {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            text.push_str(&format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

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
    process: ProcessMetrics,
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
            process: ProcessMetrics::default(),
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
    /// Everything, with how the engines of each model are right now and the bytes that its workers hold, those of engines
    /// included that were replaced and still answer.
    pub fn encode(
        &self,
        format: Format,
        engines: &BTreeMap<String, EngineGauges>,
        memory: &BTreeMap<String, u64>,
    ) -> String {
        // Of two scrapes at a time, none sees the other's gap.
        let _encoding = self.encoding.lock().unwrap_or_else(PoisonError::into_inner);
        self.queue_clips.clear();
        self.workers.clear();
        self.model_memory.clear();
        for (model, &bytes) in memory {
            self.model_memory.get_or_create(&[("model", Cow::Owned(model.clone()))]).set(bytes as i64);
        }
        for (model, gauges) in engines {
            let name = || Cow::Owned(model.clone());
            self.queue_clips.get_or_create(&[("model", name())]).set(gauges.queued_clips as i64);
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
        let encoded = encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, &self.process.registry))
            .and_then(|()| encode_eof(&mut text));
        encoded.expect("a string takes all text");
        match format {
            Format::Text => to_text(&text),
            Format::OpenMetrics => text,
        }
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

    /// What the process uses, by the names that all programs have for it.
    pub fn set_process(&self, now: ProcessGauges) {
        let metrics = &self.process;
        metrics.cpu_seconds.inner().fetch_max(now.cpu_seconds.to_bits(), Ordering::Relaxed);
        metrics.open_files.set(now.open_files as i64);
        metrics.max_files.set(now.max_files.map_or(i64::MAX, |max| max.min(i64::MAX as u64) as i64));
        metrics.resident_bytes.set(now.resident_bytes as i64);
        metrics.virtual_bytes.set(now.virtual_bytes as i64);
        metrics.start_seconds.set(now.start_seconds);
    }

    /// Bytes of request messages in memory right now.
    pub fn set_buffered_bytes(&self, bytes: usize) {
        self.buffered_bytes.set(bytes as i64);
    }
}

/// What the process uses, with the names of Prometheus's own clients: without this program's prefix.
#[derive(Debug)]
struct ProcessMetrics {
    registry: Registry,
    cpu_seconds: Counter<f64, AtomicU64>,
    open_files: Gauge,
    max_files: Gauge,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    start_seconds: Gauge<f64, AtomicU64>,
}

impl Default for ProcessMetrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::default(),
            cpu_seconds: Counter::default(),
            open_files: Gauge::default(),
            max_files: Gauge::default(),
            resident_bytes: Gauge::default(),
            virtual_bytes: Gauge::default(),
            start_seconds: Gauge::default(),
        };
        let mut registry = Registry::with_prefix("process");
        registry.register_with_unit(
            "cpu",
            "CPU time of the server without its decoder processes",
            Unit::Seconds,
            metrics.cpu_seconds.clone(),
        );
        registry.register("open_fds", "Files and connections that are open", metrics.open_files.clone());
        registry.register("max_fds", "Files and connections that may be open", metrics.max_files.clone());
        registry.register_with_unit("resident_memory", "Memory in use", Unit::Bytes, metrics.resident_bytes.clone());
        registry.register_with_unit(
            "virtual_memory",
            "Memory that is mapped",
            Unit::Bytes,
            metrics.virtual_bytes.clone(),
        );
        registry.register_with_unit(
            "start_time",
            "When the server was started, since 1970",
            Unit::Seconds,
            metrics.start_seconds.clone(),
        );
        Self { registry, ..metrics }
    }
}

/// What the process uses right now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessGauges {
    /// CPU time in seconds.
    pub cpu_seconds: f64,
    /// Files and connections that are open.
    pub open_files: usize,
    /// Files and connections that may be open; `None` without a limit.
    pub max_files: Option<u64>,
    /// Memory in use.
    pub resident_bytes: u64,
    /// Memory that is mapped.
    pub virtual_bytes: u64,
    /// When it was started, in seconds since 1970.
    pub start_seconds: f64,
}

/// How the engines of a model are right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineGauges {
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
    fn whoever_names_open_metrics_gets_it_and_others_get_text() {
        use Format::{OpenMetrics, Text};
        for (accept, expected) in [
            ("", Text),
            ("*/*", Text),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Text),
            ("text/plain;version=0.0.4", Text),
            ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", Text),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,text/plain;version=0.0.4;q=0.3",
                Text,
            ),
            ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OpenMetrics),
            (
                "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                OpenMetrics,
            ),
            ("Application/OpenMetrics-Text", OpenMetrics),
            ("application/openmetrics-text;q=0", Text),
            ("application/openmetrics-text;q=0.2, text/plain", Text),
            ("application/openmetrics-text;version=2.0.0", Text),
        ] {
            assert_eq!(Format::accepted(accept), expected, "{accept}");
        }
    }

    #[test]
    fn text_describes_each_metric_by_the_name_of_its_samples() {
        let metrics = Metrics::default();
        metrics.request_ended("ClassifyVideo", "OK");
        metrics.stage(Stage::Decode, Duration::from_millis(3));
        let encode = |format| metrics.encode(format, &BTreeMap::new(), &BTreeMap::new());
        assert!(encode(Format::OpenMetrics).ends_with("# EOF\n"));
        let text = encode(Format::Text);
        let mut described = std::collections::HashSet::new();
        for line in text.lines() {
            match line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                Some((name, kind)) => {
                    assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                    assert!(described.insert(name), "{name} is described once");
                    assert!(text.contains(&format!("# HELP {name} ")), "{name}");
                }
                None if line.starts_with('#') => assert!(line.starts_with("# HELP "), "{line}"),
                None => {
                    let name = line.split(['{', ' ']).next().unwrap();
                    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                    assert!(described.contains(name) || described.contains(of_histogram.unwrap()), "{line}");
                }
            }
        }
        assert!(text.contains("# TYPE kinetoscope_requests_total counter\n"), "{text}");
        assert!(text.contains("# TYPE kinetoscope_build_info gauge\n"), "{text}");
    }

    #[test]
    fn text_has_what_was_counted() {
        let metrics = Metrics::default();
        let in_flight = metrics.request_started("ClassifyVideo");
        metrics.request_ended("ClassifyVideo", "OK");
        metrics.stage(Stage::Decode, Duration::from_millis(3));
        let engines =
            BTreeMap::from([("m".to_owned(), EngineGauges { queued_clips: 4, idle: 1, ..Default::default() })]);
        let text = metrics.encode(Format::Text, &engines, &BTreeMap::from([("old".to_owned(), 7)]));
        for line in [
            "kinetoscope_requests_total{method=\"ClassifyVideo\",code=\"OK\"} 1",
            "kinetoscope_requests_in_flight{method=\"ClassifyVideo\"} 1",
            "kinetoscope_stage_seconds_bucket{le=\"0.005\",stage=\"decode\"} 1",
            "kinetoscope_queue_clips{model=\"m\"} 4",
            "kinetoscope_workers{model=\"m\",state=\"idle\"} 1",
            "kinetoscope_model_memory_bytes{model=\"old\"} 7",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(in_flight);
        let text = metrics.encode(Format::Text, &BTreeMap::new(), &BTreeMap::new());
        assert!(text.contains("kinetoscope_requests_in_flight{method=\"ClassifyVideo\"} 0"), "{text}");
        assert!(!text.contains("model=\"m\""), "a model that has gone is no longer told of\n{text}");
    }
}
