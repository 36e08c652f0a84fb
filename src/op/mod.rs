//! The vocabulary: one value says what to do.
//!
//! An [`Op`] is plain data with shapes, strides, dtypes and options, and no buffers. It is `Eq + Hash` and prints as one
//! line that parses back, so the same value is a plan's key, a log line, a test case, a benchmark id and a tuning-cache
//! entry. Everything true of an operation on every device stands in its own file here: fields, rules, cost, f64
//! reference, error bound, cases.

mod accept;
mod array;
mod descriptor;
mod encoded;
mod features;
mod field;
pub(crate) mod math;
#[cfg(test)]
pub(crate) mod scan_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

#[cfg(feature = "conformance")]
pub(crate) use accept::ulp;
pub use array::{Array, Arrays};
pub use descriptor::{Bound, Cost, Fill, MAX_OPERANDS, Operand, Operands, Rng, Role};
pub(crate) use descriptor::{Semantics, class_rows, class_spec, descriptor, ensure, one_of};
pub use features::Features;
pub(crate) use field::words;
pub use field::{Activation, Determinism, Numerics, Real};

use crate::error::{Error, Result};

/// The one list of operations: variant and file.
macro_rules! ops {
    ($($Variant:ident, $file:ident;)*) => {
        $(pub mod $file;)*
        $(pub use $file::$Variant;)*

        /// What to compute, on what kinds of tensors, and how exactly; no buffers.
        ///
        /// ```
        /// use tesela::{Op, op::Matmul, Spec, DType};
        /// let x = Spec::new(DType::F32, &[8, 64])?;
        /// let w = Spec::new(DType::Q8_0, &[32, 64])?;
        /// let out = Spec::new(DType::F32, &[8, 32])?;
        /// let op = Op::from(Matmul::new(x, w, out));
        /// assert_eq!(op.to_string(), "matmul x=f32:8x64 w=q8_0:32x64 out=f32:8x32");
        /// assert_eq!(op.to_string().parse::<Op>()?, op);
        /// assert_eq!(op.cost().flops, 2 * 8 * 32 * 64);
        /// # Ok::<(), tesela::Error>(())
        /// ```
        #[non_exhaustive]
        #[allow(missing_docs, reason = "each variant is documented on its struct")]
        #[allow(clippy::large_enum_variant, reason = "an Op stays on the stack: launching allocates nothing")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Op { $($Variant($Variant),)* }

        $(impl From<$Variant> for Op {
            fn from(op: $Variant) -> Op { Op::$Variant(op) }
        })*

        impl Op {
            /// The first word of every operation's text.
            pub const NAMES: &'static [&'static str] = &[$($Variant::NAME,)*];

            /// Required operands, optional operands and fields of every operation, in the order of `NAMES`.
            #[cfg(test)]
            const KEYS: &'static [[&'static [&'static str]; 3]] = &[$($Variant::KEYS,)*];

            /// The first word of this operation's text.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$Variant(_) => $Variant::NAME,)* }
            }

            /// The operands present, in launch order.
            pub fn operands(&self) -> Operands {
                match self { $(Op::$Variant(op) => op.operands(),)* }
            }

            /// Calls `f` with each operand present and its name, in launch order, to change it: for operations on parts of another's operands.
            pub fn each_spec(&mut self, f: &mut dyn FnMut(&'static str, &mut crate::layout::Spec)) {
                match self { $(Op::$Variant(op) => op.each_spec(f),)* }
            }

            /// The accuracy that may be traded for speed.
            pub fn numerics(&self) -> Numerics {
                match self { $(Op::$Variant(op) => op.numerics,)* }
            }

            /// The reproducibility asked for.
            pub fn determinism(&self) -> Determinism {
                match self { $(Op::$Variant(op) => op.determinism,)* }
            }

            /// The same operation with another accuracy and reproducibility.
            pub fn with_mode(mut self, numerics: Numerics, determinism: Determinism) -> Op {
                match &mut self { $(Op::$Variant(op) => (op.numerics, op.determinism) = (numerics, determinism),)* }
                self
            }

            fn check(&self) -> Result<(), String> {
                match self { $(Op::$Variant(op) => op.check(),)* }
            }

            fn own_features(&self) -> Features {
                match self { $(Op::$Variant(op) => Semantics::features(op),)* }
            }

            /// The least arithmetic and memory traffic the operation needs; nothing for an invalid one.
            pub fn cost(&self) -> Cost {
                if self.check().is_err() {
                    return Cost::default();
                }
                let operands = self.operands();
                match self { $(Op::$Variant(op) => Cost { flops: op.flops(), bytes: op.bytes(&operands) },)* }
            }

            /// Computes the outputs in f64. [`Invalid`](Error::Invalid) for an invalid operation, and where `arrays` lack one of
            /// its operands or hold it in another shape.
            pub fn reference(&self, arrays: &mut Arrays) -> Result<()> {
                self.validate()?;
                arrays.check(self)?;
                if !self.is_empty() { // whatever its extents are: tables of that size may not fit
                    match self { $(Op::$Variant(op) => op.reference(arrays),)* }
                }
                Ok(())
            }

            /// How far the named output may lie from the reference, on any device. Exact for an invalid operation.
            pub fn bound(&self, output: &str) -> Bound {
                if self.check().is_err() {
                    return Bound::EXACT;
                }
                match self { $(Op::$Variant(op) => op.bound(output),)* }
            }

            /// Values for an operand of a test or a measurement, in row-major order. Index operands get legal contents
            /// mostly; those of an invalid operation get what the others get.
            pub fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Vec<f64> {
                let own = match self {
                    _ if self.check().is_err() => None,
                    $(Op::$Variant(op) => op.fill(operand, fill, rng),)*
                };
                own.unwrap_or_else(|| (0..operand.spec.numel()).map(|_| rng.value(fill)).collect())
            }

            /// A verdict of the operation's own on an output, where equality within the bound is not the right question.
            /// `expected` holds its inputs and the reference's outputs; where it lacks one, that is what is wrong.
            pub fn judge(&self, output: &str, expected: &Arrays, got: &Array) -> Option<Result<(), String>> {
                if let Err(why) = self.validate().and_then(|()| expected.check(self)) {
                    return Some(Err(why.to_string()));
                }
                match self { $(Op::$Variant(op) => op.judge(output, expected, got),)* }
            }

            /// True where output `out` may be the very tensor that is input `input`: same place, same layout.
            pub fn may_alias(&self, out: &str, input: &str) -> bool {
                match self { $(Op::$Variant(op) => op.may_alias(out, input),)* }
            }

            /// The operation that stands for this one's class in measurements: row counts rounded up to a power of two,
            /// operands dense. Tuning results and packed weights hang on it. An invalid operation stands for itself.
            pub fn class(&self) -> Op {
                if self.check().is_err() {
                    return *self;
                }
                match self { $(Op::$Variant(op) => op.class().into(),)* }
            }

            /// Small cases of every operation: shapes, layouts, dtypes, options and corners.
            pub fn cases() -> Vec<Op> {
                let mut all: Vec<Op> = Vec::new();
                $(all.extend($Variant::cases().into_iter().map(Op::from));)*
                all
            }

            fn parse_named<'a>(
                name: &str,
                pairs: impl Iterator<Item = Result<(&'a str, &'a str)>>,
            ) -> Result<Op> {
                match name {
                    $($Variant::NAME => Ok(Op::$Variant($Variant::parse(pairs)?)),)*
                    _ => Err(Error::invalid(name, format_args!("no such operation; known: {}", Op::NAMES.join(" ")))),
                }
            }
        }

        impl fmt::Display for Op {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self { $(Op::$Variant(op) => op.fmt(f),)* }
            }
        }
    };
}

