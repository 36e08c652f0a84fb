//! Attention in f64, with what errors are relative to.

use std::ops::Range;

use super::{super::grouped_matmul::segments, *};

/// The rows of one sequence.
struct Sequence {
    /// Rows of `q` and `out`, counted through.
    queries: Range<usize>,
    /// Row of `k` and `v` of each valid key, counted through; `None` where no page holds it.
    keys: Vec<Option<usize>>,
}

impl Attention {
    /// Relative error of a weighted sum of values and of the weights' own arithmetic, scores apart.
    pub(super) fn sum_error(&self) -> f64 {
        Bound::dot(self.sizes().capacity).relative + 8.0 * f32::EPSILON as f64
    }

    fn sequences(&self, arrays: &Arrays) -> Vec<Sequence> {
        let Sizes { batch, q_len, capacity, .. } = self.sizes();
        let length = |name: &str, b: usize, most: usize| match arrays.get(name) {
            Some(lengths) => (lengths.data[b].max(0.0) as usize).min(most),
            None => most,
        };
        let q_segments = arrays.get("q_offsets").map(|o| segments(o, q_len));
        let kv_segments = arrays.get("kv_offsets").map(|o| segments(o, capacity));
        let (pages, page) = (self.k.dim(3), self.k.dim(2));
        let sequence = |b: usize| {
            let queries = match &q_segments {
                Some(segments) => segments[b].clone(),
                None => b * q_len..b * q_len + length("q_len", b, q_len),
            };
            let keys = match (&kv_segments, arrays.get("block_table")) {
                (Some(segments), _) => segments[b].clone().map(Some).collect(),
                (None, None) => (0..length("kv_len", b, capacity)).map(|j| Some(b * capacity + j)).collect(),
                (None, Some(table)) => {
                    let at = |j: usize| {
                        let p = table.row(b)[j / page];
                        (p >= 0.0 && p < pages as f64).then(|| p as usize * page + j % page)
                    };
                    (0..length("kv_len", b, capacity)).map(at).collect()
                }
            };
            Sequence { queries, keys }
        };
        (0..batch).map(sequence).collect()
    }
}

/// One visible key: its row, its score, and how far the score may be off.
struct Score {
    row: usize,
    score: f64,
    error: f64,
}

pub(super) fn run(op: &Attention, arrays: &mut Arrays) {
    let Sizes { q_len, heads, dv, .. } = op.sizes();
    let mut out = vec![0.0; op.out.numel()];
    let mut out_mag = vec![0.0; out.len()];
    let mut lse = vec![f64::NEG_INFINITY; op.lse.map_or(0, |s| s.numel())];
    let mut lse_mag = vec![0.0; lse.len()];
    for (b, sequence) in op.sequences(arrays).iter().enumerate() {
        for (i, row) in sequence.queries.clone().enumerate() {
            for h in 0..heads {
                let scores = visible(op, arrays, sequence, (b, i, h));
                let at = (row * heads + h) * dv..(row * heads + h + 1) * dv;
                let (value, magnitude) = weigh(op, arrays, &scores, h, &mut out[at.clone()], &mut out_mag[at]);
                if op.lse.is_some() {
                    let at = if op.q_offsets.is_some() { h * q_len + row } else { (b * heads + h) * q_len + i };
                    (lse[at], lse_mag[at]) = (value, magnitude);
                }
            }
        }
    }
    arrays.set_with("out", out, out_mag);
    if op.lse.is_some() {
        arrays.set_with("lse", lse, lse_mag);
    }
}

