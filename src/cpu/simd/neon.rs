//! 128-bit vectors: NEON, which every 64-bit Arm processor has, and the dot products of bytes that newer ones add.
//!
//! [`Neon`] is one type for three processors: `Neon<PLAIN>` (Cortex-A53 and A72), `Neon<DOTPROD>` (A76, Neoverse N1, Apple M1) and
//! `Neon<I8MM>` (Neoverse V1 and N2, Apple M2). They differ in [`Simd::dot`] alone, whose instructions are written as assembly: the compiler's own
//! names for them are not stable.

use std::arch::{aarch64::*, asm};

use super::{Simd, WIDEST, Wide};

/// Bytes are widened before they are multiplied.
pub(crate) const PLAIN: u8 = 0;
/// `sdot`: signed by signed bytes (FEAT_DotProd).
pub(crate) const DOTPROD: u8 = 1;
/// `usdot`: unsigned by signed bytes (FEAT_I8MM).
pub(crate) const I8MM: u8 = 2;

/// Proof that the processor has the instructions of the level: made by `detect` alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon<const LEVEL: u8>(());

impl<const LEVEL: u8> Neon<LEVEL> {
    /// The proof, where the processor and the system have them.
    pub(crate) fn detect() -> Option<Neon<LEVEL>> {
        use std::arch::is_aarch64_feature_detected as has;
        let found = match LEVEL {
            PLAIN => has!("neon"),
            DOTPROD => has!("neon") && has!("dotprod"),
            _ => has!("neon") && has!("dotprod") && has!("i8mm"),
        };
        found.then_some(Neon(()))
    }

