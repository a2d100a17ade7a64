//! GNU Unifont: a small bitmap of nearly every character there is, for names in scripts that the charts' own font lacks.

use std::io::Read;
use std::sync::OnceLock;

use flate2::read::ZlibDecoder;

/// Rows of every glyph.
pub(super) const ROWS: usize = 16;
/// Rows above the baseline.
pub(super) const ASCENT: usize = 14;

/// A glyph's pixels: a row a number, the leftmost pixel in bit 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bitmap {
    /// 8 or 16.
    pub(super) columns: usize,
    pub(super) rows: [u16; ROWS],
}

impl Bitmap {
    /// What is drawn for `character`; `None` if the font does not have it.
    pub(super) fn of(character: char) -> Option<Self> {
        static FONT: OnceLock<Font> = OnceLock::new();
        FONT.get_or_init(Font::unpack).glyph(u32::from(character))
    }

    /// Runs of pixels that are set: row, first column and number of columns.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        self.rows.into_iter().enumerate().flat_map(|(row, bits)| {
            let mut column = 0;
            std::iter::from_fn(move || {
                let rest = bits.checked_shl(column).filter(|&rest| rest != 0)?;
                let begin = column + rest.leading_zeros();
                let length = (bits << begin).leading_ones();
                column = begin + length;
                Some((row, begin as usize, length as usize))
            })
        })
    }
}

/// The font, unpacked when the first character wants it. `font/make_unifont.py` tells its format.
struct Font {
    runs: Vec<Run>,
    bitmaps: Vec<u8>,
}

/// Glyphs of one width and of characters one after the other.
struct Run {
    first: u32,
    count: u32,
    /// Of a glyph.
    bytes: usize,
    /// Of the first glyph's bitmap.
    at: usize,
}

impl Font {
    fn unpack() -> Self {
        let mut bytes = Vec::new();
        let packed = include_bytes!("font/unifont.bin");
        ZlibDecoder::new(&packed[..]).read_to_end(&mut bytes).expect("the embedded font is whole");
        let (count, rest) = bytes.split_first_chunk::<4>().expect("the embedded font begins with a number");
        let (table, bitmaps) = rest.split_at(8 * u32::from_le_bytes(*count) as usize);
        let mut at = 0;
        let run = |entry: &[u8; 8]| {
            let [a, b, c, d, e, f, g, h] = *entry;
            let (count, bytes) = (u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]));
            let run =
                Run { first: u32::from_le_bytes([a, b, c, d]), count: u32::from(count), bytes: usize::from(bytes), at };
            at += usize::from(count) * usize::from(bytes);
            run
        };
        Self { runs: table.as_chunks::<8>().0.iter().map(run).collect(), bitmaps: bitmaps.to_vec() }
    }

    fn glyph(&self, character: u32) -> Option<Bitmap> {
        let after = self.runs.partition_point(|run| run.first <= character);
        let run = self.runs.get(after.checked_sub(1)?)?;
        let place = character - run.first;
        if place >= run.count {
            return None;
        }
        let bits = &self.bitmaps[run.at + place as usize * run.bytes..][..run.bytes];
        let columns = run.bytes * 8 / ROWS;
        let row = |row: usize| match columns {
            8 => u16::from(bits[row]) << 8,
            _ => u16::from_be_bytes([bits[2 * row], bits[2 * row + 1]]),
        };
        Some(Bitmap { columns, rows: std::array::from_fn(row) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_scripts_have_glyphs_of_their_own() {
        for name in [
            "\u{4e2d}\u{6587}",
            "\u{65e5}\u{30ab}\u{306a}",
            "\u{d55c}\u{ad6d}",
            "\u{5d0}",
            "\u{628}\u{fe91}",
            "\u{915}",
            "\u{e01}",
            "\u{10d0}",
            "\u{531}",
            "\u{1200}",
            "\u{1f600}",
        ] {
            for character in name.chars() {
                let bitmap = Bitmap::of(character).unwrap_or_else(|| panic!("{character}"));
                assert!(bitmap.rows.iter().any(|&row| row != 0), "{character}");
            }
        }
        assert_ne!(Bitmap::of('\u{4e2d}'), Bitmap::of('\u{6587}'));
        assert_eq!(Bitmap::of('\u{10ffff}'), None);
    }

    #[test]
    fn runs_cover_what_is_set() {
        let bitmap =
            Bitmap { columns: 16, rows: std::array::from_fn(|row| if row == 3 { 0b1100_0000_0000_0111 } else { 0 }) };
        assert_eq!(bitmap.runs().collect::<Vec<_>>(), [(3, 0, 2), (3, 13, 3)]);
        let full = Bitmap { columns: 16, rows: [u16::MAX; ROWS] };
        assert_eq!(full.runs().count(), ROWS);
    }
}
