//! Values an operation's fields may hold: all `Copy + Eq + Hash`, all printed and parsed.

use std::{fmt, hash, str::FromStr};

use crate::error::{Error, Result};

/// A finite f32 that is `Eq` and `Hash` by its bits. Prints as the shortest decimal that parses back to it.
#[derive(Clone, Copy, Default)]
pub struct Real(f32);

impl Real {
    /// 0.0, which for most fields means "off".
    pub const ZERO: Real = Real(0.0);
    /// 1.0.
    pub const ONE: Real = Real(1.0);

    /// Wraps a number; validation refuses an operation whose field is not finite.
    pub const fn new(value: f32) -> Self {
        Real(value)
    }

    /// The number.
    pub const fn get(self) -> f32 {
        self.0
    }

    /// The number, for the f64 reference.
    pub const fn f64(self) -> f64 {
        self.0 as f64
    }

    /// True for +0.0 and -0.0.
    pub fn is_zero(self) -> bool {
        self.0 == 0.0
    }
}

impl From<f32> for Real {
    fn from(value: f32) -> Self {
        Real(value)
    }
}

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Real {}

impl hash::Hash for Real {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        state.write_u32(self.0.to_bits());
    }
}

impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for Real {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s.parse::<f32>() {
            Ok(value) if value.is_finite() => Ok(Real(value)),
            Ok(_) => Err(Error::invalid(s, "not a finite number")),
            Err(e) => Err(Error::invalid(s, e)),
        }
    }
}

/// Declares an enum of words with `Display` and `FromStr`.
macro_rules! words {
    ($(#[$meta:meta])* $Name:ident { $($(#[$doc:meta])* $Variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[non_exhaustive]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $Name { $($(#[$doc])* $Variant,)* }

        impl $Name {
            /// Every value.
            pub const ALL: &'static [$Name] = &[$($Name::$Variant,)*];

            /// The word used in texts.
            pub const fn name(self) -> &'static str {
                match self { $($Name::$Variant => $word,)* }
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $Name {
            type Err = $crate::error::Error;
            fn from_str(s: &str) -> $crate::error::Result<Self> {
                match s {
                    $($word => Ok($Name::$Variant),)*
                    _ => Err($crate::error::Error::invalid(s, concat!("known:", $(" ", $word),*))),
                }
            }
        }
    };
}
pub(crate) use words;

words! {
    /// How much accuracy may be traded for speed.
    Numerics {
        /// f32 accumulation (i32 for integer dots); nothing is quantized on the way.
        Exact = "exact",
        /// Activations may be quantized to 8 bits per block and accumulation reduced, inside the operation's stated bound.
        Fast = "fast",
    }
}

words! {
    /// How reproducible the result must be, weakest first. A kernel promising less than asked declines.
    Determinism {
        /// Two runs may differ inside the error bound.
        Any = "any",
        /// Two runs on the same device with the same threads give the same bits.
        RunToRun = "run-to-run",
        /// Also independent of the number of threads.
        ThreadCount = "thread-count",
        /// Also independent of the other rows computed in the same call.
        BatchInvariant = "batch-invariant",
    }
}

words! {
    /// A function applied to each element. `f` in the gated pair `f(a) * b`.
    Activation {
        /// x
        None = "none",
        /// x / (1 + exp(-x)); -0 at -inf
        Silu = "silu",
        /// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); -0 at -inf
        GeluTanh = "gelu-tanh",
        /// 0.5 x (1 + erf(x / sqrt 2)); -0 at -inf
        GeluErf = "gelu-erf",
        /// max(x, 0); NaN stays NaN
        Relu = "relu",
    }
}

impl Activation {
    /// The function in f64.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Activation::None => x,
            Activation::Silu if x == f64::NEG_INFINITY => -0.0,
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh | Activation::GeluErf if x == f64::NEG_INFINITY => -0.0,
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }
            Activation::GeluErf => 0.5 * x * (1.0 + super::math::erf(x / std::f64::consts::SQRT_2)),
            Activation::Relu => {
                if x > 0.0 || x.is_nan() {
                    x
                } else {
                    0.0
                }
            }
        }
    }
}
