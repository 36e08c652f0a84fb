//! Tests on sizes beyond the conformance cases: several tiles, tasks and ranges of keys; the same bits whatever the threads.
use super::{Cpu, simd::Isa};
use crate::{
    Backend, DType, Op, Spec, View,
    backend::OpenOptions,
    conformance::{Case, Verdict, check_case},
    dispatch::Launch,
    op::{Array, Fill, Numerics, Rng, Role},
};

pub(super) const LARGER: &[&str] = &[
    // rows of several tiles against keys of several tiles, in each form
    "attention q=f32:1x150x4x64 k=f32:1x210x2x64 v=f32:1x210x2x64 out=f32:1x150x4x64 causal=true",
    "attention q=bf16:2x70x3x40 k=f16:2x140x1x40 v=bf16:2x140x1x24 out=f32:2x70x3x24 window=50 causal=true",
    "attention q=f32:1x80x2x32 k=q8_0:1x200x2x32 v=q4_0:1x200x2x32 out=f32:1x80x2x32 window=70",
    "attention q=f32:170x2x32 k=f32:300x2x32 v=f32:300x2x32 out=f32:170x2x32 q_offsets=i32:4 kv_offsets=i32:4 \
     lse=f32:2x170 causal=true",
    "attention q=f32:2x90x4x16 k=f32:9x16x2x16 v=f32:9x16x2x16 out=f32:2x90x4x16 kv_len=i32:2 block_table=i32:2x7 \
     causal=true softcap=5.0",
    // windows that cut tiles of several vectors of rows at both ends
    "attention q=f32:1x100x4x32 k=f32:1x180x2x32 v=f32:1x180x2x32 out=f32:1x100x4x32 window=20 causal=true",
    "attention q=f32:1x130x1x32 k=f32:1x130x1x32 v=f32:1x130x1x32 out=f32:1x130x1x32 window=9 lse=f32:1x1x130",
    // few rows against keys of several ranges
    "attention q=f32:2x1x6x96 k=q8_0:40x16x3x96 v=bf16:40x16x3x96 out=f32:2x1x6x96 kv_len=i32:2 block_table=i32:2x20 causal=true",
    "attention q=f32:1x1x8x64 k=f16:1x1500x2x64 v=f16:1x1500x2x64 out=f32:1x1x8x64 lse=f32:1x8x1 sinks=f32:8 causal=true",
    "attention q=f32:2x3x4x72 k=f32:2x700x2x72 v=f32:2x700x2x72 out=f32:2x3x4x72 kv_len=i32:2 alibi=f32:4 causal=true",
    "attention q=f32:1x1x14x32 k=f8e4m3:60x16x2x32 v=f8e5m2:60x16x2x32 out=f32:1x1x14x32 kv_len=i32:1 \
     block_table=i32:1x50 window=600 causal=true",
    "attention q=f32:1x2x4x64 k=f32:1x600x2x64 v=f32:1x600x2x64 out=f32:1x2x4x64 determinism=batch-invariant",
    // more rows than a chunk, several tasks and blocks, a block that is not whole
    "matmul x=f32:530x544 w=q8_0:70x544 out=f32:530x70 numerics=fast",
    "matmul x=f32:19x768 w=q4_k:270x768 up=q4_k:270x768 out=f32:19x270 act=silu numerics=fast",
    "matmul x=f32:3x800 w=q8_0:270x800 out=f32:3x270 numerics=fast",
    "matmul x=f32:23x1280 w=q6_k:70x1280 out=f32:23x70 numerics=fast",
    "matmul x=bf16:40x288 w=iq4_nl:170x288 out=bf16:40x170 numerics=fast determinism=batch-invariant",
    "matmul x=f32:3x800 w=q5_0:270x800 out=f32:3x270 numerics=fast",
    "matmul x=f32:19x1040 w=i8:70x1040 out=f32:19x70 w_scale=f32:70 numerics=fast",
    "matmul x=bf16:2x1043 w=i8:70x1043 up=i8:70x1043 out=bf16:2x70 act=silu numerics=fast",
    "matmul x=f32:9x530 w=i8:70x530@1x70 out=f32:9x70 w_scale=f32:1 numerics=fast",
    "grouped_matmul x=f32:90x300 w=i8:3x70x300 offsets=i32:4 out=f32:90x70 numerics=fast",
    // 8-bit floats, with each kind of scales
    "matmul x=f32:3x545 w=f8e4m3:150x545 out=f32:3x150 w_scale=f32:150",
    "matmul x=bf16:19x545 w=f8e5m2:150x545 out=bf16:19x150 w_scale=f32:2x5",
    // bytes: several blocks of k, strips, panels and matrices, packed and not, each kind of output
    "matmul x=i8:19x2101 w=i8:70x2101 out=i32:19x70",
    "matmul x=u8:33x1100 w=i8:64x1100 out=i32:33x64",
    "matmul x=i8:3x150 w=i8:270x150 out=f32:3x270 bias=f32:270 x_scale=f32:3 w_scale=f32:270 act=silu",
    "matmul x=u8:31x300 w=i8:70x300 up=i8:70x300 out=bf16:31x70 scale=0.001",
    "matmul x=i8:2x5x200 w=i8:2x64x200 out=i32:2x5x64",
    "matmul x=u8:2x5x200 w=i8:2x40x200 out=i32:2x5x40",
    "matmul x=i8:7x1030@1x7 w=i8:70x1030@1x70 out=i32:7x70@1x7",
    // floats: several blocks of k, strips and panels, tall and wide
    "matmul x=f32:470x530 w=f32:150x530 up=f32:150x530 out=f32:470x150 bias=f32:150 residual=f32:470x150 act=gelu-tanh scale=0.5",
    "matmul x=bf16:45x515 w=bf16:290x515 out=bf16:45x290",
    "matmul x=f16:16x515 w=f16:290x515 out=f32:16x290",
    "grouped_matmul x=f32:90x512 w=q6_k:3x70x512 offsets=i32:4 out=f32:90x70 numerics=fast",
    // rows of several parts and stretches, tiles across, several blocks of terms
    "convert x=f32:300x70x5@1x1500x300 out=f16:300x70x5",
    "convert x=bf16:3x200x130@26000x1x200 out=f32:3x200x130",
    "convert x=q8_0:40x64@64x1 out=f32:40x64@1x40",
    "convert x=f32:50016 out=q4_0:50016",
    "reduce x=f32:2x40000 out=f32:2x1",
    "reduce x=bf16:2x40000 out=f32:2x1 kind=log-sum-exp mask=u8:40000",
    "reduce x=f32:2x40000 out=i32:2x1 kind=arg-max",
    "reduce x=f32:2x40000 out=f32:2x40000 kind=l2-normalize",
    "reduce x=f32:700x64 out=f32:700x1 kind=mean",
    "top_k x=f32:3x70000 values=f32:3x40 indices=i32:3x40",
    "top_k x=f16:2x20000 values=f32:2x3000 indices=i32:2x3000 softmax=true",
    "sample logits=f32:3x40000 seed=i32:2 out=i32:3",
    "sample logits=f32:3x40000 seed=i32:2 out=i32:3 temperature=30.0 top_p=0.9",
    "sample logits=bf16:3x40000 seed=i32:2 out=i32:3 top_k=50 top_p=0.9",
    "scatter x=bf16:700x600 index=i32:700 out=bf16:90x600 weight=f32:700",
    "segment x=f32:700x600 segments=i32:700 out=f32:90x600",
    "segment x=f32:700x600 segments=i32:700 out=f32:700x600 kind=softmax count=30",
    "conv x=f32:1x70x20x19 w=f32:300x70x3x3 out=f32:1x300x20x19 bias=f32:300 pad=1 act=silu",
    "conv x=bf16:1x3x56x56 w=bf16:96x3x14x14 out=bf16:1x96x4x4 stride=14",
    // more rows than a task, more tokens than tasks
    "norm x=bf16:700x96 out=bf16:700x96 weight=f32:96 residual=bf16:700x96 sum=bf16:700x96",
    "softmax x=f32:3x100x333 out=f32:3x100x333 mask=f16:100x333 scale=0.125",
    "rope x=bf16:90x3x64 positions=i32:90 cache=q8_0:200x3x64 slots=i32:90 style=half",
    "kv_append x=f16:90x3x64 slots=i32:90 cache=bf16:50x4x3x64",
    // several stretches of channels, rows of a state, blocks of tokens
    "conv1d x=bf16:2x30x700 w=f32:700x4 out=bf16:2x30x700 bias=f32:700 state=f32:2x3x700 act=silu",
    "ssm_scan x=f32:2x20x4x70 dt=f32:2x20x4 a=f32:4 b=f32:2x20x2x40 c=f32:2x20x2x40 out=f32:2x20x4x70 d=f32:4 \
     dt_bias=f32:4 state=f32:2x4x70x40 softplus=true",
    // several chunks, tasks of several heads, columns of a state beyond a tile
    "ssm_scan x=f32:1x200x6x64 dt=f32:1x200x6 a=f32:6 b=f32:1x200x1x128 c=f32:1x200x1x128 out=f32:1x200x6x64 d=f32:6 \
     dt_bias=f32:6 state=f32:1x6x64x128 softplus=true",
    "ssm_scan x=bf16:2x70x4x100 dt=bf16:2x70x4 a=f32:4 b=bf16:2x70x2x33 c=bf16:2x70x2x33 out=bf16:2x70x4x100 \
     state=f32:2x4x100x33",
    "selective_scan x=f32:2x20x150 dt=f32:2x20x150 a=f32:150x16 b=f32:2x20x16 c=f32:2x20x16 out=f32:2x20x150 d=f32:150 \
     dt_bias=f32:150 z=f32:2x20x150 state=f32:2x150x16 softplus=true",
    "linear_attention q=f32:2x75x3x40 k=f32:2x75x3x40 v=f32:2x75x3x24 omega=f32:40x50 out=f32:2x75x3x24 lengths=i32:2",
    "linear_attention q=f32:2x75x3x40 k=f32:2x75x3x40 v=f32:2x75x3x24 omega=f32:40x50 out=f32:2x75x3x24 lengths=i32:2 causal=true",
];

