use super::{Kernel, require_dtypes};
use crate::{
    dtype::DType,
    error::{Error, Result},
    layout::Spec,
    op::{Attention, Determinism, Features, Op, attention::Sizes},
};

/// Elements of a key and of a value that a workgroup holds for each row.
const LONGEST: (usize, usize) = (512, 256);

/// Elements of rows of `q` that a workgroup holds at most: 8 KiB, half of what every device has.
const HELD: usize = 2048;

/// The longest head of the split kernel, up to how many rows of one kv head it may be worth while, and the fewest keys.
const SPLIT_LONGEST: usize = 256;
const SPLIT_ROWS: usize = 32;
const SPLIT_KEYS: usize = 16;

/// Keys of a part, as far as there are two parts.
const PART: usize = 128;

/// Parts, and workgroups of the split kernel at most: twice what fills the largest devices.
const SPLITS: usize = 128;
const SPLIT_GROUPS: usize = 1024;

pub(super) fn kernels(op: &Op, o: &Attention) -> Result<Vec<Kernel>> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let Sizes { d, dv, .. } = o.sizes();
    if d > LONGEST.0 || dv > LONGEST.1 {
        return Err(Error::unsupported(op, format_args!("heads of {d} and {dv} are longer than {LONGEST:?}")));
    }
    let rows = by_rows(op, o);
    // The tiled kernel last: several times as fast by some compilers and slower by others.
    Ok(split(op, o).into_iter().chain([rows]).chain(tiled(op, o)).collect())
}

/// The parameters of shaders/attention_common.wgsl for tiles of `rows` rows of a kv head; the number of tiles of all sequences and heads.
fn kernel(op: &Op, o: &Attention, shader: &'static str, rows: usize) -> (Kernel, usize) {
    let Sizes { batch, q_len, capacity, heads, kv_heads, d, dv } = o.sizes();
    let mut kernel = Kernel::new(op, shader, &[], 4);
    kernel.flag("causal", o.causal);
    kernel.flag("window", o.window > 0);
    kernel.flag("softcap", !o.softcap.is_zero());
    kernel.flag("load4", true);
    let packed = |s: &Spec| s.dtype().is_quantized() || (s.dtype().is_float() && s.stride(0) == 1);
    kernel.flag("q_packed", packed(&o.q));
    kernel.flag("k_packed", packed(&o.k));
    kernel.flag("v_packed", packed(&o.v));
    kernel.constant("ROWS", rows);
    let group = group(o);
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
    (kernel, if nothing { 0 } else { tiles * kv_heads })
}

/// Heads that share a kv head.
fn group(o: &Attention) -> usize {
    let Sizes { heads, kv_heads, .. } = o.sizes();
    (heads / kv_heads.max(1)).max(1)
}

fn by_rows(op: &Op, o: &Attention) -> Kernel {
    let Sizes { q_len, d, dv, .. } = o.sizes();
    let features = d.max(1).next_multiple_of(32);
    let values = dv.clamp(64, LONGEST.1).next_power_of_two();
    // Rows of one kv head: of the queries, times the heads that share it.
    let mut rows = match q_len * group(o) {
        _ if op.determinism() >= Determinism::BatchInvariant => 4, // whatever the company
        0..=1 => 1,
        2..=4 => 4,
        5..=8 => 8,
        _ => 16,
    };
    while rows > 1 && rows * features > HELD {
        rows /= 2;
    }
    let (mut kernel, groups) = kernel(op, o, "attention", rows);
    kernel.flag("whole_rows", true);
    kernel.variant = match rows {
        1 => "attention1",
        4 => "attention4",
        8 => "attention8",
        _ => "attention16",
    };
    let teams = 64 / (values / 4); // threads that share four elements of a value
    kernel.flag("split", rows < teams);
    for (name, value) in
        [("FEATURES", features), ("VALUES", values), ("TURNS", (teams / rows).max(1)), ("HELD", (rows / teams).max(1))]
    {
        kernel.constant(name, value);
    }
    kernel.groups = groups;
    kernel
}

/// Rows of a workgroup of the tiled kernel, from how many on it may be worth while, and the longest values that its threads sum in
/// registers.
const TILED_ROWS: usize = 64;
const TILED_FROM: usize = 17;
const TILED_VALUES: usize = 128;

