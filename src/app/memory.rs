//! Memory for the messages of all requests together, taken as their bytes come.
//!
//! Messages of streams wait for memory, with what they have of it in their hands. So that they never wait for each other
//! for ever, a stream gets bytes only if afterwards all messages that have begun could still be completed, one after the
//! other, in some order: the banker's algorithm (Dijkstra 1965, EWD 108). A message that says that it is long and never
//! comes takes no memory from others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Memory for messages. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct MessageMemory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    capacity: usize,
    /// What streams may have of it. They wait, so that they would end up with all of it, and others are refused.
    streams: usize,
    max_message: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    held_by_streams: usize,
    next: u64,
    /// Messages of streams that are not complete.
    incomplete: HashMap<u64, Incomplete>,
    /// Those of them that wait for memory.
    waiting: HashMap<u64, Waker>,
}

#[derive(Debug, Clone, Copy)]
struct Incomplete {
    held: usize,
    missing: usize,
}

impl MessageMemory {
    /// Holds messages of up to `max_message` bytes, and `capacity` bytes of them, or one if that is less.
    pub(crate) fn new(capacity: usize, max_message: usize) -> Self {
        let max_message = max_message.min(u32::MAX as usize);
        let capacity = capacity.max(max_message);
        let streams = (capacity - capacity / 4).max(max_message);
        Self(Arc::new(Shared { capacity, streams, max_message, state: Mutex::default() }))
    }

    /// Bytes of messages that are held.
    pub(crate) fn held(&self) -> usize {
        self.0.lock().held
    }

    pub(crate) fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// The length of the longest message.
    pub(crate) fn max_message(&self) -> usize {
        self.0.max_message
    }

    /// Room for a message that is waited for, of up to [`MessageMemory::max_message`] bytes. None of it is taken yet.
    pub(crate) fn room_that_waits(&self, length: usize) -> Room {
        debug_assert!(length <= self.0.max_message);
        let mut state = self.0.lock();
        let id = state.next;
        state.next += 1;
        if length > 0 {
            state.incomplete.insert(id, Incomplete { held: 0, missing: length });
        }
        Room { shared: Arc::clone(&self.0), stream: Some(id), held: 0 }
    }

    /// Room for a message that is refused if there is none; there may be none already.
    pub(crate) fn room_at_once(&self, length: usize) -> Option<Room> {
        self.0.fits_at_once(&self.0.lock(), length).then(|| Room { shared: Arc::clone(&self.0), stream: None, held: 0 })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fits_at_once(&self, state: &State, bytes: usize) -> bool {
        // While streams wait for their part, others keep to theirs.
        let of_others = state.held - state.held_by_streams;
        let others_may = if state.waiting.is_empty() { self.capacity } else { self.capacity - self.streams };
        state.held + bytes <= self.capacity && of_others + bytes <= others_may
    }

    /// Whether all messages of streams could still be completed if this one got `bytes` now.
    fn is_safe(&self, state: &State, id: u64, bytes: usize) -> bool {
        let free = (self.streams - state.held_by_streams).min(self.capacity.saturating_sub(state.held));
        if bytes > free {
            return false;
        }
        // What complete messages hold, and those of other calls, comes back by itself.
        let held: usize = state.incomplete.values().map(|message| message.held).sum();
        let mut free = self.streams - held - bytes;
        let after = |(&other, &message): (&u64, &Incomplete)| match message {
            Incomplete { held, missing } if other == id => Incomplete { held: held + bytes, missing: missing - bytes },
            message => message,
        };
        let mut messages: Vec<Incomplete> = state.incomplete.iter().map(after).collect();
        if messages.iter().all(|message| message.missing <= free) {
            return true;
        }
        // If any order works, this one does.
        messages.sort_unstable_by_key(|message| message.missing);
        messages.iter().all(|message| {
            let completes = message.missing <= free;
            free += message.held;
            completes
        })
    }
}

/// What a message holds of the memory. It goes back when this is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    shared: Arc<Shared>,
    /// Its number if it waits.
    stream: Option<u64>,
    held: usize,
}

impl Room {
    /// Takes memory for the next bytes of a message that does not wait; `false` if there is none.
    pub(crate) fn try_grow(&mut self, bytes: usize) -> bool {
        debug_assert!(self.stream.is_none(), "it does not wait");
        matches!(self.poll_grow(&mut Context::from_waker(Waker::noop()), bytes), Poll::Ready(true))
    }

