//! Any bytes, as a video, in this process: an error or clips, never a panic, a bad access, a leak or a hang.
//!
//! The last byte says how they are decoded (see `Way`), which leaves the headers at the beginning as they are.

#![no_main]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kinetoscope::model::spec::{ClipSpec, Preprocessing};
use kinetoscope::video::{
    Crop, DecodeOptions, Limits, Source, SpoolOptions, TimeRange, VideoError, VideoSummary, decode_clips, spool,
};
use libfuzzer_sys::{Corpus, fuzz_target};
use tokio_util::sync::CancellationToken;

const FEATURES: usize = 1 << 14;

/// FFmpeg is not instrumented, so the fuzzer sees no coverage of it. What it answers is counted here instead, where
/// libFuzzer looks for further counters: an input with an answer that was not seen before is kept.
// SAFETY: libFuzzer reads and clears the bytes of this section between runs; they have no invalid values, and atomics are
// laid out as what they hold.
#[unsafe(link_section = "__libfuzzer_extra_counters")]
static ANSWERS: [AtomicU8; FEATURES] = [const { AtomicU8::new(0) }; FEATURES];

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&way, video)) = data.split_last() else { return Corpus::Reject };
    let way = Way::from_byte(way);
    let limits = Limits {
        max_bytes: 1 << 20,
        max_frames: 100,
        max_clips: 20,
        max_duration: Duration::from_secs(60),
        max_pixels: 640 * 480,
        max_cpu_time: Duration::from_secs(5),
    };
    let (range, crop, clip_stride) = (way.range, way.crop, way.clip_stride);
    let options = DecodeOptions { limits, range, crop, clip_stride, ..Default::default() };
    let clip = ClipSpec { frames: 8, ..ClipSpec::default() };
    let (mut clips, mut frames) = (0, 0);
    let result = decode_clips(&way.source(video), &clip, &way.preprocessing, &options, |clip_found| {
        assert_eq!((clip_found.index, clip_found.rgb.len()), (clips * clip_stride, clip.rgb_len()), "{clip_found:?}");
        assert!(clip_found.start <= clip_found.end && (1..=clip.frames).contains(&clip_found.frames));
        clips += 1;
        frames += clip_found.frames as u64;
        ControlFlow::Continue(())
    });
    if let Ok(summary) = &result {
        assert_eq!(summary.clips, clips as u64, "{summary:?}");
        assert!(clip_stride > 1 || summary.frames == frames, "every frame is in one clip: {summary:?}");
        let max_frames = if clip_stride > 1 { u64::MAX } else { options.limits.max_frames };
        assert!((1..=max_frames).contains(&summary.frames), "{summary:?}");
        assert!(u64::from(summary.width) * u64::from(summary.height) <= options.limits.max_pixels, "{summary:?}");
    }
    count_answer(&result);
    Corpus::Keep
});

/// How a video is decoded.
struct Way {
    upload: bool,
    range: TimeRange,
    crop: Crop,
    preprocessing: Preprocessing,
    clip_stride: usize,
}

impl Way {
    fn from_byte(byte: u8) -> Self {
        let milliseconds = Duration::from_millis;
        Self {
            upload: byte & 1 != 0,
            range: match byte >> 1 & 3 {
                0 | 1 => TimeRange::ALL,
                2 => TimeRange { start: milliseconds(400), end: None },
                _ => TimeRange { start: milliseconds(200), end: Some(milliseconds(600)) },
            },
            preprocessing: match byte >> 3 & 3 {
                0 | 1 => Preprocessing::AUTHORS_2018,
                2 => Preprocessing::AUTHORS_2020,
                _ => Preprocessing::TORCHVISION,
            },
            crop: if byte & 32 == 0 { Crop::Center } else { Crop::Square { scale: 0.5, x: 1.0, y: 0.0 } },
            clip_stride: 1 + usize::from(byte >> 6),
        }
    }

    /// The bytes, or an upload of them that broke off after the last one, which is read front to back.
    fn source(&self, video: &[u8]) -> Source {
        if !self.upload {
            return Source::Bytes(Bytes::copy_from_slice(video));
        }
        let (mut writer, reader) = spool(SpoolOptions::default(), CancellationToken::new());
        writer.write(video).expect("it fits into memory, and the reader is there");
        Source::Spool(reader)
    }
}

fn count_answer(result: &Result<VideoSummary, VideoError>) {
    let count = |answer: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        answer(&mut hasher);
        ANSWERS[hasher.finish() as usize % FEATURES].store(1, Ordering::Relaxed);
    };
    // Numbers by their magnitude: an answer that differs in the last digit is no news.
    let magnitude = |n: u64| n.checked_ilog2();
    match result {
        Ok(VideoSummary { frames, corrupt_packets, partial, width, height, codec, container, stream_index, .. }) => {
            count(&|h| (codec, container).hash(h));
            count(&|h| (codec, magnitude(*frames), magnitude(*corrupt_packets)).hash(h));
            count(&|h| (container, partial.as_ref().map(std::mem::discriminant), stream_index).hash(h));
            count(&|h| (codec, magnitude((*width).into()), magnitude((*height).into())).hash(h));
        }
        Err(error) => {
            // FFmpeg's words, but not the numbers among them.
            let words: String = error.to_string().chars().filter(|c| !c.is_ascii_digit()).collect();
            count(&|h| words.hash(h));
        }
    }
}
