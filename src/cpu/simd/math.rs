//! Transcendental functions on f32 lanes. Polynomials are minimax fits (Lawson's iteration) made for the intervals given here;
//! range reductions follow Cody and Waite. Errors in units in the last place, measured by the test below over all magnitudes.

use super::Simd;
use crate::op::Activation;

const LN2_HIGH: f32 = 0.693_359_4; // 10 bits: its product with a small integer is exact
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `c[0] + x (c[1] + x (c[2] + ..))`
#[inline(always)]
fn horner<S: Simd>(s: S, x: S::F, c: &[f32]) -> S::F {
    let mut y = s.splat(c[c.len() - 1]);
    let mut i = c.len() - 1;
    while i > 0 {
        i -= 1;
        y = s.fma(y, x, s.splat(c[i]));
    }
    y
}

/// An activation function.
#[inline(always)]
pub(crate) fn activate<S: Simd>(s: S, act: Activation, x: S::F) -> S::F {
    match act {
        Activation::None => x,
        Activation::Silu => silu(s, x),
        Activation::GeluTanh => gelu_tanh(s, x),
        Activation::GeluErf => gelu_erf(s, x),
        Activation::Relu => s.max(s.zero(), x), // keeps NaN
    }
}

/// e^x, within 2 ulp; subnormal results too. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    exp_sum(s, x, s.zero())
}

/// e^x for x up to 88, within 2 ulp, with 0 for what is no normal number: those cost an assist of the processor each.
#[inline(always)]
pub(crate) fn exp_flushed<S: Simd>(s: S, x: S::F) -> S::F {
    // Added, it rounds to a whole number n and leaves n + 127 in the lowest bits.
    let shift = s.splat(12_582_912.0 + 127.0);
    let least = s.splat(-87.336_54); // ln 2^-126
    let held = s.max(least, x);
    let t = s.fma(held, s.splat(std::f32::consts::LOG2_E), shift);
    let n = s.sub(t, shift);
    let r = s.fma(n, s.splat(-LN2_LOW), s.fma(n, s.splat(-LN2_HIGH), held));
    let y = s.mul(exp_reduced(s, r), s.of_bits(s.shl::<23>(s.bits(t))));
    s.select(s.lt(x, least), s.zero(), y)
}

/// 2^x for x up to 126, within 2 ulp, in a dozen instructions; 0 from -125.5 down, so that no result is subnormal.
#[inline(always)]
pub(crate) fn exp2_flushed<S: Simd>(s: S, x: S::F) -> S::F {
    // Added, it rounds to a whole number n and leaves n + 126 in the lowest bits.
    const SHIFT: f32 = 12_582_912.0 + 126.0;
    // 2 * 2^r for |r| up to a half.
    const C: [f32; 7] = [2.0, 1.386_294_4, 0.480_452_94, 0.111_006_58, 0.019_236_978, 0.002_679_986_5, 3.069_163e-4];
    let x = s.max(s.splat(-126.0), x); // NaN stays
    let t = s.add(x, s.splat(SHIFT));
    let r = s.sub(x, s.sub(t, s.splat(SHIFT)));
    let twice = horner(s, r, &C);
    s.mul(twice, s.of_bits(s.shl::<23>(s.bits(t))))
}

/// e^(x + low) for |low| far below 1: the parts of a sum that one f32 does not hold.
#[inline(always)]
fn exp_sum<S: Simd>(s: S, x: S::F, low: S::F) -> S::F {
    // Beyond these the result is 0 or infinite anyway; NaN passes through.
    let x = s.min(s.splat(89.0), s.max(s.splat(-105.0), x));
    let (y, n) = exp_parts(s, x, low);
    // 2^n in two factors, each a normal number.
    let half = s.sar::<1>(n);
    s.mul(s.mul(y, power_of_two(s, half)), power_of_two(s, s.sub_i(n, half)))
}

/// y about 1 and n with y 2^n = e^(x + low).
#[inline(always)]
fn exp_parts<S: Simd>(s: S, x: S::F, low: S::F) -> (S::F, S::I) {
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-LN2_HIGH), x);
    let r = s.add(s.fma(n, s.splat(-LN2_LOW), r), low);
    (exp_reduced(s, r), s.to_i(n))
}

/// e^r for |r| up to half of ln 2.
#[inline(always)]
fn exp_reduced<S: Simd>(s: S, r: S::F) -> S::F {
    let p = horner(s, r, &[0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_781, 0.001_381_446_3]);
    s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0))
}

/// 2^n for -126 <= n <= 127.
#[inline(always)]
fn power_of_two<S: Simd>(s: S, n: S::I) -> S::F {
    s.of_bits(s.shl::<23>(s.add_i(n, s.splat_i(127))))
}

/// tanh x, within 4 ulp.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.abs(x);
    let u = s.mul(x, x);
    let p = horner(s, u, &[-0.333_332_84, 0.133_314_91, -0.053_743_493, 0.020_650_57, -0.005_717_025]);
    let small = s.fma(s.mul(x, u), p, x);
    // 1 - 2 / (e^2a + 1)
    let one = s.splat(1.0);
    let e = exp(s, s.add(a, a));
    let large = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    s.copysign(s.select(s.lt(a, s.splat(0.625)), small, large), x)
}

