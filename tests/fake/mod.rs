//! A made-up vendor's device for tests: f32 matrix products by kernels that can be told to be slow, wrong or packed.

use std::{
    cell::UnsafeCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tesela::{
    Backend, Buffer, DType, DeviceInfo, Error, Op, Plan, Plans, Result, View,
    backend::{Kind, Memory, Packing, RawBuffer, Token},
    op::{Features, Matmul},
};

/// What a kernel of the fake does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel {
    pub name: &'static str,
    pub wrong: bool,
    pub delay: Duration,
    /// Reads weights of this name: every element's bytes reversed.
    pub packed: Option<&'static str>,
    pub scratch: usize,
}

/// The open device.
#[derive(Debug)]
pub struct Fake {
    info: DeviceInfo,
    token: Token,
    kernels: Vec<Kernel>,
    queue: Arc<Mutex<()>>,
    used: Arc<AtomicUsize>,
    peak: AtomicUsize,
    launches: Arc<AtomicUsize>,
    limit: AtomicUsize,
}

impl Fake {
    pub fn open(id: &str, kernels: &[Kernel]) -> Arc<Fake> {
        let mut info = DeviceInfo::new(id, "a fake", Kind::Accelerator);
        info.driver = "1".into();
        let kernels = kernels.to_vec();
        let (token, queue, used, launches) = (Token::new(), Arc::default(), Arc::default(), Arc::default());
        Arc::new(Fake { info, token, kernels, queue, used, peak: 0.into(), launches, limit: usize::MAX.into() })
    }

    /// Lets it allocate this much from now on.
    #[allow(dead_code, reason = "not every test limits")]
    pub fn limit(&self, bytes: usize) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    /// How often any kernel ran.
    #[allow(dead_code, reason = "not every test counts")]
    pub fn launches(&self) -> usize {
        self.launches.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Bytes {
    data: UnsafeCell<Box<[u8]>>,
    len: usize,
    token: Token,
    used: Arc<AtomicUsize>,
}

// SAFETY: the bytes are touched under the device's queue lock only.
unsafe impl Sync for Bytes {}

impl RawBuffer for Bytes {
    fn len(&self) -> usize {
        self.len
    }
    fn token(&self) -> Token {
        self.token
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.used.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// First byte of a view.
fn pointer(view: &View) -> *mut u8 {
    let bytes: &Bytes = view.downcast().expect("one of our buffers");
    // SAFETY: a view lies inside its buffer; the reference made here ends with this statement.
    unsafe { (*bytes.data.get()).as_mut_ptr().add(view.offset()) }
}

impl Backend for Fake {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn token(&self) -> Token {
        self.token
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if used > self.limit.load(Ordering::Relaxed) {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Error::OutOfMemory { device: self.info.id.clone(), bytes, available: None });
        }
        self.peak.fetch_max(used, Ordering::Relaxed);
        let data = UnsafeCell::new(vec![0; bytes].into_boxed_slice());
        Ok(Arc::new(Bytes { data, len: bytes, token: self.token, used: self.used.clone() }))
    }

    fn write(&self, dst: &View, src: &[u8]) -> Result<()> {
        let _queue = self.queue.lock();
        // SAFETY: the view holds `src.len()` bytes, and the queue is locked.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), pointer(dst), src.len()) };
        Ok(())
    }

    fn read(&self, src: &View, dst: &mut [u8]) -> Result<()> {
        let _queue = self.queue.lock();
        // SAFETY: the view holds `dst.len()` bytes, and the queue is locked.
        unsafe { std::ptr::copy_nonoverlapping(pointer(src), dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    fn plan(&self, op: &Op) -> Result<Plans> {
        let Op::Matmul(matmul) = op else { return Err(Error::unsupported(op, "the fake multiplies matrices")) };
        op.require(Features::STRIDED | Features::DETERMINISM)?; // and promises nothing, wrongly
        if op.operands().iter().any(|o| o.spec.dtype() != DType::F32) {
            return Err(Error::unsupported(op, "the fake knows f32"));
        }
        let plan = |kernel: &Kernel| -> Arc<dyn Plan> {
            Arc::new(Product {
                op: *matmul,
                kernel: *kernel,
                queue: self.queue.clone(),
                launches: self.launches.clone(),
            })
        };
        Ok(self.kernels.iter().map(plan).collect())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn memory(&self) -> Memory {
        let (used, peak) = (self.used.load(Ordering::Relaxed), self.peak.load(Ordering::Relaxed));
        Memory { used, peak, limit: 0 }
    }
}

#[derive(Debug)]
struct Product {
    op: Matmul,
    kernel: Kernel,
    queue: Arc<Mutex<()>>,
    launches: Arc<AtomicUsize>,
}

impl Plan for Product {
    fn name(&self) -> &str {
        self.kernel.name
    }

    fn op(&self) -> Op {
        self.op.into()
    }

    fn scratch(&self) -> usize {
        self.kernel.scratch
    }

    fn packing(&self, operand: usize) -> Option<Packing> {
        let name = self.kernel.packed.filter(|_| operand == 1)?;
        Some(Packing { name, bytes: self.op.w.bytes(), rows: 4 })
    }

    unsafe fn pack(&self, _operand: usize, rows: std::ops::Range<usize>, plain: &View, packed: &View) -> Result<()> {
        let _queue = self.queue.lock();
        let at = rows.start * self.op.w.dim(0) * 4;
        for i in 0..plain.len() {
            // SAFETY: byte `i ^ 3` stays inside the plain rows' whole elements, which lie at `at` in the packed weight.
            unsafe { *pointer(packed).add(at + (i ^ 3)) = *pointer(plain).add(i) };
        }
        Ok(())
    }

    unsafe fn launch(&self, args: &[View], _scratch: Option<&View>) -> Result<()> {
        let _queue = self.queue.lock();
        let start = Instant::now();
        self.launches.fetch_add(1, Ordering::Relaxed);
        let (_, m, n, k) = self.op.dims();
        let at = |s: &tesela::Spec, i: usize, j: usize| (i * s.stride(1) + j * s.stride(0)) * 4;
        let load = |view: &View, at: usize, reversed: bool| {
            // SAFETY: `at` is an element's place inside the operand's span, which the view covers.
            let bytes = unsafe { pointer(view).add(at).cast::<[u8; 4]>().read() };
            if reversed { f32::from_be_bytes(bytes) } else { f32::from_le_bytes(bytes) }
        };
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let product = |p: usize| {
                let w = load(&args[1], at(&self.op.w, j, p), self.kernel.packed.is_some());
                load(&args[0], at(&self.op.x, i, p), false) as f64 * w as f64
            };
            let sum = (0..k).map(product).sum::<f64>() as f32;
            let sum = if self.kernel.wrong { sum + 1.0 } else { sum };
            // SAFETY: as above, for the output.
            unsafe { pointer(&args[2]).add(at(&self.op.out, i, j)).cast::<[u8; 4]>().write(sum.to_le_bytes()) };
        }
        while start.elapsed() < self.kernel.delay {
            std::hint::spin_loop();
        }
        Ok(())
    }
}
