// Register-tiled matrix products on vectors of the machine's width, for operands that are already in cache.
//
// Everything in this folder is a product C = A X in which X and C are rows of vectors ("lanes" innermost) and
// the entries of A are broadcast, so that nothing has to be packed and no size has to divide another.
#pragma once

#include <cstddef>
#include <cstring>
#include <utility>

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 6, VECTORS = 4;
#elif defined(__ARM_NEON)
constexpr int LANES = 4, ROWS = 6, VECTORS = 4;
#else
constexpr int LANES = 8, ROWS = 6, VECTORS = 2;
#endif

typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(alignof(float)), may_alias));
typedef ptrdiff_t size;

static inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
static inline void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
// Compilers like to read an operand from memory again at each use; this makes them hold it in a register.
static inline vec keep(vec v) {
#if defined(__AVX__)
    asm("" : "+v"(v));
#endif
    return v;
}
// Into the second level of the cache: rows of several planes, a power of two apart, push each other out of the first.
static inline void prefetch(const float* p, size count) {
    for (size i = 0; i < count; i += 16) __builtin_prefetch(p + i, 0, 2);
}
static inline size padded(size n) { return (n + LANES - 1) / LANES * LANES; }

// One operand of a product, read at data + row·i + inner·k + outer·q for the sum over k and q.
struct Broadcast {
    const float* data;
    size row, inner, outer;
};
struct Vectors {
    const float* data;
    size vector, inner, outer;
};

// sum[r, v] += Σ_k A[r, k] X[k, v] in registers, from a and x on
template <int R, int V>
__attribute__((always_inline)) static inline void accumulate(
    size K, const float* a, Broadcast A, const float* x, Vectors X, vec (&sum)[R][V]) {
    for (size k = 0; k < K; k++, a += A.inner, x += X.inner) {
        vec b[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) b[v] = keep(load(x + v * X.vector));
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const vec s = a[r * A.row] - vec{};
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) sum[r][v] += s * b[v];
        }
    }
}

// C[i, v] (+)= Σ_q Σ_k A[i, k, q] X[k, q, v] for R rows and V vectors held in registers.
template <int R, int V>
static inline void tile(size K, size Q, Broadcast A, Vectors X, float* const* c, size cv, bool add) {
    vec acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) acc[r][v] = add ? load(c[r] + v * cv) : vec{};
    for (size q = 0; q < Q; q++) accumulate(K, A.data + q * A.outer, A, X.data + q * X.outer, X, acc);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) store(c[r] + v * cv, acc[r][v]);
}

template <int R>
static inline void tiles(int V, size K, size Q, Broadcast A, Vectors X, float* const* c, size cv, bool add) {
    switch (V) {
        case 1: return tile<R, 1>(K, Q, A, X, c, cv, add);
        case 2: return tile<R, 2>(K, Q, A, X, c, cv, add);
#if !defined(__AVX2__) || defined(__AVX512F__)
        case 3: return tile<R, 3>(K, Q, A, X, c, cv, add);
        case 4: return tile<R, 4>(K, Q, A, X, c, cv, add);
#endif
    }
}

// C (I × J vectors) (+)= A X, K·Q terms. Row i of C starts at C + row(i), its vectors are cv apart.
template <class Row>
static void multiply(
    size I, size K, size Q, size J, Broadcast A, Vectors X, float* C, Row row, size cv, bool add = false) {
    for (size v = 0; v < J; v += VECTORS) {
        const int V = static_cast<int>(J - v < VECTORS ? J - v : VECTORS);
        const Vectors x{X.data + v * X.vector, X.vector, X.inner, X.outer};
        for (size i = 0; i < I; i += ROWS) {
            const int R = static_cast<int>(I - i < ROWS ? I - i : ROWS);
            const Broadcast a{A.data + i * A.row, A.row, A.inner, A.outer};
            float* c[ROWS];
            for (int r = 0; r < R; r++) c[r] = C + row(i + r) + v * cv;
            switch (R) {
                case 1: tiles<1>(V, K, Q, a, x, c, cv, add); break;
                case 2: tiles<2>(V, K, Q, a, x, c, cv, add); break;
                case 3: tiles<3>(V, K, Q, a, x, c, cv, add); break;
                case 4: tiles<4>(V, K, Q, a, x, c, cv, add); break;
                case 5: tiles<5>(V, K, Q, a, x, c, cv, add); break;
                case 6: tiles<6>(V, K, Q, a, x, c, cv, add); break;
            }
        }
    }
}

// Rows of vectors of complex numbers, as the distances of rows, of the imaginary part and of vectors.
struct Complex {
    float* data;
    size row, part, vector;
};

constexpr int TALL = 4, WIDE = LANES == 8 ? 1 : 2;  // rows and vectors of a tile: 3 · 4 · 2 sums in registers

