// One workgroup per row: the index of the largest logit, the first of equals, NaN above all.

#main 64
    let row = id.x + id.y * p.grid_x;
    if row >= p.groups {
        return;
    }
    var best = Pick(0u, 0xffffffffu); // of no logit: index -1
    for (var j = lane; j < p.n; j += WG) {
        let candidate = Pick(order(load_logits(at_logits(row) + j * p.logits_t0)), j);
        if better(candidate, best) {
            best = candidate;
        }
    }
    best = pick_all(lane, best);
    if lane == 0u {
        store_out(at_out(row), bitcast<i32>(best.index));
    }
}
