// What stands around the spectral convolution in a layer of an FNO, one pixel at a time:
//     h = σ(s + W x),  y = σ(W2 gelu(W1 h + b1) + b2 + g ⊙ x),
// or without s the perceptron alone, h = x. A tile of pixels passes through all of it in the cache: x and s are
// read and y is written once. Nothing is kept; the backward pass computes what lies between again.

#include "tile.h"

#include <algorithm>
#include <omp.h>
#include <vector>

namespace {

typedef std::vector<float> Buffer;
constexpr size PIXELS = 16 * LANES;  // of a tile: rows of its arrays
typedef int ivec __attribute__((vector_size(LANES * sizeof(int))));

// exp(v) for v ≤ 0: 2ⁿ times a polynomial in what is left, |f| ≤ ½ ln 2
inline vec exponential(vec v) {
    const vec least = vec{} - 87.0f, shift = vec{} + 12582912.0f;  // adding 1.5·2²³ rounds to an integer
    v = v < least ? least : v;
    const vec n = (v * 1.44269504f + shift) - shift;
    const vec f = (v - n * 0.693359375f) - n * -2.12194440e-4f;
    vec p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    const ivec bits = (__builtin_convertvector(n, ivec) + 127) << 23;
    return p * reinterpret_cast<const vec&>(bits);
}

// x Φ(x), and its derivative Φ(x) + x φ(x). Φ by Abramowitz and Stegun, 7.1.26: absolute error below 1e-7.
inline vec gelu(vec x, vec& slope) {
    const vec u = (x < 0.0f ? -x : x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * u), e = exponential(-u * u);
    vec p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const vec tail = 0.5f * p * t * e, P = x < 0.0f ? tail : 1.0f - tail;
    slope = P + x * e * 0.39894228f;
    return x * P;
}

// A (rows, PIXELS) ← gelu(A), with the derivatives in D unless it is null
void activate(float* A, size rows, float* D) {
    for (size i = 0; i < rows * PIXELS; i += LANES) {
        vec slope;
        store(A + i, gelu(load(A + i), slope));
        if (D) store(D + i, slope);
    }
}

void times(float* A, const float* B, size rows) {
    for (size i = 0; i < rows * PIXELS; i += LANES) store(A + i, load(A + i) * load(B + i));
}

// C (I, PIXELS) += A X for A (I, K), or its transpose stored as (K, I)
void product(size I, size K, const float* A, bool transposed, const float* X, float* C) {
    const Broadcast a{A, transposed ? 1 : K, transposed ? I : 1, 0};
    multiply(I, K, 1, PIXELS / LANES, a, {X, LANES, PIXELS, 0}, C, [](size i) { return i * PIXELS; }, LANES, true);
}

template <int M, int N>
inline void outer_tile(const float* A, const float* B, float* D, size ds) {
    vec acc[M][N];
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) acc[i][j] = load(D + i * ds + j * LANES);
    for (size v = 0; v < PIXELS; v += LANES) {
        vec b[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) b[j] = keep(load(B + j * PIXELS + v));
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) {
            const vec a = load(A + i * PIXELS + v);
#pragma GCC unroll 8
            for (int j = 0; j < N; j++) acc[i][j] += a * b[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; i++)
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) store(D + i * ds + j * LANES, acc[i][j]);
}

// D (m, n, lane) += A Bᵀ for A (m, PIXELS), B (n, PIXELS); lanes are summed up at the end
void outer(size m, size n, const float* A, const float* B, float* D) {
    constexpr int M = LANES == 16 ? 4 : 2, N = LANES == 16 ? 4 : 4;
    const size ds = n * LANES;
    for (size i = 0; i < m; i += M)
        for (size j = 0; j < n; j += N) {
            const float *a = A + i * PIXELS, *b = B + j * PIXELS;
            float* d = D + i * ds + j * LANES;
            if (m - i >= M && n - j >= N)
                outer_tile<M, N>(a, b, d, ds);
            else
                for (size p = 0; p < M && i + p < m; p++)
                    for (size q = 0; q < N && j + q < n; q++)
                        outer_tile<1, 1>(a + p * PIXELS, b + q * PIXELS, d + p * ds + q * LANES, ds);
        }
}

