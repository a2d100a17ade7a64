//! The glue to FFmpeg: opening bytes with everything else shut, and seeing decoded frames as [`Picture`]s.
//!
//! All `unsafe` of decoding is here. FFmpeg never gets a file name, a protocol or a nested file: it reads through
//! callbacks only.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
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
    hevc,m4v,h263,obu,av1,ivf,flv,live_flv,asf,asf_o,ogg,mxf,nut,dv,rm,wtv,gxf,vc1,yuv4mpegpipe,gif,apng";

/// No single allocation of FFmpeg's may be larger: a frame of the usual largest size at 16 bits, 4:4:4:4, is 75 MB.
const MAX_ALLOCATION: usize = 256 << 20;

/// Bytes of a pixel of such a frame.
const MAX_PIXEL_BYTES: u64 = 8;

/// Larger frames, and allocations, are more than FFmpeg can count.
const FFMPEG_MAX: u64 = i32::MAX as u64;

/// Bytes given to container detection; FFmpeg's own default is 5 MB, which hostile files make it use up.
const PROBE_BYTES: &CStr = c"2000000";

/// Where FFmpeg reads from.
pub(super) struct MediaBytes {
    pub(super) bytes: Box<dyn ReadSeek>,
    /// The end is not known yet, so FFmpeg must not look for it. It may go back to what it has read.
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
struct Caught(MediaBytes);

impl Caught {
    fn catch<T>(&mut self, act: impl FnOnce(&mut dyn ReadSeek) -> io::Result<T>) -> io::Result<T> {
        // After a panic the reader is only asked again, and dropped; it may give nonsense, but nothing unsound.
        panic::catch_unwind(AssertUnwindSafe(|| act(self.0.bytes.as_mut())))
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
        if self.0.in_order && matches!(to, SeekFrom::End(_)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.catch(|reader| reader.seek(to))
    }
}

fn initialise(limits: &Limits) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Loads the words for FFmpeg's errors, which are empty without; it has no way to fail.
        let _ = ffmpeg::init();
        // What goes wrong comes back as an error; FFmpeg's own lines would only let strangers write to our log.
        ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
        // SAFETY: sets one process-wide value, at any time. `note_complaint` may be called by any thread.
        unsafe { ffi::av_log_set_callback(Some(note_complaint)) };
    });
    let frame = limits.max_pixels.saturating_mul(MAX_PIXEL_BYTES).min(FFMPEG_MAX) as usize;
    // SAFETY: sets one process-wide number, at any time. All videos of a process have the same limits, but for tests.
    unsafe { ffi::av_max_alloc(frame.max(MAX_ALLOCATION)) };
}

/// Why a container did not open.
#[derive(Debug)]
pub(super) enum OpenError {
    Ffmpeg(ffmpeg::Error),
    Video(VideoError),
}

/// What FFmpeg had to say against its input while something was done with it, such as that it had to look for the next
/// packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Complaints {
    pub(super) count: u64,
    /// Where in the file the demuxer was when the first came.
    pub(super) position: u64,
}

impl Complaints {
    /// Counts later ones with these.
    pub(super) fn add(&mut self, later: Self) {
        self.position = if self.count == 0 { later.position } else { self.position };
        self.count += later.count;
    }
}

/// What this thread listens to.
#[derive(Clone, Copy)]
enum Watched {
    Nothing,
    Container(*const ffi::AVFormatContext),
    Decoder(*const ffi::AVCodecContext),
}

impl Watched {
    fn is(self, context: *const c_void) -> bool {
        match self {
            Self::Nothing => false,
            Self::Container(container) => container.cast() == context,
            Self::Decoder(decoder) => decoder.cast() == context,
        }
    }

    /// Where in the file a demuxer is.
    fn position(self) -> u64 {
        let Self::Container(container) = self else { return 0 };
        // SAFETY: `watch` holds the context open, and this thread is within its call, so nobody changes it. The buffer's
        // pointers are into one allocation; only their distance is used.
        unsafe {
            let io = (*container).pb;
            if io.is_null() { 0 } else { ((*io).pos - ((*io).buf_end as i64 - (*io).buf_ptr as i64)).max(0) as u64 }
        }
    }
}

thread_local! {
    /// What this thread listens to, and what it heard so far.
    static COMPLAINTS: Cell<(Watched, Complaints)> =
        const { Cell::new((Watched::Nothing, Complaints { count: 0, position: 0 })) };
}

/// Errors that FFmpeg reports of files of which no picture is missing, by how their text begins.
const HARMLESS: [&[u8]; 8] = [
    // Of the beginnings of transport streams and of files that can't be seen to their end.
    b"Unable to seek back",
    // Of metadata in the midst of an FLV.
    b"AMF_",
    b"Missing AMF_",
    b"unsupported amf",
    b"Keyframe index",
    // Of sound.
    b"Unsupported huge granule",
    b"Error parsing a wavpack",
    // Of palettes.
    b"Cannot append palette",
];

/// What is reported as no error and means that part of a picture is lost: of ASF.
const TELLING: [&[u8]; 1] = [b"freeing incomplete packet"];

