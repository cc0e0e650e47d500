// x Φ(x) and its derivative Φ(x) + x φ(x), where Φ = ½ + ½ erf(x/√2) and φ = Φ′.
#pragma once

#include "tile.h"

#include <cmath>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

typedef int ivec __attribute__((vector_size(LANES * sizeof(int))));

inline ivec bits(vec v) { return reinterpret_cast<ivec>(v); }
inline vec number(ivec v) { return reinterpret_cast<vec>(v); }

constexpr float ROUND = 12582912.0f;  // adding 1.5·2²³ rounds to an integer, which the last bits then hold

#if defined(__AVX512F__)

// ½ erf(u/√2) for u ≥ 0 by a polynomial in each of fifteen intervals, beyond which it is ½: a vector holds a coefficient
// of all of them, from which a lane takes its own. They interpolate at Chebyshev's points.
struct Intervals {
    static constexpr int DEGREE = 6, COUNT = LANES - 1;
    static constexpr float WIDTH = 0.375f;
    vec coefficients[DEGREE + 1]{};

    Intervals() {
        constexpr int N = DEGREE + 1;
        coefficients[0][COUNT] = 0.5f;
        for (int i = 0; i < COUNT; i++) {
            double at[N], difference[N], sum[N] = {};
            for (int k = 0; k < N; k++) {
                at[k] = WIDTH * (0.5 - 0.5 * std::cos((k + 0.5) * M_PI / N));
                difference[k] = 0.5 * std::erf((double(i) * WIDTH + at[k]) * M_SQRT1_2);
            }
            for (int d = 1; d < N; d++)  // Newton's form
                for (int k = N - 1; k >= d; k--)
                    difference[k] = (difference[k] - difference[k - 1]) / (at[k] - at[k - d]);
            for (int k = N - 1; k >= 0; k--) {  // and the usual one
                for (int d = N - 1; d > 0; d--) sum[d] = sum[d - 1] - at[k] * sum[d];
                sum[0] = difference[k] - at[k] * sum[0];
            }
            for (int d = 0; d < N; d++) coefficients[d][i] = static_cast<float>(sum[d]);
        }
    }
};

const Intervals TABLE;

template <bool SLOPE>
inline vec gelu(vec x, vec& slope) {
    constexpr float W = Intervals::WIDTH, LAST = (Intervals::COUNT + 0.5f) * W;
    const ivec sign = bits(x) & static_cast<int>(0x80000000);
    vec u = number(bits(x) ^ sign);
    u = u > LAST ? LAST - vec{} : u;  // not a number stays what it is
    const vec t = (u * (1 / W) - 0.5f) + ROUND, f = u - (t - ROUND) * W;
    const auto coefficient = [&](int d) {
        return reinterpret_cast<vec>(_mm512_permutexvar_ps(
            reinterpret_cast<__m512i>(bits(t)), reinterpret_cast<__m512>(TABLE.coefficients[d])));
    };
    vec p = coefficient(Intervals::DEGREE), derivative = p;
#pragma GCC unroll 8
    for (int d = Intervals::DEGREE - 1; d >= 0; d--) {
        p = p * f + coefficient(d);
        if (SLOPE && d) derivative = derivative * f + p;
    }
    const vec P = number(bits(p) ^ sign) + 0.5f;
    if (SLOPE) slope = P + x * derivative;
    return x * P;
}

#else

// exp(v) for −87 ≤ v ≤ 0: 2ⁿ times a polynomial in what is left, |f| ≤ ½ ln 2
inline vec exponential(vec v) {
    const vec n = (v * 1.44269504f + ROUND) - ROUND;
    const vec f = (v - n * 0.693359375f) - n * -2.12194440e-4f;
    vec p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    return p * number((__builtin_convertvector(n, ivec) + 127) << 23);
}

// Φ by Abramowitz and Stegun, 7.1.26: absolute error below 1e-7
template <bool SLOPE>
inline vec gelu(vec x, vec& slope) {
    const vec u = (x < 0.0f ? -x : x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * u), v = -u * u;
    const vec e = v < -87.0f ? vec{} : exponential(v);  // nothing is left, not even of x times it
    vec p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const vec tail = 0.5f * p * t * e, P = x < 0.0f ? tail : 1.0f - tail;
    if (SLOPE) slope = P + x * e * 0.39894228f;
    return x * P;
}

#endif

}  // namespace
