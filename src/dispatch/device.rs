//! A device as the dispatcher keeps it: open, with its pool of buffers.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use super::pool::Pool;
use crate::{
    backend::{Backend, DeviceInfo, Kind, Memory, Peaks, Token, View},
    error::Result,
};

/// One of a runtime's devices. Cheap to clone.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    index: usize,
    backend: Arc<dyn Backend>,
    pool: Pool,
    peaks: OnceLock<Peaks>,
    last_resort: bool,
}

impl Device {
    /// `named`: the caller asked for this very device, so that it is more than a last resort whatever its kind.
    pub(crate) fn new(index: usize, backend: Arc<dyn Backend>, named: bool) -> Device {
        let last_resort = !named && matches!(backend.info().kind, Kind::SoftwareGpu | Kind::Reference);
        Device(Arc::new(Inner { index, backend, pool: Pool::default(), peaks: OnceLock::new(), last_resort }))
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        self.0.backend.info()
    }

    /// The open backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.0.backend
    }

    /// Bytes in use, at most, and the limit.
    pub fn memory(&self) -> Memory {
        self.0.backend.memory()
    }

    /// Waits for all work enqueued on it and reports its faults.
    pub fn sync(&self) -> Result<()> {
        self.0.backend.sync()
    }

    /// True where nothing runs on it unless no other device can: a GPU in software, the reference.
    pub fn is_last_resort(&self) -> bool {
        self.0.last_resort
    }

    /// Gives pooled memory that nobody uses back to the device.
    pub fn trim(&self) {
        self.0.pool.release();
    }

    /// Its measured limits, measured once per process; zeros where it cannot tell.
    pub fn peaks(&self) -> Peaks {
        *self.0.peaks.get_or_init(|| self.0.backend.peaks().unwrap_or_default())
    }

    pub(crate) fn index(&self) -> usize {
        self.0.index
    }

    pub(crate) fn token(&self) -> Token {
        self.0.backend.token()
    }

    /// Memory of undefined contents that returns to the pool when the last owner lets go.
    pub(crate) fn pooled(&self, bytes: usize) -> Result<View> {
        View::whole(self.0.pool.take(&*self.0.backend, bytes)?).slice(0, bytes)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.info().id).finish()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.info(), f)
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        self.token() == other.token()
    }
}

impl Eq for Device {}
