//! Shapes, strides and the texts that name them.

use std::{fmt, hash, ops::Deref, str::FromStr};

use crate::{
    dtype::DType,
    error::{Error, Result},
};

/// The most dimensions a tensor may have.
pub const MAX_RANK: usize = 6;

/// A short list of extents or strides, held inline. Prints as `512x4096`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    len: u8,
    items: [usize; MAX_RANK], // zero beyond `len`
}

impl Dims {
    /// A list of 1 to [`MAX_RANK`] numbers.
    pub fn new(items: &[usize]) -> Result<Self> {
        if items.is_empty() || items.len() > MAX_RANK {
            return Err(Error::invalid(format_args!("{items:?}"), format_args!("rank must be 1 to {MAX_RANK}")));
        }
        let mut all = [0; MAX_RANK];
        all[..items.len()].copy_from_slice(items);
        Ok(Dims { len: items.len() as u8, items: all })
    }

    /// Strides of a dense row-major tensor, saturating where a zero extent hides an overflow.
    fn dense_strides(&self) -> Dims {
        let mut out = *self;
        let mut step = 1usize;
        for i in (0..self.len()).rev() {
            out.items[i] = step;
            step = step.saturating_mul(self.items[i].max(1));
        }
        out
    }
}

impl Deref for Dims {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.items[..self.len as usize]
    }
}

impl hash::Hash for Dims {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        for &i in self.iter() {
            state.write_usize(i);
        }
        state.write_u8(self.len);
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, n) in self.iter().enumerate() {
            write!(f, "{}{n}", if i == 0 { "" } else { "x" })?;
        }
        Ok(())
    }
}

impl FromStr for Dims {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let items: Result<Vec<usize>, _> = s.split('x').map(str::parse).collect();
        Dims::new(&items.map_err(|e| Error::invalid(s, format_args!("dimensions are numbers joined by x: {e}")))?)
    }
}

/// What a tensor is, without its memory: dtype, shape, and strides in elements.
///
/// Prints as `f32:512x4096`, or `f32:512x4096@8192x1` where it is not dense row-major. A stride of 0 repeats. A `Spec` is
/// valid by construction: its span in bytes fits `isize`, and a quantized one has dense blocks along its last dimension,
/// with every other stride a whole number of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Spec {
    dtype: DType,
    shape: Dims,
    strides: Dims,
}

impl Spec {
    /// A dense row-major tensor.
    pub fn new(dtype: DType, shape: &[usize]) -> Result<Self> {
        let shape = Dims::new(shape)?;
        Spec { dtype, shape, strides: shape.dense_strides() }.checked()
    }

    /// A tensor with strides in elements.
    pub fn strided(dtype: DType, shape: &[usize], strides: &[usize]) -> Result<Self> {
        if shape.len() != strides.len() {
            return Err(Error::invalid(format_args!("{shape:?}"), format_args!("{} strides", strides.len())));
        }
        Spec { dtype, shape: Dims::new(shape)?, strides: Dims::new(strides)? }.checked()
    }

