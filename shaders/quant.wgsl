// One decode function per block format, instantiated for each quantized operand (T_ becomes the operand's name): four
// neighbouring elements at once, which share their scale and, mostly, one word of bits. `at` is the block's first byte,
// `j` the first of the four within it, a multiple of 4. Layouts are drawn in src/quant/. Products of scales and levels
// are exact in f32 and only a sum rounds, so contraction into fused multiply-adds changes no bit.

fn T_byte(at: u32) -> u32 {
    return (T_word(at >> 2u) >> (8u * (at & 3u))) & 0xffu;
}

// Four bytes from anywhere; all four are the block's.
fn T_four(at: u32) -> u32 {
    let low = T_word(at >> 2u);
    let shift = 8u * (at & 3u);
    if shift == 0u {
        return low;
    }
    return (low >> shift) | (T_word((at >> 2u) + 1u) << (32u - shift));
}

fn T_two(at: u32) -> u32 {
    let shift = 8u * (at & 3u);
    let low = T_word(at >> 2u) >> shift;
    if shift < 24u {
        return low & 0xffffu;
    }
    return low | ((T_word((at >> 2u) + 1u) & 0xffu) << 8u);
}

fn T_signed(at: u32) -> f32 {
    return f32(bitcast<i32>(T_byte(at) << 24u) >> 24u);
}

fn T_half(at: u32) -> f32 {
    return f16_decode(T_two(at));
}

// Two halves side by side, mostly in one word: one load where four bytes were four. 1 x 1024 x 4096 by q4_k on lavapipe: 84 ms to 53.
fn T_halves(at: u32) -> vec2<f32> {
    let both = T_four(at);
    return vec2(f16_decode(both & 0xffffu), f16_decode(both >> 16u));
}

fn T_signed_bytes(word: u32) -> vec4<f32> {
    let w = bitcast<i32>(word);
    return vec4<f32>(vec4(w << 24u, w << 16u, w << 8u, w) >> vec4(24u));
}

// `mask` of each byte, shifted down.
fn T_bits(word: u32, shift: u32, mask: u32) -> vec4<u32> {
    let w = word >> shift;
    return vec4(w, w >> 8u, w >> 16u, w >> 24u) & vec4(mask);
}

// The low nibbles of 16 bytes, then the high ones.
fn T_nibbles(at: u32, j: u32) -> vec4<u32> {
    return T_bits(T_four(at + (j & 15u)), 4u * ((j >> 4u) & 1u), 15u);
}

// Bits j, j + 1, j + 2, j + 3 of a word.
fn T_flags(word: u32, j: u32) -> vec4<u32> {
    let w = word >> j;
    return vec4(w, w >> 1u, w >> 2u, w >> 3u) & vec4(1u);
}

