//! AVX-512's dot products of small types: bf16 pairs (AVX512_BF16) and groups of four bytes (AVX512_VNNI).

use std::arch::x86_64::*;

/// Proof of AVX512_BF16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DotBf16(());

impl DotBf16 {
    /// The proof, where the processor has it.
    pub(crate) fn detect() -> Option<DotBf16> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")).then_some(DotBf16(()))
    }

    /// `rounds` times N independent instructions, 64 operations each.
    pub(crate) fn chains<const N: usize>(self, rounds: usize) -> f32 {
        #[target_feature(enable = "avx512f,avx512bf16")]
        fn inner<const N: usize>(rounds: usize) -> f32 {
            let ones = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0), _mm512_set1_ps(1.0));
            let mut chains = [_mm512_setzero_ps(); N];
            for _ in 0..rounds {
                chains.iter_mut().for_each(|c| *c = _mm512_dpbf16_ps(*c, ones, ones));
            }
            chains.iter().map(|&c| _mm512_reduce_add_ps(c)).sum()
        }
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { inner::<N>(rounds) }
    }
}

/// Proof of AVX512_VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DotInt8(());

impl DotInt8 {
    /// The proof, where the processor has it.
    pub(crate) fn detect() -> Option<DotInt8> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")).then_some(DotInt8(()))
    }

    /// `rounds` times N independent instructions, 128 operations each.
    pub(crate) fn chains<const N: usize>(self, rounds: usize) -> i32 {
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn inner<const N: usize>(rounds: usize) -> i32 {
            let ones = _mm512_set1_epi8(1);
            let mut chains = [_mm512_setzero_si512(); N];
            for _ in 0..rounds {
                chains.iter_mut().for_each(|c| *c = _mm512_dpbusd_epi32(*c, ones, ones));
            }
            chains.iter().map(|&c| _mm512_reduce_add_epi32(c)).fold(0, i32::wrapping_add)
        }
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { inner::<N>(rounds) }
    }
}
