//! The glue to FFmpeg: opening bytes with everything else shut, and seeing decoded frames as [`Picture`]s.
//!
//! All `unsafe` of decoding is here. FFmpeg never gets a file name, a protocol or a nested file: it reads through
//! callbacks only.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::io::{self, Read, Seek, SeekFrom};
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::Once;
use std::time::Duration;

use ffmpeg_next as ffmpeg;
use ffmpeg_next::ffi;
use ffmpeg_next::format::context::{Input, StreamIo};
use ffmpeg_next::util::interrupt;

use super::error::VideoError;
use super::limits::Limits;
use super::picture::Orientation;

/// Containers that are opened, by FFmpeg's short names. Playlists, network descriptions, image sequences and raw
/// samples are not among them: they lead to other files, or mean nothing by themselves.
pub(super) const ACCEPTED_CONTAINERS: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,\
    hevc,m4v,h263,obu,av1,ivf,flv,live_flv,asf,asf_o,ogg,mxf,nut,dv,rm,wtv,gxf,vc1,yuv4mpegpipe,gif";

/// No single allocation of FFmpeg's may be larger: a frame of the largest accepted size at 16 bits, 4:4:4:4, is 75 MB.
const MAX_ALLOCATION: usize = 256 << 20;

/// Bytes given to container detection; FFmpeg's own default is 5 MB, which hostile files make it use up.
const PROBE_BYTES: &CStr = c"2000000";

/// Where FFmpeg reads from.
pub(super) struct MediaBytes {
    pub(super) bytes: Box<dyn ReadSeek>,
    /// To be read front to back only.
    pub(super) in_order: bool,
}

impl MediaBytes {
    pub(super) fn seekable(bytes: impl ReadSeek + 'static) -> Self {
        Self { bytes: Box::new(bytes), in_order: false }
    }
}

/// Bytes that can be read from any place.
pub(super) trait ReadSeek: Read + Seek + Send {}
impl<T: Read + Seek + Send> ReadSeek for T {}

/// Turns panics of a reader into errors: they must not cross FFmpeg's frames, where they end the process.
struct Caught(Box<dyn ReadSeek>);

impl Caught {
    fn catch<T>(&mut self, act: impl FnOnce(&mut dyn ReadSeek) -> io::Result<T>) -> io::Result<T> {
        // After a panic the reader is only asked again, and dropped; it may give nonsense, but nothing unsound.
        panic::catch_unwind(AssertUnwindSafe(|| act(self.0.as_mut())))
            .unwrap_or_else(|_| Err(io::Error::other("reading the video panicked")))
    }
}

impl Read for Caught {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.catch(|reader| reader.read(out))
    }
}

impl Seek for Caught {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.catch(|reader| reader.seek(to))
    }
}

fn initialise() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Loads the words for FFmpeg's errors, which are empty without; it has no way to fail.
        let _ = ffmpeg::init();
        // What goes wrong comes back as an error; FFmpeg's own lines would only let strangers write to our log.
        ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
        // SAFETY: sets one process-wide number, at any time.
        unsafe { ffi::av_max_alloc(MAX_ALLOCATION) };
    });
}

/// Why a container did not open.
#[derive(Debug)]
pub(super) enum OpenError {
    Ffmpeg(ffmpeg::Error),
    Video(VideoError),
}

