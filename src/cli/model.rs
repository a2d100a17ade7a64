//! Arguments that choose a model and how it runs, shared by several subcommands.

use std::path::Path;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::engine::EngineConfig;
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

/// Reads a model file; the built-in model without one.
pub(super) fn load(path: Option<&Path>) -> anyhow::Result<Model> {
    match path {
        Some(path) => Model::read(path).with_context(|| format!("can't load the model {}", path.display())),
        None => builtin::model().context("can't build the built-in model"),
    }
}
