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
var<workgroup> ends: array<f32, ROWS>; // what `end_of_row` gives
#if split
var<workgroup> turns: array<vec4<f32>, WG>;
#end
#if block_table
var<workgroup> slots: array<u32, WG>; // a key's row among the pages', or none
const NONE = 0xffffffffu;
#end

#use attention_common

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
            let q_at = query_at(here, index / p.group, head);
            v = q_vector(q_at, e % (FEATURES / 4u) * 4u);
        }
        q_tile[e] = v;
    }

    // Keys start .. end may be visible to a row of the tile.
    let span = span_of(here, last);
    let start = span.x & ~63;
    let end = span.y;
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
        scores[$ru * WG + lane] = s$r;
#end
        for (var r = 0u; r < ROWS; r++) {
            var s = -infinity();
            if readable && here.index + r <= last {
                s = score(b, here.index + r, kv_head, key, scores[r * WG + lane], here.q_valid, here.kv_valid);
            }
            scores[r * WG + lane] = s;
        }
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
        ends[row] = end_of_row(here, index / p.group, head, largest, sum, spoiled);
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
    for (var h = 0u; h < HELD && here.index + held + h <= last; h++) {
        var o = o0;
        switch h {
#repeat h HELD
            case $hu: { o = o$h; }
#end
            default: {}
        }
        let index = here.index + held + h;
        let at = result_at(here, index / p.group, kv_head * p.group + index % p.group);
        let factor = ends[held + h];
        for (var c = 0u; c < 4u && column + c < p.dv; c++) {
            store_out(at + (column + c) * p.out_t0, select(o[c] * factor, 0.0, is_blind(factor)));
        }
    }
}
