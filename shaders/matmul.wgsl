// out[b, i, j] = residual + scale * act(x_scale[i] w_scale[j] sum_k x[b, i, k] w[b, j, k] + bias[j]) (* x upT).
// `tiled`: ACROSS x DOWN threads compute ROWS x COLUMNS outputs each from tiles of 4 K elements of k held in workgroup
//   memory, rows and columns of one thread lying DOWN and ACROSS apart. Four neighbours along k at a time: a thread
//   reads ROWS + COLUMNS vectors for ROWS * COLUMNS * 4 products. Beyond k both tiles hold zeros. f32, 4096 cubed on an H200 in TFLOP/s:
//   25 by 8 x 8 (128 x 128), 19 with vectors along k unrolled; 20 by 4 x 4 (64 x 64) and by 4 x 8. Not run there since results leave by way
//   of workgroup memory, with which lavapipe 22.3 takes 2 to 32 % less for floats, 12 % more for 32 rows by q4_k (one run), and compiles a
//   quarter as long.
// `cooperative`: subgroups compute HIGH x BROAD of the device's own matrices of EDGE x EDGE each, f16 summed in f32, from tiles of DEPTH
//   elements of k. 4096 cubed on an H200: 128 TFLOP/s. Lost: tiles kept as vec4<u32>, which crash its compiler, and matrices
//   loaded from the operands themselves: 38.
// `gemv`: 64 threads share the sums of one column for up to ROWS rows: each weight is decoded once.
//   Four columns a workgroup, for one reading of x, lost: 1.4 (q8_0) to 1.7 times (q4_k) as long on lavapipe, 1 x 1024 x 4096.
// `columns`: 64 threads share the sums of COLUMNS columns, eight elements of k at a time: one load of 16 bytes of bf16. 1 x 4096 x 4096
//   bf16 on lavapipe 22.3: 12.5 ms by four columns, 17 by two, 97 by `gemv`.
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

#if by_halves
#else
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
#end

#if tiled
#use matmul_tiled
#end

#if cooperative
// Subgroups of a workgroup lie OVER x BESIDE, each with HIGH x BROAD matrices.
const TALL = OVER * HIGH * EDGE;
const WIDE = BESIDE * BROAD * EDGE;
const FOURS = DEPTH / 4u; // of four halves, along k
const PITCH = DEPTH + 8u; // apart: rows begin in different banks
var<workgroup> x_half: array<f16, TALL * PITCH>; // [row][k]
var<workgroup> w_half: array<f16, WIDE * PITCH>; // [column][k]
var<workgroup> results: array<f32, OVER * BESIDE * EDGE * EDGE>;

// Four halves of the tile from k = `first` on, the `e`-th piece of its rows; zeros beyond the end.
fn x_piece(e: u32, first_i: u32, first: u32, x_row: u32) -> vec4<f16> {
    let i = first_i + e / FOURS;
    let k = first + e % FOURS * 4u;
    var v = vec4<f16>();
    if i < p.m && k < p.k {
#if by_halves
        v = x_halves[(p.x_at + x_row + i * p.x_t1 + k) >> 2u];
#else
        v = vec4<f16>(x_vector(x_row + i * p.x_t1, k));
#end
    }
    return v;
}

fn w_piece(e: u32, first_j: u32, first: u32, w_row: u32) -> vec4<f16> {
    let j = first_j + e / FOURS;
    let k = first + e % FOURS * 4u;
    var v = vec4<f16>();
    if j < p.n && k < p.k {
#if by_halves
        v = w_halves[(p.w_at + w_row + j * p.w_t1 + k) >> 2u];
#else
        v = vec4<f16>(w_vector(w_row, j, k));
#end
    }
    return v;
}

#main THREADS
    let group = id.x + id.y * p.grid_x;
    if group >= p.groups {
        return;
    }
    // Eight tiles down before the next ones across: what runs at a time shares its rows and columns.
    let matrix = p.tiles_n * p.tiles_m;
    let tile = group % matrix;
    let band = tile / (8u * p.tiles_n) * 8u;
    let high = min(8u, p.tiles_m - band);
    let first_i = (band + tile % (8u * p.tiles_n) % high) * TALL;
    let first_j = tile % (8u * p.tiles_n) / high * WIDE;
    let b = group / matrix;
    let x_row = at_x(b);
    let w_row = at_w(b);
    let down = subgroup.x / BESIDE * (HIGH * EDGE);
    let across = subgroup.x % BESIDE * (BROAD * EDGE);
    let own = subgroup.x * EDGE * EDGE;
    let edge = EDGE;
#repeat i HIGH
#repeat j BROAD
    var s$i_$j: MatrixC;
#end
#end
    let pitch = PITCH;
#repeat n X_LOADS
    var x_next$n = x_piece(lane + $nu * THREADS, first_i, 0u, x_row);
