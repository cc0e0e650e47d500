// Panels of an image, PANEL columns wide, lie as (part, row, column): the real and imaginary planes. A factor is
// block-diagonal on rows that are a stride apart. Panels are transposed for the second axis and on the way out.

#pragma once

#include "tile.h"

#include <vector>

namespace {

typedef std::vector<float> Buffer;
#ifndef PANEL_VECTORS
#define PANEL_VECTORS VECTORS
#endif
constexpr size PANEL = PANEL_VECTORS * LANES;

// Calls f(first column, how many, in how many vectors) for each panel of an image n wide.
template <class F>
void each_panel(size n, F f) {
    for (size w = 0; w < n; w += PANEL) {
        const size count = n - w < PANEL ? n - w : PANEL;
        f(w, count, (count + LANES - 1) / LANES);
    }
}

// One block-diagonal factor: blocks of `order` rows that are `step` apart, block b begins at row b·`next`.
struct Factor {
    size blocks, order, next_in, step_in, next_out, step_out;
    Buffer entries;  // (block, row, column, 3): Mr, Mi, Mr + Mi
};

// M (blocks, order, order, 2), or its conjugate transpose
Factor factor(
    const float* M, size blocks, size order, bool adjoint, size next_in, size step_in, size next_out, size step_out) {
    Factor f{blocks, order, next_in, step_in, next_out, step_out, Buffer(blocks * order * order * 3)};
    for (size b = 0; b < blocks; b++)
        for (size i = 0; i < order; i++)
            for (size j = 0; j < order; j++) {
                const float* m = M + 2 * ((b * order + (adjoint ? j : i)) * order + (adjoint ? i : j));
                const float re = m[0], im = adjoint ? -m[1] : m[1];
                float* to = &f.entries[((b * order + i) * order + j) * 3];
                to[0] = re, to[1] = im, to[2] = re + im;
            }
    return f;
}

// The two factors of an axis in the order they are applied. Between them row j2·1 + c·q.
struct Axis {
    size n;
    Factor first, second;
    Axis(const float* L, const float* R, size p, size q, bool adjoint)
        : n(p * q),
          first(adjoint ? factor(L, p, q, true, 1, p, q, 1) : factor(R, q, p, false, 1, q, 1, q)),
          second(adjoint ? factor(R, q, p, true, 1, q, 1, q) : factor(L, p, q, false, q, 1, 1, p)) {}
};

void apply(const Factor& f, size n, size vectors, float* in, float* out) {
    const size m = f.order, part = n * PANEL;
    for (size b = 0; b < f.blocks; b++)
        complex_multiply(
            m, m, vectors, &f.entries[b * m * m * 3], {in + b * f.next_in * PANEL, f.step_in * PANEL, part, LANES},
            {out + b * f.next_out * PANEL, f.step_out * PANEL, part, LANES});
}

// (a panel as (part, n, column)) → the same after both factors; `other` is a second panel of that size
void transform(const Axis& axis, size vectors, float* panel, float* other) {
    apply(axis.first, axis.n, vectors, panel, other);
    apply(axis.second, axis.n, vectors, other, panel);
}

// even and odd numbers of two vectors, and the way back
template <size_t... J>
void split(vec a, vec b, vec& even, vec& odd, std::index_sequence<J...>) {
    even = __builtin_shufflevector(a, b, (2 * J)...);
    odd = __builtin_shufflevector(a, b, (2 * J + 1)...);
}
template <size_t... J>
void join(vec even, vec odd, vec& a, vec& b, std::index_sequence<J...>) {
    a = __builtin_shufflevector(even, odd, (J / 2 + J % 2 * LANES)...);
    b = __builtin_shufflevector(even, odd, (LANES / 2 + J / 2 + J % 2 * LANES)...);
}
constexpr auto EACH = std::make_index_sequence<LANES>();

template <size_t... J>
vec swapped(vec v, size d, std::index_sequence<J...>) {
    return d == 1   ? __builtin_shufflevector(v, v, (J ^ 1)...)
           : d == 2 ? __builtin_shufflevector(v, v, (J ^ 2)...)
           : d == 4 ? __builtin_shufflevector(v, v, ((J ^ 4) % LANES)...)
                    : __builtin_shufflevector(v, v, ((J ^ 8) % LANES)...);
}
inline float total(vec v) {
#pragma GCC unroll 4
    for (size d = 1; d < LANES; d *= 2) v += swapped(v, d, EACH);
    return v[0];
}

// Panels of a whole image, one after the other
struct Panels {
    float* data;
    size n, width;  // rows of a panel, columns of all
    float* at(size w) const { return data + w / PANEL * 2 * n * PANEL; }
};

// D (M, N, 2) += Σ over columns of g xᴴ for some rows of g and of x
template <int M, int N>
void outer_tile(Panels g, size row_g, size step_g, Panels x, size row_x, size step_x, float* D, size order) {
    vec re[M][N]{}, im[M][N]{};
    const size part = g.n * PANEL;
    for (size w = 0; w < g.width; w += LANES) {
        const float *a = g.at(w) + row_g * PANEL + w % PANEL, *b = x.at(w) + row_x * PANEL + w % PANEL;
        vec br[N], bi[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
            br[j] = keep(load(b + j * step_x * PANEL));
            bi[j] = keep(load(b + j * step_x * PANEL + part));
        }
#pragma GCC unroll 4
        for (int i = 0; i < M; i++) {
            const vec ar = load(a + i * step_g * PANEL), ai = load(a + i * step_g * PANEL + part);
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) {
                re[i][j] += ar * br[j];
                im[i][j] += ai * br[j];
                re[i][j] += ai * bi[j];
                im[i][j] -= ar * bi[j];
            }
        }
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            D[(i * order + j) * 2] += total(re[i][j]);
            D[(i * order + j) * 2 + 1] += total(im[i][j]);
        }
}

