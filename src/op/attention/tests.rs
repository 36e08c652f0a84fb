use super::{super::testing::*, *};

const INF: f64 = f64::INFINITY;

fn plain(batch: usize, q_len: usize, capacity: usize, heads: usize, kv_heads: usize, d: usize) -> Attention {
    let (q, k) = (spec(DType::F32, &[batch, q_len, heads, d]), spec(DType::F32, &[batch, capacity, kv_heads, d]));
    Attention::new(q, k, k, q)
}

fn i32s(n: usize) -> Option<Spec> {
    Some(spec(DType::I32, &[n]))
}

fn f32s(shape: &[usize]) -> Option<Spec> {
    Some(spec(DType::F32, shape))
}

/// One query over keys with one element each: scores are the keys themselves.
fn scored(op: Attention, scores: &[f64], values: &[f64], more: &[(&str, &[f64])]) -> (f64, f64) {
    let op = Attention { scale: 1.0.into(), lse: f32s(&[1, 1, 1]), ..op };
    let given = [&[("q", &[1.0][..]), ("k", scores), ("v", values)], more].concat();
    let got = compute(op, &given);
    (got.of("out").data[0], got.of("lse").data[0])
}

#[test]
fn cases_hold() {
    check_cases::<Attention>();
}

#[test]
fn softmax_of_known_scores() {
    let op = plain(1, 1, 3, 1, 1, 1);
    let weights = [1.0, 2f64.exp(), (-1f64).exp()];
    let sum: f64 = weights.iter().sum();
    let want = (10.0 + 20.0 * weights[1] + 30.0 * weights[2]) / sum;
    let (out, lse) = scored(op, &[0.0, 2.0, -1.0], &[10.0, 20.0, 30.0], &[]);
    assert_close(&[out, lse], &[want, sum.ln()]);
    let (out, lse) = scored(op, &[5000.0, 5002.0, 4999.0], &[10.0, 20.0, 30.0], &[]);
    assert_close(&[out, lse], &[want, 5000.0 + sum.ln()]);
    let capped = Attention { softcap: 2.0.into(), ..op };
    let (_, lse) = scored(capped, &[1e9, -1e9, 0.0], &[0.0; 3], &[]);
    assert_close(&[lse], &[(2f64.exp() + (-2f64).exp() + 1.0).ln()]);
}

#[test]
fn the_default_scale() {
    let op = Attention { lse: f32s(&[1, 1, 1]), ..plain(1, 1, 1, 1, 1, 4) };
    let got = compute(op, &[("q", &[1.0; 4]), ("k", &[3.0; 4])]);
    assert_close(&got.of("lse").data, &[6.0]);
}

#[test]
fn special_scores() {
    let op = plain(1, 1, 2, 1, 1, 1);
    for bad in [f64::NAN, INF] {
        let (out, lse) = scored(op, &[0.0, bad], &[1.0, 2.0], &[]);
        assert!(out.is_nan() && lse.is_nan());
    }
    assert_eq!(scored(op, &[0.0, -INF], &[1.0, 2.0], &[]), (1.0, 0.0), "-inf has no weight");
    assert_eq!(scored(op, &[-INF, -INF], &[1.0, 2.0], &[]), (0.0, -INF));
    // only the row with the NaN is spoilt
    let rows = compute(plain(1, 2, 2, 1, 1, 1), &[("q", &[f64::NAN, 1.0]), ("k", &[1.0, 2.0]), ("v", &[3.0, 3.0])]);
    assert!(rows.of("out").data[0].is_nan());
    assert_close(&rows.of("out").data[1..], &[3.0]);
}

#[test]
fn rows_that_see_nothing() {
    let op = plain(1, 1, 2, 1, 1, 1);
    let hidden = Attention { key_mask: Some(spec(DType::U8, &[1, 2])), ..op };
    assert_eq!(scored(hidden, &[1.0, f64::NAN], &[f64::NAN, 2.0], &[("key_mask", &[0.0, 0.0])]), (0.0, -INF));
    let sinking = Attention { sinks: f32s(&[1]), ..hidden };
    assert_eq!(scored(sinking, &[1.0, 2.0], &[1.0, 2.0], &[("sinks", &[0.5])]), (0.0, 0.5));
    let masked = Attention { mask: f32s(&[1, 1, 1, 2]), ..op };
    assert_eq!(scored(masked, &[1.0, 2.0], &[1.0, 2.0], &[("mask", &[-INF, -INF])]), (0.0, -INF));
    assert!(scored(masked, &[1.0, 2.0], &[1.0, 2.0], &[("mask", &[-INF, f64::NAN])]).0.is_nan());
    let none = plain(1, 2, 0, 1, 1, 1);
    assert_eq!(compute(none, &[("q", &[1.0, 2.0])]).of("out").data, [0.0, 0.0]);
    // more queries than keys: the first ones stand before every key
    let early = Attention { causal: true, ..plain(1, 3, 1, 1, 1, 1) };
    assert_eq!(compute(early, &[("q", &[1.0; 3]), ("k", &[1.0]), ("v", &[5.0])]).of("out").data, [0.0, 0.0, 5.0]);
}

