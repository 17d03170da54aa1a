// Vectors of the level being compiled: `vf` of LANES floats, loads and stores of float and bfloat16 with tails, fma,
// exp. Include inside no namespace; everything lands in the level's own (see export.h).
#pragma once

#include <stdint.h>

#include "export.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

HEADRACE_BEGIN

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));

struct bf16 {
    uint16_t bits;
};

#define HEADRACE_INLINE inline __attribute__((always_inline))

HEADRACE_INLINE vf splat(float x) { return x - vf{}; }  // x + 0 would cost an addition: it turns -0 into 0
HEADRACE_INLINE vi splat(int32_t x) { return x - vi{}; }
HEADRACE_INLINE vi iota() {
    vi x;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) x[i] = i;
    return x;
}

HEADRACE_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

HEADRACE_INLINE vf larger(vf a, vf b) {
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

HEADRACE_INLINE vf smaller(vf a, vf b) {
#if defined(__AVX512F__)
    return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}

HEADRACE_INLINE vf load(const float* p) {
    vf v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
HEADRACE_INLINE void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
HEADRACE_INLINE vi load(const int32_t* p) {
    vi v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

HEADRACE_INLINE vf load(const bf16* p) {
    vh h;
    __builtin_memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}
// Round to nearest even; a NaN stays one.
HEADRACE_INLINE vh round_to_bf16(vf v) {
    const vu u = (vu)v;
    const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const vu quiet = (u >> 16) | 0x40u;
    return __builtin_convertvector(v == v ? rounded : quiet, vh);
}
HEADRACE_INLINE void store(bf16* p, vf v) {
    const vh h = round_to_bf16(v);
    __builtin_memcpy(p, &h, sizeof h);
}

// The first n lanes, the rest 0.
template <class T>
HEADRACE_INLINE vf load_first(const T* p, int n) {
    T lanes[LANES] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
}
template <class T>
HEADRACE_INLINE void store_first(T* p, vf v, int n) {
    T lanes[LANES];
    store(lanes, v);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
#if defined(__AVX512F__)
template <>
HEADRACE_INLINE vf load_first<float>(const float* p, int n) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
template <>
HEADRACE_INLINE vf load_first<bf16>(const bf16* p, int n) {
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p)), 16);
}
template <>
HEADRACE_INLINE void store_first<float>(float* p, vf v, int n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
}
template <>
HEADRACE_INLINE void store_first<bf16>(bf16* p, vf v, int n) {
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)round_to_bf16(v));
}
#endif

// The lanes that `from` names, of a's followed by b's; constants, or this is slow.
template <class Vector, class Index>
HEADRACE_INLINE Vector shuffle(Vector a, Vector b, Index from) {
#if defined(__clang__)  // makes one instruction of this, and has no __builtin_shuffle
    constexpr int num = sizeof(Vector) / sizeof(a[0]);
    Vector chosen;
    for (int i = 0; i < num; ++i) chosen[i] = from[i] < num ? a[from[i]] : b[from[i] - num];
    return chosen;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// In a fixed order: each half is added to (or compared with) the other until one lane is left.
template <int DISTANCE>
HEADRACE_INLINE vf other_half(vf v) {
    vi from = {};
    for (int i = 0; i < LANES; ++i) from[i] = i ^ DISTANCE;
    return shuffle(v, v, from);
}
HEADRACE_INLINE float sum(vf v) {
    if constexpr (LANES > 8) v += other_half<8 % LANES>(v);
    if constexpr (LANES > 4) v += other_half<4 % LANES>(v);
    v += other_half<2>(v);
    v += other_half<1>(v);
    return v[0];
}
HEADRACE_INLINE float largest(vf v) {
    if constexpr (LANES > 8) v = larger(v, other_half<8 % LANES>(v));
    if constexpr (LANES > 4) v = larger(v, other_half<4 % LANES>(v));
    v = larger(v, other_half<2>(v));
    v = larger(v, other_half<1>(v));
    return v[0];
}

// to[d * to_stride + r] = from[r * from_stride + d] for LANES x LANES elements.
inline void transpose_block(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
#if defined(__AVX512F__)
    __m512 a[16], b[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) a[r] = _mm512_loadu_ps(from + r * from_stride);
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += 2) {
        b[r] = _mm512_unpacklo_ps(a[r], a[r + 1]);
        b[r + 1] = _mm512_unpackhi_ps(a[r], a[r + 1]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 16; r += 4) {
        a[r] = _mm512_shuffle_ps(b[r], b[r + 2], 0x44);
        a[r + 1] = _mm512_shuffle_ps(b[r], b[r + 2], 0xee);
        a[r + 2] = _mm512_shuffle_ps(b[r + 1], b[r + 3], 0x44);
        a[r + 3] = _mm512_shuffle_ps(b[r + 1], b[r + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
        b[r] = _mm512_shuffle_f32x4(a[r], a[r + 4], 0x88);
        b[r + 4] = _mm512_shuffle_f32x4(a[r], a[r + 4], 0xdd);
        b[r + 8] = _mm512_shuffle_f32x4(a[r + 8], a[r + 12], 0x88);
        b[r + 12] = _mm512_shuffle_f32x4(a[r + 8], a[r + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
        _mm512_storeu_ps(to + r * to_stride, _mm512_shuffle_f32x4(b[r], b[r + 8], 0x88));
        _mm512_storeu_ps(to + (r + 8) * to_stride, _mm512_shuffle_f32x4(b[r], b[r + 8], 0xdd));
    }
#else
    for (int r = 0; r < LANES; ++r)
        for (int d = 0; d < LANES; ++d) to[d * to_stride + r] = from[r * from_stride + d];
#endif
}

// exp(x) for x <= 0 to 2 ulp; 0 below -87.3. exp(x) = 2^n * e^f with n = round(x / ln 2), f = x - n ln 2 (ln 2 in
// two parts), and a polynomial for e^f.
HEADRACE_INLINE vf exp_negative(vf x) {
    const vf floor_x = splat(-87.33654f);
    const vf clamped = larger(x, floor_x);
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const vf shifted = fma(clamped, splat(1.44269504f), magic);
    const vf n = shifted - magic;
    vf f = fma(n, splat(-0.693359375f), clamped);
    f = fma(n, splat(2.12194440e-4f), f);
    vf p = splat(1.9875691500e-4f);
    p = fma(p, f, splat(1.3981999507e-3f));
    p = fma(p, f, splat(8.3334519073e-3f));
    p = fma(p, f, splat(4.1665795894e-2f));
    p = fma(p, f, splat(1.6666665459e-1f));
    p = fma(p, f, splat(5.0000001201e-1f));
    p = fma(p, f * f, f + 1.0f);
    const vf scale = (vf)(((vu)shifted << 23) + (127u << 23));  // lanes beyond a block may hold anything
    const vf result = p * scale;
    return x < floor_x ? vf{} : result;
}

HEADRACE_END
