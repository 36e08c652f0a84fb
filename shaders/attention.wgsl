// One workgroup per batch, head and query row: 64 keys at a time, a running maximum and sum (online softmax), each thread
// holding every 64th element of the result.

const MAX_D = 256u;

var<workgroup> q_row: array<f32, MAX_D>;
var<workgroup> weights: array<f32, WG>; // negative: hidden
var<workgroup> lengths: vec2<i32>; // valid keys, valid query rows

#main 64
    let group = id.x + id.y * p.grid_x;
    if group >= p.groups {
        return;
    }
    let i = group % p.q_rows;
    let head = group / p.q_rows % p.heads;
    let b = group / (p.q_rows * p.heads);
    let kv_head = head / p.group;
    if lane == 0u {
        lengths = vec2(i32(p.capacity), i32(p.q_rows));
#if kv_len
        lengths.x = clamp(load_kv_len(b * p.kv_len_t0), 0, lengths.x);
#end
#if q_len
        lengths.y = clamp(load_q_len(b * p.q_len_t0), 0, lengths.y);
#end
    }
    let q_at = b * p.q_t3 + i * p.q_t2 + head * p.q_t1;
    for (var e = lane; e < p.d; e += WG) {
        q_row[e] = load_q(q_at + e * p.q_t0);
    }
    let valid = workgroupUniformLoad(&lengths);
    let position = valid.x - valid.y + i32(i);
    // Keys start .. end may be visible.
    var start = 0;
    var end = valid.x;
    if i32(i) >= valid.y {
        end = 0;
    }
#if causal
    end = min(end, position + 1);
#end
#if window
    start = max(0, position - i32(p.window) + 1);
    end = min(end, position + i32(p.window));
#end

    var largest = -infinity();
    var sum = 0.0;
    var spoiled = false;
    var result: array<f32, 4>;
    for (var first = start; first < end; first += i32(WG)) {
        let key = first + i32(lane);
        let j = u32(key);
        var visible = key < end;
#if key_mask
        if visible {
            visible = load_key_mask(b * p.key_mask_t1 + j * p.key_mask_t0) != 0u;
        }
#end
        var s = -infinity();
        if visible {
            var dot = 0.0;
            let k_at = b * p.k_t3 + j * p.k_t2 + kv_head * p.k_t1;
            for (var e = 0u; e < p.d; e++) {
                dot += q_row[e] * load_k(k_at + e * p.k_t0);
            }
            s = dot * p.scale;
#if softcap
            s = p.softcap * tanh_(s / p.softcap);
#end
#if alibi
            s += load_alibi(head * p.alibi_t0) * f32(key - position);
#end
#if mask
            let added = load_mask(b * p.mask_t3 + head * p.mask_t2 + i * p.mask_t1 + j * p.mask_t0);
            s += added;
            if is_infinite(added) && added < 0.0 {
                visible = false; // whatever the score
                s = added;
            }
#end
        }
        let here = max_all(lane, s);
        if is_nan(here) || (is_infinite(here) && here > 0.0) {
            spoiled = true;
        }
        let next = max(largest, here);
        let nothing = is_infinite(next); // only -inf so far
        let weight = select(exp_(s - next), 0.0, nothing);
        let decay = select(exp_(largest - next), 0.0, nothing);
        largest = next;
        weights[lane] = select(-1.0, weight, visible);
        sum = sum * decay + sum_all(lane, select(0.0, weight, visible));
        let count = min(i32(WG), end - first);
        for (var c = 0u; c < 4u; c++) {
            let e = lane + c * WG;
            if e < p.dv {
                var part = 0.0;
                for (var n = 0; n < count; n++) {
                    if weights[n] > 0.0 {
                        let v_at = b * p.v_t3 + u32(first + n) * p.v_t2 + kv_head * p.v_t1;
                        part += weights[n] * load_v(v_at + e * p.v_t0);
                    }
                }
                result[c] = result[c] * decay + part;
            }
        }
        workgroupBarrier();
    }

    let blind = is_infinite(largest) && !spoiled;
#if sinks
    let sink = load_sinks(head * p.sinks_t0);
    spoiled = spoiled || (!blind && (is_nan(sink) || (is_infinite(sink) && sink > 0.0)));
    let next = max(largest, sink);
    let decay = select(exp_(largest - next), 0.0, blind);
    sum = sum * decay + exp_(sink - next);
    largest = next;
    for (var c = 0u; c < 4u; c++) {
        result[c] *= decay;
    }
#end
    for (var c = 0u; c < 4u; c++) {
        let e = lane + c * WG;
        if e < p.dv {
            var y = select(result[c] / sum, 0.0, blind);
            y = select(y, nan(), spoiled);
            store_out(b * p.out_t3 + i * p.out_t2 + head * p.out_t1 + e * p.out_t0, y);
        }
    }
#if lse
    if lane == 0u {
        let y = select(largest + log_(sum), -infinity(), is_infinite(largest));
        store_lse(b * p.lse_t2 + head * p.lse_t1 + i * p.lse_t0, select(y, nan(), spoiled));
    }
#end
}
