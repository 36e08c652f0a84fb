//! Which adapters there are, what they are able to do, and opening them.

use std::{collections::HashSet, sync::Arc};

use super::{
    Wgpu,
    queue::{Cache, Queue},
};
use crate::{
    backend::{Absent, Backend, DeviceInfo, Kind, OpenOptions},
    error::{Error, Result},
};

/// What a device offers beyond plain WGSL. Every operation has a kernel that needs none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Abilities {
    /// 16-bit floats in shaders.
    pub(super) f16: bool,
    /// Sums over subgroups, of any size.
    pub(super) subgroups: bool,
    /// How many threads every subgroup has; 0 where that varies.
    pub(super) subgroup: usize,
    /// The edge of the square matrices that subgroups multiply, f16 in and f32 out: 8 or 16; 0 for none.
    pub(super) cooperative: usize,
}

impl Abilities {
    /// Each alone and all together: what tests walk through.
    #[cfg(test)]
    pub(super) const ALL: [Abilities; 5] = [
        Abilities { f16: false, subgroups: false, subgroup: 0, cooperative: 0 },
        Abilities { f16: false, subgroups: true, subgroup: 8, cooperative: 0 },
        Abilities { f16: true, subgroups: false, subgroup: 0, cooperative: 0 },
        Abilities { f16: true, subgroups: true, subgroup: 8, cooperative: 8 },
        Abilities { f16: true, subgroups: true, subgroup: 32, cooperative: 16 },
    ];

    fn of(adapter: &wgpu::Adapter) -> Abilities {
        let has = |feature| adapter.features().contains(feature);
        let (f16, subgroups) = (has(wgpu::Features::SHADER_F16), has(wgpu::Features::SUBGROUP));
        // Only what the adapter lists: other configurations compute wrong numbers without a word.
        let listed = |edge: u32| {
            let found = adapter.cooperative_matrix_properties().into_iter().any(|c| {
                (c.m_size, c.n_size, c.k_size) == (edge, edge, edge)
                    && (c.ab_type, c.cr_type) == (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32)
            });
            found.then_some(edge as usize)
        };
        let about = adapter.get_info();
        let (least, most) = (about.subgroup_min_size as usize, about.subgroup_max_size as usize);
        let subgroup = if subgroups && least == most { least } else { 0 };
        let possible = f16 && subgroup > 0 && has(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
        let cooperative = if possible { listed(16).or(listed(8)).unwrap_or(0) } else { 0 };
        Abilities { f16, subgroups, subgroup, cooperative }
    }

    /// The features to ask for: these and no more, since some drivers fail to open with all that they list.
    fn features(self) -> wgpu::Features {
        let mut features = wgpu::Features::empty();
        features.set(wgpu::Features::SHADER_F16, self.f16);
        features.set(wgpu::Features::SUBGROUP, self.subgroups);
        features.set(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, self.cooperative > 0);
        features
    }
}

/// Opens every adapter once. What cannot be opened, or the lack of any, is reported with the reason.
pub(crate) fn open_all(options: &OpenOptions) -> (Vec<Arc<dyn Backend>>, Vec<Absent>) {
    let absent = |why: String| Absent { backend: "wgpu", why };
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    if adapters.is_empty() {
        let why = "no adapter: needs a Vulkan, Metal or DirectX 12 driver (on Debian, mesa-vulkan-drivers)".into();
        return (Vec::new(), vec![absent(why)]);
    }
    // The same hardware behind two interfaces is one device: the interface first in this order is kept.
    adapters.sort_by_key(|a| match a.get_info().backend {
        wgpu::Backend::Vulkan => 0,
        wgpu::Backend::Metal => 1,
        wgpu::Backend::Dx12 => 2,
        _ => 3,
    });
    let mut seen = HashSet::new();
    let (mut devices, mut missing): (Vec<Arc<dyn Backend>>, Vec<Absent>) = Default::default();
    let infos: Vec<wgpu::AdapterInfo> = adapters.iter().map(|a| a.get_info()).collect();
    for (i, adapter) in adapters.iter().enumerate() {
        let id = identity(&infos, i);
        if !seen.insert(id.clone()) {
            continue;
        }
        match open(adapter, id, options) {
            Ok(device) => devices.push(Arc::new(device)),
            Err(e) => missing.push(absent(format!("{}: {e}", infos[i].name))),
        }
    }
    (devices, missing)
}

/// The PCI address where the interface tells it; else vendor, device, and a number among equals of the same interface, so that twins
/// stay two and interfaces agree.
fn identity(infos: &[wgpu::AdapterInfo], i: usize) -> String {
    let info = &infos[i];
    if !info.device_pci_bus_id.is_empty() {
        return format!("pci:{}", info.device_pci_bus_id.to_lowercase());
    }
    let same = |o: &&wgpu::AdapterInfo| (o.backend, o.vendor, o.device) == (info.backend, info.vendor, info.device);
    let number = infos[..i].iter().filter(same).count();
    format!("gpu:{:04x}:{:04x}:{number}", info.vendor, info.device)
}

pub(super) fn open(adapter: &wgpu::Adapter, id: String, options: &OpenOptions) -> Result<Wgpu> {
    let limits = adapter.limits();
    open_with(adapter, id.clone(), options, Abilities::of(adapter), limits.clone())
        .or_else(|_| open_with(adapter, id, options, Abilities::default(), limits))
}

/// Opens the adapter with these limits and abilities.
pub(super) fn open_with(
    adapter: &wgpu::Adapter,
    id: String,
    options: &OpenOptions,
    abilities: Abilities,
    limits: wgpu::Limits,
) -> Result<Wgpu> {
    let about = adapter.get_info();
    let experimental_features = match abilities.cooperative {
        0 => wgpu::ExperimentalFeatures::disabled(),
        // SAFETY: cooperative matrices are all that is experimental here; they are used in configurations the adapter lists, and a
        // kernel's results are checked before it is picked.
        _ => unsafe { wgpu::ExperimentalFeatures::enabled() },
    };
    let features = abilities.features() | (adapter.features() & wgpu::Features::PIPELINE_CACHE);
    let request = adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("tesela"),
        required_features: features,
        required_limits: limits.clone(),
        experimental_features,
        ..Default::default()
    });
    let (device, queue) = pollster::block_on(request).map_err(|e| Error::device(&about.name, "opening", e))?;
    let mut info = DeviceInfo::new(
        "wgpu",
        &about.name,
        match about.device_type {
            wgpu::DeviceType::DiscreteGpu | wgpu::DeviceType::VirtualGpu => Kind::DiscreteGpu,
            wgpu::DeviceType::IntegratedGpu => Kind::IntegratedGpu,
            wgpu::DeviceType::Cpu => Kind::SoftwareGpu,
            wgpu::DeviceType::Other => Kind::Accelerator,
        },
    );
    info.id = id;
    info.driver = format!("{} {} {}", about.backend, about.driver, about.driver_info).trim_end().into();
    info.max_buffer = usize::try_from(limits.max_buffer_size).unwrap_or(usize::MAX);
    // One file per adapter and driver.
    let cache = options.cache_folder.as_ref().filter(|_| features.contains(wgpu::Features::PIPELINE_CACHE)).map(|f| {
        let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let file: String = format!("shaders {} {}", info.id, info.driver).chars().map(word).collect();
        Cache::open(&device, f.join(file))
    });
    let queue = Arc::new(Queue::new(info.to_string(), device, queue, options.memory_limit, cache)?);
    Ok(Wgpu { info, abilities, queue, pipelines: Arc::default() })
}
