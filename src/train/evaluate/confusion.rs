//! The picture of a confusion matrix.

use std::io;
use std::path::Path;

use super::metrics::Confusion;
use crate::train::report::canvas::{Align, Canvas, Color, FAINT_INK, INK, Line, Text, rgb};

const GRID: u32 = 0xdd_e1_e6;
const RIGHT: [u8; 3] = [0x14, 0x7a, 0x3d];
const WRONG: [u8; 3] = [0xb0, 0x20, 0x1f];

/// Draws a matrix of these classes to a PNG file: a row a true class, a column a predicted one, the darker the larger the
/// part of the row's videos is. Names are at least 9 pixels high up to 730 classes; with more, cells shrink.
pub fn draw(confusion: &Confusion, names: &[String], path: &Path) -> io::Result<()> {
    let canvas = picture(confusion, names);
    canvas.ok_or_else(|| io::Error::other("the picture would be too large"))?.save(path)
}

/// The same as the bytes of a PNG file.
pub fn png(confusion: &Confusion, names: &[String]) -> io::Result<Vec<u8>> {
    picture(confusion, names).ok_or_else(|| io::Error::other("the picture would be too large"))?.png()
}

/// The picture; `None` if it would be too large.
pub(in crate::train) fn picture(confusion: &Confusion, names: &[String]) -> Option<Canvas> {
    Layout::new(confusion, names).draw(confusion, names)
}

/// Sizes in pixels.
struct Layout {
    cell: f32,
    /// Of the names.
    text: f32,
    /// Room for the names of rows, and of columns.
    names: f32,
    rows: usize,
    columns: usize,
}

/// Above the matrix.
const HEAD: f32 = 96.0;
const MARGIN: f32 = 28.0;
const LEGEND_WIDTH: f32 = 680.0;
/// Between names and cells.
const GAP: f32 = 8.0;

impl Layout {
    fn new(confusion: &Confusion, names: &[String]) -> Self {
        /// In pixels. Names of more are cut.
        const WIDEST_NAME: f32 = 1600.0;
        let rows = confusion.classes();
        let columns = rows + usize::from(confusion.has_others());
        let cell = match rows {
            0..=730 => (900.0 / rows as f32).clamp(11.0, 64.0),
            _ => (8000.0 / rows as f32).max(2.0),
        };
        let cell = cell.floor();
        let text = (0.86 * cell).min(17.0);
        let ruler = Canvas::new(1, 1).expect("one pixel is not too many");
        let style = label(text);
        let widest = names.iter().map(|name| ruler.text_width(name, style)).fold(60.0, f32::max);
        Self { cell, text, names: widest.min(WIDEST_NAME).ceil(), rows, columns }
    }

    fn left(&self) -> f32 {
        MARGIN + 30.0 + self.names + GAP
    }

    fn draw(&self, confusion: &Confusion, names: &[String]) -> Option<Canvas> {
        let &Self { cell, rows, columns, .. } = self;
        let (left, top) = (self.left(), HEAD);
        let (width, height) = (columns as f32 * cell, rows as f32 * cell);
        let canvas_width = (left + width + MARGIN).max(LEGEND_WIDTH + 2.0 * MARGIN);
        let canvas_height = top + height + GAP + self.names + 30.0 + MARGIN;
        let mut canvas = Canvas::new(canvas_width.ceil() as u32, canvas_height.ceil() as u32)?;

        canvas.text("Confusion matrix", (MARGIN, 46.0), Text { bold: true, size: 26.0, ..label(26.0) });
        self.legend(&mut canvas);
        for truth in 0..rows {
            self.row(&mut canvas, confusion, truth);
        }
        self.grid(&mut canvas);
        let bottom = top + height;
        for (place, name) in names.iter().enumerate() {
            let middle = place as f32 * cell + cell / 2.0 + 0.35 * self.text;
            let name = canvas.fitted(name, self.names, label(self.text));
            canvas.text(&name, (left - GAP, top + middle), Text { align: Align::Right, ..label(self.text) });
            let upright = Text { align: Align::Right, rotation: -90.0, ..label(self.text) };
            canvas.text(&name, (left + middle, bottom + GAP), upright);
        }
        if columns > rows {
            let middle = rows as f32 * cell + cell / 2.0 + 0.35 * self.text;
            let upright = Text { align: Align::Right, rotation: -90.0, color: rgb(FAINT_INK), ..label(self.text) };
            canvas.text("others", (left + middle, bottom + GAP), upright);
        }
        let axis = Text { align: Align::Center, bold: true, color: rgb(FAINT_INK), ..label(16.0) };
        canvas.text("predicted class", (left + width / 2.0, bottom + GAP + self.names + 26.0), axis);
        let upright = Text { rotation: -90.0, ..axis };
        canvas.text("true class", (MARGIN + 12.0, top + height / 2.0), upright);
        Some(canvas)
    }

