//! Conversions between dtypes, and the block-quantized formats: one table (in `dtype.rs`), one file per format.
//!
//! All formats are little-endian. Any bytes decode, to NaN and infinities if need be. Values whose scale leaves the
//! range of f16 encode to a scale of infinity, as in GGUF's reference encoder.

mod encoding;
mod f8;
mod fit;
mod grid;

pub use encoding::Encoding;

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
    /// Encodes whole blocks, as GGUF's own reference encoder does where there is one. `weights`: how much each element's
    /// squared error counts, by a mean of about 1; empty where all count the same. See [`Encoding`].
    pub encode: fn(values: &[f32], weights: &[f32], bytes: &mut [u8]),
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

#[allow(unused_imports, reason = "for devices that decode with code of their own, each of which can be dropped")]
pub(crate) use self::{grid::bytes as grid_bytes, mxfp4::power as mx_power, nvfp4::half_scale};

/// IQ4_NL's levels.
#[allow(dead_code, reason = "as above")]
pub(crate) const fn iq4_nl_levels() -> [i8; 16] {
    whole(iq4_nl::LEVELS)
}

/// MXFP4's and NVFP4's levels.
#[allow(dead_code, reason = "as above")]
pub(crate) const fn mx_levels() -> [i8; 16] {
    whole(mxfp4::LEVELS)
}

#[allow(dead_code, reason = "as above")]
const fn whole(levels: [f32; 16]) -> [i8; 16] {
    let (mut all, mut i) = ([0; 16], 0);
    while i < 16 {
        all[i] = levels[i] as i8;
        i += 1;
    }
    all
}

/// Decodes elements of any dtype. `bytes` holds exactly `out.len()` elements.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    check(dtype, out.len(), bytes.len())?;
    match dtype {
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        DType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        DType::BF16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        DType::F8E4M3 => each(bytes, out, |[b]| f8::values(true)[b as usize]),
        DType::F8E5M2 => each(bytes, out, |[b]| f8::values(false)[b as usize]),
        DType::I8 => each(bytes, out, |b| i8::from_le_bytes(b) as f32),
        DType::U8 => each(bytes, out, |b: [u8; 1]| b[0] as f32),
        DType::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        other => match format(other) {
            Some(f) => (f.decode)(bytes, out),
            None => return Err(Error::unsupported(other, "cannot be decoded")),
        },
    }
    Ok(())
}

/// Encodes elements of any dtype; the rules are those of [`Convert`](crate::op::Convert).
pub fn encode(dtype: DType, values: &[f32], bytes: &mut [u8]) -> Result<()> {
    check(dtype, values.len(), bytes.len())?;
    match dtype {
        DType::F32 => each_mut(values, bytes, f32::to_le_bytes),
        DType::F16 => each_mut(values, bytes, |v| f16::from_f32(v).to_le_bytes()),
        DType::BF16 => each_mut(values, bytes, |v| bf16::from_f32(v).to_le_bytes()),
        DType::F8E4M3 => each_mut(values, bytes, |v| [f8::encode(true, v as f64)]),
        DType::F8E5M2 => each_mut(values, bytes, |v| [f8::encode(false, v as f64)]),
        DType::I8 => each_mut(values, bytes, |v| (v.round_ties_even() as i8).to_le_bytes()),
        DType::U8 => each_mut(values, bytes, |v| [v.round_ties_even() as u8]),
        DType::I32 => each_mut(values, bytes, |v| (v.round_ties_even() as i32).to_le_bytes()),
        other => match format(other) {
            Some(f) => (f.encode)(values, &[], bytes),
            None => return Err(Error::unsupported(other, "cannot be encoded")),
        },
    }
    Ok(())
}

/// The points of a format's grid, packed 16 bits each as the format's file in `src/quant/` draws them, for devices that decode it with
/// code of their own: `None` for formats without one.
pub fn points(dtype: DType) -> Option<&'static [u16]> {
    match dtype {
        DType::IQ1_S | DType::IQ1_M => Some(grid::IQ1.words()),
        DType::IQ2_XXS => Some(grid::IQ2_XXS.words()),
        DType::IQ2_XS => Some(grid::IQ2_XS.words()),
        DType::IQ2_S => Some(grid::IQ2_S.words()),
        DType::IQ3_XXS => Some(grid::IQ3_XXS.words()),
        DType::IQ3_S => Some(grid::IQ3_S.words()),
        _ => None,
    }
}

/// As [`decode`], into f64: exact for every dtype, i32 included.
pub fn decode_f64(dtype: DType, bytes: &[u8], out: &mut [f64]) -> Result<()> {
    check(dtype, out.len(), bytes.len())?;
    if dtype == DType::I32 {
        for (b, o) in bytes.chunks_exact(4).zip(out) {
            *o = i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f64;
        }
        return Ok(());
    }
    let mut single = vec![0f32; out.len()];
    decode(dtype, bytes, &mut single)?;
    out.iter_mut().zip(single).for_each(|(o, v)| *o = v as f64);
    Ok(())
}

