//! Element types, plain and quantized.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// The one table of block-quantized formats: `Variant, module in quant/, GGUF type id, elements and bytes of a block`.
/// A new format is one line here and one file in `quant/`.
macro_rules! quant_table {
    ($callback:ident) => {
        $callback! {
            Q4_0, q4_0, 2, 32, 18;
            Q4_1, q4_1, 3, 32, 20;
            Q5_0, q5_0, 6, 32, 22;
            Q5_1, q5_1, 7, 32, 24;
            Q8_0, q8_0, 8, 32, 34;
            Q8_1, q8_1, 9, 32, 36;
            Q2_K, q2_k, 10, 256, 84;
            Q3_K, q3_k, 11, 256, 110;
            Q4_K, q4_k, 12, 256, 144;
            Q5_K, q5_k, 13, 256, 176;
            Q6_K, q6_k, 14, 256, 210;
            Q8_K, q8_k, 15, 256, 292;
            IQ1_S, iq1_s, 19, 256, 50;
            IQ1_M, iq1_m, 29, 256, 56;
            IQ2_XXS, iq2_xxs, 16, 256, 66;
            IQ2_XS, iq2_xs, 17, 256, 74;
            IQ2_S, iq2_s, 22, 256, 82;
            IQ3_XXS, iq3_xxs, 18, 256, 98;
            IQ3_S, iq3_s, 21, 256, 110;
            IQ4_NL, iq4_nl, 20, 32, 18;
            IQ4_XS, iq4_xs, 23, 256, 136;
            TQ1_0, tq1_0, 34, 256, 54;
            TQ2_0, tq2_0, 35, 256, 66;
            MXFP4, mxfp4, 39, 32, 17;
            NVFP4, nvfp4, 40, 64, 36;
            Q1_0, q1_0, 41, 128, 18;
        }
    };
}
pub(crate) use quant_table;

macro_rules! dtypes {
    ($($quant:ident, $file:ident, $gguf:literal, $elements:literal, $bytes:literal;)*) => {
        /// The type of a tensor's elements. Quantized types store blocks of several elements; names are GGUF's own.
        #[non_exhaustive]
        #[allow(missing_docs, non_camel_case_types, reason = "the formats' own names")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DType { F32, F16, BF16, F8E4M3, F8E5M2, I8, U8, I32, $($quant,)* }

        impl DType {
            /// Every type, plain ones first.
            pub const ALL: &'static [DType] = &[
                DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2, DType::I8, DType::U8, DType::I32,
                $(DType::$quant,)*
            ];

            /// The name used in every text: `f32`, `bf16`, `q4_k`, ...
            pub const fn name(self) -> &'static str {
                match self {
                    DType::F32 => "f32", DType::F16 => "f16", DType::BF16 => "bf16",
                    DType::F8E4M3 => "f8e4m3", DType::F8E5M2 => "f8e5m2",
                    DType::I8 => "i8", DType::U8 => "u8", DType::I32 => "i32",
                    $(DType::$quant => stringify!($file),)*
                }
            }

            /// `(elements, bytes)` of a block; `(1, size)` for plain types.
            pub const fn block(self) -> (usize, usize) {
                match self {
                    DType::F32 | DType::I32 => (1, 4),
                    DType::F16 | DType::BF16 => (1, 2),
                    DType::F8E4M3 | DType::F8E5M2 | DType::I8 | DType::U8 => (1, 1),
                    $(DType::$quant => ($elements, $bytes),)*
                }
            }

            /// The type with this id in a GGUF file, if it is one of ours.
            pub const fn from_gguf(id: u32) -> Option<DType> {
                match id {
                    0 => Some(DType::F32), 1 => Some(DType::F16), 30 => Some(DType::BF16),
                    24 => Some(DType::I8), 26 => Some(DType::I32),
                    $($gguf => Some(DType::$quant),)*
                    _ => None,
                }
            }
        }
    };
}
quant_table!(dtypes);