fn device(isa: Isa, threads: usize) -> Cpu {
    Cpu::with_isa(&OpenOptions { threads, ..OpenOptions::default() }, isa)
}

/// Operands filled as a conformance run fills them, and a launch of the first kernel.
fn prepare(device: &Cpu, op: &Op) -> (Launch, Vec<View>, Option<View>) {
    let plan = device.plan(op).expect("a kernel").remove(0);
    let alloc = |bytes: usize| View::whole(device.alloc(bytes).expect("memory"));
    let scratch = (plan.scratch() > 0).then(|| alloc(plan.scratch()));
    let mut rng = Rng(7);
    let launch = Launch::new(op, plan, device.token()).expect("a launch");
    let fill = |(i, o): (usize, &crate::op::Operand)| {
        let mut array = Array::zeros(o.spec);
        if o.role != Role::Out {
            array.data = op.fill(o, Fill::Normal, &mut rng);
        }
        let mut bytes = vec![0; o.spec.span()];
        array.encode(None, &mut bytes).expect("encodes");
        let view = alloc(bytes.len());
        device.write(&view, &bytes).expect("writes");
        let Some(packing) = launch.plan().packing(i) else { return view };
        let dense = Array { spec: o.spec.dense(), ..array };
        let mut bytes = vec![0; dense.spec.bytes()];
        dense.encode(None, &mut bytes).expect("encodes");
        let (plain, packed) = (alloc(bytes.len()), alloc(packing.bytes));
        device.write(&plain, &bytes).expect("writes");
        launch.pack(i, 0..o.spec.rows(), &plain, &packed).expect("packs");
        packed
    };
    let args = op.operands().iter().enumerate().map(fill).collect();
    (launch, args, scratch)
}

