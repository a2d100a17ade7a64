//! Makes a labelled data set of camera motions from still photographs: videos in class folders, for `kinetoscope train`.
//!
//!     cargo run --release --example camera_motion -- --photos DIR --out DATA/train --videos 400
//!
//! A virtual camera moves over each photograph, with things moving before it, motion blur, noise, changes of light and
//! the marks of compression. The same seed and photographs give the same videos, given the same `ffmpeg` command, which
//! reads the photographs and encodes the videos.

mod motion;
mod photo;
mod random;
mod scene;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use clap::Parser;
use motion::Motion;
use photo::Photo;
use random::Random;
use rayon::prelude::*;
use scene::Scene;

#[derive(Parser)]
struct Args {
    /// Directory of photographs, in any format that ffmpeg reads
    #[arg(long)]
    photos: PathBuf,

    /// Where the class folders go
    #[arg(long)]
    out: PathBuf,

    /// Videos of each class
    #[arg(long, default_value_t = 100)]
    videos: usize,

    /// Frames of a video
    #[arg(long, default_value_t = 40)]
    frames: usize,

    /// Which videos are made
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let Args { photos, out, videos, frames, seed } = Args::parse();
    let mut paths = std::fs::read_dir(&photos)
        .with_context(|| format!("can't read {}", photos.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    let photos = paths.par_iter().map(|path| Photo::read(path)).collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(!photos.is_empty(), "there are no photographs");
    for motion in Motion::ALL {
        std::fs::create_dir_all(out.join(motion.label()))?;
    }
    let bar = indicatif::ProgressBar::new((videos * Motion::ALL.len()) as u64);
    bar.set_style(indicatif::ProgressStyle::with_template("{wide_bar} {pos}/{len} videos, {eta} left")?);
    let work: Vec<_> = (0..videos).flat_map(|index| Motion::ALL.map(|motion| (motion, index))).collect();
    work.into_par_iter().try_for_each(|(motion, index)| {
        let mut random = Random::new(seed, &format!("{} {index}", motion.label()));
        let scene = Scene::draw(motion, &photos, frames, &mut random);
        let path = out.join(motion.label()).join(format!("{index:05}.mp4"));
        encode(&scene, frames, &path, &mut random).with_context(|| format!("can't write {}", path.display()))?;
        bar.inc(1);
        anyhow::Ok(())
    })?;
    bar.finish_and_clear();
    println!(
        "{} videos of {} classes from {} photographs",
        videos * Motion::ALL.len(),
        Motion::ALL.len(),
        photos.len()
    );
    Ok(())
}

/// Compresses a scene as cameras and web sites do: well, badly, and in between.
fn encode(scene: &Scene<'_>, frames: usize, path: &Path, random: &mut Random) -> anyhow::Result<()> {
    let (height, width) = scene.size();
    let rate = *random.pick(&["24", "25", "30", "30", "50", "60"]);
    let quality = if random.chance(0.8) {
        let crf = random.uniform(16.0, 36.0).round().to_string();
        let preset = if random.chance(0.5) { "ultrafast" } else { "veryfast" };
        vec!["-c:v".to_owned(), "libx264".to_owned(), "-preset".to_owned(), preset.to_owned(), "-crf".to_owned(), crf]
    } else {
        let quantiser = random.uniform(2.0, 14.0).round().to_string();
        vec!["-c:v".to_owned(), "mpeg4".to_owned(), "-q:v".to_owned(), quantiser]
    };
    let mut ffmpeg = Command::new("ffmpeg")
        .args(["-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", &format!("{width}x{height}")])
        .args(["-framerate", rate, "-i", "-", "-threads", "1", "-pix_fmt", "yuv420p"])
        .args(quality)
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .context("can't run ffmpeg")?;
    let mut input = ffmpeg.stdin.take().expect("stdin is piped");
    for frame in 0..frames {
        input.write_all(&scene.frame(frame, frames, random))?;
    }
    drop(input);
    let status = ffmpeg.wait()?;
    ensure!(status.success(), "ffmpeg ended with {status}");
    Ok(())
}
