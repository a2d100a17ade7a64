//! Whether a file ends before it says it does, where FFmpeg takes any end for the end.

mod chunks;
mod tail;

pub(super) use chunks::{Element, SEGMENT};

use std::io::{BufReader, Seek, SeekFrom};

use super::decode::{Decoded, StreamInfo};
use super::error::{PartialReason, Unit};
use super::limits::Limits;
use super::source::Origin;

/// Why a video that was read to the end of its file is not whole: what reading it came to, and what its container says of
/// its end.
pub(super) fn why_partial(
    source: &dyn Origin,
    stream: &StreamInfo,
    decoded: &Decoded,
    limits: &Limits,
) -> Option<PartialReason> {
    let so_far = decoded.partial.clone();
    if !decoded.to_the_end || !matches!(so_far, None | Some(PartialReason::CorruptPackets { .. })) {
        return so_far;
    }
    let end = End::of(source, stream, decoded, limits);
    if let Some(End { expected: Some(expected), actual, .. }) = end
        && expected > actual
    {
        return Some(PartialReason::Truncated { expected, actual, unit: Unit::Bytes });
    }
    if decoded.after_last_packet.count == 0 || end.is_some_and(|end| end.is_padded) {
        return so_far;
    }
    Some(PartialReason::CorruptPackets { packets: decoded.corrupt_packets + decoded.after_last_packet.count })
}

/// The end of a file.
struct End {
    /// Where it should be, if that is certain.
    expected: Option<u64>,
    /// Where it is.
    actual: u64,
    /// Nothing but zeros comes where the demuxer found nothing it knows, and nothing else should: some writers and file
    /// systems round up.
    is_padded: bool,
}

impl End {
    fn of(source: &dyn Origin, stream: &StreamInfo, decoded: &Decoded, limits: &Limits) -> Option<Self> {
        let mut bytes = BufReader::new(source.open(limits).ok()?.bytes);
        let bytes = &mut bytes;
        let len = bytes.seek(SeekFrom::End(0)).ok()?;
        let last_packet = decoded.last_packet.as_ref();
        let container = stream.container.as_str();
        let expected = match container {
            "matroska,webm" => chunks::matroska(bytes, len),
            "avi" => {
                let promised = decoded.promised_frames.or_else(|| chunks::listed_by_riff(bytes, len, stream.index));
                let has_all = promised.is_some_and(|frames| decoded.packets >= frames);
                if has_all { None } else { chunks::riff(bytes, len) }
            }
            "nut" => tail::nut(bytes, len),
            "mpegts" => tail::transport(bytes, len),
            "mpeg" => tail::program(bytes, len),
            "flv" | "live_flv" => tail::flash(bytes, len),
            "asf" | "asf_o" => chunks::asf(bytes, len),
            "ogg" => tail::ogg(bytes, len),
            "gif" => tail::gif(bytes, len),
            "rm" => chunks::real(bytes, len),
            "mxf" => last_packet.and_then(|last| chunks::mxf(bytes, len, last)),
            "dv" => last_packet.and_then(|last| tail::equal_frames(bytes, len, last)),
            "yuv4mpegpipe" => last_packet.and_then(|last| tail::raw_frames(bytes, len, last)),
            _ if container.starts_with("mov") => last_packet.and_then(|last| chunks::fragments(bytes, len, last)),
            _ => None,
        };
        let unknown_from = decoded.after_last_packet.position;
        let is_padded = decoded.after_last_packet.count > 0
            && expected.is_none_or(|expected| expected <= unknown_from)
            && chunks::is_zero(bytes, unknown_from)?;
        Some(Self { expected, actual: len, is_padded })
    }
}
