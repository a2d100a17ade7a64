//! Encoded bytes that are fetched from elsewhere where decoding needs them.
//!
//! A [`RangedReader`] holds a few pieces of its file and fetches the next one ahead while bytes are read in order. So a
//! file that is read front to back comes in large pieces without pauses, and of one that is read in places (an index at
//! the end, a few seconds in the middle) only what is around those places comes at all.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::spool::{SpoolOptions, SpoolReader, spool};
use super::waiting::{Waiting, WhileWaiting};

/// Bytes fetched at a new place.
pub const FIRST_PIECE: u64 = 256 << 10;

/// Each piece that follows another is twice as long, up to this.
const LONGEST_PIECE: u64 = 1 << 20;

/// Bytes of a file that are held, beside the piece on its way: demuxers go back and forth between a few places, as where
/// sound and pictures lie apart.
const HELD: usize = 4 << 20;

/// Pieces begin at multiples of it after a seek, as a demuxer that seeks often looks at what lies a little before.
const ALIGNMENT: u64 = 64 << 10;

/// Bytes that stay in memory of a file of which all is fetched.
const SPOOL_MEMORY: usize = 1 << 20;

/// Gets parts of a file from where it is.
pub trait Fetch: fmt::Debug + Send + Sync + 'static {
    /// Gets the bytes at `range`, all of them. Dropping the future ends the transfer.
    fn fetch(&self, range: Range<u64>) -> Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>;

    /// Takes the error that ended reading: what the decoder makes of it afterwards says less.
    fn failed(&self, error: io::Error);
}

/// Reads a file through a [`Fetch`] from any place. Clones have places of their own and share what was fetched.
#[derive(Clone)]
pub struct RangedReader {
    shared: Arc<Shared>,
    waiting: Waiting,
    position: u64,
    /// Where the file goes if all of it is fetched; the system's temporary directory if `None`.
    spool: Option<PathBuf>,
}

impl RangedReader {
    /// A reader of a file of `len` bytes that begins with `first`; `fetch` is for the rest. Has to be called within a
    /// tokio runtime, which fetches. Waiting reads end with an error when `cancel` is cancelled.
    pub fn new(len: u64, first: Bytes, fetch: impl Fetch, cancel: CancellationToken) -> Self {
        let last = 0..first.len() as u64;
        let pieces = VecDeque::from([Piece { start: 0, bytes: first }]);
        let state = State { pieces, last, coming: None, failed: None, is_broken: false, requests: 0 };
        let shared = Arc::new(Shared {
            fetch: Arc::new(fetch),
            len,
            state: Mutex::new(state),
            arrived: Condvar::new(),
            runtime: Handle::current(),
        });
        Self { shared, waiting: Waiting::new(cancel, "the video's source"), position: 0, spool: None }
    }

    /// The same; should all of the file be fetched, it is kept in `directory`.
    pub fn with_spool(self, directory: Option<PathBuf>) -> Self {
        Self { spool: directory, ..self }
    }

    /// Fetches all of the file, however slowly it comes.
    pub(super) fn fetch_all(mut self) -> io::Result<SpoolReader> {
        let options =
            SpoolOptions { max_memory: SPOOL_MEMORY, max_bytes: self.shared.len, directory: self.spool.clone() };
        let (mut writer, reader) = spool(options, CancellationToken::new());
        self.position = 0;
        io::copy(&mut self, &mut writer)?;
        writer.finish();
        Ok(reader)
    }

    /// Bytes of the whole file.
    pub(super) fn len(&self) -> u64 {
        self.shared.len
    }

    /// The same, and `other` takes part in its waits.
    pub(super) fn with(mut self, other: Arc<dyn WhileWaiting>) -> Self {
        self.waiting.push(other);
        self
    }
}

impl fmt::Debug for RangedReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangedReader").field("position", &self.position).finish_non_exhaustive()
    }
}

impl Read for RangedReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.shared.len || out.is_empty() {
            return Ok(0);
        }
        let mut state = self.shared.lock();
        loop {
            if let Some(n) = state.copy(self.position, out) {
                self.position += n as u64;
                self.shared.fetch_ahead(&mut state, self.position);
                return Ok(n);
            }
            if state.is_broken {
                return Err(io::Error::new(ErrorKind::ConnectionAborted, "the video's source failed"));
            }
            // What was fetched in advance and is not needed may fail.
            if let Some((range, error)) = state.failed.take()
                && range.contains(&self.position)
            {
                state.is_broken = true;
                drop(state);
                self.shared.fetch.failed(error);
                state = self.shared.lock();
                continue;
            }
            if !state.coming.as_ref().is_some_and(|coming| coming.range.contains(&self.position)) {
                self.shared.request(&mut state, self.position);
            }
            drop(state);
            let settled = |state: &State| state.coming.is_none().then_some(Ok(()));
            state = self.waiting.until(|| self.shared.lock(), &self.shared.arrived, settled)?;
        }
    }
}

