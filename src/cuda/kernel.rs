//! A kernel's parameters, and the plan that launches it.

use std::sync::Arc;

use crate::{
    backend::{Plan, View},
    error::{Error, Result},
    layout::Spec,
    op::{Activation, Determinism, Op, Operands, Role},
};

use super::{
    driver::{Addresses, Device, Function, Grid, PERMUTED, Params, TensorMap, Touched},
    module::Modules,
};

/// The order of kernels/common/activation.cuh.
pub(super) fn activation(act: Activation) -> u32 {
    match act {
        Activation::None => 0,
        Activation::Silu => 1,
        Activation::GeluTanh => 2,
        Activation::GeluErf => 3,
        Activation::Relu => 4,
    }
}

/// A kernel to be: which one, its parameters' words in the order of the kernel's struct, and how many blocks.
#[derive(Debug)]
pub(super) struct Kernel {
    op: Op,
    operands: Operands,
    pub(super) family: &'static str,
    pub(super) entry: &'static str,
    words: Vec<u64>,
    tensors: Vec<(usize, usize)>,                // operand, and the word of its address
    maps: Vec<(usize, usize, usize, TensorMap)>, // operand, the byte of it that the map begins at, and the first word of its map
    table: Option<(Vec<u64>, usize)>,
    pub(super) blocks: usize,
    pub(super) threads: u32,
    pub(super) cluster: u32,
    /// Bytes of shared memory beyond what the kernel declares, and of scratch memory.
    pub(super) shared: usize,
    pub(super) scratch: usize,
    /// Operands that must begin at a multiple of 16 bytes.
    pub(super) aligned: Vec<&'static str>,
    /// Whether weights are read before the launches before are waited for, and whether the scratch memory is, which they were unpacked to.
    pub(super) early: bool,
    pub(super) scratch_early: bool,
}

impl Kernel {
    pub(super) fn new(op: &Op, family: &'static str, entry: &'static str) -> Kernel {
        let operands = op.operands();
        Kernel {
            op: *op,
            operands,
            family,
            entry,
            words: Vec::new(),
            tensors: Vec::new(),
            maps: Vec::new(),
            table: None,
            blocks: 0,
            threads: 256,
            cluster: 1,
            shared: 0,
            scratch: 0,
            aligned: Vec::new(),
            early: false,
            scratch_early: false,
        }
    }

    /// `Tensor` of types.cuh: all zero where the operand is absent, else its strides, 0 along dimensions of extent 1.
    pub(super) fn tensor(&mut self, name: &str) {
        self.tensor_as(name, &Some);
    }

    /// `Tensor` of types.cuh, whose dimension `d` is the operand's `place(d)`: 0 where that is `None`.
    pub(super) fn tensor_as(&mut self, name: &str, place: &dyn Fn(usize) -> Option<usize>) {
        let at = self.words.len();
        self.words.resize(at + 8, 0);
        let Some(i) = self.operands.iter().position(|o| o.name == name) else { return };
        let spec = &self.operands[i].spec;
        self.tensors.push((i, at));
        for d in 0..6 {
            let stride = place(d).filter(|&d| spec.dim(d) > 1).map_or(0, |d| spec.stride(d));
            self.words[at + 1 + d] = stride as u64;
        }
        self.words[at + 7] = spec.dtype() as u64; // `Type` of types.cuh
    }

    /// A tensor map of an operand of 16-bit elements, or of an even number of bytes, whose rows are dense and begin at multiples of 16 bytes, by boxes of
    /// `rows` rows: 128 bytes, aligned to 64. All zero where the operand is absent.
    pub(super) fn map(&mut self, name: &str, rows: u32) {
        self.map_as(name, rows, [0, 1, 2, 3]);
    }

