//! How much is worked on at a time. What finds no permit is refused, so that callers look elsewhere or come back.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::{App, AppError, AppOptions, Room};

/// What there is of each kind of work.
#[derive(Debug)]
pub(super) struct Permits {
    /// One for each video that is worked on.
    videos: Semaphore,
    max_requests: usize,
    /// Those of them that videos of calls of many may have, so that batch jobs leave some to others.
    batch: Semaphore,
    /// Those of them that videos by URI may have, so that slow sources leave some to others.
    uris: Semaphore,
    /// One for each upload.
    uploads: Arc<Semaphore>,
    max_uploads: usize,
    /// One for each call of many videos.
    streams: Arc<Semaphore>,
    max_streams: usize,
}

impl Permits {
    pub(super) fn new(options: &AppOptions) -> Self {
        let max_requests = options.max_requests.clamp(1, Semaphore::MAX_PERMITS);
        let max_streams = options.max_streams.clamp(1, Semaphore::MAX_PERMITS);
        let max_uploads = options.max_uploads.clamp(1, Semaphore::MAX_PERMITS);
        let most = (max_requests - max_requests / 4).max(1);
        Self {
            videos: Semaphore::new(max_requests),
            max_requests,
            batch: Semaphore::new(most),
            uris: Semaphore::new(most),
            uploads: Arc::new(Semaphore::new(max_uploads)),
            max_uploads,
            streams: Arc::new(Semaphore::new(max_streams)),
            max_streams,
        }
    }
}

impl App {
    fn overloaded(&self) -> AppError {
        self.services.metrics.rejected("requests");
        AppError::overloaded(self.permits.max_requests)
    }

    /// A permit for one video, or a refusal.
    pub(crate) fn video_permit(&self) -> Result<SemaphorePermit<'_>, AppError> {
        self.permits.videos.try_acquire().map_err(|_| self.overloaded())
    }

    /// A permit for one video that is here already, if there is one.
    pub(super) fn spare_video_permit(&self) -> Option<SemaphorePermit<'_>> {
        self.permits.videos.try_acquire().ok()
    }

    /// Refuses a video that would be refused when it is here.
    pub(crate) fn refuse_if_full(&self) -> Result<(), AppError> {
        if self.permits.videos.available_permits() == 0 { Err(self.overloaded()) } else { Ok(()) }
    }

    /// A permit for one video of a call of many; waits for it.
    pub(super) async fn batch_permit(&self) -> (SemaphorePermit<'_>, SemaphorePermit<'_>) {
        const OPEN: &str = "permits are never closed";
        let batch = self.permits.batch.acquire().await.expect(OPEN);
        (batch, self.permits.videos.acquire().await.expect(OPEN))
    }

    /// A permit for one video by URI, or a refusal.
    pub(super) fn uri_permit(&self) -> Result<SemaphorePermit<'_>, AppError> {
        self.permits.uris.try_acquire().map_err(|_| self.overloaded())
    }

    /// A permit for an upload, or a refusal: there are too many uploads, or so many videos that this one would only wait
    /// when it is here.
    pub(crate) fn upload_permit(&self) -> Result<OwnedSemaphorePermit, AppError> {
        self.refuse_if_full()?;
        Arc::clone(&self.permits.uploads).try_acquire_owned().map_err(|_| {
            self.services.metrics.rejected("uploads");
            AppError::too_many_uploads(self.permits.max_uploads)
        })
    }

    /// A permit for one call of many videos, or a refusal.
    pub(crate) fn stream_permit(&self) -> Result<OwnedSemaphorePermit, AppError> {
        Arc::clone(&self.permits.streams).try_acquire_owned().map_err(|_| {
            self.services.metrics.rejected("streams");
            AppError::too_many_streams(self.permits.max_streams)
        })
    }
}

impl App {
    /// Memory for a message of so many bytes that comes now, or a refusal. None of it is taken yet.
    pub(crate) fn room(&self, length: usize) -> Result<Room, AppError> {
        self.memory.room_at_once(length).ok_or_else(|| self.no_memory())
    }

    /// Takes memory for the next bytes of a message, or refuses it.
    pub(crate) fn grow(&self, room: &mut Room, bytes: usize) -> Result<(), AppError> {
        if room.try_grow(bytes) { Ok(()) } else { Err(self.no_memory()) }
    }

    fn no_memory(&self) -> AppError {
        self.services.metrics.rejected("message_memory");
        AppError::no_memory(self.memory.capacity())
    }
}
