// One workgroup per entry and 64 columns: the first entry that names a row adds all that do, in their order.

#main 64
    let group = id.x + id.y * p.grid_x;
    let j = group % p.tiles * WG + lane;
    if group >= p.groups || j >= p.d {
        return;
    }
    let one = group / p.tiles;
    let row = load_index(one * p.index_t0);
    if row < 0 || u32(row) >= p.rows {
        return;
    }
    for (var i = 0u; i < one; i++) {
        if load_index(i * p.index_t0) == row {
            return;
        }
    }
    let at = u32(row) * p.out_t1 + j * p.out_t0;
    var sum = load_out(at);
    for (var i = one; i < p.n; i++) {
        if load_index(i * p.index_t0) == row {
#if weight
            sum += load_weight(i * p.weight_t0) * load_x(i * p.x_t1 + j * p.x_t0);
#else
            sum += load_x(i * p.x_t1 + j * p.x_t0);
#end
        }
    }
    store_out(at, sum);
}
