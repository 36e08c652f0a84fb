//! What a device is driven through, and a device opened on it: its memory and copies.

use std::{fmt::Debug, ops::Range, sync::Arc, time::Duration};

use arrayvec::ArrayVec;

use crate::{
    backend::{Buffer, RawBuffer, Replay, Token, View},
    error::{Error, Result},
    host::Account,
    op::MAX_OPERANDS,
};

/// Drives one device with one in-order queue: NVIDIA's driver, or in tests an interpreter of PTX.
pub(super) trait Driver: Debug + Send + Sync {
    /// Zeroed memory, 256-byte aligned.
    fn alloc(&self, bytes: usize) -> Result<u64, Failure>;

    /// Gives memory back, in the queue's order.
    fn free(&self, address: u64);

    /// Copies host bytes in, in the queue's order.
    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Failure>;

    /// Copies bytes out, after everything enqueued.
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Failure>;

    /// Copies bytes on the device, in the queue's order.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Failure>;

    /// A kernel of a PTX file.
    fn load(&self, ptx: &'static str, entry: &str) -> Result<Arc<dyn Function>, Failure>;

    /// A tensor map as kernels take it.
    fn encode(&self, map: &TensorMap, address: u64) -> Result<[u64; 16], Failure>;

    /// Waits for everything enqueued.
    fn sync(&self) -> Result<(), Failure>;

    /// Records the kernels that `enqueue` launches on this thread instead of running them; `None` where there is no such thing.
    fn record(&self, enqueue: &mut dyn FnMut()) -> Result<Option<Box<dyn Graph>>, Failure>;

    /// How long the device takes for what `enqueue` gives it.
    fn time(&self, enqueue: &mut dyn FnMut()) -> Result<Duration, Failure>;

    /// How many multiprocessors the device has.
    fn processors(&self) -> usize;

    /// Compute capability: 9 and 0 are Hopper.
    fn capability(&self) -> (i32, i32);

    /// The CUDA version that the driver is for: it loads PTX as old as that or older.
    fn cuda(&self) -> (i32, i32);
}

/// A loaded kernel.
pub(super) trait Function: Debug + Send + Sync {
    /// Enqueues the kernel.
    ///
    /// # Safety
    /// The parameters are the kernel's own struct, and every address in them is valid for what the kernel does with it; `touched` is true.
    unsafe fn launch(&self, params: &Params, grid: Grid, touched: &Touched) -> Result<(), Failure>;
}

/// Addresses: the operands and scratch memory that a launch has to do with.
pub(super) type Addresses = ArrayVec<Range<u64>, { MAX_OPERANDS + 1 }>;

/// What decides whether a launch may begin while the one before it still runs.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Read before the kernel waits for the launches before it: weights.
    pub(super) early: Addresses,
    pub(super) written: Addresses,
}

/// Recorded kernels.
pub(super) trait Graph: Debug + Send + Sync {
    /// Enqueues them.
    ///
    /// # Safety
    /// Every address in their parameters is still valid.
    unsafe fn launch(&self) -> Result<(), Failure>;
}

/// One-dimensional blocks of one-dimensional threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) blocks: u32,
    pub(super) threads: u32,
    /// Neighbouring blocks that run at once and see each other's shared memory; they divide `blocks`.
    pub(super) cluster: u32,
    /// Bytes of shared memory beyond what the kernel declares.
    pub(super) shared: u32,
}

/// What a kernel copies by: a tensor of 16-bit elements (or of two bytes as one), innermost dimension first, and boxes of it of `columns` by `rows`. Where
/// rows are of 128 bytes, their 16-byte chunks lie in shared memory permuted by the row.
#[derive(Debug, Clone, Copy)]
pub(super) struct TensorMap {
    pub(super) extents: [u64; 4],
    /// Bytes from one to the next along the second dimension and so on.
    pub(super) strides: [u64; 3],
    pub(super) columns: u32,
    pub(super) rows: u32,
}

/// Columns of a box whose rows are of 128 bytes.
pub(super) const PERMUTED: u32 = 64;

/// Why the driver could not.
#[derive(Debug)]
pub(super) enum Failure {
    OutOfMemory,
    Other(String),
}

/// A kernel's parameters: one struct by value, of which the driver copies as much as the kernel declares.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Params(pub(super) [u64; Params::WORDS]);

impl Params {
    /// More than any kernel's struct.
    pub(super) const WORDS: usize = 176;
}

/// Memory on the device, freed in the queue's order.
#[derive(Debug)]
struct CudaBuffer {
    driver: Arc<dyn Driver>,
    pointer: u64,
    padded: usize,
    len: usize,
    token: Token,
    account: Arc<Account>,
}

