//! The vendor's page: what a device must do to be one of Tesela's.
//!
//! A backend is an open device with one in-order queue. It allocates, copies, and turns an [`Op`] into [`Plan`]s, or says
//! why not. Everything it is handed was checked before: operations are valid, views are in bounds, and a launch's operands are right in number, order,
//! size, device and aliasing (see [`Launch`](crate::dispatch::Launch), the only caller of `Plan::launch`).

use std::{
    any::Any,
    fmt::{self, Debug},
    ops::Range,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    op::{Determinism, Op, words},
};

/// An open device with one in-order queue: work runs in the order it was enqueued, from whatever thread.
pub trait Backend: Debug + Send + Sync {
    /// What the device is.
    fn info(&self) -> &DeviceInfo;

    /// Names this open device: its buffers carry the same token.
    fn token(&self) -> Token;

    /// Reserves memory, zeroed, aligned to 64 bytes or more. Fails with `OutOfMemory` and stays usable.
    fn alloc(&self, bytes: usize) -> Result<Buffer>;

    /// Copies host bytes to the device, after the work enqueued before. `src` is as long as `dst`.
    fn write(&self, dst: &View, src: &[u8]) -> Result<()>;

    /// Copies device bytes to the host, waiting for the work enqueued before. `dst` is as long as `src`.
    fn read(&self, src: &View, dst: &mut [u8]) -> Result<()>;

    /// Every kernel that can run the operation, best guess first; never an empty list. `Unsupported` says why there is none. Called with
    /// valid operations only, possibly of kinds this backend has never heard of, which it declines.
    fn plan(&self, op: &Op) -> Result<Plans>;

    /// Waits for all work and reports its faults.
    fn sync(&self) -> Result<()>;

    // The trait grows by defaulted methods only.

    /// Begins to copy device bytes to the host, after the work enqueued before; the caller goes on, and awaits them when it needs them. The
    /// default has read them already when it returns.
    fn read_later(&self, src: &View) -> Result<Reading> {
        let mut bytes = Vec::new();
        let oom = |_| Error::OutOfMemory { device: "host".into(), bytes: src.len(), available: None };
        bytes.try_reserve_exact(src.len()).map_err(oom)?;
        bytes.resize(src.len(), 0);
        self.read(src, &mut bytes)?;
        Ok(Box::pin(std::future::ready(Ok(bytes))))
    }

    /// How long the enqueued work takes on the device. The default measures host time around it.
    fn time(&self, enqueue: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        self.sync()?;
        let start = Instant::now();
        enqueue()?;
        self.sync()?;
        Ok(start.elapsed())
    }

    /// Records what `enqueue` launches, for running it again and again with less work on the host, and runs nothing. `None` where the
    /// device has nothing of the kind; `enqueue` was not called then. What other threads enqueue meanwhile is no part of it.
    fn record(&self, _enqueue: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        Ok(None)
    }

    /// Uses host memory in place, without a copy, where the device can read it (weights mapped from a file). The buffer is never written to.
    fn adopt(&self, _bytes: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Option<Buffer> {
        None
    }

    /// Measures the device's own limits: what fractions of the peak refer to. Takes well under a second.
    fn peaks(&self) -> Result<Peaks> {
        Ok(Peaks::default())
    }

    /// Bytes allocated now and at most, and the limit in force.
    fn memory(&self) -> Memory {
        Memory::default()
    }
}

/// One kernel, sized for one operation: built once, launched often, from any thread.
pub trait Plan: Debug + Send + Sync {
    /// `{device}-{types}-{variant}`, stable across runs.
    fn name(&self) -> &str;

    /// The operation it was made for: a launch of any other is refused.
    fn op(&self) -> Op;

    /// Bytes of scratch memory the caller lends to each launch.
    fn scratch(&self) -> usize {
        0
    }

    /// The reproducibility this kernel promises; at least what the operation asked for.
    fn determinism(&self) -> Determinism {
        Determinism::RunToRun
    }

    /// How the kernel wants a `Role::Weight` operand stored; `None` where it reads it as the operation describes it.
    fn packing(&self, _operand: usize) -> Option<Packing> {
        None
    }

    /// Repacks rows `rows` of a weight operand. `plain` holds just these rows, dense; `packed` is the whole packed weight of
    /// [`Packing::bytes`]. A range begins and ends at multiples of [`Packing::rows`] or at the last row. Finished, or
    /// enqueued, when it returns.
    ///
    /// # Safety
    /// The views are of this device, as long as stated, and do not overlap.
    unsafe fn pack(&self, operand: usize, _rows: Range<usize>, _plain: &View, _packed: &View) -> Result<()> {
        Err(Error::unsupported(self.name(), format_args!("operand {operand} has no packed form")))
    }

    /// Enqueues the kernel. Keeps what it needs of the views alive until the device is done with them.
    ///
    /// # Safety
    /// The views are the operation's operands, in order, present ones only: of this device, each at least as long as its spec's
    /// span (or exactly the packed weight), aligned to their element, outputs apart from everything else save where the operation allows
    /// an alias. `scratch` is given where [`Plan::scratch`] is not 0: at least that long, 64-byte aligned, contents undefined.
    unsafe fn launch(&self, args: &[View], scratch: Option<&View>) -> Result<()>;
}

/// Launches that a device has recorded.
pub trait Replay: Debug + Send + Sync {
    /// Enqueues them all, in their order.
    ///
    /// # Safety
    /// The views that they were recorded with are alive, and what [`Plan::launch`] asks of its caller still holds.
    unsafe fn run(&self) -> Result<()>;
}

/// Bytes on their way from a device to the host.
pub type Reading = Pin<Box<dyn Future<Output = Result<Vec<u8>>> + Send>>;

/// Kernels for one operation, best first.
pub type Plans = Vec<Arc<dyn Plan>>;

/// A named storage order of a weight. All kernels of a family read the same one, so that a weight is kept once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packing {
    /// Its name: two plans with the same name, on the same device, for operands of the same spec, read the same bytes.
    pub name: &'static str,
    /// Size of the whole packed weight: at most 1.05 times the plain one for weights of 64 rows and more.
    pub bytes: usize,
    /// Rows are packed in multiples of this many.
    pub rows: usize,
}

