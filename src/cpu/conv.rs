//! Convolution as a product per tile: the windows of some positions are laid out as columns in the cache, a block of terms at a time,
//! and multiplied by the weights' rows. Nothing as large as the whole unfolded input is ever made.
//!
//! ```text
//! out[channels of a block][positions] += w[channels][terms] * windows[terms][positions]
//! ```

use std::sync::Arc;

use super::{
    Device,
    kernel::{Args, Kernel, Tensor},
    pool::Pool,
    product::{Left, Rows, Start, product},
    simd::{Simd, math, row, simd},
};
use crate::{
    backend::Plans,
    dtype::DType,
    error::Result,
    layout::Spec,
    op::{Conv, Features},
};

/// Positions of a tile.
const POSITIONS: usize = 64;
/// Terms laid out at a time.
const TERMS: usize = 512;
/// Output channels of a tile.
const CHANNELS: usize = 256;
static ONES: [f32; CHANNELS] = [1.0; CHANNELS];

pub(super) fn plan(device: &Arc<Device>, op: &Conv) -> Result<Plans> {
    let op = *op;
    let known = Features::STRIDED | Features::BIAS | Features::ACTIVATION | Features::CONV_STEP;
    let kernel = Kernel::new(device, op, format_args!("conv-{}", op.x.dtype()), known)?;
    let (batches, cout, terms) = (op.x.shape()[0], op.w.shape()[0], op.terms());
    let per_group = cout / op.groups;
    let space = Space::new(&op);
    let positions: usize = space.points.iter().product();
    let (blocks, tiles) = (per_group.div_ceil(CHANNELS), positions.div_ceil(POSITIONS));
    // Weights are read as they are where they are dense f32; else they are decoded first, by rows of the last dimension.
    let decoded = !(op.w.is_dense() && op.w.dtype() == DType::F32);
    let runs = if op.w.is_dense() { Spec::new(op.w.dtype(), &[cout, terms])? } else { op.w };
    let stored = if decoded { (cout * terms).next_multiple_of(16) } else { 0 };
    let own = (TERMS + CHANNELS) * POSITIONS;
    let floats = own.saturating_mul(device.info.threads).saturating_add(stored);
    kernel.scratch(floats.saturating_mul(size_of::<f32>())).plan(move |args: &Args, pool: &mut Pool| {
        let (x, w, out, bias) = (args.of("x"), args.of("w"), args.of("out"), args.get("bias"));
        if decoded {
            let w = w.seen_as(&runs);
            let n = runs.dim(0);
            pool.run(if n == 0 { 0 } else { runs.rows() }, |r, _| {
                // SAFETY: the scratch memory begins with a place for all weights.
                simd!(args.isa, s => unsafe {
                    let to = args.scratch::<f32>().add(r * n);
                    row::read(s, w.dtype(), w.at(r, 0), w.spec.stride(0), to, n)
                });
            });
        }
        pool.run(batches * op.groups * blocks * tiles, |task, thread| {
            let (tile, block) = (task % tiles * POSITIONS, task / tiles % blocks * CHANNELS);
            let (group, batch) = (task / tiles / blocks % op.groups, task / tiles / blocks / op.groups);
            let part = Part {
                op: &op,
                space: &space,
                batch,
                group,
                first: group * per_group + block,
                channels: CHANNELS.min(per_group - block),
                tile,
                positions: POSITIONS.min(positions - tile),
            };
            // SAFETY: weights first, then each thread's own part; the tile is this task's alone.
            unsafe {
                let weights = if decoded { args.scratch::<f32>() } else { w.pointer() };
                let windows = args.scratch::<f32>().add(stored + thread * own);
                simd!(args.isa, s => part.run(s, (&x, &out, bias.as_ref()), weights, windows));
            }
        });
    })
}

/// The three dimensions of space, the missing ones with one element and one tap.
struct Space {
    extents: [usize; 3],
    taps: [usize; 3],
    points: [usize; 3],
    pad: [usize; 3],
    /// Strides of `x` and of `out`.
    x: [usize; 3],
    out: [usize; 3],
}

impl Space {
    fn new(op: &Conv) -> Space {
        let real = |d: usize| 2 - d < op.space();
        let of =
            |f: &dyn Fn(usize) -> usize, missing: usize| [0, 1, 2].map(|d| if real(d) { f(2 - d) } else { missing });
        Space {
            extents: of(&|d| op.x.dim(d), 1),
            taps: of(&|d| op.w.dim(d), 1),
            points: of(&|d| op.out.dim(d), 1),
            pad: of(&|_| op.pad, 0),
            x: of(&|d| op.x.stride(d), 0),
            out: of(&|d| op.out.stride(d), 0),
        }
    }
}

/// The index of row-major element `i`.
#[inline(always)]
fn unravel(i: usize, [_, b, c]: [usize; 3]) -> [usize; 3] {
    [i / c / b, i / c % b, i % c]
}

/// A tile: some positions of some output channels of one group.
struct Part<'a> {
    op: &'a Conv,
    space: &'a Space,
    batch: usize,
    group: usize,
    /// First output channel, and how many.
    first: usize,
    channels: usize,
    /// First position, and how many.
    tile: usize,
    positions: usize,
}

