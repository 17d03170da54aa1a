// What the layer does to a block of tokens: LayerNorm, products with padded weights, dropout, sums of gradients.
#pragma once

#include "layer.h"
#include "simd.h"

HEADRACE_BEGIN

constexpr int64_t BLOCK = 96;  // tokens that go through the layer's products together
#if defined(HEADRACE_LEVEL_AMX)
constexpr int64_t PAD = 96;  // of widths: a multiple of W, of MR and of two tiles
#else
constexpr int64_t PAD = 48;  // of widths: a multiple of W and of MR
#endif

#if defined(HEADRACE_LEVEL_AMX)
struct Operands {  // of a product on tiles: one block a thread, kept for the next
    word *left, *right, *turning;
    Operands(int64_t left_words, int64_t right_words, int64_t turning_words) {
        struct Kept {
            word* base = nullptr;
            int64_t size = 0;
            ~Kept() { free(base); }
        };
        static thread_local Kept kept;
        const int64_t apart = 16;
        const int64_t size = round_up(left_words + right_words + turning_words + 2 * apart, 16);
        if (size > kept.size) {
            free(kept.base);
            kept.base = static_cast<word*>(aligned_alloc(64, sizeof(word) * size));
            if (!kept.base) abort();  // a few hundred kilobytes
            kept.size = size;
        }
        left = kept.base;
        right = left + left_words + apart;
        turning = right + right_words + apart;
    }
};
#endif

// C[rows, n] = or += A[rows, k] B[k, n], panel by panel so that B's stays in the first cache.
inline void multiply_by_vectors(const float* a, int64_t a_row, int64_t a_step, int64_t rows, const float* b, int64_t ldb, int64_t k, float* c,
                                int64_t ldc, int64_t n, bool add) {
    for (int64_t column = 0; column < n; column += NV_MAX * W) {
        const int64_t vectors = min64(NV_MAX, (n - column + W - 1) / W);
        for (int64_t r = 0; r < rows; r += MR) gemm_rows(a + r * a_row, a_row, a_step, b + column, ldb, k, c + r * ldc + column, ldc, vectors, add);
    }
}

#if defined(HEADRACE_LEVEL_AMX)
// Two rows of floats as one row of words.
inline void pair_row(const float* even, const float* odd, int64_t width, word* to) {
    for (int64_t c = 0; c < width; c += W) {
        const __m512i low = _mm512_cvtepu16_epi32(round_row(load(even + c)));
        const __m512i high = odd ? _mm512_slli_epi32(_mm512_cvtepu16_epi32(round_row(load(odd + c))), 16) : _mm512_setzero_si512();
        _mm512_storeu_si512(to + c, _mm512_or_si512(low, high));
    }
}

// A right operand as pairs of rows, padded with zeros to whole tiles.
inline void pack_right(const float* b, int64_t ldb, int64_t k, int64_t n, word* to) {
    const int64_t k_pad = round_up(k, DEPTH), n_pad = round_up(n, 32);
    memset(to, 0, sizeof(word) * k_pad / 2 * n_pad);
    for (int64_t p = 0; p < k; p += 2) pair_row(b + p * ldb, p + 1 < k ? b + (p + 1) * ldb : nullptr, round_up(n, W), to + p / 2 * n_pad);
}

// The same on tiles: both sides are rounded to bfloat16 here (B perhaps before: `packed`), sums stay float32. C has room for
// whole tiles.
inline void multiply(const float* a, int64_t a_row, int64_t a_step, int64_t rows, const float* b, int64_t ldb, int64_t k, float* c, int64_t ldc,
                     int64_t n, bool add, const word* packed) {
    if (rows < 16 || k < 16) return multiply_by_vectors(a, a_row, a_step, rows, b, ldb, k, c, ldc, n, add);
    const int64_t m_pad = round_up(rows, 32), k_pad = round_up(k, DEPTH), n_pad = round_up(n, 32);
    Operands operands(m_pad * k_pad / 2, k_pad / 2 * n_pad, k_pad / 2 * m_pad);
    bf16* left = reinterpret_cast<bf16*>(operands.left);
    if (a_step == 1) {
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t p = 0; p < k; p += W)
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(left + r * k_pad + p), round_row(load_some(a + r * a_row + p, k - p)));
            if (round_up(k, W) < k_pad) _mm256_storeu_si256(reinterpret_cast<__m256i*>(left + (r + 1) * k_pad - W), _mm256_setzero_si256());
        }
        memset(left + rows * k_pad, 0, sizeof(bf16) * (m_pad - rows) * k_pad);
    } else {  // a_row == 1: rows of A are columns here
        memset(operands.turning, 0, sizeof(word) * k_pad / 2 * m_pad);
        const int64_t width = round_up(rows, W);
        for (int64_t p = 0; p < k; p += 2) pair_row(a + p * a_step, p + 1 < k ? a + (p + 1) * a_step : nullptr, width, operands.turning + p / 2 * m_pad);
        for (int64_t p = 0; p < k_pad / 2; p += W)
            for (int64_t r = 0; r < m_pad; r += W)
                transpose_block(reinterpret_cast<float*>(operands.turning) + p * m_pad + r, m_pad,
                                reinterpret_cast<float*>(operands.left) + r * (k_pad / 2) + p, k_pad / 2);
    }
    if (!packed) pack_right(b, ldb, k, n, operands.right);
    tile_product(left, k_pad, packed ? packed : operands.right, n_pad, k_pad / DEPTH, c, ldc, m_pad, n, add);
}

