//! The embedded PTX, loaded when first asked for and kept.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::error::{Error, Result};

use super::driver::{Device, Function};

/// `(FAMILY.sm_XX, text)` of `kernels/*.ptx`: each text at one address, by which it is known when it was loaded.
pub(super) static KERNELS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Targets whose PTX every newer GPU loads.
const ANY: [&str; 3] = [".sm_75", ".sm_80", ".sm_89"];

/// PTX that needs a newer driver than the others, for a newer CUDA.
const NEWER: (&str, (i32, i32)) = ("\n.version 8.4\n", (12, 4));

/// The text for GPUs of compute capability 9.0 or newer: what stands there as a comment, for them is an instruction (see `AFTER_LAUNCHES` in
/// kernels/common/types.cuh).
pub(super) fn waiting(text: &str) -> String {
    ANY.iter().fold(text.replace("//~ ", ""), |text, old| {
        text.replacen(&format!(".target {}", &old[1..]), ".target sm_90", 1)
    })
}

/// Loaded kernels by family and entry.
type Loaded = HashMap<(&'static str, &'static str), Arc<dyn Function>>;

/// A device's loaded kernels.
#[derive(Debug, Default)]
pub(super) struct Modules(Mutex<Loaded>);

impl Modules {
    /// The entry of a family's module: the one for newer GPUs too, unless the family names its target (`gemm.sm_90a`).
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
        let text = KERNELS.iter().find(|k| k.0 == family || ANY.iter().any(|a| k.0.strip_suffix(a) == Some(family)));
        let &(name, text) = text.ok_or_else(|| Error::unsupported(family, "no PTX of this family is embedded"))?;
        if name.ends_with(".sm_80") && device.driver.capability() < (8, 0) {
            return Err(Error::unsupported(family, "the kernel needs compute capability 8.0 or newer"));
        }
        if name.ends_with(".sm_89") && device.driver.capability() < (8, 9) {
            return Err(Error::unsupported(family, "the kernel needs compute capability 8.9 or newer"));
        }
        if text.get(..1024).is_some_and(|head| head.contains(NEWER.0)) && device.driver.cuda() < NEWER.1 {
            return Err(Error::unsupported(family, "the kernel needs a driver for CUDA 12.4 or newer"));
        }
        let failed = |e| device.failed(&format!("loading {family}"), text.len(), e);
        let function = device.driver.load(text, entry).map_err(failed)?;
        loaded.insert((family, entry), function.clone());
        Ok(function)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use super::*;
    use crate::dtype::DType;

    /// 64-bit FNV-1a, as `tools/ptx` computes it.
    fn hash(bytes: impl Iterator<Item = u8>) -> String {
        let step = |h: u64, b: u8| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3);
        format!("{:016x}", bytes.fold(0xcbf2_9ce4_8422_2325, step))
    }

    /// The headers that a text includes, and those that these include, each once, by name.
    fn included(kernels: &Path, text: &[u8], found: &mut BTreeMap<String, Vec<u8>>) {
        for line in String::from_utf8_lossy(text).lines() {
            let Some(name) = line.strip_prefix("#include \"").and_then(|l| l.split('"').next()) else { continue };
            if !found.contains_key(name) {
                let text =
                    if name == "grids.cuh" { grids() } else { fs::read(kernels.join("common").join(name)).unwrap() };
                found.insert(name.into(), text.clone());
                included(kernels, &text, found);
            }
        }
    }

    /// As `tools/ptx` writes the grids.
    fn grids() -> Vec<u8> {
        use DType::*;
        let all =
            [("1_S", IQ1_S), ("2_S", IQ2_S), ("2_XS", IQ2_XS), ("2_XXS", IQ2_XXS), ("3_S", IQ3_S), ("3_XXS", IQ3_XXS)];
        let array = |(name, dtype)| {
            let points = crate::quant::points(dtype).unwrap();
            let body: Vec<_> = points.iter().map(|p| format!("{p:#06x}")).collect();
            format!("static __device__ const u16 GRID_IQ{name}[{}] = {{{}}};\n", points.len(), body.join(","))
        };
        all.map(array).concat().into_bytes()
    }

    #[test]
    fn ptx_is_that_of_its_sources() {
        let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let sources = fs::read_dir(&kernels).unwrap().map(|e| e.unwrap().path());
        let sources: Vec<_> = sources.filter(|p| p.extension().is_some_and(|e| e == "cu")).collect();
        assert_eq!(sources.len(), KERNELS.len(), "each source has its PTX");
        for source in sources {
            let stem = source.file_stem().unwrap().to_str().unwrap();
            let source = fs::read(&source).unwrap();
            let lines = String::from_utf8_lossy(&source).into_owned();
            let said = lines.lines().find_map(|l| l.strip_prefix("// Target: ")?.strip_suffix('.'));
            let (name, target) = match (stem.split_once('.'), said) {
                (Some((_, target)), _) => (stem.to_string(), target),
                (None, said) => (format!("{stem}.{}", said.unwrap_or("sm_75")), said.unwrap_or("sm_75")),
            };
            let text = KERNELS.iter().find(|k| k.0 == name).unwrap_or_else(|| panic!("{name}.ptx is missing")).1;
            let mut headers = BTreeMap::new();
            included(&kernels, &source, &mut headers);
            let first = text.lines().next().unwrap();
            let parts = source.into_iter().chain(headers.into_values().flatten());
            assert_eq!(first, format!("// sources: {}", hash(parts)), "{name}.ptx is stale: run tools/ptx");
            let version = lines.lines().find_map(|l| l.strip_prefix("// PTX: ")?.strip_suffix('.'));
            let version = format!("\n.version {}\n", version.unwrap_or("8.0"));
            assert!(text.contains(&version), "{name} serves R525, or as its source says");
            assert!(version == "\n.version 8.0\n" || version == NEWER.0 && text[..1024].contains(NEWER.0), "{name}");
            assert!(text.contains(&format!(".target {target}")), "{name} is for what its name says");
        }
    }
}