/// Opens a container and reads its stream headers. `interrupted` is asked often, and ends the call when true.
pub(super) fn open(
    bytes: MediaBytes,
    limits: &Limits,
    interrupted: impl FnMut() -> bool + Send + 'static,
) -> Result<Input, OpenError> {
    initialise();
    let reader = Caught(bytes.bytes);
    let io = if bytes.in_order { StreamIo::from_read(reader) } else { StreamIo::from_read_seek(reader) };
    let mut io = io.map_err(OpenError::Ffmpeg)?;
    let interrupt = interrupt::new(Box::new(interrupted));
    let mut options = ffmpeg::Dictionary::new();
    options.set("format_whitelist", ACCEPTED_CONTAINERS);
    options.set("protocol_whitelist", ",");
    options.set("probesize", PROBE_BYTES.to_str().expect("digits"));

    // SAFETY: a fresh context, or null, which is checked.
    let mut context = unsafe { ffi::avformat_alloc_context() };
    if context.is_null() {
        return Err(OpenError::Ffmpeg(ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM }));
    }
    // SAFETY: `context` is valid and ours alone. `io` and the interrupt's closure outlive it: on failure
    // avformat_open_input frees the context before they go, on success `Input` below owns all three and closes the
    // context first. A custom `pb` is never closed by FFmpeg (AVFMT_FLAG_CUSTOM_IO).
    let opened = unsafe {
        (*context).pb = io.as_mut_ptr();
        (*context).flags |= ffi::AVFMT_FLAG_CUSTOM_IO;
        (*context).interrupt_callback = interrupt.interrupt;
        (*context).io_open = Some(refuse_to_open);
        let mut raw = options.disown();
        let result = ffi::avformat_open_input(&mut context, ptr::null(), ptr::null_mut(), &mut raw);
        drop(ffmpeg::Dictionary::own(raw));
        result
    };
    if opened < 0 {
        return Err(OpenError::Ffmpeg(ffmpeg::Error::from(opened)));
    }
    // SAFETY: the context was opened above and nothing else holds it; ownership of all three passes to `Input`.
    let mut input = unsafe { Input::wrap_with_custom_io_and_interrupt(context, io, interrupt.guard) };
    // Headers of most containers already tell the size: refuse before find_stream_info decodes a frame of it.
    check_declared_sizes(&input, limits).map_err(OpenError::Video)?;
    find_stream_info(&mut input, limits).map_err(OpenError::Ffmpeg)?;
    check_declared_sizes(&input, limits).map_err(OpenError::Video)?;
    Ok(input)
}

/// Stands in for FFmpeg's opening of further files and addresses that a container names.
unsafe extern "C" fn refuse_to_open(
    _: *mut ffi::AVFormatContext,
    _: *mut *mut ffi::AVIOContext,
    _: *const c_char,
    _: c_int,
    _: *mut *mut ffi::AVDictionary,
) -> c_int {
    ffi::AVERROR(ffmpeg::error::EACCES)
}

fn check_declared_sizes(input: &Input, limits: &Limits) -> Result<(), VideoError> {
    for stream in input.streams() {
        // SAFETY: streams of an open context have parameters, which live as long as the context.
        let (width, height) = unsafe { ((*(*stream.as_ptr()).codecpar).width, (*(*stream.as_ptr()).codecpar).height) };
        check_pixels(width.max(0) as u32, height.max(0) as u32, limits)?;
    }
    Ok(())
}

/// Refuses frames larger than the limit.
pub(super) fn check_pixels(width: u32, height: u32, limits: &Limits) -> Result<(), VideoError> {
    let actual = u64::from(width) * u64::from(height);
    if actual > limits.max_pixels {
        return Err(VideoError::TooManyPixels { width, height, actual, limit: limits.max_pixels });
    }
    Ok(())
}

/// FFmpeg's option `max_pixels`, which allows no more.
fn pixel_limit(limits: &Limits) -> String {
    limits.max_pixels.min(c_int::MAX.unsigned_abs().into()).to_string()
}

fn find_stream_info(input: &mut Input, limits: &Limits) -> Result<(), ffmpeg::Error> {
    let pixels = CString::new(pixel_limit(limits)).expect("digits hold no NUL");
    let streams = input.nb_streams() as usize;
    let mut options: Vec<*mut ffi::AVDictionary> = vec![ptr::null_mut(); streams];
    // SAFETY: `options` has one dictionary for each stream the context has now, as the function demands; each is set,
    // used and freed here. Key and value are NUL-terminated and copied by av_dict_set.
    let result = unsafe {
        for dictionary in &mut options {
            ffi::av_dict_set(dictionary, c"max_pixels".as_ptr(), pixels.as_ptr(), 0);
            // Frames that are decoded only to learn about the stream are seen by nobody.
            ffi::av_dict_set(dictionary, c"skip_loop_filter".as_ptr(), c"all".as_ptr(), 0);
        }
        let result = ffi::avformat_find_stream_info(input.as_mut_ptr(), options.as_mut_ptr());
        for dictionary in &mut options {
            ffi::av_dict_free(dictionary);
        }
        result
    };
    if result < 0 { Err(ffmpeg::Error::from(result)) } else { Ok(()) }
}

