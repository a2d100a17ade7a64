//! An allocator that keeps the large blocks of training for the next step.
//!
//! A step asks for the same activations and gradients as the one before. The system's allocator maps each large block
//! anew, and the kernel clears it page by page as it is first written: more time than the convolutions take.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks of at least this size are kept, in multiples of it: what a huge page holds on most systems.
const UNIT: usize = 2 << 20;

/// Addresses set apart; memory is taken only for blocks in use or kept. Few enough that the list of their units never is a
/// large block itself.
const REGION: usize = 1 << 39;

/// The system's allocator, to be declared as the `#[global_allocator]` of a program that trains on CPUs. It keeps freed
/// blocks of 2 MiB and more, in huge pages, once [`keep_freed_memory`] was called, and as much as was in use at most.
#[derive(Debug)]
pub struct TrainingAllocator;

/// Start of the region; null as long as nothing is kept.
static START: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static BLOCKS: Mutex<Blocks> = Mutex::new(Blocks::new());

/// From now on the [`TrainingAllocator`], if the program has it, keeps large blocks. Tells whether it does: not where the
/// system sets no addresses apart, or isn't Linux.
pub fn keep_freed_memory() -> bool {
    // Two threads that come at once set one region apart.
    let _one_at_a_time = blocks();
    if START.load(Ordering::Acquire).is_null() {
        START.store(pages::set_apart(), Ordering::Release);
    }
    !START.load(Ordering::Acquire).is_null()
}

fn blocks() -> MutexGuard<'static, Blocks> {
    // Nothing panics while it holds the lock.
    BLOCKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where in the region an address lies.
fn place(address: *const u8) -> Option<usize> {
    let start = START.load(Ordering::Acquire);
    let place = address.addr().checked_sub(start.addr())?;
    (!start.is_null() && place < REGION).then_some(place)
}

/// A block of the region that is large enough, and whether it is all zeros; `None` if the system's allocator has to serve.
fn take(layout: Layout) -> Option<(*mut u8, bool)> {
    if layout.size() < UNIT || layout.align() > UNIT {
        return None;
    }
    let start = START.load(Ordering::Acquire);
    if start.is_null() {
        return None;
    }
    let mut blocks = blocks();
    let taken = blocks.take(layout.size().div_ceil(UNIT), |units| pages::make_usable(start, units))?;
    blocks.forget_oldest(|units| pages::forget(start, units));
    // SAFETY: the block lies in the region, whose addresses are one mapping.
    Some((unsafe { start.add(taken.first * UNIT) }, taken.zero))
}

// SAFETY: a block is handed out by `Blocks`, which hands out no unit twice before it came back, or by the system's
// allocator; which of both follows from the address. Units are aligned to their size, and a block has as many as the
// layout needs.
unsafe impl GlobalAlloc for TrainingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match take(layout) {
            Some((block, _)) => block,
            // SAFETY: the caller's promise, passed on.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match take(layout) {
            Some((block, true)) => block,
            Some((block, false)) => {
                // SAFETY: the block is ours, and at least this large.
                unsafe { block.write_bytes(0, layout.size()) };
                block
            }
            // SAFETY: the caller's promise, passed on.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match place(block) {
            Some(place) => {
                let mut blocks = blocks();
                blocks.give_back(place / UNIT);
                blocks.forget_oldest(|units| pages::forget(START.load(Ordering::Acquire), units));
            }
            // SAFETY: a block outside the region came from the system's allocator, with this layout.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if place(block).is_none() && (size < UNIT || START.load(Ordering::Acquire).is_null()) {
            // SAFETY: as in `dealloc`.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: the caller vouches for block, layout and size; the new block is another one, as large as `size`.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                ptr::copy_nonoverlapping(block, moved, size.min(layout.size()));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

/// Which units of the region are in use. Its lists are small, so they come from the system's allocator.
struct Blocks {
    /// Length of the block that begins at each unit handed out so far.
    lengths: Vec<u32>,
    /// In the order in which they were freed.
    free: Vec<Free>,
    in_use: usize,
    most_in_use: usize,
    /// Units of free blocks that hold memory.
    kept: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Free {
    first: usize,
    len: usize,
    /// Whether it holds no memory, and reads as zeros.
    zero: bool,
}

impl Blocks {
    const fn new() -> Self {
        Self { lengths: Vec::new(), free: Vec::new(), in_use: 0, most_in_use: 0, kept: 0 }
    }

    /// A block of at least `len` units: the smallest free one that isn't much larger, or else fresh units, which
    /// `make_usable(range)` may refuse.
    fn take(&mut self, len: usize, make_usable: impl FnOnce(Range<usize>) -> bool) -> Option<Free> {
        let fits = |free: &Free| (len..=len + len / 4).contains(&free.len);
        let fitting =
            self.free.iter().enumerate().filter(|(_, free)| fits(free)).min_by_key(|(_, free)| (free.zero, free.len));
        let block = match fitting.map(|(i, _)| i) {
            Some(i) => self.free.remove(i),
            None => {
                let first = self.lengths.len();
                if first + len > REGION / UNIT || !make_usable(first..first + len) {
                    return None;
                }
                self.lengths.resize(first + len, 0);
                self.lengths[first] = u32::try_from(len).expect("the region has 2^18 units");
                Free { first, len, zero: true }
            }
        };
        if !block.zero {
            self.kept -= block.len;
        }
        self.in_use += block.len;
        self.most_in_use = self.most_in_use.max(self.in_use);
        Some(block)
    }

