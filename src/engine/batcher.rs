//! Which clips run together: a queue that is fair between videos, as a state machine that never looks at a clock.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

pub use crate::priority::Priority;
use crate::priority::Shares;

/// Names one video's clips in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VideoId(pub u64);

/// When a batch closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Clips in one batch at most.
    pub max_batch: usize,
    /// How long the oldest clip may wait for a batch to fill while a worker is idle. Zero runs what is there at once.
    pub max_delay: Duration,
}

/// Waiting clips. Items are handed out at most once, and each that was pushed is handed out or removed.
///
/// Within a class of priority, videos take turns, a clip each; the clips of one video stay in order.
#[derive(Debug)]
pub struct Batcher<T> {
    policy: BatchPolicy,
    /// Of each class of priority, the videos with waiting clips, the next in turn first.
    turns: [VecDeque<VideoId>; Priority::COUNT],
    shares: Shares,
    videos: HashMap<VideoId, Waiting<T>>,
    clips: usize,
    /// Clips whose first run failed, before all others.
    retries: VecDeque<T>,
}

#[derive(Debug)]
struct Waiting<T> {
    class: usize,
    clips: VecDeque<(Instant, T)>,
}

impl<T> Batcher<T> {
    /// An empty queue.
    pub fn new(policy: BatchPolicy) -> Self {
        let policy = BatchPolicy { max_batch: policy.max_batch.max(1), ..policy };
        Self {
            policy,
            turns: Default::default(),
            shares: Shares::default(),
            videos: HashMap::new(),
            clips: 0,
            retries: VecDeque::new(),
        }
    }

