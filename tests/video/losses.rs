//! An answer is partial where pictures are missing, and only there.

use std::fs;
use std::path::Path;

use kinetoscope::video::{PartialReason, VideoError, VideoSummary};

use crate::containers::{CONTAINERS, make};
use crate::media::{Media, decode};

fn summary(path: &Path) -> Result<VideoSummary, VideoError> {
    decode(path).map(|(_, summary)| summary)
}

/// Pictures without a container: where they are cut or damaged between two, nobody can know.
const ENDLESS: [&str; 3] = ["a.h264", "a.m2v", "a.obu"];

#[test]
fn whole_files_are_never_partial() {
    let media = Media::new();
    for (name, encoder) in CONTAINERS {
        let summary = summary(&make(&media, name, encoder)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((summary.frames, summary.partial), (50, None), "{name}");
    }
}

#[test]
fn files_that_are_cut_are_partial_or_refused() {
    let media = Media::new();
    for (name, encoder) in CONTAINERS.into_iter().filter(|(name, _)| !ENDLESS.contains(name)) {
        let bytes = fs::read(make(&media, name, encoder)).expect("made");
        for percent in [30, 60, 90] {
            // Not at the border of the packets of transport streams.
            let len = bytes.len() * percent / 100 / 188 * 188 + 100;
            match summary(&media.write(&format!("cut-{name}"), &bytes[..len])) {
                // What comes last may be sound, or fill.
                Ok(summary) if summary.frames >= 50 => {}
                Ok(summary) => assert!(summary.partial.is_some(), "{name} cut at {percent}%: {summary:?}"),
                Err(error) => assert!(error.is_input_fault(), "{name} cut at {percent}%: {error}"),
            }
        }
    }
}

#[test]
fn damage_that_loses_pictures_is_partial() {
    let media = Media::new();
    /// FFmpeg's readers of these find the next packet, or the end, without a word; blocks of a GIF swallow each other.
    const SILENT: [&str; 3] = ["a.rm", "a.wtv", "a.gif"];
    let is_told = |name: &str| !ENDLESS.contains(&name) && !SILENT.contains(&name);
    for (name, encoder) in CONTAINERS.into_iter().filter(|(name, _)| is_told(name)) {
        let bytes = fs::read(make(&media, name, encoder)).expect("made");
        let (middle, len) = (bytes.len() / 2, bytes.len().min(20_000) / 10);
        let garbage: Vec<u8> = (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let overwritten = [&bytes[..middle], &garbage, &bytes[middle + len..]].concat();
        let cut_out = [&bytes[..middle], &bytes[middle + len..]].concat();
        for (damage, bytes) in [("overwritten", overwritten), ("cut out", cut_out)] {
            match summary(&media.write(&format!("damaged-{name}"), &bytes)) {
                Ok(summary) => {
                    assert!(summary.frames >= 50 || summary.partial.is_some(), "{name}, {damage}: {summary:?}");
                }
                Err(error) => assert!(error.is_input_fault(), "{name}, {damage}: {error}"),
            }
        }
    }
}

#[test]
fn zeros_behind_a_live_recording_are_no_loss() {
    let media = Media::new();
    let (name, encoder) = CONTAINERS.into_iter().find(|(name, _)| *name == "live.webm").expect("it is there");
    let live = fs::read(make(&media, name, encoder)).expect("made");
    let padded = summary(&media.write("padded.webm", &[&live[..], &[0; 10_000]].concat())).expect("a good video");
    assert_eq!((padded.frames, padded.corrupt_packets, padded.partial), (50, 0, None));
    let other = summary(&media.write("garbled.webm", &[&live[..], &[0xa5; 10_000]].concat())).expect("a good video");
    assert!(other.partial.is_some(), "what comes there may have been pictures: {other:?}");
}

#[test]
fn riff_size_that_its_writer_reckoned_wrongly_is_no_loss() {
    let media = Media::new();
    let path = media.make("a.avi", "-f lavfi -i testsrc2=size=96x64:rate=15 -frames:v 40 -c:v mjpeg");
    let mut bytes = fs::read(path).expect("made");
    let size = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
    bytes[4..8].copy_from_slice(&(size + 126).to_le_bytes());
    // Once with the number of frames in the header, once with the index alone.
    for frames in [40u32, 0] {
        let header = bytes.windows(4).position(|name| name == b"strh").expect("a stream header");
        bytes[header + 8 + 32..][..4].copy_from_slice(&frames.to_le_bytes());
        let summary = summary(&media.write("large.avi", &bytes)).expect("a good video");
        assert_eq!((summary.frames, summary.partial), (40, None), "{frames} frames by the header");
    }
    let cut = summary(&media.write("cut.avi", &bytes[..bytes.len() * 2 / 3])).expect("most of a video");
    assert!(matches!(cut.partial, Some(PartialReason::Truncated { .. })), "{cut:?}");
}

#[test]
fn packets_without_pictures_are_no_loss() {
    let media = Media::new();
    for (name, codec, unit) in [
        // A delimiter, and a message of a kind that nobody has to know.
        ("h264.mkv", "h264", &[0, 0, 0, 2, 0x09, 0xf0, 0, 0, 0, 5, 0x06, 0x05, 0x01, 0xff, 0x80][..]),
        ("hevc.mkv", "hevc", &[0, 0, 0, 3, 0x46, 0x01, 0x50][..]),
    ] {
        let encoder = if codec == "h264" { "libx264" } else { "libx265 -x265-params log-level=none" };
        let args = format!("-f lavfi -i testsrc2=size=128x96:rate=25 -frames:v 30 -pix_fmt yuv420p -c:v {encoder}");
        let bytes = fs::read(media.make(name, &args)).expect("made");
        let with_extra = with_block_before_clusters_end(&bytes, unit);
        let summary = summary(&media.write(&format!("extra-{name}"), &with_extra)).expect("a good video");
        assert_eq!((summary.frames, summary.corrupt_packets, summary.partial), (30, 0, None), "{codec}");
    }
}

/// A Matroska file with one more block, of `packet`, in its last cluster. Its segment and that cluster get an unknown length,
/// as in live streams, and all that comes after them is left out.
fn with_block_before_clusters_end(file: &[u8], packet: &[u8]) -> Vec<u8> {
    const SEGMENT: [u8; 4] = [0x18, 0x53, 0x80, 0x67];
    const CLUSTER: [u8; 4] = [0x1f, 0x43, 0xb6, 0x75];
    const UNKNOWN: [u8; 8] = [0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let find = |name: [u8; 4]| file.windows(4).position(|four| four == name).expect("an element of that name");
    let segment = find(SEGMENT) + 4;
    let cluster = find(CLUSTER) + 4;
    // FFmpeg writes lengths of eight bytes for the segment; for a cluster, as many as it needs.
    let length_size = file[cluster].leading_zeros() as usize + 1;
    let length = file[cluster..][..length_size].iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
    let length = (length & !(1 << (7 * length_size))) as usize;
    let blocks = &file[cluster + length_size..][..length];
    let extra = [&[0xa3, 0x80 | (packet.len() as u8 + 4), 0x81, 0x04, 0xb0, 0x00][..], packet].concat();
    [&file[..segment], &UNKNOWN, &file[segment + 8..cluster], &UNKNOWN, blocks, &extra].concat()
}
