//! Memory for outputs and scratch, used again once nobody else holds it.

use std::sync::{Arc, Mutex, MutexGuard};

use rustc_hash::FxHashMap;

use crate::{
    backend::{Backend, Buffer},
    error::{Error, Result},
};

/// One device's buffers, on shelves by size. A buffer is free when the pool is its only owner: the device's queue runs in
/// order, so work enqueued later may reuse memory that earlier work still reads.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Shelves>);

#[derive(Debug, Default)]
struct Shelves {
    by_size: FxHashMap<usize, Vec<Pooled>>,
    requests: u64,
}

#[derive(Debug)]
struct Pooled {
    buffer: Buffer,
    last: u64,
}

/// A free buffer that this many requests passed over is given back when the pool next grows.
const STALE: u64 = 4096;

impl Pool {
    /// A buffer of at least `bytes`, contents undefined.
    pub(crate) fn take(&self, device: &dyn Backend, bytes: usize) -> Result<Buffer> {
        let size = rounded(bytes).min(device.info().max_buffer).max(bytes);
        let mut shelves = self.lock();
        shelves.requests += 1;
        let now = shelves.requests;
        if let Some(shelf) = shelves.by_size.get_mut(&size)
            && let Some(free) = shelf.iter_mut().find(|p| Arc::strong_count(&p.buffer) == 1)
        {
            free.last = now;
            return Ok(free.buffer.clone());
        }
        shelves.release(|p| now - p.last > STALE);
        let buffer = match device.alloc(size) {
            Err(Error::OutOfMemory { .. }) => {
                shelves.release(|_| true);
                device.sync()?;
                device.alloc(size)?
            }
            other => other?,
        };
        shelves.by_size.entry(size).or_default().push(Pooled { buffer: buffer.clone(), last: now });
        Ok(buffer)
    }

    /// Gives every free buffer back.
    pub(crate) fn release(&self) {
        self.lock().release(|_| true);
    }

    fn lock(&self) -> MutexGuard<'_, Shelves> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Shelves {
    fn release(&mut self, which: impl Fn(&Pooled) -> bool) {
        for shelf in self.by_size.values_mut() {
            shelf.retain(|p| Arc::strong_count(&p.buffer) > 1 || !which(p));
        }
    }
}

/// Eight sizes to a doubling, so that nearly equal requests share a shelf and at most an eighth is wasted.
fn rounded(bytes: usize) -> usize {
    let step = (bytes.max(1).checked_next_power_of_two().unwrap_or(bytes) / 16).max(64);
    bytes.max(1).checked_next_multiple_of(step).unwrap_or(bytes)
}