#[test]
fn a_sink_takes_weight_and_gives_none() {
    let op = Attention { sinks: f32s(&[1]), ..plain(1, 1, 1, 1, 1, 1) };
    let (out, lse) = scored(op, &[1.0], &[8.0], &[("sinks", &[1.0])]);
    assert_close(&[out, lse], &[4.0, 1.0 + 2f64.ln()]);
}

#[test]
fn windows_and_slopes() {
    let (q, k) = ([1.0; 4], [0.0; 4]);
    let v = [1.0, 10.0, 100.0, 1000.0];
    let out = |op: Attention| compute(op, &[("q", &q), ("k", &k), ("v", &v)]).of("out").data.clone();
    let base = plain(1, 4, 4, 1, 1, 1);
    assert_close(&out(Attention { causal: true, window: 2, ..base }), &[1.0, 5.5, 55.0, 550.0]);
    assert_close(&out(Attention { window: 2, ..base }), &[5.5, 37.0, 370.0, 550.0]);
    assert_close(&out(Attention { causal: true, window: 1, ..base }), &v);
    assert_close(&out(Attention { causal: true, window: usize::MAX, ..base }), &out(Attention { causal: true, ..base }));
    let slope = Attention { alibi: f32s(&[1]), lse: f32s(&[1, 1, 4]), ..base };
    let got = compute(slope, &[("alibi", &[0.5])]);
    let last: f64 = [-1.5f64, -1.0, -0.5, 0.0].iter().map(|s| s.exp()).sum();
    assert_close(&got.of("lse").data[3..], &[last.ln()]);
}

#[test]
fn groups_of_heads_share_keys() {
    let (q, k, v) = (normal(6 * 4 * 8, 1), normal(5 * 2 * 8, 2), normal(5 * 2 * 8, 3));
    let grouped = compute(plain(1, 6, 5, 4, 2, 8), &[("q", &q), ("k", &k), ("v", &v)]);
    let repeat = |x: &[f64]| x.chunks(8).flat_map(|head| [head, head].concat()).collect::<Vec<f64>>();
    let full = compute(plain(1, 6, 5, 4, 4, 8), &[("q", &q), ("k", &repeat(&k)), ("v", &repeat(&v))]);
    assert_close(&grouped.of("out").data, &full.of("out").data);
}

#[test]
fn a_decode_step_is_the_last_row_of_prefill() {
    let (q, k, v) = (normal(9 * 16, 1), normal(9 * 16, 2), normal(9 * 16, 3));
    let prefill = compute(Attention { causal: true, ..plain(1, 9, 9, 2, 2, 8) }, &[("q", &q), ("k", &k), ("v", &v)]);
    let mut cache = vec![f64::NAN; 12 * 16]; // keys beyond kv_len hold anything
    let step = Attention { causal: true, kv_len: i32s(1), ..plain(1, 1, 12, 2, 2, 8) };
    for row in [4, 8] {
        let n = (row + 1) * 16;
        cache[..n].copy_from_slice(&k[..n]);
        let keys = cache.clone();
        cache[..n].copy_from_slice(&v[..n]);
        let now = [(row + 1) as f64];
        let got = compute(step, &[("q", &q[n - 16..n]), ("k", &keys), ("v", &cache), ("kv_len", &now)]);
        assert_close(&got.of("out").data, &prefill.of("out").data[n - 16..n]);
    }
}

#[test]
fn lengths_are_clamped() {
    let op = Attention { q_len: i32s(4), kv_len: i32s(4), lse: f32s(&[4, 1, 2]), ..plain(4, 2, 3, 1, 1, 1) };
    let (q, k, v) = ([1.0; 8], [0.0; 12], normal(12, 1));
    let run = |q_len: [f64; 4], kv_len: [f64; 4]| {
        compute(op, &[("q", &q), ("k", &k), ("v", &v), ("q_len", &q_len), ("kv_len", &kv_len)])
    };
    let wild = run([9.0, -1.0, 2.0, i32::MAX as f64], [3.0, 3.0, -7.0, 1e9]);
    let tame = run([2.0, 0.0, 2.0, 2.0], [3.0, 3.0, 0.0, 3.0]);
    assert_eq!(wild.of("out").data, tame.of("out").data);
    assert_eq!(tame.of("out").data[2..6], [0.0; 4]);
    assert_eq!(tame.of("lse").data[2..6], [-INF; 4]);
}

