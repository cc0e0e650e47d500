// y = Σ_c conj(S_c) Rᴴ G R (S_c x) along the rows of images: AᴴA of parallel imaging under a mask of columns, whose
// transform is a Monarch matrix. R and G are block-diagonal. A panel of rows stays in the cache while all coils pass
// through it: maps are read once, and nothing is written but y.

#include "panels.h"

#include <omp.h>

#include <algorithm>

namespace {

// panels (part, W, row) of z = s x, and y += conj(s) z
void product(const float* s, const float* x, size W, float* z) {
    const size part = W * PANEL;
    for (size i = 0; i < part; i += LANES) {
        const vec sr = load(s + i), si = load(s + part + i), xr = load(x + i), xi = load(x + part + i);
        store(z + i, sr * xr - si * xi);
        store(z + part + i, sr * xi + si * xr);
    }
}

void add_conjugate(const float* s, const float* z, size W, float* y) {
    const size part = W * PANEL;
    for (size i = 0; i < part; i += LANES) {
        const vec sr = load(s + i), si = load(s + part + i), zr = load(z + i), zi = load(z + part + i);
        store(y + i, load(y + i) + sr * zr + si * zi);
        store(y + part + i, load(y + part + i) + sr * zi - si * zr);
    }
}

}  // namespace

extern "C" {
struct SenseSizes {
    size B, C, H, W, p, q, maps, masks, threads;  // W = p·q; `maps` and `masks` are 1 for all or one for each of B
};

// x, y (B, H, W, 2), S (maps, C, H, W, 2), R (q, p, p, 2), G (masks, p, q, q, 2)
void sense_normal(const SenseSizes* s, const float* x, const float* S, const float* R, const float* G, float* y) {
    const size p = s->p, q = s->q, W = s->W, image = 2 * s->H * W, vectors = (s->H + LANES - 1) / LANES;
    const Factor first = factor(R, q, p, false, 1, q, 1, q), last = factor(R, q, p, true, 1, q, 1, q);
    std::vector<Factor> middle;
    for (size m = 0; m < s->masks; m++) middle.push_back(factor(G + m * 2 * W * q, p, q, false, q, 1, q, 1));
#pragma omp parallel num_threads(s->threads)
    {
        Buffer own(2 * W * PANEL), map(own.size()), coil(own.size()), other(own.size()), sum(own.size());
        // rows in whole vectors, as many for each thread
        const size t = omp_get_thread_num(), T = omp_get_num_threads();
        const size begin = vectors * t / T * LANES, end = std::min(s->H, vectors * (t + 1) / T * LANES);
        for (size b = 0; b < s->B; b++)
            for (size h = begin; h < end; h += PANEL) {
                const size count = std::min(PANEL, end - h), v = (count + LANES - 1) / LANES;
                load_rows(x + b * image, W, h, count, own.data());
                std::fill(sum.begin(), sum.end(), 0.0f);
                for (size c = 0; c < s->C; c++) {
                    load_rows(S + ((s->maps == 1 ? 0 : b) * s->C + c) * image, W, h, count, map.data());
                    product(map.data(), own.data(), W, coil.data());
                    apply(first, W, v, coil.data(), other.data());
                    apply(middle[s->masks == 1 ? 0 : b], W, v, other.data(), coil.data());
                    apply(last, W, v, coil.data(), other.data());
                    add_conjugate(map.data(), other.data(), W, sum.data());
                }
                store_panel(sum.data(), W, h, count, nullptr, y + b * image);
            }
    }
}
}