    fn checked(self) -> Result<Self> {
        let fail = |why: &str| Err(Error::invalid(self, why));
        let (block, _) = self.dtype.block();
        let rank = self.rank();
        // The product counts extents of 0 as 1, so that no view or cost of a valid Spec can overflow either.
        let elements = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)));
        if elements.is_none_or(|n| n > isize::MAX as usize / 16) {
            return fail("too many elements");
        }
        if block > 1 {
            let last = self.shape[rank - 1];
            if last % block != 0 || (last > 0 && self.strides[rank - 1] != 1) {
                return fail(&format!("quantized rows must be dense and a multiple of {block} elements"));
            }
            if (0..rank - 1).any(|i| self.shape[i] > 1 && self.strides[i] % block != 0) {
                return fail(&format!("strides of a quantized tensor must be multiples of {block} elements"));
            }
        }
        match self.try_span() {
            Some(bytes) if bytes <= isize::MAX as usize / 16 => Ok(self),
            _ => fail("its span in bytes overflows"),
        }
    }

    fn try_span(&self) -> Option<usize> {
        if self.numel() == 0 {
            return Some(0);
        }
        let mut last = 0usize;
        for (&n, &s) in self.shape.iter().zip(self.strides.iter()) {
            last = last.checked_add((n - 1).checked_mul(s)?)?;
        }
        let (block, bytes) = self.dtype.block();
        (last / block).checked_add(1)?.checked_mul(bytes)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Strides in elements, outermost first.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Extent counted from the last dimension: `dim(0)` is the innermost; 1 beyond the rank.
    pub fn dim(&self, from_last: usize) -> usize {
        self.rank().checked_sub(from_last + 1).map_or(1, |i| self.shape[i])
    }

    /// Stride in elements counted from the last dimension; 0 beyond the rank.
    pub fn stride(&self, from_last: usize) -> usize {
        self.rank().checked_sub(from_last + 1).map_or(0, |i| self.strides[i])
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Product of all extents but the last.
    pub fn rows(&self) -> usize {
        self.shape[..self.rank() - 1].iter().product()
    }

    /// Bytes from the first element to the end of the last one, gaps included; 0 when empty.
    pub fn span(&self) -> usize {
        self.try_span().unwrap_or(0) // never None: checked at construction
    }

    /// Bytes of the elements themselves, each counted once per index.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes(self.numel()).unwrap_or(0) // never None: checked at construction
    }

    /// True where the elements are dense in row-major order.
    pub fn is_dense(&self) -> bool {
        let dense = self.shape.dense_strides();
        self.numel() == 0 || (0..self.rank()).all(|i| self.shape[i] == 1 || self.strides[i] == dense[i])
    }

    /// True where two different indices may name the same element (a stride of 0, or overlapping strides).
    pub fn overlaps_itself(&self) -> bool {
        if self.numel() < 2 {
            return false;
        }
        let mut dims: arrayvec::ArrayVec<(usize, usize), MAX_RANK> =
            self.strides.iter().copied().zip(self.shape.iter().copied()).filter(|d| d.1 > 1).collect();
        dims.sort_unstable();
        let mut reach = 0; // the furthest offset reached by the smaller strides
        dims.iter().any(|&(stride, n)| {
            let hit = stride <= reach;
            reach += stride * (n - 1);
            hit
        })
    }

    /// The tensor seen with another shape, as numpy broadcasts: aligned from the last dimension, an extent of 1 repeats
    /// with a stride of 0. An error where the shapes do not fit; quantized tensors repeat only whole rows.
    pub fn broadcast(&self, shape: &[usize]) -> Result<Spec> {
        let missing = shape.len().checked_sub(self.rank());
        let fits = missing.is_some_and(|m| self.shape.iter().zip(&shape[m..]).all(|(&own, &to)| own == to || own == 1));
        let (true, Some(missing)) = (fits, missing) else {
            return Err(Error::invalid(self, format_args!("does not broadcast to {shape:?}")));
        };
        let mut strides = vec![0; missing];
        for (i, &to) in shape[missing..].iter().enumerate() {
            strides.push(if self.shape[i] == to { self.strides[i] } else { 0 });
        }
        Spec::strided(self.dtype, shape, &strides)
    }

    /// The same tensor densely stored.
    pub fn dense(&self) -> Spec {
        Spec { strides: self.shape.dense_strides(), ..*self }
    }

    /// The same shape, densely stored as another dtype.
    pub fn with_dtype(&self, dtype: DType) -> Result<Spec> {
        Spec::new(dtype, &self.shape)
    }
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dtype, self.shape)?;
        if self.strides == self.shape.dense_strides() { Ok(()) } else { write!(f, "@{}", self.strides) }
    }
}

impl FromStr for Spec {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let (dtype, rest) = s.split_once(':').ok_or_else(|| Error::invalid(s, "expected DTYPE:SHAPE[@STRIDES]"))?;
        let (shape, strides) = rest.split_once('@').map_or((rest, None), |(a, b)| (a, Some(b)));
        let shape: Dims = shape.parse()?;
        match strides {
            None => Spec::new(dtype.parse()?, &shape),
            Some(text) => Spec::strided(dtype.parse()?, &shape, &text.parse::<Dims>()?),
        }
    }
}
