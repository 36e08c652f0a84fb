// The `tiled` kernel of matmul.wgsl, whose head says what it is.

const THREADS = ACROSS * DOWN;
const TALL = ROWS * DOWN + 1u; // one apart: vectors of a row lie in different banks
const WIDE = COLUMNS * ACROSS + 1u;
var<workgroup> x_tile: array<vec4<f32>, BUFFERS * K * TALL>; // [vector along k][row]
var<workgroup> w_tile: array<vec4<f32>, BUFFERS * K * WIDE>; // [vector along k][column]
#if up
var<workgroup> up_tile: array<vec4<f32>, BUFFERS * K * WIDE>;
#end
#if grouped
var<workgroup> place: vec4<u32>; // first row, end of the rows, matrix, whether there is a matrix
#end

// s + x.w, each product into the sum.
fn onto(s: f32, x: vec4<f32>, w: vec4<f32>) -> f32 {
    return fma(x.w, w.w, fma(x.z, w.z, fma(x.y, w.y, fma(x.x, w.x, s))));
}

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
    let here = workgroupUniformLoad(&place);
#else
    let here = vec4(group / p.tiles_n % p.tiles_m * (ROWS * DOWN), p.m, group / (p.tiles_n * p.tiles_m), 1u);
#end
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
    // The vectors this thread brings: (lane + n THREADS) / K is the row or column, the rest the vector along k.
#repeat n X_LOADS
    var x_next$n = vec4<f32>();
#end
#repeat n W_COPIES
    var w_next$n: array<vec4<f32>, W_TURNS>;
#if up
    var up_next$n: array<vec4<f32>, W_TURNS>;
#end
#end
    var at = 0u; // of the buffer computed from
    for (var first = 0u; first < k_end + 4u * K; first += 4u * K) {
        // Tile `first` is on its way while the one before is computed.
        let more = first < k_end;
        if more {
#repeat n X_LOADS
            {
                let e = lane + $nu * THREADS;
                let i = first_i + e / K;
                x_next$n = vec4<f32>();
                if i < end_i {
                    x_next$n = x_vector(x_row + i * p.x_t1, first + e % K * 4u);
                }
            }
#end
#repeat n W_COPIES
            for (var t = 0u; t < W_TURNS; t++) {
                let e = lane + ($nu * W_TURNS + t) * THREADS;
                let j = first_j + e / K;
                let k = first + e % K * 4u;
                w_next$n[t] = vec4<f32>();
#if up
                up_next$n[t] = vec4<f32>();
#end
                if j < p.n && k < p.k {
                    w_next$n[t] = w_vector(w_row, j, k);
#if up
                    up_next$n[t] = up_vector(up_row, j, k);
#end
                }
            }
#end
        }
        if first > 0u {
            let x_at = at * K * TALL;
            let w_at = at * K * WIDE;
            for (var q = 0u; q < K; q++) {
#repeat c COLUMNS
                let w$c = w_tile[w_at + q * WIDE + across + $cu * ACROSS];
#if up
                let v$c = up_tile[w_at + q * WIDE + across + $cu * ACROSS];
#end
#end
#repeat r ROWS
                {
                    let x = x_tile[x_at + q * TALL + down + $ru * DOWN];
#repeat c COLUMNS
                    s$r_$c = onto(s$r_$c, x, w$c);
#if up
                    u$r_$c = onto(u$r_$c, x, v$c);
#end
#end
                }
#end
            }
        }
#if twice
        at = 1u - at;
#else
        workgroupBarrier();
#end
        if more {
            let x_at = at * K * TALL;
            let w_at = at * K * WIDE;
#repeat n X_LOADS
            x_tile[x_at + (lane + $nu * THREADS) % K * TALL + (lane + $nu * THREADS) / K] = x_next$n;
#end
#repeat n W_COPIES
            for (var t = 0u; t < W_TURNS; t++) {
                let e = lane + ($nu * W_TURNS + t) * THREADS;
                w_tile[w_at + e % K * WIDE + e / K] = w_next$n[t];
#if up
                up_tile[w_at + e % K * WIDE + e / K] = up_next$n[t];
#end
            }
#end
        }
        workgroupBarrier();
    }
    // Results by way of `w_tile`, DOWN rows at a time: the end is written once, and neighbours store neighbours. A thread's columns are
    // ACROSS apart, four to a vector: [row][four of a thread's columns][across].
    for (var turn = 0u; turn < ROWS; turn++) {
        switch turn {
#repeat r ROWS
            case $ru: {
                w_tile[down * (COLUMNS / 4u) * ACROSS + across] = vec4(s$r_0, s$r_1, s$r_2, s$r_3);
#if eight
                w_tile[(down * (COLUMNS / 4u) + 1u) * ACROSS + across] = vec4(s$r_4, s$r_5, s$r_6, s$r_7);
#end
#if up
                up_tile[down * (COLUMNS / 4u) * ACROSS + across] = vec4(u$r_0, u$r_1, u$r_2, u$r_3);
#if eight
                up_tile[(down * (COLUMNS / 4u) + 1u) * ACROSS + across] = vec4(u$r_4, u$r_5, u$r_6, u$r_7);
#end
#end
            }
#end
            default: {}
        }
        workgroupBarrier();
        for (var n = lane; n < DOWN * COLUMNS * ACROSS; n += THREADS) {
            let column = n % (COLUMNS * ACROSS);
            let row = n / (COLUMNS * ACROSS);
            let i = first_i + turn * DOWN + row;
            let j = first_j + column;
            if i < end_i && j < p.n {
                let c = column / ACROSS;
                let origin = (row * (COLUMNS / 4u) + c / 4u) * ACROSS + column % ACROSS;
#if grouped
                if here.w == 0u {
                    store_out(at_out(0u) + i * p.out_t1 + j * p.out_t0, 0.0); // of no expert, whatever its scale
                    continue;
                }
#end
#if up
                finish(b, i, j, w_tile[origin][c % 4u], up_tile[origin][c % 4u]);
#else
                finish(b, i, j, w_tile[origin][c % 4u], 0.0);
#end
            }
        }
        workgroupBarrier();
    }
}
