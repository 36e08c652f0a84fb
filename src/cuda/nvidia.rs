//! NVIDIA's driver: found at run time, never linked. All calls into CUDA's own interface are made here.

use std::{
    cell::RefCell,
    ffi::{CString, c_int, c_void},
    fmt::{self, Debug},
    ops::{Deref, Range},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use cudarc::{
    driver::{CudaContext, CudaFunction, CudaGraph, CudaModule, CudaStream, DriverError, PinnedHostSlice, result, sys},
    nvrtc::Ptx,
};

use super::{
    driver::{Addresses, Driver, Failure, Function, Graph, Grid, PERMUTED, Params, TensorMap, Touched},
    module::waiting,
};

/// CUDA 12.0: what the embedded PTX needs.
const OLDEST_DRIVER: c_int = 12000;

/// CUDA 12.3: graphs of launches that begin before the one before has ended.
const OVERLAPS: c_int = 12030;

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

/// The driver's CUDA version, as 12 and 4.
pub(super) fn version() -> Result<(i32, i32), DriverError> {
    let version = number()?;
    Ok((version / 1000, version % 1000 / 10))
}

fn number() -> Result<c_int, DriverError> {
    let mut version = 0;
    // SAFETY: writes one int.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(version)
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

#[derive(Debug, Default)]
struct Staging {
    memory: Option<PinnedHostSlice<u8>>,
    used: usize, // bytes that copies in flight may still read
}

/// A stream, and what the last launch on it writes.
#[derive(Debug)]
struct Stream {
    stream: Arc<CudaStream>,
    written: Mutex<Addresses>,
}

impl Stream {
    fn new(context: &Arc<CudaContext>) -> Result<Arc<Stream>, DriverError> {
        Ok(Arc::new(Stream { stream: context.new_stream()?, written: Mutex::default() }))
    }

    fn written(&self) -> MutexGuard<'_, Addresses> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was enqueued last is no launch of ours: it may write anything.
    fn wrote_anything(&self) {
        *self.written() = std::iter::once(0..u64::MAX).collect();
    }
}

impl Deref for Stream {
    type Target = CudaStream;

    fn deref(&self) -> &CudaStream {
        &self.stream
    }
}

/// A device's context, with one in-order stream.
#[derive(Debug)]
pub(super) struct Nvidia {
    context: Arc<CudaContext>,
    stream: Arc<Stream>,
    pooled: bool,
    /// Whether a launch may begin while the one before it still runs, as far as its kernel says that it can.
    overlaps: bool,
    staging: Mutex<Staging>,
    modules: Mutex<Vec<(&'static str, Arc<CudaModule>)>>,
}

impl From<DriverError> for Failure {
    fn from(e: DriverError) -> Failure {
        match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Failure::OutOfMemory,
            _ => Failure::Other(e.to_string()),
        }
    }
}

impl Nvidia {
    pub(super) fn open(context: Arc<CudaContext>) -> Result<Nvidia, DriverError> {
        // SAFETY: all work goes to one stream, so no two streams need to be ordered by events.
        unsafe { context.disable_event_tracking() };
        let stream = Stream::new(&context)?;
        let overlaps = context.compute_capability()?.0 >= 9 && number()? >= OVERLAPS;
        let pooled = context.has_async_alloc();
        if pooled {
            // Freed memory stays in the pool instead of going back to the system at every synchronization.
            let mut threshold = u64::MAX;
            // SAFETY: the device is open, and the attribute is a u64.
            unsafe {
                let pool = result::device::get_default_mem_pool(context.cu_device())?;
                let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
                result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast())?;
            }
        }
        Ok(Nvidia { context, stream, pooled, overlaps, staging: Mutex::default(), modules: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pinned<'a>(&self, staging: &'a mut Staging) -> Result<&'a mut [u8], Failure> {
        if staging.memory.is_none() {
            // SAFETY: every byte is written before it is read.
            staging.memory = Some(unsafe { self.context.alloc_pinned_with_flags::<u8>(STAGING, 0) }?);
        }
        match staging.memory.as_mut() {
            Some(memory) => Ok(memory.as_mut_slice()?),
            None => Err(Failure::Other("no staging memory".into())),
        }
    }

    fn drain(&self, staging: &mut Staging) -> Result<(), Failure> {
        self.stream.synchronize()?;
        staging.used = 0;
        Ok(())
    }
}

impl Driver for Nvidia {
    fn alloc(&self, bytes: usize) -> Result<u64, Failure> {
        self.context.bind_to_thread()?;
        let stream = self.stream.cu_stream();
        // SAFETY: the context is current; the memory is given back by `free`.
        let pointer =
            unsafe { if self.pooled { result::malloc_async(stream, bytes) } else { result::malloc_sync(bytes) } }?;
        // SAFETY: the memory is `bytes` long.
        let zeroed = unsafe { result::memset_d8_async(pointer, 0, bytes, stream) };
        self.stream.wrote_anything();
        if let Err(e) = zeroed {
            self.free(pointer);
            return Err(e.into());
        }
        Ok(pointer)
    }

    fn free(&self, pointer: u64) {
        if self.context.bind_to_thread().is_err() {
            return; // the process is being torn down
        }
        // SAFETY: the pointer came from `alloc` and is given back once; work that uses it was enqueued before. A failure here is
        // one of work enqueued earlier, which the next call reports.
        let _ = unsafe {
            if self.pooled {
                result::free_async(pointer, self.stream.cu_stream())
            } else {
                self.stream.synchronize().and_then(|()| result::free_sync(pointer))
            }
        };
    }

    fn write(&self, to: u64, src: &[u8]) -> Result<(), Failure> {
        let mut staging = self.lock();
        for (i, chunk) in src.chunks(STAGING).enumerate() {
            if staging.used + chunk.len() > STAGING {
                self.drain(&mut staging)?;
            }
            let at = staging.used..staging.used + chunk.len();
            staging.used = at.end;
            let from = &mut self.pinned(&mut staging)?[at];
            from.copy_from_slice(chunk);
            self.context.bind_to_thread()?;
            // SAFETY: the caller's memory is as long as `src`; these bytes of the staging memory are not reused before the
            // stream was waited for.
            unsafe { result::memcpy_htod_async(to + (i * STAGING) as u64, from, self.stream.cu_stream()) }?;
        }
        self.stream.wrote_anything();
        Ok(())
    }

    fn read(&self, from: u64, dst: &mut [u8]) -> Result<(), Failure> {
        let mut staging = self.lock();
        self.drain(&mut staging)?;
        for (i, chunk) in dst.chunks_mut(STAGING).enumerate() {
            let to = &mut self.pinned(&mut staging)?[..chunk.len()];
            self.context.bind_to_thread()?;
            // SAFETY: the caller's memory is as long as `dst`; the staging memory is idle, and waited for below.
            unsafe { result::memcpy_dtoh_async(to, from + (i * STAGING) as u64, self.stream.cu_stream()) }?;
            self.stream.synchronize()?;
            chunk.copy_from_slice(to);
        }
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Failure> {
        self.context.bind_to_thread()?;
        // SAFETY: the caller's memory is `bytes` long at both addresses.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }?;
        self.stream.wrote_anything();
        Ok(())
    }

    fn load(&self, ptx: &'static str, entry: &str) -> Result<Arc<dyn Function>, Failure> {
        // The driver compiles a whole file at once: once for all its kernels.
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match modules.iter().find(|m| std::ptr::eq(m.0, ptx)) {
            Some((_, module)) => module.clone(),
            None => {
                let text = if self.overlaps { waiting(ptx) } else { ptx.into() };
                let loaded = self.context.load_module(Ptx::from_src(&text));
                let module = loaded.map_err(|e| match Failure::from(e) {
                    Failure::Other(why) => Failure::Other(format!("{why}: {}", complaint(&text))),
                    full => full,
                })?;
                modules.push((ptx, module.clone()));
                module
            }
        };
        let function = module.load_function(entry)?;
        let (stream, shared) = (self.stream.clone(), AtomicU32::new(48 << 10));
        Ok(Arc::new(Loaded { function, stream, overlaps: self.overlaps, shared }))
    }

    fn processors(&self) -> usize {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        self.context.attribute(attribute).map_or(1, |n| n.max(1) as usize)
    }

    fn capability(&self) -> (i32, i32) {
        self.context.compute_capability().unwrap_or((8, 0))
    }

    fn cuda(&self) -> (i32, i32) {
        version().unwrap_or((12, 0))
    }

    fn encode(&self, map: &TensorMap, address: u64) -> Result<[u64; 16], Failure> {
        let mut encoded = Encoded([0; 16]);
        let swizzle = match map.columns {
            PERMUTED => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        };
        // SAFETY: the four arrays have as many entries as four dimensions ask, and the map is as long and aligned as the driver's.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut encoded).cast(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
                4,
                address as *mut _,
                map.extents.as_ptr(),
                map.strides.as_ptr(),
                [map.columns, map.rows, 1, 1].as_ptr(),
                [1; 4].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()?;
        Ok(encoded.0)
    }

    fn sync(&self) -> Result<(), Failure> {
        self.drain(&mut self.lock())
    }

    fn record(&self, enqueue: &mut dyn FnMut()) -> Result<Option<Box<dyn Graph>>, Failure> {
        // A stream of its own, which this thread's launches go to meanwhile: other threads' go on.
        let stream = Stream::new(&self.context)?;
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        RECORDING.set(Some(stream.clone()));
        enqueue();
        RECORDING.set(None);
        let graph = stream.stream.end_capture(sys::CUgraphInstantiate_flags(0))?;
        let graph = graph.ok_or_else(|| Failure::Other("nothing was recorded".into()))?;
        Ok(Some(Box::new(Recorded { graph: Mutex::new(graph), stream: self.stream.clone() })))
    }

    fn time(&self, enqueue: &mut dyn FnMut()) -> Result<Duration, Failure> {
        let event = || self.context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        let (start, end) = (event()?, event()?);
        start.record(&self.stream)?;
        enqueue();
        end.record(&self.stream)?;
        Ok(Duration::from_secs_f64(f64::from(start.elapsed_ms(&end)?) * 1e-3))
    }
}

/// What the driver's compiler says of a text that did not load; the context is current.
fn complaint(text: &str) -> String {
    let mut log = vec![0u8; 4096];
    let Ok(text) = CString::new(text) else { return "a zero byte in the text".into() };
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(log.len() - 1)];
    let mut module = std::ptr::null_mut();
    // SAFETY: the text ends in a zero; two options with their values: a buffer that lives, and fewer bytes than it has.
    let code = unsafe {
        sys::cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
    };
    if code == sys::CUresult::CUDA_SUCCESS {
        // SAFETY: just loaded, and nothing of it is in use.
        let _ = unsafe { sys::cuModuleUnload(module) };
    }
    let said = String::from_utf8_lossy(&log);
    let said = said.trim_end_matches('\0').trim();
    if said.is_empty() { "the driver says no more".into() } else { said.replace('\n', "; ") }
}

/// A tensor map, aligned as the driver writes it.
#[repr(align(64))]
struct Encoded([u64; 16]);

#[derive(Debug)]
struct Loaded {
    function: CudaFunction,
    stream: Arc<Stream>,
    overlaps: bool,
    shared: AtomicU32, // bytes it may be launched with
}

impl Function for Loaded {
    unsafe fn launch(&self, params: &Params, grid: Grid, touched: &Touched) -> Result<(), Failure> {
        if grid.shared > self.shared.load(Ordering::Relaxed) {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            self.function.set_attribute(attribute, grid.shared as i32)?;
            self.shared.fetch_max(grid.shared, Ordering::Relaxed);
        }
        let recording = RECORDING.with_borrow(Clone::clone);
        let stream = recording.as_ref().unwrap_or(&self.stream);
        stream.context().bind_to_thread()?;
        // SAFETY: both are plain data, whose zero is valid.
        let (mut attributes, mut config) =
            unsafe { (std::mem::zeroed::<[sys::CUlaunchAttribute; 2]>(), std::mem::zeroed::<sys::CUlaunchConfig>()) };
        let mut count = 0;
        if grid.cluster > 1 {
            attributes[0].id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attributes[0].value.clusterDim =
                sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: grid.cluster, y: 1, z: 1 };
            count += 1;
        }
        // Every kernel lets the next one begin once those before it are done: only the last launch can still be writing.
        let mut written = stream.written();
        let meets = |a: &Range<u64>| written.iter().any(|b| a.start < b.end && b.start < a.end);
        if self.overlaps && !touched.early.iter().any(meets) {
            attributes[count].id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[count].value.programmaticStreamSerializationAllowed = 1;
            count += 1;
        }
        written.clone_from(&touched.written);
        (config.gridDimX, config.gridDimY, config.gridDimZ) = (grid.blocks, 1, 1);
        (config.blockDimX, config.blockDimY, config.blockDimZ) = (grid.threads, 1, 1);
        (config.sharedMemBytes, config.hStream) = (grid.shared, stream.cu_stream());
        (config.attrs, config.numAttrs) = (attributes.as_mut_ptr(), count as u32);
        // SAFETY: the caller's promise; the parameters are one struct; memory is freed in this stream's order, so after the kernel.
        unsafe {
            let mut args = [(&raw const *params).cast_mut().cast()];
            sys::cuLaunchKernelEx(&config, self.function.cu_function(), args.as_mut_ptr(), std::ptr::null_mut())
        }
        .result()?;
        Ok(())
    }
}

thread_local! {
    /// Where this thread's launches go while they are recorded.
    static RECORDING: RefCell<Option<Arc<Stream>>> = const { RefCell::new(None) };
}

struct Recorded {
    graph: Mutex<CudaGraph>,
    stream: Arc<Stream>,
}

// SAFETY: a graph may be used from any thread, by one at a time: the lock sees to that.
unsafe impl Send for Recorded {}
// SAFETY: as above.
unsafe impl Sync for Recorded {}

impl Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorded")
    }
}

impl Graph for Recorded {
    unsafe fn launch(&self) -> Result<(), Failure> {
        let graph = self.graph.lock().unwrap_or_else(PoisonError::into_inner);
        self.stream.context().bind_to_thread()?;
        // SAFETY: both are open; the caller's promise covers the kernels' addresses.
        unsafe { result::graph::launch(graph.cu_graph_exec(), self.stream.cu_stream()) }?;
        self.stream.wrote_anything();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only where there is a GPU: `tools/gpu` runs it.
    #[test]
    #[ignore = "needs a GPU"]
    fn the_driver_says_what_is_wrong_with_a_module() {
        assert!(count().unwrap() > 0);
        let device = Nvidia::open(CudaContext::new(0).unwrap()).unwrap();
        let text =
            ".version 8.0\n.target sm_75\n.address_size 64\n.visible .entry k()\n{\nnonsense.u32 %r1;\nret;\n}\n";
        let why = format!("{:?}", device.load(text, "k").unwrap_err());
        assert!(why.contains("nonsense"), "{why}");
    }
}
