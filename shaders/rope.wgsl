// One thread per token, head and pair (and, with a cache, per element that is not rotated but copied). Angles are exact:
// frequencies come as turns per position in units of 2^-64, so that position times frequency, modulo whole turns, is an
// integer product modulo 2^64. What goes to a quantized cache lies in `scratch` for kv_append.wgsl, unrounded.

#use wide

#if factors
// frequency / factor, modulo whole turns: long division by the factor's 24-bit significand, byte by byte, then a shift by
// its exponent. For a factor that is 0, negative or not finite: false.
fn divide(frequency: ptr<function, vec2<u32>>, factor: f32) -> bool {
    let bits = bitcast<u32>(factor);
    if bits < 0x800000u || bits >= 0x7f800000u {
        return false;
    }
    let m = (bits & 0x7fffffu) | 0x800000u;
    var q = vec2<u32>(); // frequency * 2^24 / m
    var rest = 0u;
    for (var i = 0u; i < 11u; i++) {
        var byte = 0u;
        if i < 4u {
            byte = ((*frequency).x >> (24u - 8u * i)) & 0xffu;
        } else if i < 8u {
            byte = ((*frequency).y >> (24u - 8u * (i - 4u))) & 0xffu;
        }
        let v = (rest << 8u) | byte;
        q = vec2((q.x << 8u) | (q.y >> 24u), (q.y << 8u) | (v / m));
        rest = v % m;
    }
    // factor = m 2^(e - 150), so what remains is a shift right by 24 + e - 150.
    let shift = i32(bits >> 23u) - 126;
    for (var i = 0; i < shift && i < 64; i++) {
        q = vec2(q.x >> 1u, (q.y >> 1u) | (q.x << 31u));
    }
    for (var i = shift; i < 0 && i > shift - 64 && i > -64; i++) {
        q = vec2((q.x << 1u) | (q.y >> 31u), q.y << 1u);
    }
    *frequency = q;
    return true;
}
#end

#main 64
    let i = (id.x + id.y * p.grid_x) * WG + lane;
    if i >= p.elements {
        return;
    }
    let pair = i % p.parts;
    let head = i / p.parts % p.heads;
    let token = i / (p.parts * p.heads);
    let row = token * p.x_t2 + head * p.x_t1;
#if blocks
    let staged = p.scratch_at + (token * p.heads + head) * p.d;
    if pair >= p.pairs {
        let j = pair + p.pairs;
        scratch[staged + j] = load_x(row + j * p.x_t0);
        return;
    }
#else
#if cache
    let slot = load_slots(token * p.slots_t0);
    var kept = slot >= 0 && u32(slot) < p.capacity;
    // Of tokens that name the same slot the last one is kept.
    for (var t = token + 1u; t < p.tokens && kept; t++) {
        kept = load_slots(t * p.slots_t0) != slot;
    }
    var cached = 0u;
    if kept {
        cached = cache_row(u32(slot)) + head * p.cache_t1;
    }
    if pair >= p.pairs {
        let j = pair + p.pairs;
        if kept {
            store_cache(cached + j * p.cache_t0, load_x(row + j * p.x_t0));
        }
        return;
    }
#end
#end
    let position = load_positions(token * p.positions_t0);
    var frequency = vec2(constants[2u * pair], constants[2u * pair + 1u]);
    var amplitude = p.amplitude;
#if factors
    let factor = load_factors(pair * p.factors_t0);
    if !divide(&frequency, abs(factor)) {
        // Infinitely slow stands still; anything else is no angle.
        frequency = vec2<u32>();
        amplitude = select(nan(), amplitude, is_infinite(factor));
    }
    let backwards = (position < 0) != (factor < 0.0);
#else
    let backwards = position < 0;
#end
    let steps = bitcast<u32>(abs(position));
    let low = steps * frequency.y;
    let angle = steps * frequency.x + high_product(steps, frequency.y);
    // The nearest quarter turn, and the rest within an eighth of a turn of it.
    let quarter = (angle + 0x20000000u) >> 30u;
    let rest = f32(bitcast<i32>(angle - (quarter << 30u))) + f32(low) * 2.3283064e-10;
    let r = rest * 1.46291807926715968105e-9;
    let t = r * r;
    let s = r * (1.0 + t * (-0.166666667 + t * (0.00833333333 + t * (-0.000198412698 + t * 2.75573192e-6))));
    let c = 1.0 + t * (-0.5 + t * (0.0416666667 + t * (-0.00138888889 + t * (2.48015873e-5 - t * 2.75573192e-7))));
    var turn = vec2(c, s);
    if (quarter & 1u) == 1u {
        turn = vec2(-turn.y, turn.x);
    }
    if (quarter & 2u) == 2u {
        turn = -turn;
    }
    if backwards {
        turn.y = -turn.y;
    }
    turn *= amplitude;
    let first = pair * p.step_pair;
    let second = first + p.step_other;
    let a = load_x(row + first * p.x_t0);
    let b = load_x(row + second * p.x_t0);
    let turned = vec2(a * turn.x - b * turn.y, a * turn.y + b * turn.x);
    store_x(row + first * p.x_t0, turned.x);
    store_x(row + second * p.x_t0, turned.y);
#if blocks
    scratch[staged + first] = turned.x;
    scratch[staged + second] = turned.y;
#else
#if cache
    if kept {
        store_cache(cached + first * p.cache_t0, turned.x);
        store_cache(cached + second * p.cache_t0, turned.y);
    }
#end
#end
}
