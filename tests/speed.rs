//! What may never become slow. In release only: `cargo test --release --test speed -- --nocapture`.
#![cfg(all(feature = "cpu", not(debug_assertions)))]

use std::time::{Duration, Instant};

use tesela::{
    Backend, Cpu, DType, Result, Runtime, Spec,
    backend::OpenOptions,
    op::{Array, Fill, Matmul, Op, Rng},
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

/// More rows of x never take less time, within a tenth: no cliff between neighbouring sizes. On one thread, the best of many runs in turns.
#[test]
fn more_rows_take_no_less_time() -> Result<()> {
    const ROWS: &[usize] = &[
        1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14, 15, 16, 17, 24, 28, 29, 32, 33, 48, 64, 96, 113, 128, 192, 224, 225, 256,
        384, 512,
    ];
    let rt = Runtime::builder().threads(1).allow(&["cpu"]).no_cache().build()?;
    let mut cliffs = Vec::new();
    for (dtype, out) in [(DType::F32, DType::F32), (DType::BF16, DType::F32), (DType::I8, DType::I32)] {
        for (n, k) in [(1024, 1024), (2048, 640)] {
            let mut cases = Vec::new();
            let mut rng = Rng(1);
            let w_spec = Spec::new(dtype, &[n, k])?;
            let mut w = None;
            for &m in ROWS {
                let op = Op::from(Matmul::new(Spec::new(dtype, &[m, k])?, w_spec, Spec::new(out, &[m, n])?));
                let operands = op.operands();
                let mut bytes = |i: usize| -> Result<Vec<u8>> {
                    let spec = operands[i].spec;
                    let data = op.fill(&operands[i], Fill::Normal, &mut rng);
                    let mut bytes = vec![0; spec.span()];
                    Array { spec, data, magnitude: Vec::new() }.encode(None, &mut bytes)?;
                    Ok(bytes)
                };
                if w.is_none() {
                    w = Some(rt.weight(dtype, &[n, k], &bytes(1)?)?);
                }
                cases.push((op, rt.tensor(dtype, &[m, k], &bytes(0)?)?, rt.zeros(out, &[m, n])?, Duration::MAX));
            }
            let Some(w) = w else { continue };
            for _ in 0..40 {
                for (op, x, out, best) in &mut cases {
                    let start = Instant::now();
                    rt.run(op, &[&*x, &w, &*out])?;
                    *best = (*best).min(start.elapsed());
                }
            }
            for (i, few) in cases.iter().enumerate() {
                for (j, many) in cases.iter().enumerate().skip(i + 1) {
                    if few.3.as_secs_f64() > 1.1 * many.3.as_secs_f64() {
                        cliffs.push(format!(
                            "{dtype} {n}x{k}: {} rows {:?}, {} rows {:?}",
                            ROWS[i], few.3, ROWS[j], many.3
                        ));
                    }
                }
            }
            let times: Vec<_> =
                ROWS.iter().zip(&cases).map(|(m, c)| format!("{m}: {:.0}", c.3.as_secs_f64() * 1e6)).collect();
            println!("{dtype} by {n} x {k}, us for each number of rows: {}", times.join(", "));
        }
    }
    assert!(cliffs.is_empty(), "{cliffs:#?}");
    Ok(())
}
