// One thread per element of `out`: a copy of the bits where the dtypes are the same, else decoded and encoded.

#main 64
    let i = (id.x + id.y * p.grid_x) * WG + lane;
    if i >= p.elements {
        return;
    }
#if blocks
    // A thread per block.
    let first = i * ELEMENTS;
    let to = p.out_at + at_out(first) / ELEMENTS * BYTES;
#if copy
    let source = p.x_at + at_x(first) / ELEMENTS * BYTES;
    for (var n = 0u; n < BYTES; n++) {
        out_store_byte(to + n, x_byte(source + n));
    }
#else
    var values: array<f32, 32>;
    for (var n = 0u; n < 32u; n++) {
        values[n] = converted(load_x(at_x(first + n)));
    }
    out_encode(to, &values);
#end
#else
#if copy
    store_bits_out(at_out(i), load_bits_x(at_x(i)));
#else
    store_out(at_out(i), converted(load_x(at_x(i))));
#end
#end
}
