use proptest::prelude::*;

use super::*;
use crate::op::Rng;

fn quantized() -> impl Iterator<Item = DType> {
    DType::ALL.iter().copied().filter(|d| d.is_quantized())
}

fn encoded(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xaa; dtype.bytes(values.len()).unwrap()]; // encoders may not count on zeros
    encode(dtype, values, &mut bytes).unwrap();
    bytes
}

fn decoded(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let (elements, size) = dtype.block();
    let mut out = vec![f32::NAN; bytes.len() / size * elements];
    decode(dtype, bytes, &mut out).unwrap();
    out
}

#[test]
fn q8_0_by_hand() {
    let x: Vec<f32> = (0..32).map(|i| 127.0 - i as f32 * 8.0).collect();
    let bytes = encoded(DType::Q8_0, &x);
    assert_eq!(bytes[..4], [0x00, 0x3c, 127, 119]); // f16 1.0, then x itself
    assert_eq!(decoded(DType::Q8_0, &bytes), x);
}

#[test]
fn q4_0_by_hand() {
    let x: Vec<f32> = (0..32).map(|i| (i % 16) as f32 - 8.0).collect();
    let bytes = encoded(DType::Q4_0, &x);
    assert_eq!(bytes[..5], [0x00, 0x3c, 0x00, 0x11, 0x22]);
    assert_eq!(decoded(DType::Q4_0, &bytes), x);
}

#[test]
fn q4_k_by_hand() {
    // d = 1, dmin = 2; group 5 has scale 0b10_0001 and offset 0b01_0010, the others 0.
    let mut block = vec![0x00, 0x3c, 0x00, 0x40, 0, 0b10 << 6, 0, 0, 0, 0b01 << 6, 0, 0, 0, 0b0010_0001, 0, 0];
    block.resize(144, 0x30);
    let out = decoded(DType::Q4_K, &block);
    assert!(out[160..192].iter().all(|&x| x == 33.0 * 3.0 - 2.0 * 18.0));
    assert!(out[..160].iter().chain(&out[192..]).all(|&x| x == 0.0));
}

#[test]
fn q6_k_by_hand() {
    let mut block = vec![0; 210];
    (block[208], block[209]) = (0x00, 0x38); // d = 0.5
    block[192..208].fill(2);
    block[192 + 8 + 5] = 0xfd; // group 13, elements 208..224: scale -3
    block[64 + 16] = 0x9 << 4; // element 128 + 64 + 16: low bits 9
    block[128 + 32 + 16] = 0b10 << 4; // and high bits 2
    let out = decoded(DType::Q6_K, &block);
    assert_eq!(out[0], -32.0);
    assert_eq!((out[208], out[209]), (0.5 * -3.0 * (41.0 - 32.0), 48.0));
}

/// Mean squared error of a round trip of normal numbers of variance 1.
fn loss(dtype: DType) -> f64 {
    let mut rng = Rng(1);
    let x: Vec<f32> = (0..256 * 256).map(|_| rng.normal() as f32).collect();
    let y = decoded(dtype, &encoded(dtype, &x));
    x.iter().zip(&y).map(|(x, y)| ((x - y) as f64).powi(2)).sum::<f64>() / x.len() as f64
}

/// As the formats' files state it.
const LOSSES: &[(DType, f64)] = &[
    (DType::Q4_0, 7.382e-3),
    (DType::Q4_1, 6.128e-3),
    (DType::Q5_0, 1.823e-3),
    (DType::Q5_1, 1.426e-3),
    (DType::Q8_0, 2.861e-5),
    (DType::Q8_1, 2.861e-5),
    (DType::Q2_K, 6.737e-2),
    (DType::Q3_K, 2.060e-2),
    (DType::Q4_K, 4.859e-3),
    (DType::Q5_K, 1.193e-3),
    (DType::Q6_K, 2.959e-4),
    (DType::Q8_K, 4.808e-5),
    (DType::IQ1_S, 2.000e-1),
    (DType::IQ1_M, 1.713e-1),
    (DType::IQ2_XXS, 1.082e-1),
    (DType::IQ2_XS, 8.141e-2),
    (DType::IQ2_S, 5.714e-2),
    (DType::IQ3_XXS, 3.123e-2),
    (DType::IQ3_S, 1.654e-2),
    (DType::IQ4_NL, 5.357e-3),
    (DType::IQ4_XS, 5.455e-3),
    (DType::TQ1_0, 6.461e-1),
    (DType::TQ2_0, 6.461e-1),
    (DType::MXFP4, 1.325e-2),
    (DType::NVFP4, 6.490e-3),
    (DType::Q1_0, 3.598e-1),
];

