//! Tensor kernels for language models on whatever a machine has.

pub mod backend;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "cpu")]
mod cpu;
pub mod dispatch;
mod dtype;
mod error;
#[cfg(feature = "gguf")]
pub mod gguf;
mod host;
mod layout;
pub mod op;
pub mod quant;
mod reference;

pub use backend::{Backend, Buffer, DeviceInfo, Plan, Plans, View};
#[cfg(feature = "cpu")]
pub use cpu::Cpu;
pub use dtype::DType;
pub use error::{Error, Result};
pub use layout::{Dims, MAX_RANK, Spec};
pub use op::Op;
pub use reference::Reference;
