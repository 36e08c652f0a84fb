//! Products of a whole warpgroup, and what must stand around them.

use crate::{cta::*, decode::*, mma::short_sum, parse::*, value::*};

impl Cluster<'_> {
    /// One product of four warps, at once: that it is asynchronous shows in `product_begins`.
    pub(crate) fn wgmma(&mut self, g: usize, ins: &Ins) {
        let [_, n, depth] = ins.op.m;
        let bytes = 32 / depth as usize;
        let (Arg::Vec(ds), left) = (&ins.args[0], &ins.args[1]) else { panic!() };
        let imm = |i: usize| ins.args.get(i).map_or(0, |a| self.v(g, 0, a));
        let scale = self.v(g, 0, &ins.args[3]) & 1;
        assert!((imm(4), imm(5)) == (1, 1), "a negated operand is not supported: {}", ins.text);
        let number = |v: u16| if ins.op.t == T::BF16 { b2f(v) } else { h2f(v) };
        // An element of a tile in shared memory; a transposed one has 64 of its rows in a line of 128 bytes, lines are k.
        let sm = &self.sm[g / self.warps];
        let tile = |descriptor: u64, transposed: bool, r: usize, k: usize| {
            let [start, leading, stride] = [0, 16, 32].map(|at| ((descriptor >> at & 0x3fff) << 4) as usize);
            assert!(descriptor >> 62 == 1, "only 128B swizzle: {}", ins.text);
            let mut a = match transposed {
                false => start + r / 8 * stride + r % 8 * 128 + k * bytes,
                true => start + r / 64 * leading + r % 64 * 2 + k / 8 * stride + k % 8 * 128,
            };
            a ^= (a >> 7 & 7) << 4;
            if bytes == 1 { e2f(sm[a]) } else { number(u16::from_le_bytes([sm[a], sm[a + 1]])) }
        };
        let in_registers = matches!(left, Arg::Vec(_));
        let element = |r: usize, k: usize| match left {
            Arg::Vec(pairs) => {
                let pair = self.v(g + r / 16, r % 8 * 4 + k % 8 / 2, &pairs[r % 16 / 8 + k / 8 * 2]);
                number((pair >> (k % 2 * 16)) as u16)
            }
            _ => tile(self.v(g, 0, left), imm(6) == 1, r, k),
        };
        let (right, transposed) = (self.v(g, 0, &ins.args[2]), imm(7 - in_registers as usize) == 1);
        let rows = |count: usize, at: &dyn Fn(usize, usize) -> f32| -> Vec<Vec<f32>> {
            (0..count).map(|r| (0..depth as usize).map(|k| at(r, k)).collect()).collect()
        };
        let (ma, mb) = (rows(64, &element), rows(n as usize, &|r, k| tile(right, transposed, r, k)));
        for w in 0..4 {
            for l in 0..32 {
                for (i, d) in ds.iter().enumerate() {
                    let (r, c) = (w * 16 + l / 4 + (i >> 1 & 1) * 8, i / 4 * 8 + l % 4 * 2 + (i & 1));
                    let s0 = if scale == 1 { f(self.v(g + w, l, d)) } else { 0. };
                    let products = ma[r].iter().zip(&mb[c]).map(|(a, b)| a * b);
                    let s = if bytes == 1 { short_sum(s0, products) } else { products.fold(s0, |s, p| s + p) };
                    self.set(g + w, l, d, fb(s))
                }
            }
        }
    }
}

impl Warp {
    /// `wgmma.wait_group`: all but the last `keep` groups are done.
    pub(crate) fn wait_for_products(&mut self, keep: u32) {
        let open = self.group;
        self.flight.iter_mut().filter(|g| **g > 0 && **g + keep < open).for_each(|g| *g = 0);
    }
}

impl Cluster<'_> {
    /// The registers of a product must be fenced if they were written, and belong to the product until it is waited for.
    pub(crate) fn product_begins(&mut self, wi: usize, ins: &Ins) {
        let Arg::Vec(accumulators) = &ins.args[0] else { panic!("accumulators expected: {}", ins.text) };
        let w = &mut self.w[wi];
        for a in accumulators {
            let Arg::Reg(r) = a else { continue };
            let r = *r as usize;
            assert!(
                w.flight[r] > 0 || !w.dirty[r],
                "no wgmma.fence between a write of an accumulator and {}",
                ins.text
            );
            w.flight[r] = w.group;
        }
        let Arg::Vec(left) = &ins.args[1] else { return };
        for a in left {
            let Arg::Reg(r) = a else { continue };
            let r = *r as usize;
            assert!(!w.dirty[r], "no wgmma.fence between a write of a fragment and {}", ins.text);
            w.flight[r] = w.group;
        }
    }

    /// No other instruction may touch a register that a product still writes.
    pub(crate) fn registers_at_rest(&mut self, wi: usize, ins: &Ins) {
        fn registers(a: &Arg, each: &mut dyn FnMut(u32)) {
            match a {
                Arg::Reg(r) | Arg::NotReg(r) => each(*r),
                Arg::Pair(a, b) => [*a, *b].into_iter().for_each(each),
                Arg::Vec(all) => all.iter().for_each(|a| registers(a, each)),
                Arg::Mem(base, _) => registers(base, each),
                Arg::Mem2(base, all) => {
                    registers(base, each);
                    all.iter().for_each(|a| registers(a, each));
                }
                _ => {}
            }
        }
        let w = &mut self.w[wi];
        for (i, a) in ins.args.iter().enumerate() {
            let written = i == 0 && !matches!(a, Arg::Mem(..) | Arg::Mem2(..));
            registers(a, &mut |r| {
                let r = r as usize;
                assert!(w.flight[r] == 0, "no wgmma.wait_group between a product and {}", ins.text);
                w.dirty[r] |= written;
            });
        }
    }
}
