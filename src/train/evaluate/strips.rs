//! Frames of some videos with their true and predicted labels, like the paper's figure 4.

use std::io;
use std::path::Path;

use crate::train::report::canvas::{Align, Canvas, Text, rgb};

/// Frames of a video that are shown.
pub const FRAMES: usize = 6;

/// Height and width of a frame in pixels; frames are cropped at the centre, as the model sees them.
pub const SIZE: usize = 160;

const INK: u32 = 0x26_2b_33;
const RIGHT: u32 = 0x14_7a_3d;
const WRONG: u32 = 0xb0_20_1f;

const MARGIN: f32 = 28.0;
const HEAD: f32 = 70.0;
/// Between frames.
const GAP: usize = 4;
/// From one video to the next.
const PITCH: usize = SIZE + 66;

/// One video in the picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Strip {
    /// Pixels `(FRAMES, SIZE, SIZE, 3)`, RGB, 0-255; `None` if they can't be had (any more).
    pub rgb: Option<Vec<u8>>,
    /// The right class.
    pub truth: String,
    /// The predicted one.
    pub predicted: String,
    /// The predicted one's score.
    pub score: f32,
    /// Whether the two are the same.
    pub right: bool,
}

/// Draws the videos one below the other to a PNG file: right predictions in green, wrong ones in red.
pub fn draw(strips: &[Strip], path: &Path) -> io::Result<()> {
    let canvas = picture(strips).ok_or_else(|| io::Error::other("the picture would be too large"))?;
    canvas.save(path)
}

fn picture(strips: &[Strip]) -> Option<Canvas> {
    let width = (FRAMES * (SIZE + GAP) - GAP) as f32;
    let height = HEAD + (strips.len() * PITCH) as f32 + MARGIN / 2.0;
    let mut canvas = Canvas::new((width + 2.0 * MARGIN) as u32, height as u32)?;
    canvas.text("What the model sees and says", (MARGIN, 44.0), Text { size: 24.0, bold: true, ..text(INK) });
    for (row, strip) in strips.iter().enumerate() {
        let top = HEAD + (row * PITCH) as f32;
        match &strip.rgb {
            Some(frames) => {
                for (place, frame) in frames.chunks_exact(SIZE * SIZE * 3).enumerate() {
                    let left = MARGIN as i32 + (place * (SIZE + GAP)) as i32;
                    canvas.picture(frame, (SIZE as u32, SIZE as u32), (left, top as i32));
                }
            }
            None => {
                canvas.rectangle((MARGIN, top), (width, SIZE as f32), rgb(0xee_f0_f3));
                let middle = (MARGIN + width / 2.0, top + SIZE as f32 / 2.0);
                canvas.text("no frames", middle, Text { align: Align::Center, ..text(INK) });
            }
        }
        let baseline = top + SIZE as f32 + 28.0;
        let color = if strip.right { RIGHT } else { WRONG };
        let truth = canvas.fitted(&format!("true: {}", strip.truth), width / 2.0 - 20.0, text(INK));
        canvas.text(&truth, (MARGIN, baseline), text(INK));
        let bold = Text { bold: true, align: Align::Right, ..text(color) };
        let score = format!(" ({:.1}%)", 100.0 * strip.score);
        let room = width / 2.0 - canvas.text_width(&score, bold);
        let predicted = canvas.fitted(&format!("predicted: {}", strip.predicted), room, bold);
        canvas.text(&(predicted + &score), (MARGIN + width, baseline), bold);
    }
    Some(canvas)
}

fn text(color: u32) -> Text {
    Text { size: 19.0, color: rgb(color), bold: false, align: Align::Left, rotation: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strip(right: bool, gray: Option<u8>) -> Strip {
        let rgb = gray.map(|gray| vec![gray; FRAMES * SIZE * SIZE * 3]);
        Strip { rgb, truth: "bowling".to_owned(), predicted: "yoga".to_owned(), score: 0.5, right }
    }

    #[test]
    fn every_video_has_its_frames_and_the_color_of_its_verdict() {
        let canvas = picture(&[strip(true, Some(7)), strip(false, Some(9)), strip(false, None)]).unwrap();
        let (width, _) = canvas.size();
        let row_has = |row: usize, color: u32| {
            let [_, r, g, b] = color.to_be_bytes();
            let top = HEAD as usize + row * PITCH;
            (top..top + PITCH).any(|y| (0..width).any(|x| canvas.pixel(x, y as u32) == [r, g, b]))
        };
        assert!(row_has(0, 0x07_07_07) && row_has(0, RIGHT) && !row_has(0, WRONG));
        assert!(row_has(1, 0x09_09_09) && row_has(1, WRONG) && !row_has(1, RIGHT));
        assert!(row_has(2, WRONG));
    }
}
