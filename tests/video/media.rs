//! Media made with the `ffmpeg` command.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kinetoscope::model::spec::{ClipSpec, Preprocessing};
use kinetoscope::video::{Clip, DecodeOptions, Source, VideoError, VideoSummary, decode_clips};
use std::ops::ControlFlow;

/// A directory that goes away with its files.
pub(crate) struct Media(tempfile::TempDir);

impl Media {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `ffmpeg` with `args`, split at spaces, to make the file `name`.
    pub(crate) fn make(&self, name: &str, args: &str) -> PathBuf {
        let path = self.path(name);
        ffmpeg(args.split_whitespace().chain([path.to_str().expect("a UTF-8 path")]));
        path
    }

    /// Cuts the first `len` bytes of `of` into the file `name`.
    pub(crate) fn truncate(&self, of: &Path, name: &str, len: usize) -> PathBuf {
        let bytes = std::fs::read(of).expect("the file was made");
        self.write(name, &bytes[..len])
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("a temporary file");
        path
    }
}

/// Runs `ffmpeg` and returns what it wrote to standard output.
pub(crate) fn ffmpeg<'a>(args: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let output = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-nostdin", "-y"])
        .args(args)
        .stderr(Stdio::piped())
        .output()
        .expect("the ffmpeg command is installed (apt-get install ffmpeg)");
    assert!(output.status.success(), "ffmpeg failed: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Decodes with the published weights' clip geometry.
pub(crate) fn decode(source: &Path) -> Result<(Vec<Clip>, VideoSummary), VideoError> {
    decode_with(&Source::Path(source.into()), &Preprocessing::AUTHORS_2018, &DecodeOptions::default())
}

pub(crate) fn decode_with(
    source: &Source,
    preprocessing: &Preprocessing,
    options: &DecodeOptions,
) -> Result<(Vec<Clip>, VideoSummary), VideoError> {
    let mut clips = Vec::new();
    let summary = decode_clips(source, &ClipSpec::default(), preprocessing, options, |clip| {
        clips.push(clip);
        ControlFlow::Continue(())
    })?;
    Ok((clips, summary))
}
