//! Every instruction set's lanes against plain arithmetic.

use super::*;

#[test]
fn squares_are_transposed() {
    let from: Vec<f32> = (0..400).map(|i| i as f32).collect();
    for isa in Isa::available() {
        let mut to = [0f32; 400];
        // SAFETY: no square is larger than 16 by 16, and both have rows of 20.
        let n = simd!(isa, s => unsafe { turn(s, from.as_ptr(), to.as_mut_ptr()) });
        for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
            assert_eq!(to[j * 20 + i], from[i * 20 + j], "{}", isa.name());
        }
        for rows in 2..=n {
            let mut to = [-1f32; 272];
            // SAFETY: no square is larger than 16 by 16, and there is room for a vector more.
            simd!(isa, s => unsafe { s.transpose_some(from.as_ptr(), 20, to.as_mut_ptr(), rows) });
            for (i, j) in (0..rows).flat_map(|i| (0..n).map(move |j| (i, j))) {
                assert_eq!(to[j * rows + i], from[i * 20 + j], "{} {rows}", isa.name());
            }
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
        let lanes = simd!(isa, s => unsafe { add_dots(s, u.as_ptr(), i.as_ptr(), &mut sums) });
        for (lane, &sum) in sums.iter().enumerate().take(lanes) {
            let want: i32 = (4 * lane..4 * lane + 4).map(|p| u[p] as i32 * i[p] as i32).sum();
            assert_eq!(sum, 7 + want, "{}", isa.name());
        }
        let mut low = [0i8; 16];
        // SAFETY: both hold the widest vector.
        simd!(isa, s => unsafe { s.store_i8(low.as_mut_ptr(), s.bits(s.load(sums.as_ptr().cast()))) });
        assert!((0..lanes).all(|lane| low[lane] == sums[lane] as i8), "{}", isa.name());
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
        let lanes = simd!(isa, s => unsafe { shorten(s, &table, &bytes, &numbers, &mut found, &mut narrow) });
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
        let lanes = simd!(isa, s => unsafe { combine(s, &a, &b, &mut to) });
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

#[test]
fn sums_of_many_vectors() {
    for isa in Isa::available() {
        let mut to = [0f32; 16];
        // SAFETY: no vector has more than 16 lanes.
        let (n, want) = simd!(isa, s => unsafe { add_up(s, to.as_mut_ptr()) });
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
