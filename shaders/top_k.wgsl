// One workgroup per row: k times the largest of those that come after the one chosen before.

#main 64
    let row = id.x + id.y * p.grid_x;
    if row >= p.groups {
        return;
    }
#if softmax
    var largest = 0.0;
    var sum = 0.0;
    // Twice: the sum first, then the values.
    for (var phase = 0u; phase < 2u; phase++) {
#end
    var last = Pick(0xffffffffu, 0u);
    for (var chosen = 0u; chosen < p.k; chosen++) {
        var best = Pick(0u, 0xffffffffu);
        for (var j = lane; j < p.n; j += WG) {
            let candidate = Pick(order(load_x(at_x(row) + j * p.x_t0)), j);
            if (chosen == 0u || better(last, candidate)) && better(candidate, best) {
                best = candidate;
            }
        }
        best = pick_all(lane, best);
        last = best;
        let at = at_values(row) + chosen * p.values_t0;
#if softmax
        let x = load_x(at_x(row) + best.index * p.x_t0);
        if chosen == 0u {
            largest = x;
        }
        let e = exp_(x - largest);
        if phase == 0u {
            sum += e;
        } else if lane == 0u {
            store_values(at, e / sum);
        }
#else
        if lane == 0u {
            store_values(at, load_x(at_x(row) + best.index * p.x_t0));
        }
#end
        if lane == 0u {
            store_indices(at_indices(row) + chosen * p.indices_t0, bitcast<i32>(best.index));
        }
    }
#if softmax
    }
#end
}
