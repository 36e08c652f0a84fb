// One workgroup per token: cache[slots[t]] = x[t], unless a later token names the same slot.

#main 64
    let token = id.x + id.y * p.grid_x;
    if token >= p.groups {
        return;
    }
    let slot = load_slots(token * p.slots_t0);
    var later = 0.0;
    for (var t = token + 1u + lane; t < p.groups; t += WG) {
        if load_slots(t * p.slots_t0) == slot {
            later = 1.0;
        }
    }
    later = sum_all(lane, later);
    if later > 0.0 || slot < 0 || u32(slot) >= p.capacity {
        return;
    }
    let row = cache_row(u32(slot));
#if blocks
    // A thread per block of 32.
    for (var e = lane * 32u; e < p.heads * p.d; e += 32u * WG) {
        let head = e / p.d;
        let j = e % p.d;
        var values: array<f32, 32>;
        for (var n = 0u; n < 32u; n++) {
#if staged
            values[n] = scratch[p.scratch_at + token * p.heads * p.d + e + n];
#else
            values[n] = load_x(token * p.x_t2 + head * p.x_t1 + (j + n) * p.x_t0);
#end
        }
        cache_encode(p.cache_at + (row + head * p.cache_t1 + j) / 32u * BYTES, &values);
    }
#else
    for (var e = lane; e < p.heads * p.d; e += WG) {
        let head = e / p.d;
        let j = e % p.d;
        let x = load_x(token * p.x_t2 + head * p.x_t1 + j * p.x_t0);
        store_cache(row + head * p.cache_t1 + j * p.cache_t0, x);
    }
#end
}