    /// Takes back the block that begins at unit `first`.
    fn give_back(&mut self, first: usize) {
        let len = self.lengths[first] as usize;
        self.in_use -= len;
        self.kept += len;
        self.free.push(Free { first, len, zero: false });
    }

    /// Has the blocks that were free for longest return their memory, until no more is held than was ever in use.
    fn forget_oldest(&mut self, forget: impl Fn(Range<usize>)) {
        for block in self.free.iter_mut().filter(|block| !block.zero) {
            if self.in_use + self.kept <= self.most_in_use {
                break;
            }
            forget(block.first..block.first + block.len);
            block.zero = true;
            self.kept -= block.len;
        }
    }
}

#[cfg(target_os = "linux")]
mod pages {
    use std::ops::Range;
    use std::ptr;

    use super::{REGION, UNIT};

    /// Addresses without memory, aligned to a unit; null if there are none.
    pub(super) fn set_apart() -> *mut u8 {
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the system's choice.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), REGION + UNIT, libc::PROT_NONE, kind, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return ptr::null_mut();
        }
        let mapped = mapped.cast::<u8>();
        // SAFETY: a unit more than the region was mapped.
        unsafe { mapped.add(mapped.align_offset(UNIT)) }
    }

    /// Makes units of the region at `start` readable and writable.
    pub(super) fn make_usable(start: *mut u8, units: Range<usize>) -> bool {
        let len = units.len() * UNIT;
        // SAFETY: the units lie in the region, and nobody uses them yet. A refusal of huge pages only costs speed.
        unsafe {
            let first = start.add(units.start * UNIT).cast();
            let usable = libc::mprotect(first, len, libc::PROT_READ | libc::PROT_WRITE) == 0;
            if usable {
                libc::madvise(first, len, libc::MADV_HUGEPAGE);
            }
            usable
        }
    }

    /// Gives the memory of free units of the region at `start` back; they read as zeros then.
    pub(super) fn forget(start: *mut u8, units: Range<usize>) {
        // SAFETY: nobody uses the units. In a private anonymous mapping this advice has no way to fail.
        unsafe { libc::madvise(start.add(units.start * UNIT).cast(), units.len() * UNIT, libc::MADV_DONTNEED) };
    }
}

/// Nothing is kept elsewhere.
#[cfg(not(target_os = "linux"))]
mod pages {
    use std::ops::Range;

    pub(super) fn set_apart() -> *mut u8 {
        std::ptr::null_mut()
    }

    pub(super) fn make_usable(_start: *mut u8, _units: Range<usize>) -> bool {
        false
    }

    pub(super) fn forget(_start: *mut u8, _units: Range<usize>) {}
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn take(blocks: &mut Blocks, len: usize) -> Free {
        blocks.take(len, |_| true).expect("the region is large")
    }

    /// Gives a block back and tells which units were forgotten.
    fn give_back(blocks: &mut Blocks, block: Free) -> Vec<usize> {
        let forgotten = RefCell::new(Vec::new());
        blocks.give_back(block.first);
        blocks.forget_oldest(|units| forgotten.borrow_mut().extend(units));
        forgotten.into_inner()
    }

    #[test]
    fn freed_block_serves_the_next_of_about_its_size() {
        let mut blocks = Blocks::new();
        let block = take(&mut blocks, 9);
        assert!(block.zero);
        assert!(give_back(&mut blocks, block).is_empty());
        assert_eq!(take(&mut blocks, 8), Free { zero: false, ..block });
        assert_eq!(take(&mut blocks, 8).first, 9, "the other is in use");
    }

    #[test]
    fn far_larger_block_waits_for_its_own_kind() {
        let mut blocks = Blocks::new();
        let block = take(&mut blocks, 9);
        give_back(&mut blocks, block);
        assert_eq!(take(&mut blocks, 7).first, 9);
    }

    #[test]
    fn no_more_memory_is_held_than_was_ever_in_use() {
        let mut blocks = Blocks::new();
        let small = take(&mut blocks, 4);
        assert!(give_back(&mut blocks, small).is_empty());
        let large = take(&mut blocks, 8);
        assert_eq!(give_back(&mut blocks, large), [0, 1, 2, 3], "the one that was free for longer");
        assert_eq!((blocks.in_use, blocks.kept, blocks.most_in_use), (0, 8, 8));
        assert_eq!(take(&mut blocks, 4), small, "its addresses are used again, and are zeros again");
    }

    #[test]
    fn refused_units_stay_free() {
        let mut blocks = Blocks::new();
        assert_eq!(blocks.take(3, |_| false), None);
        assert_eq!(take(&mut blocks, 3).first, 0);
    }
}