    fn row(&self, canvas: &mut Canvas, confusion: &Confusion, truth: usize) {
        let row = confusion.row(truth);
        let videos: u64 = row.iter().sum();
        let numbers = self.cell >= 34.0;
        for (column, &count) in row.iter().enumerate().filter(|&(_, &count)| count > 0) {
            let part = count as f32 / videos as f32;
            let at = (self.left() + column as f32 * self.cell, HEAD + truth as f32 * self.cell);
            canvas.rectangle(at, (self.cell, self.cell), shade(part, column == truth));
            if numbers {
                let color = if part > 0.35 { Color::WHITE } else { rgb(INK) };
                let style = Text { color, align: Align::Center, ..label(0.34 * self.cell) };
                let middle = (at.0 + self.cell / 2.0, at.1 + 0.62 * self.cell);
                canvas.text(&count.to_string(), middle, style);
            }
        }
    }

    /// Lines between cells where those are large, between tens of cells where they are not.
    fn grid(&self, canvas: &mut Canvas) {
        let (left, top) = (self.left(), HEAD);
        let (width, height) = (self.columns as f32 * self.cell, self.rows as f32 * self.cell);
        let every = if self.cell >= 16.0 { 1 } else { 10 };
        let line = Line { color: rgb(GRID), width: 1.0, dash: None };
        for row in (0..=self.rows).step_by(every) {
            let y = (top + row as f32 * self.cell).floor() + 0.5;
            canvas.line(&[(left, y), (left + width, y)], line);
        }
        for column in (0..=self.columns).step_by(every) {
            let x = (left + column as f32 * self.cell).floor() + 0.5;
            canvas.line(&[(x, top), (x, top + height)], line);
        }
        let border = Line { color: rgb(FAINT_INK), ..line };
        canvas.frame((left.floor() + 0.5, top.floor() + 0.5), (width.floor(), height.floor()), border);
    }

    /// What the shades mean.
    fn legend(&self, canvas: &mut Canvas) {
        let mut x = MARGIN;
        let text = Text { color: rgb(FAINT_INK), ..label(14.0) };
        canvas.text("part of a class's videos:", (x, 78.0), text);
        x += (canvas.text_width("part of a class's videos:", text) + 14.0).round();
        for (name, right) in [("right", true), ("wrong", false)] {
            for step in 1..=40 {
                let part = step as f32 / 40.0;
                canvas.rectangle((x + 3.0 * step as f32, 66.0), (3.0, 14.0), shade(part, right));
            }
            x += 3.0 * 41.0 + 8.0;
            let name = format!("0 to 100% {name}");
            canvas.text(&name, (x, 78.0), text);
            x += (canvas.text_width(&name, text) + 18.0).round();
        }
    }
}

/// From white to the full color; small parts are set off from none.
fn shade(part: f32, right: bool) -> Color {
    let full = if right { RIGHT } else { WRONG };
    let strength = 0.12 + 0.88 * part.powf(0.7);
    let [r, g, b] = full.map(|full| (255.0 + (f32::from(full) - 255.0) * strength).round() as u8);
    Color::from_rgba8(r, g, b, 255)
}

fn label(size: f32) -> Text {
    Text { size, color: rgb(INK), bold: false, align: Align::Left, rotation: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(classes: usize) -> (Confusion, Vec<String>) {
        let mut confusion = Confusion::new(classes);
        for truth in 0..classes {
            (0..8).for_each(|_| confusion.add(truth, Some(truth)));
            confusion.add(truth, Some((truth + 1) % classes));
        }
        (confusion, (0..classes).map(|class| format!("class number {class}")).collect())
    }

    #[test]
    fn right_is_green_and_wrong_is_red() {
        let (confusion, names) = matrix(6);
        let layout = Layout::new(&confusion, &names);
        let canvas = layout.draw(&confusion, &names).unwrap();
        let corner = |row: f32, column: f32| {
            let at = |place: f32| place * layout.cell + 4.0;
            canvas.pixel((layout.left() + at(column)) as u32, (HEAD + at(row)) as u32)
        };
        let ([r, g, _], [wrong_r, wrong_g, _]) = (corner(2.0, 2.0), corner(2.0, 3.0));
        assert!(g > r && wrong_r > wrong_g, "{:?} {:?}", corner(2.0, 2.0), corner(2.0, 3.0));
        assert_eq!(corner(2.0, 4.0), [255; 3]);
    }

    #[test]
    fn names_of_400_classes_can_be_read() {
        let (confusion, names) = matrix(400);
        let layout = Layout::new(&confusion, &names);
        assert!(layout.text >= 9.0 && layout.cell >= layout.text, "{} {}", layout.text, layout.cell);
        assert!(layout.columns as f32 * layout.cell < 6000.0);
    }

    #[test]
    fn long_names_have_all_the_room_they_want() {
        let (confusion, mut names) = matrix(3);
        names[1] = "a class whose name goes on and on, as those of some datasets do".to_owned();
        let layout = Layout::new(&confusion, &names);
        let ruler = Canvas::new(1, 1).unwrap();
        assert_eq!(ruler.fitted(&names[1], layout.names, label(layout.text)), names[1]);
    }

    #[test]
    fn predictions_beyond_the_dataset_have_a_column() {
        let (mut confusion, names) = matrix(3);
        assert_eq!(Layout::new(&confusion, &names).columns, 3);
        confusion.add(0, None);
        assert_eq!(Layout::new(&confusion, &names).columns, 4);
        assert!(Layout::new(&confusion, &names).draw(&confusion, &names).is_some());
    }
}
