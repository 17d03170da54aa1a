// The layer's operations on a block of tokens: LayerNorm, products with padded weights, dropout, sums of gradients.
#pragma once

#include "layer.h"
#include "simd.h"

HEADRACE_BEGIN

constexpr int64_t DEPTHS = 32;  // columns that a product may begin and end at: a step of AMX, whole vectors elsewhere
constexpr int64_t BLOCK = 96;   // tokens that the layer's products process together
#if defined(HEADRACE_LEVEL_AMX)
constexpr int64_t PAD = 32;  // of widths: two tiles
#else
constexpr int64_t PAD = 48;  // of widths: a multiple of W and of MR
#endif

#if defined(HEADRACE_LEVEL_AMX)
// Room for both sides of a product.
inline word* operand_room(int64_t size) {
    static thread_local Kept kept;
    word* room = reinterpret_cast<word*>(kept.at_least(sizeof(word) * size));
    if (!room) abort();  // a few hundred kilobytes
    return room;
}

inline TensorRows<float> matrix(const float* x, int64_t stride, int64_t rows, int64_t width) {
    return {nullptr, x, 0, stride, 0, rows, width};
}

// C[rows, n] = or += A[rows, k] B[k, n], where A's element (r, p) is at a[r * a_row + p * a_step] and one of the two is
// 1. Both sides are packed here (B perhaps earlier: `ready`); C has room for whole tiles.
template <int TERMS>
inline void multiply(const float* a, int64_t a_row, int64_t a_step, int64_t rows, const float* b, int64_t ldb,
                     int64_t k, float* c, int64_t ldc, int64_t n, bool add, const Operand* ready) {
    const int64_t m_pad = round_up(rows, DEPTH), k_pad = round_up(k, DEPTH), n_pad = round_up(n, DEPTH);
    const int64_t left_size = m_pad * k_pad / 2, right_size = k_pad * n_pad / 2, gap = 16;
    word* room = operand_room(TERMS * (left_size + right_size) + gap);
    const Operand left = {room, k_pad / DEPTH * TILE, left_size},
                  own = {room + TERMS * left_size + gap, k_pad / DEPTH * TILE, right_size};
    if (a_step == 1) pack<TERMS>(matrix(a, a_row, rows, k), m_pad, k_pad, LeftRows{left});
    else pack<TERMS>(matrix(a, a_step, k, rows), k_pad, m_pad, LeftTurned{left});
    if (!ready && a_step == 1) pack<TERMS>(matrix(b, ldb, k, n), k_pad, n_pad, RightRows<APART>{own});
    if (!ready && a_step != 1) pack<TERMS>(matrix(b, ldb, k, n), k_pad, n_pad, RightRows<NEIGHBOURS>{own});
    const Operand& right = ready ? *ready : own;
    if (add) multiply_rows<TERMS, true>(m_pad / 16, n_pad / 16, k_pad / DEPTH, left, right, c, ldc);
    else multiply_rows<TERMS, false>(m_pad / 16, n_pad / 16, k_pad / DEPTH, left, right, c, ldc);
}

// A weight matrix packed once per call.
template <int TERMS>
inline Operand operand(Arena& arena, const float* from, int64_t ld, int64_t k, int64_t n) {
    const int64_t k_pad = round_up(k, DEPTH), n_pad = round_up(n, DEPTH), size = k_pad * n_pad / 2;
    const Operand to = {arena.get<word>(TERMS * size), k_pad / DEPTH * TILE, size};
    if (arena.base) pack<TERMS>(matrix(from, ld, k, n), k_pad, n_pad, RightRows<APART>{to});
    return to;
}
// The operand of a weight's columns, or rows, from `from` on: a multiple of DEPTHS.
inline Operand across(const Operand& x, int64_t from) { return x.at(from / 16, 0); }
inline Operand along(const Operand& x, int64_t from) { return x.at(0, from / DEPTH); }
#else
struct Operand {};
inline Operand across(const Operand&, int64_t) { return {}; }
inline Operand along(const Operand&, int64_t) { return {}; }

