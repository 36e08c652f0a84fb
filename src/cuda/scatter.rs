use super::kernel::Kernel;
use crate::{
    error::Result,
    op::{Features, Op, Scatter},
};

/// The longest list that a block sorts, as in kernels/common/lists.cuh.
const ROOM: usize = 2048;
/// Names that all blocks together look through instead of making lists.
const FEW: usize = 1 << 19;
/// Blocks that are enough.
const BLOCKS: usize = 256;

pub(super) fn kernels(op: &Op, o: &Scatter) -> Result<Vec<Kernel>> {
    op.require(Features::all())?;
    let (n, d, targets) = (o.x.dim(1), o.out.dim(0), o.out.dim(1));
    let width = width(d, targets);
    let kernel = |entry, blocks| {
        let mut kernel = Kernel::new(op, "scatter", entry);
        for name in ["x", "index", "out", "weight"] {
            kernel.tensor(name);
        }
        lists(&mut kernel, n, targets);
        [d, d.div_ceil(width)].into_iter().for_each(|v| kernel.word(v));
        kernel.pair(width as u32, 0);
        kernel.blocks = if n * d == 0 { 0 } else { blocks };
        kernel
    };
    let mut steps = vec![kernel("scatter", targets * d.div_ceil(width))];
    if room(n, targets) > 0 {
        steps.insert(0, kernel("scatter_lists", n.div_ceil(256)));
        steps.insert(0, kernel("scatter_clear", targets.div_ceil(256)));
    }
    Ok(steps)
}

/// Columns of a block, which are a power of two: all of a row, up to 1024, or fewer where there are few targets.
pub(super) fn width(d: usize, targets: usize) -> usize {
    let whole = d.next_power_of_two().clamp(16, 1024);
    [1024, 256, 64]
        .into_iter()
        .map(|w| whole.min(w))
        .find(|w| targets * d.div_ceil(*w) >= BLOCKS)
        .unwrap_or(whole.min(32))
}

/// Rows that a target's list holds: four times what it has on average; 0 where there are no lists.
pub(super) fn room(n: usize, targets: usize) -> usize {
    if n.saturating_mul(targets) <= FEW {
        return 0;
    }
    (4 * n.div_ceil(targets.max(1))).next_power_of_two().clamp(16, ROOM)
}

/// `Lists` of kernels/common/lists.cuh: of `n` rows that name one of so many targets.
pub(super) fn lists(kernel: &mut Kernel, n: usize, targets: usize) {
    let room = room(n, targets);
    kernel.scratch_address();
    kernel.scratch = if room == 0 { 0 } else { targets.saturating_mul((room + 1) * 4) };
    [n, targets, room].into_iter().for_each(|v| kernel.word(v));
}
