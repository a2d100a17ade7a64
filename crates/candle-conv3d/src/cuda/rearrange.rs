//! Exact rearrangements of convolutions for GPUs: other shapes for the same sums, and where a weight stands in them.

use super::shape::ConvShape;
use crate::cpu::Shape;
use crate::geometry::Window;

/// Channels of activations are a multiple of this: 16 bytes of half floats, which the fast kernels read at once.
const CHANNEL_BLOCK: usize = 8;
/// A clip of no more channels is read in a form of its own.
pub(super) const STEM_CHANNELS: usize = 4;

/// How the first convolution reads a clip of few channels; which is fastest depends on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StemForm {
    /// As it is, channels padded to 4.
    Padded,
    /// As many neighbouring columns as the stride side by side in the channels: 2 x 3, padded to 8, and a kernel of 4
    /// columns with stride 1.
    Phases,
    /// All columns of the kernel side by side in the channels: 7 x 3, padded to 24, and a kernel of one column.
    Columns,
}

impl StemForm {
    pub(crate) const ALL: [Self; 3] = [Self::Padded, Self::Phases, Self::Columns];
}

/// How clips are stored for the first layer; mirrors `Load` in kernels.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoadShape {
    pub(crate) channels: i32,
    pub(crate) t: i32,
    pub(crate) h: i32,
    pub(crate) w: i32,
    pub(crate) phases: i32,
    pub(crate) step: i32,
    pub(crate) offset: i32,
    pub(crate) stored_w: i32,
    pub(crate) stored_c: i32,
}

pub(super) const POINTWISE: Window = Window::new([1; 3], [1; 3], [0; 3]);

/// A convolution of a network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) from: Shape,
    pub(super) to: Shape,
    pub(super) window: Window,
}

/// Where the values of a weight (k, c, kt, kh, kw) stand in one that is packed, (stored_k, taps, rows, columns, stored_c);
/// mirrors `Weight` in training.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Packing {
    pub(super) k: i32,
    pub(super) c: i32,
    pub(super) kernel: [i32; 3],
    pub(super) stored_k: i32,
    pub(super) stored_c: i32,
    /// Frames, rows and columns that are stored.
    pub(super) stored: [i32; 3],
    /// The first frame and the first row that are.
    pub(super) first: [i32; 2],
    /// Columns side by side in the channels; column `j` holds those from `j * step - shift` on.
    pub(super) phases: i32,
    pub(super) step: i32,
    pub(super) shift: i32,
}

impl Packing {
    /// Index into the weight of (output channel, tap, input channel) of the packed one; `None` is zero.
    fn index(&self, k: usize, [t, h, j]: [usize; 3], c: usize) -> Option<usize> {
        let [k, t, h, j, c] = [k, t, h, j, c].map(|index| index as i64);
        let [channels, step, shift, phases] = [self.c, self.step, self.shift, self.phases].map(i64::from);
        let ([kt, kh, kw], [first_t, first_h]) = (self.kernel.map(i64::from), self.first.map(i64::from));
        let (phase, channel) = (c / channels, c % channels);
        let (t, h, w) = (t + first_t, h + first_h, j * step + phase - shift);
        let inside = k < i64::from(self.k) && phase < phases && t < kt && h < kh && (0..kw).contains(&w);
        inside.then(|| ((((k * channels + channel) * kt + t) * kh + h) * kw + w) as usize)
    }
}

/// A convolution as it is computed.
pub(super) struct Rearranged {
    pub(super) shape: ConvShape,
    /// Index into the graph's weight of (output channel, tap, input channel); `None` is zero.
    pub(super) source: Box<dyn Fn(usize, [usize; 3], usize) -> Option<usize>>,
    /// Stored output channels of one frame, and frames that are folded into them.
    frame_channels: usize,
    frames: usize,
    /// What `source` goes by, if time is not folded.
    pub(super) packing: Option<Packing>,
}

