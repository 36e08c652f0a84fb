// What every shader may use: bit tests (WGSL may assume that no float is NaN), encodings of 16-bit floats, and functions
// whose accuracy does not depend on the driver (WGSL's own exp and tanh may be hundreds of ulps off).

// Threads of a workgroup that shares one row.
#if long
const WG = 256u;
#else
const WG = 64u;
#end

fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

// A constant infinity or NaN is an error in WGSL, so it comes as a parameter.
fn infinity() -> f32 {
    return bitcast<f32>(p.infinity);
}

fn nan() -> f32 {
    return bitcast<f32>(p.infinity | 0x400000u);
}

fn is_infinite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) == 0x7f800000u;
}

// An order that is total: NaN above everything, both zeros equal.
fn order(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return 0xffffffffu;
    }
    if (bits & 0x7fffffffu) == 0u {
        return 0x80000000u;
    }
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

// Exact, subnormals included.
fn f16_decode(h: u32) -> f32 {
    return unpack2x16float(h).x;
}

// To nearest even; infinite from 65520 on.
fn f16_encode(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let a = bits & 0x7fffffffu;
    if a > 0x7f800000u {
        return sign | 0x7e00u;
    }
    if a >= 0x477ff000u {
        return sign | 0x7c00u;
    }
    if a >= 0x38800000u {
        let r = a - 0x38000000u;
        return sign | ((r + 0xfffu + ((r >> 13u) & 1u)) >> 13u);
    }
    let exponent = a >> 23u;
    if exponent < 102u {
        return sign;
    }
    // Subnormal: the significand in units of 2^-24.
    let m = (a & 0x7fffffu) | 0x800000u;
    let shift = 126u - exponent;
    let q = m >> shift;
    let rest = m & ((1u << shift) - 1u);
    let middle = 1u << (shift - 1u);
    return sign | (q + select(0u, 1u, rest > middle || (rest == middle && (q & 1u) == 1u)));
}

fn bf16_decode(h: u32) -> f32 {
    return bitcast<f32>(h << 16u);
}

fn bf16_encode(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

#if f8e4m3
fn f8e4m3_decode(c: u32) -> f32 {
    let sign = (c & 0x80u) << 24u;
    let m = c & 0x7fu;
    if m == 0x7fu {
        return nan();
    }
    if m < 8u {
        return bitcast<f32>(sign | bitcast<u32>(f32(m) * 0.001953125));
    }
    return bitcast<f32>(sign | ((m << 20u) + 0x3c000000u));
}

// To nearest even, saturating.
fn f8e4m3_encode(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 24u) & 0x80u;
    let a = bits & 0x7fffffffu;
    if a > 0x7f800000u {
        return 0x7fu;
    }
    if a >= 0x43e00000u {
        return sign | 0x7eu;
    }
    if a >= 0x3c800000u {
        let r = a - 0x3c000000u;
        return sign | ((r + 0x7ffffu + ((r >> 20u) & 1u)) >> 20u);
    }
    return sign | u32(round(abs(x) * 512.0));
}
#end
#if f8e5m2
// To nearest even, saturating; decoded as an f16's upper byte.
fn f8e5m2_encode(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 24u) & 0x80u;
    let a = bits & 0x7fffffffu;
    if a > 0x7f800000u {
        return 0x7fu;
    }
    if a >= 0x47600000u {
        return sign | 0x7bu;
    }
    if a >= 0x38800000u {
        let r = a - 0x38000000u;
        return sign | ((r + 0xfffffu + ((r >> 21u) & 1u)) >> 21u);
    }
    return sign | u32(round(abs(x) * 65536.0));
}
#end
#if encode
// The same number, out of the reach of contraction into a fused multiply-add.
fn apart(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) ^ (p.infinity ^ 0x7f800000u));
}

// Significand of 24 bits and exponent of a positive number's bits, subnormal ones normalized.
fn parts(bits: u32) -> vec2<i32> {
    let m = bits & 0x7fffffu;
    if bits >= 0x800000u {
        return vec2(i32(m | 0x800000u), i32(bits >> 23u));
    }
    let shift = countLeadingZeros(m) - 8u;
    return vec2(i32(m << shift), 1 - i32(shift));
}

