use super::kernel::Kernel;
use crate::{
    dtype::DType,
    error::{Error, Result},
    layout::Spec,
    op::{Convert, Features, Op},
};

/// Block formats that `encode_block` in kernels/common/encode.cuh makes.
pub(super) const ENCODED: &[DType] = &[DType::Q8_0, DType::Q4_0];

pub(super) fn kernel(op: &Op, o: &Convert) -> Result<Kernel> {
    op.require(Features::all())?;
    let (x, out) = (o.x.dtype(), o.out.dtype());
    let (elements, bytes) = out.block();
    let dense = o.x.is_dense() && o.out.is_dense();
    let entry = match x == out {
        true if dense => "copy_dense",
        true => "copy",
        false if !out.is_quantized() => "convert",
        false if ENCODED.contains(&out) => "encode",
        false => return Err(Error::unsupported(op, format_args!("no kernel makes blocks of {out} yet"))),
    };
    let mut kernel = Kernel::new(op, "convert", entry);
    for name in ["x", "out"] {
        kernel.tensor(name);
    }
    let innermost = kernel.joined_extents(o.out.shape());
    let fours = entry == "convert" && kernel.fours(innermost);
    let size = o.out.span();
    let (threads, bytes) = match entry {
        "copy_dense" => (size.div_ceil(16), if size.is_multiple_of(16) { 16 } else { size % 16 }),
        _ => (o.out.numel() / elements / if fours { 4 } else { 1 }, bytes),
    };
    kernel.word(threads);
    kernel.word(usize::from(fours));
    kernel.pair(elements as u32, bytes as u32);
    kernel.threads = if entry == "encode" { 128 } else { 256 };
    kernel.blocks = threads.div_ceil(kernel.threads as usize);
    Ok(kernel)
}

/// Zeros in a float operand `out`.
pub(super) fn zeros(op: &Op, out: &Spec) -> Kernel {
    let mut kernel = Kernel::new(op, "convert", "zeros");
    for name in ["no x", "out"] {
        kernel.tensor(name);
    }
    kernel.joined_extents(out.shape());
    kernel.word(out.numel());
    kernel.word(0);
    kernel.pair(1, 0);
    kernel.blocks = out.numel().div_ceil(256);
    kernel
}
