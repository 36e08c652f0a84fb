// One workgroup per row, three passes: maximum, sum, result.

fn score(row: u32, j: u32) -> f32 {
    var s = p.scale * load_x(at_x(row) + j * p.x_t0);
#if mask
    s += load_mask(at_mask(row) + j * p.mask_t0);
#end
    return s;
}

#main 64
    let row = id.x + id.y * p.grid_x;
    if row >= p.groups {
        return;
    }
    var largest = -infinity();
    for (var j = lane; j < p.n; j += WG) {
        let s = score(row, j);
        if order(s) > order(largest) {
            largest = s;
        }
    }
    largest = max_all(lane, largest);
    // A largest of +inf or NaN spoils the row; of -inf: every key is hidden.
    let spoiled = is_nan(largest) || (is_infinite(largest) && largest > 0.0);
    let hidden = is_infinite(largest) && largest < 0.0;
    var sum = 0.0;
    for (var j = lane; j < p.n; j += WG) {
        sum += exp_(score(row, j) - largest);
    }
    sum = sum_all(lane, sum);
#if log
    let log_sum = log_(sum);
#end
    for (var j = lane; j < p.n; j += WG) {
#if log
        var y = score(row, j) - largest - log_sum;
        y = select(y, -infinity(), hidden);
#else
        var y = exp_(score(row, j) - largest) / sum;
        y = select(y, 0.0, hidden);
#end
        store_out(at_out(row) + j * p.out_t0, select(y, nan(), spoiled));
    }
}
