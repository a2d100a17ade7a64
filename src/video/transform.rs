//! Decoded planes to `size x size` 8-bit RGB in one pass: each plane is resized at its own resolution, then the
//! colour matrix is applied at the small size.
//!
//! The reference converts the whole frame to RGB, resizes it with Pillow and crops. Those steps are linear but
//! for their rounding, so the weights of chroma upsampling and of the resize are multiplied once a
//! resolution, and only the crop's pixels are computed.

use serde::{Deserialize, Serialize};

use super::error::VideoError;
use super::kernel::{COLOR_BITS, ColorCoefficients, NEUTRAL, SAMPLE_BITS};
use super::picture::{Color, Layout, Matrix, Picture, Planes};
use super::simd::Kernel;
use super::weights::{Span, Taps, Weights};
use crate::model::spec::{ColorMatrix, Preprocessing, Resize};

/// Which square of the displayed frame becomes the network's input.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub enum Crop {
    /// The middle of the resized frame, as the model's preprocessing says: for inference.
    #[default]
    Center,
    /// A square of the displayed frame, resized straight to the clip's size: for training (paper, section 3.2.1).
    Square {
        /// Side, as a part of the frame's short side; more than 0, at most 1.
        scale: f64,
        /// Horizontal place: 0 at the left edge, 0.5 in the middle, 1 at the right edge.
        x: f64,
        /// Vertical place: 0 at the top edge, 0.5 in the middle, 1 at the bottom edge.
        y: f64,
    },
    /// A rectangle of the displayed frame, resized straight to the clip's size whatever its aspect ratio: for training.
    /// All are parts of the frame's width or height, from 0 to 1; the rectangle lies within the frame.
    Box {
        /// Left edge, as a part of the frame's width.
        left: f64,
        /// Top edge, as a part of the frame's height.
        top: f64,
        /// Width, as a part of the frame's; more than 0.
        width: f64,
        /// Height, as a part of the frame's; more than 0.
        height: f64,
    },
}

/// Turns decoded frames into pixels of the network's input size. Keeps the weights of the last few frame layouts.
#[derive(Debug)]
pub struct FrameTransform {
    size: usize,
    resize: Resize,
    antialias: bool,
    color_matrix: ColorMatrix,
    crop: Crop,
    kernel: Kernel,
    /// The one in use comes last.
    plans: Vec<(Layout, Plan)>,
    resized: [Vec<i16>; 3],
    scratch: Vec<i16>,
    upright: Vec<u8>,
}

/// Layouts of which the weights are kept: a recording of a window has the sizes that the window had, and comes back to them.
/// Each takes some hundred kilobytes at most.
const MAX_PLANS: usize = 8;

/// All that depends on the layout of the frames.
#[derive(Debug)]
struct Plan {
    luma: PlaneTaps,
    /// `None` where it is as luma's.
    chroma: Option<PlaneTaps>,
    color: Option<ColorCoefficients>,
}

#[derive(Debug)]
struct PlaneTaps {
    rows: Taps,
    columns: Taps,
}

impl FrameTransform {
    /// A transform to `size x size` pixels. Fails if the preprocessing resizes to less than that.
    pub fn new(size: usize, preprocessing: &Preprocessing, crop: Crop) -> Result<Self, VideoError> {
        if let Resize::Fixed { height, width } = preprocessing.resize
            && (height < size || width < size)
        {
            return Err(VideoError::ResizeSmallerThanCrop { height, width, size });
        }
        Ok(Self {
            size,
            resize: preprocessing.resize,
            antialias: preprocessing.antialias,
            color_matrix: preprocessing.color_matrix,
            crop,
            kernel: Kernel::detect(),
            plans: Vec::new(),
            resized: std::array::from_fn(|_| vec![0; size * size]),
            scratch: Vec::new(),
            upright: Vec::new(),
        })
    }

    /// The same with another build of the inner loops, to compare them.
    #[cfg(test)]
    pub(super) fn with_kernel(self, kernel: Kernel) -> Self {
        Self { kernel, ..self }
    }

    /// Writes `picture` to `rgb`, `(size, size, 3)`.
    pub fn apply(&mut self, picture: &Picture<'_>, rgb: &mut [u8]) {
        assert_eq!(rgb.len(), self.size * self.size * 3, "rgb is (size, size, 3)");
        self.choose_plan(&picture.layout);
        self.resize(picture);
        if picture.layout.orientation.transpose {
            let mut upright = std::mem::take(&mut self.upright);
            upright.resize(rgb.len(), 0);
            self.combine(planes_of(picture), &mut upright);
            transpose(&upright, self.size, rgb);
            self.upright = upright;
        } else {
            self.combine(planes_of(picture), rgb);
        }
    }

    fn choose_plan(&mut self, layout: &Layout) {
        if self.plans.last().is_some_and(|(of, _)| of == layout) {
            return;
        }
        let known = self.plans.iter().position(|(of, _)| of == layout);
        let plan = known.map(|place| self.plans.remove(place)).unwrap_or_else(|| (*layout, self.plan_for(layout)));
        if self.plans.len() == MAX_PLANS {
            self.plans.remove(0);
        }
        self.plans.push(plan);
    }

