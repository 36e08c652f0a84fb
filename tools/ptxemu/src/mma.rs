//! Products of one warp: `mma.sync` of 16 rows by 32 bytes of k times 8 columns, whatever the bytes hold.

use crate::{cta::*, decode::*, parse::*, value::*};

impl Cluster<'_> {
    pub(crate) fn mma(&mut self, wi: usize, ins: &Ins) {
        let [Arg::Vec(ds), Arg::Vec(aa), Arg::Vec(bb), Arg::Vec(cc)] = &ins.args[..4] else {
            panic!("four fragments expected: {}", ins.text)
        };
        // Rows of a and columns of b, as bytes of k: a register of lane l holds bytes 4 (l % 4) .. of row l / 4, the second half
        // of k 16 bytes on.
        let (mut a, mut b) = ([[0u8; 32]; 16], [[0u8; 32]; 8]);
        for l in 0..32 {
            let (row, at) = (l / 4, l % 4 * 4);
            for (i, r) in aa.iter().enumerate() {
                let bytes = (self.v(wi, l, r) as u32).to_le_bytes();
                a[row + i % 2 * 8][at + i / 2 * 16..][..4].copy_from_slice(&bytes);
            }
            for (i, r) in bb.iter().enumerate() {
                b[row][at + i * 16..][..4].copy_from_slice(&(self.v(wi, l, r) as u32).to_le_bytes());
            }
        }
        for l in 0..32 {
            for i in 0..4 {
                let (x, y) = (&a[l / 4 + i / 2 * 8], &b[l % 4 * 2 + i % 2]);
                let sum = self.v(wi, l, &cc[i]);
                self.set(wi, l, &ds[i], product(ins.op.t, x, y, sum));
            }
        }
    }
}

/// A sum and the products of 32 bytes of `x` and `y`.
fn product(t: T, x: &[u8; 32], y: &[u8; 32], sum: u64) -> u64 {
    let two = |b: &[u8; 32], k: usize| u16::from_le_bytes([b[2 * k], b[2 * k + 1]]);
    // tf32 is read from the upper 19 bits.
    let four = |b: &[u8; 32], k: usize| {
        f32::from_bits(u32::from_le_bytes([b[4 * k], b[4 * k + 1], b[4 * k + 2], b[4 * k + 3]]) & 0xffff_e000)
    };
    let sum32 = |terms: usize, term: &dyn Fn(usize) -> f32| fb((0..terms).fold(f(sum), |s, k| s + term(k)));
    match t {
        T::BF16 => sum32(16, &|k| b2f(two(x, k)) * b2f(two(y, k))),
        T::F16 => sum32(16, &|k| h2f(two(x, k)) * h2f(two(y, k))),
        T::E4M3 => fb(short_sum(f(sum), (0..32).map(|k| e2f(x[k]) * e2f(y[k])))),
        T::F32 => sum32(8, &|k| four(x, k) * four(y, k)),
        T::S(_) | T::U(_) => {
            let wide = |v: u8| if matches!(t, T::S(_)) { v as i8 as i32 } else { v as i32 };
            let all = (0..32).fold(sum as i32, |s, k| s.wrapping_add(wide(x[k]) * y[k] as i8 as i32));
            all as u32 as u64
        }
        _ => panic!("{t:?} in mma"),
    }
}

/// As tensor cores add products of fp8: of every term the 14 bits that count beside the largest, the rest cut off.
pub(crate) fn short_sum(sum: f32, products: impl Iterator<Item = f32> + Clone) -> f32 {
    let terms = std::iter::once(sum).chain(products);
    let largest = terms.clone().fold(0.0, |m: f32, t| m.max(t.abs()));
    if largest == 0.0 || terms.clone().any(|t| !t.is_finite()) {
        return terms.sum();
    }
    let unit = 2f64.powi((largest as f64).log2().floor() as i32 - 13);
    terms.map(|t| (t as f64 / unit).trunc() * unit).sum::<f64>() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8() {
        let (mut x, mut y) = ([0u8; 32], [0u8; 32]);
        (0..32).for_each(|k| (x[k], y[k]) = (k as u8 * 3, 0x80 | (k as u8 * 5 % 0x50)));
        // All products are small multiples of one unit: nothing is cut off.
        let plain: f64 = (0..32).map(|k| e2f(x[k]) as f64 * e2f(y[k]) as f64).sum();
        let found = f(product(T::E4M3, &x, &y, fb(1.0))) as f64;
        assert!((found - plain - 1.0).abs() < 32.0 * 2f64.powi(-13) * plain.abs().max(1.0), "{found} {plain}");
        // Beside 1024 the bits from 1/8 on count.
        assert_eq!(short_sum(1024.0, [0.125, 0.124, -0.0625].into_iter()), 1024.125);
        assert_eq!((e2f(0x7e), e2f(0x81), e2f(0x38)), (448.0, -0.001953125, 1.0));
        x[3] = 0x7f;
        assert!(f(product(T::E4M3, &x, &y, 0)).is_nan());
    }
}
