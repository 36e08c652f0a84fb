//! The choices a caller may make.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use super::{Inner, Runtime};
use crate::{
    backend::{Backend, OpenOptions},
    dispatch::{Device, Dispatcher, Fallback, default_directory},
    error::{Error, Result},
    op::{Determinism, Numerics},
};

/// How a [`Runtime`] is to be: see [`Runtime::builder`].
///
/// ```
/// use tesela::{Fallback, Runtime};
/// let rt = Runtime::builder().threads(2).memory_limit(1 << 30).no_cache().fallback(Fallback::Reported).build()?;
/// assert!(rt.devices().iter().all(|d| d.memory().limit <= 1 << 30));
/// # Ok::<(), tesela::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    options: OpenOptions,
    cache: Cache,
    devices: Vec<Arc<dyn Backend>>,
    only_devices: bool,
    allowed: Option<Vec<String>>,
    fallback: Fallback,
    numerics: Numerics,
    determinism: Determinism,
}

#[derive(Debug, Clone)]
enum Cache {
    Default,
    At(PathBuf),
    Off,
}

impl Default for Builder {
    fn default() -> Self {
        Builder {
            options: OpenOptions::default(),
            cache: Cache::Default,
            devices: Vec::new(),
            only_devices: false,
            allowed: None,
            fallback: Fallback::Forbidden,
            numerics: Numerics::Exact,
            determinism: Determinism::RunToRun,
        }
    }
}

impl Builder {
    /// Threads a CPU device computes with. Default: the cgroup's quota, not the host's cores.
    pub fn threads(mut self, threads: usize) -> Self {
        self.options.threads = threads;
        self
    }

    /// Bytes each device may allocate. Default: its own limit.
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.options.memory_limit = bytes;
        self
    }

    /// Where measurements are kept. Default: `tesela` in the user's cache directory.
    pub fn cache_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.cache = Cache::At(path.into());
        self
    }

    /// Keeps measurements in memory only.
    pub fn no_cache(mut self) -> Self {
        self.cache = Cache::Off;
        self
    }

    /// Adds an open device, before the discovered ones: a vendor's, or one opened with options of its own. It is never a
    /// last resort.
    pub fn device(mut self, device: Arc<dyn Backend>) -> Self {
        self.devices.push(device);
        self
    }

    /// Uses the devices given by [`Builder::device`] alone; nothing is discovered.
    pub fn only_devices(mut self) -> Self {
        self.only_devices = true;
        self
    }

    /// Where work may go: names of backends (`cpu`, `cuda`, ...) or ids of devices. Default: everywhere, software GPUs and the
    /// reference as a last resort only; named here they are as good as any other.
    pub fn allow(mut self, names: &[&str]) -> Self {
        self.allowed = Some(names.iter().map(|n| n.to_string()).collect());
        self
    }

    /// What happens to an operation that the device of its operands cannot run. Default: forbidden.
    pub fn fallback(mut self, fallback: Fallback) -> Self {
        self.fallback = fallback;
        self
    }

    /// The accuracy that the typed calls ask for. Default: exact.
    pub fn numerics(mut self, numerics: Numerics) -> Self {
        self.numerics = numerics;
        self
    }

    /// The reproducibility that the typed calls ask for. Default: run-to-run.
    pub fn determinism(mut self, determinism: Determinism) -> Self {
        self.determinism = determinism;
        self
    }

    /// Opens the devices. Fails where none is left, or a name in [`Builder::allow`] matches nothing.
    pub fn build(self) -> Result<Runtime> {
        let own = self.devices.len();
        let (mut backends, mut absent) = (self.devices, Vec::new());
        let cache = match self.cache {
            Cache::Default => default_directory(),
            Cache::At(path) => Some(path),
            Cache::Off => None,
        };
        if !self.only_devices {
            let options = OpenOptions { cache_folder: cache.clone(), ..self.options };
            let found = crate::discover(&options);
            backends.extend(found.devices);
            absent = found.absent;
        }
        let matches = |b: &Arc<dyn Backend>, name: &String| b.info().backend == *name || b.info().id == *name;
        for name in self.allowed.iter().flatten() {
            if !backends.iter().any(|b| matches(b, name)) {
                let mut known: Vec<String> = backends.iter().map(|b| b.info().id.clone()).collect();
                known.extend(absent.iter().map(|a| format!("no {}: {}", a.backend, a.why)));
                return Err(Error::invalid(name, format_args!("no such device; there are: {}", known.join(", "))));
            }
        }
        let named = |(i, b): (usize, Arc<dyn Backend>)| match &self.allowed {
            None => Some((i < own, b)),
            Some(names) => names.iter().any(|n| matches(&b, n)).then_some((true, b)),
        };
        let mut chosen: Vec<(bool, Arc<dyn Backend>)> = backends.into_iter().enumerate().filter_map(named).collect();
        // Last resorts last, otherwise in the order found.
        chosen.sort_by_key(|(named, b)| Device::new(0, b.clone(), *named).is_last_resort());
        let devices: Vec<Device> =
            chosen.into_iter().enumerate().map(|(i, (named, b))| Device::new(i, b, named)).collect();
        if devices.is_empty() {
            return Err(Error::invalid(
                "runtime",
                "no device is left: add one with `device`, or allow discovered ones",
            ));
        }
        Ok(Runtime(Arc::new(Inner {
            dispatcher: Dispatcher::new(devices, self.fallback, cache.as_deref()),
            absent,
            numerics: self.numerics,
            determinism: self.determinism,
            default: OnceLock::new(),
        })))
    }
}
