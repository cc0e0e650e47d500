// What stands around the spectral convolution in a layer of an FNO, one pixel at a time:
//     h = σ(s + W x),  y = σ(W2 gelu(W1 h + b1) + b2 + g ⊙ x),
// or without s the perceptron alone, h = x. A tile of pixels passes through all of it in the cache: x and s are
// read and y is written once. Nothing is kept; the backward pass computes what lies between again.

#include "gelu.h"

#include <algorithm>
#include <omp.h>
#include <vector>

namespace {

typedef std::vector<float> Buffer;
constexpr size PIXELS = 8 * LANES;  // of a tile: rows of its arrays

// R rows and VECTORS vectors of a product, from row i and pixel v on
template <int R, class Begin, class End>
inline void product_tile(size K, Broadcast A, const float* X, size i, size v, Begin begin, End end) {
    vec sum[R][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) sum[r][j] = begin(i + r, v + j * LANES);
    accumulate(K, A.data + i * A.row, A, X + v, {X, LANES, PIXELS, 0}, sum);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) end(i + r, v + j * LANES, sum[r][j]);
}

// end(i, v, begin(i, v) + Σ_k A[i, k] X[k, v]) for all rows i and pixels v; A (I, K), or its transpose stored as (K, I)
template <class Begin, class End>
void product(size I, size K, const float* A, bool transposed, const float* X, Begin begin, End end) {
    const Broadcast a{A, transposed ? 1 : K, transposed ? I : 1, 0};
    for (size v = 0; v < PIXELS; v += VECTORS * LANES)
        for (size i = 0; i < I; i += ROWS) switch (I - i) {
                case 1: product_tile<1>(K, a, X, i, v, begin, end); break;
                case 2: product_tile<2>(K, a, X, i, v, begin, end); break;
                case 3: product_tile<3>(K, a, X, i, v, begin, end); break;
                case 4: product_tile<4>(K, a, X, i, v, begin, end); break;
                case 5: product_tile<5>(K, a, X, i, v, begin, end); break;
                default: product_tile<ROWS>(K, a, X, i, v, begin, end);
            }
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
    constexpr int M = 2, N = LANES == 16 ? 8 : 4;
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

// Rows of an array at the pixels of a tile: its own, or of a copy that goes on where the array ends.
struct Rows {
    float* data;
    size stride;
    float* at(size row, size pixel) const { return data + row * stride + pixel; }
};

// A tile on its way from x to y. Derivatives of the activations are kept where `Learning`.
template <bool Learning>
struct Tile {
    const PointwiseSizes& n;
    const Operands& o;
    Buffer x, h, a, dh, da, end_of_s, end_of_y;
    const float* input;  // of the perceptron
    size batch = 0, first = 0, pixels = 0;

    Tile(const PointwiseSizes& n, const Operands& o)
        : n(n), o(o), x(n.Ci * PIXELS), h(o.s ? n.C * PIXELS : 0), a(n.Ch * PIXELS), dh(Learning ? h.size() : 0),
          da(Learning ? a.size() : 0), end_of_s(n.C * PIXELS), end_of_y(std::max(n.Ci, n.Co) * PIXELS),
          input(o.s ? h.data() : x.data()) {}

    void go_to(size item) {
        const size tiles = (n.N + PIXELS - 1) / PIXELS;
        batch = item / tiles, first = item % tiles * PIXELS;
        pixels = std::min(n.N - first, PIXELS);
        read(o.x, n.Ci, x);
    }
    float* place(const float* array, size rows) const {
        return const_cast<float*>(array) + batch * rows * n.N + first;
    }
    void read(const float* array, size rows, Buffer& to) const {
        for (size c = 0; c < rows; c++) {
            memcpy(&to[c * PIXELS], place(array, rows) + c * n.N, pixels * sizeof(float));
            memset(&to[c * PIXELS + pixels], 0, (PIXELS - pixels) * sizeof(float));
        }
    }
    Rows reading(const float* array, size rows, Buffer& end) const {
        if (pixels == PIXELS) return {place(array, rows), n.N};
        read(array, rows, end);
        return {end.data(), PIXELS};
    }
    Rows writing(float* array, size rows, Buffer& end) const {
        return pixels == PIXELS && array ? Rows{place(array, rows), n.N} : Rows{end.data(), PIXELS};
    }
    void written(float* array, size rows, const Buffer& end) const {
        if (pixels < PIXELS && array)
            for (size c = 0; c < rows; c++)
                memcpy(place(array, rows) + c * n.N, &end[c * PIXELS], pixels * sizeof(float));
    }
    static void activate(Buffer& value, Buffer& slope, size i, size v, vec sum) {
        vec derivative;
        store(&value[i * PIXELS + v], gelu<Learning>(sum, derivative));
        if (Learning) store(&slope[i * PIXELS + v], derivative);
    }

    // end(i, v, y before its activation)
    template <class End>
    void forward(End end) {
        if (o.s) {
            const Rows s = reading(o.s, n.C, end_of_s);
            product(
                n.C, n.Ci, o.W, false, x.data(), [&](size i, size v) { return load(s.at(i, v)); },
                [&](size i, size v, vec sum) {
                    if (n.activated)
                        activate(h, dh, i, v, sum);
                    else
                        store(&h[i * PIXELS + v], sum);
                });
        }
        product(
            n.Ch, n.C, o.W1, false, input, [&](size i, size) { return o.b1[i] - vec{}; },
            [&](size i, size v, vec sum) { activate(a, da, i, v, sum); });
        product(
            n.Co, n.Ch, o.W2, false, a.data(),
            [&](size i, size v) { return o.g ? o.b2[i] + o.g[i] * load(&x[i * PIXELS + v]) : o.b2[i] - vec{}; }, end);
    }
};

inline void add(Buffer& lanes, size row, vec v) { store(&lanes[row * LANES], load(&lanes[row * LANES]) + v); }

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
        Tile<false> tile(*n, o);
#pragma omp for schedule(static)
        for (size item = 0; item < n->B * ((n->N + PIXELS - 1) / PIXELS); item++) {
            tile.go_to(item);
            const Rows to = tile.writing(y, n->Co, tile.end_of_y);
            tile.forward([&](size i, size v, vec sum) {
                vec unused;
                store(to.at(i, v), n->activated ? gelu<false>(sum, unused) : sum);
            });
            tile.written(y, n->Co, tile.end_of_y);
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
        Tile<true> tile(*n, o);
        Buffer gy(n->Co * PIXELS), ga(n->Ch * PIXELS), gh(n->C * PIXELS);
        Buffer sum_W(s ? n->C * n->Ci * LANES : 0), sum_W1(n->Ch * n->C * LANES), sum_W2(n->Co * n->Ch * LANES);
        Buffer sum_b1(n->Ch * LANES), sum_b2(n->Co * LANES), sum_g(g ? n->Ci * LANES : 0);
        const auto zero = [](size, size) { return vec{}; };
#pragma omp for schedule(static)
        for (size item = 0; item < n->B * ((n->N + PIXELS - 1) / PIXELS); item++) {
            tile.go_to(item);
            const Rows given = tile.reading(grad_y, n->Co, tile.end_of_y);
            tile.forward([&](size i, size v, vec sum) {
                vec slope = vec{} + 1.0f;
                if (n->activated) gelu<true>(sum, slope);
                const vec d = load(given.at(i, v)) * slope;
                store(&gy[i * PIXELS + v], d);
                add(sum_b2, i, d);
                if (g) add(sum_g, i, d * load(&tile.x[i * PIXELS + v]));
            });
            outer(n->Co, n->Ch, gy.data(), tile.a.data(), sum_W2.data());
            // past the last pixel a is gelu(b1), but gy is zero there
            product(n->Ch, n->Co, W2, true, gy.data(), zero, [&](size i, size v, vec sum) {
                const vec d = sum * load(&tile.da[i * PIXELS + v]);
                store(&ga[i * PIXELS + v], d);
                add(sum_b1, i, d);
            });
            outer(n->Ch, n->C, ga.data(), tile.input, sum_W1.data());
            const auto skip = [&](size i, size v) { return g ? g[i] * load(&gy[i * PIXELS + v]) : vec{}; };
            const Rows to = tile.writing(grad_x, n->Ci, tile.end_of_y);
            const auto finish = [&](size i, size v, vec sum) { store(to.at(i, v), sum); };
            if (s) {
                const Rows to_s = tile.writing(grad_s, n->C, tile.end_of_s);
                product(n->C, n->Ch, W1, true, ga.data(), zero, [&](size i, size v, vec sum) {
                    const vec d = n->activated ? sum * load(&tile.dh[i * PIXELS + v]) : sum;
                    store(&gh[i * PIXELS + v], d);
                    store(to_s.at(i, v), d);
                });
                tile.written(grad_s, n->C, tile.end_of_s);
                outer(n->C, n->Ci, gh.data(), tile.x.data(), sum_W.data());
                if (grad_x) product(n->Ci, n->C, W, true, gh.data(), skip, finish);
            } else if (grad_x) {
                product(n->Ci, n->Ch, W1, true, ga.data(), skip, finish);
            }
            tile.written(grad_x, n->Ci, tile.end_of_y);
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