#if q4_0
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    return T_half(at) * (vec4<f32>(T_nibbles(at + 2u, j)) - 8.0);
}
#end
#if q4_1
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let d = T_halves(at);
    return d.x * vec4<f32>(T_nibbles(at + 4u, j)) + d.y;
}
#end
#if q5_0
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let q = T_nibbles(at + 6u, j) | (T_flags(T_four(at + 2u), j) << vec4(4u));
    return (vec4<f32>(q) - 16.0) * T_half(at);
}
#end
#if q5_1
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let q = T_nibbles(at + 8u, j) | (T_flags(T_four(at + 4u), j) << vec4(4u));
    let d = T_halves(at);
    return d.x * vec4<f32>(q) + d.y;
}
#end
#if q8_0
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    return T_half(at) * T_signed_bytes(T_four(at + 2u + j));
}
#end
#if q8_1
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    return T_half(at) * T_signed_bytes(T_four(at + 4u + j));
}
#end
#if q8_k
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    return bitcast<f32>(T_four(at)) * T_signed_bytes(T_four(at + 4u + j));
}
#end
#if q1_0
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let d = T_half(at);
    return select(vec4(-d), vec4(d), T_flags(T_byte(at + 2u + (j >> 3u)), j & 7u) == vec4(1u));
}
#end
#if q2_k
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let group = T_byte(at + (j >> 4u));
    let q = T_bits(T_four(at + 16u + (j >> 7u) * 32u + (j & 31u)), ((j >> 5u) & 3u) * 2u, 3u);
    let d = T_halves(at + 80u);
    return d.x * f32(group & 15u) * vec4<f32>(q) - d.y * f32(group >> 4u);
}
#end
#if q3_k
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let h = j >> 7u;
    let part = (j >> 5u) & 3u;
    let g = j >> 4u;
    let low = (T_byte(at + 96u + (g & 7u)) >> ((g >> 3u) * 4u)) & 15u;
    let scale = low | (((T_byte(at + 104u + (g & 3u)) >> ((g >> 2u) * 2u)) & 3u) << 4u);
    let q = T_bits(T_four(at + 32u + 32u * h + (j & 31u)), 2u * part, 3u);
    let high = T_bits(T_four(at + (j & 31u)), 4u * h + part, 1u);
    return T_half(at + 108u) * (f32(scale) - 32.0) * (vec4<f32>(q | (high << vec4(2u))) - 4.0);
}
#end
#if k_groups
// Scale and minimum of group g, 6 bits each, of the 12 bytes from `at`.
fn T_group(at: u32, g: u32) -> vec2<f32> {
    if g < 4u {
        return vec2(f32(T_byte(at + g) & 63u), f32(T_byte(at + g + 4u) & 63u));
    }
    let low = T_byte(at + g + 4u);
    let scale = (low & 15u) | ((T_byte(at + g - 4u) >> 6u) << 4u);
    return vec2(f32(scale), f32((low >> 4u) | ((T_byte(at + g) >> 6u) << 4u)));
}
#end
#if q4_k
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let group = T_group(at + 4u, j >> 5u);
    let q = T_bits(T_four(at + 16u + (j >> 6u) * 32u + (j & 31u)), 4u * ((j >> 5u) & 1u), 15u);
    let d = T_halves(at);
    return d.x * group.x * vec4<f32>(q) - d.y * group.y;
}
#end
#if q5_k
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let group = T_group(at + 4u, j >> 5u);
    let low = T_bits(T_four(at + 48u + (j >> 6u) * 32u + (j & 31u)), 4u * ((j >> 5u) & 1u), 15u);
    let q = low | (T_bits(T_four(at + 16u + (j & 31u)), j >> 5u, 1u) << vec4(4u));
    let d = T_halves(at);
    return d.x * group.x * vec4<f32>(q) - d.y * group.y;
}
#end
#if q6_k
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let h = j >> 7u;
    let part = (j >> 5u) & 3u;
    let l = j & 31u;
    let low = T_bits(T_four(at + h * 64u + (part & 1u) * 32u + l), 4u * (part >> 1u), 15u);
    let high = T_bits(T_four(at + 128u + h * 32u + l), 2u * part, 3u);
    let scale = T_signed(at + 192u + (j >> 4u));
    return T_half(at + 208u) * scale * (vec4<f32>(low | (high << vec4(4u))) - 32.0);
}
#end
#if tq1_0
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    var byte = at + (j & 31u);
    var digit = j >> 5u;
    if j >= 240u {
        byte = at + 48u;
        digit = (j - 240u) >> 2u;
    } else if j >= 160u {
        byte = at + 32u + (j & 15u);
        digit = (j - 160u) >> 4u;
    }
    var q = T_bits(T_four(byte), 0u, 0xffu);
    for (var n = 0u; n < digit; n++) {
        q = (q * 3u) & vec4(0xffu);
    }
    return (vec4<f32>((q * 3u) >> vec4(8u)) - 1.0) * T_half(at + 52u);
}
#end
#if tq2_0
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let q = T_bits(T_four(at + (j >> 7u) * 32u + (j & 31u)), ((j >> 5u) & 3u) * 2u, 3u);
    return (vec4<f32>(q) - 1.0) * T_half(at + 64u);
}
#end
#if e2m1
// Twice e2m1's numbers.
fn T_level(q: u32) -> f32 {
    let m = q & 7u;
    let v = f32(select(m, (2u + (m & 1u)) << ((m >> 1u) - 1u), m > 3u));
    return select(v, -v, (q & 8u) != 0u);
}
#end
#if mxfp4
// level * 2^(e - 128), by its bits: the power alone may be subnormal.
fn T_scaled(q: u32, e: u32) -> f32 {
    if (q & 7u) == 0u {
        return 0.0;
    }
    let bits = bitcast<u32>(T_level(q));
    let exponent = i32((bits >> 23u) & 0xffu) + i32(e) - 128;
    let sign = bits & 0x80000000u;
    if exponent > 0 {
        return bitcast<f32>(sign | (u32(exponent) << 23u) | (bits & 0x7fffffu));
    }
    return bitcast<f32>(sign | (((bits & 0x7fffffu) | 0x800000u) >> u32(1 - exponent)));
}

fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let e = T_byte(at);
    let q = T_nibbles(at + 1u, j);
    return vec4(T_scaled(q.x, e), T_scaled(q.y, e), T_scaled(q.z, e), T_scaled(q.w, e));
}
#end
#if nvfp4
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let scale = T_byte(at + (j >> 4u));
    let exponent = (scale >> 3u) & 15u;
    var d = f32(scale & 7u) * 0.0009765625;
    if exponent > 0u {
        d = (8.0 + f32(scale & 7u)) * bitcast<f32>((exponent + 116u) << 23u);
    }
    if scale == 0x7fu {
        d = 0.0;
    }
    let q = T_bits(T_four(at + 4u + (j >> 4u) * 8u + (j & 7u)), 4u * ((j >> 3u) & 1u), 15u);
    return d * vec4(T_level(q.x), T_level(q.y), T_level(q.z), T_level(q.w));
}
#end
#if iq4_levels
// Denser around zero: 16 signed bytes.
fn T_uneven(q: vec4<u32>) -> vec4<f32> {
    let levels = vec4(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
    let w = vec4(levels[q.x >> 2u], levels[q.y >> 2u], levels[q.z >> 2u], levels[q.w >> 2u]);
    return vec4<f32>((bitcast<vec4<i32>>(w) << (vec4(24u) - 8u * (q & vec4(3u)))) >> vec4(24u));
}
#end
#if iq4_nl
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    return T_half(at) * T_uneven(T_nibbles(at + 2u, j));
}
#end
#if iq4_xs
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let g = j >> 5u;
    let low = (T_byte(at + 4u + (g >> 1u)) >> (4u * (g & 1u))) & 15u;
    let scale = f32(low | (((T_two(at + 2u) >> (2u * g)) & 3u) << 4u)) - 32.0;
    return T_half(at) * scale * T_uneven(T_nibbles(at + 8u + 16u * g, j & 31u));
}
#end
#if grid
// Point i of the format's grid, 16 bits; the points lie two to a word.
fn T_point(i: u32) -> u32 {
    return (constants[i >> 1u] >> (16u * (i & 1u))) & 0xffffu;
}

// Four signs as factors, from bit j on.
fn T_factors(signs: u32, j: u32) -> vec4<f32> {
    return 1.0 - 2.0 * vec4<f32>(T_flags(signs, j));
}

// Eight signs from seven: the last makes the number of negatives even.
fn T_eighth(bits: u32) -> u32 {
    let seven = bits & 127u;
    return seven | ((countOneBits(seven) & 1u) << 7u);
}

// Coordinates of a point of 8, four from j on.
fn T_pairs(point: u32, j: u32) -> vec4<u32> {
    let p = point >> (2u * (j & 4u));
    return vec4(p, p >> 2u, p >> 4u, p >> 6u) & vec4(3u);
}

fn T_wide(point: u32, j: u32) -> vec4<f32> {
    let c = T_pairs(point, j);
    return vec4<f32>(8u + 17u * c + (c >> vec4(1u)));
}