/// FFmpeg's short name for the format that `head`, the first bytes of a file, seem to have.
pub(super) fn detect_format(head: &[u8]) -> Option<String> {
    let mut padded = head.to_vec();
    padded.resize(head.len() + ffi::AVPROBE_PADDING_SIZE as usize, 0);
    let data = ffi::AVProbeData {
        filename: c"".as_ptr(),
        buf: padded.as_mut_ptr(),
        buf_size: head.len() as c_int,
        mime_type: ptr::null(),
    };
    let mut score = 0;
    // SAFETY: `data` points to `buf_size` bytes followed by the padding that probing may read, and to valid strings; all
    // live until the call returns. The result is null or a static format description with a NUL-terminated name.
    unsafe {
        let format = ffi::av_probe_input_format3(&data, 1, &mut score);
        (!format.is_null() && score > 0).then(|| CStr::from_ptr((*format).name).to_string_lossy().into_owned())
    }
}

/// Tells the demuxer to skip all streams but one.
pub(super) fn keep_only(input: &mut Input, stream: usize) {
    for mut other in input.streams_mut() {
        if other.index() != stream {
            // SAFETY: the stream belongs to the context we hold mutably; `discard` is a plain field for the caller to set.
            unsafe { (*other.as_mut_ptr()).discard = ffi::AVDiscard::AVDISCARD_ALL };
        }
    }
}

/// A decoder for one stream, with `threads` threads.
pub(super) fn open_decoder(
    input: &Input,
    stream: usize,
    threads: usize,
    limits: &Limits,
) -> Result<ffmpeg::decoder::Video, VideoError> {
    let stream = input.stream(stream).expect("the stream was chosen from this input");
    let failed = |operation: &'static str| move |error| VideoError::ffmpeg(operation, error);
    let parameters = stream.parameters();
    let id = parameters.id();
    let unsupported = || VideoError::UnsupportedCodec { codec: id.name().to_string() };
    let codec = ffmpeg::decoder::find(id).ok_or_else(unsupported)?;
    let mut context =
        ffmpeg::codec::Context::from_parameters(parameters).map_err(failed("copy the codec's parameters"))?.decoder();
    context.set_packet_time_base(stream.time_base());
    let mut options = ffmpeg::Dictionary::new();
    options.set("threads", &threads.max(1).to_string());
    options.set("max_pixels", &pixel_limit(limits));
    let opened = context.open_as_with(codec, options).and_then(|opened| opened.video());
    opened.map_err(|error| match error {
        ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM } => VideoError::ffmpeg("open the decoder", error),
        _ => VideoError::NotAVideo { detail: format!("the {} stream's header is unusable ({error})", id.name()) },
    })
}

/// How the pictures of a stream are to be turned for display.
pub(super) fn orientation(input: &Input, stream: usize) -> Orientation {
    let stream = input.stream(stream).expect("the stream was chosen from this input");
    let matrix = stream.side_data().find(|side| side.kind() == ffmpeg::codec::packet::side_data::Type::DisplayMatrix);
    let Some(matrix) = matrix else { return Orientation::default() };
    let mut numbers = [0i32; 9];
    let bytes = matrix.data();
    if bytes.len() < 36 {
        return Orientation::default();
    }
    for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(4)) {
        *number = i32::from_ne_bytes(bytes.try_into().expect("chunks of four"));
    }
    Orientation::from_display_matrix(&numbers)
}

/// Packets of a stream that the container's index lists so far.
pub(super) fn indexed_packets(input: &Input, stream: usize) -> u64 {
    let stream = input.stream(stream).expect("the stream was chosen from this input");
    // SAFETY: the stream belongs to the open context.
    let entries = unsafe { ffi::avformat_index_get_entries_count(stream.as_ptr()) };
    entries.max(0) as u64
}

/// An entry of a container's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexEntry {
    /// Decoding time in the stream's ticks; in Matroska the presentation time.
    pub(super) ticks: i64,
    /// Byte where its packet, or what holds it, begins.
    pub(super) position: i64,
    /// Bytes, as far as the index says.
    pub(super) size: u32,
}

