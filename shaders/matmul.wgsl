// out[b, i, j] = residual + scale * act(sum_k x[b, i, k] w[b, j, k] + bias[j]) (* x upT).
// `tiled`: 256 threads compute 64 x 64 outputs, 4 x 4 each, from tiles of 64 x 16 held in workgroup memory.
// `gemv`: 64 threads share one output's sum: for few rows.

fn finish(b: u32, i: u32, j: u32, product: f32, up: f32) {
    var y = product;
#if bias
    y += load_bias(at_bias(0u) + j * p.bias_t0);
#end
    y = activate(y);
#if up
    y *= up;
#end
    y *= p.scale;
#if residual
    y += load_residual(at_residual(b) + i * p.residual_t1 + j * p.residual_t0);
#end
    store_out(at_out(b) + i * p.out_t1 + j * p.out_t0, y);
}

#if tiled
var<workgroup> x_tile: array<vec4<f32>, 256>; // [k][row / 4]
var<workgroup> w_tile: array<vec4<f32>, 256>; // [k][column / 4]
#if up
var<workgroup> up_tile: array<vec4<f32>, 256>;
#end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = id.x + id.y * p.grid_x;
    if group >= p.groups {
        return;
    }
    let first_j = group % p.tiles_n * 64u;
    let first_i = group / p.tiles_n % p.tiles_m * 64u;
    let b = group / (p.tiles_n * p.tiles_m);
    let row = lane >> 4u; // of 4 rows, and of 4 columns, of outputs
    let column = lane & 15u;
    let part = lane & 15u; // when loading: which k of the tile
    let quad = lane >> 4u; // and which 4 rows

    var sums: array<vec4<f32>, 4>;
#if up
    var up_sums: array<vec4<f32>, 4>;
#end
    for (var first = 0u; first < p.k; first += 16u) {
        let k = first + part;
        var x = vec4<f32>();
        var w = vec4<f32>();
        var u = vec4<f32>();
        if k < p.k {
            for (var c = 0u; c < 4u; c++) {
                let i = first_i + quad * 4u + c;
                if i < p.m {
                    x[c] = load_x(at_x(b) + i * p.x_t1 + k * p.x_t0);
                }
                let j = first_j + quad * 4u + c;
                if j < p.n {
                    w[c] = load_w(at_w(b) + j * p.w_t1 + k * p.w_t0);
#if up
                    u[c] = load_up(at_up(b) + j * p.up_t1 + k * p.up_t0);
#end
                }
            }
        }
        let slot = part * 16u + quad;
        x_tile[slot] = x;
        w_tile[slot] = w;
#if up
        up_tile[slot] = u;
#end
        workgroupBarrier();
        // Past the end of k nothing may be added, not even 0 * 0 (a row of infinities times a padded 0 is NaN).
        let count = min(16u, p.k - first);
        for (var kk = 0u; kk < count; kk++) {
            let xs = x_tile[kk * 16u + row];
            let ws = w_tile[kk * 16u + column];
            sums[0] += xs.x * ws;
            sums[1] += xs.y * ws;
            sums[2] += xs.z * ws;
            sums[3] += xs.w * ws;
#if up
            let us = up_tile[kk * 16u + column];
            up_sums[0] += xs.x * us;
            up_sums[1] += xs.y * us;
            up_sums[2] += xs.z * us;
            up_sums[3] += xs.w * us;
#end
        }
        workgroupBarrier();
    }
    for (var c = 0u; c < 4u; c++) {
        for (var d = 0u; d < 4u; d++) {
            let i = first_i + row * 4u + c;
            let j = first_j + column * 4u + d;
            if i < p.m && j < p.n {
#if up
                finish(b, i, j, sums[c][d], up_sums[c][d]);
#else
                finish(b, i, j, sums[c][d], 0.0);
#end
            }
        }
    }
}
#end

#if gemv
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = id.x + id.y * p.grid_x;
    if group >= p.groups {
        return;
    }
    let j = group % p.n;
    let i = group / p.n % p.m;
    let b = group / (p.n * p.m);
    let x_row = at_x(b) + i * p.x_t1;
    let w_row = at_w(b) + j * p.w_t1;
    var sum = 0.0;
    var up_sum = 0.0;
    for (var k = lane; k < p.k; k += WG) {
        let x = load_x(x_row + k * p.x_t0);
        sum += x * load_w(w_row + k * p.w_t0);
#if up
        up_sum += x * load_up(at_up(b) + j * p.up_t1 + k * p.up_t0);
#end
    }
    let total = sum_all(lane, sum);
#if up
    up_sum = sum_all(lane, up_sum);
#end
    if lane == 0u {
        finish(b, i, j, total, up_sum);
    }
}
#end