/// The scores of the keys that query row `i` of sequence `b` sees with head `h`.
fn visible(op: &Attention, arrays: &Arrays, sequence: &Sequence, (b, i, h): (usize, usize, usize)) -> Vec<Score> {
    let Sizes { batch, q_len, capacity, heads, kv_heads, d, .. } = op.sizes();
    let position = sequence.keys.len() as i64 - sequence.queries.len() as i64 + i as i64;
    let window = if op.window == 0 { i64::MAX } else { i64::try_from(op.window).unwrap_or(i64::MAX) };
    let q = arrays.of("q").row((sequence.queries.start + i) * heads + h);
    let (scale, cap) = (op.score_scale() as f64, op.softcap.f64());
    let c = Bound::dot(d).relative;
    let mut scores = Vec::new();
    for (j, row) in sequence.keys.iter().enumerate() {
        let distance = position - j as i64;
        let hidden = (op.causal && distance < 0) || distance >= window || -distance >= window;
        let key_hidden = arrays.get("key_mask").is_some_and(|m| m.data[b * capacity + j] == 0.0);
        let Some(row) = row.filter(|_| !hidden && !key_hidden) else { continue };
        let k = arrays.of("k").row(row * kv_heads + h / (heads / kv_heads));
        let (dot, abs) = q.iter().zip(k).fold((0.0, 0.0), |(s, a), (q, k)| (s + q * k, a + (q * k).abs()));
        let (mut score, mut magnitude) = (scale * dot, scale.abs() * abs);
        if cap != 0.0 {
            score = cap * (score / cap).tanh();
            magnitude += cap;
        }
        if let Some(slopes) = arrays.get("alibi") {
            score -= slopes.data[h] * distance as f64;
            magnitude += (slopes.data[h] * distance as f64).abs();
        }
        if let Some(mask) = arrays.get("mask") {
            let (of_batch, of_heads) = (mask.spec.dim(3) == batch, mask.spec.dim(2) == heads);
            let matrix = if of_batch { b } else { 0 } * mask.spec.dim(2) + if of_heads { h } else { 0 };
            let added = mask.data[(matrix * q_len + i) * capacity + j];
            if added == f64::NEG_INFINITY {
                continue;
            }
            score += added;
            magnitude += added.abs();
        }
        scores.push(Score { row, score, error: c * (magnitude + score.abs()) });
    }
    scores
}

/// Writes the weighted sum of values, and returns the log-sum-exp and its magnitude.
///
/// Scores off by at most `e` each move a weight `w` by at most `w (1 - w) (exp(2 e) - 1)`, and never beyond 1: a softmax that
/// one key dominates is safe however large its scores. The magnitude holds that share divided by the bound's
/// fraction, so that their product is the allowance.
fn weigh(op: &Attention, arrays: &Arrays, scores: &[Score], h: usize, out: &mut [f64], mag: &mut [f64]) -> (f64, f64) {
    let Sizes { heads, kv_heads, d, .. } = op.sizes();
    let (fraction, c) = (op.sum_error(), Bound::dot(d).relative);
    let sink = arrays.get("sinks").map(|s| s.data[h]);
    let none = scores.iter().all(|s| s.score == f64::NEG_INFINITY);
    if none {
        return (sink.unwrap_or(f64::NEG_INFINITY), sink.map_or(0.0, f64::abs));
    }
    let bad = |v: f64| v.is_nan() || v == f64::INFINITY;
    if scores.iter().any(|s| bad(s.score)) || sink.is_some_and(bad) {
        out.fill(f64::NAN);
        return (f64::NAN, 0.0);
    }
    let largest = scores.iter().map(|s| s.score).chain(sink).fold(f64::NEG_INFINITY, f64::max);
    let sink_weight = sink.map_or(0.0, |s| (s - largest).exp());
    let sum = scores.iter().map(|s| (s.score - largest).exp()).sum::<f64>() + sink_weight;
    let felt = scores.iter().filter(|s| s.score != f64::NEG_INFINITY).map(|s| s.error);
    let error = felt.chain(sink.map(|s| c * s.abs())).filter(|e| e.is_finite()).fold(0.0, f64::max) + c * largest.abs();
    let growth = (2.0 * error).min(80.0).exp_m1(); // beyond, any weight is possible
    for s in scores {
        let weight = (s.score - largest).exp() / sum;
        let v = arrays.of("v").row(s.row * kv_heads + h / (heads / kv_heads));
        let moved = (weight * (1.0 - weight) * growth).min(1.0);
        let allowed = weight + (moved + f32::MIN_POSITIVE as f64) / fraction; // f32 may flush a tiny weight to zero
        for ((out, mag), v) in out.iter_mut().zip(mag.iter_mut()).zip(v) {
            *out += weight * v;
            *mag += allowed * v.abs();
        }
    }
    (largest + sum.ln(), largest.abs() + sum.ln().abs() + 1.0 + error / fraction)
}
