//! Decodes videos to clips as requests do, and nothing else: to be timed from outside, beside other decoders
//! (`benches/peers/decode.sh`).
//!
//!     cargo run --release --example decode_clips -- VIDEO... --passes 8 --threads 2 --isolation process

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use clap::{Parser, ValueEnum};
use kinetoscope::model::spec::{ClipSpec, Preprocessing};
use kinetoscope::video::{DecodeOptions, Decoder, Isolation, Source, VideoError, WorkerOptions, run_worker};

#[derive(Parser)]
struct Args {
    #[arg(required = true)]
    videos: Vec<PathBuf>,

    /// How often all videos are decoded
    #[arg(long, default_value_t = 1)]
    passes: usize,

    /// Videos decoded at a time, each by one thread
    #[arg(long, default_value_t = 1)]
    threads: usize,

    /// Decode in locked-in processes or in this one
    #[arg(long, value_enum, default_value = "process")]
    isolation: Where,

    /// Write the first video's frames to this file: RGB, 112x112, no header. A short last clip is looped to its full
    /// length there
    #[arg(long, value_name = "FILE")]
    pixels: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Where {
    Process,
    None,
}

fn main() -> anyhow::Result<ExitCode> {
    // The decoder processes are this very program.
    if std::env::args().nth(1).as_deref() == Some("decode-worker") {
        return Ok(run_worker());
    }
    let args = Args::parse();
    let decoder = Decoder::new(match args.isolation {
        Where::Process => Isolation::Processes(WorkerOptions::default()),
        Where::None => Isolation::None,
    });
    if let Some(pixels) = &args.pixels {
        let mut out = BufWriter::new(File::create(pixels)?);
        let mut written = Ok(());
        decode(&decoder, &args.videos[0], |rgb| written = out.write_all(rgb))?;
        written?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    let (next, frames) = (AtomicUsize::new(0), AtomicU64::new(0));
    let work = || -> Result<(), VideoError> {
        loop {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            if turn >= args.passes * args.videos.len() {
                return Ok(());
            }
            frames.fetch_add(decode(&decoder, &args.videos[turn % args.videos.len()], |_| ())?, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("decoding does not panic"))
    })?;
    println!("{}", frames.into_inner());
    Ok(ExitCode::SUCCESS)
}

/// Frames decoded. `on_clip` gets the pixels of each clip.
fn decode(decoder: &Decoder, video: &std::path::Path, mut on_clip: impl FnMut(&[u8])) -> Result<u64, VideoError> {
    let (source, options) = (Source::Path(video.into()), DecodeOptions::default());
    let take = |clip: kinetoscope::video::Clip| {
        on_clip(&clip.rgb);
        ControlFlow::Continue(())
    };
    Ok(decoder.decode_clips(&source, &ClipSpec::default(), &Preprocessing::AUTHORS_2018, &options, take)?.frames)
}