    /// As `map`, whose dimension `d` is the operand's `order[d]`.
    pub(super) fn map_as(&mut self, name: &str, rows: u32, order: [usize; 4]) {
        let at = self.words.len().next_multiple_of(8);
        self.words.resize(at + 16, 0);
        let Some(i) = self.operands.iter().position(|o| o.name == name) else { return };
        let spec = &self.operands[i].spec;
        let bytes = spec.dtype().block().1 as u64;
        let mut map = TensorMap { extents: [1; 4], strides: [16; 3], columns: PERMUTED, rows };
        for (d, &of) in order.iter().enumerate().filter(|(_, of)| spec.dim(**of) > 1) {
            // What is repeated has one entry, which the kernel takes wherever the stride is 0.
            map.extents[d] = if spec.stride(of) > 0 { spec.dim(of) as u64 } else { 1 };
            if d > 0 && spec.stride(of) > 0 {
                map.strides[d - 1] = spec.stride(of) as u64 * bytes;
            }
        }
        map.extents[0] = map.extents[0] * bytes / 2;
        self.maps.push((i, 0, at, map));
    }

    /// A tensor map of dense rows of `k` 16-bit elements that lie from a byte of the scratch memory on, by boxes of `rows` rows.
    pub(super) fn map_scratch(&mut self, from: usize, [k, n]: [usize; 2], rows: u32) {
        let at = self.words.len().next_multiple_of(8);
        self.words.resize(at + 16, 0);
        let map =
            TensorMap { extents: [k as u64, n as u64, 1, 1], strides: [k as u64 * 2, 16, 16], columns: PERMUTED, rows };
        self.maps.push((self.operands.len(), from, at, map));
    }

    /// A tensor map of the operand's rows as they are stored, by boxes of `bytes` by `rows`.
    pub(super) fn map_stored(&mut self, name: &str, bytes: usize, rows: u32) {
        let at = self.words.len().next_multiple_of(8);
        self.words.resize(at + 16, 0);
        let Some(i) = self.operands.iter().position(|o| o.name == name) else { return };
        let spec = &self.operands[i].spec;
        let (elements, block) = spec.dtype().block();
        let stored = |n: usize| (n / elements * block) as u64;
        let apart = if spec.dim(1) > 1 { stored(spec.stride(1)) } else { 16 };
        let (extents, columns) = ([stored(spec.dim(0)) / 2, spec.dim(1) as u64, 1, 1], (bytes / 2) as u32);
        self.maps.push((i, 0, at, TensorMap { extents, strides: [apart, 16, 16], columns, rows }));
    }

    /// The address of a table on the device, written once.
    pub(super) fn table(&mut self, words: Vec<u64>) {
        self.table = Some((words, self.words.len()));
        self.words.push(0);
    }

    /// The address of the scratch memory.
    pub(super) fn scratch_address(&mut self) {
        self.tensors.push((self.operands.len(), self.words.len()));
        self.words.push(0);
    }

    /// A `u64`.
    pub(super) fn word(&mut self, value: usize) {
        self.words.push(value as u64);
    }

    /// Another value for a `u64`.
    pub(super) fn replace_word(&mut self, at: usize, value: usize) {
        self.words[at] = value as u64;
    }

    /// Two 32-bit fields beside each other.
    pub(super) fn pair(&mut self, first: u32, second: u32) {
        self.words.push(u64::from(first) | u64::from(second) << 32);
    }

    /// `count` extents from the last dimension but `skip` outwards, 1 beyond the rank.
    pub(super) fn extents(&mut self, shape: &[usize], skip: usize, count: usize) {
        let extent = |i: usize| shape.len().checked_sub(i + 1).map_or(1, |d| shape[d].max(1));
        (skip..skip + count).for_each(|i| self.word(extent(i)));
    }

