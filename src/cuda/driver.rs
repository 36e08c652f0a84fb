//! The driver: found at run time, never linked. And an open device: its stream, memory and copies. All calls into CUDA's
//! own interface are made here.

use std::{
    ffi::c_int,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, LaunchConfig,
    PinnedHostSlice, PushKernelArg, result, sys,
};

use crate::{
    backend::{Buffer, RawBuffer, Token, View},
    error::{Error, Result},
    host::Account,
};

/// CUDA 12.0: what the embedded PTX needs.
const OLDEST_DRIVER: c_int = 12000;

/// Pinned memory through which bytes go to and from the device.
const STAGING: usize = 4 << 20;

/// How many devices there are, or why there is none. The first call loads the driver's library; cudarc panics without one, so
/// nothing of it is called before this has succeeded.
pub(super) fn count() -> Result<usize, String> {
    let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
    let mut missing = String::new();
    // SAFETY: loading NVIDIA's driver runs its initializers, which is what it is for; it stays loaded.
    let load = |name: &&str| unsafe { libloading::Library::new(*name) }.map_err(|e| missing = e.to_string()).ok();
    let Some(library) = names.iter().find_map(load) else {
        return Err(format!("no NVIDIA driver: {missing}"));
    };
    let library = std::mem::ManuallyDrop::new(library); // never unloaded: it keeps threads and exit handlers
    type Init = unsafe extern "C" fn(u32) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int) -> c_int;
    // SAFETY: the names and types are those of cuda.h.
    let symbols = unsafe {
        let init = library.get::<Init>(b"cuInit\0");
        init.and_then(|i| {
            Ok((i, library.get::<Get>(b"cuDriverGetVersion\0")?, library.get::<Get>(b"cuDeviceGetCount\0")?))
        })
    };
    let (init, version, devices) = symbols.map_err(|e| format!("libcuda is no CUDA driver: {e}"))?;
    // SAFETY: cuInit's only argument must be 0.
    let initialized = unsafe { init(0) };
    if initialized != 0 {
        return Err(format!("cuInit failed with {initialized}: {}", init_failure(initialized)));
    }
    let (mut found, mut number) = (0, 0);
    // SAFETY: both write one int.
    let codes = unsafe { (version(&mut found), devices(&mut number)) };
    match codes {
        (0, 0) if found < OLDEST_DRIVER => {
            let (major, minor) = (found / 1000, found % 1000 / 10);
            Err(format!("the driver is for CUDA {major}.{minor}, and 12.0 (R525) is the oldest that serves: update it"))
        }
        (0, 0) if number < 1 => Err("the driver finds no device".into()),
        (0, 0) => Ok(number as usize),
        (a, b) => Err(format!("the driver does not answer: cuDriverGetVersion {a}, cuDeviceGetCount {b}")),
    }
}

/// The driver's CUDA version, as `12.4`.
pub(super) fn version() -> Result<String, DriverError> {
    let mut version = 0;
    // SAFETY: writes one int.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

fn init_failure(code: c_int) -> &'static str {
    match code {
        34 => "the library is the toolkit's stub, not a driver: take the stubs folder off the library path",
        100 => "the driver finds no device (is it hidden by CUDA_VISIBLE_DEVICES?)",
        304 | 800 => "no permission: the process must read and write /dev/nvidia*",
        802 => "the system is not ready (is the fabric manager running?)",
        803 => "library and kernel module are of different versions: reboot, or reinstall the driver",
        804 => "forward compatibility is not supported on this device",
        999 => "unknown error (does /dev/nvidia-uvm exist? try nvidia-modprobe -u)",
        _ => "see CUresult in NVIDIA's documentation",
    }
}

/// Memory on the device, freed in the stream's order.
#[derive(Debug)]
struct CudaBuffer {
    slice: CudaSlice<u8>,
    pointer: sys::CUdeviceptr,
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
        self.account.give_back(self.slice.len());
    }
}

#[derive(Debug, Default)]
struct Staging {
    memory: Option<PinnedHostSlice<u8>>,
    used: usize, // bytes that copies in flight may still read
}

/// An open device with one in-order stream.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) token: Token,
    pub(super) account: Arc<Account>,
    pub(super) context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    staging: Mutex<Staging>,
}

/// A kernel's parameters: one struct by value, of which the driver copies as much as the kernel declares.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Params(pub(super) [u64; Params::WORDS]);

impl Params {
    /// More than any kernel's struct.
    pub(super) const WORDS: usize = 72;
}

// SAFETY: plain words without padding.
unsafe impl DeviceRepr for Params {}

