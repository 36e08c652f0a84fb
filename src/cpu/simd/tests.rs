//! Every instruction set's lanes against plain arithmetic.

use super::*;

#[test]
fn squares_are_transposed() {
    let from: Vec<f32> = (0..400).map(|i| i as f32).collect();
    for isa in Isa::available() {
        let mut to = [0f32; 400];
        // SAFETY: no square is larger than 16 by 16, and both have rows of 20.
        let n = dots!(isa, s => unsafe { turn(s, from.as_ptr(), to.as_mut_ptr()) });
        for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
            assert_eq!(to[j * 20 + i], from[i * 20 + j], "{}", isa.name());
        }
    }
}

#[test]
fn bytes_are_multiplied_by_fours() {
    let u: Vec<u8> = (0..64).map(|i| i * 77 % 256).map(|i: u32| i as u8).collect();
    let i: Vec<i8> = (0..64u32).map(|i| (i * 59 + 13) as i8).collect();
    for (isa, extreme) in Isa::available().into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
        let (u, i) = if extreme { (vec![255; 64], vec![-128; 64]) } else { (u.clone(), i.clone()) };
        let mut sums = [7i32; 16];
        // SAFETY: no vector is longer than 64 bytes.
        let lanes = dots!(isa, s => unsafe { add_dots(s, u.as_ptr(), i.as_ptr(), &mut sums) });
        for (lane, &sum) in sums.iter().enumerate().take(lanes) {
            let want: i32 = (4 * lane..4 * lane + 4).map(|p| u[p] as i32 * i[p] as i32).sum();
            assert_eq!(sum, 7 + want, "{}", isa.name());
        }
        let mut low = [0i8; 16];
        // SAFETY: both hold the widest vector.
        dots!(isa, s => unsafe { s.store_i8(low.as_mut_ptr(), s.bits(s.load(sums.as_ptr().cast()))) });
        assert!((0..lanes).all(|lane| low[lane] == sums[lane] as i8), "{}", isa.name());
    }
}

/// As four bytes at once, for every height of a strip.
#[test]
fn bytes_are_multiplied_by_halves() {
    for isa in Isa::available() {
        dots!(isa, s => {
            halves::<_, 1, 2>(s, isa.name());
            halves::<_, 1, 8>(s, isa.name());
            halves::<_, 2, 4>(s, isa.name());
            halves::<_, 3, 2>(s, isa.name());
            halves::<_, 4, 2>(s, isa.name());
            halves::<_, 5, 2>(s, isa.name());
            halves::<_, 6, 2>(s, isa.name());
        });
    }
}

/// Bytes from two vectors to the next two.
const NEXT: usize = 2 * 64 + 32;

#[inline(always)]
fn halves<S: Simd, const M: usize, const V: usize>(s: S, name: &str) {
    for extreme in [false, true] {
        let u = |i: usize, p: usize| if extreme { 255 } else { (i * 91 + p * 77) as u8 };
        let w: [i8; 4 * NEXT] = std::array::from_fn(|i| if extreme { -128 } else { (i * 59 + 13) as i8 });
        let mut a = [0u8; 6 * HALVES_RUN];
        for (i, p) in (0..M).flat_map(|i| (0..4).map(move |p| (i, p))) {
            a[i * HALVES_RUN + p % 2 * HALVES_RUN / 2 + p / 2 * 2] = u(i, p);
        }
        let mut acc = [[s.of_bits(s.splat_i(7)); V]; M];
        // SAFETY: there are six runs, and eight of the widest vectors.
        unsafe { s.add_halves(&mut acc, a.as_ptr().cast(), w.as_ptr().cast(), NEXT) };
        for (i, v) in (0..M).flat_map(|i| (0..V).map(move |v| (i, v))) {
            let mut sums = [0i32; WIDEST];
            // SAFETY: no vector is longer.
            unsafe { s.store(sums.as_mut_ptr().cast(), acc[i][v]) };
            for (lane, &sum) in sums.iter().enumerate().take(S::LANES) {
                let at = v / 2 * NEXT + (v % 2 * S::LANES + lane) * 4;
                let want: i32 = (0..4).map(|p| u(i, p) as i32 * w[at + p] as i32).sum();
                assert_eq!(sum, 7 + want, "{name} {M} {V} {i} {v} {lane}");
            }
        }
    }
}

