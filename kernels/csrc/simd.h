// What attention and layer need beyond lanes.h: SiLU's gate, rows that are not whole vectors, register-blocked
// products, scratch memory. Included only by csrc/level/*.cpp and csrc/amx/*.cpp (see export.h for the rules there).
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lanes.h"

HEADRACE_BEGIN

constexpr int W = LANES;
#if defined(HEADRACE_LEVEL_AMX)
constexpr int NV_MAX = 3;  // 8 x 3 accumulators of 32 registers
constexpr int MR = 8;      // four groups of rows in 32, two tiles
#elif defined(__AVX512F__)
constexpr int NV_MAX = 4;  // 6 x 4 accumulators of 32 registers
constexpr int MR = 6;
#else
constexpr int NV_MAX = 2;  // 6 x 2 accumulators of 16 registers
constexpr int MR = 6;
#endif

HEADRACE_INLINE vf zero() { return vf{}; }

HEADRACE_INLINE vf keep(vi mask, vf x) { return (vf)(mask & (vi)x); }

// 1 / x to within 2 ulp, for finite x that is not tiny.
HEADRACE_INLINE vf reciprocal(vf x) {
#if defined(__AVX512F__)
    const vf guess = (vf)_mm512_rcp14_ps((__m512)x);
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

// 2^x with a polynomial for its fraction: relative error below 3e-7 (DEGREE 5) or 8e-5 (DEGREE 3).
template <int DEGREE>
HEADRACE_INLINE vf exp2(vf x) {
#if defined(__AVX512DQ__)
    const vf f = (vf)_mm512_reduce_ps((__m512)x, 1);  // x - floor(x)
#else
    x = smaller(larger(x, splat(-126.0f)), splat(126.0f));
    const vf shifted = x + 12582912.0f;  // 1.5 * 2^23: its low bits are round(x)
    const vf f = x - (shifted - 12582912.0f);
#endif
    vf p;
    if constexpr (DEGREE == 3) {
#if defined(__AVX512DQ__)
        p = fma(f, splat(7.802452004e-02f), splat(2.260671591e-01f));
        p = fma(p, f, splat(6.958335392e-01f));
        p = fma(p, f, splat(9.999252186e-01f));
#else
        p = fma(f, splat(5.517166722e-02f), splat(2.426111221e-01f));
        p = fma(p, f, splat(6.932609858e-01f));
        p = fma(p, f, splat(9.999280736e-01f));
#endif
    } else {
#if defined(__AVX512DQ__)
        p = fma(f, splat(1.877576645e-03f), splat(8.989340163e-03f));
        p = fma(p, f, splat(5.582631799e-02f));
        p = fma(p, f, splat(2.401536171e-01f));
        p = fma(p, f, splat(6.931530732e-01f));
        p = fma(p, f, splat(9.999999251e-01f));
#else
        p = fma(f, splat(1.327647178e-03f), splat(9.675541333e-03f));
        p = fma(p, f, splat(5.550713274e-02f));
        p = fma(p, f, splat(2.402211972e-01f));
        p = fma(p, f, splat(6.931469671e-01f));
        p = fma(p, f, splat(1.000000072e+00f));
#endif
    }
#if defined(__AVX512DQ__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)x);  // p * 2^floor(x)
#else
    return (vf)((vu)p + ((vu)shifted << 23));
#endif
}

HEADRACE_INLINE vf sigmoid(vf x) { return reciprocal(1.0f + exp2<5>(smaller(x * -1.44269504f, splat(126.0f)))); }

// To 1e-4, for values that are then rounded to bfloat16.
HEADRACE_INLINE vf rough_sigmoid(vf x) {
#if defined(__AVX512F__)
    return (vf)_mm512_rcp14_ps((__m512)(1.0f + exp2<3>(x * -1.44269504f)));
#else
    return sigmoid(x);
#endif
}

// The slope of SiLU, given `activated` = x * gate and `gate` = sigmoid(x).
HEADRACE_INLINE vf silu_slope(vf gate, vf activated) { return gate + activated - activated * gate; }

// W consecutive elements, or fewer (the rest zero): rows need not be whole vectors.
template <typename T>
HEADRACE_INLINE vf load_some(const T* p, int64_t count) {
#if defined(__AVX512F__)
    return load_first(p, static_cast<int>(count >= W ? W : count));
#else
    return count >= W ? load(p) : load_first(p, static_cast<int>(count));
#endif
}
template <typename T>
HEADRACE_INLINE void store_some(T* p, vf x, int64_t count) {
#if defined(__AVX512F__)
    store_first(p, x, static_cast<int>(count >= W ? W : count));
#else
    if (count >= W) store(p, x);
    else store_first(p, x, static_cast<int>(count));
#endif
}

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// A thread's block of memory, kept for the next call: new pages cost more than the work of a small batch.
struct Kept {
    char* base = nullptr;
    int64_t size = 0;
    ~Kept() { free(base); }
    // At least so many bytes, aligned to a cache line; null if out of memory. Their content is lost when they grow.
    char* at_least(int64_t bytes) {
        if (bytes > size) {
            free(base);
            size = round_up(bytes + bytes / 4, 4096);
            base = static_cast<char*>(aligned_alloc(64, size));
            if (!base) size = 0;
        }
        return base;
    }
};

// A call's scratch memory: aligned pieces of the thread's block. An arena without memory only counts.
struct Arena {
    char* base = nullptr;
    int64_t used = 0;
    template <typename T>
    T* get(int64_t count) {
        T* piece = reinterpret_cast<T*>(base + used);
        used += round_up(count * static_cast<int64_t>(sizeof(T)), 64) +
                64;  // spaced, so that rows of equal size do not alias in L1
        return piece;
    }
    bool allocate() {
        static thread_local Kept kept;
        base = kept.at_least(used);
        used = 0;
        return base != nullptr;
    }
};

// C[MR, NV*W] (+)= A[MR, k] B[k, NV*W]; A's element (m, p) is at a[m * a_row + p * a_step]: transposed or not costs the
// same.
template <int NV>
HEADRACE_INLINE void gemm_block(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t ldb, int64_t k,
                                float* c, int64_t ldc, bool add) {
    vf acc[MR][NV];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) acc[m][n] = add ? load(c + m * ldc + n * W) : zero();
    for (int64_t p = 0; p < k; ++p) {
        vf row[NV];
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) row[n] = load(b + p * ldb + n * W);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
            const vf x = splat(a[m * a_row + p * a_step]);
#pragma GCC unroll 4
            for (int n = 0; n < NV; ++n) acc[m][n] += x * row[n];
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) store(c + m * ldc + n * W, acc[m][n]);
}

// The same for any number of vectors of columns.
inline void gemm_rows(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t ldb, int64_t k, float* c,
                      int64_t ldc, int64_t num_vectors, bool add) {
    int64_t n = 0;
    for (; n + NV_MAX <= num_vectors; n += NV_MAX)
        gemm_block<NV_MAX>(a, a_row, a_step, b + n * W, ldb, k, c + n * W, ldc, add);
    switch (num_vectors - n) {
        case 1: gemm_block<1>(a, a_row, a_step, b + n * W, ldb, k, c + n * W, ldc, add); break;
#if defined(__AVX512F__)
        case 2: gemm_block<2>(a, a_row, a_step, b + n * W, ldb, k, c + n * W, ldc, add); break;
        case 3: gemm_block < NV_MAX<4 ? 1 : 3>(a, a_row, a_step, b + n * W, ldb, k, c + n * W, ldc, add); break;
#endif
        default: break;
    }
}

HEADRACE_END
