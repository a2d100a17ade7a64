//! A picture to draw on: lines, rectangles, text in any script by embedded fonts, other pictures.

use std::io;
use std::path::Path;

use tiny_skia::{
    FillRule, IntSize, LineCap, LineJoin, Paint, PathBuilder, Pixmap, PixmapPaint, Rect, Stroke, StrokeDash, Transform,
};
use ttf_parser::{Face, GlyphId, OutlineBuilder};

use super::script::{Placed, in_visual_order};
use super::unifont::{self, Bitmap};

pub(in crate::train) use tiny_skia::Color;

/// A point in pixels, from the upper left corner.
pub(in crate::train) type Point = (f32, f32);

/// An opaque picture.
pub(in crate::train) struct Canvas {
    pixmap: Pixmap,
    regular: Face<'static>,
    bold: Face<'static>,
}

/// How text looks.
#[derive(Debug, Clone, Copy)]
pub(in crate::train) struct Text {
    /// Pixels an em.
    pub(in crate::train) size: f32,
    pub(in crate::train) color: Color,
    pub(in crate::train) bold: bool,
    pub(in crate::train) align: Align,
    /// Degrees, clockwise, about the text's anchor.
    pub(in crate::train) rotation: f32,
}

/// Which end of a text stands at its anchor, on the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::train) enum Align {
    Left,
    Center,
    Right,
}

/// How a line looks.
#[derive(Debug, Clone, Copy)]
pub(in crate::train) struct Line {
    pub(in crate::train) color: Color,
    /// Pixels.
    pub(in crate::train) width: f32,
    /// Pixels of line and gap in turns.
    pub(in crate::train) dash: Option<[f32; 2]>,
}

/// Of text and what matters, of what goes with it, and of the lines behind charts; as [`rgb`] takes them.
pub(in crate::train) const INK: u32 = 0x26_2b_33;
pub(in crate::train) const FAINT_INK: u32 = 0x6b_72_80;
pub(in crate::train) const GRID: u32 = 0xe4_e7_eb;

/// A color from its usual notation, such as `0x1f77b4`.
pub(in crate::train) fn rgb(hex: u32) -> Color {
    let [_, r, g, b] = hex.to_be_bytes();
    Color::from_rgba8(r, g, b, 255)
}

impl Canvas {
    /// A white picture. `None` if its sides are zero or it has more than 2^29 pixels.
    pub(in crate::train) fn new(width: u32, height: u32) -> Option<Self> {
        const MAX_PIXELS: u64 = 1 << 29;
        if u64::from(width) * u64::from(height) > MAX_PIXELS {
            return None;
        }
        let mut pixmap = Pixmap::new(width, height)?;
        pixmap.fill(Color::WHITE);
        let face = |bytes| Face::parse(bytes, 0).expect("the embedded font is whole");
        Some(Self {
            pixmap,
            regular: face(include_bytes!("font/NotoSans-Regular.ttf")),
            bold: face(include_bytes!("font/NotoSans-SemiBold.ttf")),
        })
    }

    /// Fills the rectangle at `at` of size `(width, height)`.
    pub(in crate::train) fn rectangle(&mut self, at: Point, size: (f32, f32), color: Color) {
        let Some(rect) = Rect::from_xywh(at.0, at.1, size.0, size.1) else { return };
        self.pixmap.fill_rect(rect, &paint(color), Transform::identity(), None);
    }

    /// The outline of a rectangle; the line's middle runs along its sides.
    pub(in crate::train) fn frame(&mut self, at: Point, size: (f32, f32), line: Line) {
        let (right, bottom) = (at.0 + size.0, at.1 + size.1);
        let corners = [at, (right, at.1), (right, bottom), (at.0, bottom)];
        self.path(&corners, true, line);
    }

    /// A line through all points.
    pub(in crate::train) fn line(&mut self, points: &[Point], line: Line) {
        self.path(points, false, line);
    }

