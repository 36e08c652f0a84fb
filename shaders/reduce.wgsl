// One workgroup per row of `x`: a sum, a maximum, or the row divided by its norm.

fn hidden(row: u32, j: u32) -> bool {
#if mask
    return load_mask(at_mask(row) + j * p.mask_t0) == 0u;
#else
    return false;
#end
}

#main 64
    let row = id.x + id.y * p.grid_x;
    if row >= p.groups {
        return;
    }
#if pick
    var best = Pick(0u, 0xffffffffu);
    for (var j = lane; j < p.n; j += WG) {
        let candidate = Pick(order(load_x(at_x(row) + j * p.x_t0)), j);
        if !hidden(row, j) && better(candidate, best) {
            best = candidate;
        }
    }
    best = pick_all(lane, best);
    if lane == 0u {
        let empty = best.index == 0xffffffffu;
#if arg_max
        store_out(at_out(row), select(bitcast<i32>(best.index), -1, empty));
#else
        var y = -infinity();
        if !empty {
            y = load_x(at_x(row) + best.index * p.x_t0);
        }
        store_out(at_out(row), y);
#end
    }
#end
#if sum
    var sum = 0.0;
    var count = 0.0;
    for (var j = lane; j < p.n; j += WG) {
        if !hidden(row, j) {
            sum += load_x(at_x(row) + j * p.x_t0);
            count += 1.0;
        }
    }
    sum = sum_all(lane, sum);
#if mean
    count = sum_all(lane, count);
    sum = select(sum / count, 0.0, count == 0.0);
#end
    if lane == 0u {
        store_out(at_out(row), sum);
    }
#end
#if log_sum_exp
    var largest = -infinity();
    for (var j = lane; j < p.n; j += WG) {
        let x = load_x(at_x(row) + j * p.x_t0);
        if !hidden(row, j) && order(x) > order(largest) {
            largest = x;
        }
    }
    largest = max_all(lane, largest);
    var sum = 0.0;
    for (var j = lane; j < p.n; j += WG) {
        if !hidden(row, j) {
            sum += exp_(load_x(at_x(row) + j * p.x_t0) - largest);
        }
    }
    sum = sum_all(lane, sum);
    if lane == 0u {
        // An infinite or NaN maximum is the answer itself.
        store_out(at_out(row), select(largest + log_(sum), largest, is_infinite(largest) || is_nan(largest)));
    }
#end
#if l2_normalize
    var squares = 0.0;
    for (var j = lane; j < p.n; j += WG) {
        let x = load_x(at_x(row) + j * p.x_t0);
        squares += x * x;
    }
    let length = sqrt(sum_all(lane, squares));
    let divisor = select(max(length, p.eps), length, is_nan(length));
    for (var j = lane; j < p.n; j += WG) {
        store_out(at_out(row) + j * p.out_t0, load_x(at_x(row) + j * p.x_t0) / divisor);
    }
#end
}
