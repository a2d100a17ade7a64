//! Uploads that are decoded while they arrive.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kinetoscope::model::spec::{ClipSpec, Preprocessing};
use kinetoscope::video::{
    Clip, DecodeOptions, PartialReason, Source, SpoolOptions, SpoolReader, VideoError, VideoSummary, decode_clips,
    spool,
};
use tokio_util::sync::CancellationToken;

use crate::media::{Media, decode};

/// 60 frames with sound, so that clips come long before the end.
fn video(media: &Media, name: &str, extra: &str) -> PathBuf {
    let args = format!(
        "-f lavfi -i testsrc2=size=320x240:rate=25 -f lavfi -i sine -t 2.4 -c:v libx264 -threads 1 -g 12 -pix_fmt yuv420p {extra}"
    );
    media.make(name, &args)
}

fn decode_spool(
    reader: SpoolReader,
    cancel: CancellationToken,
    mut on_clip: impl FnMut(Clip),
) -> Result<VideoSummary, VideoError> {
    let options = DecodeOptions { cancel, ..Default::default() };
    decode_clips(&Source::Spool(reader), &ClipSpec::default(), &Preprocessing::AUTHORS_2018, &options, |clip| {
        on_clip(clip);
        ControlFlow::Continue(())
    })
}

/// In memory up to 10 kB, then on disk.
fn options() -> SpoolOptions {
    SpoolOptions { max_memory: 10_000, ..Default::default() }
}

#[test]
fn clips_come_out_while_bytes_still_arrive() {
    let media = Media::new();
    let kinds = [
        ("faststart.mp4", "-movflags +faststart"),
        ("fragmented.mp4", "-movflags +frag_keyframe+empty_moov"),
        ("a.ts", ""),
        ("a.mkv", ""),
        ("a.avi", "-c:a mp3"),
    ];
    for (name, extra) in kinds {
        let path = video(&media, name, extra);
        let bytes = std::fs::read(&path).expect("made");
        let (mut writer, reader) = spool(options(), CancellationToken::new());
        let (send, clips) = mpsc::channel();
        let decoding =
            thread::spawn(move || decode_spool(reader, CancellationToken::new(), |c| send.send(c).expect("read")));
        let (early, late) = bytes.split_at(bytes.len() * 3 / 4);
        for part in early.chunks(1000) {
            writer.write(part).expect("wanted");
        }
        // The rest of the upload waits for the first clip, so this would hang if the clip waited for the rest.
        let first = clips.recv_timeout(Duration::from_secs(20));
        let first = first.unwrap_or_else(|error| panic!("{name}: no clip from three quarters of the bytes: {error}"));
        writer.write(late).expect("wanted");
        writer.finish();
        let summary = decoding.join().expect("no panic").expect("a good video");
        let all: Vec<Clip> = std::iter::once(first).chain(clips).collect();
        let (expected, expected_summary) = decode(&path).expect("a good video");
        assert_eq!(summary.frames, expected_summary.frames, "{name}");
        assert!(all == expected, "{name}: the same clips as from the file");
    }
}

#[test]
fn mp4_whose_index_comes_last_waits_for_it() {
    let media = Media::new();
    let path = video(&media, "a.mp4", "");
    let (mut writer, reader) = spool(options(), CancellationToken::new());
    let bytes = std::fs::read(&path).expect("made");
    let decoding = thread::spawn(move || {
        let mut clips = Vec::new();
        decode_spool(reader, CancellationToken::new(), |clip| clips.push(clip)).map(|_| clips)
    });
    for part in bytes.chunks(5000) {
        thread::sleep(Duration::from_millis(1));
        writer.write(part).expect("wanted");
    }
    writer.finish();
    let clips = decoding.join().expect("no panic").expect("a good video");
    assert!(clips == decode(&path).expect("a good video").0, "the same clips as from the file");
}

#[test]
fn upload_that_breaks_off_gives_what_arrived() {
    let media = Media::new();
    let bytes = std::fs::read(video(&media, "a.mp4", "-movflags +faststart")).expect("made");
    let (mut writer, reader) = spool(options(), CancellationToken::new());
    writer.write(&bytes[..bytes.len() / 2]).expect("wanted");
    drop(writer);
    let summary = decode_spool(reader, CancellationToken::new(), |_| {}).expect("half a video");
    assert!(summary.frames > 10 && summary.frames < 60, "{summary:?}");
    let partial = summary.partial.expect("a reason");
    assert!(matches!(partial, PartialReason::Truncated { .. } | PartialReason::Unreadable { .. }), "{partial}");
}

#[test]
fn upload_of_nothing_is_called_empty() {
    let (writer, reader) = spool(options(), CancellationToken::new());
    writer.finish();
    let result = decode_spool(reader, CancellationToken::new(), |_| {});
    assert!(matches!(result, Err(VideoError::Empty)), "{result:?}");
}

#[test]
fn cancelling_ends_a_stalled_upload() {
    let media = Media::new();
    let bytes = std::fs::read(video(&media, "a.mp4", "-movflags +faststart")).expect("made");
    let cancel = CancellationToken::new();
    let (mut writer, reader) = spool(options(), cancel.clone());
    writer.write(&bytes[..bytes.len() / 2]).expect("wanted");
    let token = cancel.clone();
    let decoding = thread::spawn(move || decode_spool(reader, token, |_| {}));
    thread::sleep(Duration::from_millis(300));
    assert!(!decoding.is_finished(), "it waits for the rest");
    let asked = Instant::now();
    cancel.cancel();
    let result = decoding.join().expect("no panic");
    assert!(matches!(result, Err(VideoError::Cancelled)), "{result:?}");
    assert!(asked.elapsed() < Duration::from_millis(100), "{:?}", asked.elapsed());
}