// D (rows, lane) += Σ over pixels of A, or of A ⊙ B
void sums(size rows, const float* A, const float* B, float* D) {
    for (size i = 0; i < rows; i++) {
        vec sum = load(D + i * LANES);
        for (size v = i * PIXELS; v < (i + 1) * PIXELS; v += LANES) sum += B ? load(A + v) * load(B + v) : load(A + v);
        store(D + i * LANES, sum);
    }
}

void add_lanes(const Buffer& D, float* to) {
    if (!to) return;
    for (size_t i = 0; i < D.size() / LANES; i++) {
        float sum = 0;
        for (int lane = 0; lane < LANES; lane++) sum += D[i * LANES + lane];
        to[i] += sum;
    }
}

}  // namespace

extern "C" {
struct PointwiseSizes {
    size B, Ci, C, Ch, Co, N, activated, threads;
};
}

namespace {

struct Operands {
    const float *x, *s, *W, *W1, *b1, *W2, *b2, *g;
};

// The arrays of a tile, and the way from x to y; derivatives of the activations are kept where `learning`.
struct Tile {
    const PointwiseSizes& n;
    const Operands& o;
    Buffer x, h, a, y, dh, da, dy;
    size batch = 0, first = 0, pixels = 0;

    Tile(const PointwiseSizes& n, const Operands& o, bool learning)
        : n(n), o(o), x(n.Ci * PIXELS), h(n.C * PIXELS), a(n.Ch * PIXELS), y(n.Co * PIXELS),
          dh(learning ? n.C * PIXELS : 0), da(learning ? n.Ch * PIXELS : 0), dy(learning ? n.Co * PIXELS : 0) {}

    void read(const float* from, size rows, Buffer& to) const {
        for (size c = 0; c < rows; c++) {
            memcpy(&to[c * PIXELS], from + (batch * rows + c) * n.N + first, pixels * sizeof(float));
            memset(&to[c * PIXELS + pixels], 0, (PIXELS - pixels) * sizeof(float));
        }
    }
    void write(const Buffer& from, size rows, float* to) const {
        for (size c = 0; c < rows; c++)
            memcpy(to + (batch * rows + c) * n.N + first, &from[c * PIXELS], pixels * sizeof(float));
    }
    float* slope(Buffer& d) const { return d.empty() ? nullptr : d.data(); }

    void forward(size item) {
        const size tiles = (n.N + PIXELS - 1) / PIXELS;
        batch = item / tiles, first = item % tiles * PIXELS;
        pixels = n.N - first < PIXELS ? n.N - first : PIXELS;
        read(o.x, n.Ci, x);
        if (o.s) {
            read(o.s, n.C, h);
            product(n.C, n.Ci, o.W, false, x.data(), h.data());
            if (n.activated) activate(h.data(), n.C, slope(dh));
        } else {
            h = x;
        }
        for (size c = 0; c < n.Ch; c++)
            for (size v = 0; v < PIXELS; v += LANES) store(&a[c * PIXELS + v], vec{} + o.b1[c]);
        product(n.Ch, n.C, o.W1, false, h.data(), a.data());
        activate(a.data(), n.Ch, slope(da));
        for (size c = 0; c < n.Co; c++)
            for (size v = c * PIXELS; v < (c + 1) * PIXELS; v += LANES)
                store(&y[v], o.g ? o.b2[c] + o.g[c] * load(&x[v]) : vec{} + o.b2[c]);
        product(n.Co, n.Ch, o.W2, false, a.data(), y.data());
        if (n.activated) activate(y.data(), n.Co, slope(dy));
    }
};

}  // namespace