    /// Clips that wait, retries included.
    pub fn len(&self) -> usize {
        self.clips + self.retries.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a clip. A video keeps the priority of its first waiting clip.
    pub fn push(&mut self, video: VideoId, priority: Priority, now: Instant, clip: T) {
        let class = priority as usize;
        let waiting = self.videos.entry(video).or_insert_with(|| {
            self.turns[class].push_back(video);
            Waiting { class, clips: VecDeque::new() }
        });
        waiting.clips.push_back((now, clip));
        self.clips += 1;
    }

    /// Puts back a clip whose run failed, to run before all others.
    pub fn push_retry(&mut self, clip: T) {
        self.retries.push_back(clip);
    }

    /// Removes all waiting clips of a video; retries stay.
    pub fn remove(&mut self, video: VideoId) -> Vec<T> {
        let Some(waiting) = self.videos.remove(&video) else { return Vec::new() };
        self.turns[waiting.class].retain(|other| *other != video);
        self.clips -= waiting.clips.len();
        waiting.clips.into_iter().map(|(_, clip)| clip).collect()
    }

    /// Removes everything.
    pub fn drain(&mut self) -> Vec<T> {
        let mut clips: Vec<T> = self.retries.drain(..).collect();
        clips.extend(self.videos.drain().flat_map(|(_, waiting)| waiting.clips).map(|(_, clip)| clip));
        self.turns.iter_mut().for_each(VecDeque::clear);
        self.clips = 0;
        clips
    }

    /// When an idle worker should take a batch: `None` while nothing waits, a time that is past if a batch is ready.
    pub fn ready_at(&self, now: Instant) -> Option<Instant> {
        if self.is_empty() {
            return None;
        }
        if !self.retries.is_empty() || self.policy.max_delay.is_zero() || self.clips >= self.policy.max_batch {
            return Some(now);
        }
        // The first clip of each video is its oldest.
        let oldest = self.videos.values().filter_map(|waiting| waiting.clips.front()).map(|(since, _)| *since).min();
        oldest.map(|since| since + self.policy.max_delay)
    }

    /// Takes the next batch if one is ready, for a worker that starts it now. A clip that failed before runs alone, so
    /// that the one that is to blame fails no others again.
    pub fn take(&mut self, now: Instant) -> Option<Vec<T>> {
        self.ready_at(now).filter(|ready| *ready <= now)?;
        if let Some(clip) = self.retries.pop_front() {
            return Some(vec![clip]);
        }
        let limit = self.policy.max_batch;
        let mut batch = Vec::with_capacity(limit.min(self.clips));
        while batch.len() < limit
            && let Some(clip) = self.take_one()
        {
            batch.push(clip);
        }
        Some(batch)
    }

    fn take_one(&mut self) -> Option<T> {
        let class = self.shares.next(self.turns.each_ref().map(|turns| !turns.is_empty()))?;
        let turns = &mut self.turns[class];
        let video = turns.pop_front().expect("a class is chosen only if a video waits in it");
        let waiting = self.videos.get_mut(&video).expect("a video has a turn only while its clips wait");
        let (_, clip) = waiting.clips.pop_front().expect("a video has a turn only while its clips wait");
        if waiting.clips.is_empty() {
            self.videos.remove(&video);
        } else {
            turns.push_back(video);
        }
        self.clips -= 1;
        Some(clip)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn batcher(max_batch: usize, max_delay: u64) -> Batcher<(u64, u32)> {
        Batcher::new(BatchPolicy { max_batch, max_delay: Duration::from_millis(max_delay) })
    }

    fn push(batcher: &mut Batcher<(u64, u32)>, video: u64, clips: std::ops::Range<u32>, now: Instant) {
        for clip in clips {
            batcher.push(VideoId(video), Priority::Normal, now, (video, clip));
        }
    }

    #[test]
    fn a_short_video_does_not_wait_for_a_long_one() {
        let (mut batcher, now) = (batcher(4, 0), Instant::now());
        push(&mut batcher, 1, 0..100, now);
        push(&mut batcher, 2, 0..2, now);
        assert_eq!(batcher.take(now).unwrap(), [(1, 0), (2, 0), (1, 1), (2, 1)]);
        assert_eq!(batcher.take(now).unwrap(), [(1, 2), (1, 3), (1, 4), (1, 5)]);
    }

    #[test]
    fn a_batch_waits_to_fill_no_longer_than_the_delay() {
        let (mut batcher, start) = (batcher(3, 10), Instant::now());
        push(&mut batcher, 1, 0..1, start);
        let later = start + Duration::from_millis(9);
        assert_eq!(batcher.take(later), None);
        assert_eq!(batcher.ready_at(later), Some(start + Duration::from_millis(10)));
        push(&mut batcher, 2, 0..1, later);
        assert_eq!(batcher.take(start + Duration::from_millis(10)).unwrap().len(), 2, "the late one came along");
        push(&mut batcher, 1, 1..4, later);
        assert_eq!(batcher.take(later).unwrap().len(), 3, "full, so at once");
    }

    #[test]
    fn priorities_share_by_their_weights() {
        let (mut batcher, now) = (batcher(21, 0), Instant::now());
        for (video, priority) in [(0, Priority::Low), (1, Priority::Normal), (2, Priority::High)] {
            for clip in 0..100 {
                batcher.push(VideoId(video), priority, now, (video, clip));
            }
        }
        let batch = batcher.take(now).unwrap();
        let share = |video| batch.iter().filter(|(of, _)| *of == video).count();
        assert_eq!([share(0), share(1), share(2)], [1, 4, 16]);
    }

    #[test]
    fn a_class_that_was_empty_has_saved_nothing_up() {
        let (mut batcher, now) = (batcher(1, 0), Instant::now());
        push(&mut batcher, 1, 0..50, now);
        for _ in 0..50 {
            batcher.take(now).unwrap();
        }
        push(&mut batcher, 1, 0..20, now);
        for clip in 0..20 {
            batcher.push(VideoId(9), Priority::Low, now, (9, clip));
        }
        let low = (0..10).filter(|_| batcher.take(now).unwrap()[0].0 == 9).count();
        assert_eq!(low, 2);
    }

    #[test]
    fn failed_clips_run_first_and_alone() {
        let (mut batcher, now) = (batcher(4, 1000), Instant::now());
        push(&mut batcher, 1, 0..2, now);
        batcher.push_retry((7, 7));
        batcher.push_retry((8, 7));
        assert_eq!(batcher.take(now).unwrap(), [(7, 7)]);
        assert_eq!(batcher.take(now).unwrap(), [(8, 7)]);
        assert_eq!(batcher.take(now), None, "the others still wait for their batch to fill");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { video: u64, priority: usize },
        Take,
        Remove { video: u64 },
        Retry,
        Wait { millis: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..6u64, 0..3usize).prop_map(|(video, priority)| Step::Push { video, priority }),
            2 => Just(Step::Take),
            1 => (0..6u64).prop_map(|video| Step::Remove { video }),
            1 => Just(Step::Retry),
            1 => (0..8u64).prop_map(|millis| Step::Wait { millis }),
        ]
    }

    proptest! {
        #[test]
        fn every_clip_leaves_once_in_order_and_no_batch_is_over_its_limit(
            steps in prop::collection::vec(step(), 0..200),
            max_batch in 1..6usize,
            max_delay in 0..10u64,
        ) {
            let mut batcher = batcher(max_batch, max_delay);
            let mut now = Instant::now();
            let (mut next, mut left, mut retried) = (0u32, HashSet::new(), HashSet::new());
            let mut last_of = HashMap::new();
            let mut last_batch: Vec<(u64, u32)> = Vec::new();
            for step in steps {
                match step {
                    Step::Push { video, priority } => {
                        batcher.push(VideoId(video), Priority::ALL[priority], now, (video, next));
                        next += 1;
                    }
                    Step::Take => {
                        let due = batcher.ready_at(now).is_some_and(|at| at <= now);
                        let batch = batcher.take(now);
                        prop_assert_eq!(batch.is_some(), due);
                        let batch = batch.unwrap_or_default();
                        prop_assert!(batch.len() <= max_batch);
                        for clip in &batch {
                            if retried.remove(clip) {
                                continue;
                            }
                            prop_assert!(left.insert(*clip), "{clip:?} left twice");
                            let last = last_of.insert(clip.0, clip.1);
                            prop_assert!(last.is_none_or(|last| last < clip.1), "clips of a video stay in order");
                        }
                        last_batch = batch;
                    }
                    Step::Remove { video } => {
                        for clip in batcher.remove(VideoId(video)) {
                            prop_assert!(left.insert(clip), "{clip:?} left twice");
                        }
                    }
                    Step::Retry => {
                        if let Some(clip) = last_batch.pop() {
                            retried.insert(clip);
                            batcher.push_retry(clip);
                        }
                    }
                    Step::Wait { millis } => now += Duration::from_millis(millis),
                }
                prop_assert_eq!(batcher.len(), next as usize - left.len() + retried.len());
            }
            for clip in batcher.drain() {
                prop_assert!(retried.remove(&clip) || left.insert(clip), "{clip:?} left twice");
            }
            prop_assert_eq!(left.len(), next as usize);
            prop_assert!(batcher.is_empty() && batcher.take(now).is_none());
        }

        /// Whatever else waits and keeps coming, a clip runs after a bounded number of others.
        #[test]
        fn nobody_starves(others in 1..8u64, priority in 0..3usize, ahead in 0..5u32, max_batch in 1..9usize) {
            let (mut batcher, now) = (batcher(max_batch, 0), Instant::now());
            for clip in 0..=ahead {
                batcher.push(VideoId(0), Priority::ALL[priority], now, (0, clip));
            }
            // Weights add up to 21: a class has a turn at least every 21 clips, a video every `others + 1` turns.
            let bound = 21 * (others as usize + 1) * (ahead as usize + 1);
            let mut ran = 0;
            loop {
                for video in 1..=others {
                    batcher.push(VideoId(video), Priority::ALL[video as usize % 3], now, (video, ran as u32));
                    batcher.push(VideoId(video), Priority::ALL[video as usize % 3], now, (video, ran as u32));
                }
                let batch = batcher.take(now).expect("clips wait");
                ran += batch.len();
                if batch.contains(&(0, ahead)) {
                    break;
                }
                prop_assert!(ran <= bound, "still waiting after {ran} clips");
            }
        }
    }
}
