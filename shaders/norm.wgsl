// One workgroup per row. What is normalized is computed anew in each pass, so that its rounding to `sum`'s dtype does not
// enter the result, and `sum` and `out` may lie on top of the inputs: each element is read and written by one thread, in
// the last pass only.

fn element(row: u32, j: u32) -> f32 {
    var s = load_x(at_x(row) + j * p.x_t0);
#if residual
    s = load_residual(at_residual(row) + j * p.residual_t0) + p.factor * s;
#end
    return s;
}

fn gated(row: u32, j: u32, s: f32) -> f32 {
#if gate
    return s * silu(load_gate(at_gate(row) + j * p.gate_t0));
#else
    return s;
#end
}

#main 64
    let row = id.x + id.y * p.grid_x;
    if row >= p.groups {
        return;
    }
    var mean = 0.0;
#if layer
    var sum = 0.0;
    for (var j = lane; j < p.n; j += WG) {
        sum += gated(row, j, element(row, j));
    }
    mean = sum_all(lane, sum) / f32(p.n);
#end
    var squares = 0.0;
    for (var j = lane; j < p.n; j += WG) {
        let s = gated(row, j, element(row, j)) - mean;
        squares += s * s;
    }
    let deviation = sqrt(sum_all(lane, squares) / f32(p.n) + p.eps);
    for (var j = lane; j < p.n; j += WG) {
        let s = element(row, j);
        var y = (gated(row, j, s) - mean) / deviation;
#if weight
        y *= load_weight(at_weight(0u) + j * p.weight_t0);
#end
#if bias
        y += load_bias(at_bias(0u) + j * p.bias_t0);
#end
#if sum
        store_sum(at_sum(row) + j * p.sum_t0, s);
#end
        store_out(at_out(row) + j * p.out_t0, y);
    }
}
