//! How an operation is declared: its operands and fields in one list, from which the rest follows.

use std::{fmt, str::FromStr};

use arrayvec::ArrayVec;

use super::{Array, Arrays, Features, Op};
use crate::{
    dtype::DType,
    error::{Error, Result},
    layout::Spec,
};

/// What an operation does with an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Read.
    In,
    /// Read, and usually the same in every call: a plan may ask for it repacked.
    Weight,
    /// Written entirely; what it held before does not matter.
    Out,
    /// Read and written: a cache or a state. Elements the operation does not name keep their bytes.
    InOut,
}

impl Role {
    /// True where the operation writes the operand.
    pub fn writes(self) -> bool {
        matches!(self, Role::Out | Role::InOut)
    }
}

/// One operand of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    /// Its name, as in the operation's text.
    pub name: &'static str,
    /// What is done with it.
    pub role: Role,
    /// Its dtype, shape and strides.
    pub spec: Spec,
}

/// The most operands an operation has.
pub const MAX_OPERANDS: usize = 16;

/// An operation's operands, in launch order.
pub type Operands = ArrayVec<Operand, MAX_OPERANDS>;

/// What an operation costs at least, whatever the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Floating-point (or integer) operations; a multiply-add counts two.
    pub flops: u64,
    /// Bytes read and written when every operand is touched once.
    pub bytes: u64,
}

/// How far a result may lie from the f64 reference; the same on every device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// Allowed error as a fraction of the element's magnitude ([`Array::magnitude`]).
    pub relative: f64,
    /// Allowed error in units in the last place of the output's dtype, at the expected value.
    pub ulps: f64,
    /// Where set, the whole tensor is judged by its normalized mean squared error instead, and single elements only by
    /// 16 times the root of it relative to the tensor's root mean square.
    pub nmse: Option<f64>,
}

impl Bound {
    /// The bits must be those of the reference, rounded to the output's dtype.
    pub const EXACT: Bound = Bound { relative: 0.0, ulps: 0.0, nmse: None };

    /// Rounding to the output's dtype plus `relative` errors on the way.
    pub const fn relative(relative: f64) -> Bound {
        Bound { relative, ulps: 0.51, nmse: None }
    }

    /// A sum of `terms` products accumulated in f32, in any order: 4 sqrt(terms) eps, at least 8 eps.
    pub fn dot(terms: usize) -> Bound {
        Bound::relative((4.0 * (terms as f64).sqrt()).max(8.0) * f32::EPSILON as f64)
    }
}

/// Which numbers a conformance case is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fill {
    /// Normal, mean 0, deviation 1.
    Normal,
    /// Large magnitudes: products and sums near the range of f16 and far beyond 1.
    Large,
    /// Subnormals of f32 and f16, signed zeros.
    Tiny,
    /// Normal with NaN and infinities sprinkled in.
    Special,
}

/// A small seeded generator (splitmix64), the same on every machine and for all time: case ids depend on it.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// 64 uniform bits.
    #[allow(
        clippy::should_implement_trait,
        reason = "not an iterator: it never ends and gives several kinds of numbers"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..n; 0 for n = 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal, mean 0, deviation 1 (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// One number of a kind, representable in f32.
    pub fn value(&mut self, fill: Fill) -> f64 {
        let x = self.normal();
        let v = match fill {
            Fill::Normal => x,
            Fill::Large => x * 180.0,
            Fill::Tiny => match self.below(4) {
                0 => 0.0f64.copysign(x),
                1 => x * 1e-39,
                2 => x * 1e-6,
                _ => x,
            },
            Fill::Special => match self.below(40) {
                0 => f64::NAN,
                1 => f64::INFINITY,
                2 => f64::NEG_INFINITY,
                _ => x,
            },
        };
        v as f32 as f64
    }
}

/// Everything that is true of one operation on every device. One file per operation implements it.
pub(crate) trait Semantics: Sized + Copy + fmt::Display + Into<Op> {
    /// The operation's own rules, after the common ones (finite fields, outputs that do not overlap themselves).
    fn check(&self) -> Result<(), String>;

