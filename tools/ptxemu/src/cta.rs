//! A cluster of blocks, mostly of one: their warps, shared memory, barriers and copies under way.
//!
//! An address of shared memory is a block's own offset, or, as `mapa` gives it, the offset in the block of a rank.

use std::collections::{HashMap, VecDeque};

use crate::{Grid, decode::*, memory::*, parse::*};

pub(crate) struct Async {
    pub(crate) to: (usize, usize), // block, and its byte
    pub(crate) data: Vec<u8>,
    pub(crate) bar: u64,
}
/// Where the rank of a block begins in an address of shared memory.
const RANK: u32 = 24;
pub(crate) struct MBar {
    pub(crate) exp: u32,
    pub(crate) pend: u32,
    pub(crate) tx: i64,
    pub(crate) ph: u32,
}
pub(crate) struct Warp {
    pub(crate) r: Vec<u64>,
    pub(crate) pc: [u32; 32],
    pub(crate) live: u32,
    pub(crate) wait: u32,
    pub(crate) park: u32,
    pub(crate) wbar: [u8; 32],
    pub(crate) wg: Option<u32>,
    pub(crate) open: Vec<Vec<(usize, u64, usize)>>,
    pub(crate) groups: Vec<VecDeque<Vec<(usize, u64, usize)>>>,
    pub(crate) local: Vec<Vec<u8>>,
    /// Of wgmma: registers written since the last fence, the group that still writes a register, the open group.
    pub(crate) dirty: Vec<bool>,
    pub(crate) flight: Vec<u32>,
    pub(crate) group: u32,
    pub(crate) registers: u32, // of a thread
    /// Lanes that have waited for the launches before.
    pub(crate) waited: u32,
    /// The phase of the cluster's barrier that each lane arrived in.
    pub(crate) arrived: [u32; 32],
}
pub(crate) struct Cluster<'a> {
    pub(crate) k: &'a Kernel,
    pub(crate) mem: &'a mut Mem,
    pub(crate) par: &'a [u8],
    pub(crate) ctaid: [u32; 3],
    pub(crate) ncta: [u32; 3],
    pub(crate) ntid: u32,
    pub(crate) warps: usize,     // of a block
    pub(crate) sm: Vec<Vec<u8>>, // of each block
    pub(crate) w: Vec<Warp>,
    pub(crate) mb: HashMap<u64, MBar>,
    pub(crate) tma: VecDeque<Async>,
    pub(crate) bars: Vec<[(u32, u32); 16]>,
    pub(crate) met: (u32, u32), // of the cluster's barrier: threads that arrived, phases behind
    pub(crate) steps: u64,
    pub(crate) prog: u64,
    pub(crate) seed: u64,
    pub(crate) sh: Vec<[u32; 4]>,
    pub(crate) epoch: u32,
}
impl<'a> Cluster<'a> {
    pub(crate) fn new(k: &'a Kernel, mem: &'a mut Mem, par: &'a [u8], ctaid: [u32; 3], grid: Grid, seed: u64) -> Self {
        let (ntid, warps, smem) = (grid.threads, grid.threads.div_ceil(32), k.smem_static + grid.shared);
        let w = (0..warps * grid.cluster)
            .map(|i| {
                let n = (ntid - i % warps * 32).min(32);
                Warp {
                    r: vec![0xdead_beef_dead_beef; k.nregs as usize * 32],
                    pc: [0; 32],
                    live: if n == 32 { !0 } else { (1 << n) - 1 },
                    wait: 0,
                    park: 0,
                    wbar: [0; 32],
                    wg: None,
                    open: vec![vec![]; 32],
                    groups: vec![VecDeque::new(); 32],
                    local: vec![vec![0xff; k.local_bytes]; 32],
                    dirty: vec![false; if k.wgmma { k.nregs as usize } else { 0 }],
                    flight: vec![0; if k.wgmma { k.nregs as usize } else { 0 }],
                    group: 1,
                    registers: registers_at_first(ntid, k.resident),
                    waited: if k.waits { 0 } else { !0 },
                    arrived: [0; 32],
                }
            })
            .collect();
        Cluster {
            k,
            mem,
            par,
            ctaid,
            ncta: grid.blocks,
            ntid,
            warps: warps as usize,
            sm: vec![vec![0xff; smem]; grid.cluster as usize],
            w,
            mb: HashMap::new(),
            tma: VecDeque::new(),
            bars: vec![[(0, 0); 16]; grid.cluster as usize],
            met: (0, 0),
            steps: 0,
            prog: 0,
            seed: seed ^ (ctaid[0] as u64) << 20 ^ (ctaid[1] as u64) << 40 | 1,
            sh: vec![[u32::MAX; 4]; smem / 4 + 1],
            epoch: 0,
        }
    }
    pub(crate) fn run(&mut self) {
        let mut idle = 0;
        while self.w.iter().any(|w| w.live != 0) {
            let before = self.prog;
            let mut prog = false;
            let nw = self.w.len();
            let (st, dir) = (self.rnd() as usize % nw, self.rnd() & 1);
            for j in 0..nw {
                let wi = if dir == 0 { (st + j) % nw } else { (st + nw - j) % nw };
                let q = 1 + self.rnd() % [8, 64, 600][self.rnd() as usize % 3];
                for _ in 0..q {
                    if !self.step(wi) {
                        break;
                    }
                }
            }
            if self.rnd().is_multiple_of(4) || self.prog == before {
                let at = if self.tma.is_empty() { 0 } else { self.rnd() as usize % self.tma.len() };
                if let Some(a) = self.tma.remove(at) {
                    let (block, at) = a.to;
                    self.sm[block][at..at + a.data.len()].copy_from_slice(&a.data);
                    self.mb_tx(a.bar, -(a.data.len() as i64), 0);
                    prog = true;
                }
            }
            if self.prog == before && !prog {
                idle += 1
            } else {
                idle = 0
            }
            if idle > 40 || self.steps > 2_000_000_000 {
                let w = self.w.iter().position(|w| w.live != 0).unwrap();
                panic!(
                    "deadlock: warp {w} at {:?}",
                    self.k.code[self.w[w].pc[self.w[w].live.trailing_zeros() as usize] as usize].text
                )
            }
        }
    }
    pub(crate) fn rnd(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed >> 11
    }
    /// shared-memory race check (kernels without mbarriers): two warps, same barrier epoch, same word, at least one write
    pub(crate) fn touch(&mut self, a: usize, n: usize, wi: usize, write: bool) {
        if !self.mb.is_empty() || self.sm.len() > 1 {
            return;
        }
        let (e, w) = (self.epoch, wi as u32);
        for g in a / 4..(a + n).div_ceil(4) {
            let s = &mut self.sh[g];
            if (s[1] == e && s[0] != w) || (write && s[3] == e && s[2] != w) {
                panic!(
                    "shared-memory race on byte {:#x}: warp {w} {} and warp {} {} with no barrier between",
                    g * 4,
                    if write { "writes" } else { "reads" },
                    if s[1] == e && s[0] != w { s[0] } else { s[2] },
                    if s[1] == e && s[0] != w { "wrote" } else { "read" }
                )
            }
            if write {
                s[0] = w;
                s[1] = e
            } else if s[3] != e || s[2] == w {
                s[2] = w;
                s[3] = e
            }
        }
    }
    /// As `touch`, of an atomic addition: these do not race among themselves. Writer `ATOMIC` stands for all of them.
    pub(crate) fn touch_atomic(&mut self, a: usize, n: usize, wi: usize) {
        const ATOMIC: u32 = u32::MAX - 1;
        if !self.mb.is_empty() || self.sm.len() > 1 {
            return;
        }
        let (e, w) = (self.epoch, wi as u32);
        for g in a / 4..(a + n).div_ceil(4) {
            let s = &mut self.sh[g];
            if (s[1] == e && s[0] != w && s[0] != ATOMIC) || (s[3] == e && s[2] != w) {
                panic!("shared-memory race on byte {:#x}: warp {w} adds to what another warp uses", g * 4)
            }
            // A plain write of this warp's own stays known: another's addition races with it.
            if s[1] != e || s[0] != w {
                (s[0], s[1]) = (ATOMIC, e)
            }
        }
    }
    #[inline(always)]
    pub(crate) fn v(&self, wi: usize, l: usize, a: &Arg) -> u64 {
        match a {
            Arg::Reg(r) => self.w[wi].r[*r as usize * 32 + l],
            _ => self.other(wi, l, a),
        }
    }
    /// The value of what is no register.
    fn other(&self, wi: usize, l: usize, a: &Arg) -> u64 {
        match a {
            Arg::Imm(v) => *v,
            Arg::NotReg(r) => self.w[wi].r[*r as usize * 32 + l] ^ 1,
            Arg::Sreg(s, ax) => {
                (match *s {
                    "tid" => {
                        if *ax == 0 {
                            (wi % self.warps * 32 + l) as u32
                        } else {
                            0
                        }
                    }
                    "ntid" => {
                        if *ax == 0 {
                            self.ntid
                        } else {
                            1
                        }
                    }
                    "ctaid" => self.ctaid[*ax as usize] + if *ax == 0 { (wi / self.warps) as u32 } else { 0 },
                    "cluster_ctarank" => (wi / self.warps) as u32,
                    "nctaid" => self.ncta[*ax as usize],
                    "laneid" => l as u32,
                    _ => (wi % self.warps) as u32,
                }) as u64
            }
            _ => panic!("value operand {a:?}"),
        }
    }
    #[inline(always)]
    pub(crate) fn set(&mut self, wi: usize, l: usize, a: &Arg, v: u64) {
        match a {
            Arg::Reg(r) => self.w[wi].r[*r as usize * 32 + l] = v,
            Arg::Sink => {}
            _ => panic!("dest {a:?}"),
        }
    }
    pub(crate) fn addr(&self, wi: usize, l: usize, a: &Arg) -> u64 {
        match a {
            Arg::Mem(b, o) => self.v(wi, l, b).wrapping_add(*o as u64),
            Arg::Mem2(b, _) => self.v(wi, l, b),
            _ => panic!("address {a:?}"),
        }
    }
    pub(crate) fn bytes(&mut self, sp: Sp, a: u64, n: usize, wi: usize, l: usize) -> &mut [u8] {
        if !a.is_multiple_of(n as u64) && n <= 16 {
            panic!("misaligned {n}-byte access at {a:#x} ({sp:?}) thread {}", wi * 32 + l)
        }
        let (sp, a) = match sp {
            Sp::Gen if a >= LOW => (Sp::Local, a - LOW),
            Sp::Gen if a >= PAW => (Sp::Param, a - PAW),
            Sp::Gen if a >= SHW => (Sp::Shared, a - SHW),
            Sp::Gen => (Sp::Global, a),
            Sp::Shared | Sp::Local => (sp, a & 0xffff_ffff),
            _ => (sp, a),
        };
        let r = match sp {
            Sp::Shared => {
                let (block, at) = self.shared(wi, a);
                self.sm[block].get_mut(at..at + n)
            }
            Sp::Local => self.w[wi].local[l].get_mut(a as usize..a as usize + n),
            _ => self.mem.at(a, n),
        };
        r.unwrap_or_else(|| panic!("out-of-bounds {n}-byte access at {a:#x} ({sp:?}) thread {}", wi * 32 + l))
    }
    /// The block and byte that an address of shared memory means to a warp.
    pub(crate) fn shared(&self, wi: usize, a: u64) -> (usize, usize) {
        let (rank, at) = ((a >> RANK & 0xff) as usize, (a & ((1 << RANK) - 1)) as usize);
        (if rank == 0 { wi / self.warps } else { rank - 1 }, at)
    }
    /// A byte of a block, the same for all warps.
    pub(crate) fn of_block(block: usize, at: usize) -> u64 {
        (block as u64 + 1) << RANK | at as u64
    }
    /// What an mbarrier is known by.
    pub(crate) fn barrier(&self, wi: usize, a: u64) -> u64 {
        let (block, at) = self.shared(wi, a);
        Self::of_block(block, at)
    }
    pub(crate) fn mb_tx(&mut self, a: u64, tx: i64, arrive: u32) {
        let m = self.mb.get_mut(&a).expect("mbarrier not initialised");
        m.tx += tx;
        m.pend = m.pend.checked_sub(arrive).expect("mbarrier over-arrival");
        if m.pend == 0 && m.tx == 0 {
            m.ph ^= 1;
            m.pend = m.exp
        }
    }
    pub(crate) fn bar_check(&mut self) {
        for block in 0..self.sm.len() {
            let own = block * self.warps..(block + 1) * self.warps;
            let live: u32 = self.w[own.clone()].iter().map(|w| w.live.count_ones()).sum();
            for id in 0..16 {
                let (c, n) = self.bars[block][id];
                if c > 0 && c >= if n > 0 { n } else { live } {
                    self.bars[block][id] = (0, 0);
                    self.epoch += 1;
                    self.release(own.clone(), id as u8);
                }
            }
        }
        let live: u32 = self.w.iter().map(|w| w.live.count_ones()).sum();
        if self.met.0 > 0 && self.met.0 >= live {
            self.met = (0, self.met.1 + 1);
            self.release(0..self.w.len(), CLUSTER);
        }
    }
    /// Lanes of some warps that wait at a barrier go on.
    fn release(&mut self, warps: std::ops::Range<usize>, barrier: u8) {
        for w in &mut self.w[warps] {
            for l in 0..32 {
                if w.wait >> l & 1 == 1 && w.wbar[l] == barrier {
                    w.wait &= !(1 << l)
                }
            }
        }
    }
}
/// The most registers that a thread can have, where so many blocks are resident.
pub(crate) fn registers_at_first(threads: u32, resident: u32) -> u32 {
    (65536 / (threads.next_multiple_of(32) * resident) / 8 * 8).min(255)
}
/// The cluster's barrier among a block's 16.
pub(crate) const CLUSTER: u8 = 16;