/// Device memory. Freed when the last owner lets go and the device is done with it.
pub type Buffer = Arc<dyn RawBuffer>;

/// What a backend implements for its own kind of memory; it finds its type again by downcasting.
pub trait RawBuffer: Any + Debug + Send + Sync {
    /// Length in bytes.
    fn len(&self) -> usize;

    /// True for a buffer of no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The device it belongs to.
    fn token(&self) -> Token;

    /// True where it must not be written (adopted host memory).
    fn read_only(&self) -> bool {
        false
    }
}

/// A range of a buffer: in bounds by construction.
#[derive(Debug, Clone)]
pub struct View {
    buffer: Buffer,
    offset: usize,
    len: usize,
}

impl View {
    /// The whole buffer.
    pub fn whole(buffer: Buffer) -> View {
        View { offset: 0, len: buffer.len(), buffer }
    }

    /// Part of this view.
    pub fn slice(&self, offset: usize, len: usize) -> Result<View> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(View { buffer: self.buffer.clone(), offset: self.offset + offset, len }),
            _ => Err(Error::invalid(
                format_args!("bytes {offset}..+{len}"),
                format_args!("outside a view of {} bytes", self.len),
            )),
        }
    }

    /// The buffer it is part of.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// First byte within the buffer.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a view of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device it is on.
    pub fn token(&self) -> Token {
        self.buffer.token()
    }

    /// The buffer as a backend's own type, where it is one.
    pub fn downcast<T: RawBuffer>(&self) -> Option<&T> {
        let any: &dyn Any = &*self.buffer;
        any.downcast_ref()
    }

    /// True where the two share bytes.
    pub fn overlaps(&self, other: &View) -> bool {
        Arc::ptr_eq(&self.buffer, &other.buffer)
            && self.len > 0
            && other.len > 0
            && self.offset < other.offset + other.len
            && other.offset < self.offset + self.len
    }
}

/// Names one open device within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(u64);

impl Token {
    /// A new one, for a device being opened.
    #[allow(clippy::new_without_default, reason = "each is different: a default would mislead")]
    pub fn new() -> Token {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Token(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

words! {
    /// What sort of device it is.
    Kind {
        /// The machine's processor.
        Cpu = "cpu",
        /// A graphics card with memory of its own.
        DiscreteGpu = "discrete-gpu",
        /// A graphics unit that shares the processor's memory.
        IntegratedGpu = "integrated-gpu",
        /// A GPU interface run by the processor: for tests, never picked unless asked for.
        SoftwareGpu = "software-gpu",
        /// Anything else a vendor brings.
        Accelerator = "accelerator",
        /// The f64 oracle: slow and right, always last.
        Reference = "reference",
    }
}

/// What a device is.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its backend: `cpu`, `wgpu`, `cuda`, `reference`, or a vendor's word.
    pub backend: String,
    /// The product's name.
    pub name: String,
    /// What sort of device.
    pub kind: Kind,
    /// Stable across runs, and the same for the same hardware behind two interfaces where it can be known (PCI address, UUID).
    pub id: String,
    /// Driver and version, or the instruction set in use.
    pub driver: String,
    /// Bytes of memory; 0 where unknown.
    pub memory: u64,
    /// The largest buffer in bytes.
    pub max_buffer: usize,
    /// Threads it computes with, where that means something; else 0.
    pub threads: usize,
}

impl DeviceInfo {
    /// A description with the rest unknown or unlimited.
    pub fn new(backend: impl Into<String>, name: impl Into<String>, kind: Kind) -> DeviceInfo {
        let (backend, name) = (backend.into(), name.into());
        DeviceInfo {
            id: backend.clone(),
            backend,
            name,
            kind,
            driver: String::new(),
            memory: 0,
            max_buffer: isize::MAX as usize,
            threads: 0,
        }
    }
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.backend, self.name)
    }
}

/// A device's measured limits, 0 where not measured. Rates per second.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Peaks {
    /// f32 multiply-adds, counted as two.
    pub f32_flops: f64,
    /// bf16 (or f16) products accumulated in f32.
    pub half_flops: f64,
    /// 8-bit integer products accumulated in i32.
    pub int8_ops: f64,
    /// Bytes read from memory.
    pub read_bytes: f64,
    /// Bytes copied within memory, reads and writes both counted.
    pub copy_bytes: f64,
}

/// A device's memory as this process uses it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Allocated now.
    pub used: usize,
    /// The most that was ever allocated at once.
    pub peak: usize,
    /// The limit in force; 0 is none.
    pub limit: usize,
}

/// A device that could have been there and is not, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absent {
    /// Which backend looked.
    pub backend: &'static str,
    /// Why there is none, and what would bring one.
    pub why: String,
}

/// What a backend is opened with.
#[non_exhaustive]
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Threads a CPU backend computes with; 0 is the cgroup's quota.
    pub threads: usize,
    /// Bytes a device may allocate; 0 is no limit but the device's own.
    pub memory_limit: usize,
    /// Where a device may keep what its driver compiled, from one process to the next; none: nowhere.
    pub cache_folder: Option<PathBuf>,
}