impl Seek for RangedReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.shared.len.checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

struct Shared {
    fetch: Arc<dyn Fetch>,
    len: u64,
    state: Mutex<State>,
    arrived: Condvar,
    runtime: Handle,
}

struct State {
    /// What is there, without overlaps; the piece that was used last comes last.
    pieces: VecDeque<Piece>,
    /// What was asked for last.
    last: Range<u64>,
    coming: Option<Coming>,
    /// What could not be fetched, until it is known whether anybody needs it.
    failed: Option<(Range<u64>, io::Error)>,
    /// Somebody did.
    is_broken: bool,
    requests: u64,
}

struct Piece {
    start: u64,
    bytes: Bytes,
}

impl Piece {
    fn range(&self) -> Range<u64> {
        self.start..self.start + self.bytes.len() as u64
    }
}

/// A piece on its way. Dropping it ends the transfer.
struct Coming {
    range: Range<u64>,
    request: u64,
    _task: AbortOnDropHandle<()>,
}

impl State {
    /// Copies bytes at `position` of the piece that has them, if one does, and gives their number.
    fn copy(&mut self, position: u64, out: &mut [u8]) -> Option<usize> {
        let at = self.pieces.iter().rposition(|piece| piece.range().contains(&position))?;
        let piece = self.pieces.remove(at).expect("it was just found");
        let rest = &piece.bytes[(position - piece.start) as usize..];
        let n = rest.len().min(out.len());
        out[..n].copy_from_slice(&rest[..n]);
        self.pieces.push_back(piece);
        Some(n)
    }

    fn keep(&mut self, piece: Piece) {
        self.pieces.push_back(piece);
        while self.pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>() > HELD {
            self.pieces.pop_front();
        }
    }

    fn has(&self, position: u64) -> bool {
        self.pieces.iter().any(|piece| piece.range().contains(&position))
    }

