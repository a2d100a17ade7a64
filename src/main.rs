//! The `kinetoscope` binary.

use std::process::ExitCode;

use clap::Parser;
use kinetoscope::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
