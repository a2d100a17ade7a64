//! Traces over OTLP (gRPC).
//!
//! A call is a span that goes on the trace of its caller (W3C `traceparent`), with spans for its stages below.

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Status, TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::{Builder, Runtime};
use tonic::Code;
use tonic::codegen::http::HeaderMap;
use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// Name of the service in traces unless `OTEL_SERVICE_NAME` says another.
const SERVICE_NAME: &str = "kinetoscope";

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The collector's address makes no sense.
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
    /// The system gives no thread.
    #[error("can't start the exporter: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Sends traces until it is dropped; what is left then is sent first.
#[derive(Debug)]
pub(super) struct Export {
    provider: SdkTracerProvider,
    /// What the exporter's connection runs on, apart from the server's so that it outlives that.
    _runtime: Runtime,
}

impl Export {
    pub(super) fn start(collector: &str) -> Result<Self, ExportError> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("otlp").enable_all().build()?;
        let exporter = {
            let _entered = runtime.enter();
            SpanExporter::builder().with_tonic().with_endpoint(collector).build()?
        };
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(SERVICE_NAME);
        }
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
        Ok(Self { provider, _runtime: runtime })
    }

    /// Takes the server's own spans; those of the exporter's calls would never end.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let own = Targets::new().with_target("kinetoscope", LevelFilter::INFO);
        tracing_opentelemetry::layer().with_tracer(self.provider.tracer(SERVICE_NAME)).with_filter(own)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            eprintln!("kinetoscope: the last traces were not sent: {error}");
        }
    }
}

/// Makes a call's span go on the trace that the caller's headers name, if they name one.
pub(crate) fn continue_trace(span: &Span, path: &str, headers: &HeaderMap) {
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    // Without traces the span has no place for it.
    if span.set_parent(parent).is_ok() {
        span.record("otel.kind", "server");
        span.record("otel.name", path.trim_start_matches('/'));
    }
}

/// How a call ended, by the conventions for gRPC servers: what the caller did wrong is no error of the server.
pub(crate) fn set_status(span: &Span, code: Code) {
    span.set_attribute("rpc.grpc.status_code", i64::from(code as i32));
    let failed = [Code::Unknown, Code::DeadlineExceeded, Code::Unimplemented, Code::Internal, Code::Unavailable];
    if failed.contains(&code) || code == Code::DataLoss {
        span.set_status(Status::error(code.description()));
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}