    fn resize(&mut self, picture: &Picture<'_>) {
        let Some((_, plan)) = self.plans.last() else { return };
        let depth = picture.layout.depth;
        for (i, out) in self.resized.iter_mut().enumerate().take(planes_of(picture)) {
            let PlaneTaps { rows, columns } =
                if i == 0 { &plan.luma } else { plan.chroma.as_ref().unwrap_or(&plan.luma) };
            match &picture.planes {
                Planes::U8(planes) => self.kernel.resize_bytes(&planes[i], rows, columns, &mut self.scratch, out),
                Planes::U16(planes) => {
                    self.kernel.resize_words(&planes[i], depth, rows, columns, &mut self.scratch, out)
                }
            }
        }
    }

    fn combine(&mut self, planes: usize, rgb: &mut [u8]) {
        let Some((_, plan)) = self.plans.last() else { return };
        if planes == 1 {
            self.resized[1].fill(NEUTRAL);
            self.resized[2].fill(NEUTRAL);
        }
        let resized = [0, 1, 2].map(|i| self.resized[i].as_slice());
        match &plan.color {
            Some(coefficients) => self.kernel.ycbcr_to_rgb(resized, coefficients, rgb),
            None => self.kernel.planes_to_rgb(resized, rgb),
        }
    }

    fn plan_for(&self, layout: &Layout) -> Plan {
        let Layout { width, height, orientation, .. } = *layout;
        let (displayed_width, displayed_height) = if orientation.transpose { (height, width) } else { (width, height) };
        let (x, y) = self.spans(displayed_width, displayed_height);
        // Each decoded axis is resampled on its own, so turning the picture is a matter of which span it gets.
        let (columns_span, rows_span) = if orientation.transpose { (y, x) } else { (x, y) };
        let subsampling = match layout.color {
            Color::YCbCr { subsampling, .. } => subsampling,
            Color::Rgb | Color::Gray { .. } => [0, 0],
        };
        let taps = |[sub_x, sub_y]: [u32; 2]| PlaneTaps {
            columns: self.axis(width, columns_span, sub_x, orientation.flip_x),
            rows: self.axis(height, rows_span, sub_y, orientation.flip_y),
        };
        Plan {
            luma: taps([0, 0]),
            chroma: (subsampling != [0, 0]).then(|| taps(subsampling)),
            color: self.coefficients(layout.color),
        }
    }

    /// The crop on the displayed frame's x and y axes.
    fn spans(&self, width: usize, height: usize) -> (Span, Span) {
        match self.crop {
            Crop::Center => {
                let short = width.min(height);
                let (resized_width, resized_height) = match self.resize {
                    Resize::ShortSide => (self.size * width / short, self.size * height / short),
                    Resize::Fixed { height, width } => (width, height),
                };
                (center_span(width, resized_width, self.size), center_span(height, resized_height, self.size))
            }
            Crop::Square { scale, x, y } => {
                let length = (scale * width.min(height) as f64).max(f64::MIN_POSITIVE);
                let span = |extent: usize, place: f64| Span { start: place * (extent as f64 - length), length };
                (span(width, x), span(height, y))
            }
            Crop::Box { left, top, width: part_x, height: part_y } => {
                let span = |extent: usize, start: f64, part: f64| Span {
                    start: start * extent as f64,
                    length: (part * extent as f64).max(f64::MIN_POSITIVE),
                };
                (span(width, left, part_x), span(height, top, part_y))
            }
        }
    }

    /// `span` is on the displayed axis of `len` luma samples; the plane has one sample for `1 << subsampling` of them.
    fn axis(&self, len: usize, span: Span, subsampling: u32, flipped: bool) -> Taps {
        let filter = if self.antialias { Weights::triangle } else { Weights::two_tap };
        let mut weights = filter(len, span, self.size);
        if subsampling > 0 {
            weights = weights.after(&Weights::chroma_upsampling(len.div_ceil(1 << subsampling), len));
        }
        if flipped {
            weights = weights.mirrored();
        }
        weights.quantised()
    }

    fn coefficients(&self, color: Color) -> Option<ColorCoefficients> {
        let (tagged, full_range) = match color {
            Color::Rgb => return None,
            Color::Gray { full_range } => (Matrix::Bt601, full_range),
            Color::YCbCr { matrix, full_range, .. } => (matrix, full_range),
        };
        let matrix = match self.color_matrix {
            ColorMatrix::Bt601 => Matrix::Bt601,
            ColorMatrix::Tagged => tagged,
        };
        Some(color_coefficients(matrix, full_range))
    }
}

fn planes_of(picture: &Picture<'_>) -> usize {
    match &picture.planes {
        Planes::U8(planes) => planes.len(),
        Planes::U16(planes) => planes.len(),
    }
}

