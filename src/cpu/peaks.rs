//! The processor's limits, measured with all threads of the pool: register-only loops of multiply-adds, and streams through a
//! buffer larger than the last cache, of large pages. The best of a few runs counts, since other programs only slow it down.

use std::{hint::black_box, sync::OnceLock, time::Instant};

use super::{
    machine,
    pool::Pool,
    simd::{Isa, Simd, WIDEST, dots, simd},
};
use crate::backend::Peaks;

/// Rounds of a task's loop: a task takes a fraction of a millisecond.
const ROUNDS: usize = 40_000;
/// Chains of dependent multiply-adds: enough to hide their latency (4 to 5 cycles, two a cycle).
const CHAINS: usize = 12;
const RUNS: usize = 5;
/// Numbers of a task's part of the stream.
const PART: usize = 256 << 10;
/// Numbers between what is read and what is asked for.
const AHEAD: usize = 512;

/// Bytes to stream through: more than the last cache holds, within reason.
pub(super) fn stream() -> usize {
    (2 * machine::caches().last).clamp(64 << 20, 256 << 20)
}

/// `stream` is written to.
pub(super) fn measure(isa: Isa, pool: &mut Pool, stream: &mut [f32]) -> Peaks {
    let mut peaks = Peaks::default();
    let tasks = 8 * pool.threads();
    let work = |per_round: usize| (tasks * ROUNDS * per_round) as f64;
    let f32_ops = simd!(isa, s => operations(s));
    peaks.f32_flops = work(f32_ops) / best(|| pool.run(tasks, |_, _| simd!(isa, s => multiply_add(s))));
    // Where the processor has no dot product of small types, or a slower one, they are computed in f32.
    (peaks.half_flops, peaks.int8_ops) = (peaks.f32_flops, peaks.f32_flops);
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx512(_) | Isa::Avx512Bf16(..), Some(dot)) = (isa, super::simd::DotBf16::detect()) {
        let pairs = work(CHAINS * 64) / best(|| pool.run(tasks, |_, _| run(|| dot.chains::<CHAINS>(ROUNDS))));
        peaks.half_flops = peaks.half_flops.max(pairs);
    }
    if isa.dots() {
        let bytes = 4 * dots!(isa, s => operations(s));
        let dots = work(bytes) / best(|| pool.run(tasks, |_, _| dots!(isa, s => dot_bytes(s))));
        peaks.int8_ops = peaks.int8_ops.max(dots);
    }
    stream.fill(1.0); // memory that was never written to is a page of zeros in the cache
    let bytes = size_of_val(stream) as f64;
    let parts = stream.len().div_ceil(PART);
    let part = |i: usize| &stream[i * PART..stream.len().min(i * PART + PART)];
    let one = best(|| pool.run(parts, |i, _| _ = black_box(simd!(isa, s => total(s, part(i))))));
    let four = best(|| pool.run(parts, |i, _| _ = black_box(simd!(isa, s => total_of_four(s, part(i))))));
    peaks.read_bytes = bytes / one.min(four);
    let (from, to) = stream.split_at_mut(stream.len() / 2);
    let parts: Vec<_> = from.chunks(PART).zip(to.chunks_mut(PART).map(std::sync::Mutex::new)).collect();
    let copy = best(|| {
        pool.run(parts.len(), |i, _| {
            if let (from, Ok(mut to)) = (parts[i].0, parts[i].1.lock()) {
                let n = from.len().min(to.len());
                to[..n].copy_from_slice(&from[..n]);
            }
        })
    });
    peaks.copy_bytes = bytes / copy;
    peaks
}

/// True where dot products of bf16 pairs do more than multiply-adds of f32: some processors start one in the time of two, others as many. Measured once.
pub(super) fn pairs_are_faster() -> bool {
    static FASTER: OnceLock<bool> = OnceLock::new();
    *FASTER.get_or_init(measure_pairs)
}

fn measure_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    if let (Some(dot), Some(s)) = (super::simd::DotBf16::detect(), super::simd::Avx512::<false>::detect()) {
        let pairs = best(|| run(|| dot.chains::<CHAINS>(ROUNDS / 4)));
        let singles = best(|| simd!(Isa::Avx512(s), s => multiply_add(s)));
        // A quarter of the rounds, of 64 operations of each chain where the others are 32.
        return singles > 1.2 * 2.0 * pairs;
    }
    false
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

/// Dot products of bytes whose pairs fit 16 bits: the fastest that there is.
#[inline(always)]
fn dot_bytes<S: Simd>(s: S) {
    const LINES: usize = 8;
    const { assert!(CHAINS == 12) }; // as many as are written out
    #[repr(align(64))]
    struct Ones([f32; (LINES + CHAINS / 3) * WIDEST]); // a load from two lines takes the time of two
    // One factor is read, so that nothing can be computed once for all rounds; by three chains, which begin with numbers of their own to stay apart.
    let ones = black_box(Ones([f32::from_bits(0x0101_0101); (LINES + CHAINS / 3) * WIDEST]));
    let (mut chains, one) = ([s.splat_i(0); CHAINS], s.splat_i(0x0101_0101));
    for (i, chain) in chains.iter_mut().enumerate() {
        *chain = s.splat_i(black_box(i as i32));
    }
    macro_rules! round {
        ($from:ident, $($i:literal)*) => {$(
            // SAFETY: LINES and a third of CHAINS vectors were made.
            let u = s.bits(unsafe { s.load($from.add($i / 3 * S::LANES)) });
            chains[$i] = s.dot_small(chains[$i], u, one);
        )*};
    }
    for round in 0..ROUNDS {
        let from = ones.0[round % LINES * S::LANES..].as_ptr();
        round!(from, 0 1 2 3 4 5 6 7 8 9 10 11);
    }
    black_box(chains.iter().fold(0.0, |sum, &c| sum + s.sum(s.float(c))));
}

/// As `total`, by four streams at once and without asking ahead: a Zen 3 reads 18 GB/s so, where one stream gives 14.
#[inline(always)]
fn total_of_four<S: Simd>(s: S, values: &[f32]) -> f32 {
    let (mut sums, quarter, mut p) = ([s.zero(); 8], values.len() / 4, 0);
    while p + 2 * S::LANES <= quarter {
        let mut i = 0;
        while i < 8 {
            // SAFETY: each quarter has two vectors from `p` on.
            sums[i] = unsafe { s.add(sums[i], s.load(values.as_ptr().add(i / 2 * quarter + p + i % 2 * S::LANES))) };
            i += 1;
        }
        p += 2 * S::LANES;
    }
    sums.iter().fold(0.0, |sum, &v| sum + s.sum(v))
}

#[inline(always)]
fn total<S: Simd>(s: S, values: &[f32]) -> f32 {
    let mut sums = [s.zero(); 8];
    for part in values.chunks_exact(8 * S::LANES) {
        let mut i = 0;
        while i < 8 {
            s.prefetch(part.as_ptr().wrapping_add(i * S::LANES + AHEAD).cast());
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
        let (start, mut pool, mut stream) = (Instant::now(), Pool::new(2), vec![0.0; 3 * PART + 5]);
        for isa in Isa::available() {
            let peaks = measure(isa, &mut pool, &mut stream);
            println!("{}: {peaks:?}", isa.name());
            for rate in [peaks.f32_flops, peaks.half_flops, peaks.int8_ops, peaks.read_bytes, peaks.copy_bytes] {
                assert!(rate > 1e7 && rate < 1e16, "{}: {peaks:?}", isa.name());
            }
        }
        assert!(start.elapsed().as_secs() < 20);
    }
}
