// The matrix of a truncated transform from its two Monarch factors, and the gradients of these:
// W[ℓ·p + c, j1·q + j2] = rows[ℓ·p + c] L[c, ℓ, j2] R[j2, c, j1], real and imaginary planes; or those of Wᴴ.

#include "tile.h"

extern "C" {
struct TransformSizes {
    size modes, p, q, S, adjoint;  // W (modes, p·q), L (p, S, q, 2), R (q, p, p, 2)
};
}

namespace {

// Calls f(position in the planes, position in L, position in R, row) for every entry of W.
template <class F>
void each(const TransformSizes* s, F f) {
    const size n = s->p * s->q;
    for (size r = 0; r < s->modes; r++)
        for (size j1 = 0; j1 < s->p; j1++)
            for (size j2 = 0; j2 < s->q; j2++) {
                const size column = j1 * s->q + j2, c = r % s->p;
                const size l = (c * s->S + r / s->p) * s->q + j2, k = (j2 * s->p + c) * s->p + j1;
                f(s->adjoint ? column * s->modes + r : r * n + column, 2 * l, 2 * k, r);
            }
}

}  // namespace

extern "C" {

void transform_forward(const TransformSizes* s, const float* L, const float* R, const float* rows, float* planes) {
    const size plane = s->modes * s->p * s->q;
    const float sign = s->adjoint ? -1 : 1;
    each(s, [=](size at, size l, size k, size r) {
        planes[at] = rows[r] * (L[l] * R[k] - L[l + 1] * R[k + 1]);
        planes[plane + at] = sign * rows[r] * (L[l] * R[k + 1] + L[l + 1] * R[k]);
    });
}

// Added to gL and gR, from the gradient of the planes.
void transform_backward(
    const TransformSizes* s, const float* grad, const float* L, const float* R, const float* rows, float* gL,
    float* gR) {
    const size plane = s->modes * s->p * s->q;
    const float sign = s->adjoint ? -1 : 1;
    each(s, [=](size at, size l, size k, size r) {
        const float re = rows[r] * grad[at], im = sign * rows[r] * grad[plane + at];
        gL[l] += re * R[k] + im * R[k + 1];
        gL[l + 1] += im * R[k] - re * R[k + 1];
        gR[k] += re * L[l] + im * L[l + 1];
        gR[k + 1] += im * L[l] - re * L[l + 1];
    });
}
}
