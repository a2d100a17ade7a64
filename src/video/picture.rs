//! A decoded frame as the transform sees it: planes of samples and what they mean.

/// A decoded frame, borrowed from the decoder.
#[derive(Debug, Clone)]
pub struct Picture<'a> {
    /// Size and meaning, all that a transform plan depends on.
    pub layout: Layout,
    /// Luma, first and second chroma; or red, green, blue; or luma alone.
    pub planes: Planes<'a>,
}

/// Size and meaning of a picture's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Bits of a sample, 8 to 14.
    pub depth: u32,
    /// What the planes hold.
    pub color: Color,
    /// How the picture is to be turned for display.
    pub orientation: Orientation,
}

/// What the planes of a picture hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    /// Red, green and blue, full range.
    Rgb,
    /// One plane of luma.
    Gray {
        /// True: black is 0; false: black is 16 (of 255).
        full_range: bool,
    },
    /// Luma and two chroma planes.
    YCbCr {
        /// The matrix that the tags name.
        matrix: Matrix,
        /// True: luma is 0-255; false: luma is 16-235, chroma 16-240.
        full_range: bool,
        /// Binary logarithms of the horizontal and vertical chroma subsampling.
        subsampling: [u32; 2],
    },
}

/// Y'CbCr matrices (ITU-T H.273, table 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matrix {
    /// BT.601, also where nothing is said.
    Bt601,
    /// BT.709.
    Bt709,
    /// FCC Title 47.
    Fcc,
    /// SMPTE ST 240.
    Smpte240,
    /// BT.2020.
    Bt2020,
}

impl Matrix {
    /// The weights of red and blue in luma.
    pub fn red_and_blue_weights(self) -> (f64, f64) {
        match self {
            Self::Bt601 => (0.299, 0.114),
            Self::Bt709 => (0.2126, 0.0722),
            Self::Fcc => (0.30, 0.11),
            Self::Smpte240 => (0.212, 0.087),
            Self::Bt2020 => (0.2627, 0.0593),
        }
    }
}

/// One of the eight ways to turn a picture in steps of 90 degrees: first both axes may be reversed, then they may be
/// exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Orientation {
    /// The decoded x axis runs against the displayed axis it becomes.
    pub flip_x: bool,
    /// The decoded y axis runs against the displayed axis it becomes.
    pub flip_y: bool,
    /// The decoded x axis becomes the displayed y axis.
    pub transpose: bool,
}

impl Orientation {
    /// Reads a display matrix: nine numbers, row by row, of which the upper left four turn decoded
    /// coordinates into displayed ones (ISO/IEC 14496-12, track header). Angles that are no multiple of 90 degrees
    /// are rounded to one.
    pub fn from_display_matrix(m: &[i32; 9]) -> Self {
        // x' = a x + c y, y' = b x + d y.
        let [a, b, c, d] = [m[0], m[1], m[3], m[4]].map(i64::from);
        if a.abs() + d.abs() >= b.abs() + c.abs() {
            Self { flip_x: a < 0, flip_y: d < 0, transpose: false }
        } else {
            Self { flip_x: b < 0, flip_y: c < 0, transpose: true }
        }
    }
}

/// The samples of a picture.
#[derive(Debug, Clone)]
pub enum Planes<'a> {
    /// Bytes.
    U8(Vec<Plane<'a, u8>>),
    /// 16-bit words of which the lower [`Layout::depth`] bits are used.
    U16(Vec<Plane<'a, u16>>),
}

/// One plane of samples.
#[derive(Debug, Clone, Copy)]
pub struct Plane<'a, T> {
    /// Rows from the top, `stride` apart; the last may end after `width` samples.
    pub samples: &'a [T],
    /// Samples from one row to the next.
    pub stride: usize,
    /// Samples in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl<'a, T> Plane<'a, T> {
    /// Row `y`, exactly `width` samples.
    #[inline]
    pub fn row(&self, y: usize) -> &'a [T] {
        &self.samples[y * self.stride..][..self.width]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: i32 = 1 << 16;

    #[test]
    fn identity_matrix_turns_nothing() {
        assert_eq!(Orientation::from_display_matrix(&[ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30]), Orientation::default());
    }

    #[test]
    fn half_turn_reverses_both_axes() {
        let half = Orientation::from_display_matrix(&[-ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30]);
        assert_eq!(half, Orientation { flip_x: true, flip_y: true, transpose: false });
    }

    #[test]
    fn quarter_turn_exchanges_the_axes_and_reverses_one() {
        // Clockwise for display: the decoded top row becomes the right column, so decoded y runs against displayed x.
        let quarter = Orientation::from_display_matrix(&[0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30]);
        assert_eq!(quarter, Orientation { flip_x: false, flip_y: true, transpose: true });
    }

    #[test]
    fn almost_upright_picture_stays_upright() {
        let tilted = Orientation::from_display_matrix(&[65000, 8000, 0, -8000, 65000, 0, 0, 0, 1 << 30]);
        assert_eq!(tilted, Orientation::default());
    }
}
