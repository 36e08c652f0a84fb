// out[b, i, j] = residual + scale * act(x_scale[i] w_scale[j] sum_k x[b, i, k] w[b, j, k] + bias[j]) (* x upT).
// `tiled`: ACROSS x DOWN threads compute ROWS x COLUMNS outputs each from tiles of 16 elements of k held in workgroup
//   memory, rows and columns of one thread lying DOWN and ACROSS apart. Four neighbours along k at a time: a thread
//   reads ROWS + COLUMNS vectors for ROWS * COLUMNS * 4 products. Beyond k both tiles hold zeros.
// `cooperative`: 4 subgroups compute 64 x 64 from tiles of 32 elements of k in f16, 32 x 32 each, by the device's own products of
//   EDGE x EDGE matrices, summed in f32.
// `gemv`: 64 threads share the sums of one column for up to ROWS rows: each weight is decoded once.
//   Four columns a workgroup, for one reading of x, lost: 1.4 (q8_0) to 1.7 times (q4_k) as long on lavapipe, 1 x 1024 x 4096.
// `element`: a thread per output: integer products, which wrap.
// `grouped`: rows of x are sorted by expert; a tile's rows all belong to one.

#if whole
#else
fn finish(b: u32, i: u32, j: u32, product: f32, up: f32) {
    var y = product;
#if x_scale
    y *= load_x_scale(i * p.x_scale_t0);
#end
#if channel_scale
    y *= load_w_scale(j * p.w_scale_t0);
#end
#if bias
    y += load_bias(at_bias(0u) + j * p.bias_t0);
#end
    y = activate(y);
#if up
    y *= up;
#end
    y *= p.scale;
#if row_scale
    y *= load_row_scale(i * p.row_scale_t0);
#end
#if residual
    y += load_residual(at_residual(b) + i * p.residual_t1 + j * p.residual_t0);
#end
    store_out(at_out(b) + i * p.out_t1 + j * p.out_t0, y);
}
#end

#if grouped
// The end of expert g - 1's rows, `begin` being where they begin.
fn boundary(g: u32, begin: u32) -> u32 {
    if g > p.experts {
        return p.m;
    }
    return max(begin, min(u32(max(load_offsets(g * p.offsets_t0), 0)), p.m));
}
#end

#if load4
// x[.., k .. k + 4] of the row that begins at `row`; zeros beyond the end.
fn x_vector(row: u32, k: u32) -> vec4<f32> {
#if x_packed
    if k + 4u <= p.k {
        return load4_x(row + k);
    }
#end
    var v = vec4<f32>();
    for (var c = 0u; c < 4u; c++) {
        if k + c < p.k {
            v[c] = load_x(row + (k + c) * p.x_t0);
        }
    }
    return v;
}

