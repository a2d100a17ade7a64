//! The `kinetoscope` binary.

use std::process::ExitCode;

use candle_conv3d::TrainingAllocator;
use kinetoscope::cli::Cli;

/// The system's, unless `train` asks for more.
#[global_allocator]
static ALLOCATOR: TrainingAllocator = TrainingAllocator;

fn main() -> ExitCode {
    Cli::from_process().run()
}
