//! Rotary position embedding, in place, optionally writing the result into a cache too.
//!
//! For token `t` at position `p = positions[t]` and pair `i` of `dims / 2`: `angle = p * theta^(-2 i / dims)`, rescaled as
//! `scaling` says, divided by `factors[i]` where given; `(a, b) -> (a cos - b sin, a sin + b cos)`, times yarn's
//! attention factor. Pairs are `(2 i, 2 i + 1)` (`adjacent`: GGUF llama and granite files) or `(i, i + dims / 2)` (`half`:
//! safetensors, BERT-like GGUF). Elements from `dims` on are left alone.
//!
//! - Frequencies and angles are computed in f64 or as an exact f32 product, so that position 131071 is right.
//! - `linear`: angle / factor. `llama3`: wavelengths beyond `original / low` are slowed by `factor`, those
//!   below `original / high` kept, a linear blend between. `yarn`: NTK-by-parts with `beta_fast = high`, `beta_slow = low`, blended
//!   per dimension (corr_dim floored and ceiled, clamped to `0 ..= dims - 1`), amplitude `attention` (0 stands for `0.1 ln(factor) + 1`).
//! - With `cache` and `slots`: rotated row `t` is also written to `cache[slots[t]]`, converted to the cache's dtype; a slot
//!   outside the cache writes nothing.

use super::*;
use crate::{dtype::DType, layout::Spec};

words! {
    /// Which elements form a rotated pair.
    RopeStyle {
        /// `(2 i, 2 i + 1)`
        Adjacent = "adjacent",
        /// `(i, i + dims / 2)`
        Half = "half",
    }
}

words! {
    /// How frequencies are rescaled for longer contexts.
    RopeScaling {
        /// Not at all.
        None = "none",
        /// All by the same factor.
        Linear = "linear",
        /// Llama 3's bands.
        Llama3 = "llama3",
        /// YaRN.
        Yarn = "yarn",
    }
}

descriptor! {
    /// Rotates pairs of elements by an angle that grows with the position: see the [module](self).
    Rope = "rope";
    operands {
        /// `[tokens, heads, d]`, rotated in place.
        x: InOut,
        /// i32 `[tokens]`
        positions: In,
    }
    optional {
        /// f32 `[dims / 2]`: divisors of the frequencies.
        factors: In,
        /// `[capacity, heads, d]` or `[pages, page, heads, d]`
        cache: InOut,
        /// i32 `[tokens]`: rows of the cache (`page * page_size + row` for a paged one).
        slots: In,
    }
    fields {
        /// Pairing.
        style: RopeStyle = RopeStyle::Adjacent,
        /// How many elements of a head are rotated; 0 stands for all.
        dims: usize = 0,
        /// Base of the frequencies.
        theta: Real = Real::new(10000.0),
        /// Rescaling.
        scaling: RopeScaling = RopeScaling::None,
        /// Context extension factor.
        factor: Real = Real::ONE,
        /// `low_freq_factor` or `beta_slow`.
        low: Real = Real::ONE,
        /// `high_freq_factor` or `beta_fast`.
        high: Real = Real::new(4.0),
        /// Context length before the extension.
        original: usize = 8192,
        /// Yarn's amplitude; 0 stands for its formula.
        attention: Real = Real::ZERO,
    }
}

super::descriptor::unwritten!(Rope);
