//! Compiles the protocol definitions without protoc.

use std::{env, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let compile = |file: &str, set: &str| -> Result<_, Box<dyn std::error::Error>> {
        let descriptors = protox::compile([file], ["proto"])?;
        // Served by reflection; our own is compared with the committed set by a test.
        fs::write(out.join(set), descriptors.encode_to_vec())?;
        Ok(descriptors)
    };
    let descriptors = compile("kinetoscope/v1/kinetoscope.proto", "kinetoscope.v1.bin")?;
    tonic_prost_build::configure()
        .bytes(".kinetoscope.v1.Video")
        .bytes(".kinetoscope.v1.ClassifyVideoStreamRequest")
        .compile_fds(descriptors)?;
    let descriptors = compile("inference/grpc_service.proto", "inference.bin")?;
    tonic_prost_build::configure().bytes(".inference").compile_fds(descriptors)?;
    Ok(())
}
