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
            if !last.is_multiple_of(block) || (last > 0 && self.strides[rank - 1] != 1) {
                return fail(&format!("quantized rows must be dense and a multiple of {block} elements"));
            }
            if (0..rank - 1).any(|i| self.shape[i] > 1 && !self.strides[i].is_multiple_of(block)) {
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
        self.shape.iter().rev().nth(from_last).map_or(1, |&n| n)
    }

    /// Stride in elements counted from the last dimension; 0 beyond the rank.
    pub fn stride(&self, from_last: usize) -> usize {
        self.strides.iter().rev().nth(from_last).map_or(0, |&s| s)
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

    /// The byte at which each run of elements that are stored together (one element, or one block) begins, in row-major order.
    pub fn offsets(&self) -> impl Iterator<Item = usize> + use<> {
        let (elements, bytes) = self.dtype.block();
        let (spec, mut index) = (*self, [0usize; MAX_RANK]);
        (0..self.numel() / elements).map(move |_| {
            let at: usize = index.iter().zip(spec.strides.iter()).map(|(i, s)| i * s).sum();
            for d in (0..spec.rank()).rev() {
                index[d] += if d == spec.rank() - 1 { elements } else { 1 };
                if index[d] < spec.shape[d] {
                    break;
                }
                index[d] = 0;
            }
            at / elements * bytes
        })
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Spec {
        text.parse().expect(text)
    }

    /// Offsets in elements of every index, in row-major order.
    fn offsets(spec: &Spec) -> Vec<usize> {
        let mut all = vec![0];
        for (&n, &stride) in spec.shape().iter().zip(spec.strides()) {
            all = all.iter().flat_map(|at| (0..n).map(move |i| at + i * stride)).collect();
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn small_specs_agree_with_brute_force(dims in prop::collection::vec((0usize..5, 0usize..12), 1..5)) {
            let (shape, strides): (Vec<_>, Vec<_>) = dims.into_iter().unzip();
            let spec = Spec::strided(DType::F16, &shape, &strides).expect("small");
            let offsets = offsets(&spec);
            prop_assert_eq!(spec.numel(), offsets.len());
            prop_assert_eq!(spec.span(), offsets.iter().max().map_or(0, |last| 2 * (last + 1)));
            prop_assert_eq!(spec.is_dense(), offsets.iter().copied().eq(0..offsets.len()));
            let distinct = offsets.iter().collect::<HashSet<_>>().len() == offsets.len();
            // It may refuse interleavings that happen not to meet, but never misses one that does.
            prop_assert!(distinct || !offsets.is_empty() && spec.overlaps_itself());
            prop_assert!(!spec.dense().overlaps_itself() && spec.dense().is_dense());
            prop_assert_eq!(spec.to_string().parse::<Spec>(), Ok(spec));
        }

        #[test]
        fn nested_strides_do_not_overlap(
            dims in prop::collection::vec((1usize..5, 0usize..3), 1..5), turn in 0usize..4,
        ) {
            // Each stride steps over all that lies inside it; then the dimensions are rotated.
            let mut step = 1;
            let mut nested: Vec<(usize, usize)> = Vec::new();
            for (n, gap) in dims {
                nested.push((n, step));
                step = n * step + gap;
            }
            let by = turn % nested.len();
            nested.rotate_left(by);
            let (shape, strides): (Vec<_>, Vec<_>) = nested.into_iter().unzip();
            let spec = Spec::strided(DType::I8, &shape, &strides).expect("small");
            prop_assert!(!spec.overlaps_itself(), "{}", spec);
        }

        #[test]
        fn any_numbers_are_refused_or_safe(
            dtype in 0..DType::ALL.len(),
            dims in prop::collection::vec((any::<usize>(), 0u32..64, any::<usize>(), 0u32..64), 0..8),
        ) {
            let shape: Vec<usize> = dims.iter().map(|d| d.0 >> d.1).collect();
            let strides: Vec<usize> = dims.iter().map(|d| d.2 >> d.3).collect();
            for spec in [Spec::new(DType::ALL[dtype], &shape), Spec::strided(DType::ALL[dtype], &shape, &strides)] {
                let Ok(spec) = spec else { continue };
                prop_assert!(spec.span() < isize::MAX as usize && spec.numel() <= isize::MAX as usize / 16);
                prop_assert!(spec.bytes() >= spec.numel() / 16 && spec.rows() <= isize::MAX as usize / 16);
                let _ = (spec.is_dense(), spec.overlaps_itself(), spec.dense(), spec.broadcast(&[2, 3]));
                prop_assert_eq!(spec.to_string().parse::<Spec>(), Ok(spec));
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text: String) {
            let _ = (text.parse::<Spec>(), text.parse::<Dims>(), format!("f32:{text}").parse::<Spec>());
        }
    }

    #[test]
    fn texts() {
        for text in ["f32:1", "f32:0", "q4_k:3x512", "bf16:2x3x4@100x1x5", "i8:4x3@0x1", "f32:1x2x3x4x5x6"] {
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(parse("f32:2x3@3x1").to_string(), "f32:2x3", "dense strides are not printed");
        for wrong in [
            "",
            "f32",
            "f32:",
            "f32:x",
            "f32:2x",
            "f32:-1",
            "f32:2@",
            "f32:2x3@1",
            "f32:1x1x1x1x1x1x1",
            "f31:2",
            "f32:2 ",
            "f32:18446744073709551615",
            "f32:4294967296x4294967296",
            "f32:0x18446744073709551615x2",
            "i8:2@18446744073709551615",
            "q4_0:31",
            "q4_0:64@2",
            "q4_0:2x32@40x1",
            "q8_0:0x33",
        ] {
            assert!(wrong.parse::<Spec>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn extents_and_strides_count_from_the_last() {
        let s = parse("f32:2x3x4@100x10x2");
        assert_eq!([s.dim(0), s.dim(1), s.dim(2), s.dim(3)], [4, 3, 2, 1]);
        assert_eq!([s.stride(0), s.stride(1), s.stride(2), s.stride(3)], [2, 10, 100, 0]);
        assert_eq!((s.rank(), s.rows(), s.numel(), s.bytes(), s.span()), (3, 6, 24, 96, 4 * (100 + 20 + 6 + 1)));
        let q = parse("q4_0:3x64@128x1");
        assert_eq!((q.bytes(), q.span()), (3 * 36, 18 * (2 * 4 + 2)));
    }

    #[test]
    fn overlaps() {
        for (text, overlaps) in [
            ("f32:4x3@0x1", true),
            ("f32:4x3@2x1", true),
            ("f32:4x3@3x1", false),
            ("f32:4x3@1x4", false),
            ("f32:1x3@0x1", false),
            ("f32:0x3@0x0", false),
            ("f32:2x2x2@1x1x1", true),
            ("f32:1@0", false),
        ] {
            assert_eq!(parse(text).overlaps_itself(), overlaps, "{text}");
        }
    }

    #[test]
    fn broadcasting() {
        let to = |text: &str, shape: &[usize]| parse(text).broadcast(shape).map(|s| s.strides().to_vec());
        assert_eq!(to("f32:3", &[2, 3]), Ok(vec![0, 1]));
        assert_eq!(to("f32:2x1", &[5, 2, 3]), Ok(vec![0, 1, 0]));
        assert_eq!(to("f32:2x3@1x9", &[2, 3]), Ok(vec![1, 9]));
        assert_eq!(to("f32:1x3", &[0, 3]), Ok(vec![0, 1]));
        assert_eq!(to("q4_0:1x32", &[4, 32]), Ok(vec![0, 1]));
        for (text, shape) in
            [("f32:2", &[3][..]), ("f32:2x3", &[3]), ("f32:3", &[3, 1]), ("f32:3", &[]), ("f32:1", &[1; 7])]
        {
            assert!(to(text, shape).is_err(), "{text} to {shape:?}");
        }
    }
}