// C[rows, n] = or += A[rows, k] B[k, n], panel by panel, so that B's panel stays in the L1 cache.
template <int TERMS>
inline void multiply(const float* a, int64_t a_row, int64_t a_step, int64_t rows, const float* b, int64_t ldb,
                     int64_t k, float* c, int64_t ldc, int64_t n, bool add, const Operand*) {
    for (int64_t column = 0; column < n; column += NV_MAX * W) {
        const int64_t vectors = min64(NV_MAX, (n - column + W - 1) / W);
        for (int64_t r = 0; r < rows; r += MR)
            gemm_rows(a + r * a_row, a_row, a_step, b + column, ldb, k, c + r * ldc + column, ldc, vectors, add);
    }
}

template <int TERMS>
inline Operand operand(Arena&, const float*, int64_t, int64_t, int64_t) {
    return {};
}  // vectors take rows as they are
#endif

// A (rows, columns) matrix with padded columns; or its transpose.
float* padded(Arena& arena, const float* from, int64_t rows, int64_t columns, bool transposed) {
    const int64_t out_rows = transposed ? columns : rows, width = transposed ? rows : columns,
                  pad = round_up(width, PAD);
    float* to = arena.get<float>(out_rows * pad);
    if (!arena.base) return to;
    for (int64_t r = 0; r < out_rows; ++r) {
        for (int64_t c = 0; c < width; ++c)
            to[r * pad + c] = transposed ? from[c * columns + r] : from[r * columns + c];
        for (int64_t c = width; c < pad; ++c) to[r * pad + c] = 0.0f;
    }
    return to;
}

float* padded_vector(Arena& arena, const float* from, int64_t count) {
    return padded(arena, from, from ? 1 : 0, count, false);
}

HEADRACE_INLINE vf inside(int64_t column, int64_t width, vf x) {  // zero past the width
    return column + W <= width ? x : keep(iota() + static_cast<int32_t>(column) < static_cast<int32_t>(width), x);
}

// The outputs of LayerNorm: (x - mean) / sqrt(variance + eps), that times the weight plus the bias, and 1 / sqrt(...).
// Each may be null.
struct Normalized {
    float *normed, *affine, *inverse;
    const float *weight, *bias;
    int64_t pad;
};

constexpr int64_t MOST_WIDTH = 4096;  // of a row to normalize; kernels/layer/args.py refuses more

// N vectors per row, kept in registers; 0: any number.
template <int N, typename T>
void normalize_rows(const T* x, int64_t stride, int64_t count, int64_t width, float eps, const Normalized& to) {
    constexpr int64_t MOST = N > 0 ? N : MOST_WIDTH / W;
    const int64_t vectors = N > 0 ? N : (width + W - 1) / W;
    for (int64_t r = 0; r < count; ++r) {
        vf value[MOST], total = zero(), squares = zero();
#pragma GCC unroll 4
        for (int64_t n = 0; n < vectors; ++n) total += value[n] = load_some(x + r * stride + n * W, width - n * W);
        const float mean = sum(total) / static_cast<float>(width);
#pragma GCC unroll 4
        for (int64_t n = 0; n < vectors; ++n) {
            value[n] = inside(n * W, width, value[n] - mean);
            squares += value[n] * value[n];
        }
        const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + eps);
#pragma GCC unroll 4
        for (int64_t n = 0; n < vectors; ++n) {
            const vf normed = value[n] * scale;
            const int64_t at = r * to.pad + n * W;
            if (to.normed) store(to.normed + at, normed);
            if (to.affine) store(to.affine + at, normed * load(to.weight + n * W) + load(to.bias + n * W));
        }
        if (to.inverse) to.inverse[r] = scale;
    }
}

