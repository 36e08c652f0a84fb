//! Which rows name each target, as chains through scratch memory: made in one pass over the indices, walked in the rows' order.

use super::kernel::Tensor;

/// The end of a chain.
const END: usize = usize::MAX;

/// For each target the rows that name it; one chain more holds the rows that name none.
///
/// ```text
/// first[targets + 1]   next[rows]
/// ```
pub(super) struct Chains<'a> {
    first: &'a [usize],
    next: &'a [usize],
}

impl<'a> Chains<'a> {
    /// Bytes of scratch memory needed.
    pub(super) fn scratch(rows: usize, targets: usize) -> usize {
        rows.saturating_add(targets).saturating_add(1).saturating_mul(size_of::<usize>())
    }

    /// Reads an i32 operand with one index for each row.
    ///
    /// # Safety
    /// `scratch` is as many bytes as [`Chains::scratch`] says, aligned, and nobody else's for `'a`.
    pub(super) unsafe fn build(index: Tensor, targets: usize, scratch: *mut usize) -> Chains<'a> {
        let rows = index.spec.dim(0);
        // SAFETY: the caller's promise.
        let (first, next) = unsafe {
            scratch.write_bytes(0xff, targets + 1); // END
            let first = std::slice::from_raw_parts_mut(scratch, targets + 1);
            scratch.add(targets + 1).write_bytes(0xff, rows);
            (first, std::slice::from_raw_parts_mut(scratch.add(targets + 1), rows))
        };
        for row in (0..rows).rev() {
            // SAFETY: the index has this element.
            let target = usize::try_from(unsafe { *index.at::<i32>(0, row) }).map_or(targets, |t| t.min(targets));
            next[row] = std::mem::replace(&mut first[target], row);
        }
        Chains { first, next }
    }

    /// The rows that name a target, in order; those that name none for `target` = `targets`.
    #[inline(always)]
    pub(super) fn of(&self, target: usize) -> impl Iterator<Item = usize> + Clone + '_ {
        let link = |&row: &usize| (row != END).then_some(row);
        std::iter::successors(link(&self.first[target]), move |&row| link(&self.next[row]))
    }
}
