// What the softmax ops share: rows normalised to unit length, small matrix products of them, scratch memory.
//
// An element of a product is one chain of multiply-adds in the order of k, wherever it is in a tile: equal rows give
// equal scores, bit for bit, which counting ties requires.
#pragma once

#include <stdlib.h>

#include "lanes.h"

HEADRACE_BEGIN

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 8;
#else
constexpr int TILE_ROWS = 4;
#endif
constexpr int PANEL = 2 * LANES;  // columns of a packed panel

HEADRACE_INLINE int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Freed when it goes out of scope; `p` is null if out of memory.
template <class T>
struct Scratch {
    T* p = nullptr;
    explicit Scratch(int64_t num) {
        void* raw = nullptr;
        if (posix_memalign(&raw, 64, (size_t)(num > 0 ? num : 1) * sizeof(T)) == 0) p = (T*)raw;
    }
    ~Scratch() { free(p); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

// Table or query rows of either type.
struct Rows {
    const void* data;
    int type;               // 0 float, 1 bfloat16
    int64_t width, stride;  // stride: width rounded up to whole vectors, of unpacked copies
    int normalize;
    float eps;
};

struct Length {
    float inverse;
    bool clamped;  // shorter than eps: divided by eps instead
};

template <class T>
HEADRACE_INLINE void widen(const T* x, int64_t width, float* out) {
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) store(out + d, load(x + d));
    if (d < width) store(out + d, load_first(x + d, (int)(width - d)));
}

// Row `index` as floats, zero-padded to the stride, divided by max(length, eps) if requested.
inline Length unit_row(const Rows& rows, int64_t index, float* out) {
    if (rows.type == 0) widen((const float*)rows.data + index * rows.width, rows.width, out);
    else widen((const bf16*)rows.data + index * rows.width, rows.width, out);
    if (!rows.normalize) return {1.0f, true};
    vf squares = {};
    for (int64_t d = 0; d < rows.stride; d += LANES) squares = fma(load(out + d), load(out + d), squares);
    const float length = __builtin_sqrtf(sum(squares));
    const bool clamped = length < rows.eps;
    const float inverse = 1.0f / (clamped ? rows.eps : length);
    for (int64_t d = 0; d < rows.stride; d += LANES) store(out + d, load(out + d) * inverse);
    return {inverse, clamped};
}

HEADRACE_INLINE float dot(const float* a, const float* b, int64_t stride) {
    vf total = {};
    for (int64_t d = 0; d < stride; d += LANES) total = fma(load(a + d), load(b + d), total);
    return sum(total);
}

// out += scale * x
HEADRACE_INLINE void add_scaled(float* out, const float* x, float scale, int64_t stride) {
    const vf s = splat(scale);
    for (int64_t d = 0; d < stride; d += LANES) store(out + d, fma(s, load(x + d), load(out + d)));
}

// Turns the gradient of a unit row into that of the row: (g - u (u·g)) / length.
HEADRACE_INLINE void gradient_through_length(float* g, const float* unit, Length length, int64_t stride) {
    const float along = length.clamped ? 0.0f : dot(g, unit, stride);
    const vf minus = splat(-along), inverse = splat(length.inverse);
    for (int64_t d = 0; d < stride; d += LANES) store(g + d, fma(minus, load(unit + d), load(g + d)) * inverse);
}

// The same on rows of `width` that are not padded.
HEADRACE_INLINE void add_scaled_row(float* out, const float* x, float scale, int64_t width) {
    const vf s = splat(scale);
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) store(out + d, fma(s, load(x + d), load(out + d)));
    if (d < width) {
        const int n = (int)(width - d);
        store_first(out + d, fma(s, load_first(x + d, n), load_first(out + d, n)), n);
    }
}

HEADRACE_INLINE void store_row(float* out, const float* x, int64_t width) {
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) store(out + d, load(x + d));
    if (d < width) store_first(out + d, load(x + d), (int)(width - d));
}

// Rows [0, num) of `unit` (stride apart) as panels of PANEL columns: panel p holds [k][column], k < width.
inline void pack_panels(const float* unit, int64_t num, int64_t stride, int64_t width, float scale, float* panels) {
    for (int64_t first = 0; first < num; first += PANEL) {
        float* panel = panels + first * width;
        for (int64_t k = 0; k < width; ++k)
            for (int64_t c = 0; c < PANEL; ++c)
                panel[k * PANEL + c] = first + c < num ? unit[(first + c) * stride + k] * scale : 0.0f;
    }
}

// C[m][v] (+)= sum over k of A[m * am + k * ak] * B[k * ldb + v], for M rows and NV vectors of columns.
template <int M, int NV, bool ADD>
HEADRACE_INLINE void tile(const float* A, int64_t am, int64_t ak, const float* B, int64_t ldb, int64_t K, float* C,
                          int64_t ldc) {
    vf c[M][NV];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) c[m][v] = ADD ? load(C + m * ldc + v * LANES) : vf{};
    for (int64_t k = 0; k < K; ++k) {
        vf b[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) b[v] = load(B + k * ldb + v * LANES);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const vf a = splat(A[m * am + k * ak]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) c[m][v] = fma(a, b[v], c[m][v]);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(C + m * ldc + v * LANES, c[m][v]);
}

template <int NV, bool ADD>
HEADRACE_INLINE void column_of_tiles(int64_t M, const float* A, int64_t am, int64_t ak, const float* B, int64_t ldb,
                                     int64_t K, float* C, int64_t ldc) {
    int64_t m = 0;
    for (; m + TILE_ROWS <= M; m += TILE_ROWS)
        tile<TILE_ROWS, NV, ADD>(A + m * am, am, ak, B, ldb, K, C + m * ldc, ldc);
    for (; m < M; ++m) tile<1, NV, ADD>(A + m * am, am, ak, B, ldb, K, C + m * ldc, ldc);
}

// C (M, num_columns) (+)= A B with B row-major; num_columns a multiple of LANES.
template <bool ADD>
inline void multiply(int64_t M, int64_t num_columns, int64_t K, const float* A, int64_t am, int64_t ak, const float* B,
                     int64_t ldb, float* C, int64_t ldc) {
    int64_t n = 0;
    for (; n + PANEL <= num_columns; n += PANEL) column_of_tiles<2, ADD>(M, A, am, ak, B + n, ldb, K, C + n, ldc);
    if (n < num_columns) column_of_tiles<1, ADD>(M, A, am, ak, B + n, ldb, K, C + n, ldc);
}

// C (M, num_panels * PANEL) = A (row-major, lda) times packed panels.
inline void multiply_panels(int64_t M, int64_t num_panels, int64_t K, const float* A, int64_t lda, const float* panels,
                            float* C, int64_t ldc) {
    for (int64_t p = 0; p < num_panels; ++p)
        column_of_tiles<2, false>(M, A, lda, 1, panels + p * PANEL * K, PANEL, K, C + p * PANEL, ldc);
}

HEADRACE_END