/// Of 1 to 3 rows by two vectors, 16 runs of the largest bytes and factors that there may be.
#[test]
fn runs_are_added() {
    for isa in Isa::available() {
        simd!(isa, s => {
            runs::<_, 1, 4>(s, isa.name());
            runs::<_, 2, 4>(s, isa.name());
            runs::<_, 3, 4>(s, isa.name());
            runs::<_, 1, 2>(s, isa.name());
            runs::<_, 2, 2>(s, isa.name());
            runs::<_, 3, 2>(s, isa.name());
            runs::<_, 1, 1>(s, isa.name());
            runs::<_, 3, 1>(s, isa.name());
        });
    }
}

#[inline(always)]
fn runs<S: Simd, const M: usize, const STEPS: usize>(s: S, name: &str) {
    const PITCH: usize = 20;
    let largest = 128 / STEPS;
    for extreme in [None, Some(-127), Some(127)] {
        let u: [u8; 4 * RUN_PITCH] =
            std::array::from_fn(|i| extreme.map_or((i * 59) % (largest + 1), |_| largest) as u8);
        let x: [i8; 3 * PITCH] = std::array::from_fn(|i| extreme.unwrap_or((i * 91 + 5) as u8 as i8).max(-127));
        let factor = |lane: usize| extreme.map_or(lane as i32 * 201 - 3100, |_| 512 * STEPS as i32 - 1) as i16 as i32;
        let factors: [i32; 2 * WIDEST] = std::array::from_fn(|lane| factor(lane) & 0xffff | factor(lane) << 16);
        let mut acc = [[s.splat_i(7); 2]; M];
        // SAFETY: there are three rows of 16 bytes, four times two of the widest vectors, and as many factors.
        (0..16).for_each(|_| unsafe {
            s.add_run::<M, 2, STEPS>(&mut acc, (x.as_ptr().cast(), PITCH), u.as_ptr(), factors.as_ptr())
        });
        for (i, v) in (0..M).flat_map(|i| (0..2).map(move |v| (i, v))) {
            let mut sums = [0i32; WIDEST];
            // SAFETY: no vector is longer.
            unsafe { s.store(sums.as_mut_ptr().cast(), s.of_bits(acc[i][v])) };
            for (lane, &sum) in sums.iter().enumerate().take(S::LANES) {
                let lane = v * S::LANES + lane;
                let product = |p: usize| u[p / 4 * RUN_PITCH + lane * 4 + p % 4] as i32 * x[i * PITCH + p] as i32;
                let want = 7 + 16 * factor(lane) * (0..16).map(product).sum::<i32>();
                assert_eq!(sum, want, "{name} {M} {STEPS} {i} {lane} {extreme:?}");
            }
        }
    }
}

/// Of the widest bytes there are: u up to 127 where they are small, i from -127 on.
#[test]
fn small_and_signed_bytes_are_multiplied_by_fours() {
    let draw = |i: u32, by: u32| (i * by % 256) as u8;
    for isa in Isa::available() {
        for (low, high) in [(-128, -127), (-128, 127), (127, 127), (127, -127), (0, 0)] {
            let u: [u8; 64] = std::array::from_fn(|i| if high == 0 { draw(i as u32, 77) } else { low as i8 as u8 });
            let i: [i8; 64] =
                std::array::from_fn(|i| if high == 0 { draw(i as u32, 59) as i8 } else { high as i8 }.max(-127));
            let mut sums = [[7i32; 16]; 2];
            // SAFETY: no vector is longer than 64 bytes.
            dots!(isa, s => unsafe { add_other_dots(s.wide(), &u, &i, &mut sums) });
            for (lane, (small, signed)) in sums[0].into_iter().zip(sums[1]).enumerate() {
                let sum = |f: fn(u8) -> i32| (4 * lane..4 * lane + 4).map(|p| f(u[p]) * i[p] as i32).sum::<i32>();
                assert_eq!(small, 7 + sum(|u| (u & 127) as i32), "{}", isa.name());
                assert_eq!(signed, 7 + sum(|u| u as i8 as i32), "{}", isa.name());
            }
        }
    }
}

#[inline(always)]
unsafe fn add_other_dots<S: Simd>(s: S, u: &[u8; 64], i: &[i8; 64], sums: &mut [[i32; 16]; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        let (u, i) = (s.bits(s.load(u.as_ptr().cast())), s.bits(s.load(i.as_ptr().cast())));
        let c = s.bits(s.load(sums[0].as_ptr().cast()));
        let small = s.and(u, s.splat_i(0x7f7f_7f7f));
        s.store(sums[0].as_mut_ptr().cast(), s.of_bits(s.dot_small(c, small, i)));
        s.store(sums[1].as_mut_ptr().cast(), s.of_bits(s.dot_signed(c, u, i)));
    }
}