#[test]
fn varlen_equals_separate_calls() {
    let (q, k, v) = (normal(10 * 8, 1), normal(12 * 8, 2), normal(12 * 8, 3));
    let op = plain(1, 10, 12, 2, 2, 4);
    let rows = |n| spec(DType::F32, &[n, 2, 4]);
    let (q_at, kv_at) = ([0.0, 3.0, 3.0, 8.0], [1.0, 6.0, 9.0, 99.0]); // the last is clamped to 12
    let varlen = Attention { q: rows(10), k: rows(12), v: rows(12), out: rows(10), q_offsets: i32s(4), kv_offsets: i32s(4), lse: f32s(&[2, 10]), causal: true, ..op };
    let got = compute(varlen, &[("q", &q), ("k", &k), ("v", &v), ("q_offsets", &q_at), ("kv_offsets", &kv_at)]);
    for (q_rows, kv_rows) in [(0..3, 1..6), (3..8, 9..12)] {
        let op = Attention { causal: true, lse: f32s(&[1, 2, q_rows.len()]), ..plain(1, q_rows.len(), kv_rows.len(), 2, 2, 4) };
        let part = |x: &[f64], r: &std::ops::Range<usize>| x[r.start * 8..r.end * 8].to_vec();
        let alone = compute(op, &[("q", &part(&q, &q_rows)), ("k", &part(&k, &kv_rows)), ("v", &part(&v, &kv_rows))]);
        assert_close(&part(&got.of("out").data, &q_rows), &alone.of("out").data);
        let n = q_rows.len();
        (0..2).for_each(|h| assert_close(&got.of("lse").data[h * 10..][q_rows.clone()], &alone.of("lse").data[h * n..][..n]));
    }
    assert_eq!(got.of("out").data[8 * 8..], [0.0; 16], "rows in no sequence");
    assert_eq!(got.of("lse").data[8..10], [-INF; 2]);
}

#[test]
fn pages_equal_contiguous_keys() {
    let (q, k, v) = (normal(2 * 3 * 4, 1), normal(2 * 6 * 4, 2), normal(2 * 6 * 4, 3));
    let lengths = [5.0, 6.0];
    let base = Attention { causal: true, kv_len: i32s(2), ..plain(2, 3, 6, 1, 1, 4) };
    let whole = compute(base, &[("q", &q), ("k", &k), ("v", &v), ("kv_len", &lengths)]);
    // pages of two keys, in the order 4 0 2 | 6 1 3; page 5 is nobody's
    let table = [4.0, 0.0, 2.0, 6.0, 1.0, 3.0];
    let pages = |x: &[f64]| {
        let mut all = vec![f64::NAN; 7 * 8];
        (0..6).for_each(|i| all[table[i] as usize * 8..][..8].copy_from_slice(&x[i * 8..][..8]));
        all
    };
    let keys = spec(DType::F32, &[7, 2, 1, 4]);
    let op = Attention { k: keys, v: keys, block_table: Some(spec(DType::I32, &[2, 3])), ..base };
    let run = |op: Attention, table: &[f64]| {
        compute(op, &[("q", &q), ("k", &pages(&k)), ("v", &pages(&v)), ("kv_len", &lengths), ("block_table", table)])
    };
    assert_close(&run(op, &table).of("out").data, &whole.of("out").data);
    let rows = spec(DType::F32, &[6, 1, 4]);
    let varlen = Attention { q: rows, out: rows, q_offsets: i32s(3), ..op };
    let given: &[(&str, &[f64])] = &[
        ("q", &q), ("k", &pages(&k)), ("v", &pages(&v)), ("kv_len", &lengths), ("block_table", &table), ("q_offsets", &[0.0, 3.0, 6.0]),
    ];
    assert_close(&compute(varlen, given).of("out").data, &whole.of("out").data);

    // a page that is not there hides its keys, wherever they stand
    let holes = run(op, &[4.0, 7.0, 2.0, -1.0, -1.0, -1.0]);
    let mask = Attention { key_mask: Some(spec(DType::U8, &[2, 6])), ..base };
    let seen = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let masked = compute(mask, &[("q", &q), ("k", &k), ("v", &v), ("kv_len", &lengths), ("key_mask", &seen)]);
    assert_close(&holes.of("out").data, &masked.of("out").data);
}

