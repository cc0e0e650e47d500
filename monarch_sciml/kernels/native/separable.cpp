// X = W_y x W_xᵀ for complex images, each W two Monarch factors: x is read and X written once, in between a
// plane stays in the cache. Optionally X is multiplied by conj(S) and summed over the planes: coil combination.
// And the gradients of x and of all four factors, in one pass over x and the gradient of X.

#include "panels.h"

#include <omp.h>

#include <algorithm>

extern "C" {
struct ImageSizes {
    size planes, H, W, threads, adjoint;
    size py, qy, px, qx;  // H = py·qy, W = px·qx: L (p, q, q) and R (q, p, p) of each axis
};
}

extern "C" {

// x (planes, H, W, 2), factors with a last dimension of two. Without S, y (planes, H, W, 2); with S like x, y
// (H, W, 2) = Σ conj(S) X, which is added to what is there.
void separable_forward(
    const ImageSizes* s, const float* x, const float* Ly, const float* Ry, const float* Lx, const float* Rx,
    const float* S, float* y) {
    const Axis vertical(Ly, Ry, s->py, s->qy, s->adjoint), horizontal(Lx, Rx, s->px, s->qx, s->adjoint);
    const size H = s->H, W = s->W, image = 2 * H * W;
    if (!S) fresh(y, s->planes * image);
#pragma omp parallel num_threads(s->threads)
    {
        Buffer panel(2 * (H > W ? H : W) * PANEL), other(panel.size());
        Buffer turned((H + PANEL - 1) / PANEL * 2 * W * PANEL), sum(S ? image : 0);
#pragma omp for schedule(static)
        for (size n = 0; n < s->planes; n++) {
            each_panel(W, [&](size w, size count, size vectors) {
                load_panel(x + n * image, H, W, w, count, panel.data());
                transform(vertical, vectors, panel.data(), other.data());
                turn(panel.data(), H, W, w, count, turned.data());
            });
            each_panel(H, [&](size h, size count, size vectors) {
                float* rows = turned.data() + h / PANEL * 2 * W * PANEL;
                transform(horizontal, vectors, rows, other.data());
                store_panel(rows, W, h, count, S ? S + n * image : nullptr, S ? sum.data() : y + n * image);
            });
        }
        if (S) {
            // thread after thread, so that the sum comes out the same every time
#pragma omp for ordered schedule(static, 1)
            for (int t = 0; t < omp_get_num_threads(); t++)
#pragma omp ordered
                for (size i = 0; i < image; i++) y[i] += sum[i];
        }
    }
}

// Given the gradient g of X, those of x (unless gx is null) and of the factors, which are added to what is there.
void separable_backward(
    const ImageSizes* s, const float* x, const float* g, const float* Ly, const float* Ry, const float* Lx,
    const float* Rx, float* gx, float* gLy, float* gRy, float* gLx, float* gRx) {
    const Axis vertical(Ly, Ry, s->py, s->qy, s->adjoint), horizontal(Lx, Rx, s->px, s->qx, s->adjoint);
    // the same reversed: `first` undoes `second`
    const Axis up(Ly, Ry, s->py, s->qy, !s->adjoint), across(Lx, Rx, s->px, s->qx, !s->adjoint);
    const Factor* factors[] = {&vertical.first, &vertical.second, &horizontal.first, &horizontal.second};
    float* out[] = {gRy, gLy, gRx, gLx};
    if (s->adjoint) std::swap(out[0], out[1]), std::swap(out[2], out[3]);
    const size H = s->H, W = s->W, image = 2 * H * W;
    const size plane = 2 * PANEL * std::max((H + PANEL - 1) / PANEL * W, (W + PANEL - 1) / PANEL * H);
    if (gx) fresh(gx, s->planes * image);
#pragma omp parallel num_threads(s->threads)
    {
        Buffer other(2 * (H > W ? H : W) * PANEL), space(6 * plane), sums[4];
        for (int f = 0; f < 4; f++) sums[f].resize(factors[f]->blocks * factors[f]->order * factors[f]->order * 2);
        float* part = space.data();
        // panels of columns: x and after the first factor; of rows: the same for the second axis
        const Panels X{part, H, W}, Z{part + plane, H, W}, Y{part + 2 * plane, W, H}, U{part + 3 * plane, W, H};
        // gradients behind the second factor and between the two: of rows and then, in their place, of columns
        const Panels G{part + 4 * plane, W, H}, V{part + 5 * plane, W, H}, GY{G.data, H, W}, VZ{V.data, H, W};
#pragma omp for schedule(static)
        for (size n = 0; n < s->planes; n++) {
            each_panel(W, [&](size w, size count, size vectors) {
                load_panel(x + n * image, H, W, w, count, X.at(w));
                apply(vertical.first, H, vectors, X.at(w), Z.at(w));
                apply(vertical.second, H, vectors, Z.at(w), other.data());
                turn(other.data(), H, W, w, count, Y.data);
            });
            each_panel(H, [&](size h, size count, size vectors) {
                load_rows(g + n * image, W, h, count, G.at(h));
                apply(horizontal.first, W, vectors, Y.at(h), U.at(h));
                apply(across.first, W, vectors, G.at(h), V.at(h));
            });
            outer(horizontal.second, G, U, sums[3]);
            outer(horizontal.first, V, Y, sums[2]);
            each_panel(H, [&](size h, size count, size vectors) {
                apply(across.second, W, vectors, V.at(h), other.data());
                turn(other.data(), W, H, h, count, GY.data);
            });
            each_panel(W, [&](size w, size count, size vectors) {
                apply(up.first, H, vectors, GY.at(w), VZ.at(w));
                if (!gx) return;
                apply(up.second, H, vectors, VZ.at(w), other.data());
                store_columns(other.data(), H, W, w, count, gx + n * image);
            });
            outer(vertical.second, GY, Z, sums[1]);
            outer(vertical.first, VZ, X, sums[0]);
        }
        // thread after thread, so that the sums come out the same every time
#pragma omp for ordered schedule(static, 1)
        for (int t = 0; t < omp_get_num_threads(); t++)
#pragma omp ordered
            for (int f = 0; f < 4; f++) add_gradient(*factors[f], sums[f], s->adjoint, out[f]);
    }
}
}