    /// Six extents of `shape`, innermost first; the first is returned. Dimensions that lie dense in every tensor are joined: the tensors'
    /// strides change accordingly. Only where a dimension is empty can a product wrap, and then nothing is launched.
    pub(super) fn joined_extents(&mut self, shape: &[usize]) -> usize {
        let mut extents: Vec<u64> = Vec::new();
        for (d, &extent) in shape.iter().rev().enumerate().filter(|(_, n)| **n != 1) {
            let to = extents.len();
            let stride = |at: usize, d: usize| self.words[at + 1 + d];
            let dense = |at: usize| stride(at, d) == stride(at, to - 1).wrapping_mul(extents[to - 1]);
            if to > 0 && self.tensors.iter().all(|t| dense(t.1)) {
                extents[to - 1] = extents[to - 1].wrapping_mul(extent as u64);
                continue;
            }
            self.tensors.iter().for_each(|t| self.words[t.1 + 1 + to] = self.words[t.1 + 1 + d]);
            extents.push(extent as u64);
        }
        for &(_, at) in &self.tensors {
            self.words[at + 1 + extents.len()..at + 7].fill(0);
        }
        extents.resize(6, 1);
        self.words.extend(&extents);
        extents[0] as usize
    }

    /// Whether each tensor's fours of neighbours lie side by side, in rows of `n`; the kernel looks at the addresses. Of what has no blocks.
    pub(super) fn fours(&self, n: usize) -> bool {
        let strides = |at: usize| &self.words[at + 1..at + 7];
        let float = |operand: usize| self.operands.get(operand).is_none_or(|o| o.spec.dtype().is_float());
        let dense = |s: &[u64]| s[0] == 1 && s[1..].iter().all(|s| s.is_multiple_of(4));
        n.is_multiple_of(4) && self.tensors.iter().all(|&(o, at)| float(o) && dense(strides(at)))
    }

    pub(super) fn compile(self, device: &Arc<Device>, modules: &Modules, determinism: Determinism) -> Result<Compiled> {
        let blocks = u32::try_from(self.blocks).ok().filter(|&b| b <= i32::MAX as u32);
        let blocks = blocks.ok_or_else(|| Error::unsupported(self.op, "more blocks than one launch holds"))?;
        let mut params = Params([0; Params::WORDS]);
        let Some(room) = params.0.get_mut(..self.words.len()) else {
            return Err(Error::unsupported(self.op, "more parameters than fit"));
        };
        room.copy_from_slice(&self.words);
        let mut table = None;
        if let Some((words, at)) = &self.table {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            let view = View::whole(device.alloc(bytes.len())?);
            device.write(&view, &bytes)?;
            params.0[*at] = device.address(&view)?;
            table = Some(view);
        }
        let function = modules.function(device, self.family, self.entry)?;
        let types: Vec<&str> = self.operands.iter().take(2).map(|o| o.spec.dtype().name()).collect();
        let types = if types[0] == types[types.len() - 1] { types[0].into() } else { types.join("-") };
        let name = format!("cuda-{types}-{}", self.entry);
        let grid = Grid { blocks, threads: self.threads, cluster: self.cluster, shared: self.shared as u32 };
        let aligned =
            self.aligned.iter().filter_map(|name| self.operands.iter().position(|o| o.name == *name)).collect();
        let (op, device, tensors, maps, scratch) = (self.op, device.clone(), self.tensors, self.maps, self.scratch);
        let all = self.operands.len();
        let early = |i: &usize| self.operands.get(*i).map_or(self.scratch_early, |o| o.role == Role::Weight);
        let early = (0..=all).filter(|i| self.early && early(i)).collect();
        let written = (0..=all).filter(|&i| self.operands.get(i).is_none_or(|o| o.role.writes())).collect();
        Ok(Compiled {
            name,
            op,
            device,
            function,
            params,
            tensors,
            maps,
            _table: table,
            grid,
            scratch,
            aligned,
            early,
            written,
            determinism,
        })
    }
}

/// One kernel, sized for one operation.
#[derive(Debug)]
pub(super) struct Compiled {
    name: String,
    op: Op,
    device: Arc<Device>,
    function: Arc<dyn Function>,
    params: Params,
    tensors: Vec<(usize, usize)>,
    maps: Vec<(usize, usize, usize, TensorMap)>,
    _table: Option<View>, // kept for its address in `params`
    grid: Grid,
    scratch: usize,
    aligned: Vec<usize>,
    /// Operands, the scratch memory behind the last: read before the launches before are waited for, and written.
    early: Vec<usize>,
    written: Vec<usize>,
    determinism: Determinism,
}

