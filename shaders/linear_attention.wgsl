// One workgroup per sequence, head and ELEMENTS elements of the value: each thread holds the sums of every 64th feature.
// Keys are added one after another; a query's products are summed over the workgroup.

var<workgroup> mapped: array<f32, 256>; // the row being mapped
var<workgroup> sums: array<f32, (ELEMENTS + 1u) * (WG + 1u)>;
var<workgroup> valid: u32;

fn feature_of(f: u32) -> f32 {
    var dot = 0.0;
    for (var e = 0u; e < p.d; e++) {
        dot += mapped[e] * load_omega(e * p.omega_t1 + f * p.omega_t0);
    }
    return relu(dot) + p.eps;
}

#main 64
    let group = id.x + id.y * p.grid_x;
    if group >= p.groups {
        return;
    }
    let first = group % p.tiles * ELEMENTS;
    let head = group / p.tiles % p.heads;
    let b = group / (p.tiles * p.heads);
    if lane == 0u {
        valid = p.t;
#if lengths
        valid = min(u32(max(load_lengths(b * p.lengths_t0), 0)), p.t);
#end
    }
    let rows = workgroupUniformLoad(&valid);
    var z: array<f32, 4>;
    var s: array<array<f32, ELEMENTS>, 4>;
#if causal
    for (var i = 0u; i < rows; i++) {
        let j = i;
#else
    for (var j = 0u; j < rows; j++) {
#end
        for (var e = lane; e < p.d; e += WG) {
            mapped[e] = load_k(b * p.k_t3 + j * p.k_t2 + head * p.k_t1 + e * p.k_t0);
        }
        workgroupBarrier();
        for (var c = 0u; c < 4u; c++) {
            let f = lane + c * WG;
            if f < p.features {
                let feature = feature_of(f);
                z[c] += feature;
                for (var e = 0u; e < ELEMENTS && first + e < p.dv; e++) {
                    s[c][e] += feature * load_v(b * p.v_t3 + j * p.v_t2 + head * p.v_t1 + (first + e) * p.v_t0);
                }
            }
        }
        workgroupBarrier();
#if causal
#else
    }
    for (var i = 0u; i < rows; i++) {
#end
        for (var e = lane; e < p.d; e += WG) {
            mapped[e] = load_q(b * p.q_t3 + i * p.q_t2 + head * p.q_t1 + e * p.q_t0);
        }
        workgroupBarrier();
        var y: array<f32, ELEMENTS>;
        var denominator = 0.0;
        for (var c = 0u; c < 4u; c++) {
            let f = lane + c * WG;
            if f < p.features {
                let feature = feature_of(f);
                denominator += feature * z[c];
                for (var e = 0u; e < ELEMENTS; e++) {
                    y[e] += feature * s[c][e];
                }
            }
        }
        for (var e = 0u; e < ELEMENTS; e++) {
            sums[e * (WG + 1u) + lane] = y[e];
        }
        sums[ELEMENTS * (WG + 1u) + lane] = denominator;
        workgroupBarrier();
        if lane < ELEMENTS && first + lane < p.dv {
            var total = 0.0;
            var below = 0.0;
            for (var n = 0u; n < WG; n++) {
                total += sums[lane * (WG + 1u) + n];
                below += sums[ELEMENTS * (WG + 1u) + n];
            }
            below += p.eps;
            let out_at = b * p.out_t3 + i * p.out_t2 + head * p.out_t1 + (first + lane) * p.out_t0;
            store_out(out_at, select(total / below, 0.0, below == 0.0));
        }
        workgroupBarrier();
    }
    if lane < ELEMENTS && first + lane < p.dv {
        for (var i = rows; i < p.t; i++) {
            store_out(b * p.out_t3 + i * p.out_t2 + head * p.out_t1 + (first + lane) * p.out_t0, 0.0);
        }
    }
}