// R rows of M times V vectors of K rows of x. Complex products take three real ones, as Gauss found: with P = Mr xr,
// Q = Mi xi and S = (Mr + Mi) (xr + xi) it is P − Q and S − P − Q. M (rows, K, 3) holds Mr, Mi and Mr + Mi.
template <int R, int V>
static void complex_tile(size K, const float* M, Complex x, Complex y) {
    vec P[R][V]{}, Q[R][V]{}, S[R][V]{};
    const float* from = x.data;
    for (size k = 0; k < K; k++, M += 3, from += x.row) {
        vec re[V], im[V], both[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) {
            re[v] = keep(load(from + v * x.vector));
            im[v] = keep(load(from + x.part + v * x.vector));
            both[v] = keep(re[v] + im[v]);
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const float* m = M + r * K * 3;
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) {
                P[r][v] += m[0] * re[v];
                Q[r][v] += m[1] * im[v];
                S[r][v] += m[2] * both[v];
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) {
            float* to = y.data + r * y.row + v * y.vector;
            store(to, P[r][v] - Q[r][v]);
            store(to + y.part, S[r][v] - P[r][v] - Q[r][v]);
        }
}

template <int R>
static void complex_tiles(size K, size vectors, const float* M, Complex x, Complex y) {
    size v = 0;
    for (; v + WIDE <= vectors; v += WIDE, x.data += WIDE * x.vector, y.data += WIDE * y.vector)
        complex_tile<R, WIDE>(K, M, x, y);
    for (; v < vectors; v++, x.data += x.vector, y.data += y.vector) complex_tile<R, 1>(K, M, x, y);
}

// y = M x for M (rows, K, 3)
static void complex_multiply(size rows, size K, size vectors, const float* M, Complex x, Complex y) {
    for (size i = 0; i < rows; i += TALL, M += TALL * K * 3, y.data += TALL * y.row) switch (rows - i) {
            case 1: complex_tiles<1>(K, vectors, M, x, y); break;
            case 2: complex_tiles<2>(K, vectors, M, x, y); break;
            case 3: complex_tiles<3>(K, vectors, M, x, y); break;
            default: complex_tiles<TALL>(K, vectors, M, x, y);
        }
}

// Transpose LANES vectors in registers: log₂ LANES rounds of exchanging blocks between pairs of rows.
template <int D, size_t... J>
static inline void swap_blocks(vec& a, vec& b, std::index_sequence<J...>) {
    const vec low = __builtin_shufflevector(a, b, ((J & D) ? LANES + J - D : J)...);
    b = __builtin_shufflevector(a, b, ((J & D) ? LANES + J : J + D)...);
    a = low;
}

template <int D>
static inline void exchange(vec* t) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & D)) swap_blocks<D>(t[i], t[i + D], std::make_index_sequence<LANES>());
    if constexpr (D > 1) exchange<D / 2>(t);
}

// out[j·os + i] = in[i·is + j] for i < rows, j < columns, at most LANES each; out is filled up with zeros.
static inline void transpose(const float* in, size is, size rows, size columns, float* out, size os) {
    vec t[LANES];
    if (rows == LANES && columns == LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) t[i] = load(in + i * is);
    } else {
        for (int i = 0; i < LANES; i++) {
            t[i] = vec{};
            if (i < rows) memcpy(&t[i], in + i * is, columns * sizeof(float));
        }
    }
    exchange<LANES / 2>(t);
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++)
        if (j < columns) store(out + j * os, t[j]);
}

// The way back: out[i·os + j] = in[j·is + i] + offset[i]; nothing is written outside of rows × columns.
static inline void untranspose(
    const float* in, size is, vec offset, size rows, size columns, float* out, size os) {
    vec t[LANES];
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++) t[j] = j < columns ? load(in + j * is) + offset : vec{};
    exchange<LANES / 2>(t);
    if (rows == LANES && columns == LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) store(out + i * os, t[i]);
    } else {
        for (int i = 0; i < rows; i++) memcpy(out + i * os, &t[i], columns * sizeof(float));
    }
}

static inline bool is_line(const float* p) { return reinterpret_cast<size_t>(p) % 64 == 0; }

// Copy whole vectors to whole lines past the cache, which would read them before it writes them; for large results.
static inline void stream(const float* from, size count, float* to) {
#ifdef __AVX512F__
    for (size i = 0; i < count; i += LANES) _mm512_stream_ps(to + i, reinterpret_cast<__m512>(load(from + i)));
#else
    memcpy(to, from, count * sizeof(float));
#endif
}

// Before another thread reads what was streamed.
static inline void end_of_stream() {
#ifdef __AVX512F__
    _mm_sfence();
#endif
}

// Fresh memory is handed out page by page at first touch, which can cost more than what is computed. Pages of
// 2 MB are 512 times fewer. A hint: without effect on memory that is already in use.
static inline void fresh(float* data, size count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr size_t page = 1 << 21;
    const size_t start = (reinterpret_cast<size_t>(data) + page - 1) / page * page;
    const size_t end = reinterpret_cast<size_t>(data + count) / page * page;
    if (data && end > start) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#endif
}