fn outputs(device: &Cpu, op: &Op) -> Vec<Vec<u8>> {
    let (launch, args, scratch) = prepare(device, op);
    launch.run(&args, scratch.as_ref()).expect("runs");
    let read = |view: &View| {
        let mut bytes = vec![0; view.len()];
        device.read(view, &mut bytes).expect("reads");
        bytes
    };
    args.iter().map(read).collect()
}

#[test]
fn several_tiles() {
    for isa in Isa::available() {
        let device = device(isa, 2);
        for text in LARGER {
            let op: Op = text.parse().expect("an operation");
            // An infinity makes a block of integers NaN.
            let odd = if op.numerics() == Numerics::Fast { Fill::Large } else { Fill::Special };
            for fill in [Fill::Normal, odd] {
                for outcome in check_case(&device, &Case { op, fill, seed: 1 }) {
                    assert_eq!(outcome.verdict, Verdict::Passed, "{} {}: {}", isa.name(), outcome.id, outcome.why);
                }
            }
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    for isa in Isa::available() {
        let (one, more) = (device(isa, 1), device(isa, 3));
        let larger = LARGER.iter().map(|text| text.parse().expect("an operation"));
        for op in Op::cases().into_iter().chain(larger).filter(|op| one.plan(op).is_ok()) {
            assert!(outputs(&one, &op) == outputs(&more, &op), "{} {op}", isa.name());
        }
    }
}

/// No sum of bytes is too large on the way, whatever the kernel.
#[test]
fn bytes_at_their_extremes_are_exact() {
    let op: Op = "matmul x=i8:5x1500 w=i8:40x1500 out=i32:5x40".parse().expect("an operation");
    for (isa, (signed, x, w)) in Isa::available().into_iter().flat_map(|isa| {
        [(true, 0x80, 0x80), (true, 0x7f, 0x80), (true, 0x80, 0x7f), (false, 0xff, 0x80), (false, 0xff, 0x7f)]
            .map(|c| (isa, c))
    }) {
        let Op::Matmul(mut op) = op else { unreachable!() };
        if !signed {
            op.x = Spec::new(DType::U8, &[5, 1500]).expect("a spec");
        }
        let device = device(isa, 1);
        let want = 1500 * (if signed { x as u8 as i8 as i32 } else { x }) * w as u8 as i8 as i32;
        for plan in device.plan(&op.into()).expect("kernels") {
            let launch = Launch::new(&op.into(), plan, device.token()).expect("a launch");
            let filled = |bytes: usize, with: i32| {
                let view = View::whole(device.alloc(bytes).expect("memory"));
                device.write(&view, &vec![with as u8; bytes]).expect("writes");
                view
            };
            let mut weight = filled(40 * 1500, w);
            if let Some(packing) = launch.plan().packing(1) {
                let packed = filled(packing.bytes, 1);
                launch.pack(1, 0..40, &weight, &packed).expect("packs");
                weight = packed;
            }
            let (out, scratch) = (filled(5 * 40 * 4, 1), filled(launch.plan().scratch(), 1));
            launch.run(&[filled(5 * 1500, x), weight, out.clone()], Some(&scratch)).expect("runs");
            let mut bytes = vec![0; 5 * 40 * 4];
            device.read(&out, &mut bytes).expect("reads");
            let sums = bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b));
            assert!(sums.clone().all(|sum| sum == want), "{}: {:?}", launch.plan().name(), sums.max());
        }
    }
}

