// One thread per sequence and channel: a window of TAPS elements rolls along time in registers, filled from the state and
// written back to it.

#main 64
    let index = (id.x + id.y * p.grid_x) * WG + lane;
    if index >= p.elements {
        return;
    }
    let c = index % p.channels;
    let b = index / p.channels;
    var window: array<f32, TAPS>;
    var taps: array<f32, TAPS>;
    for (var i = 0u; i < TAPS; i++) {
        taps[i] = load_w(c * p.w_t1 + i * p.w_t0);
    }
#if state
    for (var i = 0u; i + 1u < TAPS; i++) {
        window[i + 1u] = load_state(b * p.state_t2 + i * p.state_t1 + c * p.state_t0);
    }
#end
    var start = 0.0;
#if bias
    start = load_bias(c * p.bias_t0);
#end
    for (var t = 0u; t < p.t; t++) {
        for (var i = 0u; i + 1u < TAPS; i++) {
            window[i] = window[i + 1u];
        }
        window[TAPS - 1u] = load_x(b * p.x_t2 + t * p.x_t1 + c * p.x_t0);
        var sum = start;
        for (var i = 0u; i < TAPS; i++) {
            sum += taps[i] * window[i];
        }
        store_out(b * p.out_t2 + t * p.out_t1 + c * p.out_t0, activate(sum));
    }
#if state
    for (var i = 0u; i + 1u < TAPS; i++) {
        store_state(b * p.state_t2 + i * p.state_t1 + c * p.state_t0, window[i + 1u]);
    }
#end
}
