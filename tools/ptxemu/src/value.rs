//! Values of registers, and arithmetic on them.

use crate::decode::{K, T};

pub fn h2f(h: u16) -> f32 {
    let (s, e, m) = ((h as u32 >> 15) << 31, (h >> 10) & 31, (h & 1023) as u32);
    f32::from_bits(
        s | match e {
            0 => return f32::from_bits(s | (m as f32 * 2f32.powi(-24)).to_bits()),
            31 => 0x7f80_0000 | (m << 13),
            _ => ((e as u32 + 112) << 23) | (m << 13),
        },
    )
}
pub fn f2h(x: f32) -> u16 {
    let b = x.to_bits();
    let s = (b >> 16 & 0x8000) as u16;
    let a = b & 0x7fff_ffff;
    if a > 0x7f80_0000 {
        return 0x7fff;
    }
    if a >= 0x477f_f000 {
        return s | 0x7c00;
    }
    if a < 0x3880_0000 {
        let v = f32::from_bits(a) * 2f32.powi(24);
        return s | (v.round_ties_even() as u16);
    }
    let r = a + 0xfff + (a >> 13 & 1);
    s | ((r - 0x3800_0000) >> 13) as u16
}
pub fn b2f(h: u16) -> f32 {
    f32::from_bits((h as u32) << 16)
}
/// Of f8e4m3.
pub fn e2f(c: u8) -> f32 {
    let (e, m) = ((c >> 3 & 15) as i32, (c & 7) as f32);
    let size = match (e, c & 7) {
        (15, 7) => f32::NAN,
        (0, _) => m / 512.0,
        _ => (1.0 + m / 8.0) * 2f32.powi(e - 7),
    };
    if c >> 7 == 1 { -size } else { size }
}
pub fn f2b(x: f32) -> u16 {
    let u = x.to_bits();
    if u & 0x7fff_ffff > 0x7f80_0000 {
        return 0x7fff;
    }
    ((u + 0x7fff + (u >> 16 & 1)) >> 16) as u16
}
pub fn sx(v: u64, n: u8) -> i64 {
    match n {
        1 => v as i8 as i64,
        2 => v as i16 as i64,
        4 => v as i32 as i64,
        _ => v as i64,
    }
}
pub fn zx(v: u64, n: u8) -> u64 {
    if n == 8 { v } else { v & ((1 << (n * 8)) - 1) }
}
pub fn f(v: u64) -> f32 {
    f32::from_bits(v as u32)
}
pub fn fb(x: f32) -> u64 {
    x.to_bits() as u64
}
pub fn d(v: u64) -> f64 {
    f64::from_bits(v)
}
pub fn half2(t: T, a: u64, b: u64, c: u64, g: impl Fn(f32, f32, f32) -> f32) -> u64 {
    let one = |a: u16, b: u16, c: u16| if matches!(t, T::F16 | T::F16x2) { f2h(g(h2f(a), h2f(b), h2f(c))) } else { f2b(g(b2f(a), b2f(b), b2f(c))) } as u64;
    let lo = one(a as u16, b as u16, c as u16);
    if matches!(t, T::F16x2 | T::BF16x2) {
        lo | one((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16) << 16
    } else {
        lo
    }
}
/// A multiply-add rounded down, as `expf` uses it.
pub fn fma_down(a: f32, b: f32, c: f32) -> f32 {
    let exact = a as f64 * b as f64 + c as f64;
    let nearest = exact as f32;
    if nearest as f64 > exact { nearest.next_down() } else { nearest }
}
/// A sum rounded toward zero.
pub fn sum_to_zero(a: f32, b: f32) -> f32 {
    let (a, b) = (a as f64, b as f64);
    let sum = a + b;
    let back = sum - a;
    let error = (a - (sum - back)) + (b - back); // the exact sum is `sum + error`
    let nearest = sum as f32;
    let far = nearest as f64;
    let beyond = far.abs() > sum.abs() || (far == sum && error != 0.0 && (error < 0.0) == (sum > 0.0));
    match beyond && nearest.is_finite() {
        true if nearest > 0.0 => nearest.next_down(),
        true => nearest.next_up(),
        false => nearest,
    }
}
/// Subnormal numbers as `.ftz` sees and leaves them.
pub fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}
/// A float to an integer of `n` bytes, rounded already: saturating, NaN to 0.
pub fn saturated(x: f32, n: u8, signed: bool) -> u64 {
    let bits = n as u32 * 8;
    let x = x as f64 as i128;
    let (low, high) =
        if signed { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) };
    zx(x.clamp(low, high) as u64, n)
}
/// One lane's result of a plain arithmetic instruction.
pub fn alu(k: K, t: T, a: u64, b: u64, c: u64) -> u64 {
    match t {
        T::F32 => {
            let (a, b, c) = (f(a), f(b), f(c));
            fb(match k {
                K::Add => a + b,
                K::Sub => a - b,
                K::Mul => a * b,
                K::Fma | K::Mad => a.mul_add(b, c),
                K::Div => a / b,
                K::Min => a.min(b),
                K::Max => a.max(b),
                K::Neg => -a,
                K::Abs => a.abs(),
                K::Ex2 => a.exp2(),
                K::Lg2 => a.log2(),
                K::Rcp => 1. / a,
                K::Rsqrt => 1. / a.sqrt(),
                K::Sqrt => a.sqrt(),
                _ => panic!("{k:?} f32"),
            })
        }
        T::F64 => {
            let (a, b, c) = (d(a), d(b), d(c));
            (match k {
                K::Add => a + b,
                K::Sub => a - b,
                K::Mul => a * b,
                K::Fma => a.mul_add(b, c),
                K::Div => a / b,
                K::Neg => -a,
                _ => panic!("{k:?} f64"),
            })
            .to_bits()
        }
        T::F16 | T::F16x2 | T::BF16 | T::BF16x2 => half2(t, a, b, c, |a, b, c| match k {
            K::Add => a + b,
            K::Sub => a - b,
            K::Mul => a * b,
            K::Fma => (a as f64 * b as f64 + c as f64) as f32,
            K::Min => a.min(b),
            K::Max => a.max(b),
            K::Neg => -a,
            K::Abs => a.abs(),
            _ => panic!("{k:?} half"),
        }),
        T::E4M3 => panic!("{k:?} fp8"),
        T::Pred => match k {
            K::And => a & b,
            K::Or => a | b,
            K::Xor => a ^ b,
            K::Not => a ^ 1,
            _ => panic!("{k:?} pred"),
        },
        T::U(n) | T::S(n) => {
            let sg = matches!(t, T::S(_));
            let (x, y) = (zx(a, n), zx(b, n));
            zx(
                match k {
                    K::Add => a.wrapping_add(b),
                    K::Sub => a.wrapping_sub(b),
                    K::Mul => a.wrapping_mul(b),
                    K::Mad => a.wrapping_mul(b).wrapping_add(c),
                    K::And => a & b,
                    K::Or => a | b,
                    K::Xor => a ^ b,
                    K::Not => !a,
                    K::Neg => a.wrapping_neg(),
                    K::Abs => sx(a, n).unsigned_abs(),
                    K::Shl => {
                        if b & 0xffff_ffff >= n as u64 * 8 {
                            0
                        } else {
                            a << (b & 63)
                        }
                    }
                    K::Shr => {
                        let s = (b & 0xffff_ffff).min(n as u64 * 8 - if sg { 1 } else { 0 });
                        if sg {
                            (sx(a, n) >> s) as u64
                        } else if s >= 64 {
                            0
                        } else {
                            x >> s
                        }
                    }
                    K::Min => {
                        if sg {
                            sx(a, n).min(sx(b, n)) as u64
                        } else {
                            x.min(y)
                        }
                    }
                    K::Max => {
                        if sg {
                            sx(a, n).max(sx(b, n)) as u64
                        } else {
                            x.max(y)
                        }
                    }
                    K::Div => {
                        if sg {
                            (sx(a, n) / sx(b, n)) as u64
                        } else {
                            x / y
                        }
                    }
                    K::Rem => {
                        if sg {
                            (sx(a, n) % sx(b, n)) as u64
                        } else {
                            x % y
                        }
                    }
                    K::MulHi => {
                        if sg {
                            ((sx(a, n) as i128 * sx(b, n) as i128) >> (n * 8)) as u64
                        } else {
                            ((x as u128 * y as u128) >> (n * 8)) as u64
                        }
                    }
                    K::Popc => x.count_ones() as u64,
                    K::Clz => (x << (64 - n as u32 * 8)).leading_zeros().min(n as u32 * 8) as u64,
                    _ => panic!("{k:?} int"),
                },
                n,
            )
        }
    }
}
