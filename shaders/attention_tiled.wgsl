// Attention of many rows: a workgroup computes 64 rows of one kv head (query rows times the heads that share it) in tiles of 64 keys. Each
// of 8 x 16 threads has 8 rows, and of them
//
//   scores   four keys, from tiles of 16 elements of q and k                 s   8 x 4
//   values   VALUES / 64 vectors of the result, from tiles of 16 values      o   8 x 4 x VALUES / 64
//
// so that a vector read from workgroup memory serves 2.7 to 4 products of vectors. Between the two, eight threads share four rows: scores
// become weights where they lie (`weights` [key][row]), beside running maxima and sums. Only the products are unrolled: with the rest
// unrolled too, SwiftShader compiled for minutes.
// Floor: the products over the device's f32 rate. 512 rows and keys, 32 heads for 8 of 128 by f16 on lavapipe 22.3: 734 ms (all unrolled: 757),
// 1.59 s by sixteen rows. Not yet run on a GPU: all unrolled, 2048 rows and keys of 32 heads for 8 of 128 on an H200 ran at 1.6 TFLOP/s in bf16
// and 2.9 in f32.

#use attention_common

const ROW_PITCH = 65u; // vectors of one row lie in different banks
const KEY_PITCH = 17u;
const K_TILE = 4u * ROW_PITCH;
var<workgroup> tile: array<vec4<f32>, TILE>; // q and k [vector][row], then maxima and sums of each thread, then values [key][column]
var<workgroup> weights: array<vec4<f32>, 64u * KEY_PITCH>; // scores, then weights [key][row]; at last results [row][column]
var<workgroup> factors: array<f32, 64>; // of each row: of what is summed so far; at last what `end_of_row` gives
var<workgroup> slots: array<u32, 64>; // a key's row, or none

fn onto(s: f32, x: vec4<f32>, w: vec4<f32>) -> f32 {
    return fma(x.w, w.w, fma(x.z, w.z, fma(x.y, w.y, fma(x.x, w.x, s))));
}

fn larger(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return vec4(
        select(a.x, b.x, order(b.x) > order(a.x)),
        select(a.y, b.y, order(b.y) > order(a.y)),
        select(a.z, b.z, order(b.z) > order(a.z)),
        select(a.w, b.w, order(b.w) > order(a.w)),
    );
}

#main 128
    let group = id.x + id.y * p.grid_x;
    if group >= p.groups {
        return;
    }
    let kv_head = group % p.kv_heads;
    if lane == 0u {
        place = find(group / p.kv_heads);
    }
    let here = workgroupUniformLoad(&place);
    let b = here.sequence;
    if here.index >= here.rows {
        return;
    }
    let last = min(here.index + ROWS, here.rows) - 1u;
    let span = span_of(here, last);
    let start = span.x & ~63;
    let end = span.y;
    let across = lane % 16u;
    let down = lane / 16u;
    // The rows of q that this thread brings: lane / 4, and 32 further on.
#repeat n 2
    let q_index$n = here.index + lane / 4u + $nu * 32u;
    let q_at$n = query_at(here, q_index$n / p.group, kv_head * p.group + q_index$n % p.group);
#end
    // The four rows whose weights this thread makes, of every eighth key.
    let own = lane / 8u;
    let index = vec4(here.index + own * 4u) + vec4(0u, 1u, 2u, 3u);
    let i = index / p.group;
    let head = kv_head * p.group + index % p.group;
    var largest = vec4(-infinity());
    var sum = vec4<f32>();
    var spoiled = vec4(false);
#repeat r 8
#repeat c COLUMNS
    var o$r_$c = vec4<f32>();
