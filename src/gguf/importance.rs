//! Importance weights ("imatrix"): for each weight of a model the mean square of the activations that met each of its
//! columns, measured on text. Read in both of llama.cpp's forms.
//!
//! ```text
//! GGUF    tensors NAME.in_sum2, f32 of experts x columns, and NAME.counts, f32 of experts x 1
//! before  entries:i32, each: length:i32 NAME calls:i32 columns:i32 f32[columns]; what follows is not read
//! ```

use std::{collections::HashMap, fs, path::Path};

use super::{
    Gguf,
    value::{Cursor, Fault},
};
use crate::{
    dtype::DType,
    error::{Error, Result},
    quant,
};

/// What a file says of the columns of a model's weights.
pub struct Importance {
    path: String,
    columns: HashMap<String, Vec<f32>>,
}

impl Importance {
    /// Reads a file of either form. `File` where it is neither, is truncated, or has numbers that are not finite.
    pub fn open(path: impl AsRef<Path>) -> Result<Importance> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|e| Error::file(path.display(), format_args!("cannot be read: {e}")))?;
        let name = path.display().to_string();
        let columns = match bytes.starts_with(b"GGUF") {
            true => gguf(&Gguf::open(path)?)?,
            false => before(&bytes).map_err(|why| Error::file(&name, why))?,
        };
        if let Some((weight, _)) = columns.iter().find(|c| c.1.iter().any(|v| !v.is_finite() || *v < 0.0)) {
            return Err(Error::file(name, format_args!("is corrupt: the importance of {weight} is not finite")));
        }
        Ok(Importance { path: name, columns })
    }

    /// Where it was read from.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// How many weights it speaks of.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// True where it speaks of none.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// The importance of a weight's columns, one expert's after the other; `None` where the file says nothing of it.
    pub fn of(&self, weight: &str) -> Option<&[f32]> {
        self.columns.get(weight).map(Vec::as_slice)
    }
}

fn gguf(file: &Gguf) -> Result<HashMap<String, Vec<f32>>> {
    let numbers = |name: &str| -> Result<(Vec<f32>, usize)> {
        let tensor = file.tensor(name)?;
        if tensor.spec.dtype() != DType::F32 {
            return Err(Error::file(file.path(), format_args!("is no importance file: {name} is {}", tensor.spec)));
        }
        let mut values = vec![0.0; tensor.spec.numel()];
        quant::decode(DType::F32, tensor.bytes(), &mut values)?;
        Ok((values, tensor.spec.dim(0)))
    };
    let mut columns = HashMap::new();
    for weight in file.names().filter_map(|n| n.strip_suffix(".in_sum2")) {
        let (mut sums, width) = numbers(&format!("{weight}.in_sum2"))?;
        let (counts, _) = numbers(&format!("{weight}.counts"))?;
        if counts.len() * width != sums.len() {
            let why = format_args!("is corrupt: {} counts for {} sums of {weight}", counts.len(), sums.len());
            return Err(Error::file(file.path(), why));
        }
        // Of an expert that was never called nothing is known.
        let means = sums.chunks_mut(width.max(1)).zip(&counts);
        means.for_each(|(sums, &n)| sums.iter_mut().for_each(|s| *s = if n > 0.0 { *s / n } else { 1.0 }));
        columns.insert(weight.to_owned(), sums);
    }
    if columns.is_empty() {
        return Err(Error::file(file.path(), "is no importance file: it has no tensor NAME.in_sum2"));
    }
    Ok(columns)
}

fn before(bytes: &[u8]) -> Result<HashMap<String, Vec<f32>>, Fault> {
    let mut at = Cursor::new(bytes, 0);
    let (mut columns, entries) = (HashMap::new(), at.u32()?);
    if entries == 0 || entries > 1 << 20 {
        return Err("is no importance file".into());
    }
    for _ in 0..entries {
        let length = at.u32()? as usize;
        let name = std::str::from_utf8(at.take(length)?).map_err(|_| "is no importance file: a name is not UTF-8")?;
        let (calls, width) = (at.u32()? as i32, at.u32()? as usize);
        let sums = at.take(width.checked_mul(4).ok_or("is corrupt: a row is longer than memory")?)?;
        let calls = if calls > 0 { calls as f32 } else { 1.0 };
        columns.insert(name.to_owned(), sums.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b) / calls).collect());
    }
    Ok(columns)
}