    /// Options in use, beyond those every operation shares (`STRIDED`, `FAST`, `DETERMINISM`: see `Op::features`).
    fn features(&self) -> Features;

    /// Arithmetic done. Bytes are the operands' own unless `bytes` is overridden.
    fn flops(&self) -> u64;

    /// Bytes moved at least: every operand once. Overridden where only part of an operand is touched.
    fn bytes(&self, operands: &Operands) -> u64 {
        let moved = operands.iter().map(|o| o.spec.bytes() as u64 * if o.role == Role::InOut { 2 } else { 1 });
        moved.fold(0, u64::saturating_add)
    }

    /// Computes the outputs in f64. Shapes were checked; contents of index operands were not.
    fn reference(&self, arrays: &mut Arrays);

    /// How far the named output may lie from the reference.
    fn bound(&self, output: &str) -> Bound;

    /// Values for an operand of a conformance case, in row-major order; `None` for the usual random numbers.
    fn fill(&self, _operand: &Operand, _fill: Fill, _rng: &mut Rng) -> Option<Vec<f64>> {
        None
    }

    /// Where equality within the bound is not the right question (a sampled token near a boundary), the verdict on the
    /// named output: what is wrong with it, if anything. `expected` holds the inputs and the reference's outputs.
    fn judge(&self, _output: &str, _expected: &Arrays, _got: &Array) -> Option<Result<(), String>> {
        None
    }

    /// True where output `out` may be the very tensor that is input `input` (same place, same layout).
    fn may_alias(&self, _out: &str, _input: &str) -> bool {
        false
    }

    /// The operation of the same class that stands for this one in measurements: row counts rounded up to a power of two,
    /// operands dense.
    fn class(&self) -> Self;

    /// Small cases that cover shapes, layouts, dtypes, options and corners.
    fn cases() -> Vec<Self>;
}

pub(super) fn parse_value<T: FromStr<Err: fmt::Display>>(key: &str, text: &str) -> Result<T> {
    text.parse().map_err(|e| Error::invalid(format_args!("{key}={text}"), e))
}

