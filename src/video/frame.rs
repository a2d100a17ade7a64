//! FFmpeg's frames as [`Picture`]s, without a copy where the transform's kernel knows the layout.

#![allow(unsafe_code)]

use std::slice;

use ffmpeg_next as ffmpeg;
use ffmpeg_next::ffi;
use ffmpeg_next::format::Pixel;

use super::picture::{Color, Layout, Matrix, Orientation, Picture, Plane, Planes};

/// Shows decoded frames as pictures. Layouts that the kernel does not know are converted by swscale to planes of
/// red, green and blue at full size first.
#[derive(Default)]
pub(super) struct FrameView {
    converter: Option<(Source, Converter)>,
}

/// All that a conversion depends on.
type Source = (Pixel, u32, u32, c_int, bool);

use std::ffi::c_int;

struct Converter {
    context: ffmpeg::software::scaling::Context,
    rgb: ffmpeg::frame::Video,
}

impl FrameView {
    /// `frame` as planes. `matrix_from_tags` chooses what swscale uses where it has to convert: the frame's
    /// tagged matrix, or BT.601.
    pub(super) fn picture<'a>(
        &'a mut self,
        frame: &'a ffmpeg::frame::Video,
        orientation: Orientation,
        matrix_from_tags: bool,
    ) -> Result<Picture<'a>, ffmpeg::Error> {
        if let Some(picture) = planar_picture(frame, orientation) {
            return Ok(picture);
        }
        let rgb = self.convert(frame, matrix_from_tags)?;
        planar_picture(rgb, orientation).ok_or(ffmpeg::Error::InvalidData)
    }

    /// The exact flags: full horizontal chroma resolution and accurate rounding.
    fn convert(
        &mut self,
        frame: &ffmpeg::frame::Video,
        matrix_from_tags: bool,
    ) -> Result<&ffmpeg::frame::Video, ffmpeg::Error> {
        let matrix = if matrix_from_tags { swscale_matrix(matrix_of(frame)) } else { ffi::SWS_CS_ITU601 };
        let source = (frame.format(), frame.width(), frame.height(), matrix, is_full_range(frame));
        if self.converter.as_ref().is_none_or(|(of, _)| *of != source) {
            self.converter = Some((source, Converter::new(source)?));
        }
        let (_, converter) = self.converter.as_mut().expect("made above");
        converter.context.run(frame, &mut converter.rgb)?;
        Ok(&converter.rgb)
    }
}

impl Converter {
    fn new((format, width, height, matrix, full_range): Source) -> Result<Self, ffmpeg::Error> {
        use ffmpeg::software::scaling::{Context, Flags};
        let flags = Flags::BICUBIC | Flags::FULL_CHR_H_INT | Flags::ACCURATE_RND;
        let mut context = Context::get(format, width, height, Pixel::GBRP, width, height, flags)?;
        // SAFETY: the context is valid and ours; the coefficient tables are static.
        unsafe {
            let table = ffi::sws_getCoefficients(matrix);
            ffi::sws_setColorspaceDetails(
                context.as_mut_ptr(),
                table,
                c_int::from(full_range),
                table,
                1,
                0,
                1 << 16,
                1 << 16,
            );
        }
        let mut rgb = ffmpeg::frame::Video::empty();
        // SAFETY: the frame is empty, so nothing is leaked; that the allocation succeeded is checked next.
        unsafe { rgb.alloc(Pixel::GBRP, width, height) };
        // SAFETY: reads the frame's first pointer.
        if unsafe { rgb.is_empty() } {
            return Err(ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM });
        }
        Ok(Self { context, rgb })
    }
}

fn swscale_matrix(matrix: Matrix) -> c_int {
    match matrix {
        Matrix::Bt601 => ffi::SWS_CS_ITU601,
        Matrix::Bt709 => ffi::SWS_CS_ITU709,
        Matrix::Fcc => ffi::SWS_CS_FCC,
        Matrix::Smpte240 => ffi::SWS_CS_SMPTE240M,
        Matrix::Bt2020 => ffi::SWS_CS_BT2020,
    }
}

fn matrix_of(frame: &ffmpeg::frame::Video) -> Matrix {
    use ffmpeg::color::Space;
    match frame.color_space() {
        Space::BT709 => Matrix::Bt709,
        Space::FCC => Matrix::Fcc,
        Space::SMPTE240M => Matrix::Smpte240,
        Space::BT2020NCL | Space::BT2020CL => Matrix::Bt2020,
        _ => Matrix::Bt601,
    }
}

