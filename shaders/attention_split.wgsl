// Attention of few rows over long caches: a workgroup has ROWS rows of one kv head (query rows times the heads that share it, so that a
// key or a value is read once for all of them) and one of `splits` parts of the keys. The parts' results lie in scratch memory, and a
// second dispatch (`merge`) puts them together in their order.
//
//   LANES threads share a key: eight neighbouring elements each, one load of 16 bytes of f16 or bf16. KEYS keys of each such team a step:
//   keys     products of the lane's elements                     partial [key][row][lane]
//   scores   a thread sums one score's                           scores  [row][key]
//   weights  and, within its team's keys, keeps a running maximum and sum
//   values   each lane its eight elements of the team's values, times the weights of each row
//
// Floor: the bytes of k and v over the bandwidth. Loads of both are under way before the first barrier of a step. One row, 32 heads for 8 kv
// heads of 128, 131072 keys on an H200: 0.60 ms in bf16 and 0.62 in f16 with 128 parts, 0.9 TB/s; a workgroup that walked the whole cache:
// 7 GB/s. 1024 keys of f16, 8 heads for 2 on lavapipe 22.3: 7.1 ms for 22.

#use attention_common

#if parts
const THREADS = 128u;
const TEAMS = THREADS / LANES;
const STEP = TEAMS * KEYS; // keys of a step
const SCORES = STEP * ROWS; // no more than threads
const PITCH = LANES + 1u;
var<workgroup> partial: array<f32, SCORES * PITCH>;
var<workgroup> scores: array<f32, SCORES>;
var<workgroup> weights: array<f32, SCORES>;
var<workgroup> decays: array<f32, TEAMS * ROWS>; // [row][team]
var<workgroup> maxima: array<f32, TEAMS * ROWS>;
var<workgroup> slots: array<u32, STEP>; // a key's row, or none

#main 128
    let group = id.x + id.y * p.grid_x;
    if group >= p.groups {
        return;
    }
    let split = group % p.splits;
    let pack = group / p.splits;
    let kv_head = pack % p.kv_heads;
    if lane == 0u {
        place = find(pack / p.kv_heads);
    }
    let here = workgroupUniformLoad(&place);
    let b = here.sequence;
    if here.index >= here.rows {
        return;
    }
    let last = min(here.index + ROWS, here.rows) - 1u;
    let span = span_of(here, last);
    // This part's keys.
    let share = (u32(max(span.y - span.x, 0)) + p.splits * STEP - 1u) / (p.splits * STEP) * STEP;
    let start = span.x + i32(split * share);
    let end = min(span.y, start + i32(share));

    let team = lane / LANES;
    let e = lane % LANES * 8u;
#repeat r ROWS
    var q$r = mat2x4<f32>();
    var o$r = mat2x4<f32>();
#end
    for (var r = 0u; r < ROWS && here.index + r <= last; r++) {
        let index = here.index + r;
        let q_at = query_at(here, index / p.group, kv_head * p.group + index % p.group);
        let q = mat2x4(q_vector(q_at, e), q_vector(q_at, e + 4u));
        switch r {
#repeat r ROWS
            case $ru: { q$r = q; }
#end
            default: {}
        }
    }
    // The score that this thread owns.
    let mine = lane % STEP; // its key of the step
    let row = lane / STEP;
    let owns = lane < SCORES;
    let first_of_team = lane - mine % KEYS;
    let own = row * TEAMS + mine / KEYS;
    var largest = -infinity();
    var sum = 0.0;
    var spoiled = false;

    for (var first = start; first < end; first += i32(STEP)) {
#repeat n KEYS
        let slot$n = row_of_key(b, here, first + i32(team * KEYS + $nu), end);
        var k$n = mat2x4<f32>();
        var v$n = mat2x4<f32>();
        if slot$n != NONE {
            k$n = k_eight(key_at(b, slot$n, kv_head), e);
            v$n = v_eight(value_at(b, slot$n, kv_head), e);
        }
#end
        if lane % LANES == 0u {
#repeat n KEYS
            slots[team * KEYS + $nu] = slot$n;
#end
        }
#repeat n KEYS
#repeat r ROWS
        partial[($ru * STEP + team * KEYS + $nu) * PITCH + lane % LANES] = dot(q$r[0], k$n[0]) + dot(q$r[1], k$n[1]);
#end
#end
        workgroupBarrier();
        if owns {
            var s = -infinity();
            if slots[mine] != NONE && here.index + row <= last {
                s = 0.0;
                for (var l = 0u; l < LANES; l++) {
                    s += partial[lane * PITCH + l];
                }
                s = score(b, here.index + row, kv_head, first + i32(mine), s, here.q_valid, here.kv_valid);
            }
            scores[lane] = s;
        }
        workgroupBarrier();
        if owns {
            var most = -infinity();
#repeat n KEYS
            if order(scores[first_of_team + $nu]) > order(most) {
                most = scores[first_of_team + $nu];
            }
#end
            if is_nan(most) || (is_infinite(most) && most > 0.0) {
                spoiled = true;
            }
            let next = max(largest, most);
            let nothing = is_infinite(next); // only -inf so far
            let decay = select(exp_(largest - next), 0.0, nothing);
            let weight = select(exp_(scores[lane] - next), 0.0, nothing);
            largest = next;
            sum = sum * decay + weight;
            weights[lane] = weight;
            if mine % KEYS == 0u {
                decays[own] = decay;
            }
        }
        workgroupBarrier();
#repeat r ROWS
        {
            let decay = decays[$ru * TEAMS + team];
            o$r = o$r * decay;
#repeat n KEYS
            o$r = o$r + v$n * weights[$ru * STEP + team * KEYS + $nu];
#end
        }
#end
    }

    // The teams together: each one's maximum, then what its sums are worth.
    workgroupBarrier();
    if owns {
        scores[lane] = sum;
        if mine % KEYS == 0u {
            maxima[own] = select(largest, nan(), spoiled);
        }
    }
    workgroupBarrier();
    let record = (pack * ROWS * p.splits + split) * p.pitch + p.scratch_at;
    for (var r = 0u; r < ROWS; r++) {
        var o = mat2x4<f32>();
        switch r {
#repeat r ROWS
            case $ru: { o = o$r; }
#end
            default: {}
        }
        var most = -infinity();
        for (var t = 0u; t < TEAMS; t++) {
            let m = maxima[r * TEAMS + t];
            if order(m) > order(most) {
                most = m;
            }
        }
        let nothing = is_infinite(most) || is_nan(most);
        let factor = select(exp_(maxima[r * TEAMS + team] - most), 0.0, nothing);
        let at = record + r * p.splits * p.pitch;
        if lane == 0u {
            var total = 0.0;
            for (var t = 0u; t < TEAMS; t++) {
                let share = select(exp_(maxima[r * TEAMS + t] - most), 0.0, nothing);
                for (var n = 0u; n < KEYS; n++) {
                    total += share * scores[r * STEP + t * KEYS + n];
                }
            }
            scratch[at] = most;
            scratch[at + 1u] = total;
        }
        // Eight floats of each lane, a half at a time: `partial` holds THREADS * 4.
        for (var c = 0u; c < 2u; c++) {
            let half = select(o[0], o[1], c == 1u) * factor;
            workgroupBarrier();
#repeat n 4
            partial[lane * 4u + $nu] = half[$n];
#end
            workgroupBarrier();
            if lane < LANES * 4u {
                var y = 0.0;
                for (var t = 0u; t < TEAMS; t++) {
                    y += partial[t * LANES * 4u + lane];
                }
                let column = lane / 4u * 8u + c * 4u + lane % 4u;
                if column < p.dv {
                    scratch[at + 2u + column] = y;
                }
            }
        }
    }
}
#end

