//! Why a call failed, for programs.

use strum::{IntoStaticStr, VariantArray};

/// The `reason` in an error: stable, so that clients need not read messages.
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
    /// The request names a host that the server does not answer to.
    HostNotAllowed,
    /// An option that does not exist, or that has a value which it can't have.
    InvalidOption,
    /// `score_threshold` is none.
    InvalidScoreThreshold,
    /// A tensor, output or parameter of the inference protocol that the model doesn't take.
    InvalidTensor,
    /// `start` and `end` are no range.
    InvalidTimeRange,
    /// Another request listens to the events of this key.
    KeyInUse,
    /// The key of a video is not UTF-8.
    KeyNotText,
    /// The request can't be read: there is none, it breaks off, or it is no message of the call.
    MalformedRequest,
    /// The path has no such method.
    MethodNotAllowed,
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
    /// The server has no such form of an answer.
    NotAcceptable,
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
    /// Pages of this origin may not call the server.
    OriginNotAllowed,
    /// A parameter of `RepositoryModelLoad` that means nothing here.
    ParameterUnsupported,
    /// There is nothing at this path.
    PathNotFound,
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
    /// The path takes no bodies of this content type.
    UnsupportedMediaType,
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

/// What kind of failure a [`Reason`] is, by the names and meanings of gRPC's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "gRPC documents its codes")]
pub enum Category {
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
}

impl Category {
    /// As gRPC writes it, such as `INVALID_ARGUMENT`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl Reason {
    /// All of them.
    pub const ALL: &[Self] = <Self as VariantArray>::VARIANTS;

    /// As it is sent, such as `VIDEO_TOO_LARGE`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// What kind of failure it is.
    pub fn category(self) -> Category {
        match self {
            Self::KeyInUse => Category::AlreadyExists,
            Self::Cancelled => Category::Cancelled,
            Self::ClientIdle | Self::ClientTooSlow | Self::DeadlineExceeded => Category::DeadlineExceeded,
            Self::ModelIsLast | Self::ModelRefused | Self::SourceRejected => Category::FailedPrecondition,
            Self::Internal => Category::Internal,
            Self::ModelNotFound | Self::PathNotFound | Self::ServiceUnknown | Self::VideoNotFound => Category::NotFound,
            Self::HostNotAllowed
            | Self::ModelControlOff
            | Self::OriginNotAllowed
            | Self::SourceDenied
            | Self::UriNotAllowed => Category::PermissionDenied,
            Self::NoDiskSpace
            | Self::NoModelMemory
            | Self::TooManyBytes
            | Self::TooManyCalls
            | Self::TooManyRequests
            | Self::TooManyRequestsOfToken
            | Self::TooManyStreams
            | Self::TooManyUploads => Category::ResourceExhausted,
            Self::TokenMissing | Self::TokenUnknown => Category::Unauthenticated,
            Self::ModelHasNoWorker | Self::SourceUnavailable | Self::Stopping => Category::Unavailable,
            Self::ContainerNotAccepted
            | Self::DecoderCrashed
            | Self::DecoderOutOfMemory
            | Self::ImageNotVideo
            | Self::InvalidOption
            | Self::InvalidScoreThreshold
            | Self::InvalidTensor
            | Self::InvalidTimeRange
            | Self::KeyNotText
            | Self::MalformedRequest
            | Self::MethodNotAllowed
            | Self::NotAVideo
            | Self::NotAcceptable
            | Self::NoFrames
            | Self::NoFramesInRange
            | Self::NoVideoStream
            | Self::OnlyAttachedPicture
            | Self::OptionsNotFirst
            | Self::ParameterUnsupported
            | Self::TooManyClips
            | Self::TooManyFrames
            | Self::TooManyPixels
            | Self::TooMuchDecodeTime
            | Self::UnknownPriority
            | Self::UnknownSegmentMode
            | Self::UnsupportedCodec
            | Self::UnsupportedMediaType
            | Self::UriInvalid
            | Self::VideoEmpty
            | Self::VideoMissing
            | Self::VideoTooLarge
            | Self::VideoTooLong => Category::InvalidArgument,
        }
    }
}
