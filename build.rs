//! Compiles the protocol definitions without protoc, and notes what is built.

use std::process::Command;
use std::{env, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    // The page is embedded.
    println!("cargo:rerun-if-changed=web/dist");
    describe_build();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let compile = |file: &str, set: &str| -> Result<_, Box<dyn std::error::Error>> {
        let descriptors = protox::compile([file], ["proto"])?;
        // Served by reflection; our own is compared with the committed set by a test.
        fs::write(out.join(set), descriptors.encode_to_vec())?;
        Ok(descriptors)
    };
    let descriptors = compile("kinetoscope/v1/kinetoscope.proto", "kinetoscope.v1.bin")?;
    // Their names lead to their definitions, by which they become JSON.
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .bytes(".kinetoscope.v1.Video")
        .bytes(".kinetoscope.v1.ClassifyVideoStreamRequest")
        .bytes(".kinetoscope.v1.ClipResult")
        .compile_fds_with_config(descriptors, config)?;
    let descriptors = compile("inference/grpc_service.proto", "inference.bin")?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure().bytes(".inference").compile_fds_with_config(descriptors, config)?;
    Ok(())
}

/// Sets `KINETOSCOPE_COMMIT` and `KINETOSCOPE_FEATURES` for `--version`.
fn describe_build() {
    println!("cargo:rerun-if-env-changed=KINETOSCOPE_COMMIT");
    let given = env::var("KINETOSCOPE_COMMIT").ok();
    // Only a release is worth a build after each commit.
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = given.or_else(|| if is_release { head() } else { None });
    let prefix = "CARGO_FEATURE_";
    let features = env::vars().filter_map(|(name, _)| name.strip_prefix(prefix).map(str::to_owned));
    let mut features: Vec<String> = features.map(|name| name.to_lowercase().replace('_', "-")).collect();
    features.retain(|name| name != "default");
    features.sort();
    println!("cargo:rustc-env=KINETOSCOPE_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    println!("cargo:rustc-env=KINETOSCOPE_FEATURES={}", features.join(", "));
}

/// The commit that is checked out, if this is a checkout.
fn head() -> Option<String> {
    // Of a path that is not there, cargo takes each build for the first.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| fs::exists(log).is_ok_and(|exists| exists));
    if let Some(log) = log {
        println!("cargo:rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let line = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}
