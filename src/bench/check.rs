//! A result whose output was not checked is not a result. Small outputs are compared whole; of large ones a part is computed again
//! in f64 from the very bytes the device was given: some rows and columns of a product, the last queries of some heads, ...

use super::record::Correctness;
use crate::{
    conformance::{Stats, rewrite},
    error::{Error, Result},
    layout::Spec,
    op::{Array, Arrays, Op, Operand, Role},
    quant,
};

/// Which indices of each dimension of an operand take part; `None` is all of them.
type Picks = Vec<Option<Vec<usize>>>;

/// Compares outputs (`after`, by operand) of one launch on operands that held `before`.
pub(super) fn check(op: &Op, before: &[Vec<u8>], after: &[Option<Vec<u8>>]) -> Result<Correctness> {
    let operands = op.operands();
    let picks: Vec<Picks> = operands.iter().map(|o| picks(op, o)).collect();
    let part = if picks.iter().flatten().all(Option::is_none) {
        *op
    } else {
        let smaller = |o: &Operand| {
            let own = &picks[operands.iter().position(|p| p.name == o.name)?];
            let extent = |(n, pick): (&usize, &Option<Vec<usize>>)| pick.as_ref().map_or(*n, Vec::len);
            let shape: Vec<usize> = o.spec.shape().iter().zip(own).map(extent).collect();
            Spec::new(o.spec.dtype(), &shape).ok()
        };
        rewrite(op, smaller).ok_or_else(|| Error::invalid(op, "no part of it can be checked"))?
    };
    let mut expected = Arrays::default();
    for ((o, full), (bytes, picks)) in part.operands().iter().zip(&operands).zip(before.iter().zip(&picks)) {
        let mut array = Array::zeros(o.spec);
        if o.role != Role::Out {
            array.data = gather(&full.spec, bytes, picks)?;
        }
        expected.push(o.name, array);
    }
    part.reference(&mut expected)?;
    let (mut stats, mut why, mut bound, mut hash) = (Stats::default(), String::new(), String::new(), 0);
    for ((o, full), (bytes, picks)) in part.operands().iter().zip(&operands).zip(after.iter().zip(&picks)) {
        let Some(bytes) = bytes else { continue };
        let got = Array { spec: o.spec, data: gather(&full.spec, bytes, picks)?, magnitude: Vec::new() };
        let b = part.bound(o.name);
        stats.merge(Stats::new(&b, expected.of(o.name), &got));
        if let Err(wrong) = part.accept(o.name, &expected, &got) {
            why = wrong;
        }
        if bound.is_empty() {
            bound = match b.nmse {
                Some(nmse) => format!("nmse {nmse:e}"),
                None => format!("relative {:.3e} + {} ulp", b.relative, b.ulps),
            };
            hash = crate::conformance::fnv1a(bytes);
        }
    }
    Ok(Correctness {
        checked: stats.elements > 0,
        elements: stats.elements,
        nmse: stats.nmse,
        max_rel: stats.max_rel,
        bound,
        output_hash: format!("{hash:016x}"),
        why,
    })
}

/// At most `count` of `n` indices, evenly spread, the last one among them.
fn spread(n: usize, count: usize) -> Option<Vec<usize>> {
    (n > count).then(|| (0..count).map(|i| (i + 1) * n / count - 1).collect())
}

fn picks(op: &Op, operand: &Operand) -> Picks {
    let (name, rank) = (operand.name, operand.spec.rank());
    let all = vec![None; rank];
    let last = |pick: Option<Vec<usize>>| (0..rank).map(|i| if i + 1 == rank { pick.clone() } else { None }).collect();
    if op.operands().iter().any(|o| !o.spec.is_dense()) || op.cost().flops.max(op.cost().bytes) < 20_000_000 {
        return all;
    }
    match op {
        Op::Matmul(a) if a.out.rank() == 2 => {
            let blocks = a.w_scale.is_some_and(|s| s.rank() == 2);
            let (rows, columns) = (spread(a.out.dim(1), 4), spread(a.out.dim(0), 48).filter(|_| !blocks));
            match name {
                "x" => vec![rows, None],
                "w" | "up" => vec![columns, None],
                "out" | "residual" => vec![rows, columns],
                "x_scale" => vec![rows],
                "bias" => vec![columns],
                "w_scale" if a.w_scale.is_some_and(|s| s.numel() == a.out.dim(0)) => vec![columns],
                _ => all,
            }
        }
        Op::GroupedMatmul(a) => {
            let columns = spread(a.w.dim(1), (20_000_000 / a.x.numel().max(1)).clamp(1, 16));
            match name {
                "w" | "up" => vec![None, columns, None],
                "out" => vec![None, columns],
                _ => all,
            }
        }
        // The last queries stand at the last positions, however many there are.
        Op::Attention(a) if a.q.rank() == 4 && a.q_len.is_none() && a.mask.is_none() && a.block_table.is_none() => {
            let (rows, heads, kv_heads) = (a.q.shape()[1], a.q.shape()[2], a.k.shape()[2]);
            let queries = (rows > 4).then(|| (rows - 4..rows).collect::<Vec<_>>());
            let group = heads / kv_heads.max(1);
            let (q_heads, kv_head) = ((kv_heads > 1).then(|| (heads - group..heads).collect()), spread(kv_heads, 1));
            match name {
                "q" | "out" => vec![None, queries, q_heads, None],
                "k" | "v" => vec![None, None, kv_head, None],
                "lse" => vec![None, q_heads, queries],
                "alibi" | "sinks" => vec![q_heads],
                _ => all,
            }
        }
        Op::LinearAttention(a) => {
            let (batch, heads) = (spread(a.q.shape()[0], 2), spread(a.q.shape()[2], 1));
            match name {
                "q" | "k" | "v" | "out" => vec![batch, None, heads, None],
                "lengths" => vec![batch],
                _ => all,
            }
        }
        Op::SsmScan(a) if a.b.shape()[2] == 1 => {
            let heads = spread(a.x.shape()[2], 2);
            match name {
                "x" | "out" => vec![None, None, heads, None],
                "dt" => vec![None, None, heads],
                "a" | "d" | "dt_bias" => vec![heads],
                "state" => vec![None, heads, None, None],
                _ => all,
            }
        }
        Op::SelectiveScan(a) => {
            let channels = spread(a.x.dim(0), 16);
            match name {
                "x" | "dt" | "out" | "z" => last(channels),
                "d" | "dt_bias" => vec![channels],
                "a" => vec![channels, None],
                "state" => vec![None, channels, None],
                _ => all,
            }
        }
        Op::Gather(a) => {
            let d = a.out.dim(0);
            let columns = (d > 256).then(|| (d / 256 * 256 - 256..d / 256 * 256).collect::<Vec<_>>());
            if matches!(name, "table" | "out") { last(columns) } else { all }
        }
        _ => all,
    }
}