// A weight's matrix packed once a call.
inline const word* packed(Arena& arena, const float* from, int64_t ld, int64_t k, int64_t n) {
    word* to = arena.get<word>(round_up(k, DEPTH) / 2 * round_up(n, 32));
    if (arena.base) pack_right(from, ld, k, n, to);
    return to;
}
#else
typedef float word;

inline void multiply(const float* a, int64_t a_row, int64_t a_step, int64_t rows, const float* b, int64_t ldb, int64_t k, float* c, int64_t ldc,
                     int64_t n, bool add, const word*) {
    multiply_by_vectors(a, a_row, a_step, rows, b, ldb, k, c, ldc, n, add);
}

inline const word* packed(Arena&, const float*, int64_t, int64_t, int64_t) { return nullptr; }  // vectors take rows as they are
#endif

// A (rows, columns) matrix with padded columns; or its transpose.
float* padded(Arena& arena, const float* from, int64_t rows, int64_t columns, bool transposed) {
    const int64_t out_rows = transposed ? columns : rows, width = transposed ? rows : columns, pad = round_up(width, PAD);
    float* to = arena.get<float>(out_rows * pad);
    if (!arena.base) return to;
    for (int64_t r = 0; r < out_rows; ++r) {
        for (int64_t c = 0; c < width; ++c) to[r * pad + c] = transposed ? from[c * columns + r] : from[r * columns + c];
        for (int64_t c = width; c < pad; ++c) to[r * pad + c] = 0.0f;
    }
    return to;
}

float* padded_vector(Arena& arena, const float* from, int64_t count) { return padded(arena, from, from ? 1 : 0, count, false); }

HEADRACE_INLINE vf inside(int64_t column, int64_t width, vf x) {  // zero past the width
    return column + W <= width ? x : keep(iota() + static_cast<int32_t>(column) < static_cast<int32_t>(width), x);
}

// (x - mean) / sqrt(variance + eps) of rows; keeps 1 / sqrt(...) if asked.
template <typename T>
void normalize(const T* x, int64_t stride, int64_t count, int64_t width, float eps, float* to, int64_t pad, float* inverse) {
    for (int64_t r = 0; r < count; ++r) {
        float* row = to + r * pad;
        vf total = zero();
        for (int64_t c = 0; c < width; c += W) {
            const vf value = load_some(x + r * stride + c, width - c);
            store(row + c, value);
            total += value;
        }
        const float mean = sum(total) / static_cast<float>(width);
        vf squares = zero();
        for (int64_t c = 0; c < width; c += W) {
            const vf centred = inside(c, width, load(row + c) - mean);
            store(row + c, centred);
            squares += centred * centred;
        }
        const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + eps);
        for (int64_t c = 0; c < width; c += W) store(row + c, load(row + c) * scale);
        if (inverse) inverse[r] = scale;
    }
}

// Gradient through `normalize` in place: d -> (d - mean(d) - n mean(d n)) / sqrt(...).
inline void normalize_backward(const float* normalized, const float* inverse, int64_t count, int64_t width, float* d, int64_t pad) {
    for (int64_t r = 0; r < count; ++r) {
        const float* n = normalized + r * pad;
        float* row = d + r * pad;
        vf plain = zero(), along = zero();
        for (int64_t c = 0; c < width; c += W) {
            plain += load(row + c);
            along += load(row + c) * load(n + c);
        }
        const float mean = sum(plain) / static_cast<float>(width), slope = sum(along) / static_cast<float>(width);
        for (int64_t c = 0; c < width; c += W) store(row + c, inside(c, width, (load(row + c) - mean - load(n + c) * slope) * inverse[r]));
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

HEADRACE_INLINE vf silu(vf x) { return x * sigmoid(x); }
HEADRACE_INLINE vf silu_slope(vf x) {
    const vf gate = sigmoid(x), activated = x * gate;
    return gate + activated - activated * gate;
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

void add_up(const float* chunks, int64_t num_chunks, int64_t rows, int64_t columns, int64_t width, float* weight, float* bias, float* norm_weight,
            float* norm_bias) {
    const int64_t size = Sums::size(rows, columns, width), ld = round_up(columns, PAD);
    auto total = [&](int64_t at) {
        float x = 0;
        for (int64_t c = 0; c < num_chunks; ++c) x += chunks[c * size + at];
        return x;
    };
    const Sums at(nullptr, rows, columns, width);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) weight[r * columns + c] = total(r * ld + c);
    for (int64_t c = 0; bias && c < columns; ++c) bias[c] = total(at.bias - at.weight + c);
    for (int64_t c = 0; c < width; ++c) {
        norm_weight[c] = total(at.norm_weight - at.weight + c);
        norm_bias[c] = total(at.norm_bias - at.weight + c);
    }
}

// Normalized rows times the norm's weight plus its bias.
inline void affine(const float* normalized, const float* weight, const float* bias, int64_t count, int64_t width, float* to, int64_t pad) {
    for (int64_t r = 0; r < count; ++r)
        for (int64_t c = 0; c < width; c += W) store(to + r * pad + c, load(normalized + r * pad + c) * load(weight + c) + load(bias + c));
}

HEADRACE_END
