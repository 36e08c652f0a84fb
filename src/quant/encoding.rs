//! Large arrays to any dtype: on several threads, with weights for columns and a report of progress. Every element is
//! encoded as if alone with its block, so that the bytes do not depend on the number of threads.
//!
//! What is lost, as a share of what llama.cpp's quantizer loses on the same numbers (squared errors, weighted where
//! there is importance: log-normal of deviation 1.5; 64 rows of 2048; tailed: Student's t of 3 degrees of freedom), and
//! one core's speed in MB/s of f32 (SSE2), theirs after the stroke (AVX2):
//!
//! ```text
//!           normal  weighted  tailed  weighted    speed               normal  weighted  tailed  weighted    speed
//! Q4_0       1.000     0.923   1.000     0.882  522/1271     IQ1_S      0.847     0.831   0.758     0.715    4/16
//! Q4_1       1.000     0.964   1.000     0.946  722/1880     IQ1_M      0.506     0.832   0.594     0.740    4/22
//! Q5_0       1.000     0.879   1.000     0.893   573/768     IQ2_XXS    0.923     0.831   0.703     0.626    14/7
//! Q5_1       1.000     0.964   1.000     0.952  632/1348     IQ2_XS     0.910     0.812   0.765     0.628    11/4
//! Q2_K       0.769     0.896   0.670     0.790     16/44     IQ2_S      0.818     0.822   0.665     0.680    9/14
//! Q3_K       0.904     0.965   0.922     0.929    41/250     IQ3_XXS    0.690     0.838   0.546     0.734     8/7
//! Q4_K       0.955     0.948   0.949     0.904     18/38     IQ3_S      0.603     0.786   0.609     0.721    9/12
//! Q5_K       0.912     0.899   0.914     0.829     20/54     IQ4_NL     0.929     0.881   0.933     0.911    46/9
//! Q6_K       0.933     0.944   0.950     0.950    59/106     IQ4_XS     0.931     0.880   0.935     0.891    34/9
//! NVFP4      0.733     0.722   0.850     0.855    19/133     the others encode to the same bytes
//! ```
//!
//! (Taken on a machine shared with other work; Q2_K to Q6_K search 21 scales twice, where llama.cpp tries fewer.)
//! `tests/quantize_llama_cpp.py` repeats the comparison.

use std::{
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
};

use super::{check, decode, encode, format};
use crate::{
    dtype::DType,
    error::{Error, Result},
};

/// How an array is encoded. The default: every error counts the same, on every thread the process may use.
///
/// ```
/// use tesela::{DType, quant::Encoding};
/// // Two rows of 256; in each the first 128 columns matter nine times as much as the others.
/// let (values, importance) = ([0.5; 512], [[9.0; 128], [1.0; 128]].concat());
/// let mut bytes = [0; 2 * 144];
/// Encoding { importance: &importance, threads: 2, ..Encoding::default() }.encode(DType::Q4_K, &values, &mut bytes)?;
/// # Ok::<(), tesela::Error>(())
/// ```
#[derive(Clone, Copy, Default)]
pub struct Encoding<'a> {
    /// How much the squared error of each column counts: as many numbers as a row has elements, finite and none
    /// negative; the mean square of the activations that meet the column is the usual choice. Empty: all the same.
    /// Of the quantized formats Q4_0 to Q5_1, Q2_K to Q6_K and the IQ types heed it.
    pub importance: &'a [f32],
    /// Threads; 0 is what the process may use.
    pub threads: usize,
    /// Called with the number of elements that were encoded since its last call, by any of the threads.
    pub progress: Option<&'a (dyn Fn(usize) + Sync)>,
}

/// Elements that a thread takes at once, at least: whole blocks of any format.
const PIECE: usize = 1 << 15;
/// A weight is this part of the mean at least: a column that no activation met is not thrown away.
const LEAST: f32 = 1e-5;