#[test]
fn losses_are_as_stated() {
    assert!(quantized().all(|d| LOSSES.iter().any(|l| l.0 == d)), "a format states none");
    for &(dtype, stated) in LOSSES {
        let loss = loss(dtype);
        assert!((loss / stated - 1.0).abs() < 0.01, "{dtype}: {loss:.3e}, stated {stated:.3e}");
    }
}

#[test]
fn formats_without_another_decoder() {
    let x: Vec<f32> = (0..256).map(|i| (i % 32) as f32 * 4.0 - 127.0).collect();
    let bytes = encoded(DType::Q8_1, &x[..32]);
    // d = 1; the sum of -127, -123, ..., -3 is -2080.
    assert_eq!(bytes[..6], [0x00, 0x3c, 0x10, 0xe8, 0x81, 0x85]);
    assert_eq!(decoded(DType::Q8_1, &bytes), x[..32]);
    let bytes = encoded(DType::Q8_K, &x);
    assert_eq!(bytes[..6], [0, 0, 0x80, 0x3f, 0x81, 0x85]);
    assert_eq!(bytes[260..264], [(-1552i16).to_le_bytes(), (-528i16).to_le_bytes()].concat());
    assert_eq!(decoded(DType::Q8_K, &bytes), x);
    let mut x = [-2.0; 128];
    (x[0], x[9], x[127]) = (2.0, 2.0, 0.0);
    let bytes = encoded(DType::Q1_0, &x);
    let mut signs = [0; 16];
    (signs[0], signs[1], signs[15]) = (1, 2, 128);
    assert_eq!(bytes[2..], signs);
    let d = half::f16::from_f32(254.0 / 128.0);
    assert_eq!(bytes[..2], d.to_le_bytes());
    let back = decoded(DType::Q1_0, &bytes);
    assert_eq!((back[0], back[1], back[9], back[127]), (d.to_f32(), -d.to_f32(), d.to_f32(), d.to_f32()));
}

#[test]
fn f8_codes_come_back() {
    for dtype in [DType::F8E4M3, DType::F8E5M2] {
        let all: Vec<u8> = (0..=255).collect();
        let back = encoded(dtype, &decoded(dtype, &all));
        for (code, back) in all.into_iter().zip(back) {
            let infinite = dtype == DType::F8E5M2 && code & 0x7f == 0x7c;
            let nan = code & 0x7f > if dtype == DType::F8E5M2 { 0x7c } else { 0x7e };
            let expected = if nan { 0x7f } else { code - infinite as u8 };
            assert_eq!(back, expected, "{dtype} {code:#04x}");
        }
    }
    assert_eq!(decoded(DType::F8E4M3, &[0x01, 0x38, 0x7e, 0xb8]), [f32::powi(2.0, -9), 1.0, 448.0, -1.0]);
    assert_eq!(
        decoded(DType::F8E5M2, &[0x01, 0x3c, 0x7b, 0xfc]),
        [f32::powi(2.0, -16), 1.0, 57344.0, f32::NEG_INFINITY]
    );
}

#[test]
fn f64_is_rounded_once() {
    // Just above a tie; by way of f32 it would be the tie, and go to even.
    let above = 1.0 + 1.0 / 16.0 + 1e-12;
    let mut code = [0];
    encode_f64(DType::F8E4M3, &[above], &mut code).unwrap();
    assert_eq!(code, [0x39]);
    encode_f64(DType::I8, &[0.5 + 1e-12], &mut code).unwrap();
    assert_eq!(code, [1]);
}

