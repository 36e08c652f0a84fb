use super::{Kernel, require_dtypes};
use crate::{
    error::{Error, Result},
    op::{Elementwise, Features, Op, elementwise::Function},
};

pub(super) fn kernel(op: &Op, o: &Elementwise) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let mut kernel = Kernel::new(op, "elementwise", o.out.shape(), 0);
    let Some(expression) = expression(o.function) else {
        return Err(Error::unsupported(op, "no shader is written for this function yet"));
    };
    kernel.code(format!("fn apply(a: f32, b: f32) -> f32 {{ return {expression}; }}"));
    kernel.real("alpha", o.alpha.get());
    kernel.real("beta", o.beta.get());
    kernel.elements(o.out.numel());
    kernel.collapse();
    Ok(kernel)
}

fn expression(function: Function) -> Option<&'static str> {
    Some(match function {
        Function::Add => "a + b",
        Function::Mul => "a * b",
        Function::AddScaled => "a + p.alpha * b",
        Function::SiluMul => "silu(a) * b",
        Function::GeluTanhMul => "gelu_tanh(a) * b",
        Function::GeluErfMul => "gelu_erf(a) * b",
        Function::Silu => "silu(a)",
        Function::GeluTanh => "gelu_tanh(a)",
        Function::GeluErf => "gelu_erf(a)",
        Function::Relu => "relu(a)",
        Function::Softplus => "softplus(a)",
        Function::Sigmoid => "sigmoid(a)",
        Function::Tanh => "tanh_(a)",
        Function::Softcap => "p.alpha * tanh_(a / p.alpha)",
        Function::Clamp => "select(min(max(a, p.alpha), p.beta), a, is_nan(a))",
        Function::Scale => "p.alpha * a + p.beta",
        Function::Exp => "exp_(a)",
        #[allow(unreachable_patterns, reason = "functions to come are declined, not a compile error here")]
        _ => return None,
    })
}
