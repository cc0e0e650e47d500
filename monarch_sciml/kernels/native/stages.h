// The stages of the spectral convolution, each on one group: a sample and LANES of its channels.
//
// An image becomes T (H, part, l, lane) by the last axis' matrix, a few columns of it, and modes (k, part, l, lane) by
// the other axis'; "part" is real or imaginary.
#pragma once

#include "tile.h"

#include <vector>

namespace {

constexpr size BLOCK = VECTORS;  // image rows transposed at a time
typedef std::vector<float> Buffer;

struct Axes {  // one direction: a real image (C, H, W) ↔ modes (mh, mw)
    size C, H, W, mh, mw;
    size groups() const { return padded(C) / LANES; }
    size columns() const { return 2 * mw; }                        // (part, l)
    size strip() const { return H * columns() * LANES; }           // T of a group: (H, part, l, lane)
    size spectrum() const { return mh * columns() * LANES; }       // modes of a group: (k, part, l, lane)
};

// Entries (row, column, 3) as ``complex_multiply`` takes them of planes (2, m, n), or of the adjoint.
Buffer entries(const float* E, size m, size n, bool adjoint) {
    Buffer out(3 * m * n);
    for (size i = 0; i < m; i++)
        for (size j = 0; j < n; j++) {
            const float re = E[i * n + j], im = adjoint ? -E[(m + i) * n + j] : E[(m + i) * n + j];
            float* to = &out[3 * (adjoint ? j * m + i : i * n + j)];
            to[0] = re, to[1] = im, to[2] = re + im;
        }
    return out;
}

Buffer transposed(const float* A, size m, size n) {
    Buffer out(m * n);
    for (size i = 0; i < m; i++)
        for (size j = 0; j < n; j++) out[j * m + i] = A[i * n + j];
    return out;
}

// The real part of a product with V, given by its planes (2, m, n), as one matrix [Vr, −Vi]: (m, part, n)
Buffer real_part(const float* V, size m, size n) {
    Buffer out(2 * m * n);
    for (size i = 0; i < m; i++)
        for (size j = 0; j < n; j++) {
            out[2 * i * n + j] = V[i * n + j];
            out[(2 * i + 1) * n + j] = -V[(m + i) * n + j];
        }
    return out;
}

// Rows of an image (C, H, W), LANES channels: out (W, rows, lane). Adds the sum over the image to `sum`.
void to_lanes(const Axes& a, const float* image, size channels, size h, size rows, float* out, vec* sum) {
    for (size r = 0; r < rows; r++)
        for (size w = 0; w < a.W; w += LANES) {
            const size n = a.W - w < LANES ? a.W - w : LANES;
            if (h + r + BLOCK < a.H)  // what the next call reads: planes are too far apart for the hardware to see
                for (size c = 0; c < channels; c++) prefetch(image + (c * a.H + h + r + BLOCK) * a.W + w, 1);
            transpose(image + (h + r) * a.W + w, a.H * a.W, channels, n, out + (w * BLOCK + r) * LANES,
                BLOCK * LANES);
        }
    if (sum) {
        vec part{};  // a sum of sums: rounding grows with the length of each
        for (size w = 0; w < a.W; w++)
            for (size r = 0; r < rows; r++) part += load(out + (w * BLOCK + r) * LANES);
        *sum += part;
    }
}

// T = A x for a group: A (2·mw, W), T (H, part, l, lane)
void analyse_rows(
    const Axes& a, const float* A, const float* image, size channels, float* T, float* scratch, vec* sum) {
    for (size h = 0; h < a.H; h += BLOCK) {
        const size rows = a.H - h < BLOCK ? a.H - h : BLOCK;
        to_lanes(a, image, channels, h, rows, scratch, sum);
        multiply(
            a.columns(), a.W, 1, rows, {A, a.W, 1, 0}, {scratch, LANES, BLOCK * LANES, 0},
            T + h * a.columns() * LANES, [](size r) { return r * LANES; }, a.columns() * LANES);
    }
}

// image = Aᵀ-like product with T: A (W, 2·mw), T (H, part, l, lane) → rows of the image, plus bias
void synthesise_rows(
    const Axes& a, const float* A, const float* T, size channels, const float* bias, float* image, float* scratch) {
    vec offset{};
    if (bias) memcpy(&offset, bias, channels * sizeof(float));
    for (size h = 0; h < a.H; h += BLOCK) {
        const size rows = a.H - h < BLOCK ? a.H - h : BLOCK;
        multiply(
            a.W, a.columns(), 1, rows, {A, a.columns(), 1, 0},
            {T + h * a.columns() * LANES, a.columns() * LANES, LANES, 0}, scratch,
            [](size w) { return w * BLOCK * LANES; }, LANES);
        for (size r = 0; r < rows; r++)
            for (size w = 0; w < a.W; w += LANES) {
                const size n = a.W - w < LANES ? a.W - w : LANES;
                untranspose(
                    scratch + (w * BLOCK + r) * LANES, BLOCK * LANES, offset, channels, n,
                    image + (h + r) * a.W + w, a.H * a.W);
            }
    }
}

// D (2·mw, W) += Σ over rows and channels of T · x: the gradient of the matrix of the last axis
void row_gradient(
    const Axes& a, const float* T, const float* image, size channels, float* D, float* scratch) {
    constexpr size WIDTH = VECTORS * LANES, TILE = BLOCK * LANES * WIDTH;  // what one tile of D takes of the rows
    const size pitch = padded(a.W);
    for (size h = 0; h < a.H; h += BLOCK) {
        const size rows = a.H - h < BLOCK ? a.H - h : BLOCK;
        for (size r = 0; r < rows; r++)
            for (size c = 0; c < channels; c++) {
                const float* from = image + (c * a.H + h + r) * a.W;
                float* to = scratch + (r * LANES + c) * WIDTH;
                if (h + r + BLOCK < a.H) prefetch(from + BLOCK * a.W, a.W);
                for (size w = 0; w < a.W; w += LANES) {
                    float* at = to + w / WIDTH * TILE + w % WIDTH;
                    if (a.W - w < LANES) {
                        store(at, vec{});
                        memcpy(at, from + w, (a.W - w) * sizeof(float));
                    } else
                        store(at, load(from + w));
                }
            }
        for (size w = 0; w < pitch; w += WIDTH)
            multiply(
                a.columns(), channels, rows, (pitch - w < WIDTH ? pitch - w : WIDTH) / LANES,
                {T + h * a.columns() * LANES, LANES, 1, a.columns() * LANES},
                {scratch + w / WIDTH * TILE, LANES, WIDTH, LANES * WIDTH}, D + w, [=](size r) { return r * pitch; },
                LANES, true);
    }
}

// D (m, n, 2, lane) += Σ_l conj-product of g (m, part, l, lane) and x (n, part, l, lane):
// real part gr·xr + gi·xi, imaginary part gi·xr − gr·xi
template <int M, int N>
void outer_tile(size L, const float* g, const float* x, size stride, float* D, size ds) {
    vec acc[M][N][2];
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) {
            acc[i][j][0] = load(D + i * ds + j * 2 * LANES);
            acc[i][j][1] = load(D + i * ds + j * 2 * LANES + LANES);
        }
    for (size l = 0; l < L; l++, g += LANES, x += LANES) {
        vec xr[N], xi[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) {
            xr[j] = keep(load(x + j * stride));
            xi[j] = keep(load(x + j * stride + L * LANES));
        }
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) {
            const vec gr = load(g + i * stride), gi = load(g + i * stride + L * LANES);
#pragma GCC unroll 8
            for (int j = 0; j < N; j++) {
                acc[i][j][0] += gr * xr[j];
                acc[i][j][1] += gi * xr[j];
                acc[i][j][0] += gi * xi[j];
                acc[i][j][1] -= gr * xi[j];
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) {
            store(D + i * ds + j * 2 * LANES, acc[i][j][0]);
            store(D + i * ds + j * 2 * LANES + LANES, acc[i][j][1]);
        }
}

void complex_gradient(size m, size n, size L, const float* g, const float* x, float* D) {
    constexpr int M = LANES == 8 ? 1 : 2, N = LANES == 8 ? 4 : 4;
    const size stride = 2 * L * LANES, ds = n * 2 * LANES;
    for (size j = 0; j < n; j += N)
        for (size i = 0; i < m; i += M) {
            const float *gi = g + i * stride, *xj = x + j * stride;
            float* d = D + i * ds + j * 2 * LANES;
            if (m - i >= M && n - j >= N)
                outer_tile<M, N>(L, gi, xj, stride, d, ds);
            else
                for (size a = 0; a < M && i + a < m; a++)
                    for (size b = 0; b < N && j + b < n; b++)
                        outer_tile<1, 1>(L, gi + a * stride, xj + b * stride, stride, d + a * ds + b * 2 * LANES, ds);
        }
}

// Modes of all samples and channels: (k, l, b, part, channel), channels padded to whole vectors. Each has the
// place of `wide` channels.
struct Spectrum {
    float* data;
    size B, C, mw, wide;
    size mode() const { return B * 2 * padded(wide); }
    float* at(size b, size group) const { return data + b * 2 * padded(C) + group * LANES; }
};

// E (mh, H) times T (H, part, l, lane) → the modes of a group
void analyse_columns(const Axes& a, const Buffer& E, float* T, const Spectrum& Z, float* to) {
    complex_multiply(
        a.mh, a.H, a.mw, E.data(), {T, 2 * a.mw * LANES, a.mw * LANES, LANES},
        {to, a.mw * Z.mode(), padded(Z.C), Z.mode()});
}

// a group's modes, gathered (k, part, l, lane)
void gather(const Axes& a, const Spectrum& Z, const float* from, float* to) {
    for (size k = 0; k < a.mh; k++)
        for (size p = 0; p < 2; p++)
            for (size l = 0; l < a.mw; l++, to += LANES)
                store(to, load(from + (k * a.mw + l) * Z.mode() + p * padded(Z.C)));
}

// E (H, mh) times modes (k, part, l, lane) → T (H, part, l, lane)
void synthesise_columns(const Axes& a, const Buffer& E, float* modes, float* T) {
    const size row = 2 * a.mw * LANES, part = a.mw * LANES;
    complex_multiply(a.H, a.mh, a.mw, E.data(), {modes, row, part, LANES}, {T, row, part, LANES});
}

// What a thread sums up: gradients of the matrices of both axes.
struct Gradients {
    Buffer rows, columns;
    Gradients(const Axes& a, bool analysis)
        : rows(a.columns() * padded(a.W)), columns(a.H * a.mh * 2 * LANES), analysis(analysis) {}
    bool analysis;