impl Rearranged {
    fn packed(shape: ConvShape, packing: Packing) -> Self {
        let source = Box::new(move |k, place, c| packing.index(k, place, c));
        Self { shape, source, frame_channels: shape.output[0], frames: 1, packing: Some(packing) }
    }

    pub(super) fn biases(&self, bias: &[f32]) -> Vec<f32> {
        let mut frame = bias.to_vec();
        frame.resize(self.frame_channels, 0.0);
        frame.repeat(self.frames)
    }
}

impl Source {
    /// Kernel positions `begin..end` along an axis that meet data for some output.
    pub(super) fn taps(&self, axis: usize) -> (usize, usize) {
        let (from, to) = ([self.from.t, self.from.h, self.from.w], [self.to.t, self.to.h, self.to.w]);
        let met = (0..to[axis]).map(|out| self.window.valid_taps(axis, out, from[axis])).filter(|(b, e)| b < e);
        let (begin, end) = met.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((0, 1));
        // What is left has to give as many outputs.
        let Window { kernel, stride, padding, .. } = self.window;
        let pre = padding[axis].saturating_sub(begin);
        let last = (to[axis] - 1) * stride[axis] + (end - begin);
        let fits = padding[axis] >= begin && from[axis] + pre < last + stride[axis];
        if fits { (begin, end) } else { (0, kernel[axis]) }
    }

    /// Taps cut along all axes.
    pub(super) fn plain(&self) -> Rearranged {
        let taps = [0, 1, 2].map(|axis| self.taps(axis));
        let (c, k) = (padded(self.from.c), padded(self.to.c));
        let shape = self.shape([c, self.from.t, self.from.h, self.from.w], [k, self.to.t, self.to.h, self.to.w], taps);
        let first = taps.map(|(begin, _)| begin as i32);
        Rearranged::packed(shape, self.packing(&shape, [first[0], first[1]], [1, 1, -first[2]]))
    }

    /// Time as a part of the channels.
    pub(super) fn folded(&self) -> Rearranged {
        let taps = [(0, 1), self.taps(1), self.taps(2)];
        let (c, k) = (padded(self.from.c), padded(self.to.c));
        let (frames_in, frames) = (self.from.t, self.to.t);
        let (stride, padding) = (self.window.stride[0], self.window.padding[0]);
        let flat = Source { window: self.flat_window(), ..*self };
        let shape =
            flat.shape([c * frames_in, 1, self.from.h, self.from.w], [k * frames, 1, self.to.h, self.to.w], taps);
        // The time of a tap follows from the frames.
        let packing = self.packing(&shape, [0, taps[1].0 as i32], [1, 1, -(taps[2].0 as i32)]);
        let source = move |out: usize, [_, h, w]: [usize; 3], input: usize| {
            let (frame, frame_in) = (out / k, input / c);
            let t = (frame_in + padding).checked_sub(frame * stride)?;
            packing.index(out % k, [t, h, w], input % c)
        };
        Rearranged { shape, source: Box::new(source), frame_channels: k, frames, packing: None }
    }

    fn flat_window(&self) -> Window {
        let Window { kernel, stride, padding, padding_after } = self.window;
        Window {
            kernel: [1, kernel[1], kernel[2]],
            stride: [1, stride[1], stride[2]],
            padding: [0, padding[1], padding[2]],
            padding_after: [0, padding_after[1], padding_after[2]],
        }
    }

    /// Frames side by side: a picture of `h` rows and `t * w` columns, whatever order those are in.
    pub(super) fn pointwise(&self) -> Rearranged {
        let (c, k) = (padded(self.from.c), padded(self.to.c));
        let size = |shape: Shape, c: usize| [c, 1, shape.h, shape.t * shape.w];
        let shape = self.shape(size(self.from, c), size(self.to, k), [(0, 1); 3]);
        Rearranged::packed(shape, self.packing(&shape, [0, 0], [1, 1, 0]))
    }

