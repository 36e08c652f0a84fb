use std::sync::Arc;

use super::{convert, driver::Device, matmul::Product, module::Modules};
use crate::{
    backend::Plans,
    error::Result,
    op::{Determinism, Features, GroupedMatmul, Op, Real},
};

pub(super) fn plans(op: &Op, o: &GroupedMatmul, device: &Arc<Device>, modules: &Modules) -> Result<Plans> {
    op.require(Features::all())?;
    let (rows, groups, n, k) = o.dims();
    if groups == 0 {
        let zeros = convert::zeros(op, &o.out).compile(device, modules, Determinism::BatchInvariant)?;
        return Ok(vec![Arc::new(zeros)]);
    }
    let product = Product {
        op,
        operands: op.operands(),
        sizes: [1, rows, n, k, groups],
        act: o.act,
        scale: Real::ONE,
        w_scales: 0,
        numerics: o.numerics,
    };
    product.plans(device, modules)
}