// Coordinates of a point of 4.
fn T_octal(point: u32) -> vec4<u32> {
    return vec4(point, point >> 4u, point >> 8u, point >> 12u) & vec4(7u);
}
#end
#if iq2_xxs
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let group = at + 2u + (j >> 5u) * 8u;
    let run = (j >> 3u) & 3u;
    let bits = T_four(group + 4u);
    let scale = T_half(at) * (0.5 + f32(bits >> 28u)) * 0.25;
    return scale * T_wide(T_point(T_byte(group + run)), j) * T_factors(T_eighth(bits >> (7u * run)), j & 4u);
}
#end
#if iq2_xs
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let run = T_two(at + 2u + (j >> 3u) * 2u);
    let nibble = (T_byte(at + 66u + (j >> 5u)) >> (((j >> 4u) & 1u) * 4u)) & 15u;
    let scale = T_half(at) * (0.5 + f32(nibble)) * 0.25;
    return scale * T_wide(T_point(run & 511u), j) * T_factors(T_eighth(run >> 9u), j & 4u);
}
#end
#if iq2_s
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let i = j >> 3u;
    let nibble = (T_byte(at + 74u + (j >> 5u)) >> (((j >> 4u) & 1u) * 4u)) & 15u;
    let scale = T_half(at) * (0.5 + f32(nibble)) * 0.25;
    let high = (T_byte(at + 66u + (i >> 2u)) >> ((i & 3u) * 2u)) & 3u;
    let point = T_point(T_byte(at + 2u + i) | (high << 8u));
    return scale * T_wide(point, j) * T_factors(T_byte(at + 34u + i), j & 4u);
}
#end
#if iq3_xxs
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let bits = T_four(at + 66u + (j >> 5u) * 4u);
    let scale = T_half(at) * (0.5 + f32(bits >> 28u)) * 0.5;
    let c = T_octal(T_point(T_byte(at + 2u + (j >> 2u))));
    let level = vec4<f32>(4u + 8u * c + select(vec4(0u), vec4(2u), c == vec4(7u)));
    return scale * level * T_factors(T_eighth(bits >> (7u * ((j >> 3u) & 3u))), j & 4u);
}
#end
#if iq3_s
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let i = j >> 2u;
    let nibble = (T_byte(at + 106u + (j >> 6u)) >> (((j >> 5u) & 1u) * 4u)) & 15u;
    let scale = T_half(at) * f32(1u + 2u * nibble);
    let high = (T_byte(at + 66u + (i >> 3u)) >> (i & 7u)) & 1u;
    let c = T_octal(T_point(T_byte(at + 2u + i) | (high << 8u)));
    return scale * vec4<f32>(1u + 2u * c) * T_factors(T_byte(at + 74u + (j >> 3u)), j & 4u);
}
#end
#if iq1_s
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let i = j >> 3u;
    let group = T_two(at + 34u + (j >> 5u) * 2u);
    let scale = T_half(at) * f32(2u * ((group >> 12u) & 7u) + 1u);
    let shift = select(0.125, -0.125, (group >> 15u) == 1u);
    let point = T_point(T_byte(at + 2u + i) | (((group >> ((i & 3u) * 3u)) & 7u) << 8u));
    return scale * (vec4<f32>(T_pairs(point, j)) - 1.0 + shift);
}
#end
#if iq1_m
fn T_decode4(at: u32, j: u32) -> vec4<f32> {
    let i = j >> 3u;
    var d = 0u;
    for (var n = 0u; n < 4u; n++) {
        d |= (T_two(at + 48u + 2u * n) >> 12u) << (4u * n);
    }
    let word = T_two(at + 48u + 2u * (i >> 3u));
    let scale = f16_decode(d) * f32(2u * ((word >> (((i >> 1u) & 3u) * 3u)) & 7u) + 1u);
    let high = T_byte(at + 32u + (i >> 1u)) >> (4u * (i & 1u));
    let shift = select(0.125, -0.125, (high & 8u) != 0u);
    let point = T_point(T_byte(at + i) | ((high & 7u) << 8u));
    return scale * (vec4<f32>(T_pairs(point, j)) - 1.0 + shift);
}
#end
#if encode
// Blocks as GGUF's reference encoder makes them, on every GPU the same: division is by long division of the
// significands, and no multiplication may fuse with what follows it.
fn T_put(at: u32, value: u32) {
    T_store_byte(at, value & 0xffu);
}

