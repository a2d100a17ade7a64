//! The command line: arguments in, exit status out. One module a subcommand.

/// These stand before std's macros in all commands; see [`output`].
macro_rules! print {
    ($($text:tt)*) => { $crate::cli::output::print(format_args!($($text)*)) };
}
macro_rules! println {
    () => { $crate::cli::output::print(format_args!("\n")) };
    ($($text:tt)*) => { $crate::cli::output::print(format_args!("{}\n", format_args!($($text)*))) };
}
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::cli::output::tell(format_args!("{}\n", format_args!($($text)*))) };
}

#[cfg(feature = "video")]
mod backend;
mod bench;
#[cfg(feature = "video")]
mod classify;
mod convert;
#[cfg(feature = "video")]
mod data;
#[cfg(feature = "video")]
mod evaluate;
#[cfg(feature = "video")]
mod health;
#[cfg(feature = "video")]
mod input;
mod inspect;
#[cfg(feature = "video")]
mod limits;
mod model;
#[cfg(feature = "video")]
mod name;
mod output;
#[cfg(feature = "video")]
mod prepare;
#[cfg(feature = "video")]
mod progress;
#[cfg(feature = "video")]
mod report;
#[cfg(feature = "video")]
mod serve;
#[cfg(feature = "video")]
mod time;
#[cfg(feature = "video")]
mod train;
#[cfg(feature = "video")]
mod videos;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use crate::config;
use crate::telemetry::{self, LogFormat};

const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit: ",
    env!("KINETOSCOPE_COMMIT"),
    "\nfeatures: ",
    env!("KINETOSCOPE_FEATURES")
);

/// Tells what happens in videos: a server for 3D ResNets over HTTP and gRPC, and the tools around it.
#[derive(Debug, Parser)]
#[command(name = "kinetoscope", version, long_version = LONG_VERSION, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// What to log: a level (error, warn, info, debug, trace) or directives such as
    /// `info,kinetoscope::engine=debug`. `serve` logs `info` by default, other commands `warn`
    #[arg(long, global = true, env = "KINETOSCOPE_LOG", value_name = "FILTER")]
    log: Option<String>,

    /// Shape of the log on standard error
    #[arg(long, global = true, env = "KINETOSCOPE_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "video")]
    Serve(serve::Args),
    #[cfg(feature = "video")]
    Classify(classify::Args),
    #[cfg(feature = "video")]
    Train(Box<train::Args>),
    #[cfg(feature = "video")]
    Evaluate(evaluate::Args),
    #[cfg(feature = "video")]
    Prepare(prepare::Args),
    #[cfg(feature = "video")]
    Health(health::Args),
    Convert(convert::Args),
    Inspect(inspect::Args),
    Bench(bench::Args),
    /// Print what a shell needs to complete commands and flags
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write manual pages, one for each command
    Man {
        /// Where to
        directory: PathBuf,
    },
    /// Decode for the process that started this one
    #[cfg(feature = "video")]
    #[command(hide = true)]
    DecodeWorker,
}

impl Cli {
    /// Parses this process's arguments, with the settings of the file that `serve --config` names. Ends the process if
    /// they make no sense.
    pub fn from_process() -> Self {
        let program = config::with_variables(Cli::command());
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let arguments = match config::expand(&program, "serve", &arguments, |name| config::variable(name)) {
            Ok(arguments) => arguments,
            Err(error) => program.clone().error(clap::error::ErrorKind::InvalidValue, error).exit(),
        };
        let parsed = program.clone().try_get_matches_from(arguments).and_then(|matches| {
            let mut cli = Self::from_arg_matches(&matches)?;
            cli.settle(&matches)?;
            Ok(cli)
        });
        parsed.unwrap_or_else(|error| config::name_variable(error.format(&mut program.clone()), &program).exit())
    }

