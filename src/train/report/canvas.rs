//! A picture to draw on: lines, rectangles, text in an embedded font, other pictures.

use std::io;
use std::path::Path;

use tiny_skia::{
    FillRule, IntSize, LineCap, LineJoin, Paint, PathBuilder, Pixmap, PixmapPaint, Rect, Stroke, StrokeDash, Transform,
};
use ttf_parser::{Face, OutlineBuilder};

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

    /// Draws text; characters that the font doesn't have become boxes.
    pub(in crate::train) fn text(&mut self, text: &str, at: Point, style: Text) {
        let offset = match style.align {
            Align::Left => 0.0,
            Align::Center => -self.text_width(text, style) / 2.0,
            Align::Right => -self.text_width(text, style),
        };
        let face = self.face(style.bold);
        let mut outline = Outline { path: PathBuilder::new(), x: 0.0 };
        for glyph in glyphs(face, text) {
            face.outline_glyph(glyph, &mut outline);
            outline.x += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0));
        }
        // Spaces have no outline.
        let Some(path) = outline.path.finish() else { return };
        let scale = style.size / f32::from(face.units_per_em());
        let transform = Transform::from_translate(at.0, at.1)
            .pre_rotate(style.rotation)
            .pre_translate(offset, 0.0)
            .pre_scale(scale, -scale);
        self.pixmap.fill_path(&path, &paint(style.color), FillRule::Winding, transform, None);
    }

    /// Pixels from the text's anchor to its other end.
    pub(in crate::train) fn text_width(&self, text: &str, style: Text) -> f32 {
        let face = self.face(style.bold);
        let units = glyphs(face, text).map(|glyph| f32::from(face.glyph_hor_advance(glyph).unwrap_or(0)));
        units.sum::<f32>() * style.size / f32::from(face.units_per_em())
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
        let png = self.pixmap.encode_png().map_err(io::Error::other)?;
        crate::replacement::write_whole(path, &png)
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

    #[cfg(test)]
    pub(in crate::train) fn size(&self) -> (u32, u32) {
        (self.pixmap.width(), self.pixmap.height())
    }
}

fn paint(color: Color) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color(color);
    paint
}

/// The font's box for what it does not have stands at index 0.
fn glyphs<'a>(face: &'a Face<'static>, text: &'a str) -> impl Iterator<Item = ttf_parser::GlyphId> + 'a {
    text.chars().map(|character| face.glyph_index(character).unwrap_or(ttf_parser::GlyphId(0)))
}

/// Glyphs one after the other, in font units.
struct Outline {
    path: PathBuilder,
    x: f32,
}

impl OutlineBuilder for Outline {
    fn move_to(&mut self, x: f32, y: f32) {
        self.path.move_to(self.x + x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        self.path.line_to(self.x + x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.path.quad_to(self.x + x1, y1, self.x + x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        self.path.cubic_to(self.x + x1, y1, self.x + x2, y2, self.x + x, y);
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
    fn pictures_that_nobody_could_open_are_refused() {
        assert!(Canvas::new(0, 10).is_none());
        assert!(Canvas::new(1 << 20, 1 << 20).is_none());
    }
}