    /// A filled circle.
    pub(in crate::train) fn dot(&mut self, center: Point, radius: f32, color: Color) {
        if let Some(path) = PathBuilder::from_circle(center.0, center.1, radius) {
            self.pixmap.fill_path(&path, &paint(color), FillRule::Winding, Transform::identity(), None);
        }
    }

    /// A filled triangle.
    pub(in crate::train) fn triangle(&mut self, corners: [Point; 3], color: Color) {
        let mut path = PathBuilder::new();
        path.move_to(corners[0].0, corners[0].1);
        corners[1..].iter().for_each(|&(x, y)| path.line_to(x, y));
        path.close();
        if let Some(path) = path.finish() {
            self.pixmap.fill_path(&path, &paint(color), FillRule::Winding, Transform::identity(), None);
        }
    }

    /// Draws text. Characters that the charts' font does not have are those of Unifont.
    pub(in crate::train) fn text(&mut self, text: &str, at: Point, style: Text) {
        let offset = match style.align {
            Align::Left => 0.0,
            Align::Center => -self.text_width(text, style) / 2.0,
            Align::Right => -self.text_width(text, style),
        };
        let face = self.face(style.bold);
        let scale = style.size / f32::from(face.units_per_em());
        let mut path = PathBuilder::new();
        for (glyph, x) in self.glyphs(text, style) {
            match glyph {
                Glyph::Outline(id) => {
                    face.outline_glyph(id, &mut Outline { path: &mut path, x, scale });
                }
                Glyph::Bitmap(bitmap) => {
                    let pixel = pixel_of(style);
                    for (row, column, columns) in bitmap.runs() {
                        let (left, top) = (x + column as f32 * pixel, (row as f32 - unifont::ASCENT as f32) * pixel);
                        path.push_rect(
                            Rect::from_xywh(left, top, columns as f32 * pixel, pixel).expect("pixels have sides"),
                        );
                    }
                }
            }
        }
        // Spaces have no outline.
        let Some(path) = path.finish() else { return };
        let transform = Transform::from_translate(at.0, at.1).pre_rotate(style.rotation).pre_translate(offset, 0.0);
        self.pixmap.fill_path(&path, &paint(style.color), FillRule::Winding, transform, None);
    }

    /// Pixels from the text's anchor to its other end.
    pub(in crate::train) fn text_width(&self, text: &str, style: Text) -> f32 {
        let advances = in_visual_order(text).into_iter().filter(|placed| !placed.is_mark);
        advances.map(|placed| self.glyph(placed.character, style).1).sum()
    }

    /// Glyphs and where they begin, from the left end of the text.
    fn glyphs(&self, text: &str, style: Text) -> Vec<(Glyph, f32)> {
        let (mut x, mut base) = (0.0, 0.0);
        let mut glyphs = Vec::new();
        for Placed { character, is_mark } in in_visual_order(text) {
            let (glyph, advance) = self.glyph(character, style);
            if is_mark {
                glyphs.push((glyph, base));
            } else {
                glyphs.push((glyph, x));
                (base, x) = (x, x + advance);
            }
        }
        glyphs
    }

    /// What is drawn for a character, and how much room it takes.
    fn glyph(&self, character: char, style: Text) -> (Glyph, f32) {
        let face = self.face(style.bold);
        let outline = |id| {
            let advance = f32::from(face.glyph_hor_advance(id).unwrap_or(0));
            (Glyph::Outline(id), advance * style.size / f32::from(face.units_per_em()))
        };
        if let Some(id) = face.glyph_index(character) {
            return outline(id);
        }
        match Bitmap::of(character) {
            Some(bitmap) => (Glyph::Bitmap(bitmap), bitmap.columns as f32 * pixel_of(style)),
            // The font's box for what it does not have.
            None => outline(GlyphId(0)),
        }
    }

