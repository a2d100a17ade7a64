//! Settings of `serve` from a TOML file, beside flags and environment.
//!
//! A key of the file is a flag's name with `_` for `-`, and means what the flag means: the file is turned into flags
//! that stand before those of the command line, so that there is one place that knows names, types and bounds. A flag
//! wins over its variable, that over the file, the file over the default.
//!
//! A variable that is set to nothing is as one that is not set, and one of a switch takes the usual words: see
//! [`with_variables`].

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

use crate::hub::HubOptions;

/// Name of the flag that names the file.
const FLAG: &str = "config";

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("can't read the configuration {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is no TOML.
    #[error("{}: {error}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: toml::de::Error,
    },
    /// No flag has this name.
    #[error("{}: there is no setting {key:?}{}", path.display(), suggestion.as_ref().map_or(String::new(), |name| format!("; did you mean {name:?}?")))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// What stands there.
        key: String,
        /// The name that is most like it.
        suggestion: Option<String>,
    },
    /// A value that no flag can have.
    #[error("{}: {key} is a {kind}; a setting is a text, number, true or false, or a list of these", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// Its key.
        key: String,
        /// TOML's word for what it is.
        kind: &'static str,
    },
}

/// Makes the variables of a program's flags mean what people expect: one that is empty is absent, as scripts and containers
/// pass on what they don't have; one of a switch is 1, 0, yes, no, true, false, on or off.
pub fn with_variables(program: Command) -> Command {
    let program = program.mut_args(|argument| {
        let Some(name) = argument.get_env() else { return argument };
        if std::env::var_os(name).is_some_and(|value| value.is_empty()) {
            argument.env(None::<&str>)
        } else if matches!(argument.get_action(), ArgAction::SetTrue) {
            argument.value_parser(BoolishValueParser::new())
        } else {
            argument
        }
    });
    program.mut_subcommands(with_variables)
}

