//! Aligned buffers, and the plan of which activation lives where in the arena.

use super::Shape;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of small buffers: a cache line, an AVX-512 vector.
const CACHE_LINE: usize = 64;
/// Buffers of at least this size are aligned to it, and the system is asked to back them with huge pages: weights are
/// streamed from memory, and with 4 KiB pages address translation costs more than the reading.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes of a processor's second-level cache, or 0 if the system doesn't say.
pub(crate) fn second_level_cache() -> usize {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sysconf takes any name.
    let bytes = unsafe { libc::sysconf(libc::_SC_LEVEL2_CACHE_SIZE) };
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let bytes = 0;
    usize::try_from(bytes).unwrap_or(0)
}

/// Zeroed floats at a cache-line boundary.
pub(crate) struct Buffer {
    data: NonNull<f32>,
    len: usize,
}

// SAFETY: Buffer owns its memory like a Box<[f32]>.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared access is read only.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self { data: NonNull::dangling(), len };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero.
        let data = unsafe { if layout.align() == HUGE_PAGE { huge::map(layout) } else { alloc_zeroed(layout) } };
        let Some(data) = NonNull::new(data.cast::<f32>()) else { handle_alloc_error(layout) };
        Self { data, len }
    }

    fn layout(len: usize) -> Layout {
        let bytes = len * size_of::<f32>();
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { CACHE_LINE };
        Layout::from_size_align(bytes, align).expect("a buffer is smaller than the address space")
    }

    pub(crate) fn shared(&mut self) -> SharedMut {
        SharedMut(self.data.as_ptr())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len > 0 {
            let (data, layout) = (self.data.as_ptr().cast(), Self::layout(self.len));
            // SAFETY: allocated in `zeroed` with the same layout in the same way.
            unsafe { if layout.align() == HUGE_PAGE { huge::unmap(data, layout) } else { dealloc(data, layout) } }
        }
    }
}

/// Zeroed memory aligned to [`HUGE_PAGE`].
///
/// Mapped, not allocated: `alloc_zeroed` writes zeros to memory it has to align, and pages touched before the system
/// was advised to make them huge stay small.
#[cfg(target_os = "linux")]
mod huge {
    use super::{HUGE_PAGE, Layout};

    /// A multiple of the page size of every Linux.
    const PAGE: usize = 64 << 10;

    /// Null where the system has no memory.
    ///
    /// # Safety
    /// None; `unsafe` as its counterpart, `alloc_zeroed`, is.
    pub(super) unsafe fn map(layout: Layout) -> *mut u8 {
        let used = layout.size().next_multiple_of(PAGE);
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let mapped = libc::mmap(std::ptr::null_mut(), used + HUGE_PAGE, access, kind, -1, 0).cast::<u8>();
        if mapped.cast() == libc::MAP_FAILED {
            return std::ptr::null_mut();
        }
        // What alignment leaves over is given back: whole pages, since the mapping begins at one.
        let before = mapped.align_offset(HUGE_PAGE);
        let data = mapped.add(before);
        if before > 0 {
            libc::munmap(mapped.cast(), before);
        }
        libc::munmap(data.add(used).cast(), HUGE_PAGE - before);
        // A refusal only costs speed.
        libc::madvise(data.cast(), used, libc::MADV_HUGEPAGE);
        data
    }

    /// # Safety
    /// `data` came from [`map`] with the same layout and is not used again.
    pub(super) unsafe fn unmap(data: *mut u8, layout: Layout) {
        libc::munmap(data.cast(), layout.size().next_multiple_of(PAGE));
    }
}

/// Zeroed memory aligned to [`HUGE_PAGE`].
#[cfg(not(target_os = "linux"))]
mod huge {
    pub(super) use std::alloc::{alloc_zeroed as map, dealloc as unmap};
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` initialised floats, or a dangling aligned pointer with length 0.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

/// The start of a buffer that the threads of a team write together.
///
/// Whoever dereferences it proves that its part is inside the buffer and that no other thread uses that part between
/// two barriers.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut(*mut f32);

// SAFETY: only an address; see the type's documentation for who may use it.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub(crate) fn new(data: &mut [f32]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// The address `offset` floats in.
    ///
    /// # Safety
    /// `offset` is inside the buffer.
    #[inline(always)]
    pub(crate) unsafe fn at(self, offset: usize) -> *mut f32 {
        self.0.add(offset)
    }
}

/// Where one activation lives in the arena. Made by [`Arena`] alone, which guarantees that `max_batch` clips of
/// `clip_len` floats from `offset` on are inside the arena and that activations alive at the same time do not overlap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) offset: usize,
    /// Floats from one clip to the next.
    pub(crate) clip_len: usize,
    pub(crate) shape: Shape,
}

/// First-fit assignment of activations to one buffer.
pub(crate) struct Arena {
    max_batch: usize,
    live: Vec<(usize, usize)>,
    len: usize,
}

impl Arena {
    pub(crate) fn new(max_batch: usize) -> Self {
        Self { max_batch, live: Vec::new(), len: 0 }
    }

    /// A slot for `max_batch` clips of `clip_len >= shape.stored_len()` floats, or of the shape alone.
    pub(crate) fn allocate(&mut self, shape: Shape, clip_len: usize) -> Slot {
        // Whole pages, one apart: buffers that start at the same offset of a page would compete for cache sets.
        let need = (self.max_batch * clip_len).next_multiple_of(1024) + 1024 + 16 * (self.live.len() + 1);
        self.live.sort_unstable();
        let mut offset = 0;
        for &(begin, len) in &self.live {
            if begin >= offset + need {
                break;
            }
            offset = offset.max(begin + len);
        }
        self.live.push((offset, need));
        self.len = self.len.max(offset + need);
        Slot { offset, clip_len, shape }
    }

    pub(crate) fn free(&mut self, slot: &Slot) {
        self.live.retain(|&(begin, _)| begin != slot.offset);
    }

    /// Floats the arena needs.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_slots_do_not_overlap_and_freed_room_is_reused() {
        let shape = Shape { c: 16, t: 1, h: 4, w: 4 };
        let mut arena = Arena::new(2);
        let a = arena.allocate(shape, 8 * shape.stored_len());
        let b = arena.allocate(shape, shape.stored_len());
        assert!(b.offset >= a.offset + 2 * a.clip_len);
        arena.free(&a);
        let c = arena.allocate(Shape { t: 9, ..shape }, 9 * shape.stored_len());
        assert!(c.offset >= b.offset + 2 * b.clip_len);
        let d = arena.allocate(shape, shape.stored_len() / 2);
        assert_eq!(d.offset, 0);
        assert!(arena.len() >= c.offset + 2 * c.clip_len);
    }

    #[test]
    fn large_and_small_buffers_are_zeroed_and_aligned() {
        for len in [0, 1, 100, 1 << 20] {
            let buffer = Buffer::zeroed(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|&x| x == 0.0));
            assert!(len == 0 || (buffer.as_ptr() as usize).is_multiple_of(CACHE_LINE));
        }
    }
}
