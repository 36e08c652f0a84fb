use super::kernel::Kernel;
use crate::{
    error::{Error, Result},
    op::{Elementwise, Features, Op, elementwise::Function},
};

pub(super) fn kernel(op: &Op, o: &Elementwise) -> Result<Kernel> {
    op.require(Features::STRIDED | Features::BROADCAST | Features::DETERMINISM)?;
    let mut kernel = Kernel::new(op, "elementwise", "elementwise");
    for name in ["a", "out", "b"] {
        kernel.tensor(name);
    }
    let innermost = kernel.joined_extents(o.out.shape());
    let fours = kernel.fours(innermost);
    kernel.word(o.out.numel());
    kernel.word(usize::from(fours));
    // The order of `apply` in kernels/elementwise.cu.
    let code = match o.function {
        Function::Add => 0,
        Function::Mul => 1,
        Function::AddScaled => 2,
        Function::SiluMul => 3,
        Function::GeluTanhMul => 4,
        Function::GeluErfMul => 5,
        Function::Silu => 6,
        Function::GeluTanh => 7,
        Function::GeluErf => 8,
        Function::Relu => 9,
        Function::Softplus => 10,
        Function::Sigmoid => 11,
        Function::Tanh => 12,
        Function::Softcap => 13,
        Function::Clamp => 14,
        Function::Scale => 15,
        Function::Exp => 16,
        #[allow(unreachable_patterns, reason = "functions to come are declined, not a compile error here")]
        _ => return Err(Error::unsupported(op, "no kernel is written for this function yet")),
    };
    kernel.pair(code, o.alpha.get().to_bits());
    kernel.pair(o.beta.get().to_bits(), 0);
    kernel.blocks = o.out.numel().div_ceil(if fours { 1024 } else { 256 });
    Ok(kernel)
}
