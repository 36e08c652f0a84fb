//! The embedded PTX, loaded when first asked for and kept.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::error::{Error, Result};

use super::driver::{Device, Function};

/// `(FAMILY.sm_XX, text)` of `kernels/*.ptx`.
pub(super) const KERNELS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Loaded kernels by family and entry.
type Loaded = HashMap<(&'static str, &'static str), Arc<dyn Function>>;

/// A device's loaded kernels.
#[derive(Debug, Default)]
pub(super) struct Modules(Mutex<Loaded>);

impl Modules {
    /// The entry of a family's module.
    pub(super) fn function(
        &self,
        device: &Device,
        family: &'static str,
        entry: &'static str,
    ) -> Result<Arc<dyn Function>> {
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.get(&(family, entry)) {
            return Ok(function.clone());
        }
        let text = KERNELS.iter().find(|k| k.0.strip_suffix(".sm_80") == Some(family));
        let text = text.ok_or_else(|| Error::unsupported(family, "no PTX of this family is embedded"))?.1;
        let failed = |e| device.failed(&format!("loading {family}"), text.len(), e);
        let function = device.driver.load(text, entry).map_err(failed)?;
        loaded.insert((family, entry), function.clone());
        Ok(function)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// 64-bit FNV-1a, as `tools/ptx` computes it.
    fn hash(bytes: impl Iterator<Item = u8>) -> String {
        let step = |h: u64, b: u8| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3);
        format!("{:016x}", bytes.fold(0xcbf2_9ce4_8422_2325, step))
    }

    #[test]
    fn ptx_is_that_of_its_sources() {
        let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let files = |folder: &Path, extension: &str| {
            let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
            let mut found: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == extension)).collect();
            found.sort();
            found
        };
        let headers = files(&kernels.join("common"), "cuh");
        let sources = files(&kernels, "cu");
        assert_eq!(sources.len(), KERNELS.len(), "each source has its PTX");
        for source in sources {
            let name = format!("{}.sm_80", source.file_stem().unwrap().to_str().unwrap());
            let text = KERNELS.iter().find(|k| k.0 == name).unwrap_or_else(|| panic!("{name}.ptx is missing")).1;
            let parts = [&source].into_iter().chain(&headers).flat_map(|p| fs::read(p).unwrap());
            let first = text.lines().next().unwrap();
            assert_eq!(first, format!("// sources: {}", hash(parts)), "{name}.ptx is stale: run tools/ptx");
            assert!(text.contains(".version 8.0") && text.contains(".target sm_80"), "{name} serves R525 and sm_80");
        }
    }
}
