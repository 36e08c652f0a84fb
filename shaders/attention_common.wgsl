// What the attention kernels share: which rows a workgroup has, where keys and values lie, elements of a head, and a score.

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

// Keys x .. y may be visible to rows `here.index` .. `last`.
fn span_of(here: Place, last: u32) -> vec2<i32> {
    let offset = here.kv_valid - here.q_valid;
    let first = here.index / p.group;
    var span = vec2(0, here.kv_valid);
#if causal
    span.y = min(span.y, offset + i32(last / p.group) + 1);
#end
#if window
    span.x = max(0, offset + i32(first) - i32(p.window) + 1);
    span.y = min(span.y, offset + i32(last / p.group) + i32(p.window));
#end
    if i32(first) >= here.q_valid {
        span.y = 0;
    }
    return span;
}

// Where a head of query row `i` of the sequence begins: in q, in the result, in the sums' logarithms.
fn query_at(here: Place, i: u32, head: u32) -> u32 {
#if q_offsets
    return (here.q_begin + i) * p.q_t2 + head * p.q_t1;
#else
    return here.sequence * p.q_t3 + i * p.q_t2 + head * p.q_t1;
#end
}

fn result_at(here: Place, i: u32, head: u32) -> u32 {
#if q_offsets
    return (here.q_begin + i) * p.out_t2 + head * p.out_t1;
#else
    return here.sequence * p.out_t3 + i * p.out_t2 + head * p.out_t1;
#end
}

#if lse
fn lse_at(here: Place, i: u32, head: u32) -> u32 {
#if q_offsets
    return head * p.lse_t1 + (here.q_begin + i) * p.lse_t0;
#else
    return here.sequence * p.lse_t2 + head * p.lse_t1 + i * p.lse_t0;
#end
}
#end

#if whole_rows
// Query row `i` of `head`, whose scores had the maximum `top` and the sum `total` of weights: what to multiply its weighted values by, -1 where
// the result is zero since it sees nothing. With a sink, and the sum's logarithm stored, where the operation has them.
fn end_of_row(here: Place, i: u32, head: u32, top: f32, total: f32, spoiled: bool) -> f32 {
    var largest = top;
    var sum = total;
    var lost = spoiled;
    let blind = is_infinite(top) && !lost;
    var factor = 1.0;
#if sinks
    let sink = load_sinks(head * p.sinks_t0);
    lost = lost || (!blind && (is_nan(sink) || (is_infinite(sink) && sink > 0.0)));
    largest = max(top, sink);
    factor = select(exp_(top - largest), 0.0, blind);
    sum = sum * factor + exp_(sink - largest);
#end
#if lse
    let y = select(largest + log_(sum), -infinity(), is_infinite(largest) || i32(i) >= here.q_valid);
    store_lse(lse_at(here, i, head), select(y, nan(), lost));
#end
    return select(select(factor / sum, -1.0, blind), nan(), lost);
}

fn is_blind(factor: f32) -> bool {
    return bitcast<u32>(factor) == 0xbf800000u;
}
#end

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
    return score_of(b, index / p.group, kv_head * p.group + index % p.group, key, dot, q_valid, kv_valid);
}

// The same of query row `i` and `head`.
fn score_of(b: u32, i: u32, head: u32, key: i32, dot: f32, q_valid: i32, kv_valid: i32) -> f32 {
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

#if eights
// Elements e .. e + 8 of a key; zeros beyond its end.
fn k_eight(at: u32, e: u32) -> mat2x4<f32> {
#if k_eights
    if e < p.d {
        return load8_k(at + e);
    }
    return mat2x4<f32>();
#else
    return mat2x4(k_vector(at, e), k_vector(at, e + 4u));
#end
}

fn v_eight(at: u32, e: u32) -> mat2x4<f32> {
#if v_eights
    if e < p.dv {
        return load8_v(at + e);
    }
    return mat2x4<f32>();
#else
    return mat2x4(v_vector(at, e), v_vector(at, e + 4u));
#end
}
#end

#if by_key
const NONE = 0xffffffffu;

// Row `key` of a sequence's keys, all pages counted through; none where it is not to be read.
fn row_of_key(b: u32, here: Place, key: i32, end: i32) -> u32 {
    if key >= end {
        return NONE;
    }
    var slot = here.kv_begin + u32(key);
#if block_table
    let page = load_block_table(b * p.block_table_t1 + u32(key) / p.page * p.block_table_t0);
    if page < 0 || page >= i32(p.pages) {
        return NONE;
    }
    slot = u32(page) * p.page + u32(key) % p.page;
#end
#if key_mask
    if load_key_mask(b * p.key_mask_t1 + u32(key) * p.key_mask_t0) == 0u {
        return NONE;
    }
#end
    return slot;
}
#end
