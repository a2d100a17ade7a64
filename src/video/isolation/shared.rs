//! The memory that a decoder process shares with its owner.
//!
//! It is a memory file that nobody can resize: a window of encoded bytes, then a slot for each of [`SLOTS`] clips. The
//! owner reads and writes it by system calls only, so what the process does to it meanwhile can spoil a picture but
//! nothing else. The process maps it, so that the transform writes where the owner reads.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};

use super::protocol::{SLOTS, WINDOW};

/// The owner's side.
pub(super) struct SharedMemory {
    file: File,
    slot_len: usize,
}

impl SharedMemory {
    /// Memory for clips of up to `slot_len` bytes.
    pub(super) fn new(slot_len: usize) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("kinetoscope-clips", flags)?);
        file.set_len((WINDOW + SLOTS * slot_len) as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { file, slot_len })
    }

    /// The memory file, for the process.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    pub(super) fn slot_len(&self) -> usize {
        self.slot_len
    }

    pub(super) fn write_window(&self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, 0)
    }

    /// The first `len` bytes of a slot.
    pub(super) fn read_slot(&self, slot: usize, len: usize) -> io::Result<Vec<u8>> {
        let mut rgb = Vec::with_capacity(len);
        while rgb.len() < len {
            let offset = (slot_offset(slot, self.slot_len) + rgb.len()) as u64;
            // Straight into memory that was never filled: filling it with zeros first costs as much as the copy.
            let read = rustix::io::pread(&self.file, rustix::buffer::spare_capacity(&mut rgb), offset)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        rgb.truncate(len);
        Ok(rgb)
    }
}

fn slot_offset(slot: usize, slot_len: usize) -> usize {
    WINDOW + slot * slot_len
}

/// The process's side.
pub(super) struct MappedMemory {
    file: File,
    map: Arc<Map>,
}

struct Map {
    base: NonNull<u8>,
    len: usize,
    slot_len: usize,
    lent: [AtomicBool; SLOTS],
}

impl MappedMemory {
    /// Maps what [`SharedMemory::file`] gave.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let slot_len = len.checked_sub(WINDOW).ok_or(io::ErrorKind::InvalidData)? / SLOTS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice, of a file that lives as long as it.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { file, map: Arc::new(Map { base, len, slot_len, lent: Default::default() }) })
    }

    /// Fills `bytes` from the window, by a system call, as the owner writes to it.
    pub(super) fn read_window(&self, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, 0)
    }

    /// The first `len` bytes of a slot, to fill them; `None` if they are lent already, or if it is shorter.
    pub(super) fn lend(&self, slot: usize, len: usize) -> Option<Slot> {
        if len > self.map.slot_len || self.map.lent.get(slot)?.swap(true, Ordering::Acquire) {
            return None;
        }
        Some(Slot { map: Arc::clone(&self.map), slot, len })
    }
}

// SAFETY: the pointer is to memory that belongs to no thread. It is only followed through `Slot`s, of which there is one a
// place at a time (`lent`).
unsafe impl Send for Map {}
// SAFETY: as above; what is shared besides is atomic or never changes.
unsafe impl Sync for Map {}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `MappedMemory::new`, and nothing borrows from it: slots hold the `Arc`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Memory for the pixels of a clip. Dropping it gives it back.
pub(super) struct Slot {
    map: Arc<Map>,
    slot: usize,
    len: usize,
}

impl Slot {
    fn start(&self) -> *mut u8 {
        // SAFETY: the slot is within the mapping: `lend` checked its number and `len`, and the mapping has `SLOTS` of them.
        unsafe { self.map.base.as_ptr().add(slot_offset(self.slot, self.map.slot_len)) }
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping holds `len` bytes from `start` on as long as `self.map` lives, and its file can't shrink. In this
        // process no other `Slot` of the same number exists (`lent`); the owner does not write to slots.
        unsafe { slice::from_raw_parts(self.start(), self.len) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively. The owner reads by system calls, which see what they see.
        unsafe { slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.map.lent[self.slot].store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_reads_what_the_process_wrote_and_the_other_way_round() {
        let owner = SharedMemory::new(1000).expect("memory");
        let process = MappedMemory::new(owner.file().expect("a file")).expect("a mapping");
        for slot in 0..SLOTS {
            process.lend(slot, 900).expect("free").fill(slot as u8 + 1);
        }
        for slot in 0..SLOTS {
            assert_eq!(owner.read_slot(slot, 900).expect("read"), vec![slot as u8 + 1; 900]);
        }
        owner.write_window(b"bytes").expect("written");
        let mut bytes = [0; 5];
        process.read_window(&mut bytes).expect("read");
        assert_eq!(&bytes, b"bytes");
    }

    #[test]
    fn slot_is_lent_once_at_a_time_and_within_its_bounds() {
        let owner = SharedMemory::new(10).expect("memory");
        let process = MappedMemory::new(owner.file().expect("a file")).expect("a mapping");
        let slot = process.lend(0, 10).expect("free");
        assert!(process.lend(0, 1).is_none() && process.lend(1, 11).is_none() && process.lend(SLOTS, 1).is_none());
        drop(slot);
        assert!(process.lend(0, 1).is_some());
    }
}