impl DType {
    /// True for formats whose elements come in blocks.
    pub const fn is_quantized(self) -> bool {
        self.block().0 > 1
    }

    /// True for f32, f16 and bf16, the types of activations.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// The type's id in a GGUF file, if it has one: the inverse of [`DType::from_gguf`].
    pub fn gguf(self) -> Option<u32> {
        (0..64).find(|&id| DType::from_gguf(id) == Some(self))
    }

    /// Bytes of `elements` consecutive elements, or `None` where they do not fill whole blocks or overflow.
    pub const fn bytes(self, elements: usize) -> Option<usize> {
        let (n, size) = self.block();
        if !elements.is_multiple_of(n) { None } else { (elements / n).checked_mul(size) }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let known = || DType::ALL.iter().map(|d| d.name()).collect::<Vec<_>>().join(" ");
        let found = DType::ALL.iter().copied().find(|d| d.name() == s);
        found.ok_or_else(|| Error::invalid(s, format_args!("no such dtype; known: {}", known())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for &d in DType::ALL {
            assert_eq!(d.to_string().parse(), Ok(d));
            assert_eq!(DType::ALL.iter().filter(|other| other.name() == d.name()).count(), 1, "{d}");
        }
        assert_eq!(format!("[{:>5}]", DType::F32), "[  f32]");
        for wrong in ["", "F32", "f32 ", "q4_0_0"] {
            let error = wrong.parse::<DType>().expect_err(wrong).to_string();
            assert!(error.contains("q4_0"), "{error} lists what is known");
        }
    }

    #[test]
    fn blocks_and_bytes() {
        for &d in DType::ALL {
            let (elements, bytes) = d.block();
            assert_eq!(d.is_quantized(), elements > 1);
            assert_eq!(d.bytes(3 * elements), Some(3 * bytes));
            assert_eq!(d.bytes(elements + 1), (elements == 1).then_some(2 * bytes), "{d}");
            assert_eq!(d.bytes(0), Some(0));
        }
        assert_eq!(DType::F32.bytes(usize::MAX), None);
        // 4 bits and a half-precision scale for each 32 elements.
        assert_eq!(DType::Q4_0.bytes(64), Some(2 * (16 + 2)));
    }

    #[test]
    fn gguf_ids() {
        // ggml's own numbers.
        let known = [
            (0, "f32"),
            (1, "f16"),
            (2, "q4_0"),
            (3, "q4_1"),
            (6, "q5_0"),
            (7, "q5_1"),
            (8, "q8_0"),
            (9, "q8_1"),
            (10, "q2_k"),
            (11, "q3_k"),
            (12, "q4_k"),
            (13, "q5_k"),
            (14, "q6_k"),
            (15, "q8_k"),
            (16, "iq2_xxs"),
            (17, "iq2_xs"),
            (18, "iq3_xxs"),
            (19, "iq1_s"),
            (20, "iq4_nl"),
            (21, "iq3_s"),
            (22, "iq2_s"),
            (23, "iq4_xs"),
            (24, "i8"),
            (26, "i32"),
            (29, "iq1_m"),
            (30, "bf16"),
            (34, "tq1_0"),
            (35, "tq2_0"),
            (39, "mxfp4"),
            (40, "nvfp4"),
            (41, "q1_0"),
        ];
        for (id, name) in known {
            assert_eq!(DType::from_gguf(id).map(DType::name), Some(name));
            assert_eq!(DType::from_gguf(id).and_then(DType::gguf), Some(id));
        }
        // No two ids name the same type; 4 and 5 were withdrawn, 25 and 27 are i16 and i64.
        let mut found: Vec<DType> = (0..100).filter_map(DType::from_gguf).collect();
        let count = found.len();
        found.sort();
        found.dedup();
        assert_eq!(found.len(), count);
        assert!(DType::ALL.iter().filter(|d| d.is_quantized()).all(|d| found.contains(d)));
        assert!([4, 5, 25, 27, 99, u32::MAX].iter().all(|&id| DType::from_gguf(id).is_none()));
    }
}
