//! Products large enough to fill tiles, steps and groups, on every kernel for them, in the interpreter.

use super::interpreted_tests::{device, device_of};
use crate::{
    backend::{Backend, View},
    conformance::{Case, Verdict, check_case},
    dtype::DType::{self, *},
    layout::Spec,
    op::{Activation, Fill, GroupedMatmul, Matmul, Numerics, Op, Real},
};

fn spec(dtype: DType, shape: &[usize]) -> Spec {
    Spec::new(dtype, shape).expect("a spec")
}

fn plain(x: DType, w: DType, out: DType, m: usize, n: usize, k: usize) -> Matmul {
    Matmul::new(spec(x, &[m, k]), spec(w, &[n, k]), spec(out, &[m, n]))
}

fn fast(op: Matmul) -> Matmul {
    Matmul { numerics: Numerics::Fast, ..op }
}

/// Everything that can follow the sums.
fn whole(op: Matmul) -> Matmul {
    let n = op.out.dim(0);
    Matmul {
        bias: Some(spec(F32, &[n])),
        residual: Some(op.out),
        scale: Real::new(0.5),
        act: Activation::Silu,
        up: Some(op.w),
        ..op
    }
}

/// Runs the operations on all their kernels and gives the kernels' names.
fn kernels(ops: impl IntoIterator<Item = Op>) -> Vec<String> {
    kernels_of(device(), ops)
}

fn kernels_of(device: impl Backend, ops: impl IntoIterator<Item = Op>) -> Vec<String> {
    let mut names = Vec::new();
    for op in ops {
        for outcome in check_case(&device as &dyn Backend, &Case { op, fill: Fill::Normal, seed: 1 }) {
            assert_eq!(outcome.verdict, Verdict::Passed, "{} {}: {}", outcome.kernel, outcome.id, outcome.why);
            names.push(outcome.kernel);
        }
    }
    names
}

#[track_caller]
fn all_ran(names: &[String], entries: &[&str]) {
    let ran = |entry: &&&str| names.iter().any(|n| n.ends_with(&format!("-{entry}")));
    let missing: Vec<_> = entries.iter().filter(|e| !ran(e)).collect();
    assert!(missing.is_empty(), "{missing:?} did not run, only {names:?}");
}

#[test]
fn tiles_of_one_type() {
    let some = |d| {
        [
            plain(d, d, d, 140, 264, 200),
            plain(d, d, F32, 40, 136, 328),
            plain(d, d, F32, 70, 40, 72),
            whole(plain(d, d, d, 13, 72, 640)),
        ]
    };
    let integers = |x| [(130, 72, 208), (33, 40, 144), (9, 33, 80)].map(|(m, n, k)| plain(x, I8, I32, m, n, k));
    let tf32 = [(140, 136, 36), (33, 140, 132), (9, 33, 640)].map(|(m, n, k)| fast(plain(F32, F32, F32, m, n, k)));
    let mut scaled = plain(I8, I8, F32, 20, 136, 64);
    (scaled.x_scale, scaled.w_scale) = (Some(spec(F32, &[20])), Some(spec(F32, &[136])));
    let batched = Matmul::new(spec(BF16, &[3, 20, 64]), spec(BF16, &[72, 64]), spec(BF16, &[3, 20, 72]));
    let ops = some(BF16).into_iter().chain(some(F16)).chain(integers(I8)).chain(integers(U8)).chain(tf32);
    let names = kernels(ops.chain([scaled, batched]).map(Op::from));
    let expected = [
        "bf16_wide",
        "f16_wide",
        "bf16_128",
        "bf16_64",
        "bf16_16",
        "f16_128",
        "f16_64",
        "f16_16",
        "tf32_128",
        "tf32_64",
        "tf32_16",
        "s8_128",
        "s8_64",
        "s8_16",
        "u8s8_128",
        "u8s8_64",
        "u8s8_16",
        "tiled",
    ];
    all_ran(&names, &expected);
}

#[test]
fn wide_tiles() {
    // Whole and partial tiles, rows of 16 bytes and others, k shared by two and four, what follows the sums, gated pairs.
    let both = |d| {
        [
            plain(d, d, d, 300, 520, 72),
            plain(d, d, d, 66, 50, 392),
            plain(d, d, F32, 130, 72, 1032),
            plain(d, d, F32, 140, 40, 72),
            whole(plain(d, d, d, 100, 200, 136)),
            whole(plain(d, d, F32, 70, 24, 520)),
        ]
    };
    let batched = Matmul::new(spec(BF16, &[2, 3, 70, 64]), spec(BF16, &[1, 3, 40, 64]), spec(BF16, &[2, 3, 70, 40]));
    let w = spec(F16, &[2, 72, 136]);
    let grouped = GroupedMatmul::new(spec(F16, &[200, 136]), w, spec(I32, &[3]), spec(F16, &[200, 72]));
    let pairs = GroupedMatmul { up: Some(w), act: Activation::Silu, row_scale: Some(spec(F32, &[200])), ..grouped };
    let products = both(BF16).into_iter().chain(both(F16)).chain([batched]).map(Op::from);
    let names = kernels(products.chain([grouped, pairs].map(Op::from)));
    let ran = names.iter().filter(|n| n.ends_with("_wide")).count();
    assert_eq!(ran, 15, "{names:?}");
}