/// Declares an operation: required operands, optional operands (launched after the required ones, in this order), fields.
macro_rules! descriptor {
    (
        $(#[$meta:meta])*
        $Name:ident = $word:literal;
        operands { $($(#[$rdoc:meta])* $r:ident: $rrole:ident,)* }
        optional { $($(#[$odoc:meta])* $o:ident: $orole:ident,)* }
        fields { $($(#[$fdoc:meta])* $f:ident: $fty:ty = $fdefault:expr,)* }
    ) => {
        $(#[$meta])*
        #[non_exhaustive]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $Name {
            $($(#[$rdoc])* pub $r: $crate::layout::Spec,)*
            $($(#[$odoc])* pub $o: Option<$crate::layout::Spec>,)*
            $($(#[$fdoc])* pub $f: $fty,)*
            /// Accuracy that may be traded for speed.
            pub numerics: $crate::op::Numerics,
            /// Reproducibility asked for.
            pub determinism: $crate::op::Determinism,
        }

        impl $Name {
            /// The first word of the operation's text.
            pub const NAME: &'static str = $word;

            /// Required operands, optional operands and fields, for tests.
            #[cfg(test)]
            pub(crate) const KEYS: [&'static [&'static str]; 3] =
                [&[$(stringify!($r),)*], &[$(stringify!($o),)*], &[$(stringify!($f),)*]];

            /// The plain form: no optional operand, every field at its default. Not validated yet.
            #[allow(clippy::too_many_arguments, reason = "one argument per required operand, in launch order")]
            pub fn new($($r: $crate::layout::Spec,)*) -> Self {
                $Name {
                    $($r,)*
                    $($o: None,)*
                    $($f: $fdefault,)*
                    numerics: $crate::op::Numerics::Exact,
                    determinism: $crate::op::Determinism::RunToRun,
                }
            }

            /// The operands present, in launch order.
            pub fn operands(&self) -> $crate::op::Operands {
                use $crate::op::{Operand, Role};
                let mut all = $crate::op::Operands::new();
                $(all.push(Operand { name: stringify!($r), role: Role::$rrole, spec: self.$r });)*
                $(if let Some(spec) = self.$o {
                    all.push(Operand { name: stringify!($o), role: Role::$orole, spec });
                })*
                all
            }

            /// Calls `f` with each operand present and its name, in launch order, to change it: for operations on parts of another's operands.
            pub fn each_spec(&mut self, f: &mut dyn FnMut(&'static str, &mut $crate::layout::Spec)) {
                $(f(stringify!($r), &mut self.$r);)*
                $(if let Some(spec) = &mut self.$o {
                    f(stringify!($o), spec);
                })*
            }

            pub(crate) fn parse<'a>(
                pairs: impl Iterator<Item = $crate::error::Result<(&'a str, &'a str)>>,
            ) -> $crate::error::Result<Self> {
                use $crate::{error::Error, op::descriptor::parse_value};
                $(let mut $r: Option<$crate::layout::Spec> = None;)*
                let mut rest: Vec<(&str, &str)> = Vec::new();
                let mut seen: Vec<&str> = Vec::new();
                for pair in pairs {
                    let (key, value) = pair?;
                    if seen.contains(&key) {
                        return Err(Error::invalid(concat!($word), format_args!("{key} is given twice")));
                    }
                    seen.push(key);
                    match key {
                        $(stringify!($r) => $r = Some(parse_value(key, value)?),)*
                        _ => rest.push((key, value)),
                    }
                }
                let mut op = $Name::new(
                    $($r.ok_or_else(|| Error::invalid($word, concat!("operand ", stringify!($r), " is missing")))?,)*
                );
                for (key, value) in rest {
                    match key {
                        $(stringify!($o) => op.$o = Some(parse_value(key, value)?),)*
                        $(stringify!($f) => op.$f = parse_value(key, value)?,)*
                        "numerics" => op.numerics = parse_value(key, value)?,
                        "determinism" => op.determinism = parse_value(key, value)?,
                        _ => return Err(Error::invalid($word, format_args!("has no operand or field {key}"))),
                    }
                }
                Ok(op)
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($word)?;
                $(write!(f, concat!(" ", stringify!($r), "={}"), self.$r)?;)*
                $(if let Some(spec) = &self.$o {
                    write!(f, concat!(" ", stringify!($o), "={}"), spec)?;
                })*
                $({
                    let default: $fty = $fdefault;
                    if self.$f != default {
                        write!(f, concat!(" ", stringify!($f), "={}"), self.$f)?;
                    }
                })*
                if self.numerics != $crate::op::Numerics::Exact {
                    write!(f, " numerics={}", self.numerics)?;
                }
                if self.determinism != $crate::op::Determinism::RunToRun {
                    write!(f, " determinism={}", self.determinism)?;
                }
                Ok(())
            }
        }
    };
}
pub(crate) use descriptor;

/// Rounds a row count up to the one that stands for its class in measurements.
pub(crate) fn class_rows(rows: usize) -> usize {
    rows.checked_next_power_of_two().unwrap_or(rows)
}

/// The spec that stands for its class in measurements: dense, every extent but the last rounded up by [`class_rows`].
pub(crate) fn class_spec(spec: &Spec) -> Result<Spec> {
    let mut shape = spec.shape().to_vec();
    let last = shape.len() - 1;
    shape[..last].iter_mut().for_each(|n| *n = class_rows(*n));
    Spec::new(spec.dtype(), &shape)
}

/// `Err` with a message unless the condition holds: for `check`.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

/// `Err` unless the dtype is one of those listed.
pub(crate) fn one_of(what: &str, dtype: DType, allowed: &[DType]) -> Result<(), String> {
    ensure!(allowed.contains(&dtype), "{what} is {dtype}, must be one of {allowed:?}");
    Ok(())
}
