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
