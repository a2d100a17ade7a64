//! Whether the videos can be decoded, before hours of work.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Dataset, Example, Split};
use crate::video::{Count, DecodeOptions, Limits, VideoError, count_frames, probe};

/// A video that could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Index of the example within its split.
    pub example: usize,
    /// The file.
    pub video: PathBuf,
    /// What is wrong with it.
    pub error: VideoError,
}

/// What [`Dataset::check`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It can't be used.
    Unreadable(Unreadable),
    /// It can, but not all of it is there.
    Incomplete {
        /// Index of the example within its split.
        example: usize,
        /// The file.
        video: PathBuf,
        /// What could be decoded, and what the container promises.
        count: Count,
    },
}

impl Finding {
    /// The file.
    pub fn video(&self) -> &Path {
        match self {
            Self::Unreadable(Unreadable { video, .. }) | Self::Incomplete { video, .. } => video,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(Unreadable { error, .. }) => write!(f, "{error}"),
            Self::Incomplete { count: Count { decoded, listed, partial }, .. } => {
                match listed {
                    Some(listed) => write!(f, "{decoded} of {listed} frames can be decoded")?,
                    None => write!(f, "{decoded} frames can be decoded")?,
                }
                partial.iter().try_for_each(|reason| write!(f, "; {reason}"))
            }
        }
    }
}

/// How closely to look at each video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckDepth {
    /// Its headers and packets.
    Open,
    /// All frames are decoded, and counted against what the container promises.
    Whole,
}

impl Dataset {
    /// Opens the video of every example, `threads` at a time, and gives those with something wrong in the order of the splits.
    /// `progress` learns how many were looked at so far.
    pub fn check(&self, depth: CheckDepth, threads: usize, progress: impl Fn(usize) + Sync) -> Vec<(Split, Finding)> {
        let jobs: Vec<(Split, usize, &Example)> = Split::ALL
            .into_iter()
            .flat_map(|split| self.split(split).iter().enumerate().map(move |(i, example)| (split, i, example)))
            .collect();
        let (next, done, findings) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        let work = || {
            while let Some(&(split, index, example)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Some(finding) = look_at(index, example, depth) {
                    findings.lock().expect("nothing panics with the lock").insert((split, index), finding);
                }
                progress(done.fetch_add(1, Ordering::Relaxed) + 1);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(work);
            }
        });
        let findings = findings.into_inner().expect("nothing panics with the lock");
        findings.into_iter().map(|((split, _), finding)| (split, finding)).collect()
    }
}

fn look_at(index: usize, example: &Example, depth: CheckDepth) -> Option<Finding> {
    // All of a video may take longer than a clip of it, which is what training decodes.
    let limits = Limits { max_cpu_time: Duration::from_secs(24 * 3600), ..Limits::default() };
    let options = DecodeOptions { limits, range: example.range, ..DecodeOptions::default() };
    let video = example.video.clone();
    let looked = example.source().and_then(|source| match depth {
        CheckDepth::Open => probe(&source, &options).map(|_| None),
        CheckDepth::Whole => count_frames(&source, &options).map(|count| (!count.is_whole()).then_some(count)),
    });
    match looked {
        Ok(incomplete) => incomplete.map(|count| Finding::Incomplete { example: index, video, count }),
        Err(error) => Some(Finding::Unreadable(Unreadable { example: index, video, error })),
    }
}