impl Encoding<'_> {
    /// Encodes `values`, rows one after the other, into `bytes`: exactly their elements. `Invalid` where lengths do not
    /// fit, or where an importance is negative or not finite.
    pub fn encode(&self, dtype: DType, values: &[f32], bytes: &mut [u8]) -> Result<()> {
        self.run(dtype, values, (1, 1), bytes, |input, values| {
            values.copy_from_slice(input);
            Ok(())
        })
    }

    /// As [`Encoding::encode`], from elements of any dtype: `from` decoded, a piece at a time, and encoded as `to`.
    pub fn convert(&self, from: DType, input: &[u8], to: DType, output: &mut [u8]) -> Result<()> {
        self.run(to, input, from.block(), output, |input, values| decode(from, input, values))
    }

    /// Encodes `input`, whose blocks of `n` elements are `size` of its items and are read by `read`.
    fn run<T: Sync>(
        &self,
        to: DType,
        input: &[T],
        (n, size): (usize, usize),
        output: &mut [u8],
        read: impl Fn(&[T], &mut [f32]) -> Result<()> + Sync,
    ) -> Result<()> {
        let elements = input.len() / size * n;
        check(to, elements, output.len())?;
        let weights = self.weights(to)?;
        let row = if weights.is_empty() { n.max(to.block().0) } else { weights.len() };
        let piece = PIECE.next_multiple_of(row);
        let whole = input.len().is_multiple_of(size) && elements.is_multiple_of(row) && row.is_multiple_of(n);
        let (true, Some(row_bytes), Some(piece_bytes)) = (whole, to.bytes(row), to.bytes(piece)) else {
            let why = format_args!("{elements} elements are not whole rows of {row}, made of whole blocks");
            return Err(Error::invalid(to, why));
        };
        let pieces = Mutex::new(input.chunks(piece / n * size).zip(output.chunks_mut(piece_bytes)));
        let work = || {
            let mut values = Vec::new();
            loop {
                let next = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((input, output)) = next else { return Ok(()) };
                values.resize(input.len() / size * n, 0.0);
                read(input, &mut values)?;
                match format(to).filter(|_| !weights.is_empty()) {
                    Some(f) => {
                        let rows = values.chunks(row).zip(output.chunks_mut(row_bytes));
                        rows.for_each(|(values, bytes)| (f.encode)(values, &weights, bytes));
                    }
                    None => encode(to, &values, output)?,
                }
                if let Some(progress) = self.progress {
                    progress(values.len());
                }
            }
        };
        thread::scope(|scope| {
            // This thread works too; one that the system refuses leaves more for the others.
            let others: Vec<_> = (1..self.count(elements.div_ceil(piece)))
                .map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
                .collect();
            others.into_iter().fold(work(), |all, t| all.and(t.join().unwrap_or_else(|_| Err(died(to)))))
        })
    }

    /// Threads for so many pieces.
    fn count(&self, pieces: usize) -> usize {
        let most = thread::available_parallelism().map_or(1, NonZero::get);
        let wanted = if self.threads == 0 { most } else { self.threads };
        wanted.clamp(1, pieces.max(1))
    }

    /// The importance by a mean of 1; empty where nothing is more important than anything else.
    fn weights(&self, dtype: DType) -> Result<Vec<f32>> {
        if let Some(at) = self.importance.iter().position(|v| !v.is_finite() || *v < 0.0) {
            let v = self.importance[at];
            return Err(Error::invalid(dtype, format_args!("the importance of column {at} is {v}")));
        }
        let mean = self.importance.iter().map(|&v| v as f64).sum::<f64>() / self.importance.len() as f64;
        if mean.is_nan() || mean == 0.0 {
            return Ok(Vec::new());
        }
        Ok(self.importance.iter().map(|&v| ((v as f64 / mean) as f32).max(LEAST)).collect())
    }
}

fn died(dtype: DType) -> Error {
    Error::device("host", format_args!("encoding {dtype}"), "a thread died")
}
