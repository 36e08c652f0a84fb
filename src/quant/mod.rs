//! Conversions between dtypes, and the block-quantized formats: one table (in `dtype.rs`), one file per format.

use half::{bf16, f16};

use crate::{
    dtype::{DType, quant_table},
    error::{Error, Result},
};

/// A block-quantized format's two functions, on whole blocks.
pub struct Format {
    /// Its dtype.
    pub dtype: DType,
    /// Decodes blocks: `bytes` holds whole blocks, `out` their elements.
    pub decode: fn(bytes: &[u8], out: &mut [f32]),
    /// Encodes whole blocks as GGUF's own reference encoder does.
    pub encode: fn(values: &[f32], bytes: &mut [u8]),
}

macro_rules! formats {
    ($($quant:ident, $file:ident, $gguf:literal, $elements:literal, $bytes:literal;)*) => {
        $(mod $file;)*
        /// The format's functions; `None` for plain dtypes.
        pub fn format(dtype: DType) -> Option<&'static Format> {
            match dtype {
                $(DType::$quant => Some(&$file::FORMAT),)*
                _ => None,
            }
        }
    };
}
quant_table!(formats);