/// Pairs of bf16 with every set that has them, and in f32.
#[test]
fn pairs_of_bf16_are_multiplied() {
    let bf16 = |x: f32| (x.to_bits() >> 16) as u16;
    let a: [u16; 32] = std::array::from_fn(|i| bf16(i as f32 - 11.0));
    let b: [u16; 32] = std::array::from_fn(|i| bf16(0.25 * (i * 7 % 32) as f32 - 3.0));
    for isa in Isa::available() {
        let mut sums: [f32; 16] = std::array::from_fn(|i| i as f32);
        // SAFETY: all are as long as the longest vector.
        let lanes = pairs!(isa, s => unsafe { add_pairs(s, &a, &b, &mut sums) });
        for (i, sum) in sums.into_iter().enumerate() {
            let product = |p: usize| (p as f32 - 11.0) * (0.25 * (p * 7 % 32) as f32 - 3.0);
            let products = if i < lanes { product(2 * i) + product(2 * i + 1) } else { 0.0 };
            assert_eq!(sum, i as f32 + products, "{} {i}", isa.name());
        }
    }
}

#[inline(always)]
unsafe fn add_pairs<S: Simd>(s: S, a: &[u16; 32], b: &[u16; 32], sums: &mut [f32; 16]) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (s.bits(s.load(a.as_ptr().cast())), s.bits(s.load(b.as_ptr().cast())));
        s.store(sums.as_mut_ptr(), s.dot_bf16(s.load(sums.as_ptr()), a, b));
    }
    S::LANES
}

/// What vectors of several registers do across their lanes.
#[test]
fn wide_vectors_are_one() {
    for isa in Isa::available() {
        dots!(isa, s => wide(s.wide(), isa.name()));
    }
}

#[inline(always)]
fn wide<S: Simd>(s: S, name: &str) {
    assert_eq!(S::LANES, 16, "{name}");
    let numbers: [f32; 16] = std::array::from_fn(|i| (i * 5 % 16) as f32 - 4.0);
    let index: [i32; 16] = std::array::from_fn(|i| (i * 11 % 16) as i32);
    let words: [i32; 64] = std::array::from_fn(|i| i as i32 * 3 - 100);
    let bytes: [u8; 128] = std::array::from_fn(|i| i as u8);
    let square: [f32; 400] = std::array::from_fn(|i| i as f32);
    let (mut to, mut narrow, mut runs, mut turned) = ([0f32; 16], [0i8; 64], [[0u8; 64]; 2], [0f32; 400]);
    // SAFETY: vectors of 64 bytes; runs end inside the bytes, squares of 16 by 16 have rows of 20.
    unsafe {
        let v = s.load(numbers.as_ptr());
        assert_eq!((s.sum(v), s.max_lane(v)), (numbers.iter().sum(), 11.0), "{name}");
        s.store(to.as_mut_ptr(), s.permute(v, &index));
        let mut all = [s.splat_i(0); 4];
        for (i, v) in all.iter_mut().enumerate() {
            *v = s.bits(s.load(words.as_ptr().add(16 * i).cast()));
        }
        s.store(narrow.as_mut_ptr().cast(), s.of_bits(s.narrow(all)));
        s.store(runs[0].as_mut_ptr().cast(), s.of_bits(s.load_runs::<16>(bytes.as_ptr(), 18)));
        s.store(runs[1].as_mut_ptr().cast(), s.of_bits(s.load_runs::<32>(bytes.as_ptr(), 64)));
        s.transpose(square.as_ptr(), 20, turned.as_mut_ptr(), 20);
    }
    for i in 0..16 {
        assert_eq!(to[i], numbers[index[i] as usize], "{name}");
        assert!((0..16).all(|j| turned[i * 20 + j] == square[j * 20 + i]), "{name}");
    }
    for i in 0..64 {
        assert_eq!(narrow[i], words[i] as i8, "{name}");
        assert_eq!(runs.map(|r| r[i] as usize), [i / 16 * 18 + i % 16, i / 32 * 64 + i % 32], "{name}");
    }
    for n in 0..=16 {
        let mut part = [-1f32; 16];
        // SAFETY: n elements of 16.
        unsafe { s.store_partial(part.as_mut_ptr(), s.load_partial(numbers.as_ptr(), n), n) };
        assert!((0..16).all(|i| part[i] == if i < n { numbers[i] } else { -1.0 }), "{name}");
    }
}

