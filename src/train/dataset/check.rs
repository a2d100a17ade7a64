//! Whether the videos can be decoded, before hours of work.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Dataset, Example, Split};
use crate::model::spec::{ClipSpec, Preprocessing};
use crate::video::{DecodeOptions, Source, VideoError, decode_clips, probe};

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

/// How closely to look at each video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckDepth {
    /// Its headers and packets.
    Open,
    /// The first clip is decoded too.
    FirstClip,
}

impl Dataset {
    /// Opens the video of every example, `threads` at a time, and gives those that can't be read in the order of the splits.
    /// `progress` learns how many were looked at so far.
    pub fn check(
        &self,
        depth: CheckDepth,
        threads: usize,
        progress: impl Fn(usize) + Sync,
    ) -> Vec<(Split, Unreadable)> {
        let jobs: Vec<(Split, usize, &Example)> = Split::ALL
            .into_iter()
            .flat_map(|split| self.split(split).iter().enumerate().map(move |(i, example)| (split, i, example)))
            .collect();
        let (next, done, unreadable) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        let work = || {
            while let Some(&(split, index, example)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = look_at(example, depth) {
                    let found = Unreadable { example: index, video: example.video.clone(), error };
                    unreadable.lock().expect("nothing panics with the lock").insert((split, index), found);
                }
                progress(done.fetch_add(1, Ordering::Relaxed) + 1);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(work);
            }
        });
        let unreadable = unreadable.into_inner().expect("nothing panics with the lock");
        unreadable.into_iter().map(|((split, _), unreadable)| (split, unreadable)).collect()
    }
}

fn look_at(example: &Example, depth: CheckDepth) -> Result<(), VideoError> {
    let source = Source::Path(example.video.clone());
    let options = DecodeOptions { range: example.range, max_clips_wanted: Some(1), ..DecodeOptions::default() };
    match depth {
        CheckDepth::Open => probe(&source, &options).map(|_| ()),
        CheckDepth::FirstClip => {
            let (clip, preprocessing) = (ClipSpec::default(), Preprocessing::AUTHORS_2018);
            decode_clips(&source, &clip, &preprocessing, &options, |_| ControlFlow::Break(())).map(|_| ())
        }
    }
}
