//! Writing new keys or values into a cache, converting to its dtype.
//!
//! `cache[slots[t]] = x[t]` for each token; a slot below 0 or beyond the cache writes nothing. Where two tokens name the
//! same slot the later one wins. Rows of the cache that no slot names keep their bytes.
//!
//! A paged cache `[pages, page, heads, d]` counts its rows through: slot `page * page_size + row`. Quantized caches
//! (q8_0, q4_0) are encoded exactly as `convert` does, in blocks along `d`; values beyond a float format's range saturate
//! in fp8 and become infinite elsewhere.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `cache[slots[t]] = x[t]`: see the [module](self).
    KvAppend = "kv_append";
    operands {
        /// `[tokens, heads, d]`
        x: In,
        /// i32 `[tokens]`
        slots: In,
        /// `[capacity, heads, d]` or `[pages, page, heads, d]`
        cache: InOut,
    }
    optional {}
    fields {}
}

/// What a cache of keys or values may hold.
pub(crate) const CACHE_TYPES: &[DType] =
    &[DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2, DType::Q8_0, DType::Q4_0];

/// Rows of a cache, counted through its pages.
pub(crate) fn cache_rows(cache: &Spec) -> usize {
    cache.shape()[..cache.rank() - 2].iter().product()
}

/// The rules of a cache that rows `[heads, d]` of `x` are written into.
pub(crate) fn check_cache(x: &Spec, slots: &Spec, cache: &Spec) -> Result<(), String> {
    ensure!(matches!(cache.rank(), 3 | 4), "cache must be [capacity, heads, d] or [pages, page, heads, d]");
    let (heads, d) = (x.dim(1), x.dim(0));
    ensure!(cache.dim(1) == heads && cache.dim(0) == d, "cache rows must be {heads} x {d}, as x's");
    one_of("cache", cache.dtype(), CACHE_TYPES)?;
    ensure!(slots.dtype() == DType::I32 && slots.shape() == [x.dim(2)], "slots must be i32 [{}]", x.dim(2));
    Ok(())
}

/// The bytes of a cache that writing a row for each token touches.
pub(crate) fn appended_bytes(x: &Spec, cache: &Spec) -> u64 {
    let rows = x.dim(2).min(cache_rows(cache));
    cache.dtype().bytes(rows * cache.dim(1) * cache.dim(0)).unwrap_or(0) as u64
}

/// For each token the cache row it goes to, if any: a later token wins over an earlier one.
pub(crate) fn destinations(slots: &Array, rows: usize) -> Vec<Option<usize>> {
    let last: std::collections::HashMap<i64, usize> =
        slots.data.iter().enumerate().map(|(t, &s)| (s as i64, t)).collect();
    let inside = |slot: i64| usize::try_from(slot).ok().filter(|&s| s < rows);
    slots.data.iter().enumerate().map(|(t, &s)| inside(s as i64).filter(|_| last[&(s as i64)] == t)).collect()
}

/// Distinct rows in random order, but for one slot that writes nothing and one that is named twice.
pub(crate) fn fill_slots(tokens: usize, rows: usize, rng: &mut Rng) -> Vec<f64> {
    // Of a vast cache every n-th row will do.
    let named = rows.min(tokens.max(1 << 20));
    let step = rows.checked_div(named).unwrap_or(1);
    let slot = |s: usize| if s < named { (s * step) as f64 } else { -1.0 };
    let mut all: Vec<f64> = (0..named.max(tokens)).map(slot).collect();
    (1..all.len()).rev().for_each(|i| all.swap(i, rng.below(i + 1)));
    all.truncate(tokens);
    if tokens > 4 {
        (all[1], all[3]) = (rows as f64, all[0]);
    }
    all
}

impl Semantics for KvAppend {
    fn check(&self) -> Result<(), String> {
        ensure!(self.x.rank() == 3, "x must be [tokens, heads, d]");
        ensure!(self.x.dtype().is_float(), "x is {}, must be f32, f16 or bf16", self.x.dtype());
        check_cache(&self.x, &self.slots, &self.cache)
    }

    fn features(&self) -> Features {
        if self.cache.rank() == 4 { Features::PAGED } else { Features::empty() }
    }

    fn flops(&self) -> u64 {
        0
    }

    fn bytes(&self, _operands: &Operands) -> u64 {
        let read = (self.x.bytes() as u64).saturating_add(self.slots.bytes() as u64);
        read.saturating_add(appended_bytes(&self.x, &self.cache))
    }

    fn reference(&self, arrays: &mut Arrays) {
        let width = self.x.dim(1) * self.x.dim(0);
        let mut cache = arrays.of("cache").data.clone();
        for (t, slot) in destinations(arrays.of("slots"), cache_rows(&self.cache)).into_iter().enumerate() {
            if let Some(slot) = slot {
                cache[slot * width..][..width].copy_from_slice(&arrays.of("x").data[t * width..][..width]);
            }
        }
        arrays.set("cache", cache);
    }