/// 1 / (1 + e^-x), within 4 ulp for all x.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let e = exp(s, s.neg(s.abs(x)));
    s.ratio(s.select(s.lt(x, s.zero()), e, one), s.add(one, e))
}

/// x / (1 + e^-x); -0 at -inf.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    s.mul(s.max(s.splat(-1000.0), x), sigmoid(s, x))
}

/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), as x sigmoid(2 ..): no cancellation at negative x. -0 at -inf.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    const C: f32 = 1.595_769; // 2 sqrt(2/pi)
    let u = s.mul(x, s.fma(s.mul(x, x), s.splat(C * 0.044_715), s.splat(C)));
    s.mul(s.max(s.splat(-1000.0), x), sigmoid(s, u))
}

/// 0.5 x (1 + erf(x / sqrt 2)), with erfc where that is small: no cancellation at negative x. -0 at -inf.
#[inline(always)]
pub(crate) fn gelu_erf<S: Simd>(s: S, x: S::F) -> S::F {
    const ROOT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
    let a = s.min(s.splat(1000.0), s.abs(x));
    let tail = s.mul(exp_minus_square(s, a, 0.5), erfc_scaled(s, s.mul(a, s.splat(ROOT_HALF))));
    let far = s.select(s.lt(x, s.zero()), tail, s.sub(s.splat(2.0), tail));
    let near = s.add(s.splat(1.0), erf_small(s, s.mul(x, s.splat(ROOT_HALF))));
    let twice = s.select(s.lt(a, s.splat(ROOT_HALF)), near, far);
    s.mul(s.mul(s.splat(0.5), s.max(s.splat(-1000.0), x)), twice)
}

/// The error function up to 0.9 on both sides.
#[inline(always)]
fn erf_small<S: Simd>(s: S, x: S::F) -> S::F {
    const C: [f32; 7] =
        [0.128_379_17, -0.376_126_35, 0.112_837_02, -0.026_859_7, 0.005_201_705_7, -8.149_687e-4, 8.397_285e-5];
    s.fma(x, horner(s, s.mul(x, x), &C), x)
}

/// e^(t^2) erfc(t) for t >= 0.45, by a polynomial in (t - 4) / (t + 4) (the variable of Shepherd and Laframboise, 1981).
#[inline(always)]
fn erfc_scaled<S: Simd>(s: S, t: S::F) -> S::F {
    let four = s.splat(4.0);
    let q = s.ratio(s.sub(t, four), s.add(t, four));
    let p = horner(
        s,
        q,
        &[
            1.232_995_2,
            -0.139_621_05,
            0.015_379_933,
            0.068_093_96,
            -0.101_047_11,
            0.093_772_23,
            -0.066_240_9,
            0.036_990_818,
            -0.016_625_842,
            0.005_236_252_7,
        ],
    );
    s.ratio(p, s.add(s.splat(1.0), s.add(t, t)))
}

/// e^(-c t^2) for t >= 0 and c a power of two. The square is taken in two parts: far out its rounding would be magnified.
#[inline(always)]
fn exp_minus_square<S: Simd>(s: S, t: S::F, c: f32) -> S::F {
    let high = s.of_bits(s.and(s.bits(t), s.splat_i(!0xfff))); // 12 bits: its square is exact
    let low = s.mul(s.sub(t, high), s.add(t, high));
    exp_sum(s, s.mul(s.splat(-c), s.mul(high, high)), s.mul(s.splat(-c), low))
}

/// e ln 2 + ln(1 + f) for sqrt(1/2) <= 1 + f <= sqrt 2.
#[inline(always)]
fn ln_1p_reduced<S: Simd>(s: S, f: S::F, e: S::F) -> S::F {
    let u = s.mul(f, f);
    let p = horner(
        s,
        f,
        &[
            0.333_333_13,
            -0.250_000_1,
            0.200_021_34,
            -0.166_680_07,
            0.142_192_21,
            -0.124_051_414,
            0.118_903_52,
            -0.116_796_3,
            0.067_465_1,
        ],
    );
    let y = s.fma(e, s.splat(LN2_LOW), s.mul(s.mul(f, u), p));
    let y = s.fma(u, s.splat(-0.5), y);
    s.fma(e, s.splat(LN2_HIGH), s.add(f, y))
}