/// The kernel for many rows.
pub(super) fn tiled(op: &Op, o: &Attention) -> Option<Kernel> {
    let Sizes { q_len, dv, .. } = o.sizes();
    let invariant = op.determinism() >= Determinism::BatchInvariant;
    if invariant || q_len * group(o) < TILED_FROM || dv > TILED_VALUES {
        return None;
    }
    let values = if dv > 64 { 128 } else { 64 };
    let make = |quads: bool| {
        let (mut kernel, groups) = kernel(op, o, "attention_tiled", TILED_ROWS);
        kernel.variant = "attention-tiled";
        kernel.flag("by_key", true);
        kernel.flag("whole_rows", true);
        kernel.flag("out_packed", o.out.stride(0) == 1);
        kernel.constant("VALUES", values);
        kernel.constant("COLUMNS", values / 64);
        kernel.constant("TILE", 520.max(4 * values));
        for (name, s) in [("q", &o.q), ("k", &o.k), ("v", &o.v)] {
            kernel.quad(name, quads && by_quads(s));
        }
        kernel.groups = groups;
        kernel
    };
    let mut kernel = make(true);
    if [&o.q, &o.k, &o.v].into_iter().any(by_quads) {
        kernel.otherwise = Some(Box::new(make(false)));
    }
    Some(kernel)
}

/// The kernel that splits the keys among workgroups, where that is worth while.
fn split(op: &Op, o: &Attention) -> Option<Kernel> {
    let Sizes { q_len, capacity, d, dv, .. } = o.sizes();
    let longest = d.max(dv);
    let few = (1..=SPLIT_ROWS).contains(&(q_len * group(o)));
    let invariant = op.determinism() >= Determinism::BatchInvariant;
    if !few || invariant || dv == 0 || longest > SPLIT_LONGEST || capacity < SPLIT_KEYS {
        return None;
    }
    Some(split_by(op, o, Split::of(o)))
}

/// How the split kernel divides its work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Split {
    pub rows: usize,
    pub keys: usize, // of a team and step
    pub splits: usize,
}

impl Split {
    fn of(o: &Attention) -> Split {
        let Sizes { batch, q_len, capacity, kv_heads, .. } = o.sizes();
        let all = q_len * group(o);
        let rows = match all {
            0..=1 => 1,
            2 => 2,
            _ => 4,
        };
        let lanes = lanes(o);
        let packs = batch * kv_heads * all.div_ceil(rows);
        let splits = (SPLIT_GROUPS / packs.max(1)).min(capacity / PART).clamp(2, SPLITS);
        Split { rows, keys: (lanes / rows).min(4), splits }
    }
}

/// Lanes that share a key of up to eight times as many elements.
fn lanes(o: &Attention) -> usize {
    let Sizes { d, dv, .. } = o.sizes();
    d.max(dv).div_ceil(8).next_power_of_two().max(8)
}

pub(super) fn split_by(op: &Op, o: &Attention, by: Split) -> Kernel {
    let dv = o.sizes().dv;
    let values = dv.clamp(64, LONGEST.1).next_power_of_two();
    let make = |quads: bool| {
        let (mut parts, packs) = kernel(op, o, "attention_split", by.rows);
        for (name, value) in [("pitch", 2 + dv), ("splits", by.splits)] {
            parts.whole(name, value);
        }
        parts.scratch = (packs * by.rows * by.splits * (2 + dv)).max(1);
        parts.variant = "attention-split";
        parts.flag("eights", true);
        parts.flag("by_key", true);
        parts.constant("LANES", lanes(o));
        parts.constant("KEYS", by.keys);
        parts.constant("VALUES", values);
        for (name, eights, s) in [("k", "k_eights", &o.k), ("v", "v_eights", &o.v)] {
            let block = s.dtype().is_quantized();
            parts.quad(name, quads && by_quads(s));
            parts.flag(eights, block || (quads && by_quads(s)));
        }
        (parts, packs)
    };
    let (mut parts, packs) = make(true);
    let mut merge = make(false).0;
    merge.flag("merge", true);
    merge.groups = packs * by.rows;
    let (mut otherwise, _) = make(false);
    otherwise.flag("parts", true);
    otherwise.groups = packs * by.splits;
    parts.flag("parts", true);
    parts.groups = packs * by.splits;
    if by_quads(&o.k) || by_quads(&o.v) {
        let mut merge = make(false).0;
        merge.flag("merge", true);
        merge.groups = packs * by.rows;
        otherwise.then = Some(Box::new(merge));
        parts.otherwise = Some(Box::new(otherwise));
    }
    parts.then = Some(Box::new(merge));
    parts
}

/// Whether rows are dense and lie 16 bytes apart and eight elements, if the operand does.
pub(super) fn by_quads(s: &Spec) -> bool {
    let eights = (1..s.rank()).all(|i| s.dim(i) <= 1 || s.stride(i).is_multiple_of(8));
    matches!(s.dtype(), DType::F32 | DType::F16 | DType::BF16)
        && s.stride(0) == 1
        && s.dim(0).is_multiple_of(8)
        && s.dim(0) > 0
        && eights
}