    // columns: (2, mh, H) in analysis, (2, H, mh) in synthesis; rows: (2, mw, W), or (2, W, mw) as ``real_part``
    void add_to(const Axes& a, float* grad_columns, float* grad_rows) const {
        const size pitch = padded(a.W), n = a.H * a.mh;
        for (size p = 0; p < 2; p++)
            for (size l = 0; l < a.mw; l++)
                for (size w = 0; w < a.W; w++) {
                    const float sum = rows[(p * a.mw + l) * pitch + w];
                    if (analysis)
                        grad_rows[(p * a.mw + l) * a.W + w] += sum;
                    else
                        grad_rows[(p * a.W + w) * a.mw + l] += p ? -sum : sum;
                }
        for (size e = 0; e < n; e++)
            for (size p = 0; p < 2; p++) {
                float sum = 0;
                for (int lane = 0; lane < LANES; lane++) sum += columns[(2 * e + p) * LANES + lane];
                grad_columns[p * n + e] += sum;
            }
    }
};

size channels_of(const Axes& a, size group) {
    const size left = a.C - group * LANES;
    return left < LANES ? left : LANES;
}

size scratch_size(const Axes& a) { return BLOCK * LANES * (padded(a.W) + (VECTORS - 1) * LANES); }

}  // namespace
