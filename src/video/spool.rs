//! Encoded bytes that are read while they still arrive.
//!
//! [`spool`] gives a writer for whoever receives an upload and a reader for the decoder. A read of bytes
//! that have not arrived waits for them; so does asking for the end. Beyond a number of bytes the spool moves to a
//! file that has no name, so nothing is left behind however the process ends.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::waiting::{Waiting, WhileWaiting};

/// How much a spool holds, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolOptions {
    /// Bytes kept in memory; more go to disk.
    pub max_memory: usize,
    /// Bytes taken at most.
    pub max_bytes: u64,
    /// Where the file is made; the system's temporary directory if `None`.
    pub directory: Option<PathBuf>,
}

impl Default for SpoolOptions {
    /// 8 MiB in memory, 512 MiB in all.
    fn default() -> Self {
        Self { max_memory: 8 << 20, max_bytes: super::Limits::default().max_bytes, directory: None }
    }
}

/// Why a spool takes no more bytes.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// More bytes than [`SpoolOptions::max_bytes`].
    #[error("video is at least {actual} bytes; the limit is {limit}")]
    TooLarge {
        /// Bytes so far, with those refused.
        actual: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The spool's file could not be made or written.
    #[error("cannot write the upload to disk: {0}")]
    Disk(#[from] io::Error),
    /// All readers are gone: nobody wants the rest.
    #[error("nobody reads this upload any more")]
    Unwanted,
}

/// Makes an empty spool. Waiting reads end with an error when `cancel` is cancelled.
pub fn spool(options: SpoolOptions, cancel: CancellationToken) -> (SpoolWriter, SpoolReader) {
    let state = State { memory: Vec::new(), file: None, len: 0, wanted: 0, end: End::Open };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        arrived: Condvar::new(),
        asked: Condvar::new(),
        ended: CancellationToken::new(),
    });
    let waiting = Waiting::new(cancel, "the upload");
    let reader = SpoolReader { shared: shared.clone(), waiting, position: 0, alive: Arc::new(()) };
    let writer = SpoolWriter { shared, options, readers: Arc::downgrade(&reader.alive) };
    (writer, reader)
}

struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
    /// More is wanted.
    asked: Condvar,
    /// Cancelled when no more bytes will come.
    ended: CancellationToken,
}

struct State {
    /// All bytes, until they move to `file`.
    memory: Vec<u8>,
    file: Option<Arc<File>>,
    len: u64,
    /// How many bytes readers have asked for, from the first on; all if one asked where they end.
    wanted: u64,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Complete,
    Broken,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent at every point where a holder could panic.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes note that a reader asks for so many bytes from the first on.
    fn want(&self, bytes: u64) {
        let mut state = self.lock();
        if bytes > state.wanted {
            state.wanted = bytes;
            self.asked.notify_all();
        }
    }

    /// Waits until `ready` says so of the spool, or no more bytes come.
    fn wait_until(&self, reader: &SpoolReader, ready: impl Fn(&State) -> bool) -> io::Result<MutexGuard<'_, State>> {
        let settled = |state: &State| {
            if ready(state) || state.end == End::Complete {
                return Some(Ok(()));
            }
            (state.end == End::Broken)
                .then(|| Err(io::Error::new(ErrorKind::ConnectionAborted, "the upload broke off")))
        };
        reader.waiting.until(|| self.lock(), &self.arrived, settled)
    }
}

/// Takes the bytes of one upload. Dropping it before [`SpoolWriter::finish`] tells readers that the upload broke off.
pub struct SpoolWriter {
    shared: Arc<Shared>,
    options: SpoolOptions,
    readers: std::sync::Weak<()>,
}

impl SpoolWriter {
    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        if self.readers.strong_count() == 0 {
            return Err(SpoolError::Unwanted);
        }
        let mut state = self.shared.lock();
        let actual = state.len + bytes.len() as u64;
        if actual > self.options.max_bytes {
            return Err(SpoolError::TooLarge { actual, limit: self.options.max_bytes });
        }
        match state.file.clone() {
            None if actual <= self.options.max_memory as u64 => state.memory.extend_from_slice(bytes),
            None => {
                let file = match &self.options.directory {
                    Some(directory) => tempfile::tempfile_in(directory)?,
                    None => tempfile::tempfile()?,
                };
                file.write_all_at(&state.memory, 0)?;
                file.write_all_at(bytes, state.len)?;
                state.file = Some(Arc::new(file));
                state.memory = Vec::new();
            }
            Some(file) => {
                // Readers never look beyond `len`, so they need not wait for the disk.
                let len = state.len;
                drop(state);
                file.write_all_at(bytes, len)?;
                state = self.shared.lock();
            }
        }
        state.len = actual;
        self.shared.arrived.notify_all();
        Ok(())
    }

    /// Waits until the bytes that are here are not `ahead` more than readers have asked for. Tells whether there are readers:
    /// without any, nobody wants the rest.
    pub fn wait_until_wanted(&self, ahead: u64) -> bool {
        /// How soon it is noticed that the readers have gone.
        const PERIOD: Duration = Duration::from_millis(20);
        let mut state = self.shared.lock();
        while self.readers.strong_count() > 0 {
            if state.len < state.wanted.saturating_add(ahead) {
                return true;
            }
            let waited = self.shared.asked.wait_timeout(state, PERIOD);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        false
    }

    /// Says that these were all bytes.
    pub fn finish(self) {
        self.shared.lock().end = End::Complete;
    }
}