/// Decodes the picked elements. With picks the tensor is dense.
fn gather(spec: &Spec, bytes: &[u8], picks: &Picks) -> Result<Vec<f64>> {
    if picks.iter().all(Option::is_none) {
        return Ok(Array::decode(*spec, bytes)?.data);
    }
    let (block, size) = spec.dtype().block();
    let width = spec.dim(0);
    let mut rows = vec![0usize];
    for (d, pick) in picks[..picks.len() - 1].iter().enumerate() {
        let n = spec.shape()[d];
        let list: Vec<usize> = pick.clone().unwrap_or_else(|| (0..n).collect());
        rows = rows.iter().flat_map(|r| list.iter().map(move |i| r * n + i)).collect();
    }
    let columns: Vec<usize> = picks[picks.len() - 1].clone().unwrap_or_else(|| (0..width).collect());
    let (Some(first), Some(end)) = (columns.iter().min(), columns.iter().max()) else { return Ok(Vec::new()) };
    let (first, end) = (first / block * block, (end / block + 1) * block);
    let mut row = vec![0.0; end - first];
    let mut out = Vec::with_capacity(rows.len() * columns.len());
    for r in rows {
        let at = (r * width + first) / block * size;
        quant::decode_f64(spec.dtype(), &bytes[at..at + row.len() / block * size], &mut row)?;
        out.extend(columns.iter().map(|c| row[c - first]));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Fill, Rng};

    /// Whatever part is compared, right outputs pass, and an output wrong everywhere does not.
    #[test]
    fn parts_are_judged_as_the_whole() {
        for text in [
            "matmul x=f32:9x640 w=q8_0:1800x640 out=f32:9x1800 bias=f32:1800 residual=f32:9x1800 act=silu",
            "attention q=f32:1x40x8x64 k=f16:1x520x2x64 v=f16:1x520x2x64 out=f32:1x40x8x64 causal=true",
            "ssm_scan x=f32:1x33x8x32 dt=f32:1x33x8 a=f32:8 b=f32:1x33x1x128 c=f32:1x33x1x128 out=f32:1x33x8x32 state=f32:1x8x32x128",
            "gather table=q8_0:20000x1024 index=i32:5 out=f32:5x1024",
            "grouped_matmul x=f32:40x512 w=f32:4x600x512 offsets=i32:5 out=f32:40x600",
        ] {
            let op: Op = text.parse().expect("an operation");
            op.validate().expect(text);
            let (mut rng, mut arrays, mut before) = (Rng(3), Arrays::default(), Vec::new());
            for o in &op.operands() {
                let mut array = Array::zeros(o.spec);
                let mut bytes = vec![0; o.spec.span()];
                if o.role != Role::Out {
                    array.data = op.fill(o, Fill::Normal, &mut rng);
                    array.encode(None, &mut bytes).expect("encodes");
                    array = Array::decode(o.spec, &bytes).expect("decodes");
                }
                arrays.push(o.name, array);
                before.push(bytes);
            }
            op.reference(&mut arrays).expect(text);
            let outputs = |change: fn(f64) -> f64| -> Vec<Option<Vec<u8>>> {
                let one = |o: &Operand| {
                    let mut array = arrays.of(o.name).clone();
                    array.data.iter_mut().for_each(|v| *v = change(*v));
                    let mut bytes = vec![0; o.spec.span()];
                    array.encode(None, &mut bytes).expect("encodes");
                    o.role.writes().then_some(bytes)
                };
                op.operands().iter().map(one).collect()
            };
            let right = check(&op, &before, &outputs(|v| v)).expect(text);
            assert!(right.checked && right.why.is_empty(), "{text}: {}", right.why);
            let total: usize = op.operands().iter().filter(|o| o.role.writes()).map(|o| o.spec.numel()).sum();
            assert!(right.elements > 50 && (right.elements < total || op.cost().flops < 20_000_000), "{text}");
            let wrong = check(&op, &before, &outputs(|v| v * 1.01 + 0.01)).expect(text);
            assert!(!wrong.why.is_empty(), "{text}: a wrong output passes");
        }
    }
}
