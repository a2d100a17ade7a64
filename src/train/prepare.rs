//! Re-encodes a dataset once, so that every epoch decodes it faster: small frames, and key frames so close that
//! a clip in the middle of a video begins soon after one.
//!
//! The work is done by the `ffmpeg` command. Outputs keep their folders and names, but for the ending, so that the
//! same annotations fit them.
//!
//! Each output is written under another name that this process has locked, counted against its source, and only then
//! gets its own: what has a video's name is whole, whatever ends a run and however often it is begun again.

mod command;
mod part;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::dataset::{Dataset, Split, SplitList, frames_as_video};
use crate::video::{DecodeOptions, Limits, Source, VideoError, count_frames, probe};
use part::{Claim, Part};

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
    /// The run was stopped before this one was done. It is no fault of the video.
    Stopped,
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
        let mut to = out.join(below);
        if !from.is_dir() {
            to.set_extension("mp4");
        } else {
            to.as_mut_os_string().push(".mp4");
        }
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

/// Writes down beside the outputs which of them are for validation, where the dataset doesn't tell by itself: the new files may
/// be divided otherwise, by other tools and versions. What an earlier run wrote there stays.
pub fn write_split(dataset: &Dataset, jobs: &[Job], out: &Path) -> Result<(), PrepareError> {
    if !dataset.divided {
        return Ok(());
    }
    let failed = |error: io::Error| PrepareError::Out { out: out.to_owned(), error };
    let before = SplitList::read(out).map_err(|error| failed(io::Error::other(error)))?;
    let to: HashMap<&PathBuf, &PathBuf> = jobs.iter().map(|job| (&job.from, &job.to)).collect();
    let mut entries = BTreeMap::new();
    for split in Split::ALL {
        for example in dataset.split(split) {
            let Some(to) = to.get(&example.video) else { continue };
            let below = to.strip_prefix(out).unwrap_or(to).to_string_lossy().into_owned();
            let was = before.as_ref().and_then(|before| before.get(&below));
            entries.insert(below, was.unwrap_or(split));
        }
    }
    SplitList::write(out, entries).map_err(failed)
}

/// Time between two looks at what another process is at.
const GLANCE: Duration = Duration::from_millis(100);

