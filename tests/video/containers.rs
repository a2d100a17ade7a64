//! Every container gives the same answer however its bytes come.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use kinetoscope::model::spec::{ClipSpec, Preprocessing, Resize};
use kinetoscope::video::{
    Clip, DecodeOptions, FIRST_PIECE, Fetch, RangedReader, Source, SpoolOptions, VideoError, VideoSummary,
    decode_clips, spool,
};
use tokio_util::sync::CancellationToken;

use crate::media::Media;

type Answer = Result<(Vec<Clip>, VideoSummary), VideoError>;

/// Small clips: what is compared is which frames come, and when they are shown.
fn decode(source: &Source, mut on_clip: impl FnMut()) -> Answer {
    let spec = ClipSpec { frames: 8, size: 32, ..ClipSpec::default() };
    let preprocessing = Preprocessing { resize: Resize::ShortSide, ..Preprocessing::AUTHORS_2018 };
    let mut clips = Vec::new();
    let summary = decode_clips(source, &spec, &preprocessing, &DecodeOptions::default(), |clip| {
        clips.push(clip);
        on_clip();
        ControlFlow::Continue(())
    })?;
    Ok((clips, summary))
}

/// The answer to an upload in parts of `part` bytes, of which the last waits for the first clip if that comes without it.
fn upload(bytes: &[u8], part: usize) -> Answer {
    let options = SpoolOptions { max_memory: 100_000, ..Default::default() };
    let (mut writer, reader) = spool(options, CancellationToken::new());
    let (send, clips) = mpsc::channel();
    thread::scope(|scope| {
        let decoding = scope.spawn(move || {
            let answer = decode(&Source::Spool(reader), || {
                let _ = send.send(());
            });
            drop(send);
            answer
        });
        let (early, late) = bytes.split_at(bytes.len() - bytes.len().min(part));
        let write = |writer: &mut kinetoscope::video::SpoolWriter, parts: &[u8]| {
            parts.chunks(part).all(|part| writer.write(part).is_ok())
        };
        if write(&mut writer, early) {
            // Some containers have to be whole first; whether one is decides nothing here.
            let _ = clips.recv_timeout(Duration::from_millis(100));
            write(&mut writer, late);
        }
        writer.finish();
        decoding.join().expect("decoding does not panic")
    })
}

/// A file elsewhere.
#[derive(Clone)]
struct Remote(Bytes);

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

impl Fetch for Remote {
    fn fetch(&self, range: Range<u64>) -> Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>> {
        let part = self.0.slice(range.start as usize..range.end as usize);
        Box::pin(async move { Ok(part) })
    }

    fn failed(&self, error: io::Error) {
        panic!("nothing fails here: {error}");
    }
}

/// Compares all ways for one file.
fn compare(path: &Path, runtime: &tokio::runtime::Runtime) {
    let name = path.display();
    let bytes = Bytes::from(std::fs::read(path).expect("it was listed"));
    let file = decode(&Source::Path(path.to_path_buf()), || ());
    let summary = |answer: &Answer| match answer {
        Ok((clips, summary)) => format!("{} clips, {summary:?}", clips.len()),
        Err(error) => error.to_string(),
    };
    let same = |way: &str, answer: Answer| {
        let is_same = match (&answer, &file) {
            // How long a video is that is too long is known sooner in a whole file.
            (Err(answer), Err(file)) => std::mem::discriminant(answer) == std::mem::discriminant(file),
            _ => answer == file,
        };
        assert!(is_same, "{name} by {way}:\n{}\nas a file:\n{}", summary(&answer), summary(&file));
    };
    same("message", decode(&Source::Bytes(bytes.clone()), || ()));
    // Byte by byte where that takes no longer than all else.
    let parts: &[usize] = if bytes.len() < 50_000 { &[1, 4096] } else { &[4096] };
    for part in parts {
        same(&format!("upload in parts of {part} bytes"), upload(&bytes, *part));
    }
    let first = bytes.slice(..bytes.len().min(FIRST_PIECE as usize));
    let reader = runtime.block_on(async {
        RangedReader::new(bytes.len() as u64, first, Remote(bytes.clone()), CancellationToken::new())
    });
    same("URI", decode(&Source::Ranged(reader), || ()));
}

