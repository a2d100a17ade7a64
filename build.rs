//! Compiles the protocol definitions without protoc.

use std::{env, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["kinetoscope/v1/kinetoscope.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Served by reflection, and compared with the committed set by a test.
    fs::write(out.join("kinetoscope.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".kinetoscope.v1.Video")
        .bytes(".kinetoscope.v1.ClassifyVideoStreamRequest")
        .compile_fds(descriptors)?;
    Ok(())
}
