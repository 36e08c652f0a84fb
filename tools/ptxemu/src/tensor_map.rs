//! Tensor maps: not the driver's, but an encoding of the interpreter's own.

use crate::{cta::*, memory::*, parse::*};

/// What the driver would encode: a tensor of up to four dimensions, innermost first, and the box of its first two that a copy moves.
#[derive(Debug, Clone, Copy)]
pub struct TensorMap {
    pub address: u64,
    pub extents: [u64; 4],
    /// Bytes from one to the next along the second dimension and so on.
    pub strides: [u64; 3],
    pub rows: u64,
    pub columns: u64,
    pub element: u64,
    /// Whether rows of 128 bytes in shared memory have their 16-byte chunks permuted by the row.
    pub swizzled: bool,
}

impl TensorMap {
    /// The 128 bytes that a kernel takes.
    pub fn encoded(&self) -> [u64; 16] {
        let mut words = [0; 16];
        words[0] = self.address;
        words[1..5].copy_from_slice(&self.extents);
        words[5..8].copy_from_slice(&self.strides);
        words[8..12].copy_from_slice(&[self.rows, self.columns, self.element, self.swizzled as u64]);
        words
    }

    fn decoded(words: &[u64; 16]) -> TensorMap {
        TensorMap {
            address: words[0],
            extents: std::array::from_fn(|i| words[1 + i]),
            strides: std::array::from_fn(|i| words[5 + i]),
            rows: words[8],
            columns: words[9],
            element: words[10],
            swizzled: words[11] == 1,
        }
    }

    /// Bytes of a box.
    pub(crate) fn bytes(&self) -> usize {
        (self.rows * self.columns * self.element) as usize
    }

    /// Calls with the address of each element of the box at `at` that lies in the tensor, and its byte in a box at `shared`.
    pub(crate) fn each(&self, at: [i64; 4], shared: usize, mut call: impl FnMut(u64, usize)) {
        let (width, inside) =
            (self.columns * self.element, |d: usize, i: i64| (0..self.extents[d] as i64).contains(&i));
        assert!(
            shared.is_multiple_of(if self.swizzled { 1024 } else { 128 }) && (!self.swizzled || width == 128),
            "a box of rows of {width} bytes at {shared:#x}"
        );
        if !inside(2, at[2]) || !inside(3, at[3]) {
            return;
        }
        let base = self.address + at[2] as u64 * self.strides[1] + at[3] as u64 * self.strides[2];
        for y in 0..self.rows {
            for x in 0..self.columns {
                let (i, j) = (at[0] + x as i64, at[1] + y as i64);
                if inside(0, i) && inside(1, j) {
                    let byte = y * width + x * self.element;
                    let permuted = if self.swizzled { byte ^ (byte >> 7 & 7) << 4 } else { byte };
                    call(base + j as u64 * self.strides[0] + i as u64 * self.element, permuted as usize)
                }
            }
        }
    }
}

impl Cluster<'_> {
    /// A map among the parameters, and where in its tensor.
    pub(crate) fn tensor_map(&self, wi: usize, l: usize, at: &Arg) -> (TensorMap, [i64; 4]) {
        let Arg::Mem2(map, coordinates) = at else { panic!("a tensor map expected") };
        let from = self.v(wi, l, map).checked_sub(PAW).expect("a tensor map among the parameters") as usize;
        assert!(from.is_multiple_of(64), "a tensor map at {from:#x}");
        let words = std::array::from_fn(|i| {
            let bytes = self.par[from + i * 8..][..8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        });
        let mut place = [0; 4];
        for (p, c) in place.iter_mut().zip(coordinates) {
            *p = self.v(wi, l, c) as i32 as i64;
        }
        (TensorMap::decoded(&words), place)
    }

    /// Starts copies of boxes to the shared memory of this block, or of the cluster's named by a mask.
    pub(crate) fn copy_box(&mut self, wi: usize, m: u32, ins: &Ins) {
        let (a, o) = (&ins.args, &ins.op);
        for l in (0..32).filter(|l| m >> l & 1 == 1) {
            let (map, at) = self.tensor_map(wi, l, &a[1]);
            let (block, dst) = self.shared(wi, self.addr(wi, l, &a[0]));
            let (of, bar) = self.shared(wi, self.addr(wi, l, &a[2]));
            assert!(block == of, "a copy and its barrier in two blocks: {}", ins.text);
            let blocks = if o.flag == 1 { self.v(wi, l, &a[3]) } else { 1 << block };
            let mut data = vec![0u8; map.bytes()];
            let n = map.element as usize;
            map.each(at, dst, |from, to| data[to..to + n].copy_from_slice(self.mem.at(from, n).expect("TMA source")));
            for block in (0..self.sm.len()).filter(|b| blocks >> b & 1 == 1) {
                self.sm[block][dst..dst + data.len()].fill(0xff);
                let bar = Self::of_block(block, bar);
                self.tma.push_back(Async { to: (block, dst), data: data.clone(), bar })
            }
        }
    }

    /// Starts copies from this block's shared memory to another's.
    pub(crate) fn copy_there(&mut self, wi: usize, m: u32, ins: &Ins) {
        let a = &ins.args;
        for l in (0..32).filter(|l| m >> l & 1 == 1) {
            let (to, from) = (self.shared(wi, self.addr(wi, l, &a[0])), self.shared(wi, self.addr(wi, l, &a[1])));
            let (bytes, (of, bar)) = (self.v(wi, l, &a[2]) as usize, self.shared(wi, self.addr(wi, l, &a[3])));
            assert!(to.0 == of, "a copy and its barrier in two blocks: {}", ins.text);
            assert!(from.0 == wi / self.warps, "a copy from another block: {}", ins.text);
            assert!([to.1, from.1, bytes].iter().all(|n| n.is_multiple_of(16)), "misaligned: {}", ins.text);
            let data = self.sm[from.0][from.1..from.1 + bytes].to_vec();
            self.sm[to.0][to.1..to.1 + bytes].fill(0xff);
            self.tma.push_back(Async { to, data, bar: Self::of_block(of, bar) })
        }
    }
}
