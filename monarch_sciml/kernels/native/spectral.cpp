// y = Re(V (w · (W x))) + bias on two axes: the spectral convolution, channels in the lanes of the vectors.
//
// A group is one sample and LANES of its channels. Analysis: rows of the image are transposed so that channels
// are innermost, then two products leave the kept modes; x is read once and T = W_x x, a few columns of the image,
// lies between them. Synthesis is the mirror. Kept for the backward pass are the modes and T; the mirror of T is one
// product away from modes and computed again. Real and imaginary parts are an index of two ("part").

#include "stages.h"

#include <omp.h>

constexpr size_t LARGE = 1 << 24;  // bytes of a gradient that no cache keeps for the optimiser

extern "C" {
struct Sizes {
    size B, Ci, Co, H, W, mh, mw, oH, oW, threads;
};

int lanes() { return LANES; }

// Wa (2, mw, W); Ea (2, mh, H); weight (mh, mw, Ci, Co, 2); Es (2, oH, mh); Vs (2, oW, mw);
// T: strips of every group, or null if no transform is differentiated; Z, Y: modes before and after mixing.
void spectral_forward(
    const Sizes* s, const float* x, const float* Wa, const float* Ea, const float* weight, const float* Es,
    const float* Vs, const float* bias, float* y, float* T, float* Zdata, float* Ydata) {
    const Axes in{s->Ci, s->H, s->W, s->mh, s->mw}, out{s->Co, s->oH, s->oW, s->mh, s->mw};
    const Spectrum Z{Zdata, s->B, s->Ci, s->mw, s->Ci}, Y{Ydata, s->B, s->Co, s->mw, s->Co};
    fresh(y, s->B * s->Co * s->oH * s->oW);
    if (T) fresh(T, s->B * in.groups() * in.strip());
    const Buffer Eav = entries(Ea, s->mh, s->H, false), Esv = entries(Es, s->oH, s->mh, false);
    const Buffer Ws = real_part(Vs, s->oW, s->mw);
#pragma omp parallel num_threads(s->threads)
    {
        Buffer scratch(scratch_size(in) > scratch_size(out) ? scratch_size(in) : scratch_size(out));
        Buffer strip(in.strip() > out.strip() ? in.strip() : out.strip()), modes(out.spectrum());
#pragma omp for schedule(static)
        for (size n = 0; n < s->B * in.groups(); n++) {
            const size b = n / in.groups(), g = n % in.groups();
            float* t = T ? T + n * in.strip() : strip.data();
            analyse_rows(
                in, Wa, x + (b * s->Ci + g * LANES) * s->H * s->W, channels_of(in, g), t, scratch.data(), nullptr);
            analyse_columns(in, Eav, t, Z, Z.at(b, g));
        }
        const size Ci = s->Ci, Co = s->Co, mode = Ci * Co * 2, rows = 2 * s->B, pitch = padded(2 * Co);
        const bool ragged = 2 * Co % LANES;
        Buffer product(rows * pitch), copy(ragged ? Ci * pitch : 0);
#pragma omp for schedule(static)
        for (size k = 0; k < s->mh * s->mw; k++) {
            const float* w = weight + k * mode;
            if (k + 1 < s->mh * s->mw) prefetch(w + mode, mode);
            if (ragged) {
                for (size i = 0; i < Ci; i++) memcpy(&copy[i * pitch], w + i * 2 * Co, 2 * Co * sizeof(float));
                w = copy.data();
            }
            multiply(
                rows, Ci, 1, pitch / LANES, {Z.data + k * Z.mode(), padded(Ci), 1, 0},
                {w, LANES, ragged ? pitch : 2 * Co, 0}, product.data(), [=](size r) { return r * pitch; }, LANES);
            for (size b = 0; b < s->B; b++) {
                const float *re = &product[2 * b * pitch], *im = re + pitch;
                float *yr = Y.data + k * Y.mode() + b * 2 * padded(Co), *yi = yr + padded(Co);
                for (size o = 0; o < Co; o++) {
                    yr[o] = re[2 * o] - im[2 * o + 1];
                    yi[o] = re[2 * o + 1] + im[2 * o];
                }
                for (size o = Co; o < padded(Co); o++) yr[o] = yi[o] = 0;
            }
        }
#pragma omp for schedule(static)
        for (size n = 0; n < s->B * out.groups(); n++) {
            const size b = n / out.groups(), g = n % out.groups();
            gather(out, Y, Y.at(b, g), modes.data());
            synthesise_columns(out, Esv, modes.data(), strip.data());
            synthesise_rows(
                out, Ws.data(), strip.data(), channels_of(out, g), bias ? bias + g * LANES : nullptr,
                y + (b * s->Co + g * LANES) * s->oH * s->oW, scratch.data());
        }
    }
}

// Gradients of everything, given that of y; all grad_… but grad_x and grad_weight are added to. gY is scratch as
// large as the larger one of Z and Y, and that of Z takes its place mode by mode. grad_x may be null.
void spectral_backward(
    const Sizes* s, const float* grad_y, const float* x, const float* Wa, const float* Ea, const float* weight,
    const float* Es, const float* Vs, const float* T, const float* Zdata, const float* Ydata, float* gYdata,
    float* grad_x, float* grad_Wa, float* grad_Ea, float* grad_weight,
    float* grad_Es, float* grad_Vs, float* grad_bias) {
    const Axes in{s->Ci, s->H, s->W, s->mh, s->mw}, out{s->Co, s->oH, s->oW, s->mh, s->mw};
    const size wide = s->Ci > s->Co ? s->Ci : s->Co;
    const Spectrum Z{const_cast<float*>(Zdata), s->B, s->Ci, s->mw, s->Ci};
    const Spectrum Y{const_cast<float*>(Ydata), s->B, s->Co, s->mw, s->Co};
    const Spectrum gZ{gYdata, s->B, s->Ci, s->mw, wide}, gY{gYdata, s->B, s->Co, s->mw, wide};
    if (grad_x) fresh(grad_x, s->B * s->Ci * s->H * s->W);
    const size weights = s->mh * s->mw * s->Ci * s->Co * 2;
    if (grad_weight) fresh(grad_weight, weights);
    const bool large = weights * sizeof(float) >= LARGE && is_line(grad_weight);
    const Buffer EaT = entries(Ea, s->mh, s->H, true), EsT = entries(Es, s->oH, s->mh, true);
    const Buffer Esv = entries(Es, s->oH, s->mh, false);
    const Buffer WaT = transposed(Wa, 2 * s->mw, s->W);
    const Buffer WsT = transposed(real_part(Vs, s->oW, s->mw).data(), s->oW, 2 * s->mw);
#pragma omp parallel num_threads(s->threads)
    {
        Buffer scratch(scratch_size(in) > scratch_size(out) ? scratch_size(in) : scratch_size(out));
        Buffer strip(in.strip() > out.strip() ? in.strip() : out.strip()), u(out.strip());
        Buffer modes(out.spectrum());
        Gradients analysis(in, true), synthesis(out, false);
        Buffer biases(padded(s->Co));
#pragma omp for schedule(static)
        for (size n = 0; n < s->B * out.groups(); n++) {
            const size b = n / out.groups(), g = n % out.groups(), channels = channels_of(out, g);
            const float* gy = grad_y + (b * s->Co + g * LANES) * s->oH * s->oW;
            vec sum{};
            analyse_rows(out, WsT.data(), gy, channels, strip.data(), scratch.data(), grad_bias ? &sum : nullptr);
            store(&biases[g * LANES], load(&biases[g * LANES]) + sum);
            analyse_columns(out, EsT, strip.data(), gY, gY.at(b, g));
            if (grad_Vs) {
                gather(out, Y, Y.at(b, g), modes.data());
                synthesise_columns(out, Esv, modes.data(), u.data());
                row_gradient(out, u.data(), gy, channels, synthesis.rows.data(), scratch.data());
                complex_gradient(s->oH, s->mh, s->mw, strip.data(), modes.data(), synthesis.columns.data());
            }
        }
        const size Ci = s->Ci, Co = s->Co, mode = Ci * Co * 2, Cip = padded(Ci), pitch = padded(2 * Co);
        const bool ragged = 2 * Co % LANES;
        Buffer pairs(2 * s->B * pitch), turned(pitch * Cip), copy(ragged || large ? Ci * pitch : 0);
#pragma omp for schedule(static)
        for (size k = 0; k < s->mh * s->mw; k++) {
            const float *w = weight + k * mode, *g = gY.data + k * gY.mode();
            if (k + 1 < s->mh * s->mw) prefetch(w + mode, mode);
            // rows (b, ·) over columns (o, part): (gr, gi) and (gi, −gr)
            for (size b = 0; b < s->B; b++, g += 2 * padded(Co)) {
                float *first = &pairs[2 * b * pitch], *second = first + pitch;
                for (size o = 0; o < Co; o++) {
                    const float re = g[o], im = g[padded(Co) + o];
                    first[2 * o] = re, first[2 * o + 1] = im;
                    second[2 * o] = im, second[2 * o + 1] = -re;
                }
            }
            if (grad_x || grad_Wa) {
                for (size i = 0; i < Ci; i += LANES)
                    for (size o = 0; o < 2 * Co; o += LANES) {
                        const size rows = Ci - i < LANES ? Ci - i : LANES;
                        transpose(
                            w + i * 2 * Co + o, 2 * Co, rows, 2 * Co - o < LANES ? 2 * Co - o : LANES,
                            &turned[o * Cip + i], Cip);
                    }
                multiply(
                    2 * s->B, 2 * Co, 1, Cip / LANES, {pairs.data(), pitch, 1, 0}, {turned.data(), LANES, Cip, 0},
                    gZ.data + k * gZ.mode(), [=](size r) { return r * Cip; }, LANES);
            }
            if (grad_weight) {
                float* to = grad_weight + k * mode;
                const size step = ragged ? pitch : 2 * Co;
                multiply(
                    Ci, 2 * s->B, 1, pitch / LANES, {Z.data + k * Z.mode(), 1, Cip, 0}, {pairs.data(), LANES, pitch, 0},
                    ragged || large ? copy.data() : to, [=](size i) { return i * step; }, LANES);
                if (ragged)
                    for (size i = 0; i < Ci; i++) memcpy(to + i * 2 * Co, &copy[i * pitch], 2 * Co * sizeof(float));
                else if (large)
                    stream(copy.data(), mode, to);
            }
        }
        end_of_stream();
        if (grad_x || grad_Wa) {
            Buffer lines(in.spectrum());
#pragma omp for schedule(static)
            for (size n = 0; n < s->B * in.groups(); n++) {
                const size b = n / in.groups(), g = n % in.groups(), channels = channels_of(in, g);
                const size image = (b * s->Ci + g * LANES) * s->H * s->W;
                gather(in, gZ, gZ.at(b, g), lines.data());
                synthesise_columns(in, EaT, lines.data(), strip.data());
                if (grad_x)
                    synthesise_rows(in, WaT.data(), strip.data(), channels, nullptr, grad_x + image, scratch.data());
                if (grad_Wa) {
                    row_gradient(in, strip.data(), x + image, channels, analysis.rows.data(), scratch.data());
                    complex_gradient(
                        s->mh, s->H, s->mw, lines.data(), T + n * in.strip(), analysis.columns.data());
                }
            }
        }
        // thread after thread, so that the sums come out the same every time
#pragma omp for ordered schedule(static, 1)
        for (int t = 0; t < omp_get_num_threads(); t++)
#pragma omp ordered
        {
            if (grad_Vs) synthesis.add_to(out, grad_Es, grad_Vs);
            if (grad_Wa) analysis.add_to(in, grad_Ea, grad_Wa);
            if (grad_bias)
                for (size o = 0; o < s->Co; o++) grad_bias[o] += biases[o];
        }
    }
}
}