    /// Settles what arguments and variables say against each other.
    #[cfg_attr(not(feature = "video"), allow(unused_variables, reason = "no other command has a server"))]
    fn settle(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        #[cfg(feature = "video")]
        if let Some((_, matches)) = matches.subcommand() {
            match &mut self.command {
                Command::Classify(args) => args.backend.settle(matches)?,
                Command::Evaluate(args) => args.backend.settle(matches)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Runs the command. Errors go to standard error; success is status 0.
    pub fn run(self) -> ExitCode {
        #[cfg(feature = "video")]
        if let Command::DecodeWorker = self.command {
            return crate::video::run_worker();
        }
        let default_filter = match &self.command {
            #[cfg(feature = "video")]
            Command::Serve(_) | Command::Train(_) => "info",
            _ => "warn",
        };
        let filter = self.log.as_deref().unwrap_or(default_filter);
        let collector = match &self.command {
            #[cfg(all(feature = "otlp", feature = "video"))]
            Command::Serve(args) => args.otlp.as_deref(),
            _ => None,
        };
        // Sends the last traces when it is dropped.
        let _telemetry = match telemetry::init(self.log_format, filter, collector) {
            Ok(telemetry) => telemetry,
            Err(error) => {
                eprintln!("kinetoscope: {error}");
                return ExitCode::from(2);
            }
        };
        let result = match self.command {
            #[cfg(feature = "video")]
            Command::Serve(args) => serve::run(args),
            #[cfg(feature = "video")]
            Command::Classify(args) => classify::run(args),
            #[cfg(feature = "video")]
            Command::Train(args) => train::run(*args),
            #[cfg(feature = "video")]
            Command::Evaluate(args) => evaluate::run(args),
            #[cfg(feature = "video")]
            Command::Prepare(args) => prepare::run(args),
            #[cfg(feature = "video")]
            Command::Health(args) => health::run(args),
            Command::Convert(args) => convert::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "kinetoscope", &mut script);
                print!("{}", String::from_utf8_lossy(&script));
                Ok(ExitCode::SUCCESS)
            }
            Command::Man { directory } => man(&directory),
            #[cfg(feature = "video")]
            Command::DecodeWorker => unreachable!("it ran before"),
        };
        result.unwrap_or_else(|error| {
            eprintln!("kinetoscope: {}", with_causes(&error));
            ExitCode::FAILURE
        })
    }
}

/// An error and its causes, but for those whose words stand at the end of what they caused.
fn with_causes(error: &anyhow::Error) -> String {
    words_of(error.chain().map(ToString::to_string))
}

fn words_of(causes: impl Iterator<Item = String>) -> String {
    causes
        .reduce(|said, cause| if said.ends_with(&cause) { said } else { format!("{said}: {cause}") })
        .unwrap_or_default()
}

fn man(directory: &Path) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .with_context(|| format!("can't write manual pages to {}", directory.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_stand_below_headings() {
        let help = |name: &str| {
            let mut program = Cli::command();
            program.find_subcommand_mut(name).expect("a command").render_help().to_string()
        };
        for (command, headings) in [
            ("inspect", &["Options:"][..]),
            #[cfg(feature = "video")]
            ("serve", &["Network:", "Models:", "Work:", "Load:", "Limits of a video:", "Videos by URI:"]),
            #[cfg(feature = "video")]
            ("classify", &["Answer:", "Part of a video:", "Output:", "Model or server:", "Limits of a video:"]),
            #[cfg(feature = "video")]
            ("train", &["Data:", "Network:", "Clips:", "Recipe:", "Optimizer:", "Several processes:"]),
        ] {
            let help = help(command);
            headings
                .iter()
                .for_each(|heading| assert!(help.contains(&format!("\n{heading}\n")), "{heading} of {help}"));
        }
    }

    #[test]
    fn causes_are_said_once() {
        let said = |causes: &[&str]| words_of(causes.iter().map(|&cause| cause.to_owned()));
        assert_eq!(said(&["rank 1 is lost: it ended", "it ended"]), "rank 1 is lost: it ended");
        assert_eq!(said(&["can't read a.mp4", "no such file"]), "can't read a.mp4: no such file");
        assert_eq!(said(&["can't start", "same", "same"]), "can't start: same");
        assert_eq!(said(&[]), "");
    }
}