// a / b for finite numbers, rounded to nearest even (WGSL's own division may be 2.5 ulp off): long division.
fn divide_exact(a: f32, b: f32) -> f32 {
    let sign = (bitcast<u32>(a) ^ bitcast<u32>(b)) & 0x80000000u;
    let a_bits = bitcast<u32>(a) & 0x7fffffffu;
    let b_bits = bitcast<u32>(b) & 0x7fffffffu;
    if b_bits == 0u {
        return bitcast<f32>(sign | p.infinity);
    }
    if a_bits == 0u {
        return bitcast<f32>(sign);
    }
    let n = parts(a_bits);
    let d = parts(b_bits);
    let m = u32(d.x);
    var q = u32(n.x) / m;
    var rest = u32(n.x) % m;
    for (var i = 0u; i < 3u; i++) {
        q = (q << 8u) | ((rest << 8u) / m);
        rest = (rest << 8u) % m;
    }
    q = (q << 2u) | ((rest << 2u) / m);
    rest = (rest << 2u) % m;
    q |= select(0u, 1u, rest != 0u); // below the last bit that counts
    let top = 31 - i32(countLeadingZeros(q));
    var exponent = n.y - d.y + top - 26 + 127;
    var shift = u32(top - 23);
    if exponent <= 0 {
        shift += u32(1 - exponent);
        exponent = 1;
        if shift > 28u {
            return bitcast<f32>(sign);
        }
    }
    let kept = q >> shift;
    let lost = q & ((1u << shift) - 1u);
    let half = 1u << (shift - 1u);
    let rounded = kept + select(0u, 1u, lost > half || (lost == half && (kept & 1u) == 1u));
    let bits = (u32(exponent - 1) << 23u) + rounded;
    return bitcast<f32>(sign | min(bits, p.infinity));
}
#end

// e^x within 2 ulp: x = n ln 2 + r, a polynomial in r, and 2^n in two factors so that neither overflows.
fn exp_(x: f32) -> f32 {
    if is_nan(x) {
        return x;
    }
    if x > 88.72284 {
        return infinity();
    }
    if x < -104.0 {
        return 0.0;
    }
    let n = round(x * 1.44269504);
    let r = (x - n * 0.693145752) - n * 1.42860677e-6;
    let y = 1.0 + expm1_(r);
    let i = i32(n);
    let a = i / 2;
    return y * power_of_two(a) * power_of_two(i - a);
}

// e^x - 1 for |x| <= 0.35.
fn expm1_(x: f32) -> f32 {
    return x * (1.0 + x * (0.5 + x * (0.166666667 + x * (0.0416666667
        + x * (0.00833333333 + x * (0.00138888889 + x * 0.000198412698))))));
}

fn power_of_two(n: i32) -> f32 {
    return bitcast<f32>(u32(n + 127) << 23u);
}

// ln x within 2 ulp for normal x: the exponent apart, then 2 atanh((m - 1) / (m + 1)).
fn log_(x: f32) -> f32 {
    if x == 0.0 {
        return -infinity();
    }
    if is_nan(x) || x < 0.0 {
        return nan();
    }
    if is_infinite(x) {
        return x;
    }
    let bits = bitcast<u32>(x) - 0x3f3504f3u; // the significand becomes sqrt(1/2) .. sqrt(2)
    let e = f32(bitcast<i32>(bits) >> 23u);
    let m = bitcast<f32>((bits & 0x7fffffu) + 0x3f3504f3u);
    return e * 0.693145752 + (e * 1.42860677e-6 + log1p_(m - 1.0));
}

// ln(1 + x) for -0.3 <= x <= 1.
fn log1p_(x: f32) -> f32 {
    let s = x / (2.0 + x);
    let t = s * s;
    return 2.0 * s * (1.0 + t * (0.333333333 + t * (0.2 + t * (0.142857143 + t * (0.111111111 + t * (0.0909090909
        + t * (0.0769230769 + t * 0.0666666667)))))));
}

fn sigmoid(x: f32) -> f32 {
    let e = exp_(-abs(x));
    return select(e, 1.0, x >= 0.0 || is_nan(x)) / (1.0 + e);
}

fn tanh_(x: f32) -> f32 {
    if is_nan(x) {
        return x;
    }
    let a = abs(x);
    if a < 0.4 {
        let t = x * x;
        return x * (1.0 + t * (-0.333333333 + t * (0.133333333 + t * (-0.0539682540 + t * (0.0218694885
            + t * (-0.00886323553 + t * 0.00359212804))))));
    }
    let y = 1.0 - 2.0 / (exp_(2.0 * min(a, 20.0)) + 1.0);
    return select(y, -y, x < 0.0);
}

// The limit at -inf, where the formulas would give -inf times 0.
fn times_gate(x: f32, gate: f32) -> f32 {
    return select(x * gate, -0.0, is_infinite(x) && x < 0.0);
}

fn silu(x: f32) -> f32 {
    return times_gate(x, sigmoid(x));
}

fn gelu_tanh(x: f32) -> f32 {
    // (1 + tanh u) / 2 is sigmoid(2 u), without the cancellation.
    let c = clamp(x, -100.0, 100.0);
    let u = 1.59576912 * (c + 0.044715 * c * c * c);
    return times_gate(x, select(sigmoid(u), x, is_nan(x)));
}

fn gelu_erf(x: f32) -> f32 {
    return times_gate(x, 0.5 * erfc(-0.707106781 * x));
}

fn relu(x: f32) -> f32 {
    return select(0.0, x, x > 0.0 || is_nan(x));
}