/// The middle `size` of `resized` samples, on the source axis of `source` samples. Where the middle falls between two
/// offsets, the even one is taken, as Python's `round` does in the authors' and torchvision's crops.
fn center_span(source: usize, resized: usize, size: usize) -> Span {
    let margin = resized - size;
    let offset = margin / 2 + usize::from(margin % 4 == 3);
    let scale = source as f64 / resized as f64;
    Span { start: offset as f64 * scale, length: size as f64 * scale }
}

/// From the definition of Y'CbCr (ITU-R BT.601, section 2.5) and its inverse.
fn color_coefficients(matrix: Matrix, full_range: bool) -> ColorCoefficients {
    let (red, blue) = matrix.red_and_blue_weights();
    let green = 1.0 - red - blue;
    let (luma_gain, chroma_gain) = if full_range { (1.0, 1.0) } else { (255.0 / 219.0, 255.0 / 224.0) };
    let fixed = |value: f64| (value * f64::from(1 << COLOR_BITS)).round() as i16;
    let (red_v, blue_u) = (2.0 * (1.0 - red) * chroma_gain, 2.0 * (1.0 - blue) * chroma_gain);
    ColorCoefficients {
        luma: fixed(luma_gain),
        red_v: fixed(red_v),
        green_u: fixed(-blue_u * blue / green),
        green_v: fixed(-red_v * red / green),
        blue_u: fixed(blue_u),
        black: if full_range { 0 } else { 16 << (SAMPLE_BITS - 8) },
    }
}

fn transpose(from: &[u8], size: usize, to: &mut [u8]) {
    for (y, row) in from.chunks_exact(size * 3).enumerate() {
        for (x, pixel) in row.chunks_exact(3).enumerate() {
            to[(x * size + y) * 3..][..3].copy_from_slice(pixel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::video::picture::{Orientation, Plane};
    use proptest::prelude::*;

    fn plane<T>(samples: &[T], width: usize, height: usize) -> Plane<'_, T> {
        Plane { samples, stride: width, width, height }
    }

    #[test]
    fn middle_between_two_offsets_is_the_even_one() {
        let offset = |resized: usize| center_span(resized, resized, 112).start;
        assert_eq!([113, 115, 117, 171].map(offset), [0.0, 2.0, 2.0, 30.0]);
    }

    #[test]
    fn white_black_and_gray_keep_their_levels() {
        for (luma, level) in [(16u8, 0u8), (235, 255), (126, 128)] {
            let layout = Layout {
                width: 64,
                height: 48,
                depth: 8,
                color: Color::YCbCr { matrix: Matrix::Bt601, full_range: false, subsampling: [1, 1] },
                orientation: Orientation::default(),
            };
            let (y, c) = (vec![luma; 64 * 48], vec![128; 32 * 24]);
            let planes = Planes::U8(vec![plane(&y, 64, 48), plane(&c, 32, 24), plane(&c, 32, 24)]);
            let mut rgb = vec![0; 16 * 16 * 3];
            let mut transform = FrameTransform::new(16, &Preprocessing::AUTHORS_2018, Crop::Center).expect("fits");
            transform.apply(&Picture { layout, planes }, &mut rgb);
            assert!(rgb.iter().all(|&value| value == level), "luma {luma} became {:?}", &rgb[..3]);
        }
    }

    proptest! {
        #[test]
        fn all_kernels_give_the_same_bytes(
            width in 1usize..300, height in 1usize..60, bits in 8u32..=14, turned: bool, square: bool, seed: u64,
        ) {
            let mut state = seed | 1;
            let mut samples = |len: usize| -> Vec<u16> {
                (0..len)
                    .map(|_| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        (state >> 40) as u16 & ((1 << bits) - 1)
                    })
                    .collect()
            };
            let (cw, ch) = (width.div_ceil(2), height.div_ceil(2));
            let [y, u, v] = [samples(width * height), samples(cw * ch), samples(cw * ch)];
            let bytes = [&y, &u, &v].map(|plane| plane.iter().map(|&sample| sample as u8).collect::<Vec<u8>>());
            let planes = if bits == 8 {
                let [y, u, v] = &bytes;
                Planes::U8(vec![plane(y, width, height), plane(u, cw, ch), plane(v, cw, ch)])
            } else {
                Planes::U16(vec![plane(&y, width, height), plane(&u, cw, ch), plane(&v, cw, ch)])
            };
            let color = Color::YCbCr { matrix: Matrix::Bt709, full_range: turned, subsampling: [1, 1] };
            let orientation = Orientation { flip_x: turned, flip_y: false, transpose: turned };
            let picture = Picture { layout: Layout { width, height, depth: bits, color, orientation }, planes };
            let crop = if square { Crop::Square { scale: 0.6, x: 1.0, y: 0.0 } } else { Crop::Center };
            let [portable, detected] = [Kernel::PORTABLE, Kernel::detect()].map(|kernel| {
                let mut rgb = vec![0; 40 * 40 * 3];
                let transform = FrameTransform::new(40, &Preprocessing::AUTHORS_2018, crop).expect("fits");
                transform.with_kernel(kernel).apply(&picture, &mut rgb);
                rgb
            });
            prop_assert_eq!(portable, detected);
        }
    }
}
