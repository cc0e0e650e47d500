// y = Re(V (w · (W x))) + bias on two axes: the spectral convolution, channels in the lanes of the vectors.
//
// A group is one sample and LANES of its channels. Analysis: rows of the image are transposed so that channels
// are innermost, then two products leave the kept modes; x is read once and T = W_x x, a few columns of the
// image, is all that is kept for the backward pass. Synthesis is the mirror. Real and imaginary parts are an
// index of two ("part"); the complex products run as real ones with [[Er, −Ei], [Ei, Er]].

#include "tile.h"

#include <omp.h>

#include <vector>

extern "C" {
struct Sizes {
    size B, Ci, Co, H, W, mh, mw, oH, oW, threads;
};
}

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

// [[Er, −Ei], [Ei, Er]] with rows (i, part) and columns (j, part), from planes (2, m, n); or its transpose.
Buffer embed(const float* E, size m, size n, bool transposed) {
    Buffer out(4 * m * n);
    for (size i = 0; i < m; i++)
        for (size j = 0; j < n; j++) {
            const float re = E[i * n + j], im = E[(m + i) * n + j];
            const float entry[2][2] = {{re, -im}, {im, re}};
            for (int p = 0; p < 2; p++)
                for (int q = 0; q < 2; q++)
                    if (transposed)
                        out[(2 * j + q) * 2 * m + 2 * i + p] = entry[p][q];
                    else
                        out[(2 * i + p) * 2 * n + 2 * j + q] = entry[p][q];
        }
    return out;
}

Buffer transposed(const float* A, size m, size n) {
    Buffer out(m * n);
    for (size i = 0; i < m; i++)
        for (size j = 0; j < n; j++) out[j * m + i] = A[i * n + j];
    return out;
}

// Rows of an image (C, H, W), LANES channels: out (W, rows, lane). Adds the sum over the image to `sum`.
void to_lanes(const Axes& a, const float* image, size channels, size h, size rows, float* out, vec* sum) {
    for (size r = 0; r < rows; r++)
        for (size w = 0; w < a.W; w += LANES) {
            const size n = a.W - w < LANES ? a.W - w : LANES;
            if (h + r + BLOCK < a.H)  // what the next call reads: planes are too far apart for the hardware to see
                for (size c = 0; c < channels; c++)
                    __builtin_prefetch(image + (c * a.H + h + r + BLOCK) * a.W + w);
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
    const size pitch = padded(a.W);
    for (size h = 0; h < a.H; h += BLOCK) {
        const size rows = a.H - h < BLOCK ? a.H - h : BLOCK;
        for (size r = 0; r < rows; r++)
            for (size c = 0; c < channels; c++) {
                float* to = scratch + (r * LANES + c) * pitch;
                memcpy(to, image + (c * a.H + h + r) * a.W, a.W * sizeof(float));
                memset(to + a.W, 0, (pitch - a.W) * sizeof(float));
            }
        multiply(
            a.columns(), channels, rows, pitch / LANES,
            {T + h * a.columns() * LANES, LANES, 1, a.columns() * LANES},
            {scratch, LANES, pitch, LANES * pitch}, D, [=](size r) { return r * pitch; }, LANES, true);
    }
}

// D (m, n, 2, lane) += Σ_l conj-product of g (m, part, l, lane) and x (n, part, l, lane):
// real part gr·xr + gi·xi, imaginary part gi·xr − gr·xi
template <int M, int N>
void complex_tile(size L, const float* g, const float* x, size stride, float* D, size ds) {
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
                complex_tile<M, N>(L, gi, xj, stride, d, ds);
            else
                for (size a = 0; a < M && i + a < m; a++)
                    for (size b = 0; b < N && j + b < n; b++)
                        complex_tile<1, 1>(L, gi + a * stride, xj + b * stride, stride, d + a * ds + b * 2 * LANES, ds);
        }
}

// Modes of all samples and channels: (k, l, b, part, channel), channels padded to whole vectors.
struct Spectrum {
    float* data;
    size B, C, mw;
    size mode() const { return B * 2 * padded(C); }
    float* at(size b, size group) const { return data + b * 2 * padded(C) + group * LANES; }
};

// E (2·mh, 2·H) times T (H, part, l, lane) → the modes of a group
void analyse_columns(const Axes& a, const Buffer& E, const float* T, const Spectrum& Z, float* to) {
    const size mode = Z.mode(), part = padded(Z.C), mw = a.mw;
    multiply(
        2 * a.mh, 2 * a.H, 1, mw, {E.data(), 2 * a.H, 1, 0}, {T, LANES, mw * LANES, 0}, to,
        [=](size i) { return i / 2 * mw * mode + i % 2 * part; }, mode);
}