fn T_largest(x: ptr<function, array<f32, 32>>) -> f32 {
    var most = 0.0;
    for (var i = 0u; i < 32u; i++) {
        let v = (*x)[i];
        if is_nan(v) || is_infinite(v) {
            return nan();
        }
        if abs(v) > abs(most) {
            most = v;
        }
    }
    return most;
}

fn T_put_half(at: u32, v: f32) {
    let h = f16_encode(v);
    T_put(at, h);
    T_put(at + 1u, h >> 8u);
}

fn T_reciprocal(d: f32) -> f32 {
    let r = divide_exact(1.0, d);
    return select(r, 0.0, is_infinite(r) || is_nan(r));
}
#end
#if encode_bytes
fn T_encode(at: u32, x: ptr<function, array<f32, 32>>) {
    let most = T_largest(x);
    if is_nan(most) {
        T_put_half(at, nan());
        for (var i = 2u; i < T_BYTES; i++) {
            T_put(at + i, 0u);
        }
        return;
    }
    let d = divide_exact(abs(most), 127.0);
    let inverse = T_reciprocal(d);
    T_put_half(at, d);
    var sum = 0;
    for (var i = 0u; i < 32u; i++) {
        let v = apart((*x)[i] * inverse);
        let whole = i32(v);
        let rest = v - f32(whole);
        let q = whole + select(0, 1, rest >= 0.5) - select(0, 1, rest <= -0.5);
        sum += q;
        T_put(at + T_BYTES - 32u + i, bitcast<u32>(q));
    }
#if encode_q8_1
    T_put_half(at + 2u, f32(sum) * d);
#end
}
#end
#if encode_codes
#if encode_fifths
const T_TOP = 31u;
#else
const T_TOP = 15u;
#end

// Codes up to `T_TOP`, of 4 or 5 bits: scale, smallest number where there is one, fifth bits, nibbles.
fn T_encode(at: u32, x: ptr<function, array<f32, 32>>) {
    let most = T_largest(x);
    if is_nan(most) {
        T_put_half(at, nan());
        for (var i = 2u; i < T_BYTES; i++) {
            T_put(at + i, 0u);
        }
        return;
    }
#if encode_offset
    var low = (*x)[0];
    var high = low;
    for (var i = 1u; i < 32u; i++) {
        low = min(low, (*x)[i]);
        high = max(high, (*x)[i]);
    }
    // A range beyond the largest number: an infinite scale, and codes of 0.
    let range = high - low;
    let wide = is_infinite(range);
    let d = select(divide_exact(range, f32(T_TOP)), infinity(), wide);
    let inverse = select(T_reciprocal(d), 0.0, wide);
    let middle = 0.5;
    T_put_half(at + 2u, low);
#else
    let low = 0.0;
    let d = most * (-2.0 / f32(T_TOP + 1u));
    let inverse = T_reciprocal(d);
    let middle = 0.5 * f32(T_TOP + 1u) + 0.5;
#end
    T_put_half(at, d);
    var fifths = 0u;
    for (var i = 0u; i < 16u; i++) {
        let a = min(u32(max(apart(((*x)[i] - low) * inverse) + middle, 0.0)), T_TOP);
        let b = min(u32(max(apart(((*x)[i + 16u] - low) * inverse) + middle, 0.0)), T_TOP);
        fifths |= ((a >> 4u) << i) | ((b >> 4u) << (i + 16u));
        T_put(at + T_BYTES - 16u + i, (a & 15u) | ((b & 15u) << 4u));
    }
#if encode_fifths
    for (var i = 0u; i < 4u; i++) {
        T_put(at + T_BYTES - 20u + i, fifths >> (8u * i));
    }
#end
}
#end
