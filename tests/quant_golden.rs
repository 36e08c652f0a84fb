//! Every quantized format against gguf-py, the ecosystem's own: bits of decoded values, bytes of encoded ones.
//!
//! Needs a Python that can `import gguf`: `GGUF_PYTHON=venv/bin/python cargo test --test quant_golden`.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use tesela::{
    DType,
    op::{Fill, Rng},
    quant,
};

/// What gguf-py makes of `input`, or `None` where there is no gguf-py.
fn golden(action: &str, dtype: DType, input: &[u8]) -> Option<Vec<u8>> {
    let Ok(python) = std::env::var("GGUF_PYTHON") else {
        eprintln!("skipped: set GGUF_PYTHON to a Python that has the package gguf");
        return None;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/quant_golden.py");
    let mut child = Command::new(python)
        .args([script, action, dtype.name()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("GGUF_PYTHON runs");
    let mut stdin = child.stdin.take().expect("piped");
    let output = std::thread::scope(|s| {
        s.spawn(move || stdin.write_all(input).expect("the script reads"));
        child.wait_with_output().expect("the script ends")
    });
    assert!(output.status.success(), "the script failed");
    Some(output.stdout)
}

#[test]
fn decoding() {
    // gguf-py knows the sizes of these alone (and of Q8_1 an older one).
    let unknown = [DType::Q8_1, DType::Q8_K, DType::Q1_0];
    for &dtype in DType::ALL.iter().filter(|d| d.is_quantized() && !unknown.contains(d)) {
        let (elements, size) = dtype.block();
        let mut rng = Rng(7);
        let blocks = 4000;
        let mut bytes: Vec<u8> = (0..blocks * size).map(|_| rng.next() as u8).collect();
        bytes[..size].fill(0);
        bytes[size..2 * size].fill(0xff);
        bytes[2 * size..3 * size].fill(0x7b); // largest finite scales
        let Some(expected) = golden("decode", dtype, &bytes) else { return };
        let mut got = vec![0f32; blocks * elements];
        quant::decode(dtype, &bytes, &mut got).expect("whole blocks");
        assert_eq!(expected.len(), got.len() * 4);
        for (i, (want, got)) in expected.as_chunks().0.iter().zip(got).enumerate() {
            let want = f32::from_le_bytes(*want);
            assert!(want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan(), "{dtype} {i}: {want} {got}");
        }
    }
}

#[test]
fn encoding() {
    use DType::*;
    // The others have no encoder in gguf-py.
    for dtype in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, TQ1_0, TQ2_0, MXFP4] {
        let (n, _) = dtype.block();
        let mut rng = Rng(8);
        let mut values = vec![0f32; n];
        for block in 0..4000 {
            // Sizes from f16's subnormals to its largest; every third block on a coarse grid, full of ties.
            let scale = f64::powi(2.0, block % 44 - 28);
            let grid = |v: f64| if block % 3 == 0 { (v * 8.0).round() / 8.0 } else { v };
            values.extend((0..n).map(|_| (grid(rng.value(Fill::Normal)) * scale) as f32));
        }
        values.extend(vec![3e38; n]);
        let input: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let Some(expected) = golden("encode", dtype, &input) else { return };
        let mut got = vec![0; expected.len()];
        quant::encode(dtype, &values, &mut got).expect("whole blocks");
        let size = dtype.block().1;
        for (i, (want, got)) in expected.chunks(size).zip(got.chunks(size)).enumerate() {
            assert_eq!(want, got, "{dtype} block {i}: {:?}", &values[i * n..][..n]);
        }
    }
}