#[inline(always)]
unsafe fn add_dots<S: Simd>(s: S, u: *const u8, i: *const i8, sums: &mut [i32; 16]) -> usize {
    let sums = sums.as_mut_ptr().cast::<f32>();
    // SAFETY: the caller's promise.
    unsafe {
        let (c, u, i) = (s.bits(s.load(sums)), s.bits(s.load(u.cast())), s.bits(s.load(i.cast())));
        s.store(sums, s.of_bits(s.dot(c, u, i)));
    }
    S::LANES
}

#[test]
fn bytes_are_looked_up_and_narrowed() {
    let table: [i8; 16] = std::array::from_fn(|i| (i * 37) as i8);
    let bytes: [u8; 64] = std::array::from_fn(|i| (i * 7 % 16) as u8);
    let numbers: [i32; 64] = std::array::from_fn(|i| i as i32 * 4 - 128);
    for isa in Isa::available() {
        let (mut found, mut narrow) = ([0i8; 64], [0i8; 64]);
        // SAFETY: no vector is longer than 64 bytes, or has more than 16 lanes.
        let lanes = dots!(isa, s => unsafe { shorten(s, &table, &bytes, &numbers, &mut found, &mut narrow) });
        for i in 0..4 * lanes {
            assert_eq!(found[i], table[bytes[i] as usize], "{}", isa.name());
            assert_eq!(narrow[i], numbers[i] as i8, "{}", isa.name());
        }
    }
}

#[inline(always)]
unsafe fn shorten<S: Simd>(
    s: S,
    table: &[i8; 16],
    bytes: &[u8; 64],
    numbers: &[i32; 64],
    found: &mut [i8; 64],
    narrow: &mut [i8; 64],
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let v = s.look_up(table, s.bits(s.load(bytes.as_ptr().cast())));
        s.store(found.as_mut_ptr().cast(), s.of_bits(v));
        let mut v = [s.splat_i(0); 4];
        for (i, v) in v.iter_mut().enumerate() {
            *v = s.bits(s.load(numbers.as_ptr().add(i * S::LANES).cast()));
        }
        s.store(narrow.as_mut_ptr().cast(), s.of_bits(s.narrow(v)));
    }
    S::LANES
}

#[test]
fn bytes_and_halves_of_words() {
    let a: [u32; 16] = std::array::from_fn(|i| (i as u32 + 1).wrapping_mul(0x9e37_79b9));
    let b: [u32; 16] = std::array::from_fn(|i| (i as u32 + 5).wrapping_mul(0x85eb_ca6b));
    for isa in Isa::available() {
        let mut to = [[0u32; 16]; 3];
        // SAFETY: no vector has more than 16 lanes.
        let lanes = dots!(isa, s => unsafe { combine(s, &a, &b, &mut to) });
        for i in 0..lanes {
            let bytes = |f: fn(u8, u8) -> u8| {
                let (a, b) = (a[i].to_le_bytes(), b[i].to_le_bytes());
                u32::from_le_bytes(std::array::from_fn(|j| f(a[j], b[j])))
            };
            assert_eq!((to[0][i], to[1][i]), (bytes(u8::min), bytes(u8::max)), "{}", isa.name());
            let half = |v: u32| [v as u16, (v >> 16) as u16];
            let (a, b) = (half(a[i]), half(b[i]));
            let want: [u16; 2] = std::array::from_fn(|j| a[j].wrapping_mul(b[j]).wrapping_add(a[j]));
            assert_eq!(half(to[2][i]), want, "{}", isa.name());
        }
    }
}

#[inline(always)]
unsafe fn combine<S: Simd>(s: S, a: &[u32; 16], b: &[u32; 16], to: &mut [[u32; 16]; 3]) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (s.bits(s.load(a.as_ptr().cast())), s.bits(s.load(b.as_ptr().cast())));
        for (to, v) in to.iter_mut().zip([s.min_u8(a, b), s.max_u8(a, b), s.multiply_add_16(a, b, a)]) {
            s.store(to.as_mut_ptr().cast(), s.of_bits(v));
        }
    }
    S::LANES
}

/// A vector's lanes.
#[inline(always)]
fn lanes<S: Simd>(s: S, v: S::I) -> Vec<u32> {
    let mut to = [0u32; WIDEST];
    // SAFETY: no vector has more lanes.
    unsafe { s.store(to.as_mut_ptr().cast(), s.of_bits(v)) };
    to[..S::LANES].to_vec()
}

#[test]
fn fours_are_turned_and_multiplied() {
    for isa in Isa::available() {
        dots!(isa, s => {
            fours(s, isa.name());
            fours(s.wide(), isa.name());
        });
    }
}

