//! Which frames a video has, by its packets alone, so that frames nobody wants need not be decoded.

/// A frame as its packet announces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListedFrame {
    /// Presentation time in the stream's ticks.
    pub(super) pts: i64,
    /// How long it is shown, in ticks; 0 if that is not said.
    pub(super) duration: i64,
}

/// A frame that can be decoded without those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyFrame {
    /// Presentation time in the stream's ticks.
    pub(super) pts: i64,
    /// Decoding time in ticks.
    pub(super) dts: Option<i64>,
}

/// The frames of one stream.
#[derive(Debug, Default)]
pub(super) struct FrameTable {
    /// In display order.
    frames: Vec<ListedFrame>,
    /// In display order, those before the first of `frames` included.
    keys: Vec<KeyFrame>,
}

impl FrameTable {
    /// Puts frames that came in decoding order into display order.
    pub(super) fn new(mut frames: Vec<ListedFrame>, mut keys: Vec<KeyFrame>) -> Self {
        frames.sort_by_key(|frame| frame.pts);
        keys.sort_by_key(|key| key.pts);
        Self { frames, keys }
    }

    /// The same with the frames for which `inside` is true only: a run, as `inside` looks at the time.
    pub(super) fn within(mut self, inside: impl Fn(&ListedFrame) -> bool) -> Self {
        self.frames.retain(inside);
        self
    }

    /// All frames.
    pub(super) fn frames(&self) -> impl Iterator<Item = ListedFrame> {
        self.frames.iter().copied()
    }

    /// How many frames there are.
    pub(super) fn len(&self) -> u64 {
        self.frames.len() as u64
    }

    /// Frame `number` in display order.
    pub(super) fn frame(&self, number: u64) -> Option<ListedFrame> {
        self.frames.get(usize::try_from(number).ok()?).copied()
    }

    /// The last frame.
    pub(super) fn last(&self) -> Option<ListedFrame> {
        self.frames.last().copied()
    }

    /// The last key frame shown at `pts` or before.
    pub(super) fn key_before(&self, pts: i64) -> Option<KeyFrame> {
        let after = self.keys.partition_point(|key| key.pts <= pts);
        self.keys.get(after.checked_sub(1)?).copied()
    }

    /// Whether a key frame is shown at `pts`.
    pub(super) fn has_key_at(&self, pts: i64) -> bool {
        self.keys.binary_search_by_key(&pts, |key| key.pts).is_ok()
    }

    /// How many frames are shown before `pts`.
    pub(super) fn frames_before(&self, pts: i64) -> u64 {
        self.frames.partition_point(|frame| frame.pts < pts) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> FrameTable {
        // I P B B I P B B, in decoding order.
        let frames = [0, 30, 10, 20, 40, 70, 50, 60].map(|pts| ListedFrame { pts, duration: 10 });
        let keys = [0, 40].map(|pts| KeyFrame { pts, dts: None });
        FrameTable::new(frames.to_vec(), keys.to_vec())
    }

    #[test]
    fn frames_are_numbered_in_display_order() {
        let table = table();
        assert_eq!([0, 1, 3, 7].map(|number| table.frame(number).map(|frame| frame.pts)), [0, 10, 30, 70].map(Some));
        assert_eq!((table.frame(8), table.len(), table.frames_before(40)), (None, 8, 4));
    }

    #[test]
    fn nearest_key_frame_is_at_or_before_a_frame() {
        let table = table();
        assert_eq!(
            [-1, 0, 39, 40, 99].map(|pts| table.key_before(pts).map(|key| key.pts)),
            [None, Some(0), Some(0), Some(40), Some(40)]
        );
        assert!(table.has_key_at(40) && !table.has_key_at(30));
    }

    #[test]
    fn range_keeps_key_frames_before_it() {
        let table = table().within(|frame| frame.pts >= 20 && frame.pts < 60);
        assert_eq!((table.len(), table.frame(0).map(|frame| frame.pts)), (4, Some(20)));
        assert_eq!(table.key_before(20).map(|key| key.pts), Some(0));
    }
}
