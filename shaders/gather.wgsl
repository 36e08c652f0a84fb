// One thread per element of `out`: a table's row by index, zeros where the index is outside.

#main 64
    let i = (id.x + id.y * p.grid_x) * WG + lane;
    if i >= p.elements {
        return;
    }
    let row = load_index(at_index(i));
    var y = 0.0;
    if row >= 0 && u32(row) < p.rows {
        y = p.scale * f32(load_table(u32(row) * p.table_t1 + i % p.d * p.table_t0));
    }
    store_out(at_out(i), y);
}