    /// Takes memory for the next bytes of the message; `false` if there is none and it does not wait.
    pub(crate) fn poll_grow(&mut self, context: &mut Context<'_>, bytes: usize) -> Poll<bool> {
        let mut state = self.shared.lock();
        match self.stream {
            None if !self.shared.fits_at_once(&state, bytes) => return Poll::Ready(false),
            None => {}
            Some(id) if !self.shared.is_safe(&state, id, bytes) => {
                state.waiting.insert(id, context.waker().clone());
                return Poll::Pending;
            }
            Some(id) => {
                state.waiting.remove(&id);
                state.held_by_streams += bytes;
                if let Some(message) = state.incomplete.get_mut(&id) {
                    message.held += bytes;
                    message.missing -= bytes;
                    if message.missing == 0 {
                        state.incomplete.remove(&id);
                        state.wake_all();
                    }
                }
            }
        }
        state.held += bytes;
        drop(state);
        self.held += bytes;
        Poll::Ready(true)
    }
}

impl State {
    fn wake_all(&mut self) {
        self.waiting.drain().for_each(|(_, waker)| waker.wake());
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.held -= self.held;
        if let Some(id) = self.stream {
            state.held_by_streams -= self.held;
            state.incomplete.remove(&id);
            state.waiting.remove(&id);
        }
        state.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;

    fn grow(room: &mut Room, bytes: usize) -> Poll<bool> {
        room.poll_grow(&mut Context::from_waker(Waker::noop()), bytes)
    }

    #[test]
    fn long_messages_of_which_little_comes_leave_the_memory_to_others() {
        let memory = MessageMemory::new(800, 100);
        let mut slow: Vec<Room> = (0..50).map(|_| memory.room_that_waits(100)).collect();
        let mut silent: Vec<Room> = (0..50).map(|_| memory.room_at_once(100).unwrap()).collect();
        for room in slow.iter_mut().chain(&mut silent) {
            assert_eq!(grow(room, 1), Poll::Ready(true));
        }
        assert_eq!(memory.held(), 100);
        let mut quick = memory.room_at_once(100).unwrap();
        assert_eq!(grow(&mut quick, 100), Poll::Ready(true));
        let mut quick = memory.room_that_waits(100);
        assert_eq!(grow(&mut quick, 100), Poll::Ready(true));
    }

    #[test]
    fn streams_leave_a_quarter_and_others_keep_to_it_while_streams_wait() {
        let memory = MessageMemory::new(800, 100);
        let mut streams: Vec<Room> = (0..6).map(|_| memory.room_that_waits(100)).collect();
        assert!(streams.iter_mut().all(|room| grow(room, 100) == Poll::Ready(true)));
        let mut waits = memory.room_that_waits(100);
        assert_eq!(grow(&mut waits, 100), Poll::Pending);
        let mut others: Vec<Room> = (0..2).map(|_| memory.room_at_once(100).unwrap()).collect();
        assert!(others.iter_mut().all(|room| grow(room, 100) == Poll::Ready(true)));
        assert!(memory.room_at_once(1).is_none());
        streams.pop();
        assert!(grow(&mut waits, 100) == Poll::Ready(true) && memory.room_at_once(1).is_none());
        drop((streams, waits, others));
        assert_eq!(memory.held(), 0);
    }

    proptest! {
        /// However the bytes of messages come: while some have not come as a whole, one of them gets its next bytes once
        /// those that have are gone.
        #[test]
        fn messages_never_wait_for_each_other_for_ever(
            lengths in prop::collection::vec(1..100usize, 1..20),
            steps in prop::collection::vec((0..20usize, 1..40usize), 0..300),
        ) {
            let memory = MessageMemory::new(160, 100);
            let mut rooms: Vec<Option<(Room, usize)>> =
                lengths.iter().map(|length| Some((memory.room_that_waits(*length), *length))).collect();
            let feed = |rooms: &mut Vec<Option<(Room, usize)>>, index: usize, bytes: usize| {
                let Some((room, missing)) = rooms.get_mut(index).and_then(Option::as_mut) else { return false };
                let bytes = bytes.min(*missing);
                let grew = grow(room, bytes) == Poll::Ready(true);
                if grew {
                    *missing -= bytes;
                    if *missing == 0 {
                        rooms[index] = None;
                    }
                }
                grew
            };
            for (index, bytes) in steps {
                feed(&mut rooms, index, bytes);
            }
            while rooms.iter().any(Option::is_some) {
                let any = (0..lengths.len()).filter(|&index| feed(&mut rooms, index, 7)).count();
                prop_assert!(any > 0, "{rooms:?} wait for each other");
            }
            prop_assert_eq!(memory.held(), 0);
        }
    }
}