fn is_full_range(frame: &ffmpeg::frame::Video) -> bool {
    let full_by_format = matches!(
        frame.format(),
        Pixel::YUVJ420P | Pixel::YUVJ422P | Pixel::YUVJ444P | Pixel::YUVJ440P | Pixel::YUVJ411P
    );
    full_by_format || frame.color_range() == ffmpeg::color::Range::JPEG
}

/// The frame's planes where they are of a layout the kernel knows: planar, little endian, 8 to 14 bits.
fn planar_picture(frame: &ffmpeg::frame::Video, orientation: Orientation) -> Option<Picture<'_>> {
    let descriptor = frame.format().descriptor()?;
    // SAFETY: descriptors are static.
    let descriptor = unsafe { &*descriptor.as_ptr() };
    let is = |flag: c_int| descriptor.flags & u64::from(flag.unsigned_abs()) != 0;
    let unknown = ffi::AV_PIX_FMT_FLAG_PAL
        | ffi::AV_PIX_FMT_FLAG_BITSTREAM
        | ffi::AV_PIX_FMT_FLAG_HWACCEL
        | ffi::AV_PIX_FMT_FLAG_BAYER
        | ffi::AV_PIX_FMT_FLAG_FLOAT;
    if is(unknown) || (is(ffi::AV_PIX_FMT_FLAG_BE) && descriptor.comp[0].depth > 8) {
        return None;
    }
    // A fourth component is alpha, which the reference ignores too.
    let components = &descriptor.comp[..if descriptor.nb_components >= 3 { 3 } else { 1 }];
    let depth = components[0].depth;
    let bytes = if depth > 8 { 2 } else { 1 };
    let known = |c: &ffi::AVComponentDescriptor| {
        c.depth == depth && c.shift == 0 && c.offset == 0 && c.step == bytes && (0..4).contains(&c.plane)
    };
    if !(8..=14).contains(&depth) || !components.iter().all(known) {
        return None;
    }
    let (width, height) = (frame.width() as usize, frame.height() as usize);
    let subsampling = [u32::from(descriptor.log2_chroma_w), u32::from(descriptor.log2_chroma_h)];
    let color = match components.len() {
        1 => Color::Gray { full_range: frame.color_range() != ffmpeg::color::Range::MPEG },
        _ if is(ffi::AV_PIX_FMT_FLAG_RGB) => Color::Rgb,
        _ => Color::YCbCr { matrix: matrix_of(frame), full_range: is_full_range(frame), subsampling },
    };
    let shape = |i: usize| match (i, &color) {
        (1 | 2, Color::YCbCr { subsampling: [x, y], .. }) => (width.div_ceil(1 << x), height.div_ceil(1 << y)),
        _ => (width, height),
    };
    let planes = components.iter().map(|c| c.plane as usize).enumerate();
    let planes = if bytes == 1 {
        Planes::U8(planes.map(|(i, plane)| samples(frame, plane, shape(i))).collect::<Option<_>>()?)
    } else {
        Planes::U16(planes.map(|(i, plane)| samples(frame, plane, shape(i))).collect::<Option<_>>()?)
    };
    Some(Picture { layout: Layout { width, height, depth: depth as u32, color, orientation }, planes })
}

/// One plane of a frame; `None` if its rows run upwards or are not aligned to `T`, which FFmpeg's own decoders' rows
/// nearly always are.
fn samples<T>(frame: &ffmpeg::frame::Video, plane: usize, (width, height): (usize, usize)) -> Option<Plane<'_, T>> {
    let size = size_of::<T>();
    // SAFETY: reads fields of a valid frame.
    let (data, linesize) = unsafe { ((*frame.as_ptr()).data[plane], (*frame.as_ptr()).linesize[plane]) };
    let linesize = usize::try_from(linesize).ok()?;
    if data.is_null()
        || width == 0
        || height == 0
        || linesize < width * size
        || linesize % size != 0
        || data.addr() % align_of::<T>() != 0
    {
        return None;
    }
    let stride = linesize / size;
    // SAFETY: the format's descriptor says that this plane has `height` rows of `width` components of `size` bytes,
    // `linesize` bytes apart, so it holds all rows but the last in full and `width` of the last. The pointer is not null and
    // aligned, as checked. The borrow of `frame` keeps the buffer, which nobody writes to meanwhile.
    let samples = unsafe { slice::from_raw_parts(data.cast::<T>(), stride * (height - 1) + width) };
    Some(Plane { samples, stride, width, height })
}