#[test]
fn shares_of_all_tiles() {
    // On 16 blocks of an Ampere at once: 12 tiles and 10, so that shares hold the end of one and the beginning of the next, or a part in the middle.
    let followed = Matmul { up: None, ..whole(plain(BF16, BF16, F32, 130, 700, 264)) };
    let ops = [
        plain(BF16, BF16, BF16, 130, 700, 72),
        plain(F16, F16, F32, 130, 700, 136),
        fast(plain(F32, F32, F32, 150, 700, 36)),
        followed,
        plain(BF16, BF16, F32, 40, 1200, 72),
        plain(F16, F16, F16, 64, 1200, 136),
        fast(plain(F32, F32, F32, 40, 1200, 20)),
    ];
    let names = kernels_of(device_of((8, 0), (12, 4)), ops.into_iter().map(Op::from));
    let expected =
        ["bf16_stream_128", "bf16_stream_64", "f16_stream_128", "f16_stream_64", "tf32_stream_128", "tf32_stream_64"];
    all_ran(&names, &expected);
}

#[test]
fn tiles_of_two_types() {
    let mut ops = vec![fast(plain(F32, BF16, F32, 20, 136, 72)), fast(plain(F16, IQ4_NL, F16, 12, 130, 640))];
    for w in [Q4_0, Q8_0, Q4_K, Q6_K] {
        ops.extend([fast(plain(BF16, w, BF16, 12, 136, 512)), fast(whole(plain(F32, w, F32, 24, 72, 256)))]);
    }
    let names = kernels(ops.into_iter().map(Op::from));
    let expected = [
        "any_128", "any_16", "q4_0_128", "q4_0_16", "q8_0_128", "q8_0_16", "q4_k_128", "q4_k_16", "q6_k_128", "q6_k_16",
    ];
    all_ran(&names, &expected);
}

#[test]
fn tiles_of_floats() {
    let ops = [
        plain(F32, F32, F32, 140, 130, 264),
        plain(F32, BF16, F16, 33, 24, 8),
        plain(F16, F32, F32, 40, 9, 640), // shares of k
        plain(F32, Q4_K, BF16, 35, 150, 256),
        whole(plain(F32, F32, F32, 36, 72, 40)),
        whole(plain(BF16, IQ4_NL, F32, 40, 72, 64)),
    ];
    let grouped =
        GroupedMatmul::new(spec(F32, &[150, 64]), spec(F32, &[3, 20, 64]), spec(I32, &[4]), spec(F32, &[150, 20]));
    let names = kernels(ops.map(Op::from).into_iter().chain([Op::from(grouped)]));
    all_ran(&names, &["exact_128", "exact_any_128"]);
    assert_eq!(names.iter().filter(|n| n.contains("exact_")).count(), ops.len() + 1, "{names:?}");
}

