//! The `kinetoscope` binary.

use std::process::ExitCode;

use kinetoscope::cli::Cli;

fn main() -> ExitCode {
    Cli::from_process().run()
}