impl Part<'_> {
    /// # Safety
    /// The tile exists and is this call's alone; `weights` is `[cout, terms]`, `windows` has room for [`TERMS`] + [`CHANNELS`] rows of
    /// [`POSITIONS`].
    #[inline(always)]
    unsafe fn run<S: Simd>(
        &self,
        s: S,
        (x, out, bias): (&Tensor, &Tensor, Option<&Tensor>),
        weights: *const f32,
        windows: *mut f32,
    ) {
        let terms = self.op.terms();
        let wide = self.positions.next_multiple_of(S::LANES);
        // SAFETY: the caller's promise.
        unsafe {
            let sums = Rows { pointer: windows.add(TERMS * POSITIONS), stride: POSITIONS };
            let mut begin = 0;
            loop {
                let count = TERMS.min(terms - begin);
                for t in 0..count {
                    self.window(s, x, begin + t, windows.add(t * POSITIONS));
                }
                let w = Left { pointer: weights.add(self.first * terms + begin), row: terms, column: 1 };
                let start = if begin == 0 { Start::Zero } else { Start::RowFactors(ONES.as_ptr()) };
                let b = Rows { pointer: windows, stride: POSITIONS };
                product(s, (self.channels, wide, count), w, b, sums, start);
                begin += count;
                if begin == terms {
                    break;
                }
            }
            for c in 0..self.channels {
                self.finish(s, (out, bias), self.first + c, sums.pointer.add(c * POSITIONS));
            }
        }
    }

    /// The runs of positions along the last dimension: where it begins in the tile, its index in space, its length.
    #[inline(always)]
    fn runs(&self) -> impl Iterator<Item = (usize, [usize; 3], usize)> + '_ {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = unravel(self.tile + done, self.space.points);
            let n = (self.space.points[2] - at[2]).min(self.positions - done);
            let run = (done < self.positions).then_some((done, at, n));
            done += n;
            run
        })
    }

    /// What one term of each position's sum is multiplied by; zeros where it lies outside, and up to a whole vector.
    ///
    /// # Safety
    /// The term exists, `to` has room for [`POSITIONS`].
    #[inline(always)]
    unsafe fn window<S: Simd>(&self, s: S, x: &Tensor, term: usize, to: *mut f32) {
        let Space { extents, taps, pad, x: strides, .. } = *self.space;
        let all: usize = taps.iter().product();
        let tap = unravel(term % all, taps);
        let channel = self.group * self.op.w.shape()[1] + term / all;
        let base = self.batch * x.spec.strides()[0] + channel * x.spec.strides()[1];
        let (step, size) = (self.op.stride, x.dtype().block().1);
        // SAFETY: only places inside the input are read.
        unsafe {
            to.add(self.positions).write_bytes(0, self.positions.next_multiple_of(S::LANES) - self.positions);
            for (done, at, n) in self.runs() {
                let to = to.add(done);
                // Places count from the beginning of the padding.
                let place: [usize; 3] = std::array::from_fn(|d| at[d] * step + tap[d] * self.op.dilation);
                let inside = |d: usize| place[d].checked_sub(pad[d]).filter(|&p| p < extents[d]);
                let (Some(a), Some(b)) = (inside(0), inside(1)) else {
                    to.write_bytes(0, n);
                    continue;
                };
                let low = pad[2].saturating_sub(place[2]).div_ceil(step).min(n);
                let high = (pad[2] + extents[2]).saturating_sub(place[2]).div_ceil(step).clamp(low, n);
                to.write_bytes(0, low);
                to.add(high).write_bytes(0, n - high);
                if high > low {
                    let c = place[2] + low * step - pad[2];
                    let from = base + a * strides[0] + b * strides[1] + c * strides[2];
                    let from = x.pointer::<u8>().add(from * size);
                    row::read(s, x.dtype(), from, strides[2].wrapping_mul(step), to.add(low), high - low);
                }
            }
        }
    }

    /// Bias, activation, and writing of a channel's sums, which are overwritten.
    ///
    /// # Safety
    /// The channel exists; `sums` is [`POSITIONS`] numbers.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, (out, bias): (&Tensor, Option<&Tensor>), channel: usize, sums: *mut f32) {
        let (mut shift, strides, size) = (0f32, self.space.out, out.dtype().block().1);
        // SAFETY: the caller's promise; a channel has one bias.
        unsafe {
            if let Some(bias) = bias {
                row::read(s, bias.dtype(), bias.at(0, channel), 1, &mut shift, 1);
            }
            for i in (0..self.positions).step_by(S::LANES) {
                let v = s.add(s.load(sums.add(i)), s.splat(shift));
                s.store(sums.add(i), math::activate(s, self.op.act, v));
            }
            let base = self.batch * out.spec.strides()[0] + channel * out.spec.strides()[1];
            for (done, [a, b, c], n) in self.runs() {
                let to = base + a * strides[0] + b * strides[1] + c * strides[2];
                row::write(s, out.dtype(), sums.add(done), out.pointer::<u8>().add(to * size), strides[2], n);
            }
        }
    }
}
