//! A bar on the terminal while an epoch is trained or validated.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::clock;

/// How far a pass over the data is: clips, rate, time left, mean loss. Hidden where there is no terminal; cleared when
/// it is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    loss_sum: f64,
    clips: u64,
}

impl Progress {
    /// A pass over `clips` clips, with a title such as `epoch 3 of 50` or `validation`.
    pub fn new(title: &str, clips: u64) -> Self {
        let template = "{prefix} {bar:30} {pos}/{len} clips, {per_sec}, {eta} left{msg}";
        let style = ProgressStyle::with_template(template).expect("the template is right");
        let bar = ProgressBar::new(clips).with_style(style).with_prefix(title.to_owned());
        Self { bar, loss_sum: 0.0, clips: 0 }
    }

    /// After a batch of `clips` clips with this mean loss; the whole run, of which this is a pass, still takes `run_left`.
    pub fn advance(&mut self, clips: u64, loss: f64, run_left: Option<Duration>) {
        self.loss_sum += loss * clips as f64;
        self.clips += clips;
        self.bar.inc(clips);
        let run_left = run_left.map_or_else(String::new, |left| format!(", {} of the run", clock(left)));
        self.bar.set_message(format!("{run_left}, loss {:.4}", self.loss_sum / self.clips.max(1) as f64));
    }

    /// Prints something without the bar in its way.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
