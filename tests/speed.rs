//! What may never become slow. In release only: `cargo test --release --test speed -- --nocapture`.
#![cfg(all(feature = "cpu", not(debug_assertions)))]

use std::time::{Duration, Instant};

use tesela::{
    Backend, Cpu, DType, Result, Runtime, Spec,
    backend::OpenOptions,
    op::{Matmul, Op},
};

/// On one thread. The best of many runs: other programs only slow it down.
#[test]
fn matmul_reaches_half_of_the_peak() -> Result<()> {
    let mut options = OpenOptions::default();
    options.threads = 1;
    let peak = Cpu::open(&options)?.peaks()?.f32_flops;
    let rt = Runtime::builder().threads(1).allow(&["cpu"]).no_cache().build()?;
    let n = 1024;
    let spec = Spec::new(DType::F32, &[n, n])?;
    let numbers: Vec<f32> = (0..n * n).map(|i| (i * 7919 % 1021) as f32 / 1021.0 - 0.5).collect();
    let (x, plain) = (rt.from_f32(&[n, n], &numbers)?, rt.from_f32(&[n, n], &numbers)?);
    let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
    let packed = rt.weight(DType::F32, &[n, n], &bytes)?;
    let out = rt.zeros(DType::F32, &[n, n])?;
    let flops = Op::from(Matmul::new(spec, spec, spec)).cost().flops as f64;
    for (name, w) in [("packed once", &packed), ("plain", &plain)] {
        let mut best = Duration::MAX;
        for _ in 0..20 {
            let start = Instant::now();
            rt.matmul(&x, w).run_into(&out)?;
            best = best.min(start.elapsed());
        }
        let rate = flops / best.as_secs_f64();
        println!("matmul 1024 x 1024 x 1024, {name}: {:.0} GFLOP/s of {:.0}", rate / 1e9, peak / 1e9);
        assert!(rate > 0.5 * peak, "{name}: {rate:e} of {peak:e}");
    }
    Ok(())
}
