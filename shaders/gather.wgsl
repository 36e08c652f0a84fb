// One thread per element of `out`: a table's row by index, zeros where the index is outside. The table bound may be the rows from `first` on of
// one of `all` rows: then others write what lies in theirs, and the first the zeros.

#main 64
    let i = (id.x + id.y * p.grid_x) * WG + lane;
    if i >= p.elements {
        return;
    }
    let index = load_index(at_index(i));
    let inside = index >= 0 && u32(index) < p.all;
    let row = u32(index) - p.first;
    if select(p.first > 0, row >= p.rows, inside) {
        return;
    }
    var y = 0.0;
    if inside {
        y = p.scale * f32(load_table(row * p.table_t1 + i % p.d * p.table_t0));
    }
    store_out(at_out(i), y);
}
