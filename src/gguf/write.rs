//! Writing a file: what it holds is said first, then come the tensors' bytes, in the same order.

use std::io::{self, Write};

use super::{Value, value::put};
use crate::{
    error::{Error, Result},
    layout::Spec,
};

/// A file's directory in the making: version 3, little-endian.
///
/// ```
/// use tesela::{DType, Spec, gguf::{Gguf, Value, Writer}};
/// let mut file = Writer::new();
/// file.pair("general.architecture", Value::String("llama"))?;
/// file.tensor("output_norm.weight", Spec::new(DType::F32, &[2])?)?;
/// let mut data = file.begin(Vec::new()).unwrap();
/// data.write(&[0; 8]).unwrap();
/// let bytes = data.finish().unwrap();
/// assert_eq!(Gguf::parse(bytes)?.require::<&str>("general.architecture")?, "llama");
/// # Ok::<(), tesela::Error>(())
/// ```
pub struct Writer {
    pairs: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Spec, u32)>,
    alignment: usize,
}

/// A file whose directory is written, and whose tensors' bytes are awaited.
pub struct Data<W> {
    out: W,
    /// Of each tensor not yet begun, its bytes; the last is the next.
    sizes: Vec<usize>,
    /// Bytes left of the tensor begun, and of zeros after it.
    left: (usize, usize),
    alignment: usize,
}

impl Default for Writer {
    fn default() -> Writer {
        Writer { pairs: Vec::new(), tensors: Vec::new(), alignment: 32 }
    }
}

impl Writer {
    /// With nothing in it.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Sets a key's value, in the old one's place where there is one. `general.alignment`, a power of two from 8, is
    /// heeded.
    pub fn pair(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        if key == "general.alignment" {
            self.alignment = match value {
                Value::U32(v) if v >= 8 && v.is_power_of_two() => v as usize,
                other => return Err(Error::invalid(key, format_args!("{other:?} is no u32 and power of two from 8"))),
            };
        }
        let mut bytes = Vec::new();
        put(&mut bytes, value);
        self.set(key, bytes);
        Ok(())
    }

    /// Sets a key's value to an array of values that are all of one type.
    pub fn array<'a>(&mut self, key: &str, values: impl IntoIterator<Item = Value<'a>>) -> Result<()> {
        let (mut kind, mut count, mut bytes) = (None, 0u64, Vec::new());
        for value in values {
            let start = bytes.len();
            put(&mut bytes, value);
            let of: Vec<u8> = bytes.drain(start..start + 4).collect();
            if kind.get_or_insert_with(|| of.clone()) != &of {
                return Err(Error::invalid(key, "the elements of an array are of one type"));
            }
            count += 1;
        }
        let head = [&9u32.to_le_bytes()[..], kind.as_deref().unwrap_or(&[0; 4]), &count.to_le_bytes()].concat();
        self.set(key, [head, bytes].concat());
        Ok(())
    }

    fn set(&mut self, key: &str, bytes: Vec<u8>) {
        match self.pairs.iter_mut().find(|p| p.0 == key) {
            Some(pair) => pair.1 = bytes,
            None => self.pairs.push((key.to_owned(), bytes)),
        }
    }

    /// Adds a tensor. `Invalid` where the name is taken, or the shape is of more than 4 dimensions or none, or not
    /// dense; `Unsupported` where the format has no such dtype.
    pub fn tensor(&mut self, name: &str, spec: Spec) -> Result<()> {
        let id = spec.dtype().gguf();
        let id = id.ok_or_else(|| Error::unsupported(name, format_args!("GGUF has no {}", spec.dtype())))?;
        if !(1..=super::MAX_DIMS).contains(&spec.rank()) || !spec.is_dense() {
            return Err(Error::invalid(name, format_args!("{spec} is not a dense tensor of 1 to 4 dimensions")));
        }
        if self.tensors.iter().any(|t| t.0 == name) {
            return Err(Error::invalid(name, "there is such a tensor already"));
        }
        self.tensors.push((name.to_owned(), spec, id));
        Ok(())
    }

    /// Bytes of the whole file: `None` where that is more than can be counted.
    pub fn size(&self) -> Option<usize> {
        let padded = |n: usize| n.checked_next_multiple_of(self.alignment);
        self.tensors.iter().try_fold(self.directory()?.len(), |sum, t| sum.checked_add(padded(t.1.bytes())?))
    }

    /// The bytes before the first tensor's.
    fn directory(&self) -> Option<Vec<u8>> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.pairs.len() as u64).to_le_bytes());
        let text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        for (key, value) in &self.pairs {
            text(&mut bytes, key);
            bytes.extend(value);
        }
        let mut offset = 0usize;
        for (name, spec, id) in &self.tensors {
            text(&mut bytes, name);
            bytes.extend((spec.rank() as u32).to_le_bytes());
            spec.shape().iter().rev().for_each(|&n| bytes.extend((n as u64).to_le_bytes()));
            bytes.extend(id.to_le_bytes());
            bytes.extend((offset as u64).to_le_bytes());
            offset = offset.checked_add(spec.bytes().checked_next_multiple_of(self.alignment)?)?;
        }
        bytes.resize(bytes.len().checked_next_multiple_of(self.alignment)?, 0);
        Some(bytes)
    }

    /// Writes the directory. The tensors' bytes follow with [`Data::write`].
    pub fn begin<W: Write>(self, mut out: W) -> io::Result<Data<W>> {
        let directory = self.directory().ok_or(io::ErrorKind::FileTooLarge)?;
        out.write_all(&directory)?;
        let sizes = self.tensors.iter().rev().map(|t| t.1.bytes()).collect();
        Ok(Data { out, sizes, left: (0, 0), alignment: self.alignment })
    }
}

impl<W: Write> Data<W> {
    /// The next bytes: tensors in the order added, each whole or in pieces of any length; what aligns them is written
    /// between. An error of kind `InvalidInput` where there are more bytes than tensors need.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.left.0 == 0 && !self.next()? {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "more bytes than the tensors have"));
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.left.0));
            self.out.write_all(now)?;
            (self.left.0, bytes) = (self.left.0 - now.len(), later);
        }
        Ok(())
    }

    /// Ends the tensor that is complete and begins the next; false where there is none.
    fn next(&mut self) -> io::Result<bool> {
        const ZEROS: [u8; 64] = [0; 64];
        while self.left.1 > 0 {
            let n = self.left.1.min(ZEROS.len());
            self.out.write_all(&ZEROS[..n])?;
            self.left.1 -= n;
        }
        let Some(size) = self.sizes.pop() else { return Ok(false) };
        self.left = (size, size.next_multiple_of(self.alignment) - size);
        Ok(true)
    }

    /// Ends the file and gives back what it was written to. An error of kind `InvalidInput` where bytes are missing.
    pub fn finish(mut self) -> io::Result<W> {
        while self.left.0 == 0 && self.next()? {}
        if self.left.0 > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "tensors' bytes are missing"));
        }
        self.out.flush()?;
        Ok(self.out)
    }
}
