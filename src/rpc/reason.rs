//! Why a call failed, for programs.

use strum::{IntoStaticStr, VariantArray};

/// The `reason` of the `google.rpc.ErrorInfo` in an error: stable, so that clients need not read messages.
/// `docs/troubleshooting.md` says of each what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// Nobody waits for the answer any more.
    Cancelled,
    /// The client sent nothing, or took no answers, for too long.
    ClientIdle,
    /// The client sent too little, or took too long for a message.
    ClientTooSlow,
    /// The file is of a kind that is not taken, such as a playlist.
    ContainerNotAccepted,
    /// The deadline came first.
    DeadlineExceeded,
    /// The video broke two decoder processes.
    DecoderCrashed,
    /// Decoding would take more memory than it may.
    DecoderOutOfMemory,
    /// A still image.
    ImageNotVideo,
    /// The server's own fault; its log has the details.
    Internal,
    /// `score_threshold` is none.
    InvalidScoreThreshold,
    /// A tensor, output or parameter of the inference protocol that the model doesn't take.
    InvalidTensor,
    /// `start` and `end` are no range.
    InvalidTimeRange,
    /// The key of a video is not UTF-8.
    KeyNotText,
    /// The request can't be read: there is none, it breaks off, or it is no message of the call.
    MalformedRequest,
    /// No worker of the model runs, and none could be started.
    ModelHasNoWorker,
    /// Callers may not load and unload models.
    ModelControlOff,
    /// The last model can't be unloaded.
    ModelIsLast,
    /// No model has this name and version.
    ModelNotFound,
    /// The model's file can't be served.
    ModelRefused,
    /// There is no video in the bytes.
    NotAVideo,
    /// No room on disk for an upload.
    NoDiskSpace,
    /// A video of which no frame could be decoded.
    NoFrames,
    /// The video shows nothing in the time that was asked for.
    NoFramesInRange,
    /// Models may not take as much memory.
    NoModelMemory,
    /// Sound or subtitles only.
    NoVideoStream,
    /// Sound with a cover.
    OnlyAttachedPicture,
    /// Options came after the first message of an upload.
    OptionsNotFirst,
    /// A parameter of `RepositoryModelLoad` that means nothing here.
    ParameterUnsupported,
    /// The server has no service of this name.
    ServiceUnknown,
    /// The server of a URI denies access.
    SourceDenied,
    /// The server of a URI takes the request for wrong, and would do so again.
    SourceRejected,
    /// The server of a URI does not give the video.
    SourceUnavailable,
    /// The server stops.
    Stopping,
    /// The call has no token.
    TokenMissing,
    /// The server does not know the call's token.
    TokenUnknown,
    /// Other requests' messages take the memory that there is for them.
    TooManyBytes,
    /// Too many calls of any kind are open.
    TooManyCalls,
    /// The video has too many clips.
    TooManyClips,
    /// The video has too many frames.
    TooManyFrames,
    /// The video's frames are too large.
    TooManyPixels,
    /// Too many videos are being worked on.
    TooManyRequests,
    /// Too many calls with this token are being worked on.
    TooManyRequestsOfToken,
    /// Too many calls of many videos are open.
    TooManyStreams,
    /// Too many videos are being uploaded in chunks.
    TooManyUploads,
    /// Decoding the video takes too long.
    TooMuchDecodeTime,
    /// A value of `priority` that the server doesn't know.
    UnknownPriority,
    /// A value of `segments` that the server doesn't know.
    UnknownSegmentMode,
    /// The server has no decoder for the video.
    UnsupportedCodec,
    /// The URI is none.
    UriInvalid,
    /// The server takes no videos from there.
    UriNotAllowed,
    /// A video of no bytes.
    VideoEmpty,
    /// The call has no video.
    VideoMissing,
    /// There is no video at the URI.
    VideoNotFound,
    /// The video has too many bytes.
    VideoTooLarge,
    /// The video lasts too long.
    VideoTooLong,
}

impl Reason {
    /// All of them.
    pub const ALL: &[Self] = <Self as VariantArray>::VARIANTS;

    /// As it is sent, such as `VIDEO_TOO_LARGE`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