/// What FFmpeg makes of each container here: names, and how they are encoded.
pub(crate) const CONTAINERS: [(&str, &str); 30] = [
    ("faststart.mp4", "-c:v libx264 -c:a aac -movflags +faststart"),
    ("index_last.mp4", "-c:v libx264 -c:a aac"),
    ("fragmented.mp4", "-c:v libx264 -c:a aac -movflags frag_keyframe+empty_moov+default_base_moof"),
    ("a.mov", "-c:v mjpeg -c:a pcm_s16le"),
    ("hevc.mkv", "-c:v libx265 -x265-params log-level=none -an"),
    ("h264.mkv", "-c:v libx264 -c:a aac"),
    ("vp8.webm", "-c:v libvpx -deadline realtime -cpu-used 8 -c:a libopus"),
    ("vp9.webm", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -an"),
    ("live.webm", "-c:v libvpx -deadline realtime -cpu-used 8 -c:a libopus -live 1"),
    ("mpeg4.avi", "-c:v mpeg4 -bf 2 -c:a mp3"),
    ("mjpeg.avi", "-c:v mjpeg -an"),
    ("h264.ts", "-c:v libx264 -c:a aac"),
    ("a.m2ts", "-c:v libx264 -an"),
    ("a.mpg", "-c:v mpeg2video -c:a mp2"),
    ("a.vob", "-c:v mpeg2video -c:a ac3"),
    ("a.m2v", "-c:v mpeg2video -an -f mpeg2video"),
    ("a.h264", "-c:v libx264 -an"),
    ("a.ivf", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -an"),
    ("a.obu", "-c:v libaom-av1 -cpu-used 8 -usage realtime -an"),
    ("h264.flv", "-c:v libx264 -c:a aac"),
    ("indexed.flv", "-c:v libx264 -c:a aac -flvflags add_keyframe_index"),
    ("a.wmv", "-c:v wmv2 -c:a wmav2"),
    ("a.ogv", "-c:v libtheora -c:a libvorbis"),
    ("a.mxf", "-c:v mpeg2video -an"),
    ("a.nut", "-c:v mpeg4 -c:a mp2"),
    ("a.rm", "-c:v rv10 -c:a ac3"),
    ("a.wtv", "-c:v mpeg2video -c:a mp2"),
    ("a.y4m", "-pix_fmt yuv420p -an"),
    ("a.gif", "-an"),
    ("a.apng", "-an -f apng"),
];

/// 50 frames with sound of that kind.
pub(crate) fn make(media: &Media, name: &str, encoder: &str) -> PathBuf {
    let pixels = if encoder.contains("libx26") { "-pix_fmt yuv420p -threads 1" } else { "" };
    let args = format!(
        "-f lavfi -i testsrc2=size=128x96:rate=25 -f lavfi -i sine=sample_rate=44100 -t 2 -g 10 {pixels} {encoder}"
    );
    media.make(name, &args)
}

fn compare_all(paths: &[PathBuf]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    paths.iter().for_each(|path| compare(path, &runtime));
}

#[test]
fn every_container_answers_the_same_however_its_bytes_come() {
    let media = Media::new();
    let paths: Vec<_> = CONTAINERS.iter().map(|(name, encoder)| make(&media, name, encoder)).collect();
    compare_all(&paths);
}

#[test]
fn gif_larger_than_any_buffer_answers_the_same_however_its_bytes_come() {
    let media = Media::new();
    compare_all(&[media.make("a.gif", "-f lavfi -i testsrc2=size=320x240:rate=25,noise=alls=20 -frames:v 40")]);
}

/// The same for each file of a directory.
///
/// `KINETOSCOPE_VIDEOS_DIR=videos cargo test --test video -- --ignored videos_of_a_directory`
#[test]
#[ignore = "needs videos of your own"]
fn videos_of_a_directory_answer_the_same_however_their_bytes_come() {
    let directory = std::env::var_os("KINETOSCOPE_VIDEOS_DIR").expect("KINETOSCOPE_VIDEOS_DIR names a directory");
    let files = std::fs::read_dir(directory).expect("a directory");
    let mut paths: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
    paths.sort();
    compare_all(&paths);
}
