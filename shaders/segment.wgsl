// Sum: one workgroup per segment and 64 columns. Softmax: one per row and 64 columns, where the first row of a segment
// computes for all of its rows and the others do nothing: the cost is of rows, however many segments there may be.

fn named(row: u32) -> i32 {
    let s = load_segments(row * p.segments_t0);
    return select(-1, s, s >= 0 && u32(s) < p.count);
}

#main 64
    let group = id.x + id.y * p.grid_x;
    let j = group % p.tiles * WG + lane;
    if group >= p.groups || j >= p.d {
        return;
    }
    let one = group / p.tiles;
#if sum
    var sum = 0.0;
    for (var i = 0u; i < p.rows; i++) {
        if named(i) == i32(one) {
            sum += load_x(i * p.x_t1 + j * p.x_t0);
        }
    }
    store_out(one * p.out_t1 + j * p.out_t0, sum);
#else
    let segment = named(one);
    if segment < 0 {
        store_out(one * p.out_t1 + j * p.out_t0, 0.0);
        return;
    }
    for (var i = 0u; i < one; i++) {
        if named(i) == segment {
            return;
        }
    }
    var largest = -infinity();
    for (var i = one; i < p.rows; i++) {
        if named(i) == segment {
            let x = load_x(i * p.x_t1 + j * p.x_t0);
            if order(x) > order(largest) {
                largest = x;
            }
        }
    }
    let spoiled = is_nan(largest) || (is_infinite(largest) && largest > 0.0);
    let hidden = is_infinite(largest) && largest < 0.0;
    var sum = 0.0;
    for (var i = one; i < p.rows; i++) {
        if named(i) == segment {
            sum += exp_(load_x(i * p.x_t1 + j * p.x_t0) - largest);
        }
    }
    for (var i = one; i < p.rows; i++) {
        if named(i) == segment {
            var y = exp_(load_x(i * p.x_t1 + j * p.x_t0) - largest) / sum;
            y = select(y, 0.0, hidden);
            store_out(i * p.out_t1 + j * p.out_t0, select(y, nan(), spoiled));
        }
    }
#end
}
