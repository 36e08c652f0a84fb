//! What the encoders search: the scale, and offset, with which rounding a group of numbers to a format's levels loses
//! least. All errors are sums of squares, each times the element's weight `w`.

use half::f16;

use super::{nearest, reciprocal, round};

/// The scale that brings the levels nearest to `x` by least squares, over trial reciprocals of it; `levels` gives those
/// nearest to `x` times a reciprocal. 0 where they are all 0.
pub(super) fn scale<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    tries: impl IntoIterator<Item = f32>,
    levels: impl Fn(f32) -> [f32; N],
) -> f32 {
    let mut best = (0.0, 0.0);
    for inverse in tries {
        let mut lanes = [[0f32; 8]; 2]; // for vectors; every N is a multiple
        let weighted = x.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0);
        for (q, (x, w)) in levels(inverse).as_chunks::<8>().0.iter().zip(weighted) {
            for i in 0..8 {
                lanes[0][i] += w[i] * q[i] * x[i];
                lanes[1][i] += w[i] * q[i] * q[i];
            }
        }
        let [qx, qq] = lanes.map(|lanes| lanes.iter().sum::<f32>() as f64);
        // Least squares leaves the error sum(w x^2) - qx^2 / qq.
        if qq > 0.0 && qx * qx / qq > best.1 {
            best = (qx / qq, qx * qx / qq);
        }
    }
    best.0 as f32
}

/// Reciprocals of scales with which `x`'s extreme lands on `level` times a ratio, for ratios `from..=to` in steps.
pub(super) fn around(extreme: f32, level: f32, from: f32, to: f32, steps: u32) -> impl Iterator<Item = f32> {
    let at = move |i| (from + (to - from) * i as f32 / (steps - 1) as f32) * level / extreme;
    (0..steps).map(at).filter(|inverse| inverse.is_finite())
}

/// Puts the scales of a block's groups on a common grid: `d`, and for each group the index of the factor by which `d` is
/// its scale. `factors` ascend; `levels` gives a group's levels nearest to it times a reciprocal scale.
pub(super) fn scales<const G: usize, const N: usize>(
    x: &[[f32; N]],
    w: &[[f32; N]],
    fits: &[f32; G],
    factors: &[f32],
    levels: impl Fn(usize, f32) -> [f32; N],
) -> (f16, [u8; G]) {
    let farther = |a: f32, b: f32| if b.abs() > a.abs() { b } else { a };
    let widest = factors.iter().copied().fold(0.0, farther);
    let d = f16::from_f32(fits.iter().copied().fold(0.0, farther) / widest);
    let (step, inverse) = (d.to_f32(), reciprocal(d.to_f32()));
    let error = |g: usize, code: usize| -> f64 {
        let scale = step * factors[code];
        let levels = levels(g, reciprocal(scale));
        (0..N).map(|i| w[g][i] as f64 * (x[g][i] as f64 - scale as f64 * levels[i] as f64).powi(2)).sum()
    };
    let codes = std::array::from_fn(|g| {
        let above = factors.partition_point(|&f| f < fits[g] * inverse);
        let near = above.saturating_sub(2)..(above + 2).min(factors.len());
        near.min_by(|&a, &b| error(g, a).total_cmp(&error(g, b))).unwrap_or(0) as u8
    });
    (d, codes)
}

/// Moves a block's scale `d`, two bytes from `at`, to where least squares wants it, all else left as it is.
pub(super) fn settle<const BYTES: usize, const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    block: &mut [u8; BYTES],
    at: usize,
    decode: fn(&[u8], &mut [f32]),
) {
    let mut y = [0f32; N];
    decode(block, &mut y);
    let d = settled(f16::from_le_bytes([block[at], block[at + 1]]), x, w, &y);
    block[at..at + 2].copy_from_slice(&d.to_le_bytes());
}

/// The scale that brings `y`, decoded with `d`, nearest to `x`; `d` itself where there is none.
pub(super) fn settled(d: f16, x: &[f32], w: &[f32], y: &[f32]) -> f16 {
    let (mut xy, mut yy) = (0f64, 0f64);
    for ((&x, &w), &y) in x.iter().zip(w).zip(y) {
        let (x, w, y) = (x as f64, w as f64, y as f64);
        (xy, yy) = (xy + w * x * y, yy + w * y * y);
    }
    let better = f16::from_f64(d.to_f64() * (xy / yy));
    if better.is_finite() { better } else { d }
}

/// A block whose groups have scales and offsets on two common grids: `x = d s q - dmin m`.
pub(super) struct Offset<const G: usize> {
    pub d: f16,
    pub dmin: f16,
    /// `(s, m)` of each group.
    pub groups: [(u8, u8); G],
    pub q: [u8; 256],
}

