//! `cargo bench --bench decode -- FILE...` prints a JSON row for each video.

#[cfg(feature = "video")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    for video in std::env::args().skip(1).filter(|argument| !argument.starts_with("--")) {
        println!("{}", serde_json::to_string(&kinetoscope::bench::decode::measure(video.as_ref(), 1, 7)?)?);
    }
    Ok(())
}

#[cfg(not(feature = "video"))]
fn main() {}