/// As [`encode`], from f64, each plain element rounded once.
pub fn encode_f64(dtype: DType, values: &[f64], bytes: &mut [u8]) -> Result<()> {
    check(dtype, values.len(), bytes.len())?;
    match dtype {
        DType::F16 => each_mut(values, bytes, |v| f16::from_f32(to_odd(v)).to_le_bytes()),
        DType::BF16 => each_mut(values, bytes, |v| bf16::from_f32(to_odd(v)).to_le_bytes()),
        DType::F8E4M3 => each_mut(values, bytes, |v| [f8::encode(true, v)]),
        DType::F8E5M2 => each_mut(values, bytes, |v| [f8::encode(false, v)]),
        DType::I8 => each_mut(values, bytes, |v| (v.round_ties_even() as i8).to_le_bytes()),
        DType::U8 => each_mut(values, bytes, |v| [v.round_ties_even() as u8]),
        DType::I32 => each_mut(values, bytes, |v| (v.round_ties_even() as i32).to_le_bytes()),
        _ => encode(dtype, &values.iter().map(|&v| v as f32).collect::<Vec<_>>(), bytes)?,
    }
    Ok(())
}

/// Rounded to odd, so that rounding once more, to a shorter type, gives what rounding once would (Boldo and Melquiond,
/// "When double rounding is odd"). `half` itself drops the low half of an f64 before it rounds.
fn to_odd(v: f64) -> f32 {
    let near = v as f32;
    if near.is_nan() || near as f64 == v {
        return near;
    }
    let toward_zero = if (near as f64).abs() > v.abs() { near.to_bits() - 1 } else { near.to_bits() };
    f32::from_bits(toward_zero | 1)
}

fn check(dtype: DType, elements: usize, bytes: usize) -> Result<()> {
    match dtype.bytes(elements) {
        Some(n) if n == bytes => Ok(()),
        Some(n) => Err(Error::invalid(dtype, format_args!("{elements} elements are {n} bytes, not {bytes}"))),
        None => Err(Error::invalid(dtype, format_args!("{elements} elements do not fill whole blocks"))),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; N]) -> f32) {
    for (b, o) in bytes.as_chunks::<N>().0.iter().zip(out) {
        *o = f(*b);
    }
}

fn each_mut<T: Copy, const N: usize>(values: &[T], bytes: &mut [u8], f: impl Fn(T) -> [u8; N]) {
    for (b, v) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *b = f(*v);
    }
}

/// The scale of a block that holds a NaN or an infinity.
const NAN_SCALE: [u8; 2] = f16::NAN.to_le_bytes();

fn each_block<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    f: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        f(block, out);
    }
}

fn each_block_mut<const BYTES: usize, const ELEMENTS: usize>(
    values: &[f32],
    bytes: &mut [u8],
    f: impl Fn(&[f32; ELEMENTS], &mut [u8; BYTES]),
) {
    for (block, values) in bytes.as_chunks_mut().0.iter_mut().zip(values.as_chunks().0) {
        f(values, block);
    }
}

/// As [`each_block_mut`], with a weight for each element: 1 where there are none.
fn each_block_weighted<const BYTES: usize, const ELEMENTS: usize>(
    values: &[f32],
    weights: &[f32],
    bytes: &mut [u8],
    f: impl Fn(&[f32; ELEMENTS], &[f32; ELEMENTS], &mut [u8; BYTES]),
) {
    let (even, weights) = ([1.0; ELEMENTS], weights.as_chunks().0);
    for (i, (block, values)) in bytes.as_chunks_mut().0.iter_mut().zip(values.as_chunks().0).enumerate() {
        f(values, weights.get(i).unwrap_or(&even), block);
    }
}

/// The low nibbles, then the high ones.
fn nibbles(packed: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|i| packed[i % 16] >> (i / 16 * 4) & 15)
}

/// The inverse of [`nibbles`]; bits above the fourth are dropped.
fn pack_nibbles(q: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| q[i] & 15 | q[i + 16] << 4)
}

/// Bits 2 p and 2 p + 1 of byte 32 h + i as element 128 h + 32 p + i.
fn pairs(packed: &[u8]) -> [u8; 256] {
    std::array::from_fn(|i| packed[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3)
}

/// The inverse of [`pairs`]; bits above the second are dropped.
fn pack_pairs(q: &[u8; 256]) -> [u8; 64] {
    std::array::from_fn(|i| (0..4).fold(0, |byte, p| byte | (q[i / 32 * 128 + 32 * p + i % 32] & 3) << (2 * p)))
}

/// The smallest and the largest element; `None` where one is not finite.
fn range(x: &[f32]) -> Option<(f32, f32)> {
    largest(x)?;
    Some(x.iter().fold((f32::MAX, f32::MIN), |(low, high), &v| (low.min(v), high.max(v))))
}

/// The element of the largest magnitude, the first of equals; `None` where one is not finite.
fn largest(x: &[f32]) -> Option<f32> {
    x.iter().try_fold(0f32, |most, &v| v.is_finite().then_some(if v.abs() > most.abs() { v } else { most }))
}

/// `1 / d`, and 0 where that is not finite.
fn reciprocal(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Rounds halves away from zero; not finite gives 0, beyond i32 its ends.
fn round(x: f32) -> i32 {
    let whole = x as i32;
    let rest = x - whole as f32;
    whole.saturating_add((rest >= 0.5) as i32 - (rest <= -0.5) as i32)
}

/// The nearest whole number of one below 2^22, in two additions.
fn nearest(x: f32) -> f32 {
    const ONES: f32 = 1.5 * (1 << 23) as f32; // here an f32's last bit counts ones
    x + ONES - ONES
}

#[cfg(test)]
mod tests;
