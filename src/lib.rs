#![doc = include_str!("../README.md")]

pub mod backend;
#[cfg(feature = "bench")]
pub mod bench;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
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
pub mod runtime;
mod tensor;
#[cfg(feature = "wgpu")]
mod wgpu;

pub use backend::{Backend, Buffer, DeviceInfo, Plan, Plans, View};
#[cfg(feature = "cpu")]
pub use cpu::Cpu;
pub use dispatch::{Device, Explanation, Fallback, Placed, Recording};
pub use dtype::DType;
pub use error::{Error, Result};
pub use layout::{Dims, MAX_RANK, Spec};
pub use op::Op;
pub use reference::Reference;
pub use runtime::{Builder, Runtime};
pub use tensor::Tensor;

use std::sync::Arc;

use backend::{Absent, OpenOptions};

/// The features this build has, of those that say what is in it.
pub const FEATURES: &[&str] = &[
    #[cfg(feature = "cpu")]
    "cpu",
    #[cfg(feature = "wgpu")]
    "wgpu",
    #[cfg(feature = "cuda")]
    "cuda",
    #[cfg(feature = "gguf")]
    "gguf",
    #[cfg(feature = "cli")]
    "cli",
];

/// What [`discover`] found.
#[derive(Debug)]
pub struct Discovery {
    /// The machine's devices, opened; the reference is always the last.
    pub devices: Vec<Arc<dyn Backend>>,
    /// Devices that could have been there and are not, with the reasons.
    pub absent: Vec<Absent>,
}

/// Opens every device of the machine that this build has a backend for. Never fails: what cannot be opened is in `absent`.
pub fn discover(options: &OpenOptions) -> Discovery {
    let (mut devices, mut absent): (Vec<Arc<dyn Backend>>, Vec<Absent>) = (Vec::new(), Vec::new());
    for backend in ["cpu", "wgpu", "cuda"].into_iter().filter(|b| !FEATURES.contains(b)) {
        absent.push(Absent { backend, why: format!("built without feature {backend}") });
    }
    #[cfg(feature = "cpu")]
    match Cpu::open(options) {
        Ok(cpu) => devices.push(Arc::new(cpu)),
        Err(e) => absent.push(Absent { backend: "cpu", why: e.to_string() }),
    }
    #[cfg(feature = "cuda")]
    {
        let (found, missing) = cuda::open_all(options);
        devices.extend(found);
        absent.extend(missing);
    }
    #[cfg(feature = "wgpu")]
    {
        let (found, missing) = wgpu::open_all(options);
        devices.extend(found);
        absent.extend(missing);
    }
    devices.push(Arc::new(Reference::open(options)));
    Discovery { devices, absent }
}
