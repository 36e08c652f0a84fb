//! Rounding to the points of a grid: what the formats IQ1, IQ2 and IQ3 share. A point gives 8 (or 4) numbers at once,
//! each one of 3 (or 8) levels; the tables, one file each, are part of the formats' definition.

mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;

use std::sync::OnceLock;

use half::f16;

use super::{fit, largest, reciprocal};

pub(super) static IQ1: Grid<8> = Grid::new(&iq1_s::POINTS, 3, [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
pub(super) static IQ2_XXS: Grid<8> = Grid::new(&iq2_xxs::POINTS, 3, IQ2);
pub(super) static IQ2_XS: Grid<8> = Grid::new(&iq2_xs::POINTS, 3, IQ2);
pub(super) static IQ2_S: Grid<8> = Grid::new(&iq2_s::POINTS, 3, IQ2);
pub(super) static IQ3_XXS: Grid<4> = Grid::new(&iq3_xxs::POINTS, 8, [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0]);
pub(super) static IQ3_S: Grid<4> = Grid::new(&iq3_s::POINTS, 8, [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0]);
const IQ2: [f32; 8] = [8.0, 25.0, 43.0, 0.0, 0.0, 0.0, 0.0, 0.0];

/// The points as bytes, a coordinate each, the first lowest; and the bytes 255 where a bit is set.
#[allow(dead_code, reason = "for devices that decode with code of their own, each of which can be dropped")]
pub(crate) mod bytes {
    pub(crate) static IQ1: [u64; 2048] = wide(&super::iq1_s::POINTS, [-8, 0, 8, 0]);
    pub(crate) static IQ2_XXS: [u64; 256] = wide(&super::iq2_xxs::POINTS, IQ2);
    pub(crate) static IQ2_XS: [u64; 512] = wide(&super::iq2_xs::POINTS, IQ2);
    pub(crate) static IQ2_S: [u64; 1024] = wide(&super::iq2_s::POINTS, IQ2);
    pub(crate) static IQ3_XXS: [u32; 256] = narrow(&super::iq3_xxs::POINTS, [4, 12, 20, 28, 36, 44, 52, 62]);
    pub(crate) static IQ3_S: [u32; 512] = narrow(&super::iq3_s::POINTS, [1, 3, 5, 7, 9, 11, 13, 15]);
    pub(crate) static MASKS: [u64; 256] = masks();
    const IQ2: [i8; 4] = [8, 25, 43, 0];

    const fn wide<const N: usize>(words: &[u16; N], levels: [i8; 4]) -> [u64; N] {
        let (mut all, mut i) = ([0; N], 0);
        while i < 8 * N {
            let level = levels[(words[i / 8] >> (i % 8 * 2) & 3) as usize];
            all[i / 8] |= (level as u8 as u64) << (i % 8 * 8);
            i += 1;
        }
        all
    }

    const fn narrow<const N: usize>(words: &[u16; N], levels: [u8; 8]) -> [u32; N] {
        let (mut all, mut i) = ([0; N], 0);
        while i < 4 * N {
            let level = levels[(words[i / 4] >> (i % 4 * 4) & 7) as usize];
            all[i / 4] |= (level as u32) << (i % 4 * 8);
            i += 1;
        }
        all
    }

    const fn masks() -> [u64; 256] {
        let (mut all, mut i) = ([0; 256], 0);
        while i < 8 * 256 {
            all[i / 8] |= if ((i / 8) >> (i % 8)) & 1 == 1 { 255 << (i % 8 * 8) } else { 0 };
            i += 1;
        }
        all
    }
}

/// A grid of points of `D` coordinates.
pub(super) struct Grid<const D: usize> {
    /// A power of two of points, `16 / D` bits per coordinate, the first lowest.
    words: &'static [u16],
    /// What a coordinate's bits stand for; the first `count` ascend, no others occur.
    levels: [f32; 8],
    count: usize,
    near: OnceLock<Near<D>>,
}

/// What the search for the nearest point needs, made when first encoded to.
struct Near<const D: usize> {
    points: Vec<[f32; D]>,
    /// The points nearest to each combination of levels; the true nearest point is almost always among them.
    candidates: Vec<[u16; CANDIDATES]>,
}

const CANDIDATES: usize = 8;

impl<const D: usize> Grid<D> {
    const fn new(words: &'static [u16], count: usize, levels: [f32; 8]) -> Self {
        Grid { words, levels, count, near: OnceLock::new() }
    }

    /// All points, packed.
    pub fn words(&self) -> &'static [u16] {
        self.words
    }

    /// The point with this index, taken modulo their number.
    pub fn point(&self, index: usize) -> [f32; D] {
        let (word, bits) = (self.words[index & (self.words.len() - 1)], 16 / D);
        std::array::from_fn(|i| self.levels[(word >> (i * bits)) as usize & ((1 << bits) - 1) & 7])
    }

    /// The point nearest to `v`, coordinates weighted by `w`, and its index.
    pub fn nearest(&self, v: [f32; D], w: &[f32; D]) -> (u16, [f32; D]) {
        let near = self.near.get_or_init(|| self.near());
        let digit = |v: f32| self.levels[..self.count].windows(2).filter(|w| v > 0.5 * (w[0] + w[1])).count();
        let code = v.iter().rev().fold(0, |code, &v| code * self.count + digit(v));
        let error = |index: u16| -> f32 {
            let p = &near.points[index as usize];
            (0..D).map(|i| w[i] * (p[i] - v[i]) * (p[i] - v[i])).sum()
        };
        let closer = |a: (u16, f32), b: (u16, f32)| if b.1 < a.1 { b } else { a };
        let candidates = &near.candidates[code];
        let best = candidates.iter().map(|&c| (c, error(c))).fold((candidates[0], f32::INFINITY), closer);
        (best.0, near.points[best.0 as usize])
    }

    fn near(&self) -> Near<D> {
        let points: Vec<[f32; D]> = (0..self.words.len()).map(|i| self.point(i)).collect();
        let candidates = (0..self.count.pow(D as u32)).map(|code| {
            let v: [f32; D] = std::array::from_fn(|i| self.levels[code / self.count.pow(i as u32) % self.count]);
            let mut best = [(f32::INFINITY, 0u16); CANDIDATES];
            for (index, p) in points.iter().enumerate() {
                let error = p.iter().zip(&v).fold(0.0, |sum, (p, v)| sum + (p - v) * (p - v));
                if error < best[CANDIDATES - 1].0 {
                    let at = best.partition_point(|b| b.0 <= error);
                    best[at..].rotate_right(1);
                    best[at] = (error, index as u16);
                }
            }
            best.map(|b| b.1)
        });
        Near { candidates: candidates.collect(), points }
    }
}

/// A block of finite numbers, encoded but for its packing.
pub(super) struct Encoded<const G: usize, const RUNS: usize> {
    pub d: f16,
    /// Of each group, an index into the factors.
    pub scales: [u8; G],
    /// Of each run of `D` numbers, in order.
    pub points: [u16; RUNS],
    /// Of each run of 8 numbers, the negative ones.
    pub signs: [u8; 32],
}

/// Encodes magnitudes, `RUNS` runs of `D`, to a grid's points, signs apart. The scale of group g, one of `G` of `N`
/// numbers, is `d * factors[scales[g]]`. Where the negatives of each 8 must be `even` in number, the one of the 8 that
/// matters least may change its sign.
pub(super) fn encode<const D: usize, const G: usize, const N: usize, const RUNS: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
    grid: &Grid<D>,
    even: bool,
    factors: &[f32],
) -> Encoded<G, RUNS> {
    let (mut magnitudes, mut signs) = (*x, [0; 32]);
    let runs = magnitudes.as_chunks_mut::<8>().0.iter_mut().zip(w.as_chunks::<8>().0);
    for ((x, w), signs) in runs.zip(&mut signs) {
        *signs = (0..8).fold(0, |signs, i| signs | u8::from(x[i] < 0.0) << i);
        *x = x.map(f32::abs);
        if even && signs.count_ones() % 2 == 1 {
            let cost = |i: usize| w[i] * x[i] * x[i];
            let smallest = (0..8).fold(0, |least, i| if cost(i) < cost(least) { i } else { least });
            *signs ^= 1 << smallest;
            x[smallest] = -x[smallest];
        }
    }
    let (groups, weights) = (magnitudes.as_chunks::<N>().0, w.as_chunks::<N>().0);
    let levels = |g: usize, inverse: f32| {
        let mut levels = [0.0; N];
        let runs = groups[g].as_chunks::<D>().0.iter().zip(weights[g].as_chunks::<D>().0);
        for (level, (x, w)) in levels.as_chunks_mut().0.iter_mut().zip(runs) {
            *level = grid.nearest(x.map(|x| x * inverse), w).1;
        }
        levels
    };
    let top = grid.levels[grid.count - 1];
    let fits: [f32; G] = std::array::from_fn(|g| {
        let extreme = largest(&groups[g]).unwrap_or(0.0).abs();
        fit::scale(&groups[g], &weights[g], fit::around(extreme, top, 0.6, 1.3, 15), |inverse| levels(g, inverse))
    });
    let (d, scales) = fit::scales(groups, weights, &fits, factors, levels);
    let inverse = scales.map(|s| reciprocal(d.to_f32() * factors[s as usize]));
    let (runs, weights) = (magnitudes.as_chunks::<D>().0, w.as_chunks::<D>().0);
    let points = std::array::from_fn(|i| grid.nearest(runs[i].map(|x| x * inverse[i * D / N]), &weights[i]).0);
    Encoded { d, scales, points, signs }
}

/// The signs of 8 numbers, as factors, from their bits.
pub(super) fn factors(signs: u8) -> [f32; 8] {
    std::array::from_fn(|i| if signs >> i & 1 == 1 { -1.0 } else { 1.0 })
}

/// Eight signs from seven: the last makes their number even.
pub(super) fn eighth(signs: u32) -> u8 {
    let seven = signs as u8 & 127;
    seven | (seven.count_ones() as u8 & 1) << 7
}
