use super::kernel::Kernel;
use crate::{
    error::Result,
    op::{Features, Op, TopK},
};

/// Elements that a block holds, and keys that it keeps, as in kernels/common/select.cuh.
const HELD: usize = 4096;
pub(super) const MOST: usize = 2048;
/// Keys left by more blocks than are needed, of which choosing takes less than those blocks save: of 131072 elements 64 take 24 us by 4096 keys, 65 14 by
/// 2080.
const SOON: usize = 2560;

/// Elements and choices of a row that a warp has.
const SHORT: (usize, usize) = (256, 32);

pub(super) fn kernels(op: &Op, o: &TopK, processors: usize) -> Result<Vec<Kernel>> {
    op.require(Features::all())?;
    let (rows, n, k) = o.dims();
    let start = |entry| {
        let mut kernel = Kernel::new(op, "top_k", entry);
        kernel.tensor("x");
        kernel.tensor("values");
        kernel.tensor("indices");
        kernel
    };
    let rest = |kernel: &mut Kernel| {
        kernel.word(rows);
        kernel.pair(u32::from(o.softmax), 0);
    };
    // All of a row in one launch.
    let whole = |entry, parts, blocks| {
        let mut kernel = start(entry);
        kernel.scratch_address();
        [0, 0, n, k, n, parts].into_iter().for_each(|v| kernel.word(v));
        kernel.pair(1, 1);
        rest(&mut kernel);
        kernel.blocks = if k == 0 { 0 } else { blocks };
        kernel
    };
    if n <= SHORT.0 && k <= SHORT.1 {
        return Ok(vec![whole("top_k_short", 1, rows.div_ceil(8))]);
    }
    if k <= MOST {
        return Ok(narrowed([rows, n, k], processors, || start("top_k"), rest));
    }
    let parts = n.div_ceil(256);
    let mut steps = vec![whole("top_k_places", parts, rows * parts)];
    steps.extend(o.softmax.then(|| whole("top_k_shares", 1, rows)));
    Ok(steps)
}

/// Launches of which each leaves the best `k` of every block to the next, until a block has a row: `start` a kernel's tensors, `Narrow` of
/// kernels/common/select.cuh, and the `rest`. `k` is at most `MOST`.
pub(super) fn narrowed(
    [rows, n, k]: [usize; 3],
    processors: usize,
    start: impl Fn() -> Kernel,
    rest: impl Fn(&mut Kernel),
) -> Vec<Kernel> {
    let parts_of = |n: usize, chunk: usize| n.div_ceil(chunk).max(1);
    // More blocks, as far as one then has all that they leave, and is soon done with it.
    let divided = |chunk: &usize| {
        let parts = parts_of(n, *chunk);
        parts == 1 || parts * k <= SOON && rows * parts <= 4 * processors
    };
    let mut chunk = [1024, 2048].into_iter().find(divided).unwrap_or(HELD);
    let mut steps: Vec<Kernel> = Vec::new();
    // Where in the scratch memory a launch reads and writes keys: at its beginning, and behind what the first leaves there, in turns.
    let left = |parts: usize| rows.saturating_mul(parts * k);
    let (mut len, mut from, mut to) = (n, left(parts_of(n, chunk)), 0);
    let room = from.saturating_add(left(parts_of(parts_of(n, chunk) * k, HELD)));
    loop {
        let parts = parts_of(len, chunk);
        let mut kernel = start();
        kernel.scratch_address();
        [from, to, len, k, chunk, parts].into_iter().for_each(|v| kernel.word(v));
        kernel.pair(u32::from(steps.is_empty()), u32::from(parts == 1));
        rest(&mut kernel);
        kernel.blocks = if k == 0 { 0 } else { rows * parts };
        kernel.scratch = if steps.is_empty() && parts == 1 { 0 } else { room.saturating_mul(8) };
        steps.push(kernel);
        if parts == 1 {
            return steps;
        }
        (len, chunk) = (parts * k, HELD);
        (from, to) = (to, from);
    }
}
