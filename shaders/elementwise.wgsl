// One thread per element of `out`.

#main 64
    let i = (id.x + id.y * p.grid_x) * WG + lane;
    if i >= p.elements {
        return;
    }
    let a = load_a(at_a(i));
#if b
    let b = load_b(at_b(i));
#else
    let b = 0.0;
#end
    store_out(at_out(i), apply(a, b));
}