/// ln(1 + e^x) without overflow, within 4 ulp.
#[inline(always)]
pub(crate) fn softplus<S: Simd>(s: S, x: S::F) -> S::F {
    let u = exp(s, s.neg(s.abs(x)));
    // ln(1 + u) for 0 <= u <= 1, exact where u is tiny: from sqrt 2 on 1 + u is halved.
    let one = s.splat(1.0);
    let near = s.lt(u, s.splat(std::f32::consts::SQRT_2 - 1.0));
    let f = s.select(near, u, s.mul(s.splat(0.5), s.sub(u, one)));
    let e = s.select(near, s.zero(), one);
    s.add(s.max(s.zero(), x), ln_1p_reduced(s, f, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cpu::simd::{Isa, simd},
        op::math as exact,
    };

    /// The largest error in units in the last place over a stride through all f32 in `range`, whose wanted result is normal.
    fn worst<S: Simd>(
        s: S,
        f: impl Fn(S, S::F) -> S::F,
        want: impl Fn(f64) -> f64,
        range: std::ops::Range<f32>,
    ) -> f64 {
        let mut worst = 0.0f64;
        for bits in (0..=u32::MAX).step_by(65_521) {
            let x = f32::from_bits(bits);
            if !range.contains(&x) {
                continue;
            }
            let (got, want) = (s.max_lane(f(s, s.splat(x))) as f64, want(x as f64));
            let ulp = (want.abs() as f32).max(f32::MIN_POSITIVE);
            let ulp = (f32::from_bits(ulp.to_bits() + 1) - ulp) as f64;
            let error = if want.abs() > f32::MAX as f64 {
                f64::from(u8::from(got != want.signum() * f64::INFINITY))
            } else {
                (got - want).abs() / ulp
            };
            assert!(error < 1e6, "{x:e}: {got:e}, not {want:e}");
            worst = worst.max(error);
        }
        worst
    }

    #[test]
    fn errors_over_all_magnitudes() {
        const ALL: std::ops::Range<f32> = f32::MIN..f32::MAX;
        for isa in Isa::available() {
            simd!(isa, s => {
                let check = |name: &str, error: f64, limit: f64| {
                    println!("{name} {}: {error:.2} ulp", isa.name());
                    assert!(error <= limit, "{name} on {}: {error} ulp", isa.name());
                };
                check("exp", worst(s, exp, f64::exp, ALL), 2.0);
                check("exp_flushed", worst(s, exp_flushed, f64::exp, -87.33..88.0), 2.0);
                check("exp2_flushed", worst(s, exp2_flushed, f64::exp2, -125.4..126.0), 2.0);
                check("tanh", worst(s, tanh, f64::tanh, ALL), 4.0);
                check("sigmoid", worst(s, sigmoid, |x| 1.0 / (1.0 + (-x).exp()), ALL), 4.0);
                check("softplus", worst(s, softplus, exact::softplus, ALL), 4.0);
                // Below -87 the sigmoid is subnormal, and has fewer bits.
                check("silu", worst(s, silu, |x| Activation::Silu.apply(x), -87.0..f32::MAX), 4.0);
                // Farther down the f64 expressions cancel themselves, and gelu_tanh magnifies its cubic's rounding.
                check("gelu_erf", worst(s, gelu_erf, |x| Activation::GeluErf.apply(x), -4.5..f32::MAX), 5.0);
                check("gelu_tanh", worst(s, gelu_tanh, |x| Activation::GeluTanh.apply(x), -1.0..f32::MAX), 4.0);
            });
        }
    }

    #[test]
    fn special_values() {
        const INF: f32 = f32::INFINITY;
        const NEG: f32 = f32::NEG_INFINITY;
        const NAN: f32 = f32::NAN;
        for isa in Isa::available() {
            simd!(isa, s => {
                let check = |name: &str, f: fn(_, _) -> _, pairs: &[(f32, f32)]| {
                    for &(x, want) in pairs.iter().chain(&[(NAN, NAN)]) {
                        let mut lanes = [0f32; 16];
                        // SAFETY: no vector has more than 16 lanes.
                        unsafe { s.store(lanes.as_mut_ptr(), f(s, s.splat(x))) };
                        let same = lanes[0].to_bits() == want.to_bits() || lanes[0].is_nan() && want.is_nan();
                        assert!(same, "{name}({x}) on {}: {}, not {want}", isa.name(), lanes[0]);
                    }
                };
                let tiny = f32::from_bits(3);
                check("exp", exp, &[(0.0, 1.0), (-0.0, 1.0), (INF, INF), (NEG, 0.0), (tiny, 1.0), (-200.0, 0.0)]);
                check("exp_flushed", exp_flushed, &[(0.0, 1.0), (-0.0, 1.0), (NEG, 0.0), (tiny, 1.0), (-87.5, 0.0)]);
                check("exp2_flushed", exp2_flushed, &[(0.0, 1.0), (-0.0, 1.0), (NEG, 0.0), (tiny, 1.0), (-126.5, 0.0)]);
                check("tanh", tanh, &[(INF, 1.0), (NEG, -1.0), (tiny, tiny), (0.0, 0.0), (-0.0, -0.0)]);
                check("sigmoid", sigmoid, &[(INF, 1.0), (NEG, 0.0), (0.0, 0.5)]);
                check("softplus", softplus, &[(INF, INF), (NEG, 0.0)]);
                check("silu", silu, &[(INF, INF), (NEG, -0.0), (0.0, 0.0), (-0.0, -0.0)]);
                check("gelu_tanh", gelu_tanh, &[(INF, INF), (NEG, -0.0), (0.0, 0.0)]);
                check("gelu_erf", gelu_erf, &[(INF, INF), (NEG, -0.0), (0.0, 0.0)]);
            });
        }
    }
}
