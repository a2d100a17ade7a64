//! Frames of some videos with their true and predicted labels, like the paper's figure 4.

use std::io;
use std::path::Path;

use crate::train::report::canvas::{Align, Canvas, FAINT_INK, INK, Text, rgb};
use crate::train::validation::Shown;

/// Frames of a video that are shown.
pub const FRAMES: usize = 6;

/// Height and width of a frame in pixels; frames are cropped at the centre, as the model sees them.
pub const SIZE: usize = 160;

const RIGHT: u32 = 0x14_7a_3d;
const WRONG: u32 = 0xb0_20_1f;

const MARGIN: f32 = 28.0;
const HEAD: f32 = 70.0;
/// Between frames.
const GAP: usize = 4;
/// From one line of text to the next.
const LINE: f32 = 25.0;
/// From one video to the next, beside its frames and its text.
const SPACE: f32 = 26.0;
/// Narrowest room for text.
const LEAST_WIDTH: usize = 620;

/// One video in the picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Strip {
    /// What the video is called.
    pub name: String,
    /// Pixels of frames `(n, size, size, 3)`, RGB, 0-255; `None` if they can't be had (any more).
    pub rgb: Option<Vec<u8>>,
    /// Height and width of the frames.
    pub size: usize,
    /// The right class.
    pub truth: String,
    /// The predicted one.
    pub predicted: String,
    /// The predicted one's score.
    pub score: f32,
    /// Whether the two are the same.
    pub right: bool,
}

impl Strip {
    /// A clip of a validation during training, by its middle frame.
    pub(in crate::train) fn of_frame(shown: &Shown, labels: &[String]) -> Self {
        let Shown { name, rgb, size, truth, predicted, score } = shown;
        // Small ones are shown larger, each pixel a square.
        let factor = SIZE.div_ceil(*size).max(1);
        let side = size * factor;
        let pixel = |place: usize| {
            let (y, x) = (place / side / factor, place % side / factor);
            &rgb[3 * (y * size + x)..][..3]
        };
        Self {
            name: name.clone(),
            rgb: Some((0..side * side).flat_map(pixel).copied().collect()),
            size: side,
            truth: truth.iter().map(|&class| labels[class].as_str()).collect::<Vec<_>>().join(", "),
            predicted: labels[*predicted].clone(),
            score: *score,
            right: truth.contains(predicted),
        }
    }
}

/// Draws the videos one below the other to a PNG file: right predictions in green, wrong ones in red.
pub fn draw(strips: &[Strip], path: &Path) -> io::Result<()> {
    let canvas = picture(strips).ok_or_else(|| io::Error::other("the picture would be too large"))?;
    canvas.save(path)
}

/// Frames `(n, size, size, 3)` side by side as the bytes of a PNG file; `None` if there are none, or too many.
pub fn side_by_side(rgb: &[u8], size: usize) -> Option<Vec<u8>> {
    let count = rgb.len() / (size * size * 3);
    let width = (count * (size + GAP)).checked_sub(GAP)?;
    let mut canvas = Canvas::new(width as u32, size as u32)?;
    for (place, frame) in rgb.chunks_exact(size * size * 3).enumerate() {
        canvas.picture(frame, (size as u32, size as u32), ((place * (size + GAP)) as i32, 0));
    }
    canvas.png().ok()
}

/// The picture; `None` if it would be too large.
pub(in crate::train) fn picture(strips: &[Strip]) -> Option<Canvas> {
    let width = strips.iter().map(Strip::width).max().unwrap_or(0).max(LEAST_WIDTH) as f32;
    let ruler = Canvas::new(1, 1)?;
    let texts: Vec<Vec<(String, Text)>> = strips.iter().map(|strip| strip.text(&ruler, width)).collect();
    let heights = strips.iter().zip(&texts).map(|(strip, lines)| strip.size as f32 + lines.len() as f32 * LINE + SPACE);
    let height = HEAD + heights.sum::<f32>() + MARGIN / 2.0;
    let mut canvas = Canvas::new((width + 2.0 * MARGIN) as u32, height as u32)?;
    canvas.text("What the model sees and says", (MARGIN, 44.0), Text { size: 24.0, bold: true, ..text(INK) });
    let mut top = HEAD;
    for (strip, lines) in strips.iter().zip(texts) {
        let size = strip.size;
        match &strip.rgb {
            Some(frames) => {
                for (place, frame) in frames.chunks_exact(size * size * 3).enumerate() {
                    let left = MARGIN as i32 + (place * (size + GAP)) as i32;
                    canvas.picture(frame, (size as u32, size as u32), (left, top as i32));
                }
            }
            None => {
                canvas.rectangle((MARGIN, top), (width, size as f32), rgb(0xee_f0_f3));
                let middle = (MARGIN + width / 2.0, top + size as f32 / 2.0);
                canvas.text("no frames", middle, Text { align: Align::Center, ..text(INK) });
            }
        }
        top += size as f32;
        for (line, style) in lines {
            top += LINE;
            canvas.text(&line, (MARGIN, top - 3.0), style);
        }
        top += SPACE;
    }
    Some(canvas)
}

