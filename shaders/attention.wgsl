// A workgroup computes ROWS rows of one kv head: query rows times the heads that share it, so that a key or a value is read once for all
// of them, in prefill and in decode. A running maximum and sum (online softmax) over blocks of 64 keys:
//
//   scores   each thread takes one key: its vectors stay in registers while the rows of q come from workgroup memory
//   softmax  WG / ROWS threads a row
//   values   each thread takes four elements of the result, for HELD rows; where there are more threads than that, they take turns
//            at the keys (TURNS) and add up at the end
//
// Against a workgroup for each row and head that reads keys element by element (lavapipe 22.3, two threads, nothing else running): 64 rows and keys,
// 8 heads of 64: 35.6 ms then, 5.9 ms now; 128 rows: 148 and 24; one row over 1024 keys in f16, 2 kv heads of 128 for 8: 17.2 and 5.4.
//
// Blocks begin at multiples of 64, and a hidden key adds exactly nothing: what a row's neighbours see does not show in its bits.

const PER_ROW = WG / ROWS; // threads that share a row's softmax
const COLUMNS = VALUES / 4u; // threads side by side in the result

var<workgroup> q_tile: array<vec4<f32>, ROWS * FEATURES / 4u>; // [row][feature]
var<workgroup> scores: array<f32, ROWS * WG>; // [row][key], then the weights
var<workgroup> parts: array<f32, WG>;
var<workgroup> decays: array<f32, ROWS>;
var<workgroup> ends: array<vec2<f32>, ROWS>; // what to divide by, and 0 for a blind row, NaN for a spoiled one
#if split
var<workgroup> turns: array<vec4<f32>, WG>;
#end
#if block_table
var<workgroup> slots: array<u32, WG>; // a key's row among the pages', or none
const NONE = 0xffffffffu;
#end

struct Place {
    sequence: u32,
    index: u32, // the tile's first row within the sequence's
    rows: u32, // of the sequence, heads of a group counted apart
    q_begin: u32, // of the sequence, in rows of q
    q_valid: i32,
    kv_begin: u32,
    kv_valid: i32,
}
var<workgroup> place: Place;

#if q_offsets
// The end of sequence s - 1's query rows, `begin` being where they begin.
fn boundary(s: u32, begin: u32) -> u32 {
    if s > p.batch {
        return p.q_rows;
    }
    return max(begin, min(u32(max(load_q_offsets(s * p.q_offsets_t0), 0)), p.q_rows));
}
#end

fn find(tile: u32) -> Place {
    var found = Place(0u, 0u, 0u, 0u, 0, 0u, 0);
#if q_offsets
    // Rows before the first sequence and behind the last are tiles of their own, of no sequence.
    var left = tile;
    var begin = 0u;
    for (var s = 0u; s <= p.batch + 1u; s++) {
        let end = boundary(s, begin);
        let rows = (end - begin) * p.group;
        let tiles = (rows + ROWS - 1u) / ROWS;
        if left < tiles {
            let real = s > 0u && s <= p.batch;
            found = Place(select(0u, s - 1u, real), left * ROWS, rows, begin, select(0, i32(end - begin), real), 0u, 0);
            break;
        }
        left -= tiles;
        begin = end;
    }
    if found.q_valid == 0 {
        return found;
    }
#else
    found.sequence = tile / p.tiles;
    found.index = tile % p.tiles * ROWS;
    found.rows = p.q_rows * p.group;
    found.q_valid = i32(p.q_rows);
#if q_len
    found.q_valid = clamp(load_q_len(found.sequence * p.q_len_t0), 0, found.q_valid);
#end
#end
#if kv_offsets
    var before = 0u;
    for (var s = 0u; s <= found.sequence; s++) {
        before = max(before, min(u32(max(load_kv_offsets(s * p.kv_offsets_t0), 0)), p.capacity));
    }
    found.kv_begin = before;
    let after = min(u32(max(load_kv_offsets((found.sequence + 1u) * p.kv_offsets_t0), 0)), p.capacity);
    found.kv_valid = i32(max(before, after) - before);
#else
    found.kv_valid = i32(p.capacity);
#if kv_len
    found.kv_valid = clamp(load_kv_len(found.sequence * p.kv_len_t0), 0, found.kv_valid);
#end
#end
    return found;
}

// Where a key's, and a value's, head begins.
fn key_at(b: u32, row: u32, kv_head: u32) -> u32 {
#if block_table
    return row / p.page * p.k_t3 + row % p.page * p.k_t2 + kv_head * p.k_t1;
#else
    return b * p.k_t3 + row * p.k_t2 + kv_head * p.k_t1;
#end
}

