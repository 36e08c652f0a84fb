use super::{Kernel, encodes, require_encoded};
use crate::{
    dtype::DType::*,
    error::{Error, Result},
    op::{Convert, Features, Op},
};

pub(super) fn kernel(op: &Op, o: &Convert) -> Result<Kernel> {
    op.require(Features::all())?;
    let (x, out) = (o.x.dtype(), o.out.dtype());
    let copy = x == out;
    if !copy {
        require_encoded(op)?;
    }
    let mut kernel = Kernel::new(op, "convert", o.out.shape(), 0);
    kernel.flag("copy", copy);
    kernel.variant = if copy { "copy" } else { "convert" };
    let real = matches!(out, F32 | F16 | BF16 | F8E4M3 | F8E5M2) || encodes(out);
    let body = match (x, out) {
        _ if copy => None,
        (I8 | U8 | I32, _) if real => Some("x: VALUE) -> f32 { return f32(x);"),
        _ if real => Some("x: VALUE) -> f32 { return x;"),
        (I8 | U8 | I32, I8) => Some("x: VALUE) -> i32 { return clamp(i32(x), -128, 127);"),
        (I8 | U8 | I32, U8) => Some("x: VALUE) -> u32 { return u32(clamp(i32(x), 0, 255));"),
        (I8 | U8 | I32, I32) => Some("x: VALUE) -> i32 { return i32(x);"),
        // Saturating; the largest f32 below 2^31 is 2147483520.
        (_, I8) => Some("x: VALUE) -> i32 { return select(i32(round(clamp(x, -128.0, 127.0))), 0, is_nan(x));"),
        (_, U8) => Some("x: VALUE) -> u32 { return select(u32(round(clamp(x, 0.0, 255.0))), 0u, is_nan(x));"),
        (_, I32) => Some(
            "x: VALUE) -> i32 { \
             if is_nan(x) { return 0; } \
             if x >= 2147483648.0 { return 0x7fffffff; } \
             return i32(round(max(x, -2147483648.0)));",
        ),
        _ => return Err(Error::unsupported(op, format_args!("no shader writes {out} yet"))),
    };
    if let Some(body) = body {
        let value = match x {
            I8 | I32 => "i32",
            U8 => "u32",
            _ => "f32",
        };
        kernel.code(format!("fn converted({} }}", body.replace("VALUE", value)));
    }
    let (elements, bytes) = out.block();
    kernel.flag("blocks", elements > 1);
    kernel.constant("ELEMENTS", elements);
    kernel.constant("BYTES", bytes);
    kernel.elements(o.out.numel() / elements);
    kernel.collapse();
    Ok(kernel)
}
