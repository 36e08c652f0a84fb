//! The shipped PTX without a GPU: planning, parameters, grids and kernels, run by an interpreter that checks every access.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ptxemu::{Grid, Memory, Module, TensorMap};

use super::{
    Cuda,
    driver::{self, Driver, Failure, Function, Graph, Params},
    module::{KERNELS, waiting},
};
use crate::backend::{DeviceInfo, Kind};

/// Bytes it may hold: what the kit asks beyond must be refused.
const LIMIT: usize = 1 << 28;

/// Memory and an interpreter in place of a device, of some compute capability and with a driver for some CUDA.
#[derive(Debug)]
struct Interpreter(Arc<Shared>, (i32, i32), (i32, i32));

#[derive(Default)]
struct Shared(Mutex<Memory>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for Interpreter {
    fn alloc(&self, bytes: usize) -> Result<u64, Failure> {
        if bytes > LIMIT {
            return Err(Failure::OutOfMemory);
        }
        Ok(self.0.lock().alloc(vec![0; bytes]))
    }

    fn free(&self, address: u64) {
        self.0.lock().free(address);
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Failure> {
        let mut memory = self.0.lock();
        let room = memory.at(to, bytes.len()).ok_or_else(|| Failure::Other("write outside".into()))?;
        room.copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        let mut memory = self.0.lock();
        bytes.copy_from_slice(memory.at(from, bytes.len()).ok_or_else(|| Failure::Other("read outside".into()))?);
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Failure> {
        let mut buffer = vec![0; bytes];
        self.read(from, &mut buffer)?;
        self.write(to, &buffer)
    }

    fn load(&self, ptx: &'static str, entry: &str) -> Result<Arc<dyn Function>, Failure> {
        let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match parsed.iter().find(|p| std::ptr::eq(p.0, ptx)) {
            Some(p) => p.1.clone(),
            None => {
                // The file as it is now, so that a kernel can be tried without compiling the crate anew.
                let name = KERNELS.iter().find(|k| std::ptr::eq(k.1, ptx)).map(|k| format!("kernels/{}.ptx", k.0));
                let file = name.map(|n| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(n));
                let text = file.and_then(|f| std::fs::read_to_string(f).ok());
                let text = waiting(text.as_deref().unwrap_or(ptx));
                let module = Arc::new(Module::new(&text).map_err(Failure::Other)?);
                parsed.push((ptx, module.clone()));
                module
            }
        };
        Ok(Arc::new(Interpreted { module, entry: entry.into(), memory: self.0.clone() }))
    }

    fn encode(&self, map: &driver::TensorMap, address: u64) -> Result<[u64; 16], Failure> {
        let &driver::TensorMap { extents, strides, columns, rows } = map;
        let (swizzled, columns, rows) = (columns == driver::PERMUTED, u64::from(columns), u64::from(rows));
        Ok(TensorMap { address, extents, strides, rows, columns, element: 2, swizzled }.encoded())
    }

    fn sync(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn record(&self, _enqueue: &mut dyn FnMut()) -> Result<Option<Box<dyn Graph>>, Failure> {
        Ok(None)
    }

    fn time(&self, enqueue: &mut dyn FnMut()) -> Result<Duration, Failure> {
        let start = Instant::now();
        enqueue();
        Ok(start.elapsed())
    }

    fn processors(&self) -> usize {
        8
    }

    fn capability(&self) -> (i32, i32) {
        self.1
    }

    fn cuda(&self) -> (i32, i32) {
        self.2
    }
}

/// The files that were loaded: parsing one of thousands of lines takes longer than most cases.
static PARSED: Mutex<Vec<(&str, Arc<Module>)>> = Mutex::new(Vec::new());

struct Interpreted {
    module: Arc<Module>,
    entry: String,
    memory: Arc<Shared>,
}

impl std::fmt::Debug for Interpreted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.entry)
    }
}

impl Function for Interpreted {
    unsafe fn launch(&self, params: &Params, grid: driver::Grid, _: &driver::Touched) -> Result<(), Failure> {
        let driver::Grid { blocks, threads, cluster, shared } = grid;
        let grid = Grid { blocks: [blocks, 1, 1], threads, cluster, shared: shared as usize };
        let params = bytemuck::cast_slice(&params.0);
        let run = self.module.launch(&self.entry, &mut self.memory.lock(), params, grid, 1);
        run.map(|_| ()).map_err(Failure::Other)
    }
}

/// With the kernels of sm_90a and, as on any device, those of older ones.
pub(super) fn device() -> Cuda {
    device_of((9, 0), (12, 4))
}

pub(super) fn device_of(capability: (i32, i32), cuda: (i32, i32)) -> Cuda {
    let interpreter = Interpreter(Arc::default(), capability, cuda);
    Cuda::new(DeviceInfo::new("cuda", "interpreter", Kind::SoftwareGpu), Arc::new(interpreter), LIMIT)
}

mod tests {
    use super::*;
    use crate::{
        backend::OpenOptions,
        conformance::{Case, Options, Outcome, Verdict, cases, check_case, check_with},
        op::Fill,
    };

    /// Operations whose kernels take more of an interpreter's time than the rest, with what it does of each in a fraction of a second;
    /// the others have `SMALL`.
    const SLOW: &[(&str, u64)] = &[
        ("attention", 1 << 15),
        ("linear_attention", 1 << 15),
        ("matmul", 1 << 15),
        ("grouped_matmul", 1 << 15),
        ("top_k", 1 << 9),
        ("sample", 1 << 11),
        ("ssm_scan", 1 << 17),
        ("selective_scan", 1 << 17),
        ("conv", 1 << 14),
    ];
    const SMALL: u64 = 1 << 16;

    /// The cases of the operations that `mine` accepts, at small sizes: of those listed with normal numbers every second one (of attention all), of the
    /// other kinds of numbers and the other layouts one in 23. `TESELA_CASE=WORDS` chooses those that have the words, all of them.
    fn small(mine: fn(&str) -> bool) -> Vec<Case> {
        let all = std::env::var_os("TESELA_CASE").is_some();
        let chosen = |(i, case): &(usize, Case)| {
            let most = SLOW.iter().find(|s| s.0 == case.op.name()).map_or(SMALL, |s| s.1);
            let dense = case.op.operands().iter().all(|o| o.spec.is_dense());
            let listed =
                case.fill == Fill::Normal && dense && (i % 2 == 0 || is_attention(case.op.name())) || i % 23 == 0;
            mine(case.op.name()) && case.op.cost().flops < most && (all || listed)
        };
        let cases = cases(&Options::from_env()).unwrap_or_default().into_iter().enumerate();
        cases.filter(chosen).map(|(_, case)| case).collect()
    }

    fn conforms(mine: fn(&str) -> bool, least: usize) {
        let device = device();
        let outcomes: Vec<Outcome> = small(mine).iter().flat_map(|case| check_case(&device, case)).collect();
        let with = |verdict| outcomes.iter().filter(move |o| o.verdict == verdict);
        let passed = with(Verdict::Passed).count();
        println!("{passed} passed");
        with(Verdict::Declined).for_each(|o| println!("{} declined: {}", o.id, o.why));
        let failed: Vec<String> =
            with(Verdict::Failed).map(|o| format!("{} {}\n    {}", o.kernel, o.id, o.why)).collect();
        assert!(failed.is_empty(), "{}", failed.join("\n"));
        assert!(passed >= least || std::env::var_os("TESELA_CASE").is_some(), "only {passed} cases ran");
    }

    fn is_attention(op: &str) -> bool {
        ["attention", "linear_attention"].contains(&op)
    }

    fn is_matmul(op: &str) -> bool {
        ["matmul", "grouped_matmul"].contains(&op)
    }

    #[test]
    fn products_conform() {
        conforms(is_matmul, 30);
    }

    #[test]
    fn attention_conforms() {
        conforms(is_attention, 30);
    }

    /// Checks operations that one kernel has this in its name for.
    fn attention_runs(kernel: &str, texts: &[&str]) {
        let fills = [Fill::Normal, Fill::Large, Fill::Special];
        for (i, text) in texts.iter().enumerate() {
            let op: crate::op::Op = format!("attention {text}").parse().expect(text);
            let outcomes = check_case(&device(), &Case { op, fill: fills[i % 3], seed: 1 });
            let count = outcomes.iter().filter(|o| o.kernel.contains(kernel)).count();
            let failed: Vec<_> = outcomes.iter().filter(|o| o.verdict != Verdict::Passed).collect();
            assert!(count == 1 && failed.is_empty(), "{op}: {failed:#?}");
        }
    }

    #[test]
    fn attention_in_tiles_conforms() {
        // More than one tile of rows and of keys, tails of both, every option, heads that fill no tile.
        attention_runs(
            "16_",
            &[
                "q=bf16:1x66x1x64 k=bf16:1x80x1x64 v=bf16:1x80x1x64 out=bf16:1x66x1x64 causal=true numerics=fast",
                "q=bf16:1x18x2x64 k=bf16:1x130x1x64 v=bf16:1x130x1x64 out=f32:1x18x2x64 causal=true window=70 lse=f32:1x2x18",
                "q=f16:2x17x2x128 k=f16:2x67x1x128 v=f16:2x67x1x128 out=f16:2x17x2x128 kv_len=i32:2 q_len=i32:2 lse=f32:2x2x17",
                "q=f16:1x67x1x72 k=f16:1x65x1x72 v=f16:1x65x1x80 out=f32:1x67x1x80 causal=true sinks=f32:1 lse=f32:1x1x67",
                "q=bf16:1x20x1x40 k=bf16:1x64x1x40 v=bf16:1x64x1x40 out=bf16:1x20x1x40 softcap=2.0 alibi=f32:1 window=9",
                "q=f16:1x65x1x64 k=f16:1x70x1x64 v=f16:1x70x1x64 out=f16:1x65x1x64 window=30 numerics=fast scale=0.25",
            ],
        );
    }

    #[test]
    fn attention_on_hopper_conforms() {
        // More than one tile of keys, tails, lengths, every option, heads that fill no tile.
        attention_runs(
            "wide",
            &[
                "q=bf16:1x70x2x64 k=bf16:1x130x1x64 v=bf16:1x130x1x64 out=bf16:1x70x2x64 causal=true numerics=fast lse=f32:1x2x70",
                "q=f16:1x66x1x128 k=f16:1x140x1x128 v=f16:1x140x1x128 out=f16:1x66x1x128 kv_len=i32:1 q_len=i32:1 numerics=fast",
                "q=f16:1x66x1x72 k=f16:1x135x1x72 v=f16:1x135x1x80 out=f16:1x66x1x80 causal=true sinks=f32:1 numerics=fast lse=f32:1x1x66",
                "q=bf16:1x68x1x40 k=bf16:1x100x1x40 v=bf16:1x100x1x40 out=bf16:1x68x1x40 softcap=2.0 alibi=f32:1 window=60 numerics=fast",
            ],
        );
    }

    #[test]
    fn attention_in_parts_conforms() {
        // Several parts of the keys, packs of heads that are full and not, caches of every type, pages.
        attention_runs(
            "split",
            &[
                "q=f32:1x1x8x64 k=bf16:1x200x1x64 v=bf16:1x200x1x64 out=f32:1x1x8x64 kv_len=i32:1 causal=true lse=f32:1x8x1",
                "q=bf16:1x2x5x128 k=q8_0:1x150x1x128 v=q4_0:1x150x1x128 out=bf16:1x2x5x128 causal=true sinks=f32:5 lse=f32:1x5x2",
                "q=f16:1x1x2x72 k=f16:1x130x2x72 v=f16:1x130x2x72 out=f16:1x1x2x72 window=90 causal=true softcap=3.0 alibi=f32:2",
                "q=f32:1x1x3x192 k=f8e4m3:1x140x1x192 v=f8e5m2:1x140x1x192 out=f32:1x1x3x192 key_mask=u8:1x140",
                "q=f32:2x1x4x32 k=f32:20x16x2x32 v=f32:20x16x2x32 out=f32:2x1x4x32 block_table=i32:2x9 kv_len=i32:2 causal=true",
                "q=f32:1x1x4x64 k=f32:1x256x4x64 v=f32:1x256x4x64 out=f32:1x1x4x64 mask=f32:1x1x1x256",
            ],
        );
    }

    #[test]
    fn attention_of_decoding_conforms() {
        // Several steps of each warp's ring, their tails, every option, pages.
        attention_runs(
            "decode",
            &[
                "q=f32:1x1x8x64 k=bf16:1x500x1x64 v=bf16:1x500x1x64 out=f32:1x1x8x64 kv_len=i32:1 causal=true lse=f32:1x8x1",
                "q=bf16:1x2x5x128 k=q8_0:1x300x1x128 v=q8_0:1x300x1x128 out=bf16:1x2x5x128 causal=true sinks=f32:5 lse=f32:1x5x2",
                "q=f16:1x1x2x72 k=f16:1x270x2x72 v=f16:1x270x2x80 out=f16:1x1x2x80 window=190 causal=true softcap=3.0 alibi=f32:2",
                "q=f32:1x1x3x128 k=bf16:1x340x1x128 v=bf16:1x340x1x128 out=f32:1x1x3x128 key_mask=u8:1x340",
                "q=f32:2x1x4x64 k=q8_0:20x16x2x64 v=q8_0:20x16x2x64 out=f32:2x1x4x64 block_table=i32:2x9 kv_len=i32:2 causal=true",
                "q=f32:1x1x4x64 k=f16:1x256x4x64 v=f16:1x256x4x64 out=f32:1x1x4x64 mask=f32:1x1x1x256",
            ],
        );
    }

    #[test]
    fn the_rest_conforms() {
        conforms(|op| !is_attention(op) && !is_matmul(op), 300);
    }

    #[test]
    #[ignore = "needs a GPU: tools/gpu runs it"]
    fn the_hardware_agrees() {
        let (devices, absent) = crate::cuda::open_all(&OpenOptions::default());
        assert!(!devices.is_empty(), "no device: {absent:?}");
        let interpreter = device();
        let mut differ = Vec::new();
        for case in small(|_| true) {
            let said = check_case(&interpreter, &case);
            for hardware in devices.iter().flat_map(|d| check_case(&**d, &case)) {
                let beside = said.iter().find(|o| o.kernel == hardware.kernel);
                if beside.is_none_or(|o| o.verdict != hardware.verdict) {
                    differ.push(format!("{} {}: {}", hardware.kernel, hardware.id, hardware.why));
                }
            }
        }
        assert!(differ.is_empty(), "{} cases differ:\n{}", differ.len(), differ.join("\n"));
    }

    #[test]
    fn every_path_conforms() {
        // What the small cases hardly reach: rows that lie dense and that do not, of every float type, longer than a block's 1024, and tails that
        // are no four; several parts of time; rows of 32 and more; no experts.
        let texts = [
            "elementwise a=f32:2x1028 b=f32:2x1028 out=f32:2x1028 function=silu-mul",
            "elementwise a=f16:3x8@12x1 b=bf16:8 out=bf16:3x8 function=add",
            "elementwise a=bf16:2x3x5x4@64x20x4x1 out=f16:2x3x5x4 function=gelu-tanh",
            "elementwise a=f32:3x6 b=f32:3x1@1x0 out=f32:3x6 function=mul",
            "norm x=bf16:2x1032 out=f16:2x1032 weight=f32:1032 bias=bf16:1032 residual=f32:2x1032 sum=bf16:2x1032 factor=0.5 kind=layer",
            "norm x=f32:3x16@20x1 out=f32:3x16 gate=f16:3x16 weight=f32:16",
            "softmax x=f16:2x1028 out=f32:2x1028 mask=f32:2x1028",
            "softmax x=bf16:2x12@16x1 out=bf16:2x12 log=true",
            "convert x=f32:2x2x1028 out=bf16:2x2x1028",
            "convert x=bf16:3x8@12x1 out=f16:3x8",
            "convert x=f16:4x7@1x4 out=f32:4x7",
            "convert x=u8:37 out=u8:37",
            "convert x=q4_k:2x512 out=q4_k:2x512",
            "convert x=f32:3x5x4@1x12x3 out=f32:3x5x4",
            "conv1d x=bf16:2x70x33 w=f32:33x4 out=f32:2x70x33 bias=f32:33 state=f32:2x3x33 act=silu",
            "ssm_scan x=f32:2x35x2x64 dt=f32:2x35x2 a=f32:2 b=f32:2x35x1x128 c=f32:2x35x1x128 out=f32:2x35x2x64 d=f32:2 dt_bias=f32:2 state=f32:2x2x64x128 softplus=true",
            "ssm_scan x=bf16:1x17x2x32 dt=f32:1x17x2 a=f32:2 b=f16:1x17x2x64 c=bf16:1x17x2x64 out=f16:1x17x2x32",
            "ssm_scan x=f32:1x1x3x32 dt=f32:1x1x3 a=f32:3 b=f32:1x1x3x64 c=f32:1x1x3x64 out=f32:1x1x3x32 state=f32:1x3x32x64",
            "ssm_scan x=bf16:2x70x2x32 dt=f32:2x70x2 a=f32:2 b=bf16:2x70x1x128 c=f32:2x70x1x128 out=f32:2x70x2x32 d=f32:2 state=f32:2x2x32x128 softplus=true",
            "ssm_scan x=f32:1x64x4x32@8192x128x1x4 dt=f32:1x64x4 a=f32:4 b=f32:1x64x2x64 c=f32:1x64x2x64 out=f32:1x64x4x32 dt_bias=f32:4",
            "top_k x=f32:2x5000 values=f32:2x40 indices=i32:2x40",
            "top_k x=bf16:1x9000 values=f32:1x1500 indices=i32:1x1500 softmax=true",
            "top_k x=f32:1x2500 values=f32:1x2100 indices=i32:1x2100 softmax=true",
            "top_k x=f16:1x6000@6001x1 values=f16:1x129 indices=i32:1x129",
            "sample logits=f32:2x5000 seed=i32:2 out=i32:2 top_k=40 top_p=0.9",
            "sample logits=bf16:1x12000 seed=i32:2 out=i32:1 temperature=1000000.0 top_p=0.9",
            "sample logits=f32:2x5000 seed=i32:2 out=i32:2 top_k=3000 top_p=0.95",
            "sample logits=f32:1x5000 seed=i32:2 out=i32:1 temperature=0.0",
            "scatter x=f32:750x3 index=i32:750 out=f32:750x3 weight=f32:750",
            "segment x=bf16:750x5 segments=i32:750 out=f32:750x5",
            "segment x=f32:750x3 segments=i32:750 out=f32:750x3 kind=softmax count=750",
            "linear_attention q=f32:1x70x2x40 k=f32:1x70x2x40 v=f32:1x70x2x68 omega=f32:40x20 out=f32:1x70x2x68 causal=true",
            "linear_attention q=bf16:2x130x1x72 k=bf16:2x130x1x72 v=f16:2x130x1x6 omega=f32:72x32 out=f32:2x130x1x6 lengths=i32:2",
            "linear_attention q=f32:1x9x1x8 k=f32:1x9x1x8 v=f32:1x9x1x8 omega=f32:8x40 out=f32:1x9x1x8 causal=true",
            "selective_scan x=bf16:2x35x40 dt=f32:2x35x40 a=f32:40x16 b=f32:2x35x16 c=f32:2x35x16 out=f32:2x35x40 d=f32:40 dt_bias=f32:40 z=bf16:2x35x40 state=f32:2x40x16 softplus=true",
            "grouped_matmul x=f32:5x7@14x2 w=f32:0x5x7@70x14x2 offsets=i32:1@2 out=f32:5x5@10x2",
            "conv1d x=f32:1x64x5 w=f32:5x8 out=f16:1x64x5 state=f32:1x7x5",
        ];
        for (i, text) in texts.iter().enumerate() {
            let op: crate::op::Op = text.parse().expect(text);
            let fill = [Fill::Normal, Fill::Special][i % 2];
            let outcomes = check_case(&device(), &Case { op, fill, seed: 1 });
            assert!(outcomes.iter().all(|o| o.verdict == Verdict::Passed), "{op}: {outcomes:#?}");
        }
    }

    #[test]
    fn turing_has_its_kernels() {
        let turing = device_of((7, 5), (12, 0));
        let texts = [
            "matmul x=bf16:20x64 w=bf16:24x64 out=f32:20x24",
            "matmul x=f32:1x256 w=q4_k:8x256 out=f32:1x8 numerics=fast",
            "matmul x=f16:70x32 w=q8_0:8x32 out=f16:70x8 numerics=fast",
            "attention q=bf16:1x20x1x64 k=bf16:1x20x1x64 v=bf16:1x20x1x64 out=bf16:1x20x1x64 causal=true numerics=fast",
            "attention q=f32:1x1x8x64 k=q8_0:1x130x1x64 v=q8_0:1x130x1x64 out=f32:1x1x8x64",
        ];
        for text in texts {
            let op: crate::op::Op = text.parse().expect(text);
            let outcomes = check_case(&turing, &Case { op, fill: Fill::Normal, seed: 1 });
            assert!(outcomes.iter().all(|o| o.verdict == Verdict::Passed), "{op}: {outcomes:#?}");
        }
        let peaks = crate::Backend::peaks(&turing).unwrap();
        assert!(peaks.f32_flops > 1.0 && peaks.half_flops == 0.0, "{peaks:?}");
    }

    #[test]
    fn peaks_are_measured() {
        let peaks = crate::Backend::peaks(&device()).unwrap();
        let all = [peaks.f32_flops, peaks.half_flops, peaks.int8_ops, peaks.read_bytes, peaks.copy_bytes];
        assert!(all.iter().all(|&rate| rate > 1.0), "{peaks:?}");
    }

    #[test]
    fn the_contract_holds() {
        let options = Options { filter: Some("contract".into()), ..Options::default() };
        check_with(&device(), &options, &mut |_, _| {}).assert();
    }
}