    /// The text in as many lines as it takes for none to be wider than `width` pixels: broken at spaces and other signs if it
    /// can be, within words if not.
    pub(in crate::train) fn wrapped(&self, text: &str, width: f32, style: Text) -> Vec<String> {
        let mut lines = Vec::new();
        let mut line = String::new();
        for piece in text.split_inclusive([' ', '/', '_', '-', '.', ',']) {
            if !line.is_empty() && self.text_width(&(line.clone() + piece.trim_end()), style) > width {
                lines.push(std::mem::take(&mut line));
            }
            for character in piece.chars() {
                line.push(character);
                if line.chars().count() > 1 && self.text_width(line.trim_end(), style) > width {
                    line.pop();
                    lines.push(std::mem::replace(&mut line, character.to_string()));
                }
            }
        }
        lines.push(line);
        lines.into_iter().map(|line| line.trim_end().to_owned()).collect()
    }

    /// The text if it is at most `width` pixels wide, or its beginning with an ellipsis.
    pub(in crate::train) fn fitted(&self, text: &str, width: f32, style: Text) -> String {
        if self.text_width(text, style) <= width {
            return text.to_owned();
        }
        let ends = text.char_indices().map(|(end, _)| end).rev();
        let cut = |end: usize| format!("{}…", text[..end].trim_end());
        ends.map(cut).find(|cut| self.text_width(cut, style) <= width).unwrap_or_default()
    }

    /// Puts an RGB picture `(h, w, 3)` of 0-255 with its upper left corner at `at`.
    ///
    /// # Panics
    ///
    /// If `pixels` does not have `height * width * 3` values.
    pub(in crate::train) fn picture(&mut self, pixels: &[u8], (width, height): (u32, u32), at: (i32, i32)) {
        let rgba = pixels.chunks_exact(3).flat_map(|rgb| [rgb[0], rgb[1], rgb[2], 255]).collect();
        let size = IntSize::from_wh(width, height).expect("pictures are not empty");
        let picture = Pixmap::from_vec(rgba, size).expect("a picture has height * width * 3 values");
        let paint = PixmapPaint::default();
        self.pixmap.draw_pixmap(at.0, at.1, picture.as_ref(), &paint, Transform::identity(), None);
    }

    /// Writes a PNG file; an older one stays whole until the new one is.
    pub(in crate::train) fn save(&self, path: &Path) -> io::Result<()> {
        crate::replacement::write_whole(path, &self.png()?)
    }

    /// The picture as a PNG file.
    pub(in crate::train) fn png(&self) -> io::Result<Vec<u8>> {
        self.pixmap.encode_png().map_err(io::Error::other)
    }

    fn path(&mut self, points: &[Point], close: bool, line: Line) {
        let mut path = PathBuilder::new();
        for (index, &(x, y)) in points.iter().enumerate() {
            if index == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
        }
        if close {
            path.close();
        }
        let Some(path) = path.finish() else { return };
        let stroke = Stroke {
            width: line.width,
            line_cap: if line.dash.is_some() { LineCap::Butt } else { LineCap::Round },
            line_join: if close { LineJoin::Miter } else { LineJoin::Round },
            dash: line.dash.and_then(|dash| StrokeDash::new(dash.to_vec(), 0.0)),
            ..Stroke::default()
        };
        self.pixmap.stroke_path(&path, &paint(line.color), &stroke, Transform::identity(), None);
    }

    fn face(&self, bold: bool) -> &Face<'static> {
        if bold { &self.bold } else { &self.regular }
    }

    #[cfg(test)]
    pub(in crate::train) fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        let pixel = self.pixmap.pixel(x, y).expect("the pixel is in the picture");
        [pixel.red(), pixel.green(), pixel.blue()]
    }

    /// Width and height.
    pub(in crate::train) fn size(&self) -> (u32, u32) {
        (self.pixmap.width(), self.pixmap.height())
    }
}

fn paint(color: Color) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color(color);
    paint
}