#end
#repeat n W_LOADS
    var w_next$n = w_piece(lane + $nu * THREADS, first_j, 0u, w_row);
#end
    for (var first = 0u; first < p.k; first += DEPTH) {
#repeat c 4
#repeat n X_LOADS
        x_half[(lane + $nu * THREADS) / FOURS * PITCH + (lane + $nu * THREADS) % FOURS * 4u + $cu] = x_next$n[$c];
#end
#repeat n W_LOADS
        w_half[(lane + $nu * THREADS) / FOURS * PITCH + (lane + $nu * THREADS) % FOURS * 4u + $cu] = w_next$n[$c];
#end
#end
        workgroupBarrier();
        // The next tile is on its way while this one is computed.
#repeat n X_LOADS
        x_next$n = x_piece(lane + $nu * THREADS, first_i, first + DEPTH, x_row);
#end
#repeat n W_LOADS
        w_next$n = w_piece(lane + $nu * THREADS, first_j, first + DEPTH, w_row);
#end
        for (var k = 0u; k < DEPTH; k += EDGE) {
#repeat i HIGH
            let x_at$i = (down + $iu * EDGE) * PITCH + k; // every argument has a name: naga's writer needs it
            let x$i = coopLoadT<MatrixA>(&x_half[x_at$i], pitch);
#end
#repeat j BROAD
            let w_at$j = (across + $ju * EDGE) * PITCH + k;
            let w$j = coopLoad<MatrixB>(&w_half[w_at$j], pitch);
#repeat i HIGH
            s$i_$j = coopMultiplyAdd(x$i, w$j, s$i_$j);
#end
#end
        }
        workgroupBarrier();
    }
#repeat i HIGH
#repeat j BROAD
    {
        let sum = s$i_$j;
        coopStoreT(sum, &results[own], edge);
        workgroupBarrier();
        for (var e = subgroup.z; e < EDGE * EDGE; e += THREADS / (OVER * BESIDE)) {
            let row = first_i + down + $iu * EDGE + e / EDGE;
            let column = first_j + across + $ju * EDGE + e % EDGE;
            if row < p.m && column < p.n {
                finish(b, row, column, results[own + e], 0.0);
            }
        }
        workgroupBarrier();
    }
#end
#end
}
#end

#if gemv
#if grouped
var<workgroup> place: vec2<u32>;
#end

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
    // A thread ends one row.
    var total = 0.0;
    var up = 0.0;
#repeat r ROWS
    if $ru < rows {
        let sum = sum_all(lane, s$r);
        total = select(total, sum, lane == $ru);
#if up
        let other = sum_all(lane, u$r);
        up = select(up, other, lane == $ru);
#end
    }
#end
    if lane < rows {
        finish(b, first + lane, j, total, up);
    }
}
#end

#if columns
// The workgroup's sums, [column][row].
var<workgroup> parts: array<f32, WG * COLUMNS * ROWS>;

#main 64
    let group = id.x + id.y * p.grid_x;
    if group >= p.groups {
        return;
    }
    let first_j = group % p.tiles_n * COLUMNS;
    let b = group / p.tiles_n;
    let x_row = at_x(b);
    let w_row = at_w(b);
#repeat c COLUMNS
#repeat r ROWS
    var s$c_$r = 0.0;
#end
    let row$c = w_row + min(first_j + $cu, p.n - 1u) * p.w_t1;
#end
    for (var k = lane * 8u; k < p.k; k += 8u * WG) {
#repeat c COLUMNS
        let w$c = load8_w(row$c + k);
#end
#repeat r ROWS
        if $ru < p.m {
            let x = load8_x(x_row + $ru * p.x_t1 + k);
#repeat c COLUMNS
            s$c_$r += dot(x[0], w$c[0]) + dot(x[1], w$c[1]);
#end
        }
#end
    }
#if subgroups
#repeat c COLUMNS
#repeat r ROWS
    s$c_$r = subgroupAdd(s$c_$r);
#end
#end
    let part = subgroup.x;
    let parts_of = subgroup.y;
    let writes = subgroup.z == 0u;
#else
    let part = lane;
    let parts_of = WG;
    let writes = true;
#end
    if writes {
#repeat c COLUMNS
#repeat r ROWS
        parts[part * (COLUMNS * ROWS) + $cu * ROWS + $ru] = s$c_$r;
#end
#end
    }
    workgroupBarrier();
    if lane < COLUMNS * ROWS {
        var total = 0.0;
        for (var n = 0u; n < parts_of; n++) {
            total += parts[n * (COLUMNS * ROWS) + lane];
        }
        let j = first_j + lane / ROWS;
        if lane % ROWS < p.m && j < p.n {
            finish(b, lane % ROWS, j, total, 0.0);
        }
    }
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