/// Fits groups of `N` to levels `0..=levels`, `s` and `m` in `0..=codes`.
pub(super) fn offset<const G: usize, const N: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
    levels: u8,
    codes: u8,
) -> Offset<G> {
    let (x, w, top) = (x.as_chunks::<N>().0, w.as_chunks::<N>().0, codes as f32);
    let fits: [(f32, f32); G] = std::array::from_fn(|g| scale_and_offset(&x[g], &w[g], levels, false));
    let most = fits.iter().fold((0f32, 0f32), |most, fit| (most.0.max(fit.0), most.1.max(fit.1)));
    let (mut d, mut dmin) = (f16::from_f32(most.0 / top), f16::from_f32(most.1 / top));
    let code = |v: f32, d: f16| round(v * reciprocal(d.to_f32())).clamp(0, codes as i32);
    let level = |s: f32, m: f32| move |x: f32| round((x + m) * reciprocal(s)).clamp(0, levels as i32) as u8;
    let groups = std::array::from_fn(|g| {
        let (s, m) = (code(fits[g].0, d), code(fits[g].1, dmin));
        let error = |&(s, m): &(i32, i32)| -> f64 {
            let (s, m) = (d.to_f32() * s as f32, dmin.to_f32() * m as f32);
            let q = x[g].map(level(s, m));
            let lost = |i: usize| x[g][i] as f64 - (s as f64 * q[i] as f64 - m as f64);
            (0..N).map(|i| w[g][i] as f64 * lost(i).powi(2)).sum()
        };
        let near = (-1..=1)
            .flat_map(|i| (-1..=1).map(move |j| ((s + i).clamp(0, codes as i32), (m + j).clamp(0, codes as i32))));
        let (s, m) = near.min_by(|a, b| error(a).total_cmp(&error(b))).unwrap_or((s, m));
        (s as u8, m as u8)
    });
    let quants = |d: f16, dmin: f16| -> [u8; 256] {
        std::array::from_fn(|i| {
            let (s, m) = groups[i / N];
            level(d.to_f32() * s as f32, dmin.to_f32() * m as f32)(x[i / N][i % N])
        })
    };
    let mut q = quants(d, dmin);
    // Least squares for both grids' steps at once, then the levels again.
    let [mut aa, mut ab, mut bb, mut ax, mut bx] = [0f64; 5];
    for (i, &q) in q.iter().enumerate() {
        let (s, m) = groups[i / N];
        let (a, b, x) = (s as f64 * q as f64, -(m as f64), x[i / N][i % N] as f64);
        let w = w[i / N][i % N] as f64;
        (aa, ab, bb, ax, bx) = (aa + w * a * a, ab + w * a * b, bb + w * b * b, ax + w * a * x, bx + w * b * x);
    }
    let determinant = aa * bb - ab * ab;
    let steps = ((ax * bb - bx * ab) / determinant, (bx * aa - ax * ab) / determinant);
    let steps = (f16::from_f64(steps.0), f16::from_f64(steps.1));
    if steps.0.is_finite() && steps.1.is_finite() && determinant > 0.0 {
        (d, dmin) = steps;
        q = quants(d, dmin);
    }
    Offset { d, dmin, groups, q }
}

/// The `(scale, offset)`, the scale and unless `free` the offset not negative, that best give `x` back as `scale * q -
/// offset` with `q` in `0..=levels`.
pub(super) fn scale_and_offset<const N: usize>(x: &[f32; N], w: &[f32; N], levels: u8, free: bool) -> (f32, f32) {
    let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
    let (inverse, top) = (reciprocal(most), levels as f32);
    let x = x.map(|x| x * inverse); // so that no square overflows
    let begin = if free { (f32::MAX, f32::MIN) } else { (0f32, f32::MIN) };
    let (low, high) = x.iter().fold(begin, |(low, high), &x| (low.min(x), high.max(x)));
    if high <= low {
        return (0.0, (0.0 - low) * most); // all the same and not positive, or free
    }
    let [mut all, mut sum, mut squares] = [0f32; 3];
    for (x, w) in x.iter().zip(w) {
        (all, sum, squares) = (all + w, sum + w * x, squares + w * x * x);
    }
    let mut best = ((0.0, 0.0), f32::INFINITY);
    for step in 0..=20 {
        let mut fit = ((high - low) / (top - 0.9 + 0.09 * step as f32), -low);
        for _ in 0..2 {
            let inverse = 1.0 / fit.0;
            let mut lanes = [[0f32; 8]; 3]; // for vectors; every N is a multiple
            for (x, w) in x.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0) {
                for i in 0..8 {
                    let q = nearest(((x[i] + fit.1) * inverse).clamp(0.0, top));
                    lanes[0][i] += w[i] * q;
                    lanes[1][i] += w[i] * q * q;
                    lanes[2][i] += w[i] * q * x[i];
                }
            }
            let [q1, qq, qx] = lanes.map(|lanes| lanes.iter().sum::<f32>());
            // Least squares for scale and offset, or for the scale alone where the offset would be negative.
            let determinant = all * qq - q1 * q1;
            fit = ((all * qx - sum * q1) / determinant, (q1 * qx - qq * sum) / determinant);
            if !free && (fit.1.is_nan() || fit.1 < 0.0) {
                fit = (qx / qq, 0.0);
            }
            let error = squares - fit.0 * qx + fit.1 * sum;
            if fit.0 > 0.0 && error < best.1 {
                best = (fit, error);
            }
        }
    }
    (best.0.0 * most, best.0.1 * most)
}