/// What is drawn for a character.
enum Glyph {
    /// Of the charts' font.
    Outline(GlyphId),
    /// Of Unifont.
    Bitmap(Bitmap),
}

/// Side of a pixel of Unifont beside text in this style: its letters are a little smaller than those of the charts' font.
fn pixel_of(style: Text) -> f32 {
    1.1 * style.size / unifont::ROWS as f32
}

/// A glyph in pixels, `x` of them from the left end of the text. Fonts count upwards, pictures downwards.
struct Outline<'a> {
    path: &'a mut PathBuilder,
    x: f32,
    /// Pixels a font unit.
    scale: f32,
}

impl Outline<'_> {
    fn place(&self, x: f32, y: f32) -> Point {
        (self.x + x * self.scale, -y * self.scale)
    }
}

impl OutlineBuilder for Outline<'_> {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.place(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.place(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.place(x1, y1), self.place(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.place(x1, y1), self.place(x2, y2), self.place(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Text = Text { size: 20.0, color: Color::BLACK, bold: false, align: Align::Left, rotation: 0.0 };

    #[test]
    fn text_is_drawn_where_it_is_aligned() {
        for (align, inked) in [(Align::Left, 50..100), (Align::Right, 0..50)] {
            let mut canvas = Canvas::new(100, 40).unwrap();
            canvas.text("HH", (50.0, 30.0), Text { align, ..TEXT });
            let dark: Vec<u32> = (0..100).filter(|&x| (0..40).any(|y| canvas.pixel(x, y) < [128, 128, 128])).collect();
            assert!(!dark.is_empty() && dark.iter().all(|x| inked.contains(x)), "{align:?}: {dark:?}");
        }
    }

    #[test]
    fn long_text_is_cut_to_fit() {
        let canvas = Canvas::new(1, 1).unwrap();
        assert_eq!(canvas.fitted("short", 100.0, TEXT), "short");
        let cut = canvas.fitted("massaging person's head", 100.0, TEXT);
        assert!(cut.ends_with('…') && cut.starts_with("mass"), "{cut}");
        assert!(canvas.text_width(&cut, TEXT) <= 100.0);
        assert_eq!(canvas.fitted("anything", 1.0, TEXT), "");
    }

    #[test]
    fn names_in_all_scripts_are_drawn_and_none_is_a_box() {
        let ink = |text: &str| {
            let mut canvas = Canvas::new(60, 60).unwrap();
            canvas.text(text, (10.0, 40.0), TEXT);
            (0..60u32 * 60).filter(|place| canvas.pixel(place % 60, place / 60) < [128; 3]).collect::<Vec<_>>()
        };
        let the_box = ink("\u{10ffff}");
        assert!(!the_box.is_empty());
        for name in ["a", "ж", "跑", "走", "달", "د", "ד", "द", "ท", "ა", "ա", "አ", "😀"] {
            let drawn = ink(name);
            assert!(!drawn.is_empty() && drawn != the_box, "{name} is a box");
        }
        assert_ne!(ink("跑"), ink("走"));
    }

    #[test]
    fn wrapped_text_keeps_every_character() {
        let canvas = Canvas::new(1, 1).unwrap();
        for text in [
            "massaging person's head",
            "a/very/long/path_to_a-video.mp4",
            "abcdefghijklmnopqrstuvwxyz",
            "走る人走る人走る人",
            "",
        ] {
            let lines = canvas.wrapped(text, 80.0, TEXT);
            assert!(lines.iter().all(|line| canvas.text_width(line, TEXT) <= 80.0), "{lines:?}");
            let letters = |text: &str| text.replace(' ', "");
            assert_eq!(letters(&lines.concat()), letters(text));
        }
        assert_eq!(canvas.wrapped("short one", 200.0, TEXT), ["short one"]);
    }

    #[test]
    fn pictures_that_nobody_could_open_are_refused() {
        assert!(Canvas::new(0, 10).is_none());
        assert!(Canvas::new(1 << 20, 1 << 20).is_none());
    }
}
