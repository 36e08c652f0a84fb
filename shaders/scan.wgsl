// State-space scans. One workgroup per sequence, head and row of the head's state: each thread holds every 64th of the
// row's states in registers through all time. Sums over states are made for 16 steps at once: one round of barriers.

const STEPS = 16u;
var<workgroup> sums: array<f32, STEPS * (WG + 1u)>;

// e^log * state + added. Where the state changes little, one rounding: those of a product by nearly 1 would all go one way.
fn stepped(state: f32, log: f32, added: f32) -> f32 {
    if abs(log) < 0.35 {
        return state + (expm1_(log) * state + added);
    }
    return exp_(log) * state + added;
}

#main 64
    let group = id.x + id.y * p.grid_x;
    if group >= p.groups {
        return;
    }
    let row = group % p.width;
    let head = group / p.width % p.heads;
    let b = group / (p.width * p.heads);
    let shared_by = head / p.share;
    var state: array<f32, 4>;
    var decay: array<f32, 4>;
    for (var i = 0u; i < 4u; i++) {
        let n = lane + i * WG;
        decay[i] = load_a(head * p.a_t0);
        if n < p.n {
#if per_state
            decay[i] = load_a(head * p.a_t0 + n * p.a_t1);
#end
#if state
#if per_state
            state[i] = load_state(b * p.state_t3 + head * p.state_t2 + n * p.state_t0);
#else
            state[i] = load_state(b * p.state_t3 + head * p.state_t2 + row * p.state_t1 + n * p.state_t0);
#end
#end
        }
    }
    var dt_bias = 0.0;
#if dt_bias
    dt_bias = load_dt_bias(head * p.dt_bias_t0);
#end
    for (var first = 0u; first < p.t; first += STEPS) {
        let steps = min(STEPS, p.t - first);
        for (var step = 0u; step < steps; step++) {
            let t = first + step;
            var dt = load_dt(b * p.dt_t2 + t * p.dt_t1 + head * p.dt_t0) + dt_bias;
#if softplus
            dt = softplus(dt);
#end
            let x = load_x(b * p.x_t3 + t * p.x_t2 + head * p.x_t1 + row * p.x_t0);
            var sum = 0.0;
            for (var i = 0u; i < 4u; i++) {
                let n = lane + i * WG;
                if n < p.n {
                    let in_at = b * p.b_t3 + t * p.b_t2 + shared_by * p.b_t1 + n * p.b_t0;
                    let out_at = b * p.c_t3 + t * p.c_t2 + shared_by * p.c_t1 + n * p.c_t0;
                    state[i] = stepped(state[i], dt * decay[i], dt * load_b(in_at) * x);
                    sum += load_c(out_at) * state[i];
                }
            }
            sums[step * (WG + 1u) + lane] = sum;
        }
        workgroupBarrier();
        if lane < steps {
            let t = first + lane;
            let at = lane * (WG + 1u);
            var y = 0.0;
            for (var i = 0u; i < WG; i++) {
                y += sums[at + i];
            }
#if d
            let x = load_x(b * p.x_t3 + t * p.x_t2 + head * p.x_t1 + row * p.x_t0);
            y += load_d(head * p.d_t0) * x;
#end
#if z
            y *= silu(load_z(b * p.z_t3 + t * p.z_t2 + head * p.z_t1 + row * p.z_t0));
#end
            store_out(b * p.out_t3 + t * p.out_t2 + head * p.out_t1 + row * p.out_t0, y);
        }
        workgroupBarrier();
    }
#if state
    for (var i = 0u; i < 4u; i++) {
        let n = lane + i * WG;
        if n < p.n {
#if per_state
            store_state(b * p.state_t3 + head * p.state_t2 + n * p.state_t0, state[i]);
#else
            store_state(b * p.state_t3 + head * p.state_t2 + row * p.state_t1 + n * p.state_t0, state[i]);
#end
        }
    }
#end
}
