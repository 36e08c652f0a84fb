use super::{Kernel, require_dtypes};
use crate::{
    error::Result,
    op::{Features, Op, Rope, rope::RopeStyle},
};

pub(super) fn kernel(op: &Op, o: &Rope) -> Result<Kernel> {
    op.require(Features::all() - Features::APPEND - Features::PAGED)?;
    require_dtypes(op)?;
    let mut kernel = Kernel::new(op, "rope", &[], 3);
    let pairs = o.rotated() / 2;
    let (pair, other) = match o.style {
        RopeStyle::Adjacent => (2, 1),
        RopeStyle::Half => (1, pairs),
    };
    for (name, value) in [("pairs", pairs), ("heads", o.x.dim(1)), ("step_pair", pair), ("step_other", other)] {
        kernel.whole(name, value);
    }
    kernel.real("amplitude", o.amplitude() as f32);
    // Turns per position, modulo 1, in units of 2^-64: the high word, then the low one.
    kernel.table = (o.frequencies().into_iter())
        .flat_map(|f| {
            let turns = ((f / std::f64::consts::TAU).rem_euclid(1.0) * 2f64.powi(64)) as u64;
            [(turns >> 32) as u32, turns as u32]
        })
        .collect();
    kernel.elements(o.x.dim(2) * o.x.dim(1) * pairs);
    Ok(kernel)
}
