//! Mamba-2's scan: chunks of time as products of small matrices, or step by step where there are few.

mod chunk;
mod step;

use std::sync::Arc;

use super::{
    Device,
    kernel::{Kernel, Tensor},
    simd::{Simd, math},
};
use crate::{
    backend::Plans,
    error::Result,
    op::{Determinism, Features, SsmScan},
};

/// Steps from which on turning the state for products pays.
const FEW: usize = 8;

pub(super) fn plan(device: &Arc<Device>, op: &SsmScan) -> Result<Plans> {
    let known = Features::STRIDED | Features::STATE | Features::SKIP | Features::BIAS | Features::SOFTPLUS;
    let few = op.x.dim(2) < FEW;
    let what = if few { "step" } else { "chunk" };
    let kernel = Kernel::new(device, *op, format_args!("ssm_scan-{}-{what}", op.x.dtype()), known)?;
    let kernel = kernel.determinism(Determinism::BatchInvariant);
    if few { step::plan(kernel, device, *op) } else { chunk::plan(kernel, device, *op) }
}

/// One number of a list of f32, or 0.
fn number(list: Option<Tensor>, i: usize) -> f32 {
    // SAFETY: the operation says that the list is f32 and has the element.
    list.map_or(0.0, |list| unsafe { *list.at::<f32>(0, i) })
}

/// `dt'` of vectors of time steps.
#[inline(always)]
fn time_step<S: Simd>(s: S, op: &SsmScan, dt: S::F, bias: f32) -> S::F {
    let sum = s.add(dt, s.splat(bias));
    if op.softplus { math::softplus(s, sum) } else { sum }
}

#[cfg(test)]
mod tests {
    use crate::{
        backend::OpenOptions,
        cpu::{Cpu, simd::Isa},
        op::scan_tests::{DECAYS, SCANS, STEPS, scans, steps_and_decays, what_is_spoiled_stays},
    };

    fn devices() -> impl Iterator<Item = Cpu> {
        let open = |isa| Cpu::with_isa(&OpenOptions { threads: 2, ..OpenOptions::default() }, isa);
        Isa::available().into_iter().map(open)
    }

    #[test]
    fn steps_and_decays_of_any_size() {
        for (op, device) in scans(&SCANS).flat_map(|op| devices().map(move |device| (op, device))) {
            steps_and_decays(&device, &op, &STEPS, &DECAYS);
        }
    }

    #[test]
    fn what_is_spoiled_stays_in_its_head() {
        for (op, device) in scans(&SCANS).flat_map(|op| devices().map(move |device| (op, device))) {
            what_is_spoiled_stays(&device, &op);
        }
    }
}
