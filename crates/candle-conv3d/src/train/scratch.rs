//! Buffers that outlive a call. A training step asks for the same sizes again and again, and fresh memory costs a page
//! fault every 4 KB.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Buffers kept at most; more are freed. A step holds two of each layer at its most.
const KEPT: usize = 512;

static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// A borrowed buffer; dropping it gives it back.
pub(crate) struct Scratch {
    buffer: Vec<f32>,
    len: usize,
}

impl Scratch {
    /// `len` floats of any value.
    pub(crate) fn any(len: usize) -> Self {
        let mut buffer = {
            // A panic elsewhere leaves nothing half done here.
            let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
            let fitting = (0..free.len()).filter(|&i| free[i].len() >= len).min_by_key(|&i| free[i].len());
            // A buffer of far more than is asked for had better wait for its own kind.
            fitting.filter(|&i| free[i].len() / 4 <= len).map(|i| free.swap_remove(i)).unwrap_or_default()
        };
        if buffer.len() < len {
            buffer = vec![0.; len];
        }
        Self { buffer, len }
    }

    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut scratch = Self::any(len);
        scratch.fill(0.);
        scratch
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} floats", self.len)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() == KEPT {
            free.remove(0);
        }
        free.push(std::mem::take(&mut self.buffer));
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}