fn value_at(b: u32, row: u32, kv_head: u32) -> u32 {
#if block_table
    return row / p.page * p.v_t3 + row % p.page * p.v_t2 + kv_head * p.v_t1;
#else
    return b * p.v_t3 + row * p.v_t2 + kv_head * p.v_t1;
#end
}

// Elements e .. e + 4 of a head; zeros beyond its end.
fn q_vector(at: u32, e: u32) -> vec4<f32> {
#if q_packed
    if e + 4u <= p.d {
        return load4_q(at + e);
    }
#end
    var v = vec4<f32>();
    for (var c = 0u; c < 4u && e + c < p.d; c++) {
        v[c] = load_q(at + (e + c) * p.q_t0);
    }
    return v;
}

fn k_vector(at: u32, e: u32) -> vec4<f32> {
#if k_packed
    if e + 4u <= p.d {
        return load4_k(at + e);
    }
#end
    var v = vec4<f32>();
    for (var c = 0u; c < 4u && e + c < p.d; c++) {
        v[c] = load_k(at + (e + c) * p.k_t0);
    }
    return v;
}

fn v_vector(at: u32, e: u32) -> vec4<f32> {
#if v_packed
    if e + 4u <= p.dv {
        return load4_v(at + e);
    }
#end
    var v = vec4<f32>();
    for (var c = 0u; c < 4u && e + c < p.dv; c++) {
        v[c] = load_v(at + (e + c) * p.v_t0);
    }
    return v;
}

// The score of a readable key for row `index` of the sequence; -inf where it is hidden.
fn score(b: u32, index: u32, kv_head: u32, key: i32, dot: f32, q_valid: i32, kv_valid: i32) -> f32 {
    let i = index / p.group;
    let head = kv_head * p.group + index % p.group;
    let position = kv_valid - q_valid + i32(i);
    var visible = i32(i) < q_valid;
#if causal
    visible = visible && key <= position;
#end
#if window
    visible = visible && abs(position - key) < i32(p.window);
#end
    if !visible {
        return -infinity();
    }
    var s = dot * p.scale;
#if softcap
    s = p.softcap * tanh_(s / p.softcap);
#end
#if alibi
    s += load_alibi(head * p.alibi_t0) * f32(key - position);
#end
#if mask
    let added = load_mask(b * p.mask_t3 + head * p.mask_t2 + i * p.mask_t1 + u32(key) * p.mask_t0);
    s = select(s + added, added, is_infinite(added) && added < 0.0); // whatever the score
#end
    return s;
}

#main 64
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
    for (var e = lane; e < ROWS * FEATURES / 4u; e += WG) {
        let index = here.index + e / (FEATURES / 4u);
        var v = vec4<f32>();
        if index <= last {
            let head = kv_head * p.group + index % p.group;
#if q_offsets
            let q_at = (here.q_begin + index / p.group) * p.q_t2 + head * p.q_t1;
#else
            let q_at = b * p.q_t3 + index / p.group * p.q_t2 + head * p.q_t1;
#end
            v = q_vector(q_at, e % (FEATURES / 4u) * 4u);
        }
        q_tile[e] = v;
    }

    // Keys start .. end may be visible to a row of the tile.
    let offset = here.kv_valid - here.q_valid;
    var start = 0;
    var end = here.kv_valid;
#if causal
    end = min(end, offset + i32(last / p.group) + 1);
#end
#if window
    start = max(0, offset + i32(here.index / p.group) - i32(p.window) + 1) & ~63;
    end = min(end, offset + i32(last / p.group) + i32(p.window));
#end
    if i32(here.index / p.group) >= here.q_valid {
        end = 0;
    }
    workgroupBarrier();

    let row = lane / PER_ROW;
    var largest = -infinity();
    var sum = 0.0;
    var spoiled = false;
    let column = lane % COLUMNS * 4u;
    let team = lane / COLUMNS;
    let turn = team % TURNS;
    let held = team / TURNS * HELD;
#repeat h HELD
    var o$h = vec4<f32>();
