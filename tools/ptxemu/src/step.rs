//! One instruction of one warp.

use crate::{cta::*, decode::*, memory::*, parse::*, value::*};

impl Cluster<'_> {
    /// What changes memory, ends or lets others begin comes after the wait for the launches before.
    fn has_waited(&self, wi: usize, lanes: u32, ins: &Ins) {
        assert!(lanes & !self.w[wi].waited == 0, "before it has waited for the launches before: {}", ins.text);
    }

    /// one instruction of one warp; false = the warp cannot advance now
    pub(crate) fn step(&mut self, wi: usize) -> bool {
        let w = &mut self.w[wi];
        if w.park != 0 && w.live & !w.wait & !w.park == 0 {
            w.park = 0
        }
        let ready = w.live & !w.wait & !w.park;
        if ready == 0 || w.wg.is_some() {
            return false;
        }
        let w = &self.w[wi];
        let lanes = |m: u32| (0..32usize).filter(move |l| m >> l & 1 == 1);
        let first = w.pc[ready.trailing_zeros() as usize];
        let (pc, at) = if w.pc == [first; 32] {
            (first, ready) // as mostly
        } else {
            let pc = lanes(ready).map(|l| w.pc[l]).min().unwrap();
            (pc, lanes(ready).filter(|&l| w.pc[l] == pc).map(|l| 1 << l).sum())
        };
        let k = self.k;
        let ins = &k.code[pc as usize];
        let (o, a) = (&ins.op, &ins.args);
        self.steps += 1;
        if !matches!(o.k, K::Bra | K::MbTry) {
            self.prog += 1
        }
        let mut m = at;
        if let Some((r, want)) = ins.guard {
            m = lanes(at).filter(|&l| (w.r[r as usize * 32 + l] & 1 == 1) == want).map(|l| 1 << l).sum()
        }
        if at != w.live
            && matches!(o.k, K::Mma | K::Ldmatrix | K::Wgmma | K::Shfl | K::Vote | K::Elect | K::BarWarp)
            && w.live & !w.wait & !at != 0
            && (w.park == 0 || lanes(w.live & !at).any(|l| w.park >> l & 1 == 0 || w.pc[l] == pc))
        {
            self.w[wi].park = if w.live & !at & !w.park == 0 { 0 } else { w.park | at };
            return true;
        } // wait for the rest of the warp to converge here
        if at == !0 {
            self.w[wi].pc = [pc + 1; 32];
        } else {
            lanes(at).for_each(|l| self.w[wi].pc[l] = pc + 1);
        }
        let full = |m: u32| assert!(m == !0, "warp-collective executed by mask {m:#x}: {}", ins.text);
        if k.wgmma && o.k != K::Wgmma {
            self.registers_at_rest(wi, ins);
        }
        match o.k {
            K::Nop => {}
            K::Waits => self.w[wi].waited |= m,
            K::LetsNext => self.has_waited(wi, m, ins),
            K::Registers => {
                let block = wi / self.warps;
                self.w[wi].registers = self.v(wi, 0, &a[0]) as u32;
                let held: u32 = self.w[block * self.warps..(block + 1) * self.warps].iter().map(|w| w.registers).sum();
                let first = registers_at_first(self.ntid, self.k.resident);
                let begun = first * self.warps as u32;
                // What others are yet to give back may still be taken: wrong is what remains when all have asked.
                let unasked = self.w.iter().any(|w| w.registers == first);
                assert!(unasked || held <= begun, "{held} registers of {begun}: {}", ins.text);
            }
            K::WgFence => self.w[wi].dirty.fill(false),
            K::WgCommit => self.w[wi].group += 1,
            K::WgWait => {
                let keep = self.v(wi, 0, &a[0]) as u32;
                self.w[wi].wait_for_products(keep);
            }
            K::Bra => {
                let Arg::Label(t) = a[0] else { panic!() };
                for l in lanes(m) {
                    self.w[wi].pc[l] = t
                }
            }
            K::Ret => {
                self.has_waited(wi, m, ins);
                self.w[wi].live &= !m;
                self.bar_check()
            }
            K::Bar => {
                let id = self.v(wi, 0, &a[0]) as usize;
                let n = if a.len() > 1 { self.v(wi, 0, &a[1]) as u32 } else { 0 };
                let bar = &mut self.bars[wi / self.warps][id];
                *bar = (bar.0 + m.count_ones(), n);
                if o.flag == 0 {
                    self.w[wi].wait |= m;
                    for l in lanes(m) {
                        self.w[wi].wbar[l] = id as u8
                    }
                }
                self.bar_check()
            }
            K::BarWarp => {}
            K::ClusterArrive => {
                for l in lanes(m) {
                    self.w[wi].arrived[l] = self.met.1;
                }
                self.met.0 += m.count_ones();
                self.bar_check()
            }
            K::ClusterWait => {
                for l in lanes(m).filter(|&l| self.w[wi].arrived[l] == self.met.1).collect::<Vec<_>>() {
                    self.w[wi].wait |= 1 << l;
                    self.w[wi].wbar[l] = CLUSTER
                }
            }
            K::Mapa => {
                for l in lanes(m) {
                    let (at, rank) = (self.shared(wi, self.v(wi, l, &a[1])).1, self.v(wi, l, &a[2]) as usize);
                    assert!(rank < self.sm.len(), "no block of rank {rank}: {}", ins.text);
                    self.set(wi, l, &a[0], Self::of_block(rank, at))
                }
            }
            K::Mov if matches!(a[0], Arg::Vec(_)) || matches!(a.get(1), Some(Arg::Vec(_))) => {
                for l in lanes(m) {
                    // pack / unpack
                    let tot = match o.t {
                        T::U(n) | T::S(n) => n as usize * 8,
                        T::F32 => 32,
                        _ => 64,
                    };
                    match (&a[0], &a[1]) {
                        (d, Arg::Vec(s)) => {
                            let b = tot / s.len();
                            let v = s
                                .iter()
                                .enumerate()
                                .fold(0, |acc, (i, x)| acc | zx(self.v(wi, l, x), (b / 8) as u8) << (i * b));
                            self.set(wi, l, d, v)
                        }
                        (Arg::Vec(ds), s) => {
                            let b = tot / ds.len();
                            let v = self.v(wi, l, s);
                            for (i, x) in ds.iter().enumerate() {
                                self.set(wi, l, x, zx(v >> (i * b), (b / 8) as u8))
                            }
                        }
                        _ => panic!(),
                    }
                }
            }
            K::Mov => {
                for l in lanes(m) {
                    let v = self.v(wi, l, &a[1]);
                    self.set(wi, l, &a[0], v)
                }
            }
            K::MulWide | K::MadWide => {
                for l in lanes(m) {
                    let (x, y) = (self.v(wi, l, &a[1]), self.v(wi, l, &a[2]));
                    let p = match o.t {
                        T::S(n) => (sx(x, n) * sx(y, n)) as u64,
                        T::U(n) => zx(x, n) * zx(y, n),
                        _ => panic!(),
                    };
                    let v = if o.k == K::MadWide { p.wrapping_add(self.v(wi, l, &a[3])) } else { p };
                    self.set(wi, l, &a[0], v)
                }
            }
            K::Setp => {
                for l in lanes(m) {
                    let (x, y) = (self.v(wi, l, &a[1]), self.v(wi, l, &a[2]));
                    use std::cmp::Ordering::*;
                    let od = match o.t {
                        T::F32 => f(x).partial_cmp(&f(y)),
                        T::F64 => d(x).partial_cmp(&d(y)),
                        T::F16 => h2f(x as u16).partial_cmp(&h2f(y as u16)),
                        T::S(n) => Some(sx(x, n).cmp(&sx(y, n))),
                        T::U(n) => Some(zx(x, n).cmp(&zx(y, n))),
                        _ => panic!(),
                    };
                    let mut r = match (CMP[o.cmp as usize], od) {
                        ("eq" | "equ", Some(Equal))
                        | ("ne" | "neu", Some(Less | Greater))
                        | ("lt" | "lo" | "ltu", Some(Less))
                        | ("le" | "ls" | "leu", Some(Less | Equal))
                        | ("gt" | "hi" | "gtu", Some(Greater))
                        | ("ge" | "hs" | "geu", Some(Greater | Equal))
                        | ("neu" | "equ" | "ltu" | "gtu" | "leu" | "geu" | "nan", None)
                        | ("num", Some(_)) => 1u64,
                        _ => 0,
                    };
                    if o.flag != 0 {
                        let c = self.v(wi, l, &a[3]);
                        r = if o.flag == 1 { r & c } else { r | c }
                    }
                    if let Arg::Pair(p, q) = a[0] {
                        self.set(wi, l, &Arg::Reg(p), r);
                        self.set(wi, l, &Arg::Reg(q), r ^ 1)
                    } else {
                        self.set(wi, l, &a[0], r)
                    }
                }
            }
            K::Selp => {
                for l in lanes(m) {
                    let v = if self.v(wi, l, &a[3]) & 1 == 1 { self.v(wi, l, &a[1]) } else { self.v(wi, l, &a[2]) };
                    self.set(wi, l, &a[0], v)
                }
            }
            K::Cvt => {
                for l in lanes(m) {
                    let x = self.v(wi, l, &a[1]);
                    let v = match (o.t, o.st) {
                        (T::U(n) | T::S(n), T::S(s)) => zx(sx(x, s) as u64, n),
                        (T::U(n) | T::S(n), T::U(s)) => zx(zx(x, s), n),
                        (T::F32, T::S(s)) => fb(sx(x, s) as f32),
                        (T::F32, T::U(s)) => fb(zx(x, s) as f32),
                        (T::F32, T::F16) => fb(h2f(x as u16)),
                        (T::F32, T::BF16) => fb(b2f(x as u16)),
                        (T::F16, T::F32) => f2h(f(x)) as u64,
                        (T::BF16, T::F32) => f2b(f(x)) as u64,
                        (T::F16, T::S(s)) => f2h(sx(x, s) as f32) as u64,
                        (T::F64, T::F32) => (f(x) as f64).to_bits(),
                        (T::F32, T::F64) => fb(d(x) as f32),
                        (T::F32, T::F32) => fb(match o.flag {
                            1 => f(x).trunc(),
                            2 => f(x).round_ties_even(),
                            3 => f(x).floor(),
                            4 => f(x).ceil(),
                            5 if f(x).is_nan() => 0.0,
                            5 => f(x).clamp(0.0, 1.0),
                            _ => f(x),
                        }),
                        (T::S(n) | T::U(n), T::F32) => {
                            let whole = match o.flag {
                                2 => f(x).round_ties_even(),
                                3 => f(x).floor(),
                                4 => f(x).ceil(),
                                _ => f(x).trunc(),
                            };
                            saturated(whole, n, matches!(o.t, T::S(_)))
                        }
                        p => panic!("cvt {p:?}"),
                    };
                    self.set(wi, l, &a[0], v)
                }
            }
            K::CvtPack => {
                for l in lanes(m) {
                    let (h, lo) = (f(self.v(wi, l, &a[1])), f(self.v(wi, l, &a[2])));
                    let v = if o.t == T::BF16x2 {
                        (f2b(h) as u64) << 16 | f2b(lo) as u64
                    } else {
                        (f2h(h) as u64) << 16 | f2h(lo) as u64
                    };
                    self.set(wi, l, &a[0], v)
                }
            }
            K::Cvta => {
                for l in lanes(m) {
                    let x = self.v(wi, l, &a[1]);
                    let b = match o.sp {
                        Sp::Shared => SHW,
                        Sp::Param => PAW,
                        Sp::Local => LOW,
                        _ => 0,
                    };
                    let v = if o.flag == 1 { x.wrapping_sub(b) } else { x.wrapping_add(b) };
                    self.set(wi, l, &a[0], v)
                }
            }
            K::Ld | K::St => {
                let (t, sz) = match o.st {
                    T::U(n) => (false, n),
                    T::S(n) => (true, n),
                    T::F16 | T::BF16 => (false, 2),
                    T::F32 | T::F16x2 => (false, 4),
                    _ => (false, 8),
                };
                let n = o.n as usize;
                let (ma, va) = if o.k == K::Ld { (&a[1], &a[0]) } else { (&a[0], &a[1]) };
                for l in lanes(m) {
                    let ad = self.addr(wi, l, ma);
                    let param = match o.sp {
                        Sp::Param => Some(ad),
                        Sp::Gen if o.k == K::Ld && (PAW..LOW).contains(&ad) => Some(ad - PAW),
                        _ => None,
                    };
                    let regs = if let Arg::Vec(v) = va { v } else { std::slice::from_ref(va) };
                    if let Some(ad) = param {
                        let b = self.par;
                        for (i, r) in regs.iter().enumerate() {
                            let mut t8 = [0; 8];
                            t8[..sz as usize].copy_from_slice(&b[ad as usize + i * sz as usize..][..sz as usize]);
                            self.set(wi, l, r, u64::from_le_bytes(t8))
                        }
                        continue;
                    }
                    let shm = match o.sp {
                        Sp::Shared => Some(ad & 0xffff_ffff),
                        Sp::Gen if (SHW..PAW).contains(&ad) => Some(ad - SHW),
                        _ => None,
                    };
                    if let Some(x) = shm {
                        self.touch(x as usize, n * sz as usize, wi, o.k == K::St)
                    } else if o.k == K::St && o.sp != Sp::Local {
                        self.has_waited(wi, 1 << l, ins)
                    }
                    if o.k == K::Ld {
                        let mut b = [0; 32];
                        b[..n * sz as usize].copy_from_slice(self.bytes(o.sp, ad, n * sz as usize, wi, l));
                        for (i, r) in regs.iter().enumerate() {
                            let mut t8 = [0; 8];
                            t8[..sz as usize].copy_from_slice(&b[i * sz as usize..][..sz as usize]);
                            let v = u64::from_le_bytes(t8);
                            self.set(wi, l, r, if t { sx(v, sz) as u64 } else { v })
                        }
                    } else {
                        let mut b = [0; 32];
                        for (i, r) in regs.iter().enumerate() {
                            b[i * sz as usize..][..sz as usize]
                                .copy_from_slice(&self.v(wi, l, r).to_le_bytes()[..sz as usize]);
                        }
                        self.bytes(o.sp, ad, n * sz as usize, wi, l).copy_from_slice(&b[..n * sz as usize])
                    }
                }
            }
            K::Shfl => {
                let src: Vec<u64> = (0..32).map(|l| self.v(wi, l, &a[1])).collect();
                for l in lanes(m) {
                    let (b, c) = (self.v(wi, l, &a[2]) as usize, self.v(wi, l, &a[3]) as usize);
                    let (seg, cl) = (c >> 8 & 31, c & 31);
                    let (lo, hi) = (l & seg, (l & seg) | (cl & !seg));
                    let (j, ok) = match o.flag {
                        0 => (l ^ b, (l ^ b) <= hi),
                        1 => (l + b, l + b <= hi),
                        2 => (l.wrapping_sub(b), l >= b && l - b >= (l & seg)),
                        _ => (lo | (b & !seg & 31), (lo | (b & !seg & 31)) <= hi),
                    };
                    let j = if ok { j } else { l };
                    assert!(m >> j & 1 == 1, "shfl reads inactive lane {j}: {}", ins.text);
                    if let Arg::Pair(r, p) = a[0] {
                        self.set(wi, l, &Arg::Reg(r), src[j]);
                        self.set(wi, l, &Arg::Reg(p), ok as u64)
                    } else {
                        self.set(wi, l, &a[0], src[j])
                    }
                }
            }
            K::Vote => {
                let votes: u32 = lanes(m).filter(|&l| self.v(wi, l, &a[1]) & 1 == 1).map(|l| 1 << l).sum();
                for l in lanes(m) {
                    let asked = self.v(wi, l, &a[2]) as u32;
                    assert!(asked == m, "vote of {asked:#x} by lanes {m:#x}: {}", ins.text);
                    self.set(wi, l, &a[0], votes as u64)
                }
            }
            K::Elect => {
                let Arg::Pair(lane, one) = a[0] else { panic!("a lane and a predicate expected: {}", ins.text) };
                let first = m.trailing_zeros() as usize;
                for l in lanes(m) {
                    let asked = self.v(wi, l, &a[1]) as u32;
                    assert!(asked == m, "a lane of {asked:#x} elected by lanes {m:#x}: {}", ins.text);
                    self.set(wi, l, &Arg::Reg(lane), first as u64);
                    self.set(wi, l, &Arg::Reg(one), (l == first) as u64)
                }
            }
            K::Atom => {
                let T::U(n) = o.t else { panic!() };
                let (at, by) = if o.flag == 1 { (0, 1) } else { (1, 2) };
                for l in lanes(m) {
                    let (ad, v) = (self.addr(wi, l, &a[at]), self.v(wi, l, &a[by]));
                    let shared = match o.sp {
                        Sp::Shared => Some(ad & 0xffff_ffff),
                        Sp::Gen if (SHW..PAW).contains(&ad) => Some(ad - SHW),
                        _ => None,
                    };
                    if let Some(x) = shared {
                        self.touch_atomic(x as usize, n as usize, wi)
                    } else {
                        self.has_waited(wi, 1 << l, ins)
                    }
                    let place = self.bytes(o.sp, ad, n as usize, wi, l);
                    let mut old = [0; 8];
                    old[..n as usize].copy_from_slice(place);
                    let old = u64::from_le_bytes(old);
                    place.copy_from_slice(&old.wrapping_add(v).to_le_bytes()[..n as usize]);
                    if o.flag == 0 {
                        self.set(wi, l, &a[0], old)
                    }
                }
            }
            K::Prmt => {
                for l in lanes(m) {
                    let (x, y, s) = (self.v(wi, l, &a[1]) & 0xffff_ffff, self.v(wi, l, &a[2]), self.v(wi, l, &a[3]));
                    let q = x | y << 32;
                    let v = (0..4).fold(0, |acc, i| {
                        let n = s >> (4 * i) & 15;
                        let b = q >> (8 * (n & 7)) & 255;
                        acc | (if n & 8 != 0 { if b & 128 != 0 { 255 } else { 0 } } else { b }) << (8 * i)
                    });
                    self.set(wi, l, &a[0], v)
                }
            }
            K::Shf => {
                for l in lanes(m) {
                    let (low, high, n) = (self.v(wi, l, &a[1]), self.v(wi, l, &a[2]), self.v(wi, l, &a[3]) & 31);
                    let pair = zx(low, 4) | high << 32;
                    let v = if o.flag == 1 { pair >> n } else { pair << n >> 32 };
                    self.set(wi, l, &a[0], zx(v, 4))
                }
            }
            K::Bfe => {
                for l in lanes(m) {
                    let (x, p, n) = (self.v(wi, l, &a[1]), self.v(wi, l, &a[2]) & 255, self.v(wi, l, &a[3]) & 255);
                    assert!(matches!(o.t, T::U(_)));
                    let v = if n == 0 { 0 } else { (x >> p) & (!0u64 >> (64 - n)) };
                    self.set(wi, l, &a[0], v)
                }
            }
            K::Bfi => {
                for l in lanes(m) {
                    let (x, y, p, n) = (
                        self.v(wi, l, &a[1]),
                        self.v(wi, l, &a[2]),
                        self.v(wi, l, &a[3]) & 255,
                        self.v(wi, l, &a[4]) & 255,
                    );
                    let mk = if n == 0 { 0 } else { (!0u64 >> (64 - n)) << p };
                    let v = (y & !mk) | (x << p & mk);
                    self.set(wi, l, &a[0], v)
                }
            }
            K::Lop3 => {
                for l in lanes(m) {
                    let (x, y, z, t) =
                        (self.v(wi, l, &a[1]), self.v(wi, l, &a[2]), self.v(wi, l, &a[3]), self.v(wi, l, &a[4]));
                    let v = (0..8).fold(0, |acc, i| {
                        if t >> i & 1 == 1 {
                            acc | (if i & 4 != 0 { x } else { !x })
                                & (if i & 2 != 0 { y } else { !y })
                                & (if i & 1 != 0 { z } else { !z })
                        } else {
                            acc
                        }
                    });
                    self.set(wi, l, &a[0], v & 0xffff_ffff)
                }
            }
            K::Dp4a => {
                for l in lanes(m) {
                    let (x, y, c) = (self.v(wi, l, &a[1]), self.v(wi, l, &a[2]), self.v(wi, l, &a[3]));
                    let g = |v: u64, i: u32, t: T| {
                        if matches!(t, T::S(_)) { (v >> (8 * i)) as i8 as i32 } else { (v >> (8 * i)) as u8 as i32 }
                    };
                    let v = (0..4).fold(c as i32, |s, i| s.wrapping_add(g(x, i, o.t) * g(y, i, o.st)));
                    self.set(wi, l, &a[0], v as u32 as u64)
                }
            }
            K::Ldmatrix => {
                full(m);
                let ad: Vec<u64> = (0..32).map(|l| self.addr(wi, l, &a[1])).collect();
                let Arg::Vec(ds) = &a[0] else { panic!() };
                for (i, r) in ds.iter().enumerate() {
                    let mut mt = [[0u16; 8]; 8];
                    for (row, x) in mt.iter_mut().enumerate() {
                        self.touch((ad[i * 8 + row] & 0xffff_ffff) as usize, 16, wi, false);
                        let b = self.bytes(Sp::Shared, ad[i * 8 + row], 16, wi, row);
                        for (c, y) in x.iter_mut().enumerate() {
                            *y = u16::from_le_bytes([b[2 * c], b[2 * c + 1]])
                        }
                    }
                    for l in 0..32 {
                        let (p, q) = (l / 4, l % 4 * 2);
                        let v = if o.flag == 1 {
                            mt[q][p] as u64 | (mt[q + 1][p] as u64) << 16
                        } else {
                            mt[p][q] as u64 | (mt[p][q + 1] as u64) << 16
                        };
                        self.set(wi, l, r, v)
                    }
                }
            }
            K::Mma => {
                full(m);
                self.mma(wi, ins);
            }
            K::CpAsync => {
                for l in lanes(m) {
                    let (dst, src, n) =
                        (self.addr(wi, l, &a[0]) as usize, self.addr(wi, l, &a[1]), self.v(wi, l, &a[2]) as usize);
                    let cnt = a.get(3).map_or(n, |x| self.v(wi, l, x) as usize);
                    if cnt > 0 {
                        self.bytes(Sp::Global, src, cnt, wi, l);
                    }
                    self.bytes(Sp::Shared, dst as u64, n, wi, l).fill(0xff);
                    self.touch(dst, n, wi, true);
                    self.w[wi].open[l].push((dst, src, cnt | n << 16))
                }
            }
            K::CpCommit => {
                for l in lanes(m) {
                    let g = std::mem::take(&mut self.w[wi].open[l]);
                    self.w[wi].groups[l].push_back(g)
                }
            }
            K::CpWait | K::CpWaitAll => {
                for l in lanes(m) {
                    let keep = if o.k == K::CpWait {
                        self.v(wi, l, &a[0]) as usize
                    } else {
                        let g = std::mem::take(&mut self.w[wi].open[l]);
                        self.w[wi].groups[l].push_back(g);
                        0
                    };
                    while self.w[wi].groups[l].len() > keep {
                        for (dst, src, p) in self.w[wi].groups[l].pop_front().unwrap() {
                            let (cnt, n) = (p & 0xffff, p >> 16);
                            let mut v = vec![0; n];
                            if cnt > 0 {
                                v[..cnt].copy_from_slice(self.mem.at(src, cnt).unwrap())
                            }
                            self.sm[wi / self.warps][dst..dst + n].copy_from_slice(&v);
                            self.touch(dst, n, wi, true)
                        }
                    }
                }
            }
            K::MbInit => {
                for l in lanes(m) {
                    let (ad, n) = (self.barrier(wi, self.addr(wi, l, &a[0])), self.v(wi, l, &a[1]) as u32);
                    self.mb.insert(ad, MBar { exp: n, pend: n, tx: 0, ph: 0 });
                }
            }
            K::MbArrive => {
                for l in lanes(m) {
                    let ad = self.barrier(wi, self.addr(wi, l, &a[1]));
                    self.mb_tx(ad, 0, 1)
                }
            }
            K::MbExpect => {
                for l in lanes(m) {
                    let (ad, n) = (self.barrier(wi, self.addr(wi, l, &a[1])), self.v(wi, l, &a[2]) as i64);
                    self.mb_tx(ad, n, 1)
                }
            }
            K::MbTry => {
                for l in lanes(m) {
                    let (ad, p) = (self.barrier(wi, self.addr(wi, l, &a[1])), self.v(wi, l, &a[2]) as u32 & 1);
                    let r = self.mb.get(&ad).expect("mbarrier not initialised").ph != p;
                    self.prog += r as u64;
                    self.set(wi, l, &a[0], r as u64);
                }
            }
            K::Tma => self.copy_box(wi, m, ins),
            K::CopyThere => self.copy_there(wi, m, ins),
            K::Wgmma => {
                full(m);
                self.product_begins(wi, ins);
                for l in 0..32 {
                    self.w[wi].pc[l] = pc
                }
                self.w[wi].wg = Some(pc);
                let g = wi / 4 * 4;
                if (g..g + 4).all(|i| self.w[i].wg == Some(pc)) {
                    self.wgmma(g, ins);
                    for i in g..g + 4 {
                        self.w[i].wg = None;
                        for l in 0..32 {
                            self.w[i].pc[l] = pc + 1
                        }
                    }
                }
            }
            _ => {
                for l in lanes(m) {
                    let g = |i: usize| a.get(i).map_or(0, |x| self.v(wi, l, x));
                    let v = match o.flag {
                        3 => fb(sum_to_zero(f(g(1)), f(g(2)))),
                        2 => fb(fma_down(f(g(1)), f(g(2)), f(g(3)))),
                        1 => {
                            let [x, y, z] = [1, 2, 3].map(|i| fb(flushed(f(g(i)))));
                            fb(flushed(f(alu(o.k, o.t, x, y, z))))
                        }
                        _ => alu(o.k, o.t, g(1), g(2), g(3)),
                    };
                    self.set(wi, l, &a[0], v)
                }
            }
        }
        true
    }
}