/// Does `jobs` that are not done, several at a time, and tells `on_outcome` of each. What is there is whole: outputs get
/// their names when they are finished and counted.
///
/// Several processes may do the same jobs at the same time: each output is made by one of them. `stop` ends FFmpeg's
/// processes at once; they also end with this process, whatever ends that.
pub fn prepare(
    jobs: &[Job],
    options: &PrepareOptions,
    stop: &CancellationToken,
    on_outcome: impl Fn(&Job, Outcome) + Sync,
) -> Result<(), PrepareError> {
    check_ffmpeg(&options.ffmpeg)?;
    let waiting: Mutex<VecDeque<&Job>> = Mutex::new(jobs.iter().collect());
    let queue = || waiting.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        loop {
            let Some(job) = queue().pop_front() else { return };
            match job.run(options, stop) {
                Some(outcome) => on_outcome(job, outcome),
                // Another process is at it: looked at again after the others.
                None => {
                    queue().push_back(job);
                    std::thread::sleep(GLANCE);
                }
            }
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
    /// `None` if another process is at it.
    fn run(&self, options: &PrepareOptions, stop: &CancellationToken) -> Option<Outcome> {
        if stop.is_cancelled() {
            return Some(Outcome::Stopped);
        }
        let part = match Part::claim(&self.to) {
            Ok(Claim::Ours(part)) => part,
            Ok(Claim::Others) => return None,
            Ok(Claim::Done) => return Some(Outcome::WasThere),
            Err(error) => return Some(Outcome::Failed(format!("can't write to {}: {error}", self.to.display()))),
        };
        let outcome = self.encode(part, options, stop);
        Some(if stop.is_cancelled() { Outcome::Stopped } else { outcome.unwrap_or_else(Outcome::Failed) })
    }

    fn encode(&self, part: Part, options: &PrepareOptions, stop: &CancellationToken) -> Result<Outcome, String> {
        let said = |error: io::Error| error.to_string();
        let frames = self.frames_file(&part)?;
        let from = frames.as_ref().map_or(self.from.as_path(), |file| file.path());
        // x264 takes even sizes only.
        let scale = format!("scale=-2:'trunc(min({},ih)/2)*2'", options.height);
        let mut command = Command::new(&options.ffmpeg);
        command.args(["-hide_banner", "-loglevel", "error", "-nostdin", "-y", "-threads", "1", "-i"]).arg(from);
        // V leaves out attached pictures such as covers.
        command.args(["-map", "0:V:0", "-map_metadata", "-1", "-an", "-fps_mode", "passthrough", "-vf", &scale]);
        command.args(["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-threads", "1"]);
        command.args(["-crf", &options.quality.to_string(), "-g", &options.key_frame_distance.to_string()]);
        command.args(["-movflags", "+faststart", "-f", "mp4"]).arg(part.path());
        let ended = command::run(command, part.lock().map_err(said)?, stop).map_err(said)?;
        let words = ended.words;
        if !ended.status.success() {
            return Err(match (words.is_empty(), ended.status.code()) {
                (_, None) => format!("ffmpeg did not end by itself ({}); run again, it is tried again", ended.status),
                (true, _) => ended.status.to_string(),
                (false, _) => words,
            });
        }
        let lacks = count(from, part.path(), !words.is_empty(), stop).map_err(|lack| format!("{lack} {words}"))?;
        part.persist(&self.to).map_err(said)?;
        let words: Vec<String> = lacks.into_iter().chain((!words.is_empty()).then_some(words)).collect();
        Ok(if words.is_empty() { Outcome::Done } else { Outcome::Damaged(words.join("; ")) })
    }

    /// The video that a folder of frames makes, for FFmpeg to read; `None` if the source is a file itself.
    fn frames_file(&self, part: &Part) -> Result<Option<tempfile::NamedTempFile>, String> {
        if !self.from.is_dir() {
            return Ok(None);
        }
        let bytes = frames_as_video(&self.from).map_err(|error| error.to_string())?;
        let folder = part.path().parent().unwrap_or(Path::new("."));
        let file = tempfile::Builder::new().prefix(".kinetoscope-").suffix(".avi.part").tempfile_in(folder);
        let written = file.and_then(|mut file| file.write_all(&bytes).map(|()| file));
        written.map(Some).map_err(|error| error.to_string())
    }
}

/// Decodes what came out and compares the number of its frames with that of the source. Of one that FFmpeg complained
/// about, some may be missing: how many is said.
fn count(from: &Path, part: &Path, damaged: bool, stop: &CancellationToken) -> Result<Option<String>, String> {
    // Training decodes a clip at a time; all of a long video may take longer than one is allowed to.
    let limits = Limits { max_cpu_time: Duration::from_secs(24 * 3600), ..Limits::default() };
    let options = DecodeOptions { limits, cancel: stop.clone(), ..DecodeOptions::default() };
    let made = count_frames(&Source::Path(part.to_owned()), &options)
        .map_err(|error| format!("what came out of it can't be read: {error}."))?;
    if !made.is_whole() || made.listed.is_none() {
        return Err(format!("what came out of it is not whole: {} frames can be decoded.", made.decoded));
    }
    let source = Source::Path(from.to_owned());
    // What FFmpeg decoded and this program can't, can't be counted.
    let uncounted = |error: VideoError| match error.is_input_fault() {
        true => Ok(None),
        false => Err(format!("its frames can't be counted: {error}.")),
    };
    let promised = match probe(&source, &options) {
        Ok(extent) => extent.map(|extent| extent.frames),
        Err(error) => return uncounted(error),
    };
    if promised.is_some_and(|promised| made.decoded >= promised) {
        return Ok(None);
    }
    // Some containers list no frames, and some list frames that are never shown.
    let shown = match count_frames(&source, &options) {
        Ok(shown) => shown,
        Err(error) => return uncounted(error),
    };
    match (made.decoded >= shown.decoded, damaged || shown.partial.is_some()) {
        (true, false) => Ok(None),
        (true, true) => Ok(promised.map(|promised| format!("{} of {promised} frames", made.decoded))),
        (false, true) => Ok(Some(format!("{} of {} frames", made.decoded, shown.decoded))),
        (false, false) => Err(format!("{} frames came out of it; it has {}.", made.decoded, shown.decoded)),
    }
}