proptest! {
    #[test]
    fn f8_is_the_nearest(value in prop_oneof![-500f32..500.0, -0.1f32..0.1, -7e4f32..7e4]) {
        for dtype in [DType::F8E4M3, DType::F8E5M2] {
            let codes: Vec<u8> = (0..=255).collect();
            let table = decoded(dtype, &codes);
            let code = encoded(dtype, &[value])[0];
            let error = |x: f32| (x as f64 - value as f64).abs();
            let least = table.iter().filter(|x| x.is_finite()).map(|&x| error(x)).fold(f64::MAX, f64::min);
            prop_assert_eq!(error(table[code as usize]), least, "{} {}", dtype, code);
            let ties = codes.iter().filter(|&&c| table[c as usize].is_finite() && error(table[c as usize]) == least);
            let magnitudes: Vec<u8> = ties.map(|c| c & 0x7f).collect();
            prop_assert!(magnitudes.iter().all(|m| *m == code & 0x7f) || code & 1 == 0, "tie not to even");
        }
    }

    #[test]
    fn any_bytes_decode(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        for &dtype in DType::ALL {
            let whole = bytes.len() / dtype.block().1 * dtype.block().1;
            decoded(dtype, &bytes[..whole]);
        }
    }

    #[test]
    fn any_values_encode(bits in proptest::collection::vec(any::<u32>(), 256)) {
        let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        for &dtype in DType::ALL {
            decoded(dtype, &encoded(dtype, &values));
        }
    }

    #[test]
    fn a_bad_number_spoils_its_block_alone(at in 0usize..512, bad in prop_oneof![Just(f32::NAN), Just(f32::INFINITY)]) {
        let mut values: Vec<f32> = (0..512).map(|i| (i as f32).sin()).collect();
        values[at] = bad;
        // The fp4 formats have no NaN.
        for dtype in quantized().filter(|d| ![DType::MXFP4, DType::NVFP4].contains(d)) {
            let n = dtype.block().0;
            for (i, x) in decoded(dtype, &encoded(dtype, &values)).into_iter().enumerate() {
                prop_assert_eq!(x.is_nan(), i / n == at / n);
            }
        }
    }

    /// Every element comes back within half a step of its group's grid and what rounding the scales adds.
    #[test]
    fn errors_are_bounded(seed: u64, exponent in -4i32..10, offset in -3f64..3.0) {
        let (mut rng, scale) = (Rng(seed), f64::powi(2.0, exponent));
        let x: Vec<f32> = (0..256).map(|_| ((rng.normal() + offset) * scale) as f32).collect();
        let most = |x: &[f32]| x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let span = |x: &[f32]| x.iter().fold(0f32, |m, &v| m.max(v)) - x.iter().fold(0f32, |m, &v| m.min(v));
        let largest = most(&x);
        for dtype in [DType::Q4_0, DType::Q8_0, DType::Q4_K, DType::Q6_K] {
            let y = decoded(dtype, &encoded(dtype, &x));
            let n = if dtype == DType::Q6_K { 16 } else { 32 };
            for (x, y) in x.chunks(n).zip(y.chunks(n)) {
                let limit = match dtype {
                    DType::Q8_0 => 0.57 / 127.0 * most(x),
                    DType::Q4_0 => 1.01 / 8.0 * most(x), // the far end is cut off at 7
                    // Least squares may give up an end of the range. Groups share the scale's scale, so small groups
                    // next to large ones are coarser.
                    DType::Q4_K => 1.5 / 15.0 * span(x) + 0.02 * largest,
                    _ => 1.5 / 31.0 * most(x) + 0.02 * largest,
                };
                for (x, y) in x.iter().zip(y) {
                    prop_assert!((x - y).abs() <= limit, "{dtype}: {x} {y} {limit}");
                }
            }
        }
    }
}

#[test]
fn halves_round_once_from_f64() {
    let (mut bf, mut h) = ([0; 2], [0; 2]);
    // A hair beyond the middle of two neighbours: the hair decides, however thin.
    for hair in [1e-7, 1e-9, 1e-14] {
        let (below, above) = (1.0 + 1.0 / 256.0 - hair, 1.0 + 1.0 / 256.0 + hair);
        encode_f64(DType::BF16, &[above], &mut bf).unwrap();
        assert_eq!(bf, half::bf16::from_f32(1.0 + 1.0 / 128.0).to_le_bytes(), "{hair}");
        encode_f64(DType::BF16, &[-below], &mut bf).unwrap();
        assert_eq!(bf, half::bf16::from_f32(-1.0).to_le_bytes(), "{hair}");
        encode_f64(DType::F16, &[1.0 + 1.0 / 2048.0 + hair], &mut h).unwrap();
        assert_eq!(h, half::f16::from_f32(1.0 + 1.0 / 1024.0).to_le_bytes(), "{hair}");
    }
    for (v, want) in [(1e300, f32::INFINITY), (-1e300, f32::NEG_INFINITY), (1e-300, 0.0), (-0.0, -0.0), (1.5, 1.5)] {
        encode_f64(DType::BF16, &[v], &mut bf).unwrap();
        assert_eq!(bf, half::bf16::from_f32(want).to_le_bytes(), "{v}");
        encode_f64(DType::F16, &[v], &mut h).unwrap();
        assert_eq!(h, half::f16::from_f32(want).to_le_bytes(), "{v}");
    }
}