#end
#end

    for (var first = start; first < end; first += 64) {
        workgroupBarrier();
        if lane < 64u {
            slots[lane] = row_of_key(b, here, first + i32(lane), end);
        }
#repeat r 8
#repeat c 4
        var s$r_$c = 0.0;
#end
#end
        workgroupBarrier();
        for (var e = 0u; e < p.d; e += 16u) {
#repeat n 2
            {
                let row = lane / 4u + $nu * 32u;
                var q = vec4<f32>();
                if q_index$n <= last {
                    q = q_vector(q_at$n, e + lane % 4u * 4u);
                }
                tile[lane % 4u * ROW_PITCH + row] = q;
                var k = vec4<f32>();
                if slots[row] != NONE {
                    k = k_vector(key_at(b, slots[row], kv_head), e + lane % 4u * 4u);
                }
                tile[K_TILE + lane % 4u * ROW_PITCH + row] = k;
            }
#end
            workgroupBarrier();
            for (var v = 0u; v < 4u; v++) {
#repeat c 4
                let k$c = tile[K_TILE + v * ROW_PITCH + across + $cu * 16u];
#end
#repeat r 8
                {
                    let q = tile[v * ROW_PITCH + down * 8u + $ru];
#repeat c 4
                    s$r_$c = onto(s$r_$c, q, k$c);
#end
                }
#end
            }
            workgroupBarrier();
        }
#repeat c 4
        weights[(across + $cu * 16u) * KEY_PITCH + down * 2u] = vec4(s0_$c, s1_$c, s2_$c, s3_$c);
        weights[(across + $cu * 16u) * KEY_PITCH + down * 2u + 1u] = vec4(s4_$c, s5_$c, s6_$c, s7_$c);
#end
        workgroupBarrier();
        var most = vec4(-infinity());
        for (var key = lane % 8u; key < 64u; key += 8u) {
            var s = vec4(-infinity());
            if slots[key] != NONE {
                s = weights[key * KEY_PITCH + own];
                let at = first + i32(key);
#repeat c 4
                s[$c] = score_of(b, i[$c], head[$c], at, s[$c], select(0, here.q_valid, index[$c] <= last), here.kv_valid);
#end
            }
            weights[key * KEY_PITCH + own] = s;
            most = larger(most, s);
        }
        tile[lane] = most;
        workgroupBarrier();
        for (var n = 0u; n < 8u; n++) {
            most = larger(most, tile[own * 8u + n]);
        }
        let next = max(largest, most);
        var nothing = vec4(false); // only -inf so far
        var decay = vec4<f32>();
#repeat c 4
        spoiled[$c] = spoiled[$c] || is_nan(most[$c]) || (is_infinite(most[$c]) && most[$c] > 0.0);
        nothing[$c] = is_infinite(next[$c]);
        decay[$c] = select(exp_(largest[$c] - next[$c]), 0.0, nothing[$c]);
        if lane % 8u == 0u {
            factors[own * 4u + $cu] = decay[$c];
        }
#end
        largest = next;
        sum *= decay;
        for (var key = lane % 8u; key < 64u; key += 8u) {
            let s = weights[key * KEY_PITCH + own] - next;
            let w = select(vec4(exp_(s.x), exp_(s.y), exp_(s.z), exp_(s.w)), vec4<f32>(), nothing);
            weights[key * KEY_PITCH + own] = w;
            sum += w;
        }
        workgroupBarrier();
#repeat r 8
        {
            let factor = factors[down * 8u + $ru];
#repeat c COLUMNS
            o$r_$c *= factor;
#end
        }
#end
        for (var part = 0u; part < 64u; part += 16u) {
            for (var n = lane; n < 16u * VALUES / 4u; n += 128u) {
                let slot = slots[part + n / (VALUES / 4u)];
                var v = vec4<f32>();
                if slot != NONE {
                    v = v_vector(value_at(b, slot, kv_head), n % (VALUES / 4u) * 4u);
                }
                tile[n] = v;
            }
            workgroupBarrier();
            for (var n = 0u; n < 16u; n++) {
                let low = weights[(part + n) * KEY_PITCH + down * 2u];
                let high = weights[(part + n) * KEY_PITCH + down * 2u + 1u];
#repeat c COLUMNS
                let v$c = tile[n * (VALUES / 4u) + across + $cu * 16u];
                o0_$c += low.x * v$c;
                o1_$c += low.y * v$c;
                o2_$c += low.z * v$c;
                o3_$c += low.w * v$c;
                o4_$c += high.x * v$c;
                o5_$c += high.y * v$c;
                o6_$c += high.z * v$c;
                o7_$c += high.w * v$c;
#end
            }
            workgroupBarrier();
        }
    }

    workgroupBarrier();
    tile[lane] = sum;
    if lane % 8u == 0u {
        tile[128u + own] = largest;
        tile[144u + own] = select(vec4<f32>(), vec4(1.0), spoiled);
    }
    workgroupBarrier();
    if here.index + lane <= last && lane < ROWS {
        let row = here.index + lane;
        let q_row = row / p.group;
        let q_head = kv_head * p.group + row % p.group;
        var total = 0.0;
        for (var n = 0u; n < 8u; n++) {
            total += tile[lane / 4u * 8u + n][lane % 4u];
        }
        let top = tile[128u + lane / 4u][lane % 4u];
        let lost = tile[144u + lane / 4u][lane % 4u] > 0.0;
        factors[lane] = end_of_row(here, q_row, q_head, top, total, lost);
    }
#repeat c COLUMNS
    workgroupBarrier();
#repeat r 8
    weights[(down * 8u + $ru) * KEY_PITCH + across] = o$r_$c;
#end
    workgroupBarrier();
    for (var n = lane; n < 1024u; n += 128u) {
        let row = here.index + n / 16u;
        if row <= last {
            let factor = factors[n / 16u];
            let at = result_at(here, row / p.group, kv_head * p.group + row % p.group);
            let column = (n % 16u + $cu * 16u) * 4u;
            let y = select(weights[n / 16u * KEY_PITCH + n % 16u] * factor, vec4<f32>(), vec4(is_blind(factor)));
#if out_packed
            if column + 4u <= p.dv {
                store4_out(at + column, y);
            } else {
#else
            {
#end
                for (var m = 0u; m < 4u && column + m < p.dv; m++) {
                    store_out(at + (column + m) * p.out_t0, y[m]);
                }
            }
        }
    }
#end
}