#if merge
const THREADS = 256u;
const TEAMS = THREADS / VALUES;
var<workgroup> factors: array<f32, THREADS>; // of each part, of which there are no more than threads
var<workgroup> sums: array<f32, THREADS>;
var<workgroup> halves: array<f32, THREADS>;

#main 256
    let group = id.x + id.y * p.grid_x;
    if group >= p.groups {
        return;
    }
    let pack = group / ROWS;
    let kv_head = pack % p.kv_heads;
    if lane == 0u {
        place = find(pack / p.kv_heads);
    }
    let here = workgroupUniformLoad(&place);
    let b = here.sequence;
    let index = here.index + group % ROWS;
    if index >= here.rows {
        return;
    }
    let head = kv_head * p.group + index % p.group;
    let record = group * p.splits * p.pitch + p.scratch_at;
    if lane < p.splits {
        factors[lane] = scratch[record + lane * p.pitch];
        sums[lane] = scratch[record + lane * p.pitch + 1u];
    }
    workgroupBarrier();
    var largest = -infinity();
    for (var s = 0u; s < p.splits; s++) {
        if order(factors[s]) > order(largest) {
            largest = factors[s];
        }
    }
    var spoiled = is_nan(largest);
    let blind = is_infinite(largest);
#if sinks
    let sink = load_sinks(head * p.sinks_t0);
    spoiled = spoiled || (!blind && (is_nan(sink) || (is_infinite(sink) && sink > 0.0)));
    largest = max(largest, sink);
#end
    workgroupBarrier();
    if lane < p.splits {
        factors[lane] = select(exp_(factors[lane] - largest), 0.0, blind || spoiled);
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var s = 0u; s < p.splits; s++) {
        sum += factors[s] * sums[s];
    }
#if sinks
    sum += select(exp_(sink - largest), 0.0, spoiled);
#end
    let column = lane % VALUES;
    var y = 0.0;
    if column < p.dv {
        for (var s = lane / VALUES; s < p.splits; s += TEAMS) {
            if factors[s] > 0.0 {
                y += factors[s] * scratch[record + s * p.pitch + 2u + column];
            }
        }
    }
    halves[lane] = y;
    workgroupBarrier();
#if lse
    if lane == 0u {
        var l = select(largest + log_(sum), -infinity(), is_infinite(largest) || i32(index / p.group) >= here.q_valid);
        l = select(l, nan(), spoiled);
        store_lse(lse_at(here, index / p.group, head), l);
    }
#end
    if lane < p.dv {
        for (var t = 1u; t < TEAMS; t++) {
            y += halves[t * VALUES + lane];
        }
        let at = result_at(here, index / p.group, head);
        store_out(at + lane * p.out_t0, select(select(y / sum, 0.0, blind), nan(), spoiled));
    }
}
#end