impl RawBuffer for CudaBuffer {
    fn len(&self) -> usize {
        self.len
    }

    fn token(&self) -> Token {
        self.token
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        self.driver.free(self.pointer);
        self.account.give_back(self.padded);
    }
}

/// An open device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) token: Token,
    pub(super) account: Arc<Account>,
    pub(super) driver: Arc<dyn Driver>,
}

impl Device {
    pub(super) fn new(name: String, driver: Arc<dyn Driver>, limit: usize) -> Device {
        let account = Account::new(name.clone(), limit);
        Device { name, token: Token::new(), account, driver }
    }

    pub(super) fn failed(&self, call: &str, bytes: usize, failure: Failure) -> Error {
        match failure {
            Failure::OutOfMemory => Error::OutOfMemory { device: self.name.clone(), bytes, available: None },
            Failure::Other(why) => Error::device(&self.name, call, why),
        }
    }

    /// Zeroed memory, 256-byte aligned.
    pub(super) fn alloc(&self, bytes: usize) -> Result<Buffer> {
        let padded = bytes.max(1).checked_next_multiple_of(64).unwrap_or(usize::MAX);
        self.account.take(padded)?;
        let pointer = self.driver.alloc(padded).map_err(|e| {
            self.account.give_back(padded);
            self.failed("allocating", bytes, e)
        })?;
        let (driver, account) = (self.driver.clone(), self.account.clone());
        Ok(Arc::new(CudaBuffer { driver, pointer, padded, len: bytes, token: self.token, account }))
    }

    /// The device's address of a view's first byte.
    pub(super) fn address(&self, view: &View) -> Result<u64> {
        let buffer: Option<&CudaBuffer> = view.downcast();
        let buffer = buffer.filter(|b| b.token == self.token);
        buffer
            .map(|b| b.pointer + view.offset() as u64)
            .ok_or_else(|| Error::invalid("view", "not a buffer of this device"))
    }

    /// Copies host bytes in, in the queue's order.
    pub(super) fn write(&self, dst: &View, src: &[u8]) -> Result<()> {
        let to = self.checked(dst, src.len())?;
        self.driver.write(to, src).map_err(|e| self.failed("writing", src.len(), e))
    }

    /// Copies bytes out, after everything enqueued.
    pub(super) fn read(&self, src: &View, dst: &mut [u8]) -> Result<()> {
        let from = self.checked(src, dst.len())?;
        self.driver.read(from, dst).map_err(|e| self.failed("reading", src.len(), e))
    }

    /// Copies bytes on the device, in the queue's order.
    pub(super) fn copy(&self, from: &View, to: &View) -> Result<()> {
        let (bytes, from, to) = (from.len(), self.address(from)?, self.checked(to, from.len())?);
        self.driver.copy(from, to, bytes).map_err(|e| self.failed("copying", bytes, e))
    }

    fn checked(&self, view: &View, len: usize) -> Result<u64> {
        if view.len() != len {
            return Err(Error::invalid("copy", format_args!("a view of {} bytes and {len} on the host", view.len())));
        }
        self.address(view)
    }

    /// Waits for everything enqueued.
    pub(super) fn sync(&self) -> Result<()> {
        self.driver.sync().map_err(|e| self.failed("waiting", 0, e))
    }

    /// Records what `enqueue` launches.
    pub(super) fn record(
        self: &Arc<Device>,
        enqueue: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<Box<dyn Replay>>> {
        let mut enqueued = Ok(());
        let graph = self.driver.record(&mut || enqueued = enqueue());
        enqueued?;
        let graph = graph.map_err(|e| self.failed("recording", 0, e))?;
        Ok(graph.map(|graph| Box::new(Recorded { device: self.clone(), graph }) as Box<dyn Replay>))
    }

    /// How long the device takes for what `enqueue` gives it.
    pub(super) fn time(&self, enqueue: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        let mut enqueued = Ok(());
        let time = self.driver.time(&mut || enqueued = enqueue());
        enqueued?;
        time.map_err(|e| self.failed("timing", 0, e))
    }
}

/// What a device recorded.
#[derive(Debug)]
struct Recorded {
    device: Arc<Device>,
    graph: Box<dyn Graph>,
}

impl Replay for Recorded {
    unsafe fn run(&self) -> Result<()> {
        // SAFETY: the caller keeps the views alive, and with them the addresses.
        unsafe { self.graph.launch() }.map_err(|e| self.device.failed("replaying", 0, e))
    }
}