/// Rows become columns; products of the largest bytes that so many steps allow.
#[inline(always)]
fn fours<S: Simd>(s: S, name: &str) {
    for (steps, largest) in [(0, 127), (1, 127), (2, 64), (4, 32)] {
        let at = |i: usize, j: usize| (i * WIDEST + j) as u32 * 0x0123_4567 % (largest + 1) * 0x0101_0101;
        let u: [[u32; WIDEST]; 4] = std::array::from_fn(|i| std::array::from_fn(|j| at(i, j)));
        let mut v = [s.splat_i(0); 4];
        for (v, u) in v.iter_mut().zip(&u) {
            // SAFETY: no vector has more lanes.
            *v = s.bits(unsafe { s.load(u.as_ptr().cast()) });
        }
        let turned = s.turn_fours(v);
        for (i, j) in (0..4).flat_map(|i| (0..S::LANES).map(move |j| (i, j))) {
            assert_eq!(lanes(s, turned[i])[j], u[j % 4][j / 4 * 4 + i], "{name} {i} {j}");
        }
        for x in [-127i8, 127, 3] {
            let sums = lanes(s, s.dot_fours(v, [s.splat_i(i32::from_le_bytes([x as u8; 4])); 4], steps));
            for (j, sum) in sums.into_iter().enumerate() {
                let want: i32 = u.iter().map(|u| 4 * (u[j] & 255) as i32 * x as i32).sum();
                assert_eq!(sum as i32, want, "{name} {steps} {x} {j}");
            }
        }
    }
}

#[test]
fn eights_are_gathered_and_bits_become_bytes() {
    for isa in Isa::available() {
        dots!(isa, s => {
            eights(s, isa.name());
            eights(s.wide(), isa.name());
        });
    }
}

#[inline(always)]
fn eights<S: Simd>(s: S, name: &str) {
    let table: Vec<u64> = (0..300).map(|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let index: [u32; WIDEST] = std::array::from_fn(|i| (i * 71 + 15) as u32 % 300);
    // SAFETY: no vector has more lanes; indices are those of the table.
    let all = unsafe { s.gather_eights(table.as_ptr(), s.bits(s.load(index.as_ptr().cast()))) };
    let got: Vec<u32> = all.into_iter().flat_map(|v| lanes(s, v)).collect();
    for (i, pair) in got.as_chunks::<2>().0.iter().enumerate() {
        let want = table[index[i] as usize];
        assert_eq!((pair[0], pair[1]), (want as u32, (want >> 32) as u32), "{name} {i}");
    }
    let fours: Vec<u32> = table.iter().map(|&v| v as u32).collect();
    // SAFETY: as above.
    let got = lanes(s, unsafe { s.gather_fours(fours.as_ptr(), s.bits(s.load(index.as_ptr().cast()))) });
    assert!(got.iter().zip(index).all(|(&got, i)| got == fours[i as usize]), "{name}");
    for bits in [0, u64::MAX, 0x9e37_79b9_7f4a_7c15] {
        let bytes = lanes(s, s.bytes_of_bits(bits));
        for (i, byte) in bytes.iter().flat_map(|w| w.to_le_bytes()).enumerate() {
            assert_eq!(byte, if bits >> i & 1 == 1 { 255 } else { 0 }, "{name} {i}");
        }
    }
}

#[test]
fn sums_of_many_vectors() {
    for isa in Isa::available() {
        let mut to = [0f32; 16];
        // SAFETY: no vector has more than 16 lanes.
        let (n, want) = dots!(isa, s => unsafe { add_up(s, to.as_mut_ptr()) });
        for (i, sum) in to.iter().take(n).enumerate() {
            assert_eq!(*sum, want + (n * i * i) as f32, "{}", isa.name());
        }
    }
}

/// Sums vectors of the lanes' numbers plus the square of their own.
#[inline(always)]
unsafe fn add_up<S: Simd>(s: S, to: *mut f32) -> (usize, f32) {
    let lanes: [f32; 16] = std::array::from_fn(|i| i as f32);
    let mut from = [s.zero(); 16];
    // SAFETY: the caller's promise.
    unsafe {
        for (i, from) in from.iter_mut().enumerate() {
            *from = s.add(s.load(lanes.as_ptr()), s.splat((i * i) as f32));
        }
        s.sums(from.as_ptr(), to);
    }
    (S::LANES, (S::LANES * (S::LANES - 1) / 2) as f32)
}

#[inline(always)]
unsafe fn turn<S: Simd>(s: S, from: *const f32, to: *mut f32) -> usize {
    // SAFETY: the caller's promise.
    unsafe { s.transpose(from, 20, to, 20) };
    S::LANES
}
