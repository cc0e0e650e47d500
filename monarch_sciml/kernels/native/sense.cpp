// y = Σ_c conj(S_c) Rᴴ Lᴴ L R (S_c x) along the rows of images: AᴴA of parallel imaging under a mask of columns, whose
// transform is a Monarch matrix L P R of which L has the sampled rows alone. A panel of rows stays in the cache while all
// coils pass through it: maps are read once, and nothing is written but y.

#define PANEL_VECTORS 2  // so that five panels fit the cache
#include "panels.h"

#include <omp.h>

#include <algorithm>

namespace {

// panels (part, W, row) of z = s x, and y += conj(s) z; meanwhile `next` is fetched, so many numbers
void product(const float* s, const float* x, size W, float* z, const float* next, size numbers) {
    const size part = W * PANEL;
    for (size i = 0; i < part; i += LANES) {
        for (size n = 2 * i; n < 2 * (i + LANES) && n < numbers; n += LANES) __builtin_prefetch(next + n, 0, 2);
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

// Blocks of L (p, r, q, 2) and of its adjoint as ``complex_multiply`` takes them, without rows of zeros at the end.
struct Sampled {
    size p, r, q;
    std::vector<size> counts;
    std::vector<Buffer> there, back;

    Sampled(const float* L, size p, size r, size q) : p(p), r(r), q(q) {
        for (size c = 0; c < p; c++, L += 2 * r * q) {
            size n = r;
            while (n && std::all_of(L + 2 * (n - 1) * q, L + 2 * n * q, [](float v) { return v == 0; })) n--;
            counts.push_back(n);
            there.emplace_back(3 * n * q), back.emplace_back(3 * n * q);
            for (size i = 0; i < n; i++)
                for (size j = 0; j < q; j++) {
                    const float re = L[2 * (i * q + j)], im = L[2 * (i * q + j) + 1];
                    float *a = &there[c][3 * (i * q + j)], *b = &back[c][3 * (j * n + i)];
                    a[0] = b[0] = re, a[1] = im, a[2] = re + im, b[1] = -im, b[2] = re - im;
                }
        }
    }

    // panels (part, W, row): out = Lᴴ L in
    void apply(size vectors, float* in, float* columns, float* out) const {
        const size part = p * q * PANEL;
        for (size c = 0; c < p; c++, in += q * PANEL, out += q * PANEL) {
            const Complex z{columns, PANEL, r * PANEL, LANES};
            complex_multiply(counts[c], q, vectors, there[c].data(), {in, PANEL, part, LANES}, z);
            complex_multiply(q, counts[c], vectors, back[c].data(), z, {out, PANEL, part, LANES});
        }
    }
};

}  // namespace

extern "C" {
struct SenseSizes {
    size B, C, H, W, p, q, r, maps, masks, threads;  // W = p·q; `maps` and `masks` are 1 for all or one for each of B
};

// x, y (B, H, W, 2), S (maps, C, H, W, 2), L (masks, p, r, q, 2), R (q, p, p, 2)
void sense_normal(const SenseSizes* s, const float* x, const float* S, const float* L, const float* R, float* y) {
    const size p = s->p, q = s->q, W = s->W, image = 2 * s->H * W, vectors = (s->H + LANES - 1) / LANES;
    const Factor first = factor(R, q, p, false, 1, q, 1, q), last = factor(R, q, p, true, 1, q, 1, q);
    std::vector<Sampled> sampled;
    for (size m = 0; m < s->masks; m++) sampled.emplace_back(L + m * 2 * p * s->r * q, p, s->r, q);
#pragma omp parallel num_threads(s->threads)
    {
        Buffer own(2 * W * PANEL), map(own.size()), coil(own.size()), other(own.size()), sum(own.size());
        Buffer columns(2 * s->r * PANEL);
        // rows in whole vectors, as many for each thread
        const size t = omp_get_thread_num(), T = omp_get_num_threads();
        const size begin = vectors * t / T * LANES, end = std::min(s->H, vectors * (t + 1) / T * LANES);
        for (size b = 0; b < s->B; b++)
            for (size h = begin; h < end; h += PANEL) {
                const size count = std::min(PANEL, end - h), v = (count + LANES - 1) / LANES;
                load_rows(x + b * image, W, h, count, own.data());
                std::fill(sum.begin(), sum.end(), 0.0f);
                const float* maps = S + (s->maps == 1 ? 0 : b) * s->C * image;
                for (size c = 0; c < s->C; c++, maps += image) {
                    load_rows(maps, W, h, count, map.data());
                    const size next = c + 1 < s->C ? 2 * count * W : 0;
                    product(map.data(), own.data(), W, coil.data(), maps + image + 2 * h * W, next);
                    apply(first, W, v, coil.data(), other.data());
                    sampled[s->masks == 1 ? 0 : b].apply(v, other.data(), columns.data(), coil.data());
                    apply(last, W, v, coil.data(), other.data());
                    add_conjugate(map.data(), other.data(), W, sum.data());
                }
                store_panel(sum.data(), W, h, count, nullptr, y + b * image);
            }
    }
}
}