    /// Runs `f`, which is inlined here, compiled with the instructions.
    #[inline(always)]
    pub(crate) fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "neon")]
        fn inner<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` exists only where the instructions were detected.
        unsafe { inner(f) }
    }
}

impl<const LEVEL: u8> Simd for Neon<LEVEL> {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    const DOTS: bool = LEVEL >= DOTPROD;
    const SIGNED: bool = true;
    type F = float32x4_t;
    type I = int32x4_t;
    type M = uint32x4_t;
    type Wide = Wide<Self, 4>;
    type Plain = Neon<PLAIN>;

    #[inline(always)]
    fn plain(self) -> Self::Plain {
        Neon(())
    }
    #[inline(always)]
    fn wide(self) -> Self::Wide {
        Wide(self)
    }

    #[inline(always)]
    fn outline<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "neon")]
        #[inline(never)]
        fn inner<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { inner(f) }
    }

    memory! {
        load(p: *const f32) -> float32x4_t = vld1q_f32(p);
        store(p: *mut f32, v: float32x4_t) = vst1q_f32(p, v);
        load_partial(p: *const f32, n: usize) -> float32x4_t = {
            let mut lanes = [0f32; 4];
            lanes.as_mut_ptr().copy_from_nonoverlapping(p, n.min(4));
            vld1q_f32(lanes.as_ptr())
        };
        store_partial(p: *mut f32, v: float32x4_t, n: usize) = {
            let mut lanes = [0f32; 4];
            vst1q_f32(lanes.as_mut_ptr(), v);
            p.copy_from_nonoverlapping(lanes.as_ptr(), n.min(4))
        };
        load_f16(p: *const u16) -> float32x4_t = widen(vld1_u16(p));
        store_f16(p: *mut u16, v: float32x4_t) = {
            let half: uint16x4_t;
            asm!("fcvtn {h:v}.4h, {v:v}.4s", h = lateout(vreg) half, v = in(vreg) v, options(pure, nomem, nostack, preserves_flags));
            vst1_u16(p, half)
        };
        load_bf16(p: *const u16) -> float32x4_t = vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p)));
        store_bf16(p: *mut u16, v: float32x4_t) = {
            let bits = vreinterpretq_u32_f32(v);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let round = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
            vst1_u16(p, vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(v, v), round, quiet)))
        };
        load_i8(p: *const i8) -> int32x4_t = {
            let four = vreinterpret_s8_u32(vdup_n_u32(p.cast::<u32>().read_unaligned()));
            vmovl_s16(vget_low_s16(vmovl_s8(four)))
        };
        load_u8(p: *const u8) -> int32x4_t = {
            let four = vreinterpret_u8_u32(vdup_n_u32(p.cast::<u32>().read_unaligned()));
            vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four))))
        };
        store_i8(p: *mut i8, v: int32x4_t) = {
            let bytes = vmovn_s16(vcombine_s16(vmovn_s32(v), vmovn_s32(v)));
            p.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_s8(bytes)))
        };
        gather(p: *const f32, index: int32x4_t) -> float32x4_t = {
            let mut lanes = [0i32; 4];
            vst1q_s32(lanes.as_mut_ptr(), index);
            let lanes = lanes.map(|i| p.offset(i as isize).read_unaligned());
            vld1q_f32(lanes.as_ptr())
        };
        transpose(from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) = {
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| vld1q_f32(from.add(i * from_pitch)));
            let (even, odd) = (pairs(vtrn1q_f32(a, b), vtrn1q_f32(c, d)), pairs(vtrn2q_f32(a, b), vtrn2q_f32(c, d)));
            vst1q_f32(to, even.0);
            vst1q_f32(to.add(to_pitch), odd.0);
            vst1q_f32(to.add(2 * to_pitch), even.1);
            vst1q_f32(to.add(3 * to_pitch), odd.1)
        };
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: the instruction reads nothing and faults nowhere.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) p, options(nostack, preserves_flags, readonly)) }
    }

    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        // SAFETY: as above.
        unsafe { asm!("prfm pldl2keep, [{}]", in(reg) p, options(nostack, preserves_flags, readonly)) }
    }

    #[inline(always)]
    fn turn_fours(self, v: [int32x4_t; 4]) -> [int32x4_t; 4] {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let v = v.map(|v| vreinterpretq_f32_s32(v));
            let (a, b) = (vtrn1q_f32(v[0], v[1]), vtrn2q_f32(v[0], v[1]));
            let (c, d) = (vtrn1q_f32(v[2], v[3]), vtrn2q_f32(v[2], v[3]));
            let ((first, third), (second, fourth)) = (pairs(a, c), pairs(b, d));
            [first, second, third, fourth].map(|v| vreinterpretq_s32_f32(v))
        }
    }

    #[inline(always)]
    fn dot_small(self, c: int32x4_t, u: int32x4_t, i: int32x4_t) -> int32x4_t {
        self.dot_signed(c, u, i)
    }

    lanes! {
        splat(x: f32) -> float32x4_t = vdupq_n_f32(x);
        splat_i(x: i32) -> int32x4_t = vdupq_n_s32(x);
        f16_to_f32(bits: u16) -> f32 = vgetq_lane_f32::<0>(widen(vdup_n_u16(bits)));
        add(a: float32x4_t, b: float32x4_t) -> float32x4_t = vaddq_f32(a, b);
        sub(a: float32x4_t, b: float32x4_t) -> float32x4_t = vsubq_f32(a, b);
        mul(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmulq_f32(a, b);
        div(a: float32x4_t, b: float32x4_t) -> float32x4_t = vdivq_f32(a, b);
        fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t = vfmaq_f32(c, a, b);
        // Not `fmin` and `fmax`: they choose otherwise where a lane is NaN.
        min(a: float32x4_t, b: float32x4_t) -> float32x4_t = vbslq_f32(vcltq_f32(a, b), a, b);
        max(a: float32x4_t, b: float32x4_t) -> float32x4_t = vbslq_f32(vcgtq_f32(a, b), a, b);
        round(a: float32x4_t) -> float32x4_t = vrndnq_f32(a);
        to_i(a: float32x4_t) -> int32x4_t = vcvtnq_s32_f32(a);
        float(a: int32x4_t) -> float32x4_t = vcvtq_f32_s32(a);
        bits(a: float32x4_t) -> int32x4_t = vreinterpretq_s32_f32(a);
        of_bits(a: int32x4_t) -> float32x4_t = vreinterpretq_f32_s32(a);
        add_i(a: int32x4_t, b: int32x4_t) -> int32x4_t = vaddq_s32(a, b);
        sub_i(a: int32x4_t, b: int32x4_t) -> int32x4_t = vsubq_s32(a, b);
        mul_i(a: int32x4_t, b: int32x4_t) -> int32x4_t = vmulq_s32(a, b);
        multiply_add_16(n: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t = vreinterpretq_s32_u16(vmlaq_u16(
            vreinterpretq_u16_s32(b),
            vreinterpretq_u16_s32(n),
            vreinterpretq_u16_s32(a),
        ));
        min_u8(a: int32x4_t, b: int32x4_t) -> int32x4_t =
            vreinterpretq_s32_u8(vminq_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b)));
        max_u8(a: int32x4_t, b: int32x4_t) -> int32x4_t =
            vreinterpretq_s32_u8(vmaxq_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b)));
        dot(c: int32x4_t, u: int32x4_t, i: int32x4_t) -> int32x4_t = match LEVEL {
            PLAIN => {
                // A product of two bytes fits 16 bits: |255 * -128| < 2^15.
                let (u, i) = (vreinterpretq_u8_s32(u), vreinterpretq_s8_s32(i));
                let low = vmulq_s16(vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(u))), vmovl_s8(vget_low_s8(i)));
                let high = vmulq_s16(vreinterpretq_s16_u16(vmovl_high_u8(u)), vmovl_high_s8(i));
                vaddq_s32(c, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))
            }
            DOTPROD => {
                // u = (u - 128) + 64 + 64, each a signed byte.
                let (c, half) = (sdot(c, veorq_s32(u, vdupq_n_s32(0x8080_8080_u32 as i32)), i), vdupq_n_s32(0x4040_4040));
                sdot(sdot(c, half, i), half, i)
            }
            _ => usdot(c, u, i),
        };
        dot_signed(c: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t = match LEVEL {
            PLAIN => {
                let (a, b) = (vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
                let (low, high) = (vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
                vaddq_s32(c, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))
            }
            _ => sdot(c, a, b),
        };
        look_up(table: &[i8; 16], index: int32x4_t) -> int32x4_t =
            vreinterpretq_s32_s8(vqtbl1q_s8(vld1q_s8(table.as_ptr()), vreinterpretq_u8_s32(index)));
        narrow(from: [int32x4_t; 4]) -> int32x4_t = {
            let [a, b, c, d] = from.map(|v| vmovn_s32(v));
            vreinterpretq_s32_s8(vcombine_s8(vmovn_s16(vcombine_s16(a, b)), vmovn_s16(vcombine_s16(c, d))))
        };
        bytes_of_bits(bits: u64) -> int32x4_t = {
            let bytes = vcombine_u8(vdup_n_u8(bits as u8), vdup_n_u8((bits >> 8) as u8));
            let each = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            vreinterpretq_s32_u8(vtstq_u8(bytes, each))
        };
        and(a: int32x4_t, b: int32x4_t) -> int32x4_t = vandq_s32(a, b);
        or(a: int32x4_t, b: int32x4_t) -> int32x4_t = vorrq_s32(a, b);
        xor(a: int32x4_t, b: int32x4_t) -> int32x4_t = veorq_s32(a, b);
        lt(a: float32x4_t, b: float32x4_t) -> uint32x4_t = vcltq_f32(a, b);
        eq(a: float32x4_t, b: float32x4_t) -> uint32x4_t = vceqq_f32(a, b);
        permute(a: float32x4_t, index: &[i32; WIDEST]) -> float32x4_t = {
            // Byte b of lane n comes from byte 4 * index + b.
            let index = vandq_s32(vld1q_s32(index.as_ptr()), vdupq_n_s32(3));
            let first = vmulq_s32(index, vdupq_n_s32(0x0404_0404));
            let bytes = vaddq_s32(first, vdupq_n_s32(0x0302_0100));
            vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(a), vreinterpretq_u8_s32(bytes)))
        };
        select(mask: uint32x4_t, yes: float32x4_t, no: float32x4_t) -> float32x4_t = vbslq_f32(mask, yes, no);
        sum(a: float32x4_t) -> f32 = {
            let two = vadd_f32(vget_low_f32(a), vget_high_f32(a));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        };
        max_lane(a: float32x4_t) -> f32 = vmaxvq_f32(a);
    }

    // `vshlq` shifts right by a negative number; the immediate forms want no zero.
    #[inline(always)]
    fn shl<const N: u32>(self, a: int32x4_t) -> int32x4_t {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { vshlq_s32(a, vdupq_n_s32(N as i32)) }
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: int32x4_t) -> int32x4_t {
        // SAFETY: as above.
        unsafe { vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-(N as i32)))) }
    }
    #[inline(always)]
    fn sar<const N: u32>(self, a: int32x4_t) -> int32x4_t {
        // SAFETY: as above.
        unsafe { vshlq_s32(a, vdupq_n_s32(-(N as i32))) }
    }
}

/// Four half-precision numbers.
#[inline(always)]
unsafe fn widen(half: uint16x4_t) -> float32x4_t {
    let single: float32x4_t;
    // SAFETY: NEON, as the caller has; registers only.
    unsafe {
        asm!("fcvtl {s:v}.4s, {h:v}.4h", s = lateout(vreg) single, h = in(vreg) half, options(pure, nomem, nostack, preserves_flags))
    };
    single
}

/// The first and the second pairs of lanes of both.
#[inline(always)]
unsafe fn pairs(a: float32x4_t, b: float32x4_t) -> (float32x4_t, float32x4_t) {
    // SAFETY: NEON, as the caller has.
    unsafe {
        let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
        (vreinterpretq_f32_f64(vtrn1q_f64(a, b)), vreinterpretq_f32_f64(vtrn2q_f64(a, b)))
    }
}

#[inline(always)]
unsafe fn sdot(mut c: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
    // SAFETY: the caller has FEAT_DotProd; registers only.
    unsafe {
        asm!(".arch_extension dotprod", "sdot {c:v}.4s, {a:v}.16b, {b:v}.16b", c = inout(vreg) c, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags))
    };
    c
}

#[inline(always)]
unsafe fn usdot(mut c: int32x4_t, u: int32x4_t, i: int32x4_t) -> int32x4_t {
    // SAFETY: the caller has FEAT_I8MM; registers only.
    unsafe {
        asm!(".arch_extension i8mm", "usdot {c:v}.4s, {u:v}.16b, {i:v}.16b", c = inout(vreg) c, u = in(vreg) u, i = in(vreg) i,
            options(pure, nomem, nostack, preserves_flags))
    };
    c
}
