//! From frames in display order to clips of fixed length.

use crate::model::spec::ClipSpec;

/// Cuts `frame_count` frames into clips of `clip.frames` indices in display order, taking every
/// `clip.temporal_stride`-th frame. The last, shorter window is looped to full length; no frames give no clips.
/// Source: sliding window of the authors' code (`SlidingWindow` of `temporal_transforms.py`, with `LoopPadding`).
pub fn sliding_window(frame_count: usize, clip: &ClipSpec) -> Vec<Vec<usize>> {
    let used: Vec<usize> = (0..frame_count).step_by(clip.temporal_stride.max(1)).collect();
    used.chunks(clip.frames.max(1)).map(|window| looped(window, clip.frames)).collect()
}

fn looped(window: &[usize], frames: usize) -> Vec<usize> {
    window.iter().copied().cycle().take(frames).collect()
}

/// The form of [`sliding_window`] for frames that come one by one.
#[derive(Debug, Clone)]
pub struct SlidingWindow {
    stride: usize,
    frames: usize,
}

/// Where a frame belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Clip, from 0.
    pub clip: usize,
    /// Position within the clip, from 0.
    pub slot: usize,
}

impl SlidingWindow {
    /// A window over videos of any length.
    pub fn new(clip: &ClipSpec) -> Self {
        Self { stride: clip.temporal_stride.max(1), frames: clip.frames.max(1) }
    }

    /// Where frame `number` belongs, in display order from 0; `None` if the temporal stride passes over it.
    pub fn place(&self, number: u64) -> Option<Place> {
        let number = usize::try_from(number).ok()?;
        let used = number / self.stride;
        number.is_multiple_of(self.stride).then_some(Place { clip: used / self.frames, slot: used % self.frames })
    }

    /// The first frame of clip `clip`.
    pub fn first_frame(&self, clip: usize) -> u64 {
        (clip as u64).saturating_mul(self.frames as u64).saturating_mul(self.stride as u64)
    }

    /// From the first frame of a clip to that of the next.
    pub fn frames_per_clip(&self) -> u64 {
        self.first_frame(1)
    }
}

/// Fills the slots after the first `filled` of a clip by repeating those in order. `clip` holds equally long frames of
/// `frame_len` elements.
pub fn loop_to_full_length(clip: &mut [u8], frame_len: usize, filled: usize) {
    let filled_len = filled * frame_len;
    let mut done = filled_len;
    while done < clip.len() && filled_len > 0 {
        let n = filled_len.min(clip.len() - done);
        clip.copy_within(0..n, done);
        done += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn clip(frames: usize, temporal_stride: usize) -> ClipSpec {
        ClipSpec { frames, size: 112, temporal_stride }
    }

    #[test]
    fn sixteen_frames_make_one_clip() {
        assert_eq!(sliding_window(16, &clip(16, 1)), vec![(0..16).collect::<Vec<_>>()]);
    }

    #[test]
    fn short_video_is_looped_to_clip_length() {
        assert_eq!(sliding_window(3, &clip(8, 1)), vec![vec![0, 1, 2, 0, 1, 2, 0, 1]]);
    }

    #[test]
    fn single_frame_fills_its_clip() {
        assert_eq!(sliding_window(1, &clip(4, 1)), vec![vec![0; 4]]);
    }

    #[test]
    fn tail_of_one_frame_is_kept_as_a_clip_of_its_own() {
        assert_eq!(sliding_window(17, &clip(16, 1))[1], vec![16; 16]);
    }

    #[test]
    fn no_frames_make_no_clips() {
        assert!(sliding_window(0, &clip(16, 1)).is_empty());
    }

    #[test]
    fn temporal_stride_takes_every_other_frame() {
        assert_eq!(sliding_window(9, &clip(4, 2)), vec![vec![0, 2, 4, 6], vec![8; 4]]);
    }

    proptest! {
        #[test]
        fn streaming_form_places_frames_as_the_whole_list_does(
            count in 0usize..200, frames in 1usize..20, stride in 1usize..5,
        ) {
            let clip = clip(frames, stride);
            let mut streamed: Vec<Vec<u8>> = Vec::new();
            let mut filled = 0;
            let window = SlidingWindow::new(&clip);
            for frame in 0..count {
                if let Some(Place { clip, slot }) = window.place(frame as u64) {
                    if slot == 0 {
                        prop_assert_eq!(window.first_frame(clip), frame as u64);
                        streamed.push(vec![0; frames]);
                    }
                    streamed[clip][slot] = frame as u8;
                    filled = slot + 1;
                }
            }
            if let Some(last) = streamed.last_mut() {
                loop_to_full_length(last, 1, filled);
            }
            let listed: Vec<Vec<u8>> =
                sliding_window(count, &clip).iter().map(|c| c.iter().map(|&i| i as u8).collect()).collect();
            prop_assert_eq!(streamed, listed);
        }
    }
}
