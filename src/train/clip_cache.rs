//! Decoded clips on disk, for trainings whose videos are few: reading one costs a fraction of decoding it.
//!
//! A file holds one clip. Any number of processes may share the folder: files appear whole, are never changed, and one that
//! another process removes meanwhile is decoded again. When there are more bytes than allowed, those that were used least
//! recently go.

use std::fs::{self, File, FileTimes};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tracing::warn;

use crate::video::Clip;

const ENDING: &str = "clip";
const MAGIC: &[u8; 8] = b"kinclip1";
/// Magic, checksum, frames, start and end.
const HEAD: usize = 8 + 4 + 8 + 8 + 8;
const LOCK_FILE: &str = ".kinetoscope-cache.lock";

/// A folder of clips.
#[derive(Debug)]
pub struct ClipCache {
    folder: PathBuf,
    max_bytes: u64,
    /// What this process believes is there.
    bytes: AtomicU64,
    /// Nothing can be written: said once.
    failed: AtomicBool,
}

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
#[error("can't use the cache {}", .folder.display())]
pub struct CacheError {
    /// The folder.
    pub folder: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// What tells a clip from all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClipKey(String);

impl ClipKey {
    /// Of a file as it is now, and of all else that the pixels depend on. `None` for what is no file, or away.
    pub fn of(video: &Path, rest: &impl std::fmt::Debug) -> Option<Self> {
        let file = fs::metadata(video).ok().filter(fs::Metadata::is_file)?;
        let path = fs::canonicalize(video).ok()?;
        let mut digest = Sha256::new();
        digest.update(path.as_os_str().as_encoded_bytes());
        digest.update(format!("\n{} {:?} {rest:?}", file.len(), file.modified().ok()?));
        Some(Self(digest.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

impl ClipCache {
    /// The cache in `folder`, which is made if it is not there, of about `max_bytes` at most.
    pub fn open(folder: &Path, max_bytes: u64) -> Result<Self, CacheError> {
        let failed = |source| CacheError { folder: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let cache =
            Self { folder: folder.to_owned(), max_bytes, bytes: AtomicU64::new(0), failed: AtomicBool::new(false) };
        // Of a process that was killed.
        tempfile::Builder::new().tempfile_in(folder).map_err(failed)?;
        cache.make_room().map_err(failed)?;
        Ok(cache)
    }

    /// The clip, if it is there and whole.
    pub fn get(&self, key: &ClipKey) -> Option<Clip> {
        let path = self.path(key);
        let mut file = File::options().read(true).write(true).open(&path).ok()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        let Some(clip) = decode(&bytes) else {
            warn!(file = %path.display(), "a file of the cache is damaged; its clip is decoded again");
            // It is written again under the same name.
            let _ = fs::remove_file(&path);
            return None;
        };
        // When it was used last. If that can't be noted, it goes sooner.
        let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
        Some(clip)
    }

    /// Keeps a clip. A full disk is told of once, and costs nothing but the time to decode.
    pub fn put(&self, key: &ClipKey, clip: &Clip) {
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.try_to_put(key, clip)
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            warn!(folder = %self.folder.display(), %error, "clips can't be kept in the cache any more");
        }
    }

    fn try_to_put(&self, key: &ClipKey, clip: &Clip) -> io::Result<()> {
        let bytes = encode(clip);
        let mut file = tempfile::Builder::new().suffix(".partial").tempfile_in(&self.folder)?;
        file.write_all(&bytes)?;
        file.persist(self.path(key)).map_err(|error| error.error)?;
        let len = bytes.len() as u64;
        let believed = self.bytes.fetch_add(len, Ordering::Relaxed) + len;
        // Others write too: so much may come from each before all is looked at.
        if believed > self.max_bytes { self.make_room() } else { Ok(()) }
    }

    /// Removes the files that were used least recently until there is room for some more, unless another process does so already.
    fn make_room(&self) -> io::Result<()> {
        /// Part of the allowed bytes that is left, so that not every clip costs a look at all files.
        const KEPT: f64 = 0.9;
        let lock = File::options().append(true).create(true).open(self.folder.join(LOCK_FILE))?;
        if lock.try_lock().is_err() {
            self.bytes.store((self.max_bytes as f64 * KEPT) as u64, Ordering::Relaxed);
            return Ok(());
        }
        let mut files = self.files()?;
        let mut total: u64 = files.iter().map(|file| file.bytes).sum();
        if total > self.max_bytes {
            files.sort_by_key(|file| file.used);
            for file in files {
                if total as f64 <= self.max_bytes as f64 * KEPT {
                    break;
                }
                // Another process may have done so.
                let _ = fs::remove_file(&file.path);
                total -= file.bytes;
            }
        }
        self.bytes.store(total, Ordering::Relaxed);
        Ok(())
    }

    fn files(&self) -> io::Result<Vec<CachedFile>> {
        /// Nobody writes a clip for so long.
        const LEFT_BEHIND: Duration = Duration::from_secs(3600);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            // One that is gone by now takes no room.
            let Ok(data) = fs::metadata(&path) else { continue };
            let Ok(used) = data.modified() else { continue };
            match path.extension().and_then(|ending| ending.to_str()) {
                Some(ENDING) => files.push(CachedFile { path, used, bytes: data.len() }),
                Some("partial") if used.elapsed().is_ok_and(|age| age > LEFT_BEHIND) => {
                    let _ = fs::remove_file(&path);
                }
                _ => {}
            }
        }
        Ok(files)
    }

    fn path(&self, key: &ClipKey) -> PathBuf {
        self.folder.join(&key.0).with_extension(ENDING)
    }
}

struct CachedFile {
    path: PathBuf,
    used: SystemTime,
    bytes: u64,
}

fn encode(clip: &Clip) -> Vec<u8> {
    let mut body = Vec::with_capacity(HEAD + clip.rgb.len());
    body.extend((clip.frames as u64).to_le_bytes());
    for time in [clip.start, clip.end] {
        body.extend((time.as_nanos() as u64).to_le_bytes());
    }
    body.extend(&clip.rgb);
    [MAGIC.as_slice(), &crc32c::crc32c(&body).to_le_bytes(), &body].concat()
}

/// `None` if it is not whole.
fn decode(bytes: &[u8]) -> Option<Clip> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (checksum, body) = rest.split_first_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return None;
    }
    let (frames, rest) = body.split_first_chunk::<8>()?;
    let (start, rest) = rest.split_first_chunk::<8>()?;
    let (end, rgb) = rest.split_first_chunk::<8>()?;
    let time = |bytes: &[u8; 8]| Duration::from_nanos(u64::from_le_bytes(*bytes));
    let frames = u64::from_le_bytes(*frames) as usize;
    Some(Clip { index: 0, frames, start: time(start), end: time(end), rgb: rgb.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(value: u8) -> Clip {
        let (start, end) = (Duration::from_millis(40), Duration::from_millis(680));
        Clip { index: 0, frames: 16, start, end, rgb: vec![value; 1000] }
    }

    fn key(name: &str) -> ClipKey {
        ClipKey(name.to_owned())
    }

    fn cache(folder: &Path, max_bytes: u64) -> ClipCache {
        ClipCache::open(folder, max_bytes).unwrap()
    }

    #[test]
    fn clips_come_back_as_they_were_in_another_process_too() {
        let folder = tempfile::tempdir().unwrap();
        let first = cache(folder.path(), 1 << 20);
        assert_eq!(first.get(&key("a")), None);
        first.put(&key("a"), &clip(7));
        assert_eq!(first.get(&key("a")), Some(clip(7)));
        assert_eq!(cache(folder.path(), 1 << 20).get(&key("a")), Some(clip(7)));
    }

    #[test]
    fn what_was_used_least_recently_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), 5 * 1100);
        let age = |name: &str, seconds: u64| {
            let file = File::options().write(true).open(cache.path(&key(name))).unwrap();
            let then = SystemTime::now() - Duration::from_secs(seconds);
            file.set_times(FileTimes::new().set_modified(then)).unwrap();
        };
        for (place, name) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
            cache.put(&key(name), &clip(1));
            age(name, 100 - place as u64);
        }
        assert!(cache.get(&key("a")).is_some(), "used, so that b is the oldest");
        cache.put(&key("f"), &clip(1));
        let left: Vec<&str> =
            ["a", "b", "c", "d", "e", "f"].into_iter().filter(|name| cache.path(&key(name)).exists()).collect();
        assert_eq!(left, ["a", "d", "e", "f"]);
    }

