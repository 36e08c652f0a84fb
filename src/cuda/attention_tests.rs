//! Attention over more than one tile of rows and keys, on every kernel for it, in the interpreter.

use super::interpreted_tests::device;
use crate::{
    conformance::{Case, Verdict, check_case},
    op::{Fill, Op},
};

#[test]
fn tiles_in_f32() {
    let device = device();
    let mut ran = Vec::new();
    for (text, fill) in [
        ("q=f32:1x70x1x72 k=f16:1x130x1x72 v=f16:1x130x1x72 out=f32:1x70x1x72 causal=true", Fill::Normal),
        ("q=f32:1x70x1x72 k=f16:1x130x1x72 v=f16:1x130x1x72 out=f32:1x70x1x72 causal=true", Fill::Special),
        (
            "q=f32:1x70x1x128 k=f32:1x130x1x128 v=bf16:1x130x1x120 out=f32:1x70x1x120 lse=f32:1x1x70 window=50 softcap=20",
            Fill::Normal,
        ),
        ("q=f32:1x70x1x64 k=q8_0:1x130x1x64 v=q4_0:1x130x1x64 out=f32:1x70x1x64 key_mask=u8:1x130", Fill::Normal),
        ("q=bf16:1x70x1x64 k=f8e4m3:1x130x1x64 v=f16:1x130x1x64 out=f32:1x70x1x64 mask=f32:1x1x70x130", Fill::Large),
    ] {
        let op: Op = format!("attention {text}").parse().unwrap();
        for o in check_case(&device, &Case { op, fill, seed: 1 }) {
            assert_eq!(o.verdict, Verdict::Passed, "{} {}: {}", o.kernel, o.id, o.why);
            ran.push(o.kernel);
        }
    }
    assert_eq!(ran.iter().filter(|n| n.contains("-exact_")).count(), 5, "{ran:?}");
}
