//! `kinetoscope health`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args as ClapArgs;
use humantime::Duration;

use super::backend::describe;
use super::model::ServerArgs;

/// Ask whether a server takes requests
///
/// For health checks of containers, and for scripts that wait until a server is up. The exit status is 0 if it takes
/// requests, and 1 if it does not, can't be reached or gives no answer in time.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The server: HOST:PORT, https://HOST:PORT or unix:PATH
    #[arg(long, env = "KINETOSCOPE_SERVER", value_name = "URL", default_value = "127.0.0.1:50051")]
    server: String,

    /// Time in which it has to answer
    #[arg(long, value_name = "TIME", default_value = "5s")]
    timeout: Duration,

    #[command(flatten)]
    access: ServerArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { server, timeout, access } = args;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ask = async { access.connect(&server).await?.is_serving().await.map_err(|status| describe(&status)) };
    let asked = runtime.block_on(async { tokio::time::timeout(timeout.into(), ask).await });
    if asked.with_context(|| format!("the server {server} gave no answer within {timeout}"))?? {
        println!("serving");
        return Ok(ExitCode::SUCCESS);
    }
    println!("not serving");
    Ok(ExitCode::FAILURE)
}