#[test]
fn few_rows() {
    let mut ops = Vec::new();
    for w in [BF16, Q4_0, Q8_0, Q4_K, Q6_K, Q5_0] {
        for op in [plain(F32, w, F32, 1, 21, 768), whole(plain(BF16, w, BF16, 5, 13, 512))] {
            ops.extend([op, fast(op)]);
        }
    }
    let names = kernels(ops.into_iter().map(Op::from));
    for kind in ["exact", "dot"] {
        let all = ["any", "q4_0", "q8_0", "q4_k", "q6_k"]
            .map(|t| [format!("{kind}_{t}_1"), format!("{kind}_{t}_8")])
            .concat();
        all_ran(&names, &all.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// x or w of fp8, with every kind of scales.
fn scaled(op: Matmul, w_scale: &[usize]) -> Matmul {
    let m = op.out.dim(1);
    Matmul { x_scale: Some(spec(F32, &[m])), w_scale: Some(spec(F32, w_scale)), ..op }
}

#[test]
fn fp8_by_fp8() {
    let f8 = |out, m, n, k| fast(plain(F8E4M3, F8E4M3, out, m, n, k));
    let ops = [
        f8(BF16, 140, 264, 208),                // whole and partial tiles and steps
        scaled(f8(F32, 70, 300, 272), &[3, 3]), // a scale of each block
        scaled(f8(BF16, 66, 150, 144), &[150]), // and of each column
        f8(BF16, 66, 72, 1040),                 // k shared
        whole(f8(F16, 100, 72, 144)),
        scaled(f8(F32, 40, 136, 1040), &[2, 9]),
        f8(BF16, 20, 40, 80),
        scaled(f8(F32, 9, 33, 640), &[1]),
        whole(f8(F32, 13, 72, 640)),
    ];
    let names = kernels(ops.map(Op::from));
    all_ran(&names, &["fp8_wide", "fp8_128", "fp8_64", "fp8_16", "any_128", "any_16", "tiled"]);
    let count = |entry| names.iter().filter(|n| n.ends_with(entry)).count();
    assert_eq!((count("fp8_wide"), count("bf16_wide")), (7, 0), "{names:?}");
}

#[test]
fn fp8_weights() {
    let mut ops = Vec::new();
    for w in [F8E4M3, F8E5M2] {
        for x in [BF16, F16, F32] {
            ops.extend([(1, 21, 528), (5, 40, 144), (12, 40, 144)].map(|(m, n, k)| plain(x, w, x, m, n, k)));
        }
        for x in [BF16, F32] {
            ops.push(whole(plain(x, w, F32, 7, 24, 144)));
            // Scales of blocks, in each kernel; k that is no 16.
            ops.extend([1, 6, 15].map(|m| scaled(plain(x, w, x, m, 136, 144), &[2, 2])));
            ops.extend([11, 70].map(|m| fast(scaled(plain(x, w, x, m, 136, 144), &[2, 2]))));
            ops.push(scaled(plain(x, w, F32, 3, 20, 72), &[20]));
        }
        // Many rows, unpacked: exact where bf16 is.
        ops.extend([plain(F8E4M3, w, F32, 70, 40, 80), fast(whole(plain(F16, w, F32, 66, 40, 80)))]);
        ops.extend([plain(BF16, w, BF16, 70, 40, 80), plain(F8E5M2, w, BF16, 9, 20, 80)]);
    }
    let names = kernels(ops.into_iter().map(Op::from));
    let entries = [
        "exact_f8e4m3_1",
        "exact_f8e4m3_8",
        "exact_any_1",
        "exact_any_8",
        "bf16_f8e4m3_8",
        "bf16_f8e4m3_16",
        "f16_f8e4m3_8",
        "f16_f8e4m3_16",
        "f8e4m3_128",
        "f8e4m3_16",
        "any_128",
        "any_16",
        "exact_any_128",
        "bf16_wide",
    ];
    all_ran(&names, &entries);
}

#[test]
fn fp8_needs_its_driver() {
    let op = Op::from(fast(plain(F8E4M3, F8E4M3, BF16, 9, 33, 640)));
    for (capability, cuda, served) in [((8, 9), (12, 4), true), ((8, 9), (12, 3), false), ((8, 6), (13, 0), false)] {
        let device = device_of(capability, cuda);
        let outcomes = check_case(&device, &Case { op, fill: Fill::Normal, seed: 1 });
        assert!(outcomes.iter().all(|o| o.verdict == Verdict::Passed), "{outcomes:?}");
        assert!(outcomes.len() > 1 && outcomes.iter().any(|o| o.kernel.ends_with("fp8_16")) == served, "{outcomes:?}");
    }
}

/// Long sums that first grow and then nearly vanish: what is cut off of them in the tensor cores must not stay.
#[test]
fn fp8_sums_of_many_terms() {
    let (m, n, k) = (66, 8, 8192);
    let bytes = |rows: usize, turns: bool| -> Vec<u8> {
        let one = |i: usize, p: usize| {
            let size = 0x30 + (i * 7 + p * 5 + p * p / 3) as u8 % 12; // between 0.5 and 1.5
            if turns && p >= k / 2 { size | 0x80 } else { size }
        };
        (0..rows).flat_map(|i| (0..k).map(move |p| one(i, p))).collect()
    };
    let (x, w) = (bytes(m, true), bytes(n, false));
    let number = |b: u8| {
        (1.0 + f64::from(b & 7) / 8.0) * 2f64.powi(i32::from(b >> 3 & 15) - 7) * if b > 127 { -1.0 } else { 1.0 }
    };
    let sum =
        |i: usize, j: usize, end: usize| -> f64 { (0..end).map(|p| number(x[i * k + p]) * number(w[j * k + p])).sum() };
    let device = device();
    for rows in [m, 40, 9] {
        let op = fast(plain(F8E4M3, F8E4M3, F32, rows, n, k));
        let plans = device.plan(&Op::from(op)).unwrap();
        let plan = plans.iter().find(|p| p.name().contains("fp8_")).expect("a kernel of fp8");
        let of = |bytes: &[u8]| {
            let view = View::whole(device.alloc(bytes.len()).unwrap());
            device.write(&view, bytes).unwrap();
            view
        };
        let args = [of(&x[..rows * k]), of(&w), of(&vec![0; rows * n * 4])];
        let scratch = View::whole(device.alloc(plan.scratch()).unwrap());
        // SAFETY: the operands in the operation's order, as long as it says.
        unsafe { plan.launch(&args, Some(&scratch)) }.unwrap();
        let mut out = vec![0; rows * n * 4];
        device.read(&args[2], &mut out).unwrap();
        let (mut errors, mut squares) = (0.0, 0.0);
        for (e, four) in out.chunks(4).enumerate() {
            let (want, half) = (sum(e / n, e % n, k), sum(e / n, e % n, k / 2));
            let got = f64::from(f32::from_le_bytes(four.try_into().unwrap()));
            assert!(want.abs() < half * 0.2, "sums that cancel: {want} of {half}");
            errors += (got - want).powi(2);
            squares += want.powi(2);
        }
        assert!(errors <= 5e-4 * squares, "{}: nmse {:.1e}", plan.name(), errors / squares);
    }
}

#[test]
fn few_rows_on_tensor_cores() {
    let mut ops = Vec::new();
    for w in [Q4_0, Q8_0, Q4_K, Q6_K, BF16, F16] {
        let x = if w.is_quantized() { F32 } else { w };
        // Rows of blocks that begin anywhere, k that ends within a step, parts of tiles to a warp, several passes.
        let k = if w.block().0 == 256 { 768 } else { 800 };
        let shapes = [(1, 21, k), (7, 150, 512), (9, 13, 512), (17, 33, k)];
        ops.extend(shapes.map(|(m, n, k)| fast(plain(x, w, F32, m, n, k))));
        ops.extend([(5, 37, k), (12, 40, 512)].map(|(m, n, k)| fast(whole(plain(x, w, x, m, n, k)))));
    }
    ops.push(fast(plain(BF16, Q4_K, BF16, 1, 4200, 256))); // several tiles to a warp
    let names = kernels(ops.into_iter().map(Op::from));
    let entries =
        ["q4_0", "q8_0", "q4_k", "q6_k", "bf16", "f16"].map(|t| [8, 16].map(|rows| format!("{t}_{rows}"))).concat();
    all_ran(&names, &entries.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn many_rows_of_blocks() {
    let ops = [
        fast(plain(F32, Q4_K, F32, 140, 40, 256)),
        fast(plain(BF16, Q8_0, BF16, 70, 33, 96)),
        fast(whole(plain(F16, Q4_0, F16, 66, 72, 64))),
        fast(plain(BF16, Q6_K, F32, 65, 24, 256)),
        fast(whole(plain(F32, IQ4_NL, F32, 67, 40, 128))),
    ];
    let names = kernels(ops.map(Op::from));
    assert_eq!(names.iter().filter(|n| n.ends_with("bf16_wide")).count(), ops.len(), "{names:?}");
}

#[test]
fn many_rows_of_blocks_as_they_are() {
    let ops = [
        fast(plain(F32, Q4_K, F32, 130, 140, 512)),
        fast(plain(BF16, Q4_K, BF16, 40, 33, 1280)), // four blocks share k
        fast(whole(plain(F16, Q8_0, F16, 66, 72, 256))),
        fast(whole(plain(BF16, Q8_0, F32, 20, 64, 1024))),
        fast(plain(F32, Q4_0, F32, 64, 130, 256)),
        fast(plain(F16, Q4_0, F16, 65, 16, 1024)),
    ];
    let names = kernels(ops.map(Op::from));
    let ran = |rows: &str| names.iter().filter(|n| n.ends_with(rows)).count();
    assert_eq!((ran("_blocks_64"), ran("_blocks_128")), (3, 3), "{names:?}");
}

#[test]
fn groups() {
    let grouped = |w, rows, numerics| {
        let w = spec(w, &[5, 72, 256]);
        let base = GroupedMatmul::new(spec(BF16, &[rows, 256]), w, spec(I32, &[6]), spec(BF16, &[rows, 72]));
        GroupedMatmul { up: Some(w), act: Activation::Silu, row_scale: Some(spec(F32, &[rows])), numerics, ..base }
    };
    let ops = [
        grouped(BF16, 45, Numerics::Exact),
        grouped(BF16, 9, Numerics::Exact),
        grouped(Q4_K, 45, Numerics::Fast),
        grouped(Q4_K, 9, Numerics::Fast),
        grouped(Q6_K, 9, Numerics::Exact),
        grouped(F8E4M3, 45, Numerics::Exact),
        grouped(F8E4M3, 9, Numerics::Exact),
    ];
    let names = kernels(ops.map(Op::from));
    all_ran(
        &names,
        &["exact_f8e4m3_1", "f8e4m3_16", "bf16_16", "exact_any_1", "q4_k_16", "dot_q4_k_1", "exact_q6_k_1", "tiled"],
    );
}