fn w_vector(row: u32, j: u32, k: u32) -> vec4<f32> {
    var v = vec4<f32>();
#if w_packed
    if k + 4u <= p.k {
        v = load4_w(row + j * p.w_t1 + k);
    } else {
#else
    {
#end
        for (var c = 0u; c < 4u; c++) {
            if k + c < p.k {
                v[c] = f32(load_w(row + j * p.w_t1 + (k + c) * p.w_t0));
            }
        }
    }
#if block_scale
    v *= load_w_scale(j / 128u * p.w_scale_t1 + k / 128u * p.w_scale_t0);
#end
    return v;
}
#if up

fn up_vector(row: u32, j: u32, k: u32) -> vec4<f32> {
#if w_packed
    if k + 4u <= p.k && p.up_t0 == p.w_t0 {
        return load4_up(row + j * p.up_t1 + k);
    }
#end
    var v = vec4<f32>();
    for (var c = 0u; c < 4u; c++) {
        if k + c < p.k {
            v[c] = f32(load_up(row + j * p.up_t1 + (k + c) * p.up_t0));
        }
    }
    return v;
}
#end
#end

#if tiled
const K = 4u; // vectors of a tile along k
const THREADS = ACROSS * DOWN;
var<workgroup> x_tile: array<vec4<f32>, ROWS * DOWN * K>; // [row][k]
var<workgroup> w_tile: array<vec4<f32>, COLUMNS * ACROSS * K>; // [column][k]
#if up
var<workgroup> up_tile: array<vec4<f32>, COLUMNS * ACROSS * K>;
#end
var<workgroup> place: vec4<u32>; // first row, end of the rows, matrix, whether there is a matrix

#main ACROSS*DOWN
    let group = id.x + id.y * p.grid_x;
    if group >= p.groups {
        return;
    }
    let first_j = group % p.tiles_n * (COLUMNS * ACROSS);
#if grouped
    if lane == 0u {
        var tile = group / p.tiles_n;
        var begin = 0u;
        place = vec4(p.m, p.m, 0u, 0u);
        for (var g = 0u; g <= p.experts + 1u; g++) {
            let end = boundary(g, begin);
            let tiles = (end - begin + ROWS * DOWN - 1u) / (ROWS * DOWN);
            if tile < tiles {
                let real = g > 0u && g <= p.experts;
                place = vec4(begin + tile * (ROWS * DOWN), end, select(0u, g - 1u, real), select(0u, 1u, real));
                break;
            }
            tile -= tiles;
            begin = end;
        }
    }
#else
    if lane == 0u {
        let first = group / p.tiles_n % p.tiles_m * (ROWS * DOWN);
        place = vec4(first, p.m, group / (p.tiles_n * p.tiles_m), 1u);
    }
#end
    let here = workgroupUniformLoad(&place);
    let first_i = here.x;
    let end_i = here.y;
    let b = here.z;
    let k_end = select(0u, p.k, here.w == 1u);
    let down = lane / ACROSS;
    let across = lane % ACROSS;
    let x_row = at_x(b);
    let w_row = at_w(b);
#if up
    let up_row = at_up(b);
#end
#repeat r ROWS
#repeat c COLUMNS
    var s$r_$c = 0.0;
#if up
    var u$r_$c = 0.0;
#end
#end
#end
    for (var first = 0u; first < k_end; first += 4u * K) {
        for (var e = lane; e < ROWS * DOWN * K; e += THREADS) {
            let i = first_i + e / K;
            var v = vec4<f32>();
            if i < end_i {
                v = x_vector(x_row + i * p.x_t1, first + e % K * 4u);
            }
            x_tile[e] = v;
        }
        for (var e = lane; e < COLUMNS * ACROSS * K; e += THREADS) {
            let j = first_j + e / K;
            let k = first + e % K * 4u;
            var v = vec4<f32>();
            if j < p.n && k < p.k {
                v = w_vector(w_row, j, k);
            }
            w_tile[e] = v;
#if up
            v = vec4<f32>();
            if j < p.n && k < p.k {
                v = up_vector(up_row, j, k);
            }
            up_tile[e] = v;
#end
        }
        workgroupBarrier();
        for (var kk = 0u; kk < K; kk++) {
#repeat c COLUMNS
            let w$c = w_tile[(across + $cu * ACROSS) * K + kk];
#if up
            let v$c = up_tile[(across + $cu * ACROSS) * K + kk];
#end
#end
#repeat r ROWS
            let x$r = x_tile[(down + $ru * DOWN) * K + kk];
#repeat c COLUMNS
            s$r_$c += dot(x$r, w$c);
#if up
            u$r_$c += dot(x$r, v$c);
#end
#end
#end
        }
        workgroupBarrier();
    }
#if grouped
    if here.w == 0u {
        // Rows of no expert are zero, whatever their scale.
#repeat r ROWS
#repeat c COLUMNS
        if first_i + down + $ru * DOWN < end_i && first_j + across + $cu * ACROSS < p.n {
            let row = first_i + down + $ru * DOWN;
            store_out(at_out(0u) + row * p.out_t1 + (first_j + across + $cu * ACROSS) * p.out_t0, 0.0);
        }
#end
#end
        return;
    }
#end
#repeat r ROWS
    {
        let i = first_i + down + $ru * DOWN;
#repeat c COLUMNS
        if i < end_i && first_j + across + $cu * ACROSS < p.n {
#if up
            finish(b, i, first_j + across + $cu * ACROSS, s$r_$c, u$r_$c);
#else
            finish(b, i, first_j + across + $cu * ACROSS, s$r_$c, 0.0);
#end
        }
#end
    }
#end
}
#end

#if cooperative
const SIDE = 32u / EDGE; // matrices along a side of a subgroup's square
const DEPTH = 32u; // elements of a tile along k
const PITCH = 40u; // apart: rows begin in different banks
var<workgroup> x_half: array<f16, 64u * PITCH>; // [row][k]
var<workgroup> w_half: array<f16, 64u * PITCH>; // [column][k]
var<workgroup> results: array<f32, 4u * EDGE * EDGE>;

