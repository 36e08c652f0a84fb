//! AVX-512's dot products of bf16 pairs (AVX512_BF16), to measure them.

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
