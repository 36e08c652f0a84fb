// One thread per element of `out`, over the window's taps and the group's channels. Dimension 0 of space is the innermost.

#main 64
    var rest = (id.x + id.y * p.grid_x) * WG + lane;
    if rest >= p.elements {
        return;
    }
    let a0 = rest % p.out0;
    rest /= p.out0;
    let a1 = rest % p.out1;
    rest /= p.out1;
    let a2 = rest % p.out2;
    rest /= p.out2;
    let o = rest % p.cout;
    let b = rest / p.cout;
    let channels = o / p.group * p.per_group;
    var sum = 0.0;
    // A place before the edge wraps to beyond any extent.
    for (var r2 = 0u; r2 < p.w2; r2++) {
        let x2 = a2 * p.stride + r2 * p.dilation - p.pad2;
        for (var r1 = 0u; r1 < p.w1 && x2 < p.x2; r1++) {
            let x1 = a1 * p.stride + r1 * p.dilation - p.pad1;
            for (var r0 = 0u; r0 < p.w0 && x1 < p.x1; r0++) {
                let x0 = a0 * p.stride + r0 * p.dilation - p.pad;
                if x0 >= p.x0 {
                    continue;
                }
                let x_at = b * p.x_t4 + channels * p.x_t3 + x2 * p.x_t2 + x1 * p.x_t1 + x0 * p.x_t0;
                let w_at = o * p.w_t4 + r2 * p.w_t2 + r1 * p.w_t1 + r0 * p.w_t0;
                for (var i = 0u; i < p.per_group; i++) {
                    sum += load_x(x_at + i * p.x_t3) * load_w(w_at + i * p.w_t3);
                }
            }
        }
    }
#if bias
    sum += load_bias(o * p.bias_t0);
#end
    store_out(
        b * p.out_t4 + o * p.out_t3 + a2 * p.out_t2 + a1 * p.out_t1 + a0 * p.out_t0,
        activate(sum),
    );
}
