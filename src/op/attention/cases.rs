//! The cases of attention: small, each option alone and many together.

use super::*;
use DType::*;

fn spec(dtype: DType, shape: &[usize]) -> Spec {
    Spec::new(dtype, shape).expect("a case's spec")
}

fn strided(dtype: DType, shape: &[usize], strides: &[usize]) -> Spec {
    Spec::strided(dtype, shape, strides).expect("a case's spec")
}

/// Padded: `batch, q_len, capacity, heads, kv_heads, d`.
fn padded([batch, q_len, capacity, heads, kv_heads, d]: [usize; 6], q: DType, kv: DType) -> Attention {
    let (rows, keys) = (spec(q, &[batch, q_len, heads, d]), spec(kv, &[batch, capacity, kv_heads, d]));
    Attention::new(rows, keys, keys, rows)
}

/// Varlen: `sequences, total_q, total_kv, heads, kv_heads, d`.
fn varlen([batch, total_q, total_kv, heads, kv_heads, d]: [usize; 6], q: DType, kv: DType) -> Attention {
    let (rows, keys) = (spec(q, &[total_q, heads, d]), spec(kv, &[total_kv, kv_heads, d]));
    let offsets = Some(spec(I32, &[batch + 1]));
    Attention { q_offsets: offsets, kv_offsets: offsets, ..Attention::new(rows, keys, keys, rows) }
}

/// Pages of `page` keys, `max_pages` for each sequence, and two that nobody owns.
fn paged(op: Attention, batch: usize, page: usize, max_pages: usize) -> Attention {
    let keys = |s: Spec| spec(s.dtype(), &[batch * max_pages + 2, page, s.dim(1), s.dim(0)]);
    let block_table = Some(spec(I32, &[batch, max_pages]));
    Attention { k: keys(op.k), v: keys(op.v), block_table, kv_offsets: None, kv_len: Some(spec(I32, &[batch])), ..op }
}

