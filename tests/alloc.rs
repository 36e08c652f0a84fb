//! Steady state: a loop of calls into the caller's tensors allocates nothing, and a remembered launch costs under a microsecond.

mod fake;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use fake::{Fake, Kernel};
use tesela::{
    Backend, Buffer, DeviceInfo, Op, Plan, Plans, Result, Runtime, View,
    backend::{Kind, Token},
};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system's own; counting touches no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A device whose kernels do nothing, for whatever operation: what is left is the host's own time.
#[derive(Debug)]
struct Idle(Arc<Fake>, DeviceInfo);

#[derive(Debug)]
struct Nothing(Op);

impl Plan for Nothing {
    fn name(&self) -> &str {
        "idle-any-nothing"
    }
    fn op(&self) -> Op {
        self.0
    }
    fn scratch(&self) -> usize {
        256
    }
    unsafe fn launch(&self, _args: &[View], _scratch: Option<&View>) -> Result<()> {
        Ok(())
    }
}

impl Backend for Idle {
    fn info(&self) -> &DeviceInfo {
        &self.1
    }
    fn token(&self) -> Token {
        self.0.token()
    }
    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        self.0.alloc(bytes)
    }
    fn write(&self, dst: &View, src: &[u8]) -> Result<()> {
        self.0.write(dst, src)
    }
    fn read(&self, src: &View, dst: &mut [u8]) -> Result<()> {
        self.0.read(src, dst)
    }
    fn plan(&self, op: &Op) -> Result<Plans> {
        Ok(vec![Arc::new(Nothing(*op))])
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

fn counted<T>(mut work: impl FnMut() -> Result<T>) -> Result<usize> {
    for _ in 0..3 {
        work()?; // plans, measures, fills the pools
    }
    // The least of a few rounds: the test harness's own thread allocates now and then, our work would in every round.
    let mut least = usize::MAX;
    for _ in 0..3 {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..100 {
            work()?;
        }
        least = least.min(ALLOCATIONS.load(Ordering::Relaxed) - before);
    }
    Ok(least)
}

/// One test, because the counter is the process's.
#[test]
fn steady_state() -> Result<()> {
    // a vendor's kernel, with scratch memory
    let kernel = Kernel { name: "fake-f32-plain", scratch: 1000, ..Kernel::default() };
    let rt = Runtime::builder().device(Fake::open("fake", &[kernel])).only_devices().no_cache().build()?;
    let x = rt.from_f32(&[1, 64], &[1.0; 64])?;
    let w = rt.from_f32(&[64, 64], &[0.5; 64 * 64])?;
    let y = rt.from_f32(&[1, 64], &[0.0; 64])?;
    let allocations = counted(|| {
        rt.matmul(&x, &w).run_into(&y)?;
        rt.matmul(&y, &w).run_into(&x)
    })?;
    assert_eq!(allocations, 0);
    // views of an output from the pool, dropped at every step, allocate nothing either
    assert_eq!(counted(|| rt.matmul(&x, &w).run()?.slice(1, 0..32))?, 0);

    #[cfg(feature = "cpu")]
    {
        use tesela::op::elementwise::Function;
        let rt = Runtime::builder().allow(&["cpu"]).threads(2).no_cache().build()?;
        let f = |shape: &[usize]| rt.zeros(tesela::DType::F32, shape);
        let (x, y, z, weight) = (f(&[4, 1024])?, f(&[4, 1024])?, f(&[4, 1024])?, f(&[1024])?);
        let (q, out, cache, k) = (f(&[1, 4, 8, 64])?, f(&[1, 4, 8, 64])?, f(&[512, 2, 64])?, f(&[4, 2, 64])?);
        let (positions, len) = (rt.from_i32(&[4], &[0, 1, 2, 3])?, rt.from_i32(&[1], &[4])?);
        let (past, rows) = (cache.reshape(&[1, 512, 2, 64])?, q.reshape(&[4, 8, 64])?);
        let allocations = counted(|| {
            rt.elementwise(&x).b(&y).function(Function::Add).run_into(&y)?;
            rt.norm(&x).weight(&weight).residual(&y).sum(&y).run_into(&z)?;
            rt.rope(&rows, &positions).run()?;
            rt.kv_append(&k, &positions, &cache).run()?;
            rt.attention(&q, &past, &past).kv_len(&len).causal(true).run_into(&out)?;
            rt.softmax(&z).run_into(&z)
        })?;
        assert_eq!(allocations, 0);
    }

    // Host time of a remembered launch. (Being a reference the device is trusted without a self-test, which it would fail.)
    let idle = Idle(Fake::open("idle", &[]), DeviceInfo::new("reference", "does nothing", Kind::Reference));
    let rt = Runtime::builder().device(Arc::new(idle)).only_devices().no_cache().build()?;
    let f = |shape: &[usize]| rt.zeros(tesela::DType::F32, shape);
    let i = |shape: &[usize]| rt.zeros(tesela::DType::I32, shape);
    let (x, w, y) = (f(&[1, 64])?, f(&[64, 64])?, f(&[1, 64])?);
    let (q, k, v, out) = (f(&[1, 1, 8, 64])?, f(&[1, 512, 2, 64])?, f(&[1, 512, 2, 64])?, f(&[1, 1, 8, 64])?);
    let (len, sinks) = (i(&[1])?, f(&[8])?);
    let time = |work: &dyn Fn() -> Result<()>| -> Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..1000 {
            let start = Instant::now();
            (0..200).try_for_each(|_| work())?;
            best = best.min(start.elapsed().as_nanos() as f64 / 200.0);
        }
        Ok(best)
    };
    let matmul = time(&|| rt.matmul(&x, &w).run_into(&y))?;
    let attention = time(&|| rt.attention(&q, &k, &v).kv_len(&len).sinks(&sinks).causal(true).run_into(&out))?;
    println!("host time of a remembered launch: matmul {matmul:.0} ns, attention {attention:.0} ns");
    let limit = if cfg!(debug_assertions) { 2000.0 } else { 1000.0 };
    assert!(matmul < limit && attention < limit, "more than {limit} ns");
    Ok(())
}