/// Stands in for FFmpeg's log: nothing is written, as strangers would write to it, but errors of what this thread watches
/// are counted. Damage that a demuxer gets around comes out in no other way. Generic in the list of arguments, whose type
/// differs between machines.
unsafe extern "C" fn note_complaint<V>(context: *mut c_void, level: c_int, format: *const c_char, _: V) {
    // A thread that ends has no more counters, and watches nothing.
    let _ = COMPLAINTS.try_with(|cell| {
        let (watched, mut complaints) = cell.get();
        if !watched.is(context) || format.is_null() {
            return;
        }
        // SAFETY: FFmpeg gives a NUL-terminated text.
        let text = unsafe { CStr::from_ptr(format) }.to_bytes();
        let is_one_of = |texts: &[&[u8]]| texts.iter().any(|begin| text.starts_with(begin));
        // Above the lowest byte are colours.
        let is_error = level & 0xff <= ffi::AV_LOG_ERROR as c_int && !is_one_of(&HARMLESS);
        if !is_error && !is_one_of(&TELLING) {
            return;
        }
        if complaints.count == 0 {
            complaints.position = watched.position();
        }
        complaints.count += 1;
        cell.set((watched, complaints));
    });
}

/// Notes what FFmpeg complains of in an open container while `act` uses it.
fn watch_container<T>(input: &mut Input, act: impl FnOnce(&mut Input) -> T) -> (T, Complaints) {
    // SAFETY: the pointer is used within `act`, during which the container stays open.
    watch(Watched::Container(unsafe { input.as_ptr() }), || act(input))
}

fn watch<T>(watched: Watched, act: impl FnOnce() -> T) -> (T, Complaints) {
    COMPLAINTS.set((watched, Complaints::default()));
    let result = act();
    let (_, complaints) = COMPLAINTS.replace((Watched::Nothing, Complaints::default()));
    (result, complaints)
}

/// Opens a container and reads its stream headers. `interrupted` is asked often, and ends the call when true. Also gives
/// what was wrong with packets that were read for that; they come again.
pub(super) fn open(
    bytes: MediaBytes,
    limits: &Limits,
    interrupted: impl FnMut() -> bool + Send + 'static,
) -> Result<(Input, Complaints), OpenError> {
    initialise(limits);
    let in_order = bytes.in_order;
    let mut io = StreamIo::from_read_seek(Caught(bytes)).map_err(OpenError::Ffmpeg)?;
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
        if in_order {
            // Demuxers then neither look for an index at the end nor measure the file; those that go back a little still can.
            (*(*context).pb).seekable = 0;
        }
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
    let (found, complaints) = watch_container(&mut input, |input| find_stream_info(input, limits));
    found.map_err(OpenError::Ffmpeg)?;
    check_declared_sizes(&input, limits).map_err(OpenError::Video)?;
    Ok((input, complaints))
}

/// Reads the next packet of any stream into `packet`, which must be empty.
pub(super) fn read(input: &mut Input, packet: &mut ffmpeg::Packet) -> (Result<(), ffmpeg::Error>, Complaints) {
    let (read, mut complaints) = watch_container(input, |input| packet.read(input));
    if complaints.count == 0 && matches!(read, Err(ffmpeg::Error::InvalidData)) {
        // SAFETY: the container is open.
        complaints = Complaints { count: 1, position: Watched::Container(unsafe { input.as_ptr() }).position() };
    }
    (read, complaints)
}

/// Whether the file is read to its end, and by no error.
pub(super) fn is_at_end(input: &Input) -> bool {
    // SAFETY: reads plain fields of the open context and of the bytes it was opened with, which live as long.
    unsafe {
        let io = (*input.as_ptr()).pb;
        !io.is_null() && (*io).eof_reached != 0 && (*io).error >= 0
    }
}

/// As [`ffmpeg::decoder::Video::send_packet`]. Also tells whether the decoder complained, where it has no other way.
pub(super) fn send(decoder: &mut ffmpeg::decoder::Video, packet: &ffmpeg::Packet) -> (Result<(), ffmpeg::Error>, bool) {
    watch_decoder(decoder, |decoder| decoder.send_packet(packet))
}

/// As [`ffmpeg::decoder::Video::receive_frame`]. Also tells whether the decoder complained, where it has no other way.
pub(super) fn receive(
    decoder: &mut ffmpeg::decoder::Video,
    frame: &mut ffmpeg::frame::Video,
) -> (Result<(), ffmpeg::Error>, bool) {
    watch_decoder(decoder, |decoder| decoder.receive_frame(frame))
}

/// The decoder of HEVC leaves out what it can't decode, pictures included, and only says so in the log. Others return
/// errors or mark frames, and may say more than that.
fn watch_decoder<T>(
    decoder: &mut ffmpeg::decoder::Video,
    act: impl FnOnce(&mut ffmpeg::decoder::Video) -> T,
) -> (T, bool) {
    if decoder.id() != ffmpeg::codec::Id::HEVC {
        return (act(decoder), false);
    }
    // SAFETY: the pointer is only compared.
    let (result, complaints) = watch(Watched::Decoder(unsafe { decoder.as_ptr() }), || act(decoder));
    (result, complaints.count > 0)
}