impl Strip {
    /// Of its frames, side by side.
    fn width(&self) -> usize {
        let frames = self.rgb.as_ref().map_or(0, |rgb| rgb.len() / (self.size * self.size * 3));
        (frames * (self.size + GAP)).saturating_sub(GAP)
    }

    /// What stands below the frames, in lines of at most `width` pixels: names whole, however long they are.
    fn text(&self, ruler: &Canvas, width: f32) -> Vec<(String, Text)> {
        let small = Text { size: 16.0, ..text(FAINT_INK) };
        let verdict = Text { bold: true, ..text(if self.right { RIGHT } else { WRONG }) };
        let predicted = format!("predicted: {} ({:.1}%)", self.predicted, 100.0 * self.score);
        let paragraphs =
            [(predicted, verdict), (format!("true: {}", self.truth), text(INK)), (self.name.clone(), small)];
        let lines = |(words, style): (String, Text)| {
            ruler.wrapped(&words, width, style).into_iter().map(move |line| (line, style)).collect::<Vec<_>>()
        };
        paragraphs.into_iter().flat_map(lines).collect()
    }
}

fn text(color: u32) -> Text {
    Text { size: 19.0, color: rgb(color), bold: false, align: Align::Left, rotation: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strip(right: bool, gray: Option<u8>) -> Strip {
        let rgb = gray.map(|gray| vec![gray; FRAMES * SIZE * SIZE * 3]);
        Strip {
            name: "a/b.mp4".to_owned(),
            size: SIZE,
            rgb,
            truth: "bowling".to_owned(),
            predicted: "yoga".to_owned(),
            score: 0.5,
            right,
        }
    }

    #[test]
    fn every_video_has_its_frames_and_the_color_of_its_verdict() {
        let row_has = |strip: Strip, colors: [u32; 2]| {
            let canvas = picture(&[strip]).unwrap();
            let (width, height) = canvas.size();
            colors.map(|color| {
                let [_, r, g, b] = color.to_be_bytes();
                (HEAD as u32..height).any(|y| (0..width).any(|x| canvas.pixel(x, y) == [r, g, b]))
            })
        };
        assert_eq!(row_has(strip(true, Some(7)), [RIGHT, WRONG]), [true, false]);
        assert_eq!(row_has(strip(false, Some(9)), [RIGHT, WRONG]), [false, true]);
        assert_eq!(row_has(strip(true, Some(7)), [0x07_07_07, 0x09_09_09]), [true, false]);
        assert_eq!(row_has(strip(false, None), [0x07_07_07, WRONG]), [false, true]);
    }

    #[test]
    fn names_of_files_and_classes_are_whole_however_long() {
        let long = "a class whose name goes on and on, as those of some datasets do, ".repeat(4);
        let ruler = Canvas::new(1, 1).unwrap();
        let strip = Strip { truth: long.clone(), name: "folder/of/videos/".repeat(12), ..strip(false, None) };
        let lines = strip.text(&ruler, 620.0);
        assert!(lines.iter().all(|(line, style)| ruler.text_width(line, *style) <= 620.0));
        let all: String = lines.iter().map(|(line, _)| line.replace(' ', "")).collect();
        assert!(all.contains(&long.replace(' ', "")) && all.contains(&strip.name), "{all}");
        let (_, height) = picture(std::slice::from_ref(&strip)).unwrap().size();
        assert!(height as f32 > HEAD + SIZE as f32 + lines.len() as f32 * LINE);
    }
}
