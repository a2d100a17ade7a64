//! Opens a container, and chooses the stream that is the video.

use std::cmp::Reverse;

use ffmpeg_next as ffmpeg;
use ffmpeg_next::format::context::Input;
use ffmpeg_next::media::Type;

use super::DecodeOptions;
use super::error::VideoError;
use super::ffmpeg as glue;
use super::ffmpeg::{Complaints, MediaBytes, OpenError};
use super::source::{Origin, explain_refusal};

/// Opens a container and chooses its stream. Also gives what was wrong with packets that were read for that, and whether
/// reading may go on anywhere.
pub(super) fn open_input(
    source: &dyn Origin,
    options: &DecodeOptions,
) -> Result<(Input, Complaints, usize, bool), VideoError> {
    let bytes = source.open(&options.limits).map_err(|error| match error {
        // How the wait for an upload ended is no news to who cancelled it.
        _ if options.cancel.is_cancelled() => VideoError::Cancelled,
        error => error,
    })?;
    let seekable = !bytes.in_order;
    let (mut input, complaints) = open_container(source, bytes, options)?;
    let videos = video_streams(&input, input.format().name())?;
    let index = match videos[..] {
        [only] => only,
        _ => {
            let chosen = choose_stream(&mut input, &videos);
            // What was read to choose is needed again.
            input = open_container(source, source.open(&options.limits)?, options)?.0;
            chosen
        }
    };
    glue::keep_only(&mut input, index);
    Ok((input, complaints, index, seekable))
}

/// Opens a container, or says what the bytes are instead.
fn open_container(
    source: &dyn Origin,
    bytes: MediaBytes,
    options: &DecodeOptions,
) -> Result<(Input, Complaints), VideoError> {
    let DecodeOptions { limits, cancel, .. } = options;
    let token = cancel.clone();
    glue::open(bytes, limits, move || token.is_cancelled()).map_err(|error| match error {
        OpenError::Video(error) => error,
        OpenError::Ffmpeg(_) if cancel.is_cancelled() => VideoError::Cancelled,
        OpenError::Ffmpeg(error) => explain_refusal(source, error),
    })
}

/// Streams that may be the video, FFmpeg's best first, then the largest: none of them is an attached picture.
fn video_streams(input: &Input, container: &str) -> Result<Vec<usize>, VideoError> {
    use ffmpeg::format::stream::Disposition;
    let mut videos: Vec<_> = input.streams().filter(|stream| stream.parameters().medium() == Type::Video).collect();
    if videos.is_empty() {
        let streams = input.nb_streams() as usize;
        return Err(VideoError::NoVideoStream { streams, container: container.to_string() });
    }
    videos.retain(|stream| !stream.disposition().contains(Disposition::ATTACHED_PIC));
    if let Some(format) = glue::image_format(input)
        && videos.iter().all(|stream| glue::indexed_packets(input, stream.index()) <= 1)
    {
        return Err(VideoError::Image { format: format.to_string() });
    }
    let best = input.streams().best(Type::Video).map(|stream| stream.index());
    videos.sort_by_key(|stream| {
        let (width, height) = glue::declared_size(stream);
        (Some(stream.index()) != best, Reverse(u64::from(width) * u64::from(height)))
    });
    let videos: Vec<_> = videos.iter().map(|stream| stream.index()).collect();
    if videos.is_empty() {
        return Err(VideoError::OnlyAttachedPicture { container: container.to_string() });
    }
    Ok(videos)
}

/// The first of `videos`, of which there is at least one, that has more than one picture. Reads from the container to
/// learn that.
fn choose_stream(input: &mut Input, videos: &[usize]) -> usize {
    /// A stream that has one picture while another has so many is a picture.
    const ENOUGH: u64 = 100;
    let mut packets = vec![0u64; videos.len()];
    let mut packet = ffmpeg::Packet::empty();
    while packets[0] < 2 && packets.iter().all(|packets| *packets < ENOUGH) && packet.read(input).is_ok() {
        if let Some(video) = videos.iter().position(|video| *video == packet.stream()) {
            packets[video] += 1;
        }
        // Reading does not release what the packet held before.
        packet = ffmpeg::Packet::empty();
    }
    packets.iter().position(|packets| *packets > 1).map_or(videos[0], |video| videos[video])
}
