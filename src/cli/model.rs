//! Arguments that choose a model and how it runs, shared by several subcommands.

use std::path::Path;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::engine::{DeviceError, DeviceRequest, Devices, EngineConfig, Precision};
use crate::model::builtin;
use crate::model::file::Model;
use crate::model::spec::Shortcut;

/// How the model runs.
#[derive(Debug, Args)]
pub(super) struct EngineArgs {
    /// Threads that compute; all cores if absent
    #[arg(long, env = "KINETOSCOPE_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
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
    #[arg(long, env = "KINETOSCOPE_DEVICE", value_name = "DEVICE", value_delimiter = ',')]
    device: Vec<DeviceRequest>,

    /// What GPUs compute with; CPUs compute in f32
    #[arg(long, env = "KINETOSCOPE_PRECISION", value_enum, value_name = "TYPE", default_value = "bf16")]
    precision: PrecisionArg,
}

impl DeviceArgs {
    pub(super) fn choose(&self) -> Result<Devices, DeviceError> {
        Devices::choose(&self.device, self.precision.into())
    }
}

/// What GPUs compute with.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrecisionArg {
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
impl From<DecodeIsolation> for crate::video::Isolation {
    fn from(isolation: DecodeIsolation) -> Self {
        match isolation {
            DecodeIsolation::Process => Self::Processes(crate::video::WorkerOptions::default()),
            DecodeIsolation::None => Self::None,
        }
    }
}

/// How to reach a server.
#[cfg(feature = "video")]
#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// Token to send, if the server wants one
    #[arg(long, env = "KINETOSCOPE_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// Root of the server's certificate, a PEM file, for https; the system's roots if absent
    #[arg(long, env = "KINETOSCOPE_CA", value_name = "FILE")]
    ca: Option<std::path::PathBuf>,
}

#[cfg(feature = "video")]
impl ServerArgs {
    pub(super) async fn connect(&self, server: &str) -> anyhow::Result<crate::rpc::client::Client> {
        const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
        let read =
            |path: &std::path::PathBuf| std::fs::read(path).with_context(|| format!("can't read {}", path.display()));
        let ca = self.ca.as_ref().map(read).transpose()?;
        let connection = crate::rpc::client::Connection { server: server.to_owned(), token: self.token.clone(), ca };
        let connected = crate::rpc::client::Client::connect(&connection, TIMEOUT).await;
        connected.with_context(|| format!("can't connect to the server {server}"))
    }
}

/// Where videos are classified: by a model on this machine or by a server.
#[cfg(feature = "video")]
#[derive(Debug, Args)]
pub(super) struct BackendArgs {
    /// Model file; the built-in model if absent
    #[arg(long, env = "KINETOSCOPE_MODEL", value_name = "FILE", conflicts_with = "server")]
    pub(super) model: Option<std::path::PathBuf>,

    /// Ask this server, such as 127.0.0.1:50051, instead of running a model here
    #[arg(long, env = "KINETOSCOPE_SERVER", value_name = "URL")]
    pub(super) server: Option<String>,

    #[command(flatten)]
    pub(super) connection: ServerArgs,

    /// Name of the server's model to ask; its default one if absent
    #[arg(long, value_name = "NAME", requires = "server")]
    pub(super) model_name: Option<String>,

    /// Give up on a video after this time
    #[arg(long, value_name = "TIME", requires = "server")]
    pub(super) timeout: Option<humantime::Duration>,

    /// Try a video again so often while the server is full, stopping or away
    #[arg(long, value_name = "N", default_value_t = 8, requires = "server")]
    pub(super) retries: u32,

    /// Videos worked on at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) concurrency: u16,

    #[command(flatten)]
    pub(super) device: DeviceArgs,

    #[command(flatten)]
    pub(super) engine: EngineArgs,

    /// Where videos are decoded: in locked-in processes (`process`), so that a video that breaks a decoder breaks
    /// nothing else, or in this one (`none`)
    #[arg(long, env = "KINETOSCOPE_DECODE_ISOLATION", value_enum, value_name = "WHERE", default_value = "process")]
    pub(super) decode_isolation: DecodeIsolation,
}

#[cfg(feature = "video")]
impl BackendArgs {
    /// The server's model to ask; its default one if `None`.
    pub(super) fn model_selector(&self) -> Option<crate::rpc::proto::ModelSelector> {
        let name = self.model_name.clone()?;
        Some(crate::rpc::proto::ModelSelector { name, version: String::new() })
    }
}

/// Reads a model file; the built-in model without one.
pub(super) fn load(path: Option<&Path>) -> anyhow::Result<Model> {
    match path {
        Some(path) => Model::read(path).with_context(|| format!("can't load the model {}", path.display())),
        None => builtin::model().context("can't load the built-in model"),
    }
}
