// One workgroup per row: the index of the largest logit, the first of equals, NaN above all; or one drawn at random.
//
// To draw, weights are whole numbers, relative to the largest one's `one`: their sums are exact in any order, so every draw is reproducible and a
// prefix that is cut off by top_k or top_p is one of the same sums. Where the sum over the logits in descending order first exceeds a limit is found
// without sorting, eight bits of the logits' order at a time: the weights of those that agree in the upper bits are added up in 256 bins.
// Equal logits follow each other by index, and weigh the same.
// Traffic: the row, from cache but for the first time, once for the largest and for the total, 4 times per limit, and twice for the index.

#if draw
#use wide
var<workgroup> highs: array<atomic<u32>, WG>;
var<workgroup> lows: array<atomic<u32>, WG>;
var<workgroup> sums: array<vec2<u32>, WG>;
var<workgroup> found: u32;
var<workgroup> found_before: vec2<u32>;

// The sums up to and with each thread's value lie in `sums`; given is that of all.
fn sum_up(lane: u32, value: vec2<u32>) -> vec2<u32> {
    var own = value;
    sums[lane] = own;
    workgroupBarrier();
    for (var step = 1u; step < WG; step <<= 1u) {
        if lane >= step {
            own = plus(own, sums[lane - step]);
        }
        workgroupBarrier();
        sums[lane] = own;
        workgroupBarrier();
    }
    return sums[WG - 1u];
}

fn weight(x: f32, largest: f32) -> vec2<u32> {
    if x == largest {
        return whole(p.one); // whatever the temperature
    }
    return whole(exp_((x - largest) / p.temperature) * p.one);
}

fn whole(v: f32) -> vec2<u32> {
    if v < 16777216.0 {
        return vec2(0u, u32(round(v)));
    }
    let high = floor(v * 2.3283064365386963e-10);
    return vec2(u32(high), u32(v - high * 4294967296.0));
}

fn value_of(order: u32) -> f32 {
    return bitcast<f32>(select(~order, order ^ 0x80000000u, (order >> 31u) == 1u));
}

struct Crossing {
    order: u32,        // of the logit at which the sum exceeds the limit
    before: vec2<u32>, // the sum of those above it
}

// Where the sum of weights (`number`: of ones) exceeds `limit`, which is less than all.
fn cross(row: u32, lane: u32, largest: f32, number: bool, limit: vec2<u32>) -> Crossing {
    var prefix = 0u;
    var mask = 0u;
    var before = vec2<u32>();
    for (var shift = 32u; shift > 0u;) {
        shift -= 8u;
        atomicStore(&highs[lane], 0u);
        atomicStore(&lows[lane], 0u);
        workgroupBarrier();
        for (var j = lane; j < p.n; j += WG) {
            let x = load_logits(at_logits(row) + j * p.logits_t0);
            let key = order(x);
            if (key & mask) == prefix {
                var w = vec2(0u, 1u);
                if !number {
                    w = weight(x, largest);
                }
                // From the largest down. Who wraps the lower half carries.
                let bin = 255u - ((key >> shift) & 255u);
                if w.y != 0u {
                    let old = atomicAdd(&lows[bin], w.y);
                    w.x += select(0u, 1u, old + w.y < old);
                }
                if w.x != 0u {
                    atomicAdd(&highs[bin], w.x);
                }
            }
        }
        workgroupBarrier();
        let own = vec2(atomicLoad(&highs[lane]), atomicLoad(&lows[lane]));
        let all = plus(before, sum_up(lane, own));
        let until = plus(before, sums[lane]);
        let start = minus(until, own);
        // Or the last of all: a compiler may round the same weight's steps differently elsewhere.
        if (own.x | own.y) != 0u && !less(limit, start) && (less(limit, until) || !less(until, all)) {
            found = 255u - lane;
            found_before = start;
        }
        workgroupBarrier();
        prefix |= (found & 255u) << shift;
        mask |= 255u << shift;
        before = found_before;
        workgroupBarrier();
    }
    return Crossing(prefix, before);
}

