use super::{Kernel, require_dtypes};
use crate::{
    error::{Error, Result},
    layout::Spec,
    op::{Attention, Determinism, Features, Op, attention::Sizes},
};

/// Elements of a key and of a value that a workgroup holds for each row.
const LONGEST: (usize, usize) = (512, 256);

/// Elements of rows of `q` that a workgroup holds at most: 8 KiB, half of what every device has.
const HELD: usize = 2048;

pub(super) fn kernel(op: &Op, o: &Attention) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let Sizes { batch, q_len, capacity, heads, kv_heads, d, dv } = o.sizes();
    if d > LONGEST.0 || dv > LONGEST.1 {
        return Err(Error::unsupported(op, format_args!("heads of {d} and {dv} are longer than {LONGEST:?}")));
    }
    let features = d.max(1).next_multiple_of(32);
    let values = dv.clamp(64, LONGEST.1).next_power_of_two();
    // Rows of one kv head: of the queries, times the heads that share it.
    let group = (heads / kv_heads.max(1)).max(1);
    let mut rows = match q_len * group {
        _ if op.determinism() >= Determinism::BatchInvariant => 4, // whatever the company
        0..=1 => 1,
        2..=4 => 4,
        5..=8 => 8,
        _ => 16,
    };
    while rows > 1 && rows * features > HELD {
        rows /= 2;
    }
    let mut kernel = Kernel::new(op, "attention", &[], 4);
    kernel.variant = match rows {
        1 => "attention1",
        4 => "attention4",
        8 => "attention8",
        _ => "attention16",
    };
    kernel.flag("causal", o.causal);
    kernel.flag("window", o.window > 0);
    kernel.flag("softcap", !o.softcap.is_zero());
    kernel.flag("load4", true);
    let packed = |s: &Spec| s.dtype().is_quantized() || (s.dtype().is_float() && s.stride(0) == 1);
    kernel.flag("q_packed", packed(&o.q));
    kernel.flag("k_packed", packed(&o.k));
    kernel.flag("v_packed", packed(&o.v));
    let teams = 64 / (values / 4); // threads that share four elements of a value
    kernel.flag("split", rows < teams);
    for (name, value) in [
        ("ROWS", rows),
        ("FEATURES", features),
        ("VALUES", values),
        ("TURNS", (teams / rows).max(1)),
        ("HELD", (rows / teams).max(1)),
    ] {
        kernel.constant(name, value);
    }
    let tiles = (q_len * group).div_ceil(rows);
    for (name, value) in [
        ("batch", batch),
        ("q_rows", q_len),
        ("kv_heads", kv_heads.max(1)),
        ("group", group),
        ("capacity", capacity),
        ("d", d),
        ("dv", dv),
        ("window", o.window.min(1 << 30)),
        ("tiles", tiles.max(1)),
        ("page", o.k.dim(2).max(1)),
        ("pages", o.k.dim(3)),
    ] {
        kernel.whole(name, value);
    }
    kernel.real("scale", o.score_scale());
    kernel.real("softcap", o.softcap.get());
    // A tile more for each sequence's last rows, and for the rows before the first sequence and behind the last one.
    let tiles = if o.q_offsets.is_some() { tiles + batch + 2 } else { tiles * batch };
    let nothing = heads == 0 || q_len == 0 || (dv == 0 && o.lse.is_none());
    kernel.groups = if nothing { 0 } else { tiles * kv_heads };
    Ok(kernel)
}