extern "C" {
// x (B, Ci, N), s (B, C, N), y (B, Co, N); W (C, Ci), W1 (Ch, C), W2 (Co, Ch), b1, b2, g (Ci). s, W and g may be null.
void pointwise_forward(
    const PointwiseSizes* n, const float* x, const float* s, const float* W, const float* W1, const float* b1,
    const float* W2, const float* b2, const float* g, float* y) {
    const Operands o{x, s, W, W1, b1, W2, b2, g};
    fresh(y, n->B * n->Co * n->N);
#pragma omp parallel num_threads(n->threads)
    {
        Tile tile(*n, o, false);
#pragma omp for schedule(static)
        for (size i = 0; i < n->B * ((n->N + PIXELS - 1) / PIXELS); i++) {
            tile.forward(i);
            tile.write(tile.y, n->Co, y);
        }
    }
}

// Gradients of everything, given that of y: of x and s written, the others added to; any may be null.
void pointwise_backward(
    const PointwiseSizes* n, const float* grad_y, const float* x, const float* s, const float* W, const float* W1,
    const float* b1, const float* W2, const float* b2, const float* g, float* grad_x, float* grad_s, float* grad_W,
    float* grad_W1, float* grad_b1, float* grad_W2, float* grad_b2, float* grad_g) {
    const Operands o{x, s, W, W1, b1, W2, b2, g};
    if (grad_x) fresh(grad_x, n->B * n->Ci * n->N);
    if (grad_s) fresh(grad_s, n->B * n->C * n->N);
#pragma omp parallel num_threads(n->threads)
    {
        Tile tile(*n, o, true);
        Buffer gy(n->Co * PIXELS), ga(n->Ch * PIXELS), gh(n->C * PIXELS), gx(n->Ci * PIXELS);
        Buffer sum_W(s ? n->C * n->Ci * LANES : 0), sum_W1(n->Ch * n->C * LANES), sum_W2(n->Co * n->Ch * LANES);
        Buffer sum_b1(n->Ch * LANES), sum_b2(n->Co * LANES), sum_g(g ? n->Ci * LANES : 0);
#pragma omp for schedule(static)
        for (size i = 0; i < n->B * ((n->N + PIXELS - 1) / PIXELS); i++) {
            tile.forward(i);
            tile.read(grad_y, n->Co, gy);
            if (n->activated) times(gy.data(), tile.dy.data(), n->Co);
            sums(n->Co, gy.data(), nullptr, sum_b2.data());
            outer(n->Co, n->Ch, gy.data(), tile.a.data(), sum_W2.data());
            std::fill(ga.begin(), ga.end(), 0.0f);
            product(n->Ch, n->Co, W2, true, gy.data(), ga.data());
            times(ga.data(), tile.da.data(), n->Ch);
            // past the last pixel a is gelu(b1), but gy is zero there
            sums(n->Ch, ga.data(), nullptr, sum_b1.data());
            outer(n->Ch, n->C, ga.data(), tile.h.data(), sum_W1.data());
            std::fill(gh.begin(), gh.end(), 0.0f);
            product(n->C, n->Ch, W1, true, ga.data(), gh.data());
            std::fill(gx.begin(), gx.end(), 0.0f);
            if (s) {
                if (n->activated) times(gh.data(), tile.dh.data(), n->C);
                if (grad_s) tile.write(gh, n->C, grad_s);
                outer(n->C, n->Ci, gh.data(), tile.x.data(), sum_W.data());
                product(n->Ci, n->C, W, true, gh.data(), gx.data());
            } else {
                gx = gh;
            }
            if (g) {
                sums(n->Ci, gy.data(), tile.x.data(), sum_g.data());
                for (size c = 0; c < n->Ci; c++)
                    for (size v = c * PIXELS; v < (c + 1) * PIXELS; v += LANES)
                        store(&gx[v], load(&gx[v]) + g[c] * load(&gy[v]));
            }
            if (grad_x) tile.write(gx, n->Ci, grad_x);
        }
        // thread after thread, so that the sums come out the same every time
#pragma omp for ordered schedule(static, 1)
        for (int t = 0; t < omp_get_num_threads(); t++)
#pragma omp ordered
        {
            add_lanes(sum_W, grad_W), add_lanes(sum_W1, grad_W1), add_lanes(sum_W2, grad_W2);
            add_lanes(sum_b1, grad_b1), add_lanes(sum_b2, grad_b2), add_lanes(sum_g, grad_g);
        }
    }
}
}