impl Drop for SpoolWriter {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.end == End::Open {
            state.end = End::Broken;
        }
        drop(state);
        self.shared.arrived.notify_all();
        self.shared.ended.cancel();
    }
}

impl Write for SpoolWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::write(self, bytes).map(|()| bytes.len()).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a spool from any place. Clones have places of their own.
#[derive(Clone)]
pub struct SpoolReader {
    shared: Arc<Shared>,
    waiting: Waiting,
    position: u64,
    alive: Arc<()>,
}

impl SpoolReader {
    /// Whether all bytes have arrived.
    pub fn is_complete(&self) -> bool {
        self.shared.lock().end == End::Complete
    }

    /// Cancelled when no more bytes will come, because they are all here or because the upload broke off.
    pub(super) fn ended(&self) -> CancellationToken {
        self.shared.ended.clone()
    }

    /// The same, and `other` takes part in its waits.
    pub(super) fn with(mut self, other: Arc<dyn WhileWaiting>) -> Self {
        self.waiting.push(other);
        self
    }
}

impl Read for SpoolReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.shared.want(self.position.saturating_add(out.len() as u64));
        let state = self.shared.wait_until(self, |state| state.len > self.position)?;
        let n = state.len.saturating_sub(self.position).min(out.len() as u64) as usize;
        match state.file.clone() {
            Some(file) => {
                drop(state);
                file.read_exact_at(&mut out[..n], self.position)?;
            }
            None if n > 0 => out[..n].copy_from_slice(&state.memory[self.position as usize..][..n]),
            None => {}
        }
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for SpoolReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => {
                self.shared.want(u64::MAX);
                self.shared.wait_until(self, |_| false)?.len.checked_add_signed(by)
            }
        };
        self.position = position.ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

impl std::fmt::Debug for SpoolReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpoolReader").field("position", &self.position).finish_non_exhaustive()
    }
}

