//! Reference resamplers, written for clarity: Pillow's bilinear bit by bit, and PyTorch's without antialiasing.

/// An 8-bit RGB image, `(height, width, 3)`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Image {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) rgb: Vec<u8>,
}

/// Fractional bits of Pillow's weights for 8-bit images (`PRECISION_BITS` of `Resample.c`).
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// First source index and fixed-point weights of each output.
fn triangle(source: usize, out: usize) -> Vec<(usize, Vec<i64>)> {
    let scale = source as f64 / out as f64;
    let support = scale.max(1.0);
    (0..out)
        .map(|o| {
            let center = (o as f64 + 0.5) * scale;
            let first = ((center - support + 0.5) as i64).max(0) as usize;
            let end = ((center + support + 0.5) as usize).min(source);
            let weights: Vec<f64> =
                (first..end).map(|i| (1.0 - ((i as f64 - center + 0.5) / support).abs()).max(0.0)).collect();
            let sum: f64 = weights.iter().sum();
            let one = f64::from(1 << PRECISION_BITS);
            (first, weights.iter().map(|w| (w / sum * one + 0.5) as i64).collect())
        })
        .collect()
}

impl Image {
    /// Row by row, each pixel's three bytes.
    fn at(&self, x: usize, y: usize, channel: usize) -> u8 {
        self.rgb[(y * self.width + x) * 3 + channel]
    }

    fn build(width: usize, height: usize, pixel: impl Fn(usize, usize, usize) -> u8) -> Self {
        let mut rgb = Vec::with_capacity(width * height * 3);
        for y in 0..height {
            for x in 0..width {
                rgb.extend((0..3).map(|channel| pixel(x, y, channel)));
            }
        }
        Self { width, height, rgb }
    }

    /// `Image.resize((width, height), BILINEAR)` of Pillow: first horizontally, then vertically, each pass rounded to 8 bits.
    pub(crate) fn pillow_bilinear(&self, width: usize, height: usize) -> Self {
        let clip = |sum: i64| ((sum + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS).clamp(0, 255) as u8;
        let columns = triangle(self.width, width);
        let narrow = Self::build(width, self.height, |x, y, channel| {
            let (first, weights) = &columns[x];
            clip(weights.iter().enumerate().map(|(i, w)| w * i64::from(self.at(first + i, y, channel))).sum())
        });
        let rows = triangle(self.height, height);
        Self::build(width, height, |x, y, channel| {
            let (first, weights) = &rows[y];
            clip(weights.iter().enumerate().map(|(i, w)| w * i64::from(narrow.at(x, first + i, channel))).sum())
        })
    }

    /// `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`, rounded to 8 bits.
    pub(crate) fn two_tap_bilinear(&self, width: usize, height: usize) -> Self {
        let taps = |source: usize, out: usize, o: usize| {
            let position = ((o as f64 + 0.5) * source as f64 / out as f64 - 0.5).max(0.0);
            let first = (position as usize).min(source - 1);
            (first, (first + 1).min(source - 1), position - first as f64)
        };
        Self::build(width, height, |x, y, channel| {
            let (left, right, along_x) = taps(self.width, width, x);
            let (top, bottom, along_y) = taps(self.height, height, y);
            let row = |y| {
                f64::from(self.at(left, y, channel)) * (1.0 - along_x) + f64::from(self.at(right, y, channel)) * along_x
            };
            (row(top) * (1.0 - along_y) + row(bottom) * along_y).round() as u8
        })
    }

    pub(crate) fn crop(&self, left: usize, top: usize, size: usize) -> Self {
        Self::build(size, size, |x, y, channel| self.at(left + x, top + y, channel))
    }
}

#[derive(serde::Deserialize)]
struct Case {
    width: usize,
    height: usize,
    to_width: usize,
    to_height: usize,
    pillow: String,
    two_tap: String,
}

fn cases() -> Vec<(Image, Case)> {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../golden/resize.json")).expect("resize.json");
    cases.into_iter().map(|case| (generated(case.width, case.height), case)).collect()
}

/// The same bytes as `picture` in resize.py.
fn generated(width: usize, height: usize) -> Image {
    let mut state = 1u64;
    let rgb = (0..width * height * 3)
        .map(|_| {
            state = state * 48271 % 2147483647;
            (state >> 16) as u8
        })
        .collect();
    Image { width, height, rgb }
}

fn from_hex(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex"))
        .collect()
}

#[test]
fn reference_resize_equals_pillow_byte_for_byte() {
    for (image, case) in cases() {
        let resized = image.pillow_bilinear(case.to_width, case.to_height);
        assert_eq!(resized.rgb, from_hex(&case.pillow), "{}x{}", case.width, case.height);
    }
}

#[test]
fn reference_two_tap_resize_equals_pytorch() {
    for (image, case) in cases() {
        let resized = image.two_tap_bilinear(case.to_width, case.to_height);
        for (ours, theirs) in resized.rgb.iter().zip(from_hex(&case.two_tap)) {
            // PyTorch computes in 32-bit floats and rounds halves to even.
            assert!(ours.abs_diff(theirs) <= 1, "{}x{}: {ours} is not {theirs}", case.width, case.height);
        }
    }
}
