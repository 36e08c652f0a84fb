//! 256-bit vectors: AVX2 with FMA and F16C, and with the dot products of bytes that newer processors without AVX-512 add (AVX-VNNI).
//!
//! [`Avx2`] is one type for both, which differ in [`Simd::dot`] and its kin alone.

use std::arch::{asm, x86_64::*};

use super::{HALVES_RUN, RUN_PITCH, Simd, WIDEST, Wide};

/// Proof that the processor has the instructions: made by `detect` alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// The proof, where the processor and the system have them.
    pub(crate) fn detect() -> Option<Avx2<VNNI>> {
        let found =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        (found && (!VNNI || is_x86_feature_detected!("avxvnni"))).then_some(Avx2(()))
    }

    /// Runs `f`, which is inlined here, compiled with the instructions.
    #[inline(always)]
    pub(crate) fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        if VNNI { compiled!("avx2,fma,f16c,avxvnni", f) } else { compiled!("avx2,fma,f16c", f) }
    }
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    const LANES: usize = 8;
    const DOTS: bool = true;
    const SIGNED: bool = !VNNI;
    const RUNS: bool = !VNNI;
    const HALVES: bool = !VNNI;
    type F = __m256;
    type I = __m256i;
    type M = __m256;
    type Wide = Wide<Self, 2>;
    type Plain = Avx2<false>;

    #[inline(always)]
    fn plain(self) -> Self::Plain {
        Avx2(())
    }
    #[inline(always)]
    fn wide(self) -> Self::Wide {
        Wide(self)
    }

    #[inline(always)]
    fn outline<R>(self, f: impl FnOnce() -> R) -> R {
        if VNNI {
            compiled!(
                #[inline(never)]
                "avx2,fma,f16c,avxvnni",
                f
            )
        } else {
            compiled!(
                #[inline(never)]
                "avx2,fma,f16c",
                f
            )
        }
    }

    memory! {
        load(p: *const f32) -> __m256 = _mm256_loadu_ps(p);
        store(p: *mut f32, v: __m256) = _mm256_storeu_ps(p, v);
        stream(p: *mut f32, v: __m256) = _mm256_stream_ps(p, v);
        load_partial(p: *const f32, n: usize) -> __m256 = _mm256_maskload_ps(p, first(n));
        store_partial(p: *mut f32, v: __m256, n: usize) = _mm256_maskstore_ps(p, first(n), v);
        load_f16(p: *const u16) -> __m256 = _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
        store_f16(p: *mut u16, v: __m256) = _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v));
        load_bf16(p: *const u16) -> __m256 =
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))));
        store_bf16(p: *mut u16, v: __m256) = {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let round = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let high = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(round, quiet, nan));
            let packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256::<1>(high));
            _mm_storeu_si128(p.cast(), packed)
        };
        load_i8(p: *const i8) -> __m256i = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
        load_u8(p: *const u8) -> __m256i = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
        store_i8(p: *mut i8, v: __m256i) = {
            let low = _mm256_shuffle_epi8(v, _mm256_set1_epi32(0x0c08_0400));
            _mm_storel_epi64(p.cast(), _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low)))
        };
        gather(p: *const f32, index: __m256i) -> __m256 = _mm256_i32gather_ps::<4>(p, index);
    }

    #[inline(always)]
    unsafe fn load_runs<const RUN: usize>(self, p: *const u8, step: usize) -> __m256i {
        // SAFETY: `self` proves that the processor has the instructions; the caller answers for the pointer.
        unsafe {
            if RUN == 32 {
                return _mm256_loadu_si256(p.cast());
            }
            debug_assert!(RUN == 16);
            let low = _mm256_castsi128_si256(_mm_loadu_si128(p.cast()));
            _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(p.add(step).cast()))
        }
    }

    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) {
        // SAFETY: `self` proves that the processor has the instructions; the caller answers for the squares.
        unsafe {
            let mut r = [_mm256_setzero_ps(); 8];
            let mut i = 0;
            while i < 8 {
                r[i] = _mm256_loadu_ps(from.add(i * from_pitch));
                i += 1;
            }
            // Column c, in each 128-bit lane counted from its first, of rows i .. i + 4. (Closures would not be inlined.)
            macro_rules! pair {
                ($c:literal, $i:expr) => {
                    if $c < 2 { _mm256_unpacklo_ps(r[$i], r[$i + 1]) } else { _mm256_unpackhi_ps(r[$i], r[$i + 1]) }
                };
            }
            macro_rules! four {
                ($c:literal, $i:expr) => {{
                    let (low, high) = (_mm256_castps_pd(pair!($c, $i)), _mm256_castps_pd(pair!($c, $i + 2)));
                    _mm256_castpd_ps(if $c % 2 == 0 {
                        _mm256_unpacklo_pd(low, high)
                    } else {
                        _mm256_unpackhi_pd(low, high)
                    })
                }};
            }
            macro_rules! columns {
                ($($c:literal)*) => {$(
                    let (a, b) = (four!($c, 0), four!($c, 4));
                    _mm256_storeu_ps(to.add($c * to_pitch), _mm256_permute2f128_ps::<0x20>(a, b));
                    _mm256_storeu_ps(to.add((4 + $c) * to_pitch), _mm256_permute2f128_ps::<0x31>(a, b));
                )*};
            }
            columns!(0 1 2 3);
        }
    }

    // Pairs of products of eight bits do not fit 16: even and odd bytes are widened, which is done once for a vector that meets several.
    #[inline(always)]
    fn dot(self, c: __m256i, u: __m256i, i: __m256i) -> __m256i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            if VNNI {
                return _mm256_dpbusd_avx_epi32(c, u, i);
            }
            let even = (_mm256_and_si256(u, _mm256_set1_epi16(255)), _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(i)));
            let odd = (_mm256_srli_epi16::<8>(u), _mm256_srai_epi16::<8>(i));
            _mm256_add_epi32(_mm256_add_epi32(c, _mm256_madd_epi16(even.0, even.1)), _mm256_madd_epi16(odd.0, odd.1))
        }
    }

    #[inline(always)]
    unsafe fn add_halves<const M: usize, const V: usize>(
        self,
        acc: &mut [[__m256; V]; M],
        a: *const f32,
        b: *const u8,
        next: usize,
    ) {
        let mut v = 0;
        while v < V {
            // SAFETY: `self` proves that the processor has the instructions; the caller answers for the pointers.
            unsafe { add_halves(acc, v, a, b.add(v / 2 * next)) };
            v += 2;
        }
    }

    #[inline(always)]
    unsafe fn add_run<const M: usize, const V: usize, const STEPS: usize>(
        self,
        acc: &mut [[__m256i; V]; M],
        (a, pitch): (*const u8, usize),
        b: *const u8,
        factors: *const i32,
    ) {
        // SAFETY: `self` proves that the processor has the instructions; the caller answers for the pointers.
        unsafe {
            let mut q = 0;
            while q < 4 {
                let mut short = [[_mm256_setzero_si256(); V]; M];
                let mut step = 0;
                while step < STEPS {
                    let mut u = [_mm256_setzero_si256(); V];
                    let mut v = 0;
                    while v < V {
                        u[v] = _mm256_loadu_si256(b.add(q * RUN_PITCH + 32 * v).cast());
                        v += 1;
                    }
                    let mut i = 0;
                    while i < M {
                        let x = _mm256_set1_epi32(a.add(i * pitch + 4 * q).cast::<i32>().read_unaligned());
                        let mut v = 0;
                        while v < V {
                            short[i][v] = _mm256_add_epi16(short[i][v], _mm256_maddubs_epi16(u[v], x));
                            v += 1;
                        }
                        i += 1;
                    }
                    step += 1;
                    q += 1;
                }
                let mut v = 0;
                while v < V {
                    let factor = _mm256_loadu_si256(factors.add(8 * v).cast());
                    let mut i = 0;
                    while i < M {
                        acc[i][v] = _mm256_add_epi32(acc[i][v], _mm256_madd_epi16(short[i][v], factor));
                        i += 1;
                    }
                    v += 1;
                }
            }
        }
    }

    // |a| is at most 128, and b with its sign at most 127: a pair of products is at most 2 * 128 * 127 < 2^15.
    #[inline(always)]
    fn dot_signed(self, c: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { self.dot_small(c, _mm256_abs_epi8(a), _mm256_sign_epi8(b, a)) }
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
    fn bytes_of_bits(self, bits: u64) -> __m256i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let eight = |n: u8| i64::from_le_bytes([n; 8]);
            let bytes = _mm256_shuffle_epi8(
                _mm256_set1_epi32(bits as i32),
                _mm256_set_epi64x(eight(3), eight(2), eight(1), eight(0)),
            );
            let each = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            _mm256_cmpeq_epi8(_mm256_and_si256(bytes, each), each)
        }
    }

    #[inline(always)]
    fn turn_fours(self, v: [__m256i; 4]) -> [__m256i; 4] {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let (a, b) = (_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpacklo_epi32(v[2], v[3]));
            let (c, d) = (_mm256_unpackhi_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[2], v[3]));
            [
                _mm256_unpacklo_epi64(a, b),
                _mm256_unpackhi_epi64(a, b),
                _mm256_unpacklo_epi64(c, d),
                _mm256_unpackhi_epi64(c, d),
            ]
        }
    }

    // Pairs of products are added up in 16 bits, as many as fit.
    #[inline(always)]
    fn dot_fours(self, u: [__m256i; 4], i: [__m256i; 4], steps: usize) -> __m256i {
        if VNNI || steps < 2 {
            let low = self.dot_small(self.dot_small(self.splat_i(0), u[0], i[0]), u[1], i[1]);
            return self.dot_small(self.dot_small(low, u[2], i[2]), u[3], i[3]);
        }
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe {
            let one = _mm256_set1_epi16(1);
            let low = _mm256_add_epi16(_mm256_maddubs_epi16(u[0], i[0]), _mm256_maddubs_epi16(u[1], i[1]));
            let high = _mm256_add_epi16(_mm256_maddubs_epi16(u[2], i[2]), _mm256_maddubs_epi16(u[3], i[3]));
            if steps < 4 {
                return _mm256_add_epi32(_mm256_madd_epi16(low, one), _mm256_madd_epi16(high, one));
            }
            _mm256_madd_epi16(_mm256_add_epi16(low, high), one)
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[i8; 16], index: __m256i) -> __m256i {
        // SAFETY: `self` proves that the processor has the instructions; the table is 16 bytes.
        unsafe { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), index) }
    }

    lanes! {
        splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        splat_i(x: i32) -> __m256i = _mm256_set1_epi32(x);
        f16_to_f32(bits: u16) -> f32 = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits as i32)));
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
        round(a: __m256) -> __m256 = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        to_i(a: __m256) -> __m256i = _mm256_cvtps_epi32(a);
        float(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);
        bits(a: __m256) -> __m256i = _mm256_castps_si256(a);
        of_bits(a: __m256i) -> __m256 = _mm256_castsi256_ps(a);
        add_i(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
        sub_i(a: __m256i, b: __m256i) -> __m256i = _mm256_sub_epi32(a, b);
        mul_i(a: __m256i, b: __m256i) -> __m256i = _mm256_mullo_epi32(a, b);
        dot_small(c: __m256i, u: __m256i, i: __m256i) -> __m256i = if VNNI {
            _mm256_dpbusd_avx_epi32(c, u, i)
        } else {
            _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_maddubs_epi16(u, i), _mm256_set1_epi16(1)))
        };
        narrow(from: [__m256i; 4]) -> __m256i = {
            let [a, b, c, d] = from;
            let v = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            // Each 128-bit lane has four bytes of each vector.
            _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
        };
        permute(a: __m256, index: &[i32; WIDEST]) -> __m256 =
            _mm256_permutevar8x32_ps(a, _mm256_loadu_si256(index.as_ptr().cast()));
        multiply_add_16(n: __m256i, a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi16(_mm256_mullo_epi16(n, a), b);
        min_u8(a: __m256i, b: __m256i) -> __m256i = _mm256_min_epu8(a, b);
        max_u8(a: __m256i, b: __m256i) -> __m256i = _mm256_max_epu8(a, b);
        and(a: __m256i, b: __m256i) -> __m256i = _mm256_and_si256(a, b);
        or(a: __m256i, b: __m256i) -> __m256i = _mm256_or_si256(a, b);
        xor(a: __m256i, b: __m256i) -> __m256i = _mm256_xor_si256(a, b);
        lt(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_LT_OQ>(a, b);
        eq(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b);
        select(mask: __m256, yes: __m256, no: __m256) -> __m256 = _mm256_blendv_ps(no, yes, mask);
        sum(a: __m256) -> f32 = {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        };
        max_lane(a: __m256) -> f32 = {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        };
    }

    #[inline(always)]
    fn shl<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_srl_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn sar<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_sra_epi32(a, _mm_cvtsi32_si128(N as i32)) }
    }
}

