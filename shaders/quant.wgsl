// One decode function per block format, instantiated for each quantized operand (T_ becomes the operand's name).
// `at` is the block's first byte, `j` the element within it. Every product is exact in f32, so contraction into
// fused multiply-adds changes no bit.

fn T_byte(at: u32) -> u32 {
    return (T_words[at >> 2u] >> (8u * (at & 3u))) & 0xffu;
}

fn T_signed(at: u32) -> f32 {
    return f32(bitcast<i32>(T_byte(at) << 24u) >> 24u);
}

fn T_half(at: u32) -> f32 {
    return f16_decode(T_byte(at) | (T_byte(at + 1u) << 8u));
}

#if q4_0
// d: f16 | 16 bytes: element j in the low nibble of byte j, j + 16 in the high one
fn T_decode(at: u32, j: u32) -> f32 {
    let q = (T_byte(at + 2u + (j & 15u)) >> (4u * (j >> 4u))) & 15u;
    return T_half(at) * (f32(q) - 8.0);
}
#end
#if q8_0
// d: f16 | 32 signed bytes
fn T_decode(at: u32, j: u32) -> f32 {
    return T_half(at) * T_signed(at + 2u + j);
}
#end
#if q4_k
// d, dmin: f16 | 8 scales and 8 minima of 6 bits in 12 bytes | 128 bytes: 64 elements per 32 bytes, low nibbles first
fn T_decode(at: u32, j: u32) -> f32 {
    let sub = j >> 5u;
    let s = at + 4u;
    var scale: u32;
    var minimum: u32;
    if sub < 4u {
        scale = T_byte(s + sub) & 63u;
        minimum = T_byte(s + sub + 4u) & 63u;
    } else {
        let low = T_byte(s + sub + 4u);
        scale = (low & 15u) | ((T_byte(s + sub - 4u) >> 6u) << 4u);
        minimum = (low >> 4u) | ((T_byte(s + sub) >> 6u) << 4u);
    }
    let q = (T_byte(at + 16u + (j >> 6u) * 32u + (j & 31u)) >> (4u * (sub & 1u))) & 15u;
    return T_half(at) * f32(scale) * f32(q) - T_half(at + 2u) * f32(minimum);
}
#end
#if q6_k
// 128 bytes of low nibbles | 64 bytes of high pairs | 16 signed scales | d: f16; in two halves of 128 elements
fn T_decode(at: u32, j: u32) -> f32 {
    let half = j >> 7u;
    let quarter = (j >> 5u) & 3u;
    let l = j & 31u;
    let low = (T_byte(at + half * 64u + (quarter & 1u) * 32u + l) >> (4u * (quarter >> 1u))) & 15u;
    let high = (T_byte(at + 128u + half * 32u + l) >> (2u * quarter)) & 3u;
    let scale = T_signed(at + 192u + half * 8u + (l >> 4u) + quarter * 2u);
    return T_half(at + 208u) * scale * (f32(low | (high << 4u)) - 32.0);
}
#end
