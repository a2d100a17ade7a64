//! Arguments that choose a model and how it runs, shared by several subcommands.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::{OsStringValueParser, TryMapValueParser, TypedValueParser, ValueParserFactory};
use clap::{Args, ValueEnum};

use crate::config;
use crate::convert::{Checkpoint, CheckpointError, MODEL_FILE, NEITHER};
use crate::engine::{DeviceError, DeviceRequest, Devices, EngineConfig, Precision};
use crate::hub::{Hub, InvalidName, ModelSource};
use crate::model::builtin;
use crate::model::file::{Model, ModelFileError};
use crate::zoo::resnet3d::Shortcut;

/// How the model runs.
#[derive(Debug, Args)]
pub(super) struct EngineArgs {
    /// Threads that compute; all cores if absent
    #[arg(long, env = "KINETOSCOPE_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          help_heading = "Work")]
    threads: Option<u16>,
}

impl EngineArgs {
    pub(super) fn threads(&self) -> usize {
        self.threads.map_or_else(|| EngineConfig::default().threads, usize::from)
    }
}

/// Where the model runs.
#[derive(Debug, Args)]
pub(super) struct DeviceArgs {
    /// Where models run: `cpu`, `cuda` (all GPUs) or `cuda:N`, which may be given several times. All GPUs that can be used
    /// if absent, or else the CPU
    #[arg(long, env = "KINETOSCOPE_DEVICE", value_name = "DEVICE", value_delimiter = ',', help_heading = "Work")]
    device: Vec<DeviceRequest>,

    /// What GPUs compute with; CPUs compute in f32
    #[arg(
        long,
        env = "KINETOSCOPE_PRECISION",
        value_enum,
        value_name = "TYPE",
        default_value = "bf16",
        help_heading = "Work"
    )]
    precision: PrecisionArg,
}

impl DeviceArgs {
    pub(super) fn choose(&self) -> Result<Devices, DeviceError> {
        Devices::choose(&self.device, self.precision.into())
    }
}

/// What GPUs compute with.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum PrecisionArg {
    Bf16,
    F16,
    F32,
    /// f32 whose products are rounded
    Tf32,
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::Bf16 => Self::Bf16,
            PrecisionArg::F16 => Self::F16,
            PrecisionArg::F32 => Self::F32,
            PrecisionArg::Tf32 => Self::Tf32,
        }
    }
}

/// Shortcut of the residual blocks.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ShortcutArg {
    A,
    B,
}

impl From<ShortcutArg> for Shortcut {
    fn from(shortcut: ShortcutArg) -> Self {
        match shortcut {
            ShortcutArg::A => Self::A,
            ShortcutArg::B => Self::B,
        }
    }
}

/// A setting of a network, `KEY=VALUE`.
pub(super) fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Where videos are decoded.
#[cfg(feature = "video")]
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum DecodeIsolation {
    /// In processes of their own, without network or files
    Process,
    /// In this process: for videos you trust
    None,
}

#[cfg(feature = "video")]
impl DecodeIsolation {
    /// Decoding there of videos within `limits`.
    pub(super) fn within(self, limits: &crate::video::Limits) -> crate::video::Isolation {
        self.with(crate::video::WorkerOptions::for_limits(limits))
    }

    /// The same, with processes of this kind.
    pub(super) fn with(self, workers: crate::video::WorkerOptions) -> crate::video::Isolation {
        match self {
            Self::Process => crate::video::Isolation::Processes(workers),
            Self::None => crate::video::Isolation::None,
        }
    }
}

/// How to reach a server.
#[cfg(feature = "video")]
#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// Token to send, if the server wants one
    #[arg(
        long,
        env = "KINETOSCOPE_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        help_heading = "Connection to a server"
    )]
    token: Option<String>,

    /// Root of the server's certificate, a PEM file, for https; the system's roots if absent
    #[arg(long, env = "KINETOSCOPE_CA", value_name = "FILE", help_heading = "Connection to a server")]
    ca: Option<std::path::PathBuf>,

    /// Certificate to show to a server that wants one of its clients (its --tls-client-ca), a PEM file
    #[arg(
        long,
        env = "KINETOSCOPE_CLIENT_CERTIFICATE",
        value_name = "FILE",
        requires = "client_key",
        help_heading = "Connection to a server"
    )]
    client_certificate: Option<std::path::PathBuf>,

    /// Private key of that certificate, a PEM file
    #[arg(
        long,
        env = "KINETOSCOPE_CLIENT_KEY",
        value_name = "FILE",
        requires = "client_certificate",
        help_heading = "Connection to a server"
    )]
    client_key: Option<std::path::PathBuf>,
}

#[cfg(feature = "video")]
impl ServerArgs {
    pub(super) async fn connect(&self, server: &str) -> anyhow::Result<crate::client::Client> {
        const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
        let read =
            |path: &std::path::PathBuf| std::fs::read(path).with_context(|| format!("can't read {}", path.display()));
        let ca = self.ca.as_ref().map(read).transpose()?;
        let identity = match (&self.client_certificate, &self.client_key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        let token = self.token.clone();
        let connection = crate::client::Connection { server: server.to_owned(), token, ca, identity };
        let connected = crate::client::Client::connect(&connection, TIMEOUT).await;
        connected.with_context(|| format!("can't connect to the server {server}"))
    }
}

impl ValueParserFactory for ModelSource {
    type Parser = TryMapValueParser<OsStringValueParser, fn(OsString) -> Result<Self, InvalidName>>;

    fn value_parser() -> Self::Parser {
        OsStringValueParser::new().try_map(Self::parse)
    }
}

/// Reads a model file; the built-in model without one.
pub(super) fn load(source: Option<&ModelSource>) -> anyhow::Result<Model> {
    match source {
        Some(source) => read(&locate(source)?),
        None => builtin::model().context("can't load the built-in model"),
    }
}

pub(super) fn read(path: &Path) -> anyhow::Result<Model> {
    Model::read(path).map_err(|error| {
        let names_its_path = matches!(error, ModelFileError::Io { .. });
        if let Some(what) = what_else(path).filter(|_| !names_its_path) {
            return anyhow::anyhow!("can't load the model {}: it is {what}", path.display());
        }
        let error = anyhow::Error::from(error);
        match names_its_path {
            true => error.context("can't load the model"),
            false => error.context(format!("can't load the model {}", path.display())),
        }
    })
}

/// What a file is that is no model file, if it is of a kind that people take for one.
fn what_else(path: &Path) -> Option<String> {
    match Checkpoint::open(path) {
        Ok(_) => Some(format!(
            "a checkpoint; `kinetoscope convert {} OUT.safetensors --labels FILE --preprocessing NAME` makes a model file of it",
            path.display()
        )),
        Err(CheckpointError::NotACheckpoint { what }) if ![NEITHER, MODEL_FILE].contains(&what) => {
            Some(what.to_owned())
        }
        Err(_) => None,
    }
}

/// A model file's path, where it is downloaded to if it is on the hub.
pub(super) fn locate(source: &ModelSource) -> anyhow::Result<PathBuf> {
    match source {
        ModelSource::Path(path) => Ok(path.clone()),
        ModelSource::Hub(model) => {
            let file = Hub::new(config::hub_options()).file(model);
            file.with_context(|| format!("can't get the model {model}"))
        }
    }
}
