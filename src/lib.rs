//! Tensor kernels for language models on whatever a machine has.

mod dtype;
mod error;
mod layout;
pub mod op;
pub mod quant;

pub use dtype::DType;
pub use error::{Error, Result};
pub use layout::{Dims, MAX_RANK, Spec};
pub use op::Op;
