//! Appending to a cache. Tasks share the cache's rows among themselves, not the tokens: of two tokens that name the same row the
//! later one is then later in time too, without anybody keeping a table.

use std::sync::Arc;

use super::{
    Device,
    kernel::{Args, Kernel, Tensor},
    pool::Pool,
    row::{Row, padded},
    simd::{Simd, simd},
};
use crate::{
    backend::Plans,
    error::Result,
    op::{Determinism, Features, KvAppend, kv_append::cache_rows},
};

/// Tasks at most: each looks at every slot.
pub(super) const TASKS: usize = 32;

pub(super) fn plan(device: &Arc<Device>, op: &KvAppend) -> Result<Plans> {
    let op = *op;
    let known = Features::STRIDED | Features::PAGED;
    let kernel = Kernel::new(device, op, format_args!("kv_append-{}", op.cache.dtype()), known)?;
    let (tokens, heads, d) = (op.x.dim(2), op.x.dim(1), op.x.dim(0));
    let tasks = if heads == 0 || d == 0 { 0 } else { tokens.min(TASKS) };
    let scratch = padded(d).saturating_mul(size_of::<f32>()).saturating_mul(device.info.threads);
    kernel.determinism(Determinism::BatchInvariant).scratch(scratch).plan(move |args: &Args, pool: &mut Pool| {
        let (x, cache, slots) = (args.of("x"), args.of("cache"), args.of("slots"));
        pool.run(tasks, |task, thread| {
            // SAFETY: each thread has its own part of the scratch memory.
            let row = unsafe { args.scratch::<f32>().add(thread * padded(d)) };
            for t in 0..tokens {
                let Some(slot) = slot(&slots, t, cache_rows(&op.cache)).filter(|s| s % tasks == task) else { continue };
                // SAFETY: the slot is a row of the cache, and this task's alone.
                simd!(args.isa, s => unsafe { copy(s, (&x, t), (&cache, slot), row) })
            }
        })
    })
}

/// The cache row that a token goes to, if any.
pub(super) fn slot(slots: &Tensor, t: usize, rows: usize) -> Option<usize> {
    // SAFETY: slots are i32, one for each token.
    let slot = unsafe { *slots.pointer::<i32>().add(t * slots.spec.stride(0)) };
    usize::try_from(slot).ok().filter(|&s| s < rows)
}

/// # Safety
/// Token and slot exist, `row` is a padded row.
#[inline(always)]
unsafe fn copy<S: Simd>(s: S, (x, t): (&Tensor, usize), (cache, slot): (&Tensor, usize), row: *mut f32) {
    let (heads, d) = (x.spec.dim(1), x.spec.dim(0));
    for h in 0..heads {
        // SAFETY: rows of x and the cache count tokens and slots through, heads innermost.
        unsafe {
            Row::of(x, t * heads + h).load(s, d, row);
            Row::of(cache, slot * heads + h).store(s, d, row);
        }
    }
}