/// Adds to an error about a flag's value that it is not the flag's but its variable's, where that is so.
pub fn name_variable(mut error: clap::Error, program: &Command) -> clap::Error {
    use clap::error::{ContextKind, ContextValue};
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let (flag, value) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue));
    let flag = flag.split(' ').next().unwrap_or_default().trim_start_matches("--");
    let arguments = program.get_subcommands().flat_map(Command::get_arguments).chain(program.get_arguments());
    let is_its = |argument: &&Arg| {
        let set = argument.get_env().and_then(variable);
        argument.get_long() == Some(flag) && set.is_some_and(|set| set.to_string_lossy().contains(&value))
    };
    if let Some(name) = arguments.filter(|_| !value.is_empty()).find(is_its).and_then(Arg::get_env) {
        let tip = format!("the variable {} has this value", name.to_string_lossy());
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// A variable that is set to something.
pub fn variable(name: impl AsRef<OsStr>) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Puts the settings of the file that `--config` or its variable names into the arguments of a program's `subcommand`,
/// unless they are there already.
pub fn expand(
    program: &Command,
    subcommand: &str,
    arguments: &[OsString],
    variable: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<Vec<OsString>, ConfigError> {
    let at = arguments.iter().position(|argument| argument == subcommand);
    let (Some(at), Some(command)) = (at, program.find_subcommand(subcommand)) else { return Ok(arguments.to_vec()) };
    let flags: Vec<&Arg> = command.get_arguments().chain(program.get_arguments()).collect();
    let given = &arguments[at + 1..];
    let Some(path) = config_path(&flags, given, &variable) else { return Ok(arguments.to_vec()) };
    let mut expanded = arguments[..=at].to_vec();
    for (key, value) in read(&path)? {
        let unknown =
            || ConfigError::UnknownKey { path: path.clone(), key: key.clone(), suggestion: suggestion(&flags, &key) };
        let flag = key.replace('_', "-");
        let argument = flags
            .iter()
            .find(|argument| argument.get_long() == Some(&flag) && flag != FLAG)
            .filter(|_| !key.contains('-'))
            .ok_or_else(unknown)?;
        let has_variable = argument.get_env().is_some_and(|name| variable(name).is_some());
        if has_variable || given.iter().any(|argument| is_flag(argument, &flag)) {
            continue;
        }
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            let text = match value {
                Value::String(text) => text,
                Value::Integer(number) => number.to_string(),
                Value::Float(number) => number.to_string(),
                Value::Boolean(true) if !argument.get_action().takes_values() => {
                    expanded.push(format!("--{flag}").into());
                    continue;
                }
                Value::Boolean(false) if !argument.get_action().takes_values() => continue,
                Value::Boolean(value) => value.to_string(),
                other => return Err(ConfigError::Kind { path, key, kind: other.type_str() }),
            };
            expanded.push(format!("--{flag}={text}").into());
        }
    }
    expanded.extend_from_slice(given);
    Ok(expanded)
}

/// The environment's settings for clouds: what their own tools, and `object_store`, name `AWS_...`, `GOOGLE_...` and
/// `AZURE_...`.
pub fn cloud_settings() -> Vec<(String, String)> {
    let is_theirs = |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
    let settings =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    settings.filter(|(name, _)| is_theirs(name)).collect()
}

/// The environment's settings for the Hugging Face Hub, as its own tools name them.
pub fn hub_options() -> HubOptions {
    hub_options_from(|name| std::env::var_os(name), std::env::home_dir())
}

fn hub_options_from(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> HubOptions {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let path = |name: &str| variable(name).map(PathBuf::from);
    let text = |name: &str| variable(name).and_then(|value| Some(value.into_string().ok()?.trim().to_owned()));
    let hf_home = path("HF_HOME").or_else(|| Some(user_cache(variable, home)?.join("huggingface")));
    let token_file = path("HF_TOKEN_PATH").or_else(|| Some(hf_home.as_ref()?.join("token")));
    // What `hf auth login` leaves.
    let saved = || Some(std::fs::read_to_string(token_file?).ok()?.trim().to_owned());
    let mut options = HubOptions {
        cache: path("HF_HUB_CACHE").or_else(|| Some(hf_home.as_ref()?.join("hub"))),
        token: text("HF_TOKEN").or_else(saved).filter(|token| !token.is_empty()),
        offline: text("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str())),
        ..HubOptions::default()
    };
    if let Some(endpoint) = text("HF_ENDPOINT") {
        options.endpoint = endpoint.trim_end_matches('/').to_owned();
    }
    options
}

/// Where this program keeps what it can make again; `None` for a user without a home.
#[cfg(feature = "cuda")]
pub fn cache_directory() -> Option<PathBuf> {
    Some(user_cache(|name| std::env::var_os(name), std::env::home_dir())?.join("kinetoscope"))
}

/// Where a user's programs keep what they can make again, by the XDG base directory specification.
fn user_cache(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let chosen = variable("XDG_CACHE_HOME").map(PathBuf::from).and_then(absolute);
    chosen.or_else(|| Some(home.and_then(absolute)?.join(".cache")))
}

fn is_flag(argument: &OsStr, flag: &str) -> bool {
    let argument = argument.to_string_lossy();
    argument
        .strip_prefix("--")
        .and_then(|rest| rest.strip_prefix(flag))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

fn config_path(flags: &[&Arg], given: &[OsString], variable: &impl Fn(&OsStr) -> Option<OsString>) -> Option<PathBuf> {
    let at = given.iter().position(|argument| is_flag(argument, FLAG));
    let from_flag = at.and_then(|at| match given[at].to_string_lossy().split_once('=') {
        Some((_, path)) => Some(path.into()),
        None => given.get(at + 1).map(PathBuf::from),
    });
    let argument = flags.iter().find(|argument| argument.get_long() == Some(FLAG))?;
    from_flag.or_else(|| variable(argument.get_env()?).map(PathBuf::from))
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
    toml::from_str(&text).map_err(|error| ConfigError::Toml { path: path.to_owned(), error })
}

fn suggestion(flags: &[&Arg], key: &str) -> Option<String> {
    let names = flags.iter().filter_map(|argument| argument.get_long()).filter(|name| *name != FLAG);
    let names = names.map(|name| name.replace('-', "_"));
    let close = names.map(|name| (strsim::jaro_winkler(&name, &key.replace('-', "_")), name));
    close.filter(|(likeness, _)| *likeness > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use clap::ArgAction;

    use super::*;

    fn program() -> Command {
        let serve = Command::new("serve")
            .arg(Arg::new("config").long("config").env("K_CONFIG"))
            .arg(Arg::new("max-batch").long("max-batch").env("K_MAX_BATCH"))
            .arg(Arg::new("model").long("model").action(ArgAction::Append))
            .arg(Arg::new("check").long("check").action(ArgAction::SetTrue));
        Command::new("kinetoscope").subcommand(serve).arg(Arg::new("log").long("log").global(true))
    }

    fn expanded(file: &str, given: &[&str], variable: Option<&str>) -> Result<Vec<String>, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        std::fs::write(&path, file).unwrap();
        let mut arguments: Vec<OsString> = ["kinetoscope", "serve", "--config"].map(OsString::from).into();
        arguments.push(path.into_os_string());
        arguments.extend(given.iter().map(OsString::from));
        let found = |name: &OsStr| (Some(name) == variable.map(OsStr::new)).then(|| "x".into());
        let expanded = expand(&program(), "serve", &arguments, found)?;
        let split = expanded.iter().position(|argument| argument == "--config").unwrap();
        assert_eq!(expanded[..2], ["kinetoscope", "serve"].map(OsString::from));
        assert_eq!(expanded[split..], arguments[2..], "what was given comes last, as it was");
        Ok(expanded[2..split].iter().map(|argument| argument.to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn settings_become_flags() {
        let file = "max_batch = 4\nmodel = [\"a\", \"b\"]\ncheck = true";
        assert_eq!(expanded(file, &[], None).unwrap(), ["--check", "--max-batch=4", "--model=a", "--model=b"]);
        assert!(expanded("check = false", &[], None).unwrap().is_empty());
        assert_eq!(expanded("log = \"debug\"", &[], None).unwrap(), ["--log=debug"]);
    }

    #[test]
    fn flags_and_variables_win_over_the_file() {
        let file = "max_batch = 4\nmodel = \"a\"";
        assert_eq!(expanded(file, &["--model", "z"], None).unwrap(), ["--max-batch=4"]);
        assert_eq!(expanded(file, &["--max-batch=9"], None).unwrap(), ["--model=a"]);
        assert_eq!(expanded(file, &[], Some("K_MAX_BATCH")).unwrap(), ["--model=a"]);
    }

    #[test]
    fn unknown_settings_are_errors_with_the_nearest_name() {
        for (file, hint) in [("max_bach = 4", "max_batch"), ("max-batch = 4", "max_batch"), ("models = \"a\"", "model")]
        {
            let error = expanded(file, &[], None).unwrap_err().to_string();
            assert!(error.contains(&format!("did you mean {hint:?}?")), "{error}");
        }
        assert!(!expanded("zzz = 1", &[], None).unwrap_err().to_string().contains("did you mean"));
        assert!(matches!(expanded("max_batch = {a = 1}", &[], None), Err(ConfigError::Kind { kind: "table", .. })));
        assert!(matches!(expanded("max_batch =", &[], None), Err(ConfigError::Toml { .. })));
    }

    #[test]
    fn the_hub_is_set_up_by_the_variables_of_its_own_tools() {
        let options = |variables: &[(&str, &str)]| {
            let variable =
                |asked: &str| variables.iter().find(|(name, _)| *name == asked).map(|(_, value)| OsString::from(value));
            hub_options_from(variable, Some("/home/me".into()))
        };
        let cache = |variables: &[(&str, &str)]| options(variables).cache.unwrap();
        assert_eq!(cache(&[]), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/c")]), Path::new("/c/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/c")]), Path::new("/h/hub"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/d"), ("HF_HOME", "/h")]), Path::new("/d"));
        assert_eq!(hub_options_from(|_| None, None).cache, None);

        let default = options(&[("HF_TOKEN", ""), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(
            (default.endpoint.as_str(), default.token, default.offline),
            ("https://huggingface.co", None, false)
        );
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_saved\n").unwrap();
        let home = ("HF_HOME", home.path().to_str().unwrap());
        assert_eq!(options(&[home]).token.as_deref(), Some("hf_saved"));
        let all = options(&[home, ("HF_TOKEN", "hf_x"), ("HF_ENDPOINT", "http://hub/"), ("HF_HUB_OFFLINE", "True")]);
        assert_eq!((all.endpoint.as_str(), all.token.as_deref(), all.offline), ("http://hub", Some("hf_x"), true));
        assert!(!format!("{all:?}").contains("hf_x"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let arguments = ["kinetoscope", "serve", "--config=/nowhere.toml"].map(OsString::from);
        let error = expand(&program(), "serve", &arguments, |_| None).unwrap_err().to_string();
        assert!(error.contains("/nowhere.toml"), "{error}");
    }
}
