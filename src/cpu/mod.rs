//! The processor as a device: SIMD kernels on a pool of threads, over host memory.
//!
//! How an op file is written (`cpu/norm.rs` for op/norm.rs, and one line in `plans` below):
//!
//! ```text
//! pub(super) fn plan(device: &Arc<Device>, op: &Norm) -> Result<Plans> {
//!     let op = *op;
//!     // Names its kernel, and the feature bits it honours: anything else is declined.
//!     let kernel = Kernel::new(device, op, format_args!("norm-{}", op.x.dtype()), Features::BIAS | Features::STRIDED)?;
//!     kernel.scratch(bytes).plan(move |args: &Args, pool: &mut Pool| {
//!         let (x, out) = (args.of("x"), args.of("out"));
//!         // One task per row or tile: split by shape, never by the number of threads.
//!         pool.run(x.rows(), |row, thread| {
//!             // SAFETY: why the pointers are good.
//!             simd!(args.isa, s => unsafe { one_row(s, x.at(row, 0), out.at(row, 0), n) })
//!         });
//!     })
//! }
//! ```
//!
//! `simd::math` has the functions, `simd::row` reads and writes runs of any float type and stride through an f32 buffer (see
//! `elementwise.rs`), `simd::Element` loads and stores vectors of a float type directly. A launch allocates nothing: scratch memory is
//! declared with `scratch` (`thread` picks a thread's part of it).

mod attention;
mod chain;
mod conv;
mod conv1d;
mod convert;
mod decode;
mod elementwise;
mod encode;
mod gather;
mod grouped_matmul;
mod kernel;
mod kv_append;
#[cfg(all(test, feature = "conformance"))]
mod larger_tests;
mod linear_attention;
mod machine;
mod matmul;
#[cfg(all(test, feature = "conformance"))]
mod memory_tests;
mod norm;
mod peaks;
mod pool;
mod product;
mod reduce;
mod rope;
mod row;
mod sample;
mod scatter;
mod segment;
mod selective_scan;
mod simd;
mod softmax;
mod ssm_scan;
mod top_k;
mod unpack;

use std::sync::{Arc, Mutex, MutexGuard};

use self::{pool::Pool, simd::Isa};
use crate::{
    backend::{Backend, Buffer, DeviceInfo, Kind, Memory, OpenOptions, Peaks, Plans, Token, View},
    error::Result,
    host::{self, Account, HostBuffer},
    op::Op,
};

/// The open processor.
#[derive(Debug)]
pub struct Cpu(Arc<Device>);

impl Cpu {
    /// Opens it with the best instruction set there is (or the lesser one that the environment variable `TESELA_ISA` names:
    /// `scalar`, `avx2`, `avxvnni`, `avx512`, `neon`, `neon-dotprod`, `neon-i8mm`) and, by default, as many threads as the process
    /// may use: its affinity and its cgroup's quota, rounded up.
    pub fn open(options: &OpenOptions) -> Result<Cpu> {
        Ok(Cpu::with_isa(options, Isa::detect()))
    }

    fn with_isa(options: &OpenOptions, isa: Isa) -> Cpu {
        let pool = Pool::new(if options.threads == 0 { machine::processors() } else { options.threads });
        let name = machine::name();
        let mut info = DeviceInfo::new("cpu", name.clone(), Kind::Cpu);
        info.id = format!("cpu:{name}");
        info.driver = isa.name().into();
        info.memory = machine::memory();
        info.threads = pool.threads();
        let account = Account::new("cpu", options.memory_limit);
        Cpu(Arc::new(Device { info, token: Token::new(), isa, queue: Mutex::new(pool), account }))
    }
}

#[derive(Debug)]
struct Device {
    info: DeviceInfo,
    token: Token,
    isa: Isa,
    /// The in-order queue: its lock is held while anything touches the device's memory, and lends the threads.
    queue: Mutex<Pool>,
    account: Arc<Account>,
}