template <typename T>
void normalize(const T* x, int64_t stride, int64_t count, int64_t width, float eps, const Normalized& to) {
    switch ((width + W - 1) / W) {
        case 1: return normalize_rows<1>(x, stride, count, width, eps, to);
        case 2: return normalize_rows<2>(x, stride, count, width, eps, to);
        case 3: return normalize_rows<3>(x, stride, count, width, eps, to);
        case 4: return normalize_rows<4>(x, stride, count, width, eps, to);
        default: return normalize_rows<0>(x, stride, count, width, eps, to);
    }
}

// Gradient through `normalize` in place: d -> (d - mean(d) - n mean(d n)) / sqrt(...).
inline void normalize_backward(const float* normalized, const float* inverse, int64_t count, int64_t width, float* d,
                               int64_t pad) {
    for (int64_t r = 0; r < count; ++r) {
        const float* n = normalized + r * pad;
        float* row = d + r * pad;
        vf plain = zero(), along = zero();
        for (int64_t c = 0; c < width; c += W) {
            plain += load(row + c);
            along += load(row + c) * load(n + c);
        }
        const float mean = sum(plain) / static_cast<float>(width), slope = sum(along) / static_cast<float>(width);
        for (int64_t c = 0; c < width; c += W)
            store(row + c, inside(c, width, (load(row + c) - mean - load(n + c) * slope) * inverse[r]));
    }
}

HEADRACE_INLINE vu mix(vu h) {
    h ^= h >> 16;
    h *= 0x7FEB352Du;
    h ^= h >> 15;
    h *= 0x846CA68Bu;
    return h ^ (h >> 16);
}

// The dropout of kernels/layer/dropout.py.
HEADRACE_INLINE vf drop(const HeadraceLayer& a, int64_t token, int64_t column, vf x) {
    if (a.dropout_threshold == 0) return x;
    const uint64_t seed = static_cast<uint64_t>(a.seed);
    const uint32_t base = static_cast<uint32_t>(token) * 0x9E3779B1u + static_cast<uint32_t>(seed);
    vu h = ((vu)iota() + static_cast<uint32_t>(column)) * 0x85EBCA77u + base;
    h = mix(mix(h) + (static_cast<uint32_t>(seed >> 32) + 0xC2B2AE3Du));
    const vi kept = (vi)(h >> 8) >= static_cast<int32_t>(a.dropout_threshold);
    return keep(kept, x * static_cast<float>(a.dropout_scale));
}

struct Sums {  // one chunk's gradients of the weights
    float *weight, *bias, *norm_weight, *norm_bias;
    int64_t rows, columns, width;
    static int64_t size(int64_t rows, int64_t columns, int64_t width) {
        return round_up(rows, PAD) * round_up(columns, PAD) + round_up(columns, PAD) + 2 * round_up(width, PAD);
    }
    Sums(float* base, int64_t rows_, int64_t columns_, int64_t width_) : rows(rows_), columns(columns_), width(width_) {
        weight = base;
        bias = weight + round_up(rows, PAD) * round_up(columns, PAD);
        norm_weight = bias + round_up(columns, PAD);
        norm_bias = norm_weight + round_up(width, PAD);
    }
};

inline void add_up(float* chunks, int64_t num_chunks, int64_t rows, int64_t columns, int64_t width, float* weight,
                   float* bias, float* norm_weight, float* norm_bias) {
    const int64_t size = Sums::size(rows, columns, width), ld = round_up(columns, PAD);
    for (int64_t c = 1; c < num_chunks; ++c)  // in order, into the first
        for (int64_t at = 0; at < size; at += W) store(chunks + at, load(chunks + at) + load(chunks + c * size + at));
    const Sums at(chunks, rows, columns, width);
    for (int64_t r = 0; r < rows; ++r) memcpy(weight + r * columns, at.weight + r * ld, sizeof(float) * columns);
    if (bias) memcpy(bias, at.bias, sizeof(float) * columns);
    memcpy(norm_weight, at.norm_weight, sizeof(float) * width);
    memcpy(norm_bias, at.norm_bias, sizeof(float) * width);
}

HEADRACE_END