impl Compiled {
    /// Whether the operands begin where the kernel needs them to.
    fn serves(&self, args: &[View]) -> bool {
        self.aligned.iter().all(|&i| args[i].offset().is_multiple_of(16))
    }
}

impl Plan for Compiled {
    fn name(&self) -> &str {
        &self.name
    }

    fn op(&self) -> Op {
        self.op
    }

    fn determinism(&self) -> Determinism {
        self.determinism
    }

    fn scratch(&self) -> usize {
        self.scratch
    }

    unsafe fn launch(&self, args: &[View], scratch: Option<&View>) -> Result<()> {
        if self.grid.blocks == 0 {
            return Ok(());
        }
        // The operands' and the scratch memory's.
        let addresses = args.iter().chain(scratch).map(|view| {
            let from = self.device.address(view)?;
            Ok(from..from + view.len() as u64)
        });
        let addresses = addresses.collect::<Result<Addresses>>()?;
        let mut params = self.params;
        for &(operand, word) in &self.tensors {
            params.0[word] = addresses.get(operand).map_or(0, |bytes| bytes.start);
        }
        for (operand, from, word, map) in &self.maps {
            let Some(bytes) = addresses.get(*operand) else { continue };
            let encoded = self.device.driver.encode(map, bytes.start + *from as u64);
            let encoded = encoded.map_err(|e| self.device.failed(&self.name, 0, e))?;
            params.0[*word..*word + 16].copy_from_slice(&encoded);
        }
        let of = |which: &[usize]| which.iter().filter_map(|&i| addresses.get(i).cloned()).collect();
        let touched = Touched { early: of(&self.early), written: of(&self.written) };
        // SAFETY: the caller promises that the views are the operation's operands, which the strides and extents in the
        // parameters were made from.
        let launched = unsafe { self.function.launch(&params, self.grid, &touched) };
        launched.map_err(|e| self.device.failed(&self.name, 0, e))
    }
}

/// Kernels one after the other; where there is another for operands that begin elsewhere than at multiples of 16 bytes, that one for these.
#[derive(Debug)]
pub(super) struct Sequence {
    first: Compiled,
    rest: Vec<Compiled>,
    otherwise: Option<Arc<Compiled>>,
}

impl Sequence {
    /// None of no steps.
    pub(super) fn of(steps: Vec<Compiled>, otherwise: Option<Arc<Compiled>>) -> Option<Arc<dyn Plan>> {
        let mut steps = steps.into_iter();
        let first = steps.next()?;
        Some(Arc::new(Sequence { first, rest: steps.collect(), otherwise }))
    }

    fn steps(&self) -> impl Iterator<Item = &Compiled> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// The step that names the whole: the one that multiplies, or else the last, not what prepares it.
    fn main(&self) -> &Compiled {
        self.rest.iter().fold(&self.first, |best, s| if s.aligned.len() >= best.aligned.len() { s } else { best })
    }
}

impl Plan for Sequence {
    fn name(&self) -> &str {
        self.main().name()
    }

    fn op(&self) -> Op {
        self.first.op
    }

    fn determinism(&self) -> Determinism {
        self.main().determinism
    }

    fn scratch(&self) -> usize {
        self.steps().chain(self.otherwise.as_deref()).map(|s| s.scratch).fold(0, usize::max)
    }

    unsafe fn launch(&self, args: &[View], scratch: Option<&View>) -> Result<()> {
        if let Some(otherwise) = &self.otherwise
            && !self.steps().all(|s| s.serves(args))
        {
            // SAFETY: the caller's promise.
            return unsafe { otherwise.launch(args, scratch) };
        }
        // SAFETY: the caller's promise; the scratch memory is as long as the longest step asks.
        self.steps().try_for_each(|s| unsafe { s.launch(args, scratch) })
    }
}

/// Whether neighbours lie side by side, and rows begin so many elements apart, if the operand does.
pub(super) fn in_pieces(s: &Spec, of: usize) -> bool {
    s.stride(0) == 1 && (1..s.rank()).all(|d| s.dim(d) <= 1 || s.stride(d).is_multiple_of(of))
}
