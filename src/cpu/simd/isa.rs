//! The instruction sets by name.

use super::*;

/// The instruction set in use: what was detected, or less.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Isa {
    /// Whatever the compiler was told to build for.
    Scalar(Scalar),
    /// AVX2, FMA, F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2<false>),
    /// AVX2 and what AVX-VNNI adds to it.
    #[cfg(target_arch = "x86_64")]
    AvxVnni(Avx2<false>, Avx2<true>),
    /// AVX-512 F, BW, DQ, VL, VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false>),
    /// AVX-512 and AVX512_BF16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512<false>, Avx512<true>),
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon<PLAIN>),
    /// NEON with `sdot`.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(Neon<PLAIN>, Neon<DOTPROD>),
    /// NEON with `usdot`.
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(Neon<PLAIN>, Neon<I8MM>),
}

impl Isa {
    /// Every set this processor has, best first (`avx512bf16` may lose to `avx512`: [`Isa::detect`]).
    pub(crate) fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx512::detect().zip(Avx512::detect()).map(|(s, pairs)| Isa::Avx512Bf16(s, pairs)));
            all.extend(Avx512::detect().map(Isa::Avx512));
            all.extend(Avx2::detect().zip(Avx2::detect()).map(|(s, dots)| Isa::AvxVnni(s, dots)));
            all.extend(Avx2::detect().map(Isa::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.extend(Neon::detect().zip(Neon::detect()).map(|(s, dots)| Isa::NeonI8mm(s, dots)));
            all.extend(Neon::detect().zip(Neon::detect()).map(|(s, dots)| Isa::NeonDotprod(s, dots)));
            all.extend(Neon::detect().map(Isa::Neon));
        }
        all.push(Isa::Scalar(Scalar));
        all
    }

    /// The best set, or the one that the environment variable `TESELA_ISA` names, where the processor has it.
    pub(crate) fn detect() -> Isa {
        let all = Isa::available();
        let wanted = std::env::var("TESELA_ISA").unwrap_or_default();
        let best = || all.iter().find(|i| !i.pairs() || crate::cpu::peaks::pairs_are_faster());
        all.iter().find(|i| i.name() == wanted).or_else(best).copied().unwrap_or(Isa::Scalar(Scalar))
    }

    /// True where products of bytes are faster than those of f32.
    pub(crate) fn dots(self) -> bool {
        #[inline(always)]
        fn dots<S: Simd>(_: S) -> bool {
            S::DOTS
        }
        dots!(self, s => dots(s))
    }

    /// True where products of bf16 have instructions of their own.
    pub(crate) fn pairs(self) -> bool {
        #[inline(always)]
        fn pairs<S: Simd>(_: S) -> bool {
            S::PAIRS
        }
        pairs!(self, s => pairs(s))
    }

    /// Words that four bytes of x take in a strip.
    pub(crate) fn words(self) -> usize {
        #[inline(always)]
        fn words<S: Simd>(_: S) -> usize {
            1 + usize::from(S::HALVES)
        }
        dots!(self, s => words(s))
    }

    /// `scalar`, `avx2`, `avxvnni`, `avx512`, `avx512bf16`, `neon`, `neon-dotprod`, `neon-i8mm`: the last part of kernels' names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni(..) => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(..) => "avx512bf16",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod(..) => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm(..) => "neon-i8mm",
        }
    }
}
