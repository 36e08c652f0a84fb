//! Products large enough to fill tiles, steps and groups, on every kernel for them, in the interpreter.

use super::interpreted_tests::device;
use crate::{
    backend::Backend,
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
    let device = device();
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
    ];
    let names = kernels(ops.map(Op::from));
    all_ran(&names, &["bf16_16", "exact_any_1", "q4_k_16", "dot_q4_k_1", "exact_q6_k_1", "tiled"]);
}
