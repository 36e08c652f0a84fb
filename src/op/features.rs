//! Options as bits: a kernel that does not know a bit must decline the operation.

use crate::error::{Error, Result};

bitflags::bitflags! {
    /// What an operation asks for beyond its plain form. A kernel lists the bits it honours and calls
    /// [`Op::require`](super::Op::require); bits it has never heard of are then declined, not ignored.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// An operand's innermost stride is not 1.
        const STRIDED = 1 << 0;
        /// An operand repeats along a dimension (stride 0, or extent 1 against more).
        const BROADCAST = 1 << 1;
        /// More than one matrix in a call.
        const BATCH = 1 << 2;
        /// A bias is added.
        const BIAS = 1 << 3;
        /// An activation is applied.
        const ACTIVATION = 1 << 4;
        /// A second weight is multiplied in: f(a) * b.
        const GATED = 1 << 5;
        /// A residual is added.
        const RESIDUAL = 1 << 6;
        /// The result is scaled by a constant.
        const SCALE = 1 << 7;
        /// Scales of rows, channels or blocks come as operands.
        const SCALES = 1 << 8;
        /// `Numerics::Fast` is allowed (a kernel may still compute exactly).
        const FAST = 1 << 9;
        /// More than run-to-run determinism is asked for.
        const DETERMINISM = 1 << 10;

        /// Later positions are hidden.
        const CAUSAL = 1 << 16;
        /// Keys beyond a distance are hidden.
        const WINDOW = 1 << 17;
        /// A slope per head is applied to distances.
        const ALIBI = 1 << 18;
        /// A mask is added to the scores.
        const MASK = 1 << 19;
        /// Keys are hidden one by one.
        const KEY_MASK = 1 << 20;
        /// Scores are squashed by cap * tanh(s / cap).
        const SOFTCAP = 1 << 21;
        /// A learned logit per head joins the softmax.
        const SINKS = 1 << 22;
        /// The log-sum-exp is an output too.
        const LSE = 1 << 23;
        /// Sequences of different lengths lie end to end.
        const VARLEN = 1 << 24;
        /// The cache is addressed through a table of pages.
        const PAGED = 1 << 25;
        /// Lengths are read from the device at run time.
        const LENGTHS = 1 << 26;
        /// State is carried in and out.
        const STATE = 1 << 27;

        /// Only part of the dimensions is rotated.
        const PARTIAL = 1 << 32;
        /// Frequencies are rescaled (linear, llama3, yarn, or a table).
        const ROPE_SCALING = 1 << 33;
        /// The result is also written into a cache.
        const APPEND = 1 << 34;
        /// An elementwise gate is applied before normalizing.
        const GATE = 1 << 35;
        /// The input of the norm is written out as well.
        const SUM = 1 << 36;
        /// Chosen values are normalized by a softmax.
        const SOFTMAX = 1 << 37;
        /// A convolution has stride, dilation or groups other than 1.
        const CONV_STEP = 1 << 38;
        /// Per-step parameters pass through softplus.
        const SOFTPLUS = 1 << 39;
        /// A direct path from input to output (the D term).
        const SKIP = 1 << 40;
    }
}

impl Features {
    /// Fails with the names of the bits that are not in `known`.
    pub fn require(self, op: impl std::fmt::Display, known: Features) -> Result<()> {
        let unknown = self.difference(known);
        if unknown.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = unknown.iter_names().map(|(n, _)| n.to_lowercase()).collect();
        Err(Error::unsupported(op, format_args!("this kernel does not know: {}", names.join(", "))))
    }
}
