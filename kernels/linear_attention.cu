// Linear attention. Up to 32 features, a block has 64 elements of the value of one head of a sequence and takes 64 rows at a time, as products of
// register tiles from shared memory (all in f32; x rows are stored by columns, so that both sides of a product are read in fours):
//
//     f(x) = relu(x omega) + eps   64 x d x 32      S += f(k)' v   32 x 64 x 64      out = f(q) S   64 x 32 x 64
//     causal: A = f(q) f(k)' below the diagonal, 64 x 64, and out = f(q) S + A v with the S of the tiles before
//
// More features: a block per 16 elements of the value, whose threads have a feature each, one row after the other.
// Traffic: q, k, v and out once per 64 elements of the value, omega from cache. Floor: 64 x 202 x 12 x 64 f32 with 32 features are 159 MB, 37 us, and
// 2.6 GFLOP, 45 us. Predicted for an H200: 120 us (two reads of shared memory for 16 multiply-adds). Measured there:
// 244 us, causal 344 us; with loads one after the other 315 and 428. Row by row: 15 ms.
#include "rows.cuh"
#include "activation.cuh"

#define ELEMENTS 16

struct Args {
    Tensor q, k, v, omega, out, lengths;
    u64 t, heads, d, features, dv, tiles;
    u32 causal;
    float eps;
};

// The feature of a row that is this thread's, 0 beyond the last.
DEV float feature(const Args& p, const Tensor& x, i64 at, float* row) {
    __syncthreads(); // the row before is done with
    if (threadIdx.x < p.d) row[threadIdx.x] = load_float(x, at + threadIdx.x * x.stride[0]);
    __syncthreads();
    if (threadIdx.x >= p.features) return 0.0f;
    float dot = 0.0f;
#pragma unroll 1
    for (u64 e = 0; e < p.d; e++) dot += row[e] * load_float(p.omega, e * p.omega.stride[1] + threadIdx.x * p.omega.stride[0]);
    return relu(dot) + p.eps;
}

KERNEL void __launch_bounds__(256) linear_attention(const __grid_constant__ Args p) {
    __shared__ float row[256], sums[ELEMENTS + 1][8];
    u32 tiles = (u32)p.tiles, heads = (u32)p.heads;
    u64 first = blockIdx.x % tiles * ELEMENTS, head = blockIdx.x / tiles % heads, b = blockIdx.x / tiles / heads;
    u64 rows = p.t;
    if (p.lengths.data) {
        int length = load_index(p.lengths, b * p.lengths.stride[0]);
        rows = length < 0 ? 0 : (u64)length < p.t ? (u64)length : p.t;
    }
    auto at = [&](const Tensor& x, u64 i) { return (i64)(b * x.stride[3] + i * x.stride[2] + head * x.stride[1]); };
    float z = 0.0f, s[ELEMENTS] = {};
    auto add = [&](u64 j) {
        float f = feature(p, p.k, at(p.k, j), row);
        z += f;
        i64 v = at(p.v, j);
#pragma unroll
        for (u32 e = 0; e < ELEMENTS; e++) {
            if (first + e < p.dv) s[e] += f * load_float(p.v, v + (first + e) * p.v.stride[0]);
        }
    };
    if (!p.causal) {
#pragma unroll 1
        for (u64 j = 0; j < rows; j++) add(j);
    }
#pragma unroll 1
    for (u64 i = 0; i < rows; i++) {
        if (p.causal) add(i);
        float f = feature(p, p.q, at(p.q, i), row);
        u32 warp = threadIdx.x / 32;
#pragma unroll
        for (u32 e = 0; e < ELEMENTS; e++) {
            float y = warp_sum(f * s[e]);
            if (threadIdx.x % 32 == 0) sums[e][warp] = y;
        }
        float below = warp_sum(f * z);
        if (threadIdx.x % 32 == 0) sums[ELEMENTS][warp] = below;
        __syncthreads();
        if (threadIdx.x < ELEMENTS && first + threadIdx.x < p.dv) {
            float total = 0.0f, whole = p.eps;
#pragma unroll
            for (u32 w = 0; w < 8; w++) {
                total += sums[threadIdx.x][w];
                whole += sums[ELEMENTS][w];
            }
            store(p.out, at(p.out, i) + (first + threadIdx.x) * p.out.stride[0], whole == 0.0f ? 0.0f : total / whole);
        }
    }
    if (threadIdx.x < ELEMENTS && first + threadIdx.x < p.dv) {
        for (u64 i = rows; i < p.t; i++) store(p.out, at(p.out, i) + (first + threadIdx.x) * p.out.stride[0], 0.0f);
    }
}

#define T 64
#define W 68 // of rows in shared memory: fours begin at multiples of 16 bytes
#define F 32

