//! Photographs, and views of them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

/// Photographs are brought to this many pixels along their short side: more would be thrown away by the first zoom.
const SHORT_SIDE: usize = 720;

/// A photograph at full size, half, a quarter and so on, so that a view from afar does not alias.
pub(crate) struct Photo {
    levels: Vec<Image>,
}

/// RGB, 0-255.
struct Image {
    width: usize,
    height: usize,
    rgb: Vec<[f32; 3]>,
}

impl Photo {
    /// Reads any picture that the ffmpeg command knows.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let scale =
            format!("scale='if(gt(iw,ih),-2,{SHORT_SIDE})':'if(gt(iw,ih),{SHORT_SIDE},-2)':flags=area,format=rgb24");
        let output = Command::new("ffmpeg")
            .args(["-v", "error", "-nostdin", "-i"])
            .arg(path)
            .args(["-frames:v", "1", "-vf", &scale, "-c:v", "ppm", "-f", "image2pipe", "-"])
            .output()
            .context("can't run ffmpeg")?;
        ensure!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
        let mut lines = output.stdout.splitn(4, |byte| byte.is_ascii_whitespace());
        let mut next = || lines.next().context("ffmpeg's picture has no header");
        ensure!(next()? == b"P6", "ffmpeg's picture is no PPM");
        let mut number = || Ok::<usize, anyhow::Error>(std::str::from_utf8(next()?)?.parse()?);
        let (width, height) = (number()?, number()?);
        // The rest begins with the largest value, 255.
        let pixels =
            lines.next().and_then(|rest| rest.strip_prefix(b"255\n")).context("ffmpeg's picture has no pixels")?;
        let rgb = pixels.chunks_exact(3).map(|pixel| [pixel[0].into(), pixel[1].into(), pixel[2].into()]).collect();
        Ok(Self::new(Image { width, height, rgb }))
    }

    fn new(full: Image) -> Self {
        let mut levels = vec![full];
        while let Some(last) = levels.last()
            && last.width.min(last.height) >= 64
        {
            let half = last.half();
            levels.push(half);
        }
        Self { levels }
    }

    /// Height and width of the full size.
    pub(crate) fn size(&self) -> (f32, f32) {
        (self.levels[0].height as f32, self.levels[0].width as f32)
    }

    /// The level for views whose pixels are `step` pixels of the full size apart.
    pub(crate) fn level(&self, step: f32) -> usize {
        (step.max(1.0).log2().round() as usize).min(self.levels.len() - 1)
    }

    /// The colour at a place of the full size. Beyond its edges the photograph is mirrored.
    pub(crate) fn sample(&self, level: usize, x: f32, y: f32) -> [f32; 3] {
        let image = &self.levels[level];
        let shrink = 1.0 / (1 << level) as f32;
        let (x, y) = (x * shrink - 0.5, y * shrink - 0.5);
        let (left, top) = (x.floor(), y.floor());
        let (right_part, bottom_part) = (x - left, y - top);
        let columns = [left as i64, left as i64 + 1].map(|column| mirrored(column, image.width));
        let rows = [top as i64, top as i64 + 1].map(|row| mirrored(row, image.height) * image.width);
        let [a, b, c, d] = [
            image.rgb[rows[0] + columns[0]],
            image.rgb[rows[0] + columns[1]],
            image.rgb[rows[1] + columns[0]],
            image.rgb[rows[1] + columns[1]],
        ];
        std::array::from_fn(|channel| {
            let above = a[channel] + (b[channel] - a[channel]) * right_part;
            let below = c[channel] + (d[channel] - c[channel]) * right_part;
            above + (below - above) * bottom_part
        })
    }
}

impl Image {
    /// Each pixel the mean of four.
    fn half(&self) -> Self {
        let (width, height) = (self.width / 2, self.height / 2);
        let mut rgb = Vec::with_capacity(width * height);
        for y in 0..height {
            for x in 0..width {
                let at = 2 * y * self.width + 2 * x;
                let four = [at, at + 1, at + self.width, at + self.width + 1].map(|at| self.rgb[at]);
                rgb.push(std::array::from_fn(|channel| four.iter().map(|pixel| pixel[channel]).sum::<f32>() / 4.0));
            }
        }
        Self { width, height, rgb }
    }
}

fn mirrored(at: i64, len: usize) -> usize {
    let at = at.rem_euclid(2 * len as i64) as usize;
    if at < len { at } else { 2 * len - 1 - at }
}
