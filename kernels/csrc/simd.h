// One source for every instruction set: vectors of W floats by the compiler's vector extension, and the few operations
// that need an intrinsic. Included by csrc/level/*.cpp and csrc/amx/*.cpp only (see export.h for the rules there).
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "export.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

HEADRACE_BEGIN

#if defined(HEADRACE_LEVEL_AMX)
constexpr int W = 16;
constexpr int NV_MAX = 3;  // 8 x 3 accumulators of 32 registers
constexpr int MR = 8;      // four groups of rows in 32, two tiles
#elif defined(__AVX512F__)
constexpr int W = 16;
constexpr int NV_MAX = 4;  // 6 x 4 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int W = 8;
constexpr int NV_MAX = 2;  // 6 x 2 accumulators of 16 registers
#else
constexpr int W = 4;
constexpr int NV_MAX = 2;
#endif
#if !defined(HEADRACE_LEVEL_AMX)
constexpr int MR = 6;
#endif

#define HEADRACE_INLINE inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef float vf_any __attribute__((vector_size(W * 4), aligned(4), may_alias));

typedef uint16_t bf16;

HEADRACE_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
HEADRACE_INLINE void store(float* p, vf x) { *reinterpret_cast<vf_any*>(p) = x; }
HEADRACE_INLINE vf splat(float x) { return x - vf{}; }
HEADRACE_INLINE vi splat(int32_t x) { return x - vi{}; }
HEADRACE_INLINE vf zero() { return vf{}; }

HEADRACE_INLINE vi iota() {
    vi x;
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) x[i] = i;
    return x;
}

HEADRACE_INLINE float sum(vf x) {  // in halves: always the same order
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float lanes[W];
    store(lanes, x);
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
#endif
}

HEADRACE_INLINE vf keep(vi mask, vf x) { return (vf)(mask & (vi)x); }
HEADRACE_INLINE vf vmin(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return a < b ? a : b;
#endif
}
HEADRACE_INLINE vf vmax(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}

// 1 / x to within 2 ulp, for finite x that is not tiny.
HEADRACE_INLINE vf reciprocal(vf x) {
#if defined(__AVX512F__)
    const vf guess = (vf)_mm512_rcp14_ps((__m512)x);
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

// exp(x), relative error below 3e-7 for |x| <= 87 (clamped beyond). 2^n by adding n to the exponent's bits.
HEADRACE_INLINE vf vexp(vf x) {
    x = vmin(vmax(x, splat(-87.0f)), splat(87.0f));
    const vf shifted = x * 1.44269504f + 12582912.0f;
    const vf n = shifted - 12582912.0f;
    const vf r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    vf p = r * 1.3981999e-3f + 8.3334519e-3f;  // minimax-like over |r| <= ln2/2
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (vf)((vi)p + ((vi)shifted << 23));
}

HEADRACE_INLINE vf sigmoid(vf x) { return reciprocal(1.0f + vexp(-x)); }

// bfloat16 <-> float, round to nearest even.
HEADRACE_INLINE float widen(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float y;
    __builtin_memcpy(&y, &bits, 4);
    return y;
}
HEADRACE_INLINE float widen(float x) { return x; }
HEADRACE_INLINE void narrow(float x, float* y) { *y = x; }
HEADRACE_INLINE void narrow(float x, bf16* y) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    *y = is_nan ? static_cast<bf16>((bits >> 16) | 64) : static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// W consecutive elements, or fewer (the rest zero): rows need not be whole vectors.
HEADRACE_INLINE vf load_some(const float* p, int64_t count) {
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_loadu_ps(static_cast<__mmask16>(count >= W ? 0xffff : (1 << count) - 1), p);
#else
    if (count >= W) return load(p);
    float x[W] = {};
    for (int64_t i = 0; i < count; ++i) x[i] = p[i];
    return load(x);
#endif
}
HEADRACE_INLINE vf load_some(const bf16* p, int64_t count) {
#if defined(__AVX512F__)
    const __m256i half = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(count >= W ? 0xffff : (1 << count) - 1), p);
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
    float x[W] = {};
    for (int64_t i = 0; i < (count < W ? count : W); ++i) x[i] = widen(p[i]);
    return load(x);
#endif
}
HEADRACE_INLINE void store_some(float* p, vf x, int64_t count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(count >= W ? 0xffff : (1 << count) - 1), (__m512)x);
#else
    if (count >= W) return store(p, x);
    for (int64_t i = 0; i < count; ++i) p[i] = x[i];
#endif
}
HEADRACE_INLINE void store_some(bf16* p, vf x, int64_t count) {
#if defined(__AVX512F__)
    const __m512i bits = (__m512i)x;
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, _mm512_srli_epi32(bits, 16), _mm512_set1_epi32(64));
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(count >= W ? 0xffff : (1 << count) - 1), _mm512_cvtepi32_epi16(rounded));
#else
    for (int64_t i = 0; i < (count < W ? count : W); ++i) narrow(x[i], p + i);
#endif
}

// to[d * to_stride + r] = from[r * from_stride + d] for W x W elements.
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
    for (int r = 0; r < W; ++r)
        for (int d = 0; d < W; ++d) to[d * to_stride + r] = from[r * from_stride + d];
#endif
}

// Rows are short and strides odd: the processor's own prefetching sees them late.
HEADRACE_INLINE void prefetch_row(const void* p, int64_t bytes) {
    const char* at = static_cast<const char*>(p);
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(at + b);
}

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// Scratch memory: one block a thread, handed out in aligned pieces and kept for the next call (fresh pages cost more than
// the work of a small batch). An arena without memory only counts.
struct Arena {
    char* base = nullptr;
    int64_t used = 0;
    template <typename T>
    T* get(int64_t count) {
        T* piece = reinterpret_cast<T*>(base + used);
        used += round_up(count * static_cast<int64_t>(sizeof(T)), 64) + 64;  // apart: rows of equal size must not alias in L1
        return piece;
    }
    bool allocate() {
        struct Kept {
            char* base = nullptr;
            int64_t size = 0;
            ~Kept() { free(base); }
        };
        static thread_local Kept kept;
        if (used > kept.size) {
            free(kept.base);
            kept.size = round_up(used + used / 4, 4096);
            kept.base = static_cast<char*>(aligned_alloc(64, kept.size));
            if (!kept.base) kept.size = 0;
        }
        base = kept.base;
        used = 0;
        return base != nullptr;
    }
};

// C[MR, NV*W] (+)= A[MR, k] B[k, NV*W]; A's element (m, p) lies at a[m * a_row + p * a_step]: transposed or not costs the same.
template <int NV>
HEADRACE_INLINE void gemm_block(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t ldb, int64_t k, float* c,
                                int64_t ldc, bool add) {
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
inline void gemm_rows(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t ldb, int64_t k, float* c, int64_t ldc,
                      int64_t num_vectors, bool add) {
    int64_t n = 0;
    for (; n + NV_MAX <= num_vectors; n += NV_MAX) gemm_block<NV_MAX>(a, a_row, a_step, b + n * W, ldb, k, c + n * W, ldc, add);
    switch (num_vectors - n) {
        case 1: gemm_block<1>(a, a_row, a_step, b + n * W, ldb, k, c + n * W, ldc, add); break;
#if defined(__AVX512F__)
        case 2: gemm_block<2>(a, a_row, a_step, b + n * W, ldb, k, c + n * W, ldc, add); break;
        case 3: gemm_block<NV_MAX < 4 ? 1 : 3>(a, a_row, a_step, b + n * W, ldb, k, c + n * W, ldc, add); break;
#endif
        default: break;
    }
}

HEADRACE_END