// A row's uniform part of `total`: one step of splitmix64.
fn goal_of(row: u32, total: vec2<u32>) -> vec2<u32> {
    let seed = vec2(bitcast<u32>(load_seed(p.seed_t0)), bitcast<u32>(load_seed(0u)));
    var z = plus(seed, product(vec2(0u, row + 1u), vec2(0x9e3779b9u, 0x7f4a7c15u)));
    z = product(z ^ shifted(z, 30u), vec2(0xbf58476du, 0x1ce4e5b9u));
    z = product(z ^ shifted(z, 27u), vec2(0x94d049bbu, 0x133111ebu));
    let u = (z ^ shifted(z, 31u)).x >> 8u;
    return plus(product(shifted(total, 24u), vec2(0u, u)), shifted(product(vec2(0u, total.y & 0xffffffu), vec2(0u, u)), 24u));
}

// Up to where the sum is top_p of `total` first, one logit at least: the limit that it exceeds.
fn mass_of(total: vec2<u32>) -> vec2<u32> {
    let share = u32(p.top_p * 4294967296.0);
    let mass = plus(product(vec2(0u, total.x), vec2(0u, share)), vec2(0u, high_product(total.y, share)));
    return select(minus(mass, vec2(0u, 1u)), vec2<u32>(), (mass.x | mass.y) == 0u);
}

// How often the weight of `order`, up to `n` times, fits into a limit.
fn times(largest: f32, order: u32, limit: vec2<u32>) -> u32 {
    let w = weight(value_of(order), largest);
    var count = 0u;
    for (var bit = p.bits; bit > 0u;) {
        bit--;
        let more = count + (1u << bit);
        count = select(more, count, less(limit, product(w, vec2(0u, more))));
    }
    return count;
}

fn drawn(row: u32, lane: u32, best: u32, largest: f32) -> u32 {
    // What top_k keeps: all above `least`, and `ties` that equal it.
    var least = 0u;
    var ties = 0u;
#if some
    let last = cross(row, lane, largest, true, vec2(0u, p.top_k - 1u));
    least = last.order;
    ties = p.top_k - last.before.y;
#end
    var own = vec2<u32>();
    for (var j = lane; j < p.n; j += WG) {
        let x = load_logits(at_logits(row) + j * p.logits_t0);
        if order(x) > least {
            own = plus(own, weight(x, largest));
        }
    }
    var total = sum_up(lane, own);
#if some
    total = plus(total, product(weight(value_of(least), largest), vec2(0u, ties)));
#end
#if prefix
    let mass = mass_of(total);
    let end = cross(row, lane, largest, false, mass);
    let kept = times(largest, end.order, minus(mass, end.before)) + 1u;
    total = plus(end.before, product(weight(value_of(end.order), largest), vec2(0u, kept)));
#end
    let goal = goal_of(row, total);
    let at = cross(row, lane, largest, false, goal);
    // Which of those that equal it; each thread counts its stretch of the row.
    let stretch = (p.n + WG - 1u) / WG;
    let first = min(lane * stretch, p.n);
    let beyond = min(first + stretch, p.n);
    if lane == 0u {
        found = best;
    }
    var equals = 0u;
    for (var j = first; j < beyond; j++) {
        equals += select(0u, 1u, order(load_logits(at_logits(row) + j * p.logits_t0)) == at.order);
    }
    let all = sum_up(lane, vec2(0u, equals)).y;
    let which = min(times(largest, at.order, minus(goal, at.before)), max(all, 1u) - 1u);
    let until = sums[lane].y;
    var passed = until - equals;
    if passed <= which && which < until {
        for (var j = first; j < beyond; j++) {
            if order(load_logits(at_logits(row) + j * p.logits_t0)) == at.order {
                if passed == which {
                    found = j;
                }
                passed++;
            }
        }
    }
    workgroupBarrier();
    return found;
}
#end

#main WG
    let row = id.x + id.y * p.grid_x;
    if row >= p.groups {
        return;
    }
    var best = Pick(0u, 0xffffffffu); // of no logit: index -1
    for (var j = lane; j < p.n; j += WG) {
        let candidate = Pick(order(load_logits(at_logits(row) + j * p.logits_t0)), j);
        if better(candidate, best) {
            best = candidate;
        }
    }
    best = pick_all(lane, best);
    var index = best.index;
#if draw
    // A row that no softmax is defined on takes its best; what is drawn of it is thrown away, so that all threads stay together.
    let largest = value_of(best.order);
    let random = drawn(row, lane, index, largest);
    if !is_nan(largest) && !is_infinite(largest) && p.n > 0u {
        index = random;
    }
#end
    if lane == 0u {
        store_out(at_out(row), bitcast<i32>(index));
    }
}
