//! Logs: events with fields on stderr, for people or as JSON. Traces: the spans of requests, to an OpenTelemetry
//! collector.

#[cfg(feature = "otlp")]
pub(crate) mod otlp;

use std::io;

use clap::ValueEnum;
use tracing::Subscriber;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// Shape of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// Why there is no log or there are no traces.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log's filter makes no sense.
    #[error("--log: {0}")]
    Filter(#[from] ParseError),
    /// The collector's address makes no sense, or the system has no thread for the exporter.
    #[cfg(feature = "otlp")]
    #[error("--otlp: {0}")]
    Export(#[from] otlp::ExportError),
    /// This build sends no traces.
    #[error("this build has no feature `otlp`")]
    NoExport,
}

/// Keeps traces going to the collector; those left when it is dropped are sent first.
#[derive(Debug)]
#[must_use]
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    _export: Option<otlp::Export>,
}

/// Sends events to stderr. `filter` is a level or the directives of `tracing_subscriber::EnvFilter`, such as
/// `info,kinetoscope::engine=debug`. With a `collector`, such as `http://localhost:4317`, sends traces there over OTLP
/// (gRPC). A collector that can't be reached costs traces and nothing else: spans wait in a bounded queue and are dropped
/// when it is full.
pub fn init(format: LogFormat, filter: &str, collector: Option<&str>) -> Result<Telemetry, TelemetryError> {
    let registry = Registry::default().with(log(format, filter)?);
    #[cfg(feature = "otlp")]
    let (registry, export) = {
        let export = collector.map(otlp::Export::start).transpose()?;
        (registry.with(export.as_ref().map(otlp::Export::layer)), export)
    };
    #[cfg(not(feature = "otlp"))]
    if collector.is_some() {
        return Err(TelemetryError::NoExport);
    }
    registry.init();
    Ok(Telemetry {
        #[cfg(feature = "otlp")]
        _export: export,
    })
}

fn log<S>(format: LogFormat, filter: &str) -> Result<Box<dyn Layer<S> + Send + Sync>, ParseError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let filter = EnvFilter::try_new(filter)?;
    // Nobody may read standard error any more, to which such an error would be written.
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    Ok(match format {
        LogFormat::Text => {
            let ansi = io::IsTerminal::is_terminal(&io::stderr());
            layer.with_ansi(ansi).with_target(false).with_filter(filter).boxed()
        }
        LogFormat::Json => layer.json().flatten_event(true).with_filter(filter).boxed(),
    })
}