/// Alone in its call or among others, a row has the same bits.
#[test]
fn neighbours_do_not_change_bits() {
    let spec = |n: usize| Spec::new(DType::F32, &[1, n, 4, 64]).expect("a spec");
    let keys = Spec::new(DType::F32, &[1, 300, 2, 64]).expect("a spec");
    for isa in Isa::available() {
        let device = device(isa, 2);
        let run = |n: usize, q: &[u8], k: &[u8]| {
            let mut op = crate::op::Attention::new(spec(n), keys, keys, spec(n));
            (op.causal, op.determinism) = (true, crate::op::Determinism::BatchInvariant);
            let (launch, args, scratch) = prepare(&device, &op.into());
            device.write(&args[0], q).expect("writes");
            device.write(&args[1], k).expect("writes");
            device.write(&args[2], k).expect("writes");
            launch.run(&args, scratch.as_ref()).expect("runs");
            let mut out = vec![0; args[3].len()];
            device.read(&args[3], &mut out).expect("reads");
            out
        };
        let mut rng = Rng(3);
        let mut floats = |n: usize| -> Vec<u8> { (0..n).flat_map(|_| (rng.normal() as f32).to_le_bytes()).collect() };
        let (q, k, row) = (floats(40 * 256), floats(300 * 128), 256 * 4);
        let all = run(40, &q, &k);
        for n in [1, 2, 17] {
            // The last rows: positions count from the end.
            assert!(run(n, &q[(40 - n) * row..], &k) == all[(40 - n) * row..], "{} {n}", isa.name());
        }
    }
}
