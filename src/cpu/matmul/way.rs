//! The ways to multiply: what is read of the weight, and what becomes of x.

use std::ops::Range;

use super::{
    tile::{Pair, Quad, Term},
    weight::{pack, packed_length, packing},
    words,
};
use crate::{
    backend::Packing,
    cpu::{kernel::Tensor, pool::Pool, simd::Isa},
    dtype::DType,
    layout::Spec,
    op::Determinism,
};

/// How the weight is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Packed in panels.
    Panel,
    /// Panels are decoded from any layout.
    Plain,
    /// Row by row, for few rows of x.
    Rows,
    /// Bytes by bytes, packed in panels of quads.
    BytesPanel,
    /// Bytes by bytes, the panels made from any layout.
    BytesPlain,
    /// bf16 by bf16, packed in panels of pairs.
    PairsPanel,
    /// bf16 by bf16, the panels made from any layout.
    PairsPlain,
    /// Panels of 8-bit integers are made from any quantized layout.
    Int8,
    /// Row by row, unpacked to 8-bit integers, for few rows of x.
    Int8Rows,
}

impl Way {
    /// The word in kernels' names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Panel | Way::BytesPanel => "panel",
            Way::Plain | Way::BytesPlain => "plain",
            Way::PairsPanel => "pairs-panel",
            Way::PairsPlain => "pairs-plain",
            Way::Rows => "rows",
            Way::Int8 => "int8",
            Way::Int8Rows => "int8-rows",
        }
    }

    /// What the order of its sums promises.
    pub(crate) fn determinism(self) -> Determinism {
        match self {
            Way::Rows | Way::Int8Rows => Determinism::ThreadCount,
            _ => Determinism::BatchInvariant,
        }
    }

    /// True where the weight is packed.
    pub(crate) fn is_packed(self) -> bool {
        matches!(self, Way::Panel | Way::BytesPanel | Way::PairsPanel)
    }

    /// The packed form of a weight, where it has one.
    pub(crate) fn packing(self, spec: &Spec) -> Option<Packing> {
        if self == Way::PairsPanel { words::packing(spec) } else { packing(spec) }
    }

    /// Packs rows of a weight: [`Plan::pack`](crate::backend::Plan::pack).
    pub(crate) fn pack(self, isa: Isa, rows: Range<usize>, plain: Tensor, packed: Tensor, pool: &mut Pool) {
        let pack = if self == Way::PairsPanel { words::pack } else { pack };
        pack(isa, rows, plain, packed, pool);
    }

    /// Elements from a packed row to the next.
    pub(crate) fn packed_length(self, dtype: DType, k: usize) -> Option<usize> {
        match self {
            Way::PairsPanel => Some(words::length::<2>(k)),
            _ => self.is_packed().then(|| packed_length(dtype, k)),
        }
    }

    /// Elements of k in a term of the tile's loop, for which x is cut into strips; none for other ways.
    pub(super) fn elements(self) -> Option<usize> {
        match self {
            Way::Panel | Way::Plain => Some(f32::ELEMENTS),
            Way::PairsPanel | Way::PairsPlain => Some(Pair::ELEMENTS),
            Way::BytesPanel | Way::BytesPlain => Some(Quad::ELEMENTS),
            Way::Rows | Way::Int8 | Way::Int8Rows => None,
        }
    }
}