#main THREADS
    let group = id.x + id.y * p.grid_x;
    if group >= p.groups {
        return;
    }
    let first_j = group % p.tiles_n * 64u;
    let first_i = group / p.tiles_n % p.tiles_m * 64u;
    let b = group / (p.tiles_n * p.tiles_m);
    let x_row = at_x(b);
    let w_row = at_w(b);
    let down = subgroup.x / 2u * 32u;
    let across = subgroup.x % 2u * 32u;
    let own = subgroup.x * EDGE * EDGE;
    let pitch = PITCH;
    let edge = EDGE;
    var sums: array<array<MatrixC, SIDE>, SIDE>;
    for (var first = 0u; first < p.k; first += DEPTH) {
        for (var e = lane; e < 64u * DEPTH / 4u; e += THREADS) {
            let row = e / (DEPTH / 4u);
            let k = e % (DEPTH / 4u) * 4u;
            var x = vec4<f32>();
            var w = vec4<f32>();
            if first_i + row < p.m && first + k < p.k {
                x = x_vector(x_row + (first_i + row) * p.x_t1, first + k);
            }
            if first_j + row < p.n && first + k < p.k {
                w = w_vector(w_row, first_j + row, first + k);
            }
#repeat c 4
            x_half[row * PITCH + k + $cu] = f16(x[$c]);
            w_half[row * PITCH + k + $cu] = f16(w[$c]);
#end
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k += EDGE) {
            for (var i = 0u; i < SIDE; i++) {
                let x_at = (down + i * EDGE) * PITCH + k; // every argument has a name: naga's writer needs it
                let x = coopLoadT<MatrixA>(&x_half[x_at], pitch);
                for (var j = 0u; j < SIDE; j++) {
                    let w_at = (across + j * EDGE) * PITCH + k;
                    let w = coopLoad<MatrixB>(&w_half[w_at], pitch);
                    sums[i][j] = coopMultiplyAdd(x, w, sums[i][j]);
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < SIDE; i++) {
        for (var j = 0u; j < SIDE; j++) {
            let sum = sums[i][j];
            coopStoreT(sum, &results[own], edge);
            workgroupBarrier();
            for (var e = subgroup.z; e < EDGE * EDGE; e += THREADS / 4u) {
                let row = first_i + down + i * EDGE + e / EDGE;
                let column = first_j + across + j * EDGE + e % EDGE;
                if row < p.m && column < p.n {
                    finish(b, row, column, results[own + e], 0.0);
                }
            }
            workgroupBarrier();
        }
    }
}
#end

#if gemv
var<workgroup> place: vec2<u32>;

#main 64
    let group = id.x + id.y * p.grid_x;
    if group >= p.groups {
        return;
    }
    let j = group % p.n;
#if grouped
    let first = group / p.n;
    let rows = 1u;
    if lane == 0u {
        // The row belongs to the expert before the first boundary beyond it.
        place = vec2(0u, 0u);
        for (var g = 0u; g <= p.experts; g++) {
            if boundary(g, 0u) > first {
                place = vec2(g, 0u);
                break;
            }
        }
    }
    let here = workgroupUniformLoad(&place);
    if here.x == 0u {
        if lane == 0u {
            store_out(at_out(0u) + first * p.out_t1 + j * p.out_t0, 0.0);
        }
        return;
    }
    let b = here.x - 1u;
    let k_end = p.k;
#else
    let first = 0u;
    let rows = p.m;
    let b = group / p.n;
    let k_end = p.k;
#end
    let x_row = at_x(b) + first * p.x_t1;
    let w_row = at_w(b);
#if up
    let up_row = at_up(b);
#end
#repeat r ROWS
    var s$r = 0.0;
#if up
    var u$r = 0.0;
#end
#end
    for (var k = lane * 4u; k < k_end; k += 4u * WG) {
        let w = w_vector(w_row, j, k);
#if up
        let v = up_vector(up_row, j, k);
#end
#repeat r ROWS
        if $ru < rows {
            let x = x_vector(x_row + $ru * p.x_t1, k);
            s$r += dot(x, w);
#if up
            u$r += dot(x, v);
#end
        }
#end
    }
#repeat r ROWS
    if $ru < rows {
        let total = sum_all(lane, s$r);
#if up
        let up = sum_all(lane, u$r);
#else
        let up = 0.0;
#end
        if lane == 0u {
            finish(b, first + $ru, j, total, up);
        }
    }
#end
}
#end

#if element
#main 64
    let index = (id.x + id.y * p.grid_x) * WG + lane;
    if index >= p.elements {
        return;
    }
    let j = index % p.n;
    let i = index / p.n % p.m;
    let b = index / (p.n * p.m);
    let x_row = at_x(b) + i * p.x_t1;
    let w_row = at_w(b) + j * p.w_t1;
    var sum = 0;
#if block_scale
    var scaled = 0.0;
#end
    for (var k = 0u; k < p.k; k++) {
        sum += i32(load_x(x_row + k * p.x_t0)) * load_w(w_row + k * p.w_t0);
#if block_scale
        if (k & 127u) == 127u || k + 1u == p.k {
            scaled += f32(sum) * load_w_scale(j / 128u * p.w_scale_t1 + k / 128u * p.w_scale_t0);
            sum = 0;
        }
#end
    }
#if whole
    store_out(at_out(b) + i * p.out_t1 + j * p.out_t0, sum);
#else
#if block_scale
    finish(b, i, j, scaled, 0.0);
#else
    finish(b, i, j, f32(sum), 0.0);
#end
#end
}
#end