    fn bound(&self, _output: &str) -> Bound {
        Bound::EXACT
    }

    fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        match operand.name {
            "slots" => Some(fill_slots(self.x.dim(2), cache_rows(&self.cache), rng)),
            // A block that holds NaN or an infinity has no defined code.
            _ if self.cache.dtype().is_quantized() && fill == Fill::Special => {
                Some((0..operand.spec.numel()).map(|_| rng.value(Fill::Normal)).collect())
            }
            _ => None,
        }
    }

    fn class(&self) -> Self {
        let tokens = class_rows(self.x.dim(2));
        let build = || -> crate::Result<Self> {
            Ok(KvAppend {
                x: Spec::new(self.x.dtype(), &[tokens, self.x.dim(1), self.x.dim(0)])?,
                slots: Spec::new(DType::I32, &[tokens])?,
                cache: self.cache.dense(),
                ..*self
            })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let op = |x, cache, tokens, heads, d, rows: &[usize]| {
            let cache = spec(cache, &[rows, &[heads, d]].concat());
            KvAppend::new(spec(x, &[tokens, heads, d]), spec(I32, &[tokens]), cache)
        };
        let mut all = Vec::new();
        for (tokens, heads, d, rows) in [(1, 1, 1, 1), (0, 2, 8, 5), (3, 0, 8, 5), (4, 2, 8, 0), (1, 4, 64, 17), (13, 3, 72, 31), (9, 2, 5, 4)]
        {
            all.push(op(F32, F32, tokens, heads, d, &[rows]));
        }
        for x in [F32, F16, BF16] {
            for &cache in CACHE_TYPES {
                all.push(op(x, cache, 1, 2, 64, &[9]));
                all.push(op(x, cache, 7, 2, 96, &[3, 4]));
            }
        }
        let base = op(F32, F16, 6, 2, 64, &[11]);
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        all.push(KvAppend { x: strided(F32, &[6, 2, 64], &[512, 64, 1]), ..base });
        all.push(KvAppend { x: strided(F32, &[6, 2, 64], &[128, 1, 2]), ..base });
        all.push(KvAppend { cache: strided(F16, &[11, 2, 64], &[64, 11 * 64, 1]), ..base });
        all.push(KvAppend { cache: strided(Q8_0, &[11, 2, 64], &[256, 64, 1]), ..base });
        all.push(KvAppend { slots: strided(I32, &[6], &[2]), ..base });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn op(tokens: usize, cache: &[usize]) -> KvAppend {
        let x = spec(DType::F32, &[tokens, 1, 2]);
        KvAppend::new(x, spec(DType::I32, &[tokens]), spec(DType::F32, cache))
    }

    #[test]
    fn cases_hold() {
        check_cases::<KvAppend>();
    }

    #[test]
    fn rows_go_to_their_slots_and_the_rest_stays() {
        let x: Vec<f64> = (1..=10).map(f64::from).collect();
        let old = [-1.0; 8];
        // the second row is below the cache, the third beyond it; the last two name the same slot
        let slots = [3.0, -1.0, 4.0, 1.0, 1.0];
        for shape in [&[4, 1, 2][..], &[2, 2, 1, 2]] {
            let got = compute(op(5, shape), &[("x", &x), ("slots", &slots), ("cache", &old)]);
            assert_eq!(got.of("cache").data, [-1.0, -1.0, 9.0, 10.0, -1.0, -1.0, 1.0, 2.0]);
        }
        let far = compute(op(2, &[4, 1, 2]), &[("slots", &[i32::MIN as f64, i32::MAX as f64]), ("cache", &old)]);
        assert_eq!(far.of("cache").data, old);
    }

    #[test]
    fn the_fill_is_distinct_but_for_the_corners() {
        let slots = fill_slots(8, 20, &mut Rng(1));
        assert_eq!(slots[1], 20.0);
        assert_eq!(slots[0], slots[3]);
        let kept: std::collections::HashSet<u64> = slots.iter().map(|s| s.to_bits()).collect();
        assert_eq!(kept.len(), 7);
        assert_eq!(fill_slots(3, 0, &mut Rng(1)), [-1.0; 3]);
    }

    #[test]
    fn refusals() {
        let good = op(3, &[4, 1, 2]);
        assert_refused(KvAppend { slots: spec(DType::I32, &[2]), ..good }, "slots");
        assert_refused(KvAppend { slots: spec(DType::F32, &[3]), ..good }, "slots");
        assert_refused(KvAppend { cache: spec(DType::F32, &[4, 2, 2]), ..good }, "cache rows");
        assert_refused(KvAppend { cache: spec(DType::F32, &[4, 2]), ..good }, "cache must be");
        assert_refused(KvAppend { cache: spec(DType::I8, &[4, 1, 2]), ..good }, "cache is");
        assert_refused(KvAppend { x: spec(DType::I8, &[3, 1, 2]), ..good }, "x is");
    }
}