#end
    for (var first = start; first < end; first += i32(WG)) {
        let key = first + i32(lane);
        var readable = key < end;
        var slot = here.kv_begin + u32(key);
#if block_table
        if readable {
            let page = load_block_table(b * p.block_table_t1 + u32(key) / p.page * p.block_table_t0);
            readable = page >= 0 && page < i32(p.pages);
            slot = u32(page) * p.page + u32(key) % p.page;
        }
        slots[lane] = select(NONE, slot, readable);
#end
#if key_mask
        if readable {
            readable = load_key_mask(b * p.key_mask_t1 + u32(key) * p.key_mask_t0) != 0u;
        }
#end
#repeat r ROWS
        var s$r = 0.0;
#end
        if readable {
            let at = key_at(b, slot, kv_head);
            for (var e = 0u; e < p.d; e += 4u) {
                let k = k_vector(at, e);
#repeat r ROWS
                s$r += dot(q_tile[$ru * (FEATURES / 4u) + e / 4u], k);
#end
            }
        }
#repeat r ROWS
        if readable && here.index + $ru <= last {
            scores[$ru * WG + lane] = score(b, here.index + $ru, kv_head, key, s$r, here.q_valid, here.kv_valid);
        } else {
            scores[$ru * WG + lane] = -infinity();
        }
#end
        workgroupBarrier();

        var most = -infinity();
        for (var n = row * WG + lane % PER_ROW; n < row * WG + WG; n += PER_ROW) {
            let s = scores[n];
            if order(s) > order(most) {
                most = s;
            }
        }
        parts[lane] = most;
        workgroupBarrier();
        for (var n = row * PER_ROW; n < row * PER_ROW + PER_ROW; n++) {
            let s = parts[n];
            if order(s) > order(most) {
                most = s;
            }
        }
        if is_nan(most) || (is_infinite(most) && most > 0.0) {
            spoiled = true;
        }
        let next = max(largest, most);
        let nothing = is_infinite(next); // only -inf so far
        let decay = select(exp_(largest - next), 0.0, nothing);
        largest = next;
        sum *= decay;
        for (var n = row * WG + lane % PER_ROW; n < row * WG + WG; n += PER_ROW) {
            let weight = select(exp_(scores[n] - next), 0.0, nothing);
            scores[n] = weight;
            sum += weight;
        }
        if lane % PER_ROW == 0u {
            decays[row] = decay;
        }
        workgroupBarrier();

        if column < p.dv {
#repeat h HELD
            o$h *= decays[held + $hu];
#end
            let count = u32(min(i32(WG), end - first));
            for (var n = turn; n < count; n += TURNS) {
#if block_table
                let slot = slots[n];
                if slot == NONE {
                    continue;
                }
#else
                let slot = here.kv_begin + u32(first) + n;
#end
                let v = v_vector(value_at(b, slot, kv_head), column);
#repeat h HELD
                o$h += scores[(held + $hu) * WG + n] * v;
#end
            }
        }
        workgroupBarrier();
    }

    parts[lane] = sum;
    workgroupBarrier();
    if lane % PER_ROW == 0u && here.index + row <= last {
        sum = 0.0;
        for (var n = lane; n < lane + PER_ROW; n++) {
            sum += parts[n];
        }
        let index = here.index + row;
        let head = kv_head * p.group + index % p.group;
        let blind = is_infinite(largest) && !spoiled;
        var decay = 1.0;
#if sinks
        let sink = load_sinks(head * p.sinks_t0);
        spoiled = spoiled || (!blind && (is_nan(sink) || (is_infinite(sink) && sink > 0.0)));
        let next = max(largest, sink);
        decay = select(exp_(largest - next), 0.0, blind);
        sum = sum * decay + exp_(sink - next);
        largest = next;
#end
        ends[row] = vec2(sum, select(select(decay, 0.0, blind), nan(), spoiled));
#if lse
        var y = select(largest + log_(sum), -infinity(), is_infinite(largest) || i32(index / p.group) >= here.q_valid);
        y = select(y, nan(), spoiled);
#if q_offsets
        store_lse(head * p.lse_t1 + (here.q_begin + index / p.group) * p.lse_t0, y);
#else
        store_lse(b * p.lse_t2 + head * p.lse_t1 + index / p.group * p.lse_t0, y);
#end
#end
    }
#if split
    turns[lane] = o0;
#end
    workgroupBarrier();
    if column >= p.dv || turn > 0u {
        return;
    }
#if split
    for (var n = 1u; n < TURNS; n++) {
        o0 += turns[lane + n * COLUMNS];
    }
#end
#repeat h HELD
    if here.index + held + $hu <= last {
        let index = here.index + held + $hu;
        let head = kv_head * p.group + index % p.group;
#if q_offsets
        let at = (here.q_begin + index / p.group) * p.out_t2 + head * p.out_t1;
#else
        let at = b * p.out_t3 + index / p.group * p.out_t2 + head * p.out_t1;
#end
        let end_of = ends[held + $hu];
        for (var c = 0u; c < 4u && column + c < p.dv; c++) {
            let y = select(o$h[c] * end_of.y / end_of.x, 0.0, end_of.y == 0.0);
            store_out(at + (column + c) * p.out_t0, select(y, nan(), is_nan(end_of.y)));
        }
    }
#end
}
