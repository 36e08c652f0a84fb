//! 512-bit vectors: AVX-512 F, BW, DQ, VL and VNNI, with AVX2's companions, and with the dot products of bf16 pairs (AVX512_BF16).
//!
//! [`Avx512`] is one type for both, which differ in [`Simd::dot_bf16`] alone.

use std::arch::x86_64::*;

use super::{Simd, WIDEST, dot_bf16};

/// Proof that the processor has the instructions: made by `detect` alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// The proof, where the processor and the system have them.
    pub(crate) fn detect() -> Option<Avx512<BF16>> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        (found && (!BF16 || is_x86_feature_detected!("avx512bf16"))).then_some(Avx512(()))
    }

    /// Runs `f`, which is inlined here, compiled with the instructions.
    #[inline(always)]
    pub(crate) fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        if BF16 {
            compiled!("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c", f)
        } else {
            compiled!("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c", f)
        }
    }
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const DOTS: bool = true;
    const PAIRS: bool = BF16;
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;
    type Wide = Self;
    type Plain = Avx512<false>;

    #[inline(always)]
    fn plain(self) -> Self::Plain {
        Avx512(())
    }
    #[inline(always)]
    fn wide(self) -> Self {
        self
    }

    #[inline(always)]
    fn outline<R>(self, f: impl FnOnce() -> R) -> R {
        if BF16 {
            compiled!(
                #[inline(never)]
                "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c",
                f
            )
        } else {
            compiled!(
                #[inline(never)]
                "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c",
                f
            )
        }
    }

    memory! {
        load(p: *const f32) -> __m512 = _mm512_loadu_ps(p);
        store(p: *mut f32, v: __m512) = _mm512_storeu_ps(p, v);
        stream(p: *mut f32, v: __m512) = _mm512_stream_ps(p, v);
        load_partial(p: *const f32, n: usize) -> __m512 = _mm512_maskz_loadu_ps(first(n), p);
        store_partial(p: *mut f32, v: __m512, n: usize) = _mm512_mask_storeu_ps(p, first(n), v);
        load_f16(p: *const u16) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
        store_f16(p: *mut u16, v: __m512) =
            _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v));
        load_bf16(p: *const u16) -> __m512 =
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))));
        // Not the AVX512_BF16 conversion: it flushes subnormals.
        store_bf16(p: *mut u16, v: __m512) = {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let round = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let high = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(round, nan, quiet));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(high))
        };
        load_i8(p: *const i8) -> __m512i = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()));
        load_u8(p: *const u8) -> __m512i = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        store_i8(p: *mut i8, v: __m512i) = _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(v));
        gather(p: *const f32, index: __m512i) -> __m512 = _mm512_i32gather_ps::<4>(index, p);
        gather_fours(p: *const u32, index: __m512i) -> __m512i = _mm512_i32gather_epi32::<4>(index, p.cast());
    }

    #[inline(always)]
    unsafe fn load_runs<const RUN: usize>(self, p: *const u8, step: usize) -> __m512i {
        // SAFETY: `self` proves that the processor has the instructions; the caller answers for the pointer.
        unsafe {
            if RUN == 32 {
                let low = _mm512_castsi256_si512(_mm256_loadu_si256(p.cast()));
                return _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(p.add(step).cast()));
            }
            debug_assert!(RUN == 16);
            let v = _mm512_castsi128_si512(_mm_loadu_si128(p.cast()));
            let v = _mm512_inserti32x4::<1>(v, _mm_loadu_si128(p.add(step).cast()));
            let v = _mm512_inserti32x4::<2>(v, _mm_loadu_si128(p.add(2 * step).cast()));
            _mm512_inserti32x4::<3>(v, _mm_loadu_si128(p.add(3 * step).cast()))
        }
    }

    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) {
        // SAFETY: the caller's promise.
        unsafe { transpose(from, from_pitch, to, to_pitch) }
    }

    #[inline(always)]
    unsafe fn sums(self, from: *const __m512, to: *mut f32) {
        // SAFETY: `self` proves that the processor has the instructions; the caller answers for the pointers.
        unsafe {
            let mut v = [_mm512_setzero_ps(); 16];
            let mut i = 0;
            while i < 16 {
                v[i] = *from.add(i);
                i += 1;
            }
            // Each step halves the vectors, and the lanes of each sum: halves of i and i + 8; quarters of i, i + 8, i + 4, i + 12; ..
            macro_rules! halve {
                ($n:literal, $low:expr, $high:expr) => {
                    let mut i = 0;
                    while i < $n {
                        v[i] = _mm512_add_ps($low(v[i], v[i + $n]), $high(v[i], v[i + $n]));
                        i += 1;
                    }
                };
            }
            halve!(8, _mm512_shuffle_f32x4::<0x44>, _mm512_shuffle_f32x4::<0xee>);
            halve!(4, _mm512_shuffle_f32x4::<0x88>, _mm512_shuffle_f32x4::<0xdd>);
            halve!(2, _mm512_unpacklo_ps, _mm512_unpackhi_ps);
            halve!(1, _mm512_unpacklo_ps, _mm512_unpackhi_ps);
            _mm512_storeu_ps(to, _mm512_shuffle_f32x4::<0xd8>(v[0], v[0]));
        }
    }

    #[inline(always)]
    fn fence(self) {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { _mm_sfence() }
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: `self` proves that the processor has the instruction, which faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn gather_eights(self, p: *const u64, index: __m512i) -> [__m512i; 2] {
        // SAFETY: `self` proves that the processor has the instructions; the caller answers for the indices.
        unsafe {
            let second = _mm512_extracti64x4_epi64::<1>(index);
            [
                _mm512_i32gather_epi64::<8>(_mm512_castsi512_si256(index), p.cast()),
                _mm512_i32gather_epi64::<8>(second, p.cast()),
            ]
        }
    }

    #[inline(always)]
    fn turn_fours(self, v: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let (a, b) = (_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpacklo_epi32(v[2], v[3]));
            let (c, d) = (_mm512_unpackhi_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[2], v[3]));
            [
                _mm512_unpacklo_epi64(a, b),
                _mm512_unpackhi_epi64(a, b),
                _mm512_unpacklo_epi64(c, d),
                _mm512_unpackhi_epi64(c, d),
            ]
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[i8; 16], index: __m512i) -> __m512i {
        // SAFETY: `self` proves that the processor has the instructions; the table is 16 bytes.
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), index) }
    }

    #[inline(always)]
    fn dot_bf16(self, c: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: `self` proves that the processor has the instructions; vectors of bf16 are made of any bits.
        unsafe {
            if BF16 {
                return _mm512_dpbf16_ps(
                    c,
                    std::mem::transmute::<__m512i, __m512bh>(a),
                    std::mem::transmute::<__m512i, __m512bh>(b),
                );
            }
            dot_bf16(self, c, a, b)
        }
    }

    #[inline(always)]
    fn narrow(self, from: [__m512i; 4]) -> __m512i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let [a, b, c, d] = from;
            let v = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            // Each 128-bit lane has four bytes of each vector.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_epi32(order, v)
        }
    }

    lanes! {
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        splat_i(x: i32) -> __m512i = _mm512_set1_epi32(x);
        f16_to_f32(bits: u16) -> f32 = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits as i32)));
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        // 14 bits, doubled by a step of Newton's; then the quotient's own error is taken off. A division takes 16 cycles.
        ratio(a: __m512, b: __m512) -> __m512 = {
            let r = _mm512_rcp14_ps(b);
            let r = _mm512_fmadd_ps(_mm512_fnmadd_ps(b, r, _mm512_set1_ps(1.0)), r, r);
            let q = _mm512_mul_ps(a, r);
            _mm512_fmadd_ps(_mm512_fnmadd_ps(b, q, a), r, q)
        };
        fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        round(a: __m512) -> __m512 =
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        to_i(a: __m512) -> __m512i = _mm512_cvtps_epi32(a);
        float(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
        bits(a: __m512) -> __m512i = _mm512_castps_si512(a);
        of_bits(a: __m512i) -> __m512 = _mm512_castsi512_ps(a);
        add_i(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        sub_i(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
        mul_i(a: __m512i, b: __m512i) -> __m512i = _mm512_mullo_epi32(a, b);
        dot(c: __m512i, u: __m512i, i: __m512i) -> __m512i = _mm512_dpbusd_epi32(c, u, i);
        multiply_add_16(n: __m512i, a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi16(_mm512_mullo_epi16(n, a), b);
        min_u8(a: __m512i, b: __m512i) -> __m512i = _mm512_min_epu8(a, b);
        max_u8(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epu8(a, b);
        bytes_of_bits(bits: u64) -> __m512i = _mm512_movm_epi8(bits);
        and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        or(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        xor(a: __m512i, b: __m512i) -> __m512i = _mm512_xor_si512(a, b);
        lt(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b);
        eq(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b);
        permute(a: __m512, index: &[i32; WIDEST]) -> __m512 =
            _mm512_permutexvar_ps(_mm512_loadu_si512(index.as_ptr().cast()), a);
        select(mask: __mmask16, yes: __m512, no: __m512) -> __m512 = _mm512_mask_blend_ps(mask, no, yes);
        sum(a: __m512) -> f32 = {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        };
        max_lane(a: __m512) -> f32 = {
            let eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        };
    }

    #[inline(always)]
    fn shl<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn sar<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_sra_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
}

/// The first `n` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

/// `to[j][i] = from[i][j]` of 16 by 16.
///
/// # Safety
/// The processor has the instructions; both squares are there, and apart.
#[inline(always)]
unsafe fn transpose(from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut r = [_mm512_setzero_ps(); 16];
        let mut i = 0;
        while i < 16 {
            r[i] = _mm512_loadu_ps(from.add(i * from_pitch));
            i += 1;
        }
        // Column c, in each 128-bit lane counted from its first, of rows i .. i + 4. (Closures would not be inlined.)
        macro_rules! pair {
            ($c:literal, $i:expr) => {
                if $c < 2 { _mm512_unpacklo_ps(r[$i], r[$i + 1]) } else { _mm512_unpackhi_ps(r[$i], r[$i + 1]) }
            };
        }
        macro_rules! four {
            ($c:literal, $i:expr) => {{
                let (low, high) = (_mm512_castps_pd(pair!($c, $i)), _mm512_castps_pd(pair!($c, $i + 2)));
                _mm512_castpd_ps(if $c % 2 == 0 {
                    _mm512_unpacklo_pd(low, high)
                } else {
                    _mm512_unpackhi_pd(low, high)
                })
            }};
        }
        macro_rules! columns {
            ($($c:literal)*) => {$(
                let (a, b, d, e) = (four!($c, 0), four!($c, 4), four!($c, 8), four!($c, 12));
                let (x0, x1) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(d, e));
                let (y0, y1) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(d, e));
                _mm512_storeu_ps(to.add($c * to_pitch), _mm512_shuffle_f32x4::<0x88>(x0, x1));
                _mm512_storeu_ps(to.add((4 + $c) * to_pitch), _mm512_shuffle_f32x4::<0x88>(y0, y1));
                _mm512_storeu_ps(to.add((8 + $c) * to_pitch), _mm512_shuffle_f32x4::<0xdd>(x0, x1));
                _mm512_storeu_ps(to.add((12 + $c) * to_pitch), _mm512_shuffle_f32x4::<0xdd>(y0, y1));
            )*};
        }
        columns!(0 1 2 3);
    }
}
