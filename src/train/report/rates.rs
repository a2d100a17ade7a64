//! The curve of a learning rate finder: loss over learning rate, the rates at equal factors.

use super::canvas::{Align, Canvas, Color, FAINT_INK, GRID, INK, Line, Point, Text, rgb};
use super::curves::{Axis, ink, solid};
use super::short;
use crate::train::find_rate::{self, suggestion};

const WIDTH: f32 = 900.0;
const HEIGHT: f32 = 620.0;
const CURVE: u32 = 0x2b_6c_b0;
const CHOSEN: u32 = 0xd9_5f_0e;

/// Draws the points and marks the suggestion.
pub(super) fn draw(points: &[find_rate::Point]) -> Canvas {
    let mut canvas = Canvas::new(WIDTH as u32, HEIGHT as u32).expect("the size is fixed");
    let text = |size: f32, color: u32| Text { size, ..ink(color) };
    let (left, right, top, bottom) = (90.0, WIDTH - 40.0, 100.0, HEIGHT - 90.0);
    canvas.text("Loss over learning rate", (left, 46.0), Text { bold: true, ..text(26.0, INK) });
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return canvas };
    let losses: Vec<f64> = points.iter().map(|point| point.loss).collect();
    let values = Axis::of_values(&losses);
    let (from, to) = (first.rate.log10(), last.rate.log10().max(first.rate.log10() + 1e-9));
    let across = |rate: f64| left + ((rate.log10() - from) / (to - from)) as f32 * (right - left);
    let up = |loss: f64| bottom - values.place(loss).min(1.0) * (bottom - top);
    for tick in values.ticks() {
        let y = up(tick);
        canvas.line(&[(left, y), (right, y)], solid(GRID, 1.5));
        canvas.text(&values.label(tick), (left - 12.0, y + 6.0), Text { align: Align::Right, ..text(17.0, FAINT_INK) });
    }
    for power in from.ceil() as i32..=to.floor() as i32 {
        let x = across(10f64.powi(power));
        canvas.line(&[(x, top), (x, bottom)], solid(GRID, 1.5));
        let label = short(10f64.powi(power));
        canvas.text(&label, (x, bottom + 26.0), Text { align: Align::Center, ..text(17.0, FAINT_INK) });
    }
    canvas.text(
        "learning rate",
        ((left + right) / 2.0, bottom + 58.0),
        Text { align: Align::Center, ..text(17.0, INK) },
    );
    let curve: Vec<Point> = points.iter().map(|point| (across(point.rate), up(point.loss))).collect();
    canvas.line(&curve, solid(CURVE, 3.0));
    if let Some(rate) = suggestion(points) {
        let x = across(rate);
        canvas.line(&[(x, top), (x, bottom)], Line { dash: Some([6.0, 6.0]), ..solid(CHOSEN, 2.0) });
        let label = format!("falls fastest at {}", short(rate));
        canvas.text(&label, (left, 78.0), text(17.0, CHOSEN));
        let at = points.iter().find(|point| point.rate >= rate).map_or((x, bottom), |point| (x, up(point.loss)));
        canvas.dot(at, 7.0, rgb(CHOSEN));
        canvas.dot(at, 4.0, Color::WHITE);
    }
    canvas
}