ops! {
    Matmul, matmul;
    GroupedMatmul, grouped_matmul;
    Attention, attention;
    LinearAttention, linear_attention;
    Norm, norm;
    Rope, rope;
    KvAppend, kv_append;
    Elementwise, elementwise;
    Softmax, softmax;
    Reduce, reduce;
    Segment, segment;
    TopK, top_k;
    Sample, sample;
    Gather, gather;
    Scatter, scatter;
    Convert, convert;
    Conv1d, conv1d;
    Conv, conv;
    SsmScan, ssm_scan;
    SelectiveScan, selective_scan;
}

impl Op {
    /// Checks the operation against itself: shapes that fit together, dtypes that are defined, legal fields.
    pub fn validate(&self) -> Result<()> {
        for o in &self.operands() {
            if o.role.writes() && o.spec.overlaps_itself() {
                return Err(Error::invalid(
                    self,
                    format_args!("{} is written, so its elements must not overlap", o.name),
                ));
            }
        }
        self.check().map_err(|why| Error::invalid(self, why))
    }

    /// True where every result is empty, so that there is nothing to compute.
    pub(crate) fn is_empty(&self) -> bool {
        self.operands().iter().all(|o| !o.role.writes() || o.spec.numel() == 0)
    }

    /// The options in use. All of them for an invalid operation, so that every kernel declines it.
    pub fn features(&self) -> Features {
        if self.check().is_err() {
            return Features::all();
        }
        let mut all = self.own_features();
        for o in &self.operands() {
            all.set(Features::STRIDED, all.contains(Features::STRIDED) || (o.spec.dim(0) > 1 && o.spec.stride(0) != 1));
        }
        all.set(Features::FAST, self.numerics() == Numerics::Fast);
        all.set(Features::DETERMINISM, self.determinism() > Determinism::RunToRun);
        all
    }

    /// Declines the operation unless a kernel knows every option in use. `FAST` is a permission, so it never needs to be known.
    pub fn require(&self, known: Features) -> Result<()> {
        self.features().require(self, known | Features::FAST)
    }
}

impl FromStr for Op {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let mut words = s.split_ascii_whitespace();
        let name = words.next().ok_or_else(|| Error::invalid(s, "an operation's text is `NAME key=value ...`"))?;
        let pairs = words.map(|w| w.split_once('=').ok_or_else(|| Error::invalid(w, "expected key=value")));
        Op::parse_named(name, pairs)
    }
}
