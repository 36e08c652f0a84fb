//! Where the keys of a tile are, and their rows as f32.

use std::ops::Range;

use super::{
    super::{
        kernel::{Args, Tensor},
        product::Rows,
        row::{Row, padded},
        simd::Simd,
    },
    Job, Work,
    tile::KEYS,
};

/// Where the keys of a tile are.
pub(super) struct Place {
    /// How many.
    count: usize,
    /// Indices into the two outer dimensions of k and v, for each key.
    places: [(u32, u32); KEYS],
    paged: bool,
    /// Bit i: key i takes no part at all.
    pub(super) hidden: u64,
    kv_head: usize,
}

impl Place {
    /// # Safety
    /// The keys are the sequence's, at most `KEYS`.
    pub(super) unsafe fn find(job: &Job, args: &Args, work: &Work, keys: Range<usize>) -> Place {
        let op = &job.op;
        let paged = op.block_table.is_some();
        let mut place = Place { count: keys.len(), places: [(0, 0); KEYS], paged, hidden: 0, kv_head: work.kv_head };
        let (table, mask, page) = (args.get("block_table"), args.get("key_mask"), op.k.dim(2));
        for (i, j) in keys.enumerate() {
            place.places[i] = (work.batch as u32, (work.keys.start + j) as u32);
            if let Some(table) = &table {
                // SAFETY: the table is i32, with an entry for each page of the sequence.
                let at = unsafe { *table.at::<i32>(work.batch, j / page) };
                place.places[i] = (at as u32, (j % page) as u32);
                place.hidden |= u64::from(usize::try_from(at).is_err() || at as usize >= op.k.dim(3)) << i;
            }
            if let Some(mask) = &mask {
                // SAFETY: the mask is u8, with an entry for each key.
                place.hidden |= u64::from(unsafe { *mask.at::<u8>(work.batch, j) } == 0) << i;
            }
        }
        place
    }

    /// The keys' rows of k or v as f32, decoded into `buffer`; for few rows, which read them once, in place where they lie so in
    /// whole vectors. (Many rows read them often, and rows that are a power of two apart evict each other from the cache.)
    ///
    /// # Safety
    /// `buffer` holds `KEYS` padded rows.
    #[inline(always)]
    pub(super) unsafe fn read<S: Simd>(&self, s: S, t: &Tensor, n: usize, few: bool, buffer: *mut f32) -> Rows {
        let (outer, inner, head) = (t.spec.stride(3), t.spec.stride(2), self.kv_head * t.spec.stride(1));
        // SAFETY: the rows exist, but for those in no page.
        unsafe {
            if few && !self.paged && n.is_multiple_of(S::LANES) {
                let (batch, first) = self.places[0];
                let row = Row::at(t, batch as usize * outer + first as usize * inner + head);
                if let Some(pointer) = row.direct() {
                    return Rows { pointer: pointer.cast_mut(), stride: inner };
                }
            }
            for (i, &(page, slot)) in self.places.iter().enumerate().take(self.count) {
                let to = buffer.add(i * padded(n));
                if self.paged && self.hidden >> i & 1 == 1 {
                    to.write_bytes(0, padded(n));
                } else {
                    Row::at(t, page as usize * outer + slot as usize * inner + head).load(s, n, to);
                }
            }
        }
        Rows { pointer: buffer, stride: padded(n) }
    }
}