/// Whether a file can be decoded front to back, from its first bytes on, and gives the same then: everything does but an
/// MP4 whose index comes after its samples, and an MXF, of which the times of frames come last. Waits for as many bytes
/// as it takes to tell.
pub(super) fn decodes_in_order(mut bytes: impl Read + Seek) -> io::Result<bool> {
    /// How each element of an MXF begins (SMPTE ST 377-1).
    const MXF: [u8; 8] = [0x06, 0x0e, 0x2b, 0x34, 0x02, 0x05, 0x01, 0x01];
    bytes.seek(SeekFrom::Start(0))?;
    // A hundred boxes before the first sample are more than any writer makes.
    for _ in 0..100 {
        let mut header = [0; 16];
        if bytes.read_exact(&mut header[..8]).is_err() {
            return Ok(true);
        }
        let mut len = u64::from(u32::from_be_bytes([header[0], header[1], header[2], header[3]]));
        let mut header_len = 8;
        match &header[4..8] {
            b"moov" | b"moof" => return Ok(true),
            b"mdat" => return Ok(false),
            _ if header.starts_with(&MXF) => return Ok(false),
            b"ftyp" | b"styp" | b"sidx" | b"free" | b"skip" | b"wide" | b"pnot" | b"uuid" | b"meta" | b"emsg"
            | b"prft" | b"udta" => {}
            _ => return Ok(true),
        }
        if len == 1 {
            bytes.read_exact(&mut header[8..16])?;
            len = u64::from_be_bytes(header[8..16].try_into().expect("eight bytes"));
            header_len = 16;
        }
        let Some(rest) = len.checked_sub(header_len).and_then(|rest| i64::try_from(rest).ok()) else { return Ok(true) };
        bytes.seek(SeekFrom::Current(rest))?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn small(max_memory: usize, max_bytes: u64) -> (SpoolWriter, SpoolReader) {
        spool(SpoolOptions { max_memory, max_bytes, directory: None }, CancellationToken::new())
    }

    #[test]
    fn bytes_come_back_from_memory_and_from_disk() {
        for max_memory in [0, 5, 100] {
            let (mut writer, mut reader) = small(max_memory, 1000);
            for part in [b"abc".as_slice(), b"", b"defgh", b"ij"] {
                writer.write(part).expect("below the limit");
            }
            writer.finish();
            let mut all = String::new();
            reader.read_to_string(&mut all).expect("complete");
            assert_eq!(all, "abcdefghij", "{max_memory} bytes in memory");
            reader.seek(SeekFrom::End(-3)).expect("complete");
            all.clear();
            reader.read_to_string(&mut all).expect("complete");
            assert_eq!(all, "hij");
        }
    }

    #[test]
    fn reader_waits_for_bytes_and_for_the_end() {
        let (mut writer, mut reader) = small(4, 1000);
        let reading = thread::spawn(move || {
            let end = reader.seek(SeekFrom::End(0)).expect("finished");
            reader.seek(SeekFrom::Start(0)).expect("a place");
            let mut all = Vec::new();
            reader.read_to_end(&mut all).expect("finished");
            (end, all)
        });
        for part in 0..10u8 {
            thread::sleep(Duration::from_millis(2));
            writer.write(&[part; 3]).expect("below the limit");
        }
        writer.finish();
        let (end, all) = reading.join().expect("no panic");
        assert_eq!((end, all.len(), all[29]), (30, 30, 9));
    }

    #[test]
    fn upload_that_breaks_off_is_an_error_after_its_last_byte() {
        let (mut writer, mut reader) = small(100, 1000);
        writer.write(b"abc").expect("below the limit");
        drop(writer);
        let mut all = Vec::new();
        let error = reader.read_to_end(&mut all).expect_err("broken off");
        assert_eq!((error.kind(), all.as_slice()), (ErrorKind::ConnectionAborted, b"abc".as_slice()));
    }

    #[test]
    fn waiting_reader_notices_cancellation() {
        let cancel = CancellationToken::new();
        let (_writer, mut reader) = spool(SpoolOptions::default(), cancel.clone());
        let reading = thread::spawn(move || reader.read(&mut [0; 8]).is_err());
        thread::sleep(Duration::from_millis(5));
        cancel.cancel();
        assert!(reading.join().expect("no panic"));
    }

    #[test]
    fn too_many_bytes_are_refused() {
        let (mut writer, _reader) = small(100, 5);
        writer.write(b"abc").expect("below the limit");
        let error = writer.write(b"def").expect_err("above the limit");
        assert!(matches!(error, SpoolError::TooLarge { actual: 6, limit: 5 }), "{error}");
    }

    #[test]
    fn writer_waits_while_it_is_far_enough_ahead() {
        let (mut writer, mut reader) = small(100, 1000);
        assert!(writer.wait_until_wanted(4));
        writer.write(b"abcd").expect("below the limit");
        let waiting = thread::spawn(move || (writer.wait_until_wanted(4), writer));
        reader.read_exact(&mut [0; 2]).expect("arrived");
        let (wanted, writer) = waiting.join().expect("no panic");
        assert!(wanted);
        let waiting = thread::spawn(move || writer.wait_until_wanted(0));
        drop(reader);
        assert!(!waiting.join().expect("no panic"));
    }

    #[test]
    fn reader_that_asks_for_the_end_gets_all() {
        let (mut writer, mut reader) = small(100, 1000);
        let reading = thread::spawn(move || reader.seek(SeekFrom::End(0)).expect("finished"));
        for _ in 0..50 {
            assert!(writer.wait_until_wanted(1));
            writer.write(b"ab").expect("below the limit");
        }
        writer.finish();
        assert_eq!(reading.join().expect("no panic"), 100);
    }

    #[test]
    fn writer_learns_that_nobody_reads() {
        let (mut writer, reader) = small(100, 100);
        drop(reader);
        assert!(matches!(writer.write(b"abc"), Err(SpoolError::Unwanted)));
    }

    #[test]
    fn what_comes_after_the_samples_has_to_come_first() {
        let file = |names: &[&[u8; 4]]| {
            let boxes = names.iter().flat_map(|name| [[0, 0, 0, 8], **name].concat());
            io::Cursor::new(boxes.collect::<Vec<u8>>())
        };
        let in_order = |names: &[&[u8; 4]]| decodes_in_order(file(names)).expect("in memory");
        assert!(in_order(&[b"ftyp", b"moov", b"mdat"]));
        assert!(!in_order(&[b"ftyp", b"free", b"mdat", b"moov"]));
        assert!(in_order(&[b"ftyp", b"free", b"moof", b"mdat"]));
        assert!(decodes_in_order(io::Cursor::new(b"\x1aE\xdf\xa3 not an mp4 at all")).expect("in memory"));
        assert!(decodes_in_order(io::Cursor::new(b"")).expect("in memory"));
        let mxf = [0x06, 0x0e, 0x2b, 0x34, 0x02, 0x05, 0x01, 0x01, 0x0d, 0x01, 0x02, 0x01, 0x01, 0x02, 0x04, 0x00];
        assert!(!decodes_in_order(io::Cursor::new(mxf)).expect("in memory"));
    }
}