    /// The first layer of few channels.
    ///
    /// Column `q` of the stored clip holds the pixels `q * step - offset + phase`; output `o` reads the columns
    /// `o * stride + j - pre` for `j` in the kernel. The original reads pixel `o * sw + tap - pw`, so that
    /// `tap = (j - pre) * step + phase - offset + pw`.
    pub(super) fn stem(&self, form: StemForm) -> (LoadShape, Rearranged) {
        let Window { kernel: [kt, kh, kw], stride: [st, sh, sw], padding: [pt, ph, pw], .. } = self.window;
        let form = if sw == 1 && form == StemForm::Phases { StemForm::Padded } else { form };
        let channels = self.from.c;
        let (phases, step, offset, columns) = match form {
            StemForm::Padded => (1, 1, 0, kw),
            // The kernel begins at a whole column.
            StemForm::Phases => (sw, sw, pw.next_multiple_of(sw), (kw + pw.next_multiple_of(sw) - pw).div_ceil(sw)),
            StemForm::Columns => (kw, sw, pw, 1),
        };
        let stored_w = if form == StemForm::Padded { self.from.w } else { self.to.w - 1 + columns };
        let stored_c = match form {
            StemForm::Padded => channels.next_multiple_of(4),
            _ => padded(phases * channels),
        };
        let [after_t, after_h, after_w] = self.window.padding_after;
        let (stride_w, pre, post) = if form == StemForm::Padded { (sw, pw, after_w) } else { (1, 0, 0) };
        let load = LoadShape {
            channels: channels as i32,
            t: self.from.t as i32,
            h: self.from.h as i32,
            w: self.from.w as i32,
            phases: phases as i32,
            step: step as i32,
            offset: offset as i32,
            stored_w: stored_w as i32,
            stored_c: stored_c as i32,
        };
        let shape = ConvShape {
            input: [stored_c, self.from.t, self.from.h, stored_w],
            output: [padded(self.to.c), self.to.t, self.to.h, self.to.w],
            kernel: [kt, kh, columns],
            stride: [st, sh, stride_w],
            pre: [pt, ph, pre],
            post: [after_t, after_h, post],
        };
        let shift = (offset + pre * step) as i32 - pw as i32;
        (load, Rearranged::packed(shape, self.packing(&shape, [0, 0], [phases as i32, step as i32, shift])))
    }

    fn packing(&self, shape: &ConvShape, first: [i32; 2], [phases, step, shift]: [i32; 3]) -> Packing {
        Packing {
            k: self.to.c as i32,
            c: self.from.c as i32,
            kernel: self.window.kernel.map(|dim| dim as i32),
            stored_k: shape.output[0] as i32,
            stored_c: shape.input[0] as i32,
            stored: shape.kernel.map(|dim| dim as i32),
            first,
            phases,
            step,
            shift,
        }
    }

    /// The shape with only `taps` of each axis.
    fn shape(&self, input: [usize; 4], output: [usize; 4], taps: [(usize, usize); 3]) -> ConvShape {
        let Window { kernel: whole, stride, padding, padding_after } = self.window;
        let kernel = taps.map(|(begin, end)| end - begin);
        let pre = std::array::from_fn(|axis| padding[axis] - taps[axis].0);
        let post = std::array::from_fn(|axis| {
            if kernel[axis] == whole[axis] {
                return padding_after[axis];
            }
            let last = (output[axis + 1] - 1) * stride[axis] + kernel[axis];
            last.saturating_sub(input[axis + 1] + pre[axis])
        });
        ConvShape { input, output, kernel, stride, pre, post }
    }
}

impl LoadShape {
    /// The clip as it is.
    pub(super) fn whole(shape: Shape, stored: usize) -> Self {
        let (w, stored_c) = (shape.w as i32, stored as i32);
        let (channels, t, h) = (shape.c as i32, shape.t as i32, shape.h as i32);
        Self { channels, t, h, w, phases: 1, step: 1, offset: 0, stored_w: w, stored_c }
    }
}

pub(super) fn padded(channels: usize) -> usize {
    channels.next_multiple_of(CHANNEL_BLOCK)
}