impl IndexEntry {
    /// The byte after its last.
    pub(super) fn end(&self) -> Option<u64> {
        u64::try_from(self.position).ok()?.checked_add(u64::from(self.size))
    }
}

/// What the container's index lists of a stream so far, in order of time.
pub(super) fn index_entries(input: &Input, stream: usize) -> Vec<IndexEntry> {
    let count = indexed_packets(input, stream) as c_int;
    let stream = input.stream(stream).expect("the stream was chosen from this input");
    let entry = |n| {
        // SAFETY: the stream belongs to the open context. The entry is null or valid until the index changes, which nothing
        // does meanwhile; its fields are read at once.
        unsafe {
            let entry = ffi::avformat_index_get_entry(stream.as_ptr().cast_mut(), n).as_ref()?;
            Some(IndexEntry { ticks: entry.timestamp, position: entry.pos, size: entry.size().max(0) as u32 })
        }
    };
    (0..count).filter_map(entry).collect()
}

/// Length of the file, if its reader knows it.
pub(super) fn byte_len(input: &Input) -> Option<u64> {
    // SAFETY: the context is open and has the reader it was opened with; FFmpeg asks it and goes back to where it was.
    let len = unsafe { ffi::avio_size((*input.as_ptr()).pb) };
    u64::try_from(len).ok()
}

/// Whether the container's header says how long the video is; FFmpeg estimates it otherwise.
pub(super) fn has_declared_duration(input: &Input) -> bool {
    // SAFETY: reads a plain field of the open context.
    let method = unsafe { (*input.as_ptr()).duration_estimation_method };
    method == ffi::AVDurationEstimationMethod::AVFMT_DURATION_FROM_STREAM
}

/// Goes to byte `position`, and on to what can be read from there.
pub(super) fn seek_byte(input: &mut Input, position: u64) -> Result<(), ffmpeg::Error> {
    let position = i64::try_from(position).unwrap_or(i64::MAX);
    // SAFETY: the context is open and ours.
    let result = unsafe { ffi::av_seek_frame(input.as_mut_ptr(), -1, position, ffi::AVSEEK_FLAG_BYTE) };
    if result < 0 { Err(ffmpeg::Error::from(result)) } else { Ok(()) }
}

/// Goes to the last key frame of the stream at or before timestamp `ticks`.
pub(super) fn seek(input: &mut Input, stream: usize, ticks: i64) -> Result<(), ffmpeg::Error> {
    // SAFETY: the context is open and ours; FFmpeg checks the stream's number.
    let result = unsafe { ffi::av_seek_frame(input.as_mut_ptr(), stream as c_int, ticks, ffi::AVSEEK_FLAG_BACKWARD) };
    if result < 0 { Err(ffmpeg::Error::from(result)) } else { Ok(()) }
}

/// Whether what a packet holds is only needed to decode others: an edit list cuts it out.
pub(super) fn is_discarded(packet: &ffmpeg::Packet) -> bool {
    use ffmpeg::packet::Ref;
    // SAFETY: reads a plain field of a valid packet.
    unsafe { (*packet.as_ptr()).flags & ffi::AV_PKT_FLAG_DISCARD != 0 }
}

/// Packets of a stream that the container's index lists before decoding time `dts`.
pub(super) fn packets_before(input: &Input, stream: usize, dts: i64) -> u64 {
    let stream = input.stream(stream).expect("the stream was chosen from this input");
    let flags = ffi::AVSEEK_FLAG_BACKWARD | ffi::AVSEEK_FLAG_ANY;
    // SAFETY: the stream belongs to the open context; the search only reads its index.
    let entry = unsafe { ffi::av_index_search_timestamp(stream.as_ptr().cast_mut(), dts, flags) };
    entry.max(0) as u64
}

/// Where the container's timeline begins, if it says so.
pub(super) fn start_time(input: &Input) -> Option<i64> {
    // SAFETY: reads a plain field of the open context.
    let start = unsafe { (*input.as_ptr()).start_time };
    (start != ffi::AV_NOPTS_VALUE).then_some(start)
}

/// CPU time this thread has used.
pub(super) fn thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.clamp(0, 999_999_999) as u32)
}
