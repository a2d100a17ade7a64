//! How far a command is, on the terminal, if standard error is one.

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use super::time;
use crate::proto::classify_video_stream_response::Event;

/// How soon a line that nothing changes moves, so that it is seen to live.
const TICK: Duration = Duration::from_millis(200);

/// A bar for some videos: of one it tells how far that is, of more how many are done.
pub(super) struct Progress {
    bar: ProgressBar,
    is_of_one: bool,
    clips: AtomicU64,
    failed: AtomicUsize,
}

impl Progress {
    pub(super) fn new(videos: usize) -> Self {
        let is_of_one = videos == 1;
        let bar = match io::stderr().is_terminal() && videos > 0 {
            false => ProgressBar::hidden(),
            true if is_of_one => ProgressBar::new_spinner().with_style(style("{spinner} {msg}")),
            true => ProgressBar::new(videos as u64)
                .with_style(style("{bar:30} {pos}/{len} videos, {per_sec}, {eta} left{msg}")),
        };
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Self { bar, is_of_one, clips: AtomicU64::new(0), failed: AtomicUsize::new(0) }
    }

    /// Takes note that a video is done.
    pub(super) fn done(&self, has_failed: bool) {
        self.failed.fetch_add(has_failed.into(), Ordering::Relaxed);
        if !self.is_of_one {
            self.bar.inc(1);
            self.tell_of_all();
        }
    }

    /// Prints something without the bar in its way.
    pub(super) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    fn tell_of_all(&self) {
        let clips = HumanCount(self.clips.load(Ordering::Relaxed));
        let failed = match self.failed.load(Ordering::Relaxed) {
            0 => String::new(),
            failed => format!(" ({failed} failed)"),
        };
        self.bar.set_message(format!(", {clips} clips{failed}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is right")
}

/// Tells a [`Progress`] about one video.
pub(super) struct Watch<'a> {
    /// `None` if nobody watches.
    progress: Option<&'a Progress>,
    clips: AtomicU64,
}

impl<'a> Watch<'a> {
    pub(super) fn new(progress: Option<&'a Progress>) -> Self {
        Self { progress, clips: AtomicU64::new(0) }
    }

    /// The bar, if it is this video's alone.
    fn own_bar(&self) -> Option<&ProgressBar> {
        self.progress.filter(|progress| progress.is_of_one).map(|progress| &progress.bar)
    }

    /// Decoding reads a file of so many bytes.
    pub(super) fn reads(&self, bytes: u64) {
        if let Some(bar) = self.own_bar() {
            bar.set_length(bytes);
            bar.set_style(style("{bar:30} {percent:>3}%, {eta} left: {msg}"));
        }
    }

    /// The video begins, once more if a server is asked again.
    pub(super) fn begins(&self) {
        let before = self.clips.swap(0, Ordering::Relaxed);
        if let Some(progress) = self.progress {
            progress.clips.fetch_sub(before, Ordering::Relaxed);
        }
    }

    /// A clip that ends at `end` was classified; decoding had read up to byte `position` then.
    pub(super) fn clip(&self, end: Duration, position: u64) {
        let clips = self.clips.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(progress) = self.progress else { return };
        progress.clips.fetch_add(1, Ordering::Relaxed);
        match self.own_bar() {
            Some(bar) => {
                bar.set_position(position);
                bar.set_message(words(end, clips));
            }
            None => progress.tell_of_all(),
        }
    }

    /// What a server tells.
    pub(super) fn event(&self, event: &Event) {
        let time = |time: Option<prost_types::Duration>| time.and_then(|time| Duration::try_from(time).ok());
        match event {
            Event::Clip(clip) => self.clip(time(clip.end).unwrap_or_default(), 0),
            Event::Progress(progress) => {
                let words = words(time(progress.position).unwrap_or_default(), progress.clips);
                if let Some(bar) = self.own_bar() {
                    bar.set_message(format!("{words}, {} sent", HumanBytes(progress.received_bytes)));
                }
            }
            Event::Classification(_) => {}
        }
    }
}

fn words(end: Duration, clips: u64) -> String {
    let unit = if clips == 1 { "clip" } else { "clips" };
    format!("{} of the video, {} {unit}", time::length(end.as_secs_f64()), HumanCount(clips))
}