/// Whether a packet can be expected to give a picture. In some files parameters, messages and delimiters of H.264 and HEVC
/// have packets of their own, and decoders call those damaged.
pub(super) fn holds_picture(packet: &ffmpeg::Packet, decoder: &ffmpeg::decoder::Video) -> bool {
    let is_picture: fn(u8) -> bool = match decoder.id() {
        ffmpeg::codec::Id::H264 => |header| (1..=5).contains(&(header & 0x1f)),
        ffmpeg::codec::Id::HEVC => |header| (header >> 1) & 0x3f < 32,
        _ => return packet.size() > 0,
    };
    let Some(bytes) = packet.data() else { return false };
    // SAFETY: the decoder's context is open; its extradata, if there is any, has the length beside it.
    let configuration = unsafe {
        let context = &*decoder.as_ptr();
        let len = context.extradata_size.max(0) as usize;
        if context.extradata.is_null() { &[][..] } else { std::slice::from_raw_parts(context.extradata, len) }
    };
    nal_headers(bytes, nal_length_size(configuration, decoder.id())).any(is_picture)
}

/// How many bytes the length before each NAL unit has, if there is one (ISO/IEC 14496-15); otherwise start codes are
/// between them.
fn nal_length_size(configuration: &[u8], codec: ffmpeg::codec::Id) -> Option<usize> {
    let at = if codec == ffmpeg::codec::Id::H264 { 4 } else { 21 };
    let lengths = configuration.first() == Some(&1) && configuration.len() > at;
    lengths.then(|| usize::from(configuration[at] & 3) + 1)
}

/// The first byte of each NAL unit.
fn nal_headers(bytes: &[u8], length_size: Option<usize>) -> Box<dyn Iterator<Item = u8> + '_> {
    let Some(length_size) = length_size else {
        return Box::new(bytes.windows(4).filter(|four| four[..3] == [0, 0, 1]).map(|four| four[3]));
    };
    let mut rest = bytes;
    Box::new(std::iter::from_fn(move || {
        let (length, after) = rest.split_at_checked(length_size)?;
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = after.get(length..).unwrap_or_default();
        after.first().copied()
    }))
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
        let (width, height) = declared_size(&stream);
        check_pixels(width, height, limits)?;
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

/// FFmpeg's option `max_pixels`, which allows no more. It counts what a decoder keeps, such as whole macroblocks beyond the
/// picture's edges; the picture itself is checked apart.
fn pixel_limit(limits: &Limits) -> String {
    const EDGES: u64 = 1 << 20;
    limits.max_pixels.saturating_add(limits.max_pixels / 16).saturating_add(EDGES).min(FFMPEG_MAX).to_string()
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

/// Width and height of a stream's pictures by the headers.
pub(super) fn declared_size(stream: &ffmpeg::Stream<'_>) -> (u32, u32) {
    // SAFETY: streams of an open context have parameters, which live as long as the context.
    let (width, height) = unsafe { ((*(*stream.as_ptr()).codecpar).width, (*(*stream.as_ptr()).codecpar).height) };
    (width.max(0) as u32, height.max(0) as u32)
}

/// Which format of still images and sequences of them the container is, if it is one.
pub(super) fn image_format(input: &Input) -> Option<&'static str> {
    input.metadata().get("major_brand").and_then(|brand| image_brand(brand.as_bytes()))
}

/// The image format that a brand of ISO base media stands for (ISO/IEC 23008-12, annexes A to H, and AVIF).
pub(super) fn image_brand(brand: &[u8]) -> Option<&'static str> {
    match brand {
        b"avif" | b"avis" => Some("avif"),
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => Some("heif"),
        b"crx " => Some("cr3"),
        _ => None,
    }
}

/// How the pictures of a stream are to be turned for display.
pub(super) fn orientation(input: &Input, stream: usize) -> Orientation {
    let stream = input.stream(stream).expect("the stream was chosen from this input");
    let matrix = stream.side_data().find(|side| side.kind() == ffmpeg::codec::packet::side_data::Type::DisplayMatrix);
    matrix.and_then(|matrix| orientation_from(matrix.data())).unwrap_or_default()
}

/// How a frame is to be turned for display, where the encoded pictures themselves say so.
pub(super) fn frame_orientation(frame: &ffmpeg::frame::Video) -> Option<Orientation> {
    let matrix = frame.side_data(ffmpeg::util::frame::side_data::Type::DisplayMatrix)?;
    orientation_from(matrix.data())
}

fn orientation_from(matrix: &[u8]) -> Option<Orientation> {
    let mut numbers = [0i32; 9];
    if matrix.len() < 36 {
        return None;
    }
    for (number, bytes) in numbers.iter_mut().zip(matrix.chunks_exact(4)) {
        *number = i32::from_ne_bytes(bytes.try_into().expect("chunks of four"));
    }
    Some(Orientation::from_display_matrix(&numbers))
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