    #[test]
    fn damaged_and_truncated_files_are_decoded_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), 1 << 20);
        for damage in [
            |bytes: &mut Vec<u8>| bytes.truncate(500),
            |bytes: &mut Vec<u8>| bytes[700] ^= 1,
            |bytes: &mut Vec<u8>| bytes.clear(),
        ] {
            cache.put(&key("a"), &clip(7));
            let path = cache.path(&key("a"));
            let mut bytes = fs::read(&path).unwrap();
            damage(&mut bytes);
            fs::write(&path, bytes).unwrap();
            assert_eq!(cache.get(&key("a")), None);
            assert!(!path.exists());
        }
    }

    #[test]
    fn another_content_of_a_path_is_another_clip() {
        let folder = tempfile::tempdir().unwrap();
        let video = folder.path().join("a.mp4");
        assert_eq!(ClipKey::of(&video, &1), None);
        fs::write(&video, "one").unwrap();
        let one = ClipKey::of(&video, &1).unwrap();
        assert_eq!(ClipKey::of(&video, &1), Some(one.clone()));
        assert_ne!(ClipKey::of(&video, &2), Some(one.clone()));
        fs::write(&video, "three").unwrap();
        assert_ne!(ClipKey::of(&video, &1), Some(one));
    }

    #[test]
    fn several_writers_and_readers_of_a_small_cache_never_see_half_a_clip() {
        let folder = tempfile::tempdir().unwrap();
        let work = |seed: u8| {
            let cache = cache(folder.path(), 4 * 1100);
            for turn in 0..60u8 {
                let value = turn.wrapping_mul(7).wrapping_add(seed) % 12;
                let name = key(&value.to_string());
                match cache.get(&name) {
                    Some(found) => assert_eq!(found, clip(value)),
                    None => cache.put(&name, &clip(value)),
                }
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|seed| drop(scope.spawn(move || work(seed)))));
        let bytes: u64 = cache(folder.path(), 4 * 1100).files().unwrap().iter().map(|file| file.bytes).sum();
        assert!(bytes <= 4 * 1100, "{bytes}");
    }
}