pub(super) fn all() -> Vec<Attention> {
    let mut all = Vec::new();
    // sizes: nothing of each kind, one, primes, every head dimension, groups from 1 to 8
    for size in [
        [0, 2, 3, 2, 1, 8], [2, 0, 3, 2, 1, 8], [2, 3, 0, 2, 1, 8], [1, 2, 3, 0, 0, 8], [1, 2, 3, 2, 1, 0], [1, 1, 1, 1, 1, 1],
        [2, 5, 7, 3, 3, 5], [1, 17, 17, 2, 2, 32], [1, 1, 131, 8, 1, 64], [1, 1, 67, 6, 2, 72], [1, 3, 33, 5, 1, 80], [2, 1, 40, 7, 1, 96],
        [1, 9, 31, 4, 2, 128], [1, 33, 65, 1, 1, 64], [3, 1, 29, 8, 4, 256],
    ] {
        all.push(padded(size, F32, F32));
        all.push(Attention { causal: true, ..padded(size, F32, F32) });
    }
    for (q, kv) in [(F16, F16), (BF16, BF16), (F32, F16), (F32, BF16), (BF16, F32), (F32, Q8_0), (F32, Q4_0), (BF16, Q8_0), (F16, Q4_0), (F32, F8E4M3), (F16, F8E5M2)] {
        all.push(Attention { causal: true, kv_len: Some(spec(I32, &[2])), ..padded([2, 1, 37, 4, 2, 64], q, kv) });
        all.push(Attention { causal: true, ..padded([1, 7, 19, 4, 1, 96], q, kv) });
    }
    let mixed = padded([1, 2, 21, 4, 2, 64], F32, Q8_0);
    all.push(Attention { v: spec(Q4_0, &[1, 21, 2, 64]), ..mixed });
    let narrow = padded([1, 6, 11, 4, 2, 64], F32, F32);
    all.push(Attention { v: spec(F32, &[1, 11, 2, 40]), out: spec(BF16, &[1, 6, 4, 40]), ..narrow });
    all.push(Attention { numerics: Numerics::Fast, ..padded([1, 9, 33, 4, 2, 64], BF16, BF16) });
    all.push(Attention { numerics: Numerics::Fast, ..padded([1, 1, 65, 4, 2, 64], F32, Q8_0) });
    all.push(Attention { determinism: Determinism::BatchInvariant, ..padded([2, 3, 70, 4, 2, 64], F32, F32) });
    all.push(Attention { determinism: Determinism::ThreadCount, ..padded([1, 1, 300, 4, 2, 64], F32, F32) });

    // options, each alone and together: prefill over an older cache, decode, more queries than keys
    for size in [[3, 6, 23, 4, 2, 32], [3, 1, 45, 8, 2, 64], [2, 9, 4, 2, 1, 16]] {
        let base = padded(size, F32, F32);
        let [batch, q_len, capacity, heads, _, _] = size;
        let lengths = Some(spec(I32, &[batch]));
        let slopes = Some(spec(F32, &[heads]));
        let lse = Some(spec(F32, &[batch, heads, q_len]));
        let key_mask = Some(spec(U8, &[batch, capacity]));
        let mask = |b, h| Some(spec(F32, &[b, h, q_len, capacity]));
        let options = [
            Attention { kv_len: lengths, ..base },
            Attention { q_len: lengths, kv_len: lengths, causal: true, lse, ..base },
            Attention { window: 3, causal: true, ..base },
            Attention { window: 2, ..base },
            Attention { window: usize::MAX, causal: true, ..base },
            Attention { alibi: slopes, causal: true, ..base },
            Attention { alibi: slopes, ..base },
            Attention { softcap: Real::new(2.0), ..base },
            Attention { scale: Real::new(1.0 / 64.0), ..base },
            Attention { key_mask, lse, ..base },
            Attention { sinks: slopes, ..base },
            Attention { sinks: slopes, causal: true, window: 2, lse, kv_len: lengths, ..base },
            Attention { lse, ..base },
            Attention { mask: mask(1, 1), ..base },
            Attention { mask: mask(batch, 1), causal: true, ..base },
            Attention { mask: mask(1, heads), lse, ..base },
        ];
        all.extend(options);
        let half = Some(spec(F16, &[batch, heads, q_len, capacity]));
        all.push(Attention {
            mask: half,
            softcap: Real::new(30.0),
            scale: Real::new(0.2),
            alibi: slopes,
            sinks: slopes,
            kv_len: lengths,
            key_mask,
            lse,
            causal: true,
            window: 9,
            ..base
        });
    }

    // varlen, cross attention among them; pages under both forms of q
    for (q, kv) in [(F32, F32), (BF16, BF16)] {
        let base = varlen([5, 29, 41, 4, 2, 32], q, kv);
        all.push(base);
        all.push(Attention { causal: true, lse: Some(spec(F32, &[4, 29])), ..base });
        all.push(Attention { causal: true, window: 4, sinks: Some(spec(F32, &[4])), alibi: Some(spec(F32, &[4])), ..base });
        all.push(varlen([1, 13, 13, 2, 1, 72], q, kv));
        all.push(Attention { causal: true, ..paged(base, 5, 4, 3) });
    }
    all.push(varlen([0, 3, 4, 2, 1, 16], F32, F32));
    all.push(varlen([3, 0, 0, 2, 1, 16], F32, F32));
    for (kv, page) in [(F32, 1), (F32, 16), (F16, 5), (Q8_0, 8), (Q4_0, 16), (F8E4M3, 4)] {
        let decode = paged(padded([3, 1, 0, 4, 2, 64], F32, kv), 3, page, 3);
        all.push(Attention { causal: true, ..decode });
        all.push(Attention { causal: true, window: 6, ..paged(padded([1, 5, 0, 4, 1, 32], F32, kv), 1, page, 4) });
    }
    let whole = paged(padded([2, 3, 0, 2, 2, 32], F32, F32), 2, 4, 3);
    all.push(Attention { kv_len: None, key_mask: Some(spec(U8, &[2, 12])), ..whole });
    all.push(paged(padded([2, 3, 0, 2, 2, 32], F32, F32), 2, 0, 3));

    // layouts: heads before rows, slices of one fused row, odd strides
    let base = padded([2, 5, 13, 4, 2, 32], F32, F32);
    let heads_first = |n: usize, heads: usize| strided(F32, &[2, n, heads, 32], &[heads * n * 32, 32, n * 32, 1]);
    all.push(Attention { q: heads_first(5, 4), k: heads_first(13, 2), v: heads_first(13, 2), out: heads_first(5, 4), ..base });
    let fused = |n: usize, heads: usize| strided(F32, &[2, n, heads, 32], &[n * 256, 256, 32, 1]);
    all.push(Attention { q: fused(5, 4), k: fused(13, 2), v: fused(13, 2), causal: true, ..base });
    all.push(Attention { k: strided(F32, &[2, 13, 2, 32], &[2048, 64, 1, 2]), ..base });
    all.push(Attention { q: strided(F32, &[2, 5, 4, 32], &[0, 128, 32, 1]), k: strided(F32, &[2, 13, 2, 32], &[0, 64, 32, 1]), ..base });
    let pitch = |d: DType| strided(d, &[2, 13, 2, 32], &[13 * 128, 128, 64, 1]);
    all.push(Attention { k: pitch(Q8_0), v: pitch(Q4_0), causal: true, ..base });
    all
}