#[test]
fn masks_broadcast() {
    let base = plain(2, 2, 3, 2, 1, 4);
    let (q, k, v) = (normal(32, 1), normal(24, 2), normal(24, 3));
    let run = |b: usize, h: usize, mask: &[f64]| {
        let op = Attention { mask: f32s(&[b, h, 2, 3]), ..base };
        compute(op, &[("q", &q), ("k", &k), ("v", &v), ("mask", mask)]).of("out").data.clone()
    };
    let per_head = normal(12, 4);
    assert_close(&run(1, 2, &per_head), &run(2, 2, &[per_head.as_slice(), &per_head].concat()));
    let one = &per_head[..6];
    assert_close(&run(1, 1, one), &run(2, 1, &[one, one].concat()));
}

#[test]
fn cost_of_a_decode_step() {
    let op = Op::from(Attention { causal: true, ..plain(1, 1, 100, 4, 2, 64) });
    assert_eq!(op.cost().flops, 100 * 4 * 2 * 128);
    assert_eq!(op.cost().bytes, 4 * (2 * 4 * 64 + 2 * 100 * 2 * 64));
    let prefill = Op::from(Attention { causal: true, ..plain(1, 4, 4, 1, 1, 1) });
    assert_eq!(prefill.cost().flops, 10 * 4);
    let window = Op::from(Attention { causal: true, window: 10, ..plain(1, 1, 100, 1, 1, 1) });
    assert_eq!(window.cost(), Cost { flops: 40, bytes: 4 * (2 + 2 * 11) });
}

#[test]
fn refusals() {
    let op = plain(2, 3, 4, 4, 2, 8);
    assert_refused(Attention { k: spec(DType::F32, &[2, 4, 3, 8]), v: spec(DType::F32, &[2, 4, 3, 8]), ..op }, "multiple");
    assert_refused(Attention { k: spec(DType::F32, &[2, 4, 2, 9]), ..op }, "head dimension");
    assert_refused(Attention { v: spec(DType::F32, &[2, 5, 2, 8]), ..op }, "v must be");
    assert_refused(Attention { out: spec(DType::F32, &[2, 3, 4, 9]), ..op }, "out must be");
    assert_refused(Attention { kv_len: i32s(3), ..op }, "kv_len");
    assert_refused(Attention { q_offsets: i32s(3), ..op }, "rank 3 with q_offsets");
    assert_refused(Attention { kv_offsets: i32s(3), ..op }, "kv_offsets");
    assert_refused(Attention { mask: f32s(&[3, 1, 3, 4]), ..op }, "mask must be");
    assert_refused(Attention { block_table: Some(spec(DType::I32, &[3, 2])), ..op }, "block_table");
    assert_refused(Attention { block_table: Some(spec(DType::I32, &[2, 1 << 40])), ..op }, "fit i32");
    assert_refused(Attention { softcap: Real::new(-1.0), ..op }, "softcap");
    assert_refused(Attention { scale: Real::new(f32::INFINITY), ..op }, "scale");
    assert_refused(Attention { lse: f32s(&[2, 3, 4]), ..op }, "lse must be");
    assert_refused(Attention { k: spec(DType::I8, &[2, 4, 2, 8]), ..op }, "k is i8");
}

/// The bound must hold for plain f32 arithmetic, and a result from a key too few must break it.
#[test]
fn the_bound_separates_rounding_from_errors() {
    for fill in [Fill::Normal, Fill::Large, Fill::Tiny] {
        for (q_len, keys, d) in [(5, 7, 64), (3, 200, 128), (2, 33, 32)] {
            let op = plain(1, q_len, keys, 1, 1, d);
            let mut arrays = filled(op, fill, 3);
            op.reference(&mut arrays);
            let single = |name: &str| arrays.of(name).data.iter().map(|&v| v as f32).collect::<Vec<f32>>();
            let (q, k, v) = (single("q"), single("k"), single("v"));
            let worst = |keys: usize| {
                let mut worst = 0.0f64;
                for i in 0..q_len {
                    let dot = |j: usize| (0..d).map(|x| q[i * d + x] * k[j * d + x]).sum::<f32>() * op.score_scale();
                    let scores: Vec<f32> = (0..keys).map(dot).collect();
                    let largest = scores.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
                    let weights: Vec<f32> = scores.iter().map(|s| (s - largest).exp()).collect();
                    let sum: f32 = weights.iter().sum();
                    for e in 0..d {
                        let got = (0..keys).map(|j| weights[j] * v[j * d + e]).sum::<f32>() / sum;
                        let allowed = op.bound("out").relative * arrays.of("out").magnitude(i * d + e);
                        worst = worst.max((got as f64 - arrays.of("out").data[i * d + e]).abs() / allowed);
                    }
                }
                worst
            };
            assert!(worst(keys) < 0.5, "{fill:?}: {}", worst(keys));
            assert!(fill == Fill::Large || worst(keys - 1) > 2.0, "{fill:?}: {}", worst(keys - 1));
        }
    }
}