// a group's modes, gathered (k, part, l, lane)
void gather(const Axes& a, const Spectrum& Z, const float* from, float* to) {
    for (size k = 0; k < a.mh; k++)
        for (size p = 0; p < 2; p++)
            for (size l = 0; l < a.mw; l++, to += LANES)
                store(to, load(from + (k * a.mw + l) * Z.mode() + p * padded(Z.C)));
}

// E (2·H, 2·mh) times modes (k, part, l, lane) → T (H, part, l, lane)
void synthesise_columns(const Axes& a, const Buffer& E, const float* modes, float* T) {
    multiply(
        2 * a.H, 2 * a.mh, 1, a.mw, {E.data(), 2 * a.mh, 1, 0}, {modes, LANES, a.mw * LANES, 0}, T,
        [=](size i) { return i * a.mw * LANES; }, LANES);
}

// What a thread sums up: gradients of the matrices of both axes.
struct Gradients {
    Buffer rows, columns;
    Gradients(const Axes& a, bool analysis)
        : rows(a.columns() * padded(a.W)), columns(a.H * a.mh * 2 * LANES), analysis(analysis) {}
    bool analysis;

    // columns: (mh, H) in analysis, (H, mh) in synthesis; rows: (2·mw, W) or its transpose
    void add_to(const Axes& a, float* grad_columns, float* grad_rows) const {
        const size pitch = padded(a.W), n = a.H * a.mh;
        for (size r = 0; r < a.columns(); r++)
            for (size w = 0; w < a.W; w++)
                grad_rows[analysis ? r * a.W + w : w * a.columns() + r] += rows[r * pitch + w];
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

size scratch_size(const Axes& a) { return BLOCK * LANES * padded(a.W); }

}  // namespace

extern "C" {

int lanes() { return LANES; }

// Wa (2, mw, W) as rows (part, l); Ea (2, mh, H); weight (mh, mw, Ci, Co, 2); Es (2, oH, mh); Ws (oW, part, l);
// T, U: strips of every group, or null if nothing is differentiated; Z, Y: modes before and after mixing.
void spectral_forward(
    const Sizes* s, const float* x, const float* Wa, const float* Ea, const float* weight, const float* Es,
    const float* Ws, const float* bias, float* y, float* T, float* U, float* Zdata, float* Ydata) {
    const Axes in{s->Ci, s->H, s->W, s->mh, s->mw}, out{s->Co, s->oH, s->oW, s->mh, s->mw};
    const Spectrum Z{Zdata, s->B, s->Ci, s->mw}, Y{Ydata, s->B, s->Co, s->mw};
    fresh(y, s->B * s->Co * s->oH * s->oW);
    if (T) fresh(T, s->B * in.groups() * in.strip()), fresh(U, s->B * out.groups() * out.strip());
    const Buffer Eav = embed(Ea, s->mh, s->H, false), Esv = embed(Es, s->oH, s->mh, false);
#pragma omp parallel num_threads(s->threads)
    {
        Buffer scratch(scratch_size(in) > scratch_size(out) ? scratch_size(in) : scratch_size(out));
        Buffer strip(T ? 0 : (in.strip() > out.strip() ? in.strip() : out.strip())), modes(out.spectrum());
#pragma omp for schedule(static)
        for (size n = 0; n < s->B * in.groups(); n++) {
            const size b = n / in.groups(), g = n % in.groups();
            float* t = T ? T + n * in.strip() : strip.data();
            analyse_rows(
                in, Wa, x + (b * s->Ci + g * LANES) * s->H * s->W, channels_of(in, g), t, scratch.data(), nullptr);
            analyse_columns(in, Eav, t, Z, Z.at(b, g));
        }
        const size Ci = s->Ci, Co = s->Co, rows = 2 * s->B, pitch = padded(2 * Co);
        const bool ragged = 2 * Co % LANES;
        Buffer product(rows * pitch), copy(ragged ? Ci * pitch : 0);
#pragma omp for schedule(static)
        for (size k = 0; k < s->mh * s->mw; k++) {
            const float* w = weight + k * Ci * Co * 2;
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
            float* u = U ? U + n * out.strip() : strip.data();
            gather(out, Y, Y.at(b, g), modes.data());
            synthesise_columns(out, Esv, modes.data(), u);
            synthesise_rows(
                out, Ws, u, channels_of(out, g), bias ? bias + g * LANES : nullptr,
                y + (b * s->Co + g * LANES) * s->oH * s->oW, scratch.data());
        }
    }
}

// Gradients of everything, given that of y; all grad_… but grad_x and grad_weight are added to. gZ and gY are
// scratch like Z and Y. grad_x may be null.
void spectral_backward(
    const Sizes* s, const float* grad_y, const float* x, const float* Wa, const float* Ea, const float* weight,
    const float* Es, const float* Ws, const float* T, const float* U, const float* Zdata, const float* Ydata,
    float* gZdata, float* gYdata, float* grad_x, float* grad_Wa, float* grad_Ea, float* grad_weight,
    float* grad_Es, float* grad_Ws, float* grad_bias) {
    const Axes in{s->Ci, s->H, s->W, s->mh, s->mw}, out{s->Co, s->oH, s->oW, s->mh, s->mw};
    const Spectrum Z{const_cast<float*>(Zdata), s->B, s->Ci, s->mw}, Y{const_cast<float*>(Ydata), s->B, s->Co, s->mw};
    const Spectrum gZ{gZdata, s->B, s->Ci, s->mw}, gY{gYdata, s->B, s->Co, s->mw};
    if (grad_x) fresh(grad_x, s->B * s->Ci * s->H * s->W);
    if (grad_weight) fresh(grad_weight, s->mh * s->mw * s->Ci * s->Co * 2);
    const Buffer EaT = embed(Ea, s->mh, s->H, true), EsT = embed(Es, s->oH, s->mh, true);
    const Buffer WaT = transposed(Wa, 2 * s->mw, s->W), WsT = transposed(Ws, s->oW, 2 * s->mw);
#pragma omp parallel num_threads(s->threads)
    {
        Buffer scratch(scratch_size(in) > scratch_size(out) ? scratch_size(in) : scratch_size(out));
        Buffer strip(in.strip() > out.strip() ? in.strip() : out.strip());
        Buffer modes(out.spectrum());
        Gradients analysis(in, true), synthesis(out, false);
        Buffer biases(padded(s->Co));
#pragma omp for schedule(static)
        for (size n = 0; n < s->B * out.groups(); n++) {
            const size b = n / out.groups(), g = n % out.groups(), channels = channels_of(out, g);
            const float *u = U + n * out.strip(), *gy = grad_y + (b * s->Co + g * LANES) * s->oH * s->oW;
            vec sum{};
            analyse_rows(out, WsT.data(), gy, channels, strip.data(), scratch.data(), grad_bias ? &sum : nullptr);
            store(&biases[g * LANES], load(&biases[g * LANES]) + sum);
            analyse_columns(out, EsT, strip.data(), gY, gY.at(b, g));
            if (grad_Ws) {
                row_gradient(out, u, gy, channels, synthesis.rows.data(), scratch.data());
                gather(out, Y, Y.at(b, g), modes.data());
                complex_gradient(s->oH, s->mh, s->mw, strip.data(), modes.data(), synthesis.columns.data());
            }
        }
        const size Ci = s->Ci, Co = s->Co, Cip = padded(Ci), pitch = padded(2 * Co);
        const bool ragged = 2 * Co % LANES;
        Buffer pairs(2 * s->B * pitch), turned(pitch * Cip), copy(ragged ? Ci * pitch : 0);
#pragma omp for schedule(static)
        for (size k = 0; k < s->mh * s->mw; k++) {
            const float *w = weight + k * Ci * Co * 2, *g = gY.data + k * gY.mode();
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
                        if (k + 1 < s->mh * s->mw)  // the same tile of the next mode
                            for (size r = 0; r < rows; r++)
                                __builtin_prefetch(w + (Ci + i + r) * 2 * Co + o);
                        transpose(
                            w + i * 2 * Co + o, 2 * Co, rows, 2 * Co - o < LANES ? 2 * Co - o : LANES,
                            &turned[o * Cip + i], Cip);
                    }
                multiply(
                    2 * s->B, 2 * Co, 1, Cip / LANES, {pairs.data(), pitch, 1, 0}, {turned.data(), LANES, Cip, 0},
                    gZ.data + k * gZ.mode(), [=](size r) { return r * Cip; }, LANES);
            }
            if (grad_weight) {
                float* to = grad_weight + k * Ci * Co * 2;
                const size step = ragged ? pitch : 2 * Co;
                multiply(
                    Ci, 2 * s->B, 1, pitch / LANES, {Z.data + k * Z.mode(), 1, Cip, 0}, {pairs.data(), LANES, pitch, 0},
                    ragged ? copy.data() : to, [=](size i) { return i * step; }, LANES);
                if (ragged)
                    for (size i = 0; i < Ci; i++) memcpy(to + i * 2 * Co, &copy[i * pitch], 2 * Co * sizeof(float));
            }
        }
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
            if (grad_Ws) synthesis.add_to(out, grad_Es, grad_Ws);
            if (grad_Wa) analysis.add_to(in, grad_Ea, grad_Wa);
            if (grad_bias)
                for (size o = 0; o < s->Co; o++) grad_bias[o] += biases[o];
        }
    }
}
}
