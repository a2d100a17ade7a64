//! Re-encodes a dataset once, so that every epoch decodes it faster: small frames, and key frames so close that
//! a clip in the middle of a video begins soon after one.
//!
//! The work is done by the `ffmpeg` command. Outputs keep their folders and names, but for the ending, so that the
//! same annotations fit them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::dataset::{Dataset, Split};
use crate::video::{DecodeOptions, Source, probe};

/// How videos are re-encoded: H.264 in MP4, without sound, with all frames and their times.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Largest height in pixels; 360, as the paper's. Lower videos keep theirs.
    pub height: u32,
    /// Frames from one key frame to the next; 16. A clip's first frame is half of that after one on average.
    pub key_frame_distance: u32,
    /// x264's constant rate factor: less is better and larger; 20, at which losses are hardly visible.
    pub quality: u32,
    /// Videos at a time, one thread each.
    pub jobs: usize,
    /// The command.
    pub ffmpeg: PathBuf,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        Self { height: 360, key_frame_distance: 16, quality: 20, jobs: 2, ffmpeg: "ffmpeg".into() }
    }
}

/// Why nothing can be re-encoded at all.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// No such command.
    #[error("can't run {}: {error}; it comes with FFmpeg (Debian: apt-get install ffmpeg)", .command.display())]
    NoFfmpeg {
        /// What was to be run.
        command: PathBuf,
        /// Why it did not.
        error: std::io::Error,
    },
    /// A build without x264.
    #[error("{} has no encoder libx264; a build of FFmpeg with x264 is needed", .0.display())]
    NoEncoder(PathBuf),
    /// The output would become part of the input.
    #[error("{} is within the dataset's own folder {}; choose another", .out.display(), .root.display())]
    OutWithinDataset {
        /// Where outputs were to go.
        out: PathBuf,
        /// Where the dataset is.
        root: PathBuf,
    },
    /// The output's folder can't be made.
    #[error("can't write to {}: {error}", .out.display())]
    Out {
        /// Where outputs were to go.
        out: PathBuf,
        /// Why they can't.
        error: std::io::Error,
    },
}

/// One video to re-encode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The original.
    pub from: PathBuf,
    /// What is made of it.
    pub to: PathBuf,
}

/// What became of a [`Job`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// What could be decoded is done; FFmpeg's words on the rest.
    Damaged(String),
    /// An earlier run did it.
    WasThere,
    /// Nothing was made; why.
    Failed(String),
}

/// The videos of `dataset`, each once, and where they go below `out`.
pub fn jobs(dataset: &Dataset, out: &Path) -> Result<Vec<Job>, PrepareError> {
    let failed = |error| PrepareError::Out { out: out.to_owned(), error };
    // Refused before it is made: within the dataset, it would be one more class.
    let absolute = std::path::absolute(out).map_err(failed)?;
    let there = absolute.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    if there.canonicalize().map_err(failed)?.starts_with(dataset.root.canonicalize().map_err(failed)?) {
        return Err(PrepareError::OutWithinDataset { out: out.to_owned(), root: dataset.root.clone() });
    }
    fs::create_dir_all(out).map_err(failed)?;
    let examples = Split::ALL.into_iter().flat_map(|split| dataset.split(split));
    let videos: BTreeSet<&PathBuf> = examples.map(|example| &example.video).collect();
    let mut taken = BTreeSet::new();
    let jobs = videos.into_iter().map(|from| {
        let below = from.strip_prefix(&dataset.root).unwrap_or(from);
        let mut to = out.join(below).with_extension("mp4");
        // Beside a.mp4 there may be an a.avi.
        if !taken.insert(to.clone()) {
            to = out.join(below);
            to.as_mut_os_string().push(".mp4");
            taken.insert(to.clone());
        }
        Job { from: from.clone(), to }
    });
    Ok(jobs.collect())
}

/// Does `jobs` that are not done, several at a time, and tells `on_outcome` of each. What is there is whole: outputs get
/// their names when they are finished.
pub fn prepare(
    jobs: &[Job],
    options: &PrepareOptions,
    on_outcome: impl Fn(&Job, Outcome) + Sync,
) -> Result<(), PrepareError> {
    check_ffmpeg(&options.ffmpeg)?;
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            on_outcome(job, job.run(options));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(work);
        }
    });
    Ok(())
}

fn check_ffmpeg(command: &Path) -> Result<(), PrepareError> {
    let listed = Command::new(command).args(["-hide_banner", "-encoders"]).stdin(Stdio::null()).output();
    let listed = listed.map_err(|error| PrepareError::NoFfmpeg { command: command.to_owned(), error })?;
    if !String::from_utf8_lossy(&listed.stdout).contains(" libx264 ") {
        return Err(PrepareError::NoEncoder(command.to_owned()));
    }
    Ok(())
}

impl Job {
    fn run(&self, options: &PrepareOptions) -> Outcome {
        if self.to.exists() {
            return Outcome::WasThere;
        }
        // Hidden, so that no dataset takes it for a video; an interrupted run's is overwritten.
        let mut name = OsString::from(".");
        name.push(self.to.file_name().unwrap_or_default());
        name.push(".part");
        let part = self.to.with_file_name(name);
        let outcome = self.encode(&part, options).unwrap_or_else(Outcome::Failed);
        if let Outcome::Failed(_) = outcome {
            // There may be none.
            let _ = fs::remove_file(&part);
        }
        outcome
    }

    fn encode(&self, part: &Path, options: &PrepareOptions) -> Result<Outcome, String> {
        let said = |error: std::io::Error| error.to_string();
        fs::create_dir_all(self.to.parent().unwrap_or(Path::new("."))).map_err(said)?;
        // x264 takes even sizes only.
        let scale = format!("scale=-2:'trunc(min({},ih)/2)*2'", options.height);
        let mut command = Command::new(&options.ffmpeg);
        command.args(["-hide_banner", "-loglevel", "error", "-nostdin", "-y", "-threads", "1", "-i"]).arg(&self.from);
        // V leaves out attached pictures such as covers.
        command.args(["-map", "0:V:0", "-map_metadata", "-1", "-an", "-fps_mode", "passthrough", "-vf", &scale]);
        command.args(["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-threads", "1"]);
        command.args(["-crf", &options.quality.to_string(), "-g", &options.key_frame_distance.to_string()]);
        command.args(["-movflags", "+faststart", "-f", "mp4"]).arg(part);
        let output = command.stdin(Stdio::null()).output().map_err(said)?;
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if !output.status.success() {
            return Err(if words.is_empty() { output.status.to_string() } else { first_lines(&words) });
        }
        match probe(&Source::Path(part.to_owned()), &DecodeOptions::default()) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(format!("no frames came out of it. {}", first_lines(&words))),
            Err(error) => return Err(format!("what came out of it can't be read: {error}. {}", first_lines(&words))),
        }
        File::open(part).and_then(|file| file.sync_all()).map_err(said)?;
        fs::rename(part, &self.to).map_err(said)?;
        Ok(if words.is_empty() { Outcome::Done } else { Outcome::Damaged(first_lines(&words)) })
    }
}

/// The first of FFmpeg's words; a damaged file makes it say thousands.
fn first_lines(words: &str) -> String {
    words.lines().take(3).collect::<Vec<_>>().join("; ")
}