/// [`Simd::add_halves`] of two vectors, from the v-th sums on, all of it written out: the compiler would keep what is loaded for both halves, and
/// reorder sums, until they fill more than the sixteen registers that six rows need.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_halves<const M: usize, const V: usize>(
    acc: &mut [[__m256; V]; M],
    v: usize,
    a: *const f32,
    b: *const u8,
) {
    const { assert!(HALVES_RUN == 64 && V.is_multiple_of(2)) };
    macro_rules! step {
        ($($i:literal $c:ident $d:ident)*) => {
            asm!(
                "vmovdqu {w0}, [{b}]",
                "vmovdqu {w1}, [{b} + 32]",
                "vpsllw {w0}, {w0}, 8",
                "vpsllw {w1}, {w1}, 8",
                "vpsraw {w0}, {w0}, 8",
                "vpsraw {w1}, {w1}, 8",
                $(step!(+ $i 0 $c $d),)*
                "vmovdqu {w0}, [{b}]",
                "vmovdqu {w1}, [{b} + 32]",
                "vpsraw {w0}, {w0}, 8",
                "vpsraw {w1}, {w1}, 8",
                $(step!(+ $i 32 $c $d),)*
                a = in(reg) a,
                b = in(reg) b,
                w0 = out(ymm_reg) _,
                w1 = out(ymm_reg) _,
                x = out(ymm_reg) _,
                y = out(ymm_reg) _,
                $($c = inout(ymm_reg) acc[$i][v], $d = inout(ymm_reg) acc[$i][v + 1],)*
                options(pure, readonly, nostack, preserves_flags),
            )
        };
        (+ $i:literal $half:literal $c:ident $d:ident) => {
            concat!(
                "vpbroadcastd {x}, [{a} + 64*", $i, " + ", $half, "]\n",
                "vpmaddwd {y}, {x}, {w0}\n",
                "vpaddd {", stringify!($c), "}, {", stringify!($c), "}, {y}\n",
                "vpmaddwd {x}, {x}, {w1}\n",
                "vpaddd {", stringify!($d), "}, {", stringify!($d), "}, {x}",
            )
        };
    }
    // SAFETY: reads M words at each of the halves of `a`, and two vectors of `b`; the callers' v + 1 is below V.
    unsafe {
        match M {
            1 => step!(0 c0 d0),
            2 => step!(0 c0 d0 1 c1 d1),
            3 => step!(0 c0 d0 1 c1 d1 2 c2 d2),
            4 => step!(0 c0 d0 1 c1 d1 2 c2 d2 3 c3 d3),
            5 => step!(0 c0 d0 1 c1 d1 2 c2 d2 3 c3 d3 4 c4 d4),
            6 => step!(0 c0 d0 1 c1 d1 2 c2 d2 3 c3 d3 4 c4 d4 5 c5 d5),
            _ => unreachable!("no strip has {M} rows"),
        }
    }
}

/// Ones in the first `n` lanes.
#[inline(always)]
unsafe fn first(n: usize) -> __m256i {
    const WINDOW: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: for n up to 8 the eight lanes lie inside the window; the caller has AVX2.
    unsafe { _mm256_loadu_si256(WINDOW.as_ptr().add(8 - n.min(8)).cast()) }
}
