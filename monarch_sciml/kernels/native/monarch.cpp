// y[(ℓ,j)] = Σ_kt L[j,ℓ,(k,t)] Σ_i R[k,(j,t),i] x[(k,i)] for rows of x, a few vectors of rows at a time.
//
// Rows are transposed so that they lie in the lanes; both factors are then products with broadcast weights, and
// the permutation between them is where the first stores its result. What lies between never leaves the cache.

#include "tile.h"

#include <omp.h>

#include <algorithm>
#include <vector>

extern "C" {
struct MonarchSizes {
    size N, J, S, K, I, T, threads, blocks;
};
}

namespace {

typedef std::vector<float> Buffer;

size cover(size n, size tile) { return (n + tile - 1) / tile; }

// How rows of vectors lie, which hold V·LANES rows of x each: results of R as (j,k,t), gradients of them as
// (k,j,t), results of L as (ℓ,j) or (j,ℓ).
struct Layout {
    MonarchSizes s;
    bool blocks;
    // four vectors share what is read of the factors, but few rows are spread over the threads first
    size share = cover(s.N, LANES * s.threads), V = share ? cover(share, cover(share, 4)) : 1, W = V * LANES;
    int threads = static_cast<int>(std::max<size>(1, std::min(s.threads, cover(s.N, W))));
    size n = s.K * s.I, m = s.S * s.J, JT = s.J * s.T, KT = s.K * s.T, JKT = s.J * KT;
    size inner(size k, size jt) const { return ((jt / s.T * s.K + k) * s.T + jt % s.T) * W; }
    size back(size j, size kt) const { return ((kt / s.T * s.J + j) * s.T + kt % s.T) * W; }
    size out(size j, size l) const { return (blocks ? j * s.S + l : l * s.J + j) * W; }
};

// rows × n, row-major → (n, V, lane); rows that do not exist are zero
void to_lanes(const Layout& at, const float* x, size rows, size n, float* out) {
    for (size v = 0; v < at.V; v++) {
        const size left = rows - v * LANES, count = left < 0 ? 0 : left < LANES ? left : LANES;
        for (size i = 0; i < n; i += LANES)
            transpose(
                x + v * LANES * n + i, n, count, n - i < LANES ? n - i : LANES, out + i * at.W + v * LANES, at.W);
    }
}

void from_lanes(const Layout& at, const float* in, size rows, size n, float* x) {
    for (size v = 0; v < at.V && v * LANES < rows; v++)
        for (size i = 0; i < n; i += LANES)
            untranspose(
                in + i * at.W + v * LANES, at.W, vec{}, rows - v * LANES < LANES ? rows - v * LANES : LANES,
                n - i < LANES ? n - i : LANES, x + v * LANES * n + i, n);
}

void first(const Layout& at, const float* R, const float* x, float* z) {
    const auto& s = at.s;
    for (size k = 0; k < s.K; k++)
        multiply(
            at.JT, s.I, 1, at.V, {R + k * at.JT * s.I, s.I, 1, 0}, {x + k * s.I * at.W, LANES, at.W, 0}, z,
            [&](size jt) { return at.inner(k, jt); }, LANES);
}

void second(const Layout& at, const float* L, const float* z, float* y) {
    const auto& s = at.s;
    for (size j = 0; j < s.J; j++)
        multiply(
            s.S, at.KT, 1, at.V, {L + j * s.S * at.KT, at.KT, 1, 0}, {z + j * at.KT * at.W, LANES, at.W, 0},
            y, [&](size l) { return at.out(j, l); }, LANES);
}

}  // namespace