// The gradient of a factor y = M x, g xᴴ block by block, added to D (blocks, order, order, 2)
void outer(const Factor& f, Panels g, Panels x, Buffer& D) {
    constexpr int M = LANES == 8 ? 1 : 2, N = LANES == 8 ? 2 : 4;
    const size m = f.order;
    for (size b = 0; b < f.blocks; b++)
        for (size i = 0; i < m; i += M)
            for (size j = 0; j < m; j += N) {
                const size row_g = b * f.next_out + i * f.step_out, row_x = b * f.next_in + j * f.step_in;
                float* d = &D[((b * m + i) * m + j) * 2];
                if (m - i >= M && m - j >= N)
                    outer_tile<M, N>(g, row_g, f.step_out, x, row_x, f.step_in, d, m);
                else
                    for (size r = 0; r < M && i + r < m; r++)
                        for (size c = 0; c < N && j + c < m; c++)
                            outer_tile<1, 1>(
                                g, row_g + r * f.step_out, 1, x, row_x + c * f.step_in, 1, d + (r * m + c) * 2, m);
            }
}

// D added to the gradient of L or R, which f holds itself or as its conjugate transpose
void add_gradient(const Factor& f, const Buffer& D, bool adjoint, float* to) {
    const size m = f.order;
    for (size b = 0; b < f.blocks; b++)
        for (size i = 0; i < m; i++)
            for (size j = 0; j < m; j++) {
                const float* d = &D[((b * m + i) * m + j) * 2];
                float* out = to + 2 * ((b * m + (adjoint ? j : i)) * m + (adjoint ? i : j));
                out[0] += d[0], out[1] += adjoint ? -d[1] : d[1];
            }
}

// columns w … w + count of an image (H, W, 2) → panel
void load_panel(const float* x, size H, size W, size w, size count, float* panel) {
    for (size h = 0; h < H; h++)
        for (size c = 0; c < count; c += LANES) {
            const float* from = x + 2 * (h * W + w + c);
            vec a{}, b{}, re, im;
            if (count - c >= LANES)
                a = load(from), b = load(from + LANES);
            else {
                float rest[2 * LANES] = {};
                memcpy(rest, from, 2 * (count - c) * sizeof(float));
                a = load(rest), b = load(rest + LANES);
            }
            split(a, b, re, im, EACH);
            store(panel + h * PANEL + c, re);
            store(panel + (H + h) * PANEL + c, im);
        }
}