    /// What to ask for to get `position`, which is not there.
    fn next_range(&self, position: u64, len: u64) -> Range<u64> {
        let follows = position == self.last.end;
        let before = self.pieces.iter().map(|piece| piece.range().end).filter(|end| *end <= position).max();
        let aligned = position - position % ALIGNMENT;
        let start = if follows { position } else { aligned.max(before.unwrap_or(0)) };
        let doubled = (2 * (self.last.end - self.last.start)).clamp(FIRST_PIECE, LONGEST_PIECE);
        let end = start + if follows { doubled } else { FIRST_PIECE };
        let after = self.pieces.iter().map(|piece| piece.start).filter(|start| *start > position).min();
        start..end.min(len).min(after.unwrap_or(len))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent at every point where a holder could panic.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Fetches what follows the newest piece once half of that was read.
    fn fetch_ahead(self: &Arc<Self>, state: &mut State, position: u64) {
        let Range { start, end } = state.last;
        let half = start + (end - start) / 2;
        let is_ahead = state.coming.is_some() || state.failed.is_some() || end >= self.len || state.has(end);
        if !is_ahead && (half..=end).contains(&position) {
            self.request(state, end);
        }
    }

    /// Begins to fetch the bytes at and around `position`, instead of what is being fetched.
    fn request(self: &Arc<Self>, state: &mut State, position: u64) {
        let range = state.next_range(position, self.len);
        state.requests += 1;
        let request = state.requests;
        let (shared, fetched) = (Arc::downgrade(self), self.fetch.fetch(range.clone()));
        let task = self.runtime.spawn(async move {
            let result = fetched.await;
            if let Some(shared) = shared.upgrade() {
                shared.arrive(request, result);
            }
        });
        state.last = range.clone();
        state.coming = Some(Coming { range, request, _task: AbortOnDropHandle::new(task) });
    }

    fn arrive(&self, request: u64, result: io::Result<Bytes>) {
        let mut state = self.lock();
        let Some(coming) = state.coming.take_if(|coming| coming.request == request) else { return };
        let wanted = coming.range.end - coming.range.start;
        match result {
            Ok(bytes) if bytes.len() as u64 == wanted => state.keep(Piece { start: coming.range.start, bytes }),
            Ok(bytes) => {
                let detail = format!("{} bytes came instead of {wanted}", bytes.len());
                state.failed = Some((coming.range, io::Error::new(ErrorKind::UnexpectedEof, detail)));
            }
            Err(error) => state.failed = Some((coming.range, error)),
        }
        self.arrived.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// A file whose transfers are noted down.
    #[derive(Debug, Clone)]
    struct File {
        bytes: Bytes,
        fetched: Arc<Mutex<Vec<Range<u64>>>>,
        failure: Arc<Mutex<Option<String>>>,
        /// Nothing comes from here on.
        broken_from: u64,
        delay: Duration,
    }

    impl File {
        fn new(len: usize) -> Self {
            Self {
                bytes: (0..len).map(|at| (at ^ (at >> 8)) as u8).collect(),
                fetched: Arc::default(),
                failure: Arc::default(),
                broken_from: u64::MAX,
                delay: Duration::ZERO,
            }
        }

        fn reader(&self, cancel: CancellationToken) -> RangedReader {
            let first = self.bytes.slice(..self.bytes.len().min(FIRST_PIECE as usize));
            RangedReader::new(self.bytes.len() as u64, first, self.clone(), cancel)
        }

        fn fetched_bytes(&self) -> u64 {
            self.fetched.lock().unwrap().iter().map(|range| range.end - range.start).sum()
        }
    }

    impl Fetch for File {
        fn fetch(&self, range: Range<u64>) -> Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>> {
            self.fetched.lock().unwrap().push(range.clone());
            let is_broken = range.end > self.broken_from;
            let (bytes, delay) = (self.bytes.slice(range.start as usize..range.end as usize), self.delay);
            Box::pin(async move {
                tokio::time::sleep(delay).await;
                if is_broken { Err(io::Error::other("gone")) } else { Ok(bytes) }
            })
        }

        fn failed(&self, error: io::Error) {
            *self.failure.lock().unwrap() = Some(error.to_string());
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    #[test]
    fn what_is_read_in_order_is_fetched_once_in_growing_pieces() {
        let runtime = runtime();
        let _runtime = runtime.enter();
        let file = File::new(7 << 20);
        let mut all = Vec::new();
        file.reader(CancellationToken::new()).read_to_end(&mut all).unwrap();
        assert!(all == file.bytes);
        let fetched = file.fetched.lock().unwrap();
        assert_eq!(fetched[0].start, FIRST_PIECE);
        assert!(fetched.windows(2).all(|pair| pair[0].end == pair[1].start), "{fetched:?}");
        assert!(fetched.len() <= 8, "{fetched:?}");
    }

    #[test]
    fn of_a_file_that_is_read_in_places_little_is_fetched() {
        let runtime = runtime();
        let _runtime = runtime.enter();
        let file = File::new(50 << 20);
        let mut reader = file.reader(CancellationToken::new());
        let mut out = [0; 1000];
        for _ in 0..20 {
            for place in [40 << 20, 0, 20_000_000, 50_000_000] {
                reader.seek(SeekFrom::Start(place)).unwrap();
                reader.read_exact(&mut out).unwrap();
                assert_eq!(out, file.bytes[place as usize..][..1000]);
            }
        }
        assert!(file.fetched_bytes() <= 3 * FIRST_PIECE, "{:?}", file.fetched);
    }

    #[test]
    fn a_failure_is_told_once_it_is_met_and_not_before() {
        let runtime = runtime();
        let _runtime = runtime.enter();
        let file = File { broken_from: FIRST_PIECE, ..File::new(1 << 20) };
        let mut reader = file.reader(CancellationToken::new());
        let mut first = vec![0; FIRST_PIECE as usize];
        reader.read_exact(&mut first).unwrap();
        assert_eq!(*file.failure.lock().unwrap(), None, "what was fetched ahead may not be needed");
        for _ in 0..3 {
            assert!(reader.read(&mut first).is_err());
        }
        assert_eq!(file.failure.lock().unwrap().as_deref(), Some("gone"));
        assert!(file.fetched.lock().unwrap().len() <= 2, "a source that failed is left alone");
    }

    #[test]
    fn a_cancelled_reader_stops_waiting() {
        let runtime = runtime();
        let _runtime = runtime.enter();
        let file = File { delay: Duration::from_secs(3600), ..File::new(1 << 20) };
        let cancel = CancellationToken::new();
        let mut reader = file.reader(cancel.clone());
        reader.seek(SeekFrom::End(-1)).unwrap();
        let reading = std::thread::spawn(move || reader.read(&mut [0; 8]).is_err());
        std::thread::sleep(Duration::from_millis(5));
        cancel.cancel();
        assert!(reading.join().unwrap());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against the plain slice, wherever is read.
        #[test]
        fn bytes_are_those_of_the_file(
            len in 0usize..3_000_000,
            reads in prop::collection::vec((0u64..3_000_000, 0usize..600_000), 1..20),
        ) {
            let runtime = runtime();
            let _runtime = runtime.enter();
            let file = File::new(len);
            let mut reader = file.reader(CancellationToken::new());
            for (at, n) in reads {
                reader.seek(SeekFrom::Start(at)).unwrap();
                let mut out = Vec::new();
                (&mut reader).take(n as u64).read_to_end(&mut out).unwrap();
                let from = len.min(at as usize);
                prop_assert!(out == file.bytes[from..len.min(from + n)]);
            }
        }
    }
}