typedef Floats<4> Fours;
DEV Fours four_at(const Tensor& x, i64 at, u64 e, u64 end, bool whole) {
    if (whole && e + 4 <= end) return load_floats<4>(x, at + e);
    Fours v = {};
#pragma unroll
    for (u32 u = 0; u < 4; u++) {
        if (e + u < end) v.x[u] = load_float(x, at + (e + u) * x.stride[0]);
    }
    return v;
}
DEV bool in_place(const Tensor& x) {
    return x.stride[0] == 1 && (x.stride[1] | x.stride[2] | x.stride[3]) % 4 == 0 && in_fours(x);
}
DEV Fours& four_in(float* shared, u32 row, u32 column) {
    return *(Fours*)(shared + row * W + column);
}

KERNEL void __launch_bounds__(128, 3) linear_attention_tiles(const __grid_constant__ Args p) {
    extern __shared__ float memory[];
    float *x = memory, *a = x + T * W, *fk = a + T * W, *fq = fk + F * W, *s = fq + F * W, *z = s + F * W, *below = z + F;
    float* omega = a; // only one of the two is in use
    u32 tiles = (u32)p.tiles, heads = (u32)p.heads, thread = threadIdx.x;
    u64 element = blockIdx.x % tiles * T, head = blockIdx.x / tiles % heads, b = blockIdx.x / tiles / heads;
    u64 rows = p.t;
    if (p.lengths.data) {
        int length = load_index(p.lengths, b * p.lengths.stride[0]);
        rows = length < 0 ? 0 : (u64)length < p.t ? (u64)length : p.t;
    }
    auto at = [&](const Tensor& t, u64 i) { return (i64)(b * t.stride[3] + i * t.stride[2] + head * t.stride[1]); };
    // A thread's rows, from `high` on, and features, from `low` on: fours.
    u32 high = thread / 8 * 4, low = thread % 8 * 4, wide = thread % 8 * 8;

    // Features of the rows from `first` on, by columns.
    auto map = [&](const Tensor& t, u64 first, float* f) {
        bool whole = in_place(t);
        float sum[4][4] = {};
#pragma unroll 1
        for (u64 c = 0; c < p.d; c += T) {
            __syncthreads(); // what lay there is done with
            u64 row = first + thread % T;
            u32 half = thread / T * 32;
            bool there = row < rows;
            if (whole && c + T <= p.d) {
                // All are on their way at once; rows beyond the end are read from the first.
                Bits raw[8];
#pragma unroll
                for (u32 q = 0; q < 8; q++) raw[q] = bits_of(t, at(t, there ? row : 0) + (i64)(c + half + q * 4));
#pragma unroll
                for (u32 q = 0; q < 8; q++) {
                    Fours v = decode(t, raw[q]);
#pragma unroll
                    for (u32 u = 0; u < 4; u++) x[(half + q * 4 + u) * W + thread % T] = there ? v.x[u] : 0.0f;
                }
            } else {
#pragma unroll 1
                for (u32 q = 0; q < 32; q += 4) {
                    Fours v = {};
                    if (there) v = four_at(t, at(t, row), c + half + q, p.d, whole);
#pragma unroll
                    for (u32 u = 0; u < 4; u++) x[(half + q + u) * W + thread % T] = v.x[u];
                }
            }
#pragma unroll
            for (u32 l = 0; l < T * F / 128; l++) {
                u32 i = l * 128 + thread;
                bool inside = c + i / F < p.d && i % F < p.features;
                float v = ((const float*)p.omega.data)[inside ? (i64)(c + i / F) * p.omega.stride[1] + i % F * p.omega.stride[0] : 0];
                omega[i] = inside ? v : 0.0f;
            }
            __syncthreads();
#pragma unroll 8
            for (u32 e = 0; e < T; e++) {
                Fours r = four_in(x, e, high), o = *(const Fours*)(omega + e * F + low);
#pragma unroll
                for (u32 u = 0; u < 4; u++) {
#pragma unroll
                    for (u32 v = 0; v < 4; v++) sum[u][v] += r.x[u] * o.x[v];
                }
            }
        }
#pragma unroll
        for (u32 v = 0; v < 4; v++) {
            Fours column;
#pragma unroll
            for (u32 u = 0; u < 4; u++) column.x[u] = first + high + u < rows && low + v < p.features ? relu(sum[u][v]) + p.eps : 0.0f;
            four_in(f, low + v, high) = column;
        }
        __syncthreads();
    };
    auto values = [&](u64 first) {
        if (in_place(p.v) && element + T <= p.dv) {
            Bits raw[8];
#pragma unroll
            for (u32 l = 0; l < 8; l++) {
                u32 i = l * 128 + thread;
                raw[l] = bits_of(p.v, at(p.v, first + i / 16 < rows ? first + i / 16 : 0) + (i64)(element + i % 16 * 4));
            }
#pragma unroll
            for (u32 l = 0; l < 8; l++) {
                u32 i = l * 128 + thread;
                four_in(x, i / 16, i % 16 * 4) = first + i / 16 < rows ? decode(p.v, raw[l]) : Fours{};
            }
        } else {
#pragma unroll 1
            for (u32 i = thread; i < T * 16; i += 128) {
                Fours v = {};
                if (first + i / 16 < rows) v = four_at(p.v, at(p.v, first + i / 16), element + i % 16 * 4, p.dv, in_place(p.v));
                four_in(x, i / 16, i % 16 * 4) = v;
            }
        }
        __syncthreads();
    };
    // Adds the keys in `fk` and the values in `x` to the sums.
    auto add = [&] {
        Fours sum[4];
#pragma unroll
        for (u32 u = 0; u < 4; u++) sum[u] = four_in(s, low + u, high);
#pragma unroll 2
        for (u32 j = 0; j < T; j += 4) {
            Fours f[4], v[4];
#pragma unroll
            for (u32 u = 0; u < 4; u++) {
                f[u] = four_in(fk, low + u, j);
                v[u] = four_in(x, j + u, high);
            }
#pragma unroll
            for (u32 w = 0; w < 4; w++) {
#pragma unroll
                for (u32 u = 0; u < 4; u++) {
#pragma unroll
                    for (u32 e = 0; e < 4; e++) sum[u].x[e] += f[u].x[w] * v[w].x[e];
                }
            }
        }
#pragma unroll
        for (u32 u = 0; u < 4; u++) four_in(s, low + u, high) = sum[u];
        if (thread < F) {
            float total = z[thread];
#pragma unroll 4
            for (u32 j = 0; j < T; j++) total += fk[thread * W + j];
            z[thread] = total;
        }
        __syncthreads();
    };
    // sum += the product of `count` rows of both, each thread's four columns of `left` by eight of `right`.
    auto multiply = [&](Fours (&sum)[4][2], float* left, float* right, u32 count) {
#pragma unroll 4
        for (u32 f = 0; f < count; f++) {
            Fours l = four_in(left, f, high), r[2] = {four_in(right, f, wide), four_in(right, f, wide + 4)};
#pragma unroll
            for (u32 u = 0; u < 4; u++) {
#pragma unroll
                for (u32 e = 0; e < 8; e++) sum[u][e / 4].x[e % 4] += l.x[u] * r[e / 4].x[e % 4];
            }
        }
    };
    bool whole = in_place(p.out);
    auto answer = [&](u64 first) {
        Fours sum[4][2] = {};
        if (p.causal) {
            multiply(sum, fq, fk, F); // [row][key]
#pragma unroll
            for (u32 e = 0; e < 8; e++) {
                Fours column;
#pragma unroll
                for (u32 u = 0; u < 4; u++) column.x[u] = wide + e <= high + u ? sum[u][e / 4].x[e % 4] : 0.0f;
                four_in(a, wide + e, high) = column;
            }
            __syncthreads();
#pragma unroll
            for (u32 u = 0; u < 4; u++) sum[u][0] = sum[u][1] = {};
            multiply(sum, a, x, T);
        }
        multiply(sum, fq, s, F);
        if (thread < T) {
            float total = p.eps;
#pragma unroll 4
            for (u32 f = 0; f < F; f++) total += fq[f * W + thread] * z[f];
            if (p.causal) {
#pragma unroll 4
                for (u32 j = 0; j < T; j++) total += a[j * W + thread];
            }
            below[thread] = total;
        }
        __syncthreads();
#pragma unroll
        for (u32 u = 0; u < 4; u++) {
            u64 row = first + high + u;
            if (row >= rows) continue;
            float total = below[high + u];
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                Fours y = sum[u][half];
#pragma unroll
                for (u32 e = 0; e < 4; e++) y.x[e] = total == 0.0f ? 0.0f : y.x[e] / total;
                u64 first_of = element + wide + half * 4;
                if (whole && first_of + 4 <= p.dv) {
                    store_floats<4>(p.out, at(p.out, row) + first_of, y);
                    continue;
                }
#pragma unroll
                for (u32 e = 0; e < 4; e++) {
                    if (first_of + e < p.dv) store(p.out, at(p.out, row) + (first_of + e) * p.out.stride[0], y.x[e]);
                }
            }
        }
        __syncthreads();
    };

    for (u32 i = thread; i < F * W + F; i += 128) s[i] = 0.0f; // and z
    if (!p.causal) {
#pragma unroll 1
        for (u64 first = 0; first < rows; first += T) {
            map(p.k, first, fk);
            values(first);
            add();
        }
    }
#pragma unroll 1
    for (u64 first = 0; first < rows; first += T) {
        if (p.causal) map(p.k, first, fk);
        map(p.q, first, fq);
        if (p.causal) values(first);
        answer(first);
        if (p.causal) add();
    }
    u64 width = p.dv - element < T ? p.dv - element : T;
    for (u64 i = rows * T + thread; i < p.t * T; i += 128) {
        if (i % T < width) store(p.out, at(p.out, i / T) + (element + i % T) * p.out.stride[0], 0.0f);
    }
}
