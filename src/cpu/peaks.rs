//! The processor's limits, measured with all threads of the pool: register-only loops of multiply-adds, and streams through a
//! buffer many times the size of the second cache. The best of a few runs counts, since other programs only slow it down.

use std::{hint::black_box, time::Instant};

use super::{
    pool::Pool,
    simd::{Isa, Simd, simd},
};
use crate::{
    backend::Peaks,
    error::{Error, Result},
};

/// Rounds of a task's loop: a task takes a fraction of a millisecond.
const ROUNDS: usize = 40_000;
/// Chains of dependent multiply-adds: enough to hide their latency (4 to 5 cycles, two a cycle).
const CHAINS: usize = 12;
const RUNS: usize = 5;
/// Bytes of the stream, and of a task's part of it.
const STREAM: usize = 64 << 20;
const PART: usize = 1 << 20;

pub(super) fn measure(isa: Isa, pool: &mut Pool) -> Result<Peaks> {
    let mut peaks = Peaks::default();
    let tasks = 8 * pool.threads();
    let work = |per_round: usize| (tasks * ROUNDS * per_round) as f64;
    let f32_ops = simd!(isa, s => operations(s));
    peaks.f32_flops = work(f32_ops) / best(|| pool.run(tasks, |_, _| simd!(isa, s => multiply_add(s))));
    // Where the processor has no dot product of small types, or a slower one, they are computed in f32.
    (peaks.half_flops, peaks.int8_ops) = (peaks.f32_flops, peaks.f32_flops);
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx512(_)) {
        use super::simd::{DotBf16, DotInt8};
        if let Some(dot) = DotBf16::detect() {
            peaks.half_flops = peaks
                .half_flops
                .max(work(CHAINS * 64) / best(|| pool.run(tasks, |_, _| run(|| dot.chains::<CHAINS>(ROUNDS)))));
        }
        if let Some(dot) = DotInt8::detect() {
            peaks.int8_ops = peaks
                .int8_ops
                .max(work(CHAINS * 128) / best(|| pool.run(tasks, |_, _| run(|| dot.chains::<CHAINS>(ROUNDS)))));
        }
    }
    let mut buffer: Vec<f32> = Vec::new();
    let room = buffer.try_reserve_exact(STREAM / 4);
    room.map_err(|_| Error::OutOfMemory { device: "cpu".into(), bytes: STREAM, available: None })?;
    buffer.resize(STREAM / 4, 1.0);
    let read = best(|| {
        pool.run(STREAM / PART, |i, _| {
            black_box(simd!(isa, s => total(s, &buffer[i * PART / 4..][..PART / 4])));
        })
    });
    peaks.read_bytes = STREAM as f64 / read;
    let (from, to) = buffer.split_at_mut(STREAM / 8);
    let parts: Vec<_> = from.chunks(PART / 4).zip(to.chunks_mut(PART / 4).map(std::sync::Mutex::new)).collect();
    let copy = best(|| {
        pool.run(parts.len(), |i, _| {
            if let (from, Ok(mut to)) = (parts[i].0, parts[i].1.lock()) {
                to.copy_from_slice(from);
            }
        })
    });
    peaks.copy_bytes = STREAM as f64 / copy;
    Ok(peaks)
}

/// Runs what the compiler would otherwise leave out.
#[cfg(target_arch = "x86_64")]
fn run<T>(f: impl FnOnce() -> T) {
    black_box(f());
}

/// Seconds of the fastest run.
fn best(mut run: impl FnMut()) -> f64 {
    let mut seconds = f64::INFINITY;
    for _ in 0..RUNS {
        let start = Instant::now();
        run();
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    seconds.max(1e-9)
}

/// Operations of a round.
#[inline(always)]
fn operations<S: Simd>(_s: S) -> usize {
    2 * S::LANES * CHAINS
}

#[inline(always)]
fn multiply_add<S: Simd>(s: S) {
    let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
    let mut chains = [s.splat(1.0); CHAINS];
    for _ in 0..ROUNDS {
        let mut i = 0;
        while i < CHAINS {
            chains[i] = s.fma(chains[i], a, b);
            i += 1;
        }
    }
    black_box(chains.iter().fold(0.0, |sum, &c| sum + s.sum(c)));
}

#[inline(always)]
fn total<S: Simd>(s: S, values: &[f32]) -> f32 {
    let mut sums = [s.zero(); 8];
    for part in values.chunks_exact(8 * S::LANES) {
        let mut i = 0;
        while i < 8 {
            // SAFETY: the part has 8 vectors.
            sums[i] = s.add(sums[i], unsafe { s.load(part.as_ptr().add(i * S::LANES)) });
            i += 1;
        }
    }
    sums.iter().fold(0.0, |sum, &c| sum + s.sum(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_plausible_and_quick() {
        let (start, mut pool) = (Instant::now(), Pool::new(2));
        for isa in Isa::available() {
            let peaks = measure(isa, &mut pool).unwrap();
            println!("{}: {peaks:?}", isa.name());
            for rate in [peaks.f32_flops, peaks.half_flops, peaks.int8_ops, peaks.read_bytes, peaks.copy_bytes] {
                assert!(rate > 1e7 && rate < 1e16, "{}: {peaks:?}", isa.name());
            }
        }
        assert!(start.elapsed().as_secs() < 20);
    }
}