// panel → columns w … w + count of an image (H, W, 2)
void store_columns(const float* panel, size H, size W, size w, size count, float* y) {
    for (size h = 0; h < H; h++)
        for (size c = 0; c < count; c += LANES) {
            float *to = y + 2 * (h * W + w + c), rest[2 * LANES];
            vec a, b;
            join(load(panel + h * PANEL + c), load(panel + (H + h) * PANEL + c), a, b, EACH);
            const bool whole = count - c >= LANES;
            float* out = whole ? to : rest;
            store(out, a), store(out + LANES, b);
            if (!whole) memcpy(to, rest, 2 * (count - c) * sizeof(float));
        }
}

// rows h … h + count of an image (H, W, 2) → panel (part, W, row)
void load_rows(const float* x, size W, size h, size count, float* panel) {
    float re[LANES * LANES], im[LANES * LANES];
    for (size r = 0; r < count; r += LANES)
        for (size w = 0; w < W; w += LANES) {
            const size rows = count - r < LANES ? count - r : LANES, columns = W - w < LANES ? W - w : LANES;
            for (size i = 0; i < rows; i++) {
                const float* from = x + 2 * ((h + r + i) * W + w);
                if (r + LANES + i < count) {  // LANES rows on: too far for the hardware to see
                    __builtin_prefetch(from + 2 * LANES * W);
                    __builtin_prefetch(from + 2 * LANES * W + LANES);
                }
                float rest[2 * LANES] = {};
                if (columns < LANES) from = static_cast<float*>(memcpy(rest, from, 2 * columns * sizeof(float)));
                vec a, b;
                split(load(from), load(from + LANES), a, b, EACH);
                store(re + i * LANES, a), store(im + i * LANES, b);
            }
            transpose(re, LANES, rows, columns, panel + w * PANEL + r, PANEL);
            transpose(im, LANES, rows, columns, panel + (W + w) * PANEL + r, PANEL);
        }
}

// panel (part, H, columns w …) → panels of the transposed image: (panel of rows, part, W, row)
void turn(const float* panel, size H, size W, size w, size count, float* turned) {
    for (size part = 0; part < 2; part++)
        for (size h = 0; h < H; h += LANES)
            for (size c = 0; c < count; c += LANES) {
                const size rows = H - h < LANES ? H - h : LANES, columns = count - c < LANES ? count - c : LANES;
                float* to = turned + ((h / PANEL * 2 + part) * W + w + c) * PANEL + h % PANEL;
                transpose(panel + (part * H + h) * PANEL + c, PANEL, rows, columns, to, PANEL);
            }
}

// panel (part, W, rows h …) → rows of the image (H, W, 2); or, given S, added to it after conj(S)
void store_panel(const float* panel, size W, size h, size count, const float* S, float* y) {
    float re[LANES * LANES], im[LANES * LANES];
    for (size r = 0; r < count; r += LANES)
        for (size w = 0; w < W; w += LANES) {
            const size rows = count - r < LANES ? count - r : LANES, columns = W - w < LANES ? W - w : LANES;
            untranspose(panel + w * PANEL + r, PANEL, vec{}, LANES, columns, re, LANES);
            untranspose(panel + (W + w) * PANEL + r, PANEL, vec{}, LANES, columns, im, LANES);
            for (size i = 0; i < rows; i++) {
                const size at = 2 * ((h + r + i) * W + w);
                float rest[2 * LANES];
                vec a, b, vr = load(re + i * LANES), vi = load(im + i * LANES);
                if (S) {
                    const float* s = S + at;
                    if (columns < LANES) s = static_cast<float*>(memcpy(rest, s, 2 * columns * sizeof(float)));
                    vec sr, si;
                    split(load(s), load(s + LANES), sr, si, EACH);
                    const vec product = sr * vr + si * vi;
                    vi = sr * vi - si * vr;
                    vr = product;
                }
                join(vr, vi, a, b, EACH);
                if (columns == LANES) {
                    store(y + at, S ? load(y + at) + a : a);
                    store(y + at + LANES, S ? load(y + at + LANES) + b : b);
                } else {
                    store(rest, a), store(rest + LANES, b);
                    for (size j = 0; j < 2 * columns; j++) y[at + j] = (S ? y[at + j] : 0) + rest[j];
                }
            }
        }
}

}  // namespace