fn softplus(x: f32) -> f32 {
    if is_nan(x) {
        return x;
    }
    return max(x, 0.0) + log1p_(exp_(-abs(x)));
}

// erfc(z) = t P(u) exp(-z^2) with t = 3 / (3 + |z|) and u = 2.6 t - 1.6: P interpolates at Chebyshev nodes for |z| <= 10,
// relative error 5e-9; the tail keeps its relative accuracy, which 1 + erf would lose.
fn erfc(z: f32) -> f32 {
    if is_nan(z) {
        return z;
    }
    let a = min(abs(z), 10.0);
    let t = 3.0 / (3.0 + a);
    let u = 2.6 * t - 1.6;
    let polynomial = 0.437823726 + u * (0.310681248 + u * (0.166974618 + u * (0.0659190461 + u * (0.0172875408
        + u * (0.00192886618 + u * (-0.000454989605 + u * (-0.000178482364 + u * (7.92334995e-06
        + u * 1.05057421e-05))))))));
    // The square in two parts: its high part is exact, so the error of a^2 does not grow in the exponential.
    let high = bitcast<f32>(bitcast<u32>(a) & 0xfffff000u);
    let y = t * polynomial * exp_(-high * high) * exp_((high - a) * (high + a));
    return select(y, 2.0 - y, z < 0.0);
}

#if cache
// First element of a cache's row, counted through its pages.
fn cache_row(slot: u32) -> u32 {
    return slot / p.page * p.page_stride + slot % p.page * p.row_stride;
}
#end

#if subgroups
var<private> subgroup: vec3<u32>; // this thread's subgroup, how many there are, and its place within (see `#main`)
#end
#if reduce
var<workgroup> lanes: array<f32, WG>;

#if subgroups
// The sum over the workgroup, in the same order every time: over each subgroup, then of those.
fn sum_all(lane: u32, value: f32) -> f32 {
    let part = subgroupAdd(value);
    if subgroup.z == 0u {
        lanes[subgroup.x] = part;
    }
    workgroupBarrier();
    var total = lanes[0];
    for (var i = 1u; i < subgroup.y; i++) {
        total += lanes[i];
    }
    workgroupBarrier();
    return total;
}

// The largest over the workgroup; NaN above everything, and zeros lose their sign.
fn max_all(lane: u32, value: f32) -> f32 {
    let part = subgroupMax(order(value));
    if subgroup.z == 0u {
        lanes[subgroup.x] = bitcast<f32>(part);
    }
    workgroupBarrier();
    var largest = bitcast<u32>(lanes[0]);
    for (var i = 1u; i < subgroup.y; i++) {
        largest = max(largest, bitcast<u32>(lanes[i]));
    }
    workgroupBarrier();
    return bitcast<f32>(select(~largest, largest ^ 0x80000000u, (largest >> 31u) == 1u));
}
#else
// The sum over the workgroup, in the same order every time.
fn sum_all(lane: u32, value: f32) -> f32 {
    lanes[lane] = value;
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step >>= 1u) {
        if lane < step {
            lanes[lane] += lanes[lane + step];
        }
        workgroupBarrier();
    }
    let total = lanes[0];
    workgroupBarrier();
    return total;
}

// The largest over the workgroup; NaN above everything.
fn max_all(lane: u32, value: f32) -> f32 {
    lanes[lane] = value;
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step >>= 1u) {
        if lane < step && order(lanes[lane + step]) > order(lanes[lane]) {
            lanes[lane] = lanes[lane + step];
        }
        workgroupBarrier();
    }
    let largest = lanes[0];
    workgroupBarrier();
    return largest;
}
#end
#end
#if pick
struct Pick {
    order: u32,
    index: u32,
}
var<workgroup> picks: array<Pick, WG>;

fn better(a: Pick, b: Pick) -> bool {
    return a.order > b.order || (a.order == b.order && a.index < b.index);
}

// The largest over the workgroup, the first of equals.
#if subgroups
fn pick_all(lane: u32, value: Pick) -> Pick {
    let most = subgroupMax(value.order);
    let first = subgroupMin(select(0xffffffffu, value.index, value.order == most));
    if subgroup.z == 0u {
        picks[subgroup.x] = Pick(most, first);
    }
    workgroupBarrier();
    var best = picks[0];
    for (var i = 1u; i < subgroup.y; i++) {
        if better(picks[i], best) {
            best = picks[i];
        }
    }
    workgroupBarrier();
    return best;
}
#else
fn pick_all(lane: u32, value: Pick) -> Pick {
    picks[lane] = value;
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step >>= 1u) {
        if lane < step && better(picks[lane + step], picks[lane]) {
            picks[lane] = picks[lane + step];
        }
        workgroupBarrier();
    }
    let best = picks[0];
    workgroupBarrier();
    return best;
}
#end
#end
