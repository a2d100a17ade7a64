//! The picture of a calibration: how often predictions are right over how sure they are.

use std::io;
use std::path::Path;

use super::calibration::{Bin, Calibration};
use crate::train::report::canvas::{Align, Canvas, Color, FAINT_INK, GRID, INK, Line, Text, rgb};

const SIDE: f32 = 420.0;
const LEFT: f32 = 92.0;
const TOP: f32 = 124.0;
const WIDTH: f32 = LEFT + SIDE + 40.0;
const HEIGHT: f32 = TOP + SIDE + GAP + COUNTS + 84.0;
/// Between the chart of accuracies and that of counts.
const GAP: f32 = 44.0;
const COUNTS: f32 = 90.0;

const ACCURACY: u32 = 0x2b_6c_b0;
const TOO_SURE: u32 = 0xe0_7b_77;
const NOT_SURE_ENOUGH: u32 = 0xf0_bd_5a;

/// Draws the picture to a PNG file.
pub fn draw(calibration: &Calibration, path: &Path) -> io::Result<()> {
    picture(calibration).save(path)
}

/// The same as the bytes of a PNG file.
pub fn png(calibration: &Calibration) -> io::Result<Vec<u8>> {
    picture(calibration).png()
}

fn picture(calibration: &Calibration) -> Canvas {
    let mut canvas = Canvas::new(WIDTH as u32, HEIGHT as u32).expect("the size is fixed");
    canvas.text("Reliability", (LEFT, 44.0), Text { bold: true, ..text(26.0, INK) });
    let error = 100.0 * calibration.expected_calibration_error;
    canvas.text(&format!("expected calibration error {error:.2}%"), (LEFT, 74.0), text(17.0, FAINT_INK));
    legend(&mut canvas);
    axes(&mut canvas);
    for bin in &calibration.bins {
        bar(&mut canvas, bin);
    }
    let diagonal = Line { color: rgb(FAINT_INK), width: 2.0, dash: Some([7.0, 6.0]) };
    canvas.line(&[at(0.0, 0.0), at(1.0, 1.0)], diagonal);
    counts(&mut canvas, &calibration.bins);
    canvas
}

/// The pixel of a score and an accuracy.
fn at(score: f64, accuracy: f64) -> (f32, f32) {
    (LEFT + score as f32 * SIDE, TOP + (1.0 - accuracy as f32) * SIDE)
}

fn axes(canvas: &mut Canvas) {
    let line = Line { color: rgb(GRID), width: 1.5, dash: None };
    for tick in 0..=5 {
        let part = f64::from(tick) / 5.0;
        let label = format!("{}%", 20 * tick);
        canvas.line(&[at(0.0, part), at(1.0, part)], line);
        let (x, y) = at(0.0, part);
        canvas.text(&label, (x - 10.0, y + 6.0), Text { align: Align::Right, ..text(16.0, FAINT_INK) });
        let (x, bottom) = (at(part, 0.0).0, TOP + SIDE + GAP + COUNTS);
        canvas.text(&label, (x, bottom + 24.0), Text { align: Align::Center, ..text(16.0, FAINT_INK) });
    }
    let middle = (LEFT + SIDE / 2.0, TOP + SIDE + GAP + COUNTS + 56.0);
    canvas.text("score", middle, Text { align: Align::Center, ..text(17.0, INK) });
    let upright = Text { align: Align::Center, rotation: -90.0, ..text(17.0, INK) };
    canvas.text("part that is right", (26.0, TOP + SIDE / 2.0), upright);
}

/// A bin's accuracy, and the gap between it and the mean score.
fn bar(canvas: &mut Canvas, bin: &Bin) {
    let (Some(accuracy), Some(score)) = (bin.accuracy, bin.mean_score) else { return };
    let mut fill = |from: f64, to: f64, color: Color| {
        let ((left, top), (right, bottom)) = (at(bin.from, from.max(to)), at(bin.to, from.min(to)));
        canvas.rectangle((left + 1.0, top), (right - left - 2.0, (bottom - top).max(1.0)), color);
    };
    fill(0.0, accuracy.min(score), rgb(ACCURACY));
    fill(accuracy, score, rgb(if score > accuracy { TOO_SURE } else { NOT_SURE_ENOUGH }));
}

/// What the colours mean.
fn legend(canvas: &mut Canvas) {
    let mut x = LEFT;
    for (color, name) in [(ACCURACY, "right"), (TOO_SURE, "too sure"), (NOT_SURE_ENOUGH, "not sure enough")] {
        canvas.rectangle((x, 87.0), (14.0, 14.0), rgb(color));
        canvas.text(name, (x + 20.0, 99.0), text(15.0, FAINT_INK));
        x += 44.0 + canvas.text_width(name, text(15.0, FAINT_INK));
    }
}

/// How many predictions each bin has.
fn counts(canvas: &mut Canvas, bins: &[Bin]) {
    let most = bins.iter().map(|bin| bin.predictions).max().unwrap_or(0).max(1);
    let bottom = TOP + SIDE + GAP + COUNTS;
    canvas.text("predictions", (LEFT, TOP + SIDE + GAP - 14.0), text(15.0, FAINT_INK));
    for bin in bins.iter().filter(|bin| bin.predictions > 0) {
        let height = (COUNTS * bin.predictions as f32 / most as f32).max(1.0);
        let (left, right) = (at(bin.from, 0.0).0, at(bin.to, 0.0).0);
        canvas.rectangle((left + 1.0, bottom - height), (right - left - 2.0, height), rgb(0x9a_a5_b4));
    }
    let most_text = Text { align: Align::Right, ..text(15.0, FAINT_INK) };
    canvas.text(&most.to_string(), (LEFT - 10.0, bottom - COUNTS + 10.0), most_text);
    canvas.line(&[(LEFT, bottom), (LEFT + SIDE, bottom)], Line { color: rgb(GRID), width: 1.5, dash: None });
}

fn text(size: f32, color: u32) -> Text {
    Text { size, color: rgb(color), bold: false, align: Align::Left, rotation: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::calibration::Confidence;
    use super::*;

    #[test]
    fn what_is_too_sure_is_red_up_to_its_score() {
        // All at 0.9, half of them right.
        let predictions: Vec<Confidence> = (0..10).map(|n| Confidence { score: 0.9, right: n % 2 == 0 }).collect();
        let canvas = picture(&Calibration::of(&predictions, 1.0).unwrap());
        let pixel = |score: f64, accuracy: f64| {
            let (x, y) = at(score, accuracy);
            canvas.pixel(x as u32, y as u32)
        };
        let [_, r, g, b] = ACCURACY.to_be_bytes();
        assert_eq!(pixel(0.9, 0.3), [r, g, b]);
        let [_, r, g, b] = TOO_SURE.to_be_bytes();
        assert_eq!(pixel(0.88, 0.7), [r, g, b]);
        assert_eq!(pixel(0.88, 0.97), [255; 3]);
    }
}