extern "C" {

void monarch_forward(const MonarchSizes* s, const float* x, const float* L, const float* R, float* y) {
    const Layout at{*s, s->blocks != 0};
    const size n = at.n, m = at.m;
    fresh(y, s->N * m);
#pragma omp parallel num_threads(at.threads)
    {
        Buffer lanes(padded(n > m ? n : m) * at.W), z(at.JKT * at.W);
#pragma omp for schedule(static)
        for (size b = 0; b < s->N; b += at.W) {
            const size rows = s->N - b < at.W ? s->N - b : at.W;
            to_lanes(at, x + b * n, rows, n, lanes.data());
            first(at, R, lanes.data(), z.data());
            second(at, L, z.data(), lanes.data());
            from_lanes(at, lanes.data(), rows, m, y + b * m);
        }
    }
}

// grad_x may be null, or grad_L and grad_R together; those two are added to.
void monarch_backward(
    const MonarchSizes* s, const float* grad_y, const float* x, const float* L, const float* R, float* grad_x,
    float* grad_L, float* grad_R) {
    const Layout at{*s, s->blocks != 0};
    const size n = at.n, m = at.m, wide = padded(s->S), broad = padded(s->I);
    if (grad_x) fresh(grad_x, s->N * n);
#pragma omp parallel num_threads(at.threads)
    {
        Buffer lanes(padded(n > m ? n : m) * at.W), z(at.JKT * at.W), gz(at.JKT * at.W);
        Buffer rows_of(grad_L ? at.W * (wide > broad ? wide : broad) : 0);
        Buffer DL(grad_L ? at.JKT * wide : 0), DR(grad_L ? at.JKT * broad : 0);  // (j,k,t,ℓ) and (k,j,t,i)
#pragma omp for schedule(static)
        for (size b = 0; b < s->N; b += at.W) {
            const size rows = s->N - b < at.W ? s->N - b : at.W;
            const float *xb = x + b * n, *gb = grad_y + b * m;
            if (grad_L) {
                to_lanes(at, xb, rows, n, lanes.data());
                first(at, R, lanes.data(), z.data());
                // DL[j] (kt, ℓ) += Σ z · g over rows: those of g, ℓ contiguous, are the vectors
                for (size j = 0; j < s->J; j++) {
                    const size from = at.out(j, 0) / at.W, step = at.out(j, 1) / at.W - from;
                    for (size r = 0; r < rows; r++)
                        for (size l = 0; l < s->S; l++) rows_of[r * wide + l] = gb[r * m + from + l * step];
                    multiply(
                        at.KT, rows, 1, wide / LANES, {&z[j * at.KT * at.W], at.W, 1, 0},
                        {rows_of.data(), LANES, wide, 0}, &DL[j * at.KT * wide], [=](size e) { return e * wide; },
                        LANES, true);
                }
            }
            to_lanes(at, gb, rows, m, lanes.data());
            for (size j = 0; j < s->J; j++)  // gz[j] = L[j]ᵀ g[j], stored (k,j,t)
                multiply(
                    at.KT, s->S, 1, at.V, {L + j * s->S * at.KT, 1, at.KT, 0},
                    {lanes.data() + at.out(j, 0), LANES, at.out(j, 1) - at.out(j, 0), 0}, gz.data(),
                    [&](size kt) { return at.back(j, kt); }, LANES);
            if (grad_L)
                for (size k = 0; k < s->K; k++) {
                    for (size r = 0; r < rows; r++)
                        memcpy(&rows_of[r * broad], xb + r * n + k * s->I, s->I * sizeof(float));
                    multiply(
                        at.JT, rows, 1, broad / LANES, {&gz[k * at.JT * at.W], at.W, 1, 0},
                        {rows_of.data(), LANES, broad, 0}, &DR[k * at.JT * broad], [=](size e) { return e * broad; },
                        LANES, true);
                }
            if (grad_x) {
                for (size k = 0; k < s->K; k++)
                    multiply(
                        s->I, at.JT, 1, at.V, {R + k * at.JT * s->I, 1, s->I, 0},
                        {&gz[k * at.JT * at.W], LANES, at.W, 0}, lanes.data(),
                        [&](size i) { return (k * s->I + i) * at.W; }, LANES);
                from_lanes(at, lanes.data(), rows, n, grad_x + b * n);
            }
        }
        // one thread after the other, in order: the same sums every time
#pragma omp for ordered schedule(static, 1)
        for (int t = 0; t < omp_get_num_threads(); t++)
#pragma omp ordered
            if (grad_L) {
                for (size j = 0; j < s->J; j++)
                    for (size e = 0; e < at.KT; e++)
                        for (size l = 0; l < s->S; l++)
                            grad_L[(j * s->S + l) * at.KT + e] += DL[(j * at.KT + e) * wide + l];
                for (size e = 0; e < at.JKT; e++)
                    for (size i = 0; i < s->I; i++) grad_R[e * s->I + i] += DR[e * broad + i];
            }
    }
}
}