impl Device {
    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Every kernel for an operation, by its op file.
fn plans(device: &Arc<Device>, op: &Op) -> Result<Plans> {
    match op {
        Op::Attention(op) => attention::plan(device, op),
        Op::Matmul(op) => matmul::plan(device, op),
        Op::GroupedMatmul(op) => grouped_matmul::plan(device, op),
        Op::Gather(op) => gather::plan(device, op),
        Op::Conv1d(op) => conv1d::plan(device, op),
        Op::Conv(op) => conv::plan(device, op),
        Op::Convert(op) => convert::plan(device, op),
        Op::Elementwise(op) => elementwise::plan(device, op),
        Op::KvAppend(op) => kv_append::plan(device, op),
        Op::LinearAttention(op) => linear_attention::plan(device, op),
        Op::Norm(op) => norm::plan(device, op),
        Op::Rope(op) => rope::plan(device, op),
        Op::SelectiveScan(op) => selective_scan::plan(device, op),
        Op::SsmScan(op) => ssm_scan::plan(device, op),
        Op::Softmax(op) => softmax::plan(device, op),
        Op::Reduce(op) => reduce::plan(device, op),
        Op::TopK(op) => top_k::plan(device, op),
        Op::Sample(op) => sample::plan(device, op),
        Op::Scatter(op) => scatter::plan(device, op),
        Op::Segment(op) => segment::plan(device, op),
    }
}

impl Backend for Cpu {
    fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    fn token(&self) -> Token {
        self.0.token
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        HostBuffer::alloc(bytes, self.0.token, &self.0.account)
    }

    fn write(&self, dst: &View, src: &[u8]) -> Result<()> {
        let _queue = self.0.lock();
        host::write(dst, src, self.0.token)
    }

    fn read(&self, src: &View, dst: &mut [u8]) -> Result<()> {
        let _queue = self.0.lock();
        host::read(src, dst, self.0.token)
    }

    fn plan(&self, op: &Op) -> Result<Plans> {
        op.validate()?;
        plans(&self.0, op)
    }

    fn sync(&self) -> Result<()> {
        drop(self.0.lock()); // whoever launched holds it until the work is done
        Ok(())
    }

    fn adopt(&self, bytes: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Option<Buffer> {
        HostBuffer::adopt(bytes, self.0.token)
    }

    fn peaks(&self) -> Result<Peaks> {
        let bytes = peaks::stream();
        // For a moment, and no tensor's: it does not count.
        let buffer = View::whole(HostBuffer::alloc(bytes, self.0.token, &Account::new("cpu", 0))?);
        let pointer = host::pointer(&buffer, self.0.token)?.cast::<f32>();
        // SAFETY: the buffer is as long, aligned, zeroed, and nobody else's.
        let stream = unsafe { std::slice::from_raw_parts_mut(pointer, bytes / 4) };
        Ok(peaks::measure(self.0.isa, &mut self.0.lock(), stream))
    }

    fn memory(&self) -> Memory {
        self.0.account.memory()
    }
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::conformance::{self, Case, Verdict};
    use crate::op::Fill;

    /// Every case with every instruction set, and with one thread and with more: the variable `TESELA_CASE` picks some. Dot products
    /// of bf16 are nothing to the others.
    #[test]
    fn conformance_cpu() {
        for isa in Isa::available() {
            for threads in [1, 2] {
                let device = Cpu::with_isa(&OpenOptions { threads, ..OpenOptions::default() }, isa);
                let asked = conformance::Options::from_env().filter;
                let filters = match isa.pairs() && asked.is_none() {
                    true => vec![Some("x=bf16 w=bf16".into()), Some("gather table=bf16".into())],
                    false => vec![asked],
                };
                for filter in filters {
                    let options = conformance::Options { filter, ..conformance::Options::default() };
                    let report = conformance::check_with(&device, &options, &mut |_, _| {});
                    println!("{} with {threads} threads\n{}", isa.name(), report.to_markdown());
                    report.assert();
                }
            }
        }
    }

    /// Each operation's every second case, of products every eighth, with the best instruction set alone: for processors that are imitated,
    /// where the test above takes hours.
    #[test]
    fn some_cases() {
        let device = Cpu::with_isa(&OpenOptions { threads: 2, ..OpenOptions::default() }, Isa::detect());
        let product = |op: &Op| ["matmul", "grouped_matmul", "conv"].contains(&op.name());
        let between = Op::cases().into_iter().filter(|op| !product(op)).step_by(2);
        let mut ran = [0, 0];
        for op in between.chain(Op::cases().into_iter().filter(product).step_by(8)) {
            let ran = &mut ran[usize::from(product(&op))];
            for outcome in conformance::check_case(&device, &Case { op, fill: Fill::Normal, seed: 1 }) {
                assert_ne!(outcome.verdict, Verdict::Failed, "{} {}: {}", outcome.kernel, outcome.id, outcome.why);
                *ran += usize::from(outcome.verdict == Verdict::Passed);
            }
        }
        assert!(ran[0] > 300 && ran[1] > 50, "{ran:?}");
    }
}