impl Device {
    pub(super) fn open(name: String, context: Arc<CudaContext>, limit: usize) -> Result<Device> {
        let failed = |e: DriverError| Error::device(&name, "opening", e);
        // SAFETY: all work goes to one stream, so no two streams need to be ordered by events.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed)?;
        if context.has_async_alloc() {
            // Freed memory stays in the pool instead of going back to the system at every synchronization.
            let mut threshold = u64::MAX;
            // SAFETY: the device is open, and the attribute is a u64.
            unsafe {
                let pool = result::device::get_default_mem_pool(context.cu_device()).map_err(failed)?;
                let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
                result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()).map_err(failed)?;
            }
        }
        let account = Account::new(name.clone(), limit);
        Ok(Device { name, token: Token::new(), account, context, stream, staging: Mutex::default() })
    }

    pub(super) fn failed(&self, call: &str, bytes: usize, e: DriverError) -> Error {
        match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Error::OutOfMemory { device: self.name.clone(), bytes, available: None }
            }
            _ => Error::device(&self.name, call, e),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Zeroed memory, 256-byte aligned.
    pub(super) fn alloc(&self, bytes: usize) -> Result<Buffer> {
        let padded = bytes.max(1).checked_next_multiple_of(64).unwrap_or(usize::MAX);
        self.account.take(padded)?;
        let slice = self.stream.alloc_zeros::<u8>(padded).map_err(|e| {
            self.account.give_back(padded);
            self.failed("allocating", bytes, e)
        })?;
        let pointer = slice.device_ptr(&self.stream).0;
        Ok(Arc::new(CudaBuffer { slice, pointer, len: bytes, token: self.token, account: self.account.clone() }))
    }

    /// The device's address of a view's first byte.
    pub(super) fn address(&self, view: &View) -> Result<u64> {
        let buffer: Option<&CudaBuffer> = view.downcast();
        let buffer = buffer.filter(|b| b.token == self.token);
        buffer
            .map(|b| b.pointer + view.offset() as u64)
            .ok_or_else(|| Error::invalid("view", "not a buffer of this device"))
    }

    fn pinned<'a>(&self, staging: &'a mut Staging) -> Result<&'a mut PinnedHostSlice<u8>> {
        if staging.memory.is_none() {
            // SAFETY: every byte is written before it is read.
            let memory = unsafe { self.context.alloc_pinned_with_flags::<u8>(STAGING, 0) };
            staging.memory = Some(memory.map_err(|e| self.failed("pinning staging memory", STAGING, e))?);
        }
        staging.memory.as_mut().ok_or_else(|| Error::device(&self.name, "pinning", "no memory"))
    }

    /// Copies host bytes in, in the stream's order; returns as soon as they are in staging memory.
    pub(super) fn write(&self, dst: &View, src: &[u8]) -> Result<()> {
        let to = self.checked(dst, src.len())?;
        let mut staging = self.lock();
        for (i, chunk) in src.chunks(STAGING).enumerate() {
            if staging.used + chunk.len() > STAGING {
                self.drain(&mut staging)?;
            }
            let at = staging.used..staging.used + chunk.len();
            staging.used = at.end;
            let failed = |e| self.failed("writing", src.len(), e);
            let pinned = self.pinned(&mut staging)?.as_mut_slice().map_err(failed)?;
            let from = &mut pinned[at];
            from.copy_from_slice(chunk);
            self.context.bind_to_thread().map_err(failed)?;
            // SAFETY: the view was checked to be as long as `src`; these bytes of the staging memory are not reused before
            // the stream was waited for.
            let copied = unsafe { result::memcpy_htod_async(to + (i * STAGING) as u64, from, self.stream.cu_stream()) };
            copied.map_err(failed)?;
        }
        Ok(())
    }

    /// Copies bytes out, after everything enqueued.
    pub(super) fn read(&self, src: &View, dst: &mut [u8]) -> Result<()> {
        let from = self.checked(src, dst.len())?;
        let mut staging = self.lock();
        self.drain(&mut staging)?;
        let bytes = dst.len();
        for (i, chunk) in dst.chunks_mut(STAGING).enumerate() {
            let failed = |e| self.failed("reading", bytes, e);
            let pinned = self.pinned(&mut staging)?.as_mut_slice().map_err(failed)?;
            let to = &mut pinned[..chunk.len()];
            self.context.bind_to_thread().map_err(failed)?;
            // SAFETY: the view was checked to be as long as `dst`; the staging memory is idle, and waited for below.
            let copied = unsafe { result::memcpy_dtoh_async(to, from + (i * STAGING) as u64, self.stream.cu_stream()) };
            copied.and_then(|()| self.stream.synchronize()).map_err(failed)?;
            chunk.copy_from_slice(to);
        }
        Ok(())
    }

    fn checked(&self, view: &View, len: usize) -> Result<u64> {
        if view.len() != len {
            return Err(Error::invalid("copy", format_args!("a view of {} bytes and {len} on the host", view.len())));
        }
        self.address(view)
    }

    fn drain(&self, staging: &mut Staging) -> Result<()> {
        self.stream.synchronize().map_err(|e| self.failed("waiting", 0, e))?;
        staging.used = 0;
        Ok(())
    }

    /// Waits for everything enqueued.
    pub(super) fn sync(&self) -> Result<()> {
        self.drain(&mut self.lock())
    }

    /// Enqueues a kernel.
    ///
    /// # Safety
    /// The parameters are the kernel's own struct, and every address in them is valid for what the kernel does with it.
    pub(super) unsafe fn launch(
        &self,
        name: &str,
        function: &CudaFunction,
        params: &Params,
        blocks: u32,
        threads: u32,
    ) -> Result<()> {
        let grid = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the caller's promise; memory is freed in this stream's order, so after the kernel.
        let launched = unsafe { self.stream.launch_builder(function).arg(params).launch(grid) };
        launched.map(|_| ()).map_err(|e| self.failed(name, 0, e))
    }
}
