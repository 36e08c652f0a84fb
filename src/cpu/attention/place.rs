//! Where the keys of a tile are, and their rows as f32.

use std::ops::Range;

use super::{
    super::{
        kernel::{Args, Tensor},
        product::Rows,
        row::{Row, padded},
        simd::{Element, Simd, element},
    },
    Job, Work,
    few::{Lines, known},
    tile::KEYS,
};
use crate::dtype::DType;

/// Rows that are asked for before they are read: they lie far apart, where the processor itself looks ahead little.
const AHEAD: usize = 4;
/// Bytes of a line of the cache.
pub(super) const LINE: usize = 64;

/// Where the keys of a tile are.
pub(super) struct Place {
    /// How many.
    pub(super) count: usize,
    /// Indices into the two outer dimensions of k and v, for each key.
    places: [(u32, u32); KEYS],
    paged: bool,
    /// Bit i: key i takes no part at all.
    pub(super) hidden: u64,
    pub(super) kv_head: usize,
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

    /// Where the row of key `i` and a head lies; anywhere where the key is in no page.
    #[inline(always)]
    pub(super) fn row(&self, t: &Tensor, i: usize, head: usize) -> *const u8 {
        let (page, slot) = self.places[i];
        let (block, size) = t.dtype().block();
        let outer = (page as usize).wrapping_mul(t.spec.stride(3));
        let at = outer.wrapping_add(slot as usize * t.spec.stride(2) + head * t.spec.stride(1));
        let bytes = if block == 1 { at.wrapping_mul(size) } else { (at / block).wrapping_mul(size) };
        t.pointer::<u8>().wrapping_add(bytes)
    }

    /// The rows of k or v, for few rows of queries: as they are stored, where they lie so in whole vectors, or decoded into `buffer`.
    ///
    /// # Safety
    /// `buffer` holds `KEYS` padded rows.
    #[inline(always)]
    pub(super) unsafe fn lines<S: Simd>(&self, s: S, t: &Tensor, n: usize, buffer: *mut f32) -> Lines {
        let mut lines = Lines { at: [buffer.cast(); KEYS], count: self.count, dtype: t.dtype() };
        // SAFETY: the rows exist, but for those in no page: of zero bytes, whatever the type.
        unsafe {
            if known(t.dtype()) && t.spec.stride(0) == 1 && n.is_multiple_of(S::LANES) {
                if self.paged {
                    buffer.write_bytes(0, padded(n));
                }
                for (i, to) in lines.at.iter_mut().enumerate().take(self.count) {
                    if !self.paged || self.hidden >> i & 1 == 0 {
                        *to = self.row(t, i, self.kv_head);
                    }
                }
            } else {
                let rows = self.read(s, t, n, buffer);
                for (i, to) in lines.at.iter_mut().enumerate().take(self.count) {
                    *to = rows.pointer.add(i * rows.stride).cast();
                }
                lines.dtype = DType::F32;
            }
        }
        lines
    }

    /// The keys' rows of k or v as f32, decoded into `buffer`: many rows read them often, and rows that are a power of two apart
    /// evict each other from the cache.
    ///
    /// # Safety
    /// `buffer` holds `KEYS` padded rows.
    #[inline(always)]
    pub(super) unsafe fn read<S: Simd>(&self, s: S, t: &Tensor, n: usize, buffer: *mut f32) -> Rows {
        let (outer, inner, head) = (t.spec.stride(3), t.spec.stride(2), self.kv_head * t.spec.stride(1));
        // SAFETY: the rows exist, but for those in no page.
        unsafe {
            let plain = t.spec.stride(0) == 1 && n.is_multiple_of(S::LANES);
            let bytes = t.dtype().bytes(n).unwrap_or(0);
            let row = |(page, slot): (u32, u32)| Row::at(t, page as usize * outer + slot as usize * inner + head);
            for (i, &place) in self.places.iter().enumerate().take(self.count) {
                let to = buffer.add(i * padded(n));
                if self.paged && self.hidden >> i & 1 == 1 {
                    to.write_bytes(0, padded(n));
                    continue;
                }
                if i + AHEAD < self.count && !self.paged {
                    let next = row(self.places[i + AHEAD]).pointer();
                    for line in (0..bytes).step_by(LINE) {
                        s.prefetch(next.wrapping_add(line));
                    }
                }
                let row = row(place);
                // A call for each row takes as long as its conversion.
                let done = if plain {
                    element!(t.dtype(), T => convert::<S, T>(s, row.pointer().cast(), n, to))
                } else {
                    None
                };
                if done.is_none() {
                    row.load(s, n, to);
                }
            }
        }
        Rows { pointer: buffer, stride: padded(n) }
    }
}

/// # Safety
/// `from` is readable and `to` writable for `n` numbers, whole vectors.
#[inline(always)]
unsafe fn convert<S: Simd, T: Element>(s: S, from: *const T, n: usize, to: *mut f32) {
    for i in (0..n).step_by(S::LANES) {
        // SAFETY: i stays below n.
        unsafe { s.store(to.add(i), T::load(s, from.add(i))) };
    }
}
