//! The two 8-bit floats of the OCP specification "OFP8": e4m3 (finite, in the FN variant) and e5m2.
//!
//! ```text
//! bit  7 6 5 4 3 2 1 0
//!      s e e e e m m m     e4m3: bias 7, s.1111.111 is NaN, no infinities, largest 448
//!      s e e e e e m m     e5m2: bias 15, infinities and NaN as in f16, whose upper byte it is, largest 57344
//! ```
//!
//! Encoding rounds to nearest even and saturates, infinities too; every NaN becomes 0x7f.

use half::f16;

/// The numbers behind the 256 codes.
pub(super) fn values(e4m3: bool) -> &'static [f32; 256] {
    static E4M3: [f32; 256] = table(true);
    static E5M2: [f32; 256] = table(false);
    if e4m3 { &E4M3 } else { &E5M2 }
}

const fn table(e4m3: bool) -> [f32; 256] {
    let mut out = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let magnitude = (code as u16) & 0x7f;
        out[code] = if !e4m3 {
            f16::from_bits((code as u16) << 8).to_f32_const()
        } else if magnitude == 0x7f {
            f32::NAN
        } else {
            // The same fields as an f16's, whose bias is 8 more.
            f16::from_bits(magnitude << 7 | (code as u16 & 0x80) << 8).to_f32_const() * 256.0
        };
        code += 1;
    }
    out
}

/// The nearest code.
pub(super) fn encode(e4m3: bool, value: f64) -> u8 {
    let (mantissa, lowest, largest) = if e4m3 { (3, -6, 448.0) } else { (2, -14, 57344.0) };
    if value.is_nan() {
        return 0x7f;
    }
    let magnitude = value.abs().min(largest);
    let exponent = ((magnitude.to_bits() >> 52) as i64 - 1023).max(lowest);
    // In units of the last place (a power of two, so exact); a carry runs on into the exponent's bits by itself.
    let units = magnitude * f64::from_bits(((1023 + mantissa - exponent) as u64) << 52);
    let code = (((exponent - lowest) as u8) << mantissa) + units.round_ties_even() as u8;
    code | (value.is_sign_negative() as u8) << 7
}
