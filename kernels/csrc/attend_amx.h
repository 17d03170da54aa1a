// One (user, head) of HSTU attention in bfloat16 on AMX tiles; what attend.h is for vectors, with the same names.
//
// A tile product is C[16, 16] += A[16, 32] B[32, 16], B given as 16 rows of 16 pairs. An item packs its operands once: rows
// of bfloat16 (left operands), pairs of neighbouring rows in one word (right operands), and words turned (right operands of
// transposed products, left operands of transposed results). The gradients of keys and values are summed transposed, so
// that the tile of weights is a right operand as it stands: it is never transposed.
// Scores, activations and sums are float32; weights and slopes are rounded to bfloat16 on their way into a product.
#pragma once

#include <immintrin.h>

#include "attention.h"
#include "pairs.h"
#include "rows.h"
#include "simd.h"

HEADRACE_BEGIN

constexpr int64_t ROWS = 32;
constexpr int64_t COLS = 64;
constexpr int64_t GROUPS = ROWS / MR;
constexpr int64_t DEPTH = 32;  // of a tile product

struct Tiles {  // the thread's tile registers: all 16 rows of 64 bytes
    Tiles() {
        alignas(64) uint8_t config[64] = {};
        config[0] = 1;
        for (int t = 0; t < 8; ++t) {
            config[16 + 2 * t] = 64;
            config[48 + t] = 16;
        }
        _tile_loadconfig(config);
    }
    ~Tiles() { _tile_release(); }
};

struct Shape {
    int64_t rows, cols, qk_pad, v_pad;
};

typedef uint32_t word;  // two bfloat16

struct Scratch {
    bf16 *q, *k, *v, *grad;               // rows
    word *k_turned, *v_turned;            // (tile of COLS keys, pair of dimensions, COLS)
    word *k_pairs, *v_pairs, *pairs_of;   // (pair of rows, dimension)
    bf16 *q_across, *grad_across;         // (dimension, query)
    float *weight, *slope;                // (ROWS, COLS)
    bf16 *weight_rows, *slope_rows;       // (ROWS, COLS)
    word *weight_pairs, *slope_pairs;     // (ROWS / 2, COLS)
    float *out, *dq, *dk_across, *dv_across, *turned;
    PairScratch pairs;

    void lay_out(Arena& arena, const Shape& s, bool backward, const HeadraceAttention& a) {
        q = arena.get<bf16>(s.rows * s.qk_pad);
        k = arena.get<bf16>(s.cols * s.qk_pad);
        v = arena.get<bf16>(s.cols * s.v_pad);
        k_turned = arena.get<word>(s.cols * s.qk_pad / 2);
        v_pairs = backward ? nullptr : arena.get<word>(s.cols / 2 * s.v_pad);
        weight = arena.get<float>(ROWS * COLS);
        weight_rows = arena.get<bf16>(ROWS * COLS);
        out = backward ? nullptr : arena.get<float>(ROWS * s.v_pad);
        if (backward) {
            grad = arena.get<bf16>(s.rows * s.v_pad);
            v_turned = arena.get<word>(s.cols * s.v_pad / 2);
            k_pairs = arena.get<word>(s.cols / 2 * s.qk_pad);
            pairs_of = arena.get<word>(s.rows / 2 * max64(s.qk_pad, s.v_pad));
            q_across = arena.get<bf16>(s.rows * s.qk_pad);
            grad_across = arena.get<bf16>(s.rows * s.v_pad);
            slope = arena.get<float>(ROWS * COLS);
            slope_rows = arena.get<bf16>(ROWS * COLS);
            weight_pairs = arena.get<word>(ROWS / 2 * COLS);
            slope_pairs = arena.get<word>(ROWS / 2 * COLS);
            dq = arena.get<float>(s.rows * s.qk_pad);
            dk_across = arena.get<float>(s.qk_pad * s.cols);
            dv_across = arena.get<float>(s.v_pad * s.cols);
            turned = arena.get<float>(s.cols * max64(s.qk_pad, s.v_pad));
        }
        pairs.lay_out(arena, s.rows, s.cols, backward, a);
    }
};

Shape widest(const HeadraceAttention& a, const Plan& plan) {
    return {round_up(plan.most_queries, ROWS), round_up(plan.most_keys, COLS), round_up(a.qk_dim, DEPTH), round_up(a.v_dim, DEPTH)};
}

HEADRACE_INLINE __m256i round_row(vf x) { return (__m256i)_mm512_cvtneps_pbh((__m512)x); }

// Rows to bfloat16, padded with zeros; `total` rows in all.
template <typename T>
void pack_rows(const T* source, int64_t stride, int64_t count, int64_t width, bf16* to, int64_t pad, bool activate_too) {
    for (int64_t i = 0; i < count; ++i) {
        prefetch_row(source + (i + 16) * stride, width * static_cast<int64_t>(sizeof(T)));
        for (int64_t d = 0; d < pad; d += W) {
            const vf x = d < width ? load_some(source + i * stride + d, width - d) : zero();
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * pad + d), round_row(activate_too ? x * sigmoid(x) : x));
        }
    }
}

// What is bfloat16 already is copied.
inline void pack_rows(const bf16* source, int64_t stride, int64_t count, int64_t width, bf16* to, int64_t pad, bool) {
    for (int64_t i = 0; i < count; ++i) {
        prefetch_row(source + (i + 16) * stride, width * 2);
        for (int64_t d = 0; d < pad; d += 32) {
            const __mmask32 mask = d + 32 <= width ? ~0u : d < width ? (1u << (width - d)) - 1 : 0;
            _mm512_storeu_si512(to + i * pad + d, _mm512_maskz_loadu_epi16(mask, source + i * stride + d));
        }
    }
}

template <typename T>
void pack_keys(const HeadraceAttention& a, const Item& item, const HeadraceTensor& cache, const HeadraceTensor& fresh, int64_t width, bf16* to,
               int64_t pad, int64_t total) {
    if (item.cached) pack_rows(rows_of<T>(cache, a.cache_start[item.user], item.head), cache.row, item.cached, width, to, pad, false);
    pack_rows(rows_of<T>(fresh, item.first, item.head), fresh.row, item.queries, width, to + item.cached * pad, pad, a.preactivated);
    memset(to + item.keys * pad, 0, sizeof(bf16) * (total - item.keys) * pad);
}

template <typename T>
void pack_queries(bool activate_too, const Item& item, const HeadraceTensor& tensor, int64_t width, bf16* to, int64_t pad, int64_t total) {
    pack_rows(rows_of<T>(tensor, item.first, item.head), tensor.row, item.queries, width, to, pad, activate_too);
    memset(to + item.queries * pad, 0, sizeof(bf16) * (total - item.queries) * pad);
}

// Words of rows, turned: (tile of COLS rows, word, COLS).
inline void turn(const bf16* rows, int64_t pad, int64_t count, word* turned) {
    const float* words = reinterpret_cast<const float*>(rows);  // moved, not computed with
    float* to = reinterpret_cast<float*>(turned);
    for (int64_t j0 = 0; j0 < count; j0 += COLS)
        for (int64_t d = 0; d < pad / 2; d += W)
            for (int64_t j = 0; j < COLS; j += W)
                transpose_block(words + (j0 + j) * (pad / 2) + d, pad / 2, to + j0 * (pad / 2) + d * COLS + j, COLS);
}

// Neighbouring rows in one word: (pair, dimension).
inline void pair_up(const bf16* rows, int64_t pad, int64_t count, word* pairs) {
    for (int64_t i = 0; i < count; i += 2)
        for (int64_t d = 0; d < pad; d += W) {
            const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + i * pad + d)));
            const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + (i + 1) * pad + d)));
            _mm512_storeu_si512(pairs + i / 2 * pad + d, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
        }
}

// Rows transposed, by way of pairs: (dimension, count).
inline void across(const bf16* rows, int64_t pad, int64_t count, word* pairs, bf16* to) {
    pair_up(rows, pad, count, pairs);
    for (int64_t i = 0; i < count / 2; i += W)
        for (int64_t d = 0; d < pad; d += W)
            transpose_block(reinterpret_cast<const float*>(pairs + i * pad + d), pad, reinterpret_cast<float*>(to + d * count + 2 * i), count / 2);
}

// C[32, 32] (+)= A[32, 32 steps] B[32 steps, 32]; strides in bytes. One of two column blocks can be left out.
inline void tile_block(const bf16* a, int64_t a_row, const word* b, int64_t b_row, int64_t b_step, int64_t steps, float* c, int64_t c_row, bool add,
                       bool both) {
    const char* a1 = reinterpret_cast<const char*>(a) + 16 * a_row;
    char *c0 = reinterpret_cast<char*>(c), *c1 = c0 + 16 * c_row;
    if (add) {
        _tile_loadd(0, c0, c_row);
        _tile_loadd(1, c1, c_row);
        if (both) {
            _tile_loadd(2, c0 + 64, c_row);
            _tile_loadd(3, c1 + 64, c_row);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t s = 0; s < steps; ++s) {
        const char* right = reinterpret_cast<const char*>(b) + s * b_step;
        _tile_loadd(4, reinterpret_cast<const char*>(a) + s * 64, a_row);
        _tile_loadd(5, a1 + s * 64, a_row);
        _tile_loadd(6, right, b_row);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        if (both) {
            _tile_loadd(7, right + 64, b_row);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c0, c_row);
    _tile_stored(1, c1, c_row);
    if (both) {
        _tile_stored(2, c0 + 64, c_row);
        _tile_stored(3, c1 + 64, c_row);
    }
}

// C[32 m, n] (+)= A B, n rounded up to 16; strides in elements.
inline void tile_product(const bf16* a, int64_t a_row, const word* b, int64_t b_row, int64_t steps, float* c, int64_t c_row, int64_t m, int64_t n,
                         bool add) {
    for (int64_t column = 0; column < n; column += 32)
        for (int64_t r = 0; r < m; r += 32)
            tile_block(a + r * a_row, a_row * 2, b + column, b_row * 4, 16 * b_row * 4, steps, c + r * c_row + column, c_row * 4, add,
                       n - column > 16);
}

// A tile of weights or slopes as rows and as pairs of rows.
inline void round_tile(const float* tile, bf16* rows, word* pairs) {
    for (int64_t r = 0; r < ROWS; r += 2)
        for (int64_t c = 0; c < COLS; c += W) {
            const __m256i even = round_row(load(tile + r * COLS + c)), odd = round_row(load(tile + (r + 1) * COLS + c));
            if (rows) {
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + r * COLS + c), even);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + (r + 1) * COLS + c), odd);
            }
            if (pairs)
                _mm512_storeu_si512(pairs + r / 2 * COLS + c,
                                    _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16)));
        }
}

inline void clear_past(float* rows, int64_t from) {
    for (int64_t r = 0; r < MR && from < COLS; ++r) memset(rows + r * COLS + from, 0, sizeof(float) * (COLS - from));
}

template <typename T>
void forward_item(const HeadraceAttention& a, const Item& item, const PairTables& tables, Scratch& s) {
    const int64_t qk_pad = round_up(a.qk_dim, DEPTH), v_pad = round_up(a.v_dim, DEPTH);
    const int64_t rows = round_up(item.queries, ROWS), cols = round_up(item.keys, COLS);
    pack_keys<T>(a, item, a.cache_k, a.k, a.qk_dim, s.k, qk_pad, cols);
    turn(s.k, qk_pad, cols, s.k_turned);
    pack_keys<T>(a, item, a.cache_v, a.v, a.v_dim, s.v, v_pad, cols);
    pair_up(s.v, v_pad, cols, s.v_pairs);
    pack_queries<T>(a.preactivated, item, a.q, a.qk_dim, s.q, qk_pad, rows);
    const float scale = static_cast<float>(a.scale);
    for (int64_t i0 = 0; i0 < item.queries; i0 += ROWS) {
        memset(s.out, 0, sizeof(float) * ROWS * v_pad);
        prefetch_buckets(item, tables, i0 + ROWS, 0, ROWS);
        for (int64_t j0 = 0; j0 < item.keys; j0 += COLS) {
            prefetch_buckets(item, tables, i0, j0 + COLS, ROWS);
            Group groups[GROUPS];
            int64_t width = 0;
            for (int64_t g = 0; g < GROUPS; ++g) {
                groups[g] = see(item, i0 + g * MR, j0, COLS);
                width = max64(width, groups[g].width);
            }
            if (width == 0) continue;
            tile_product(s.q + i0 * qk_pad, qk_pad, s.k_turned + j0 * (qk_pad / 2), COLS, qk_pad / DEPTH, s.weight, COLS, ROWS, width, false);
            for (int64_t g = 0; g < GROUPS; ++g) {
                const int64_t vectors = (groups[g].width + W - 1) / W;
                clear_past(s.weight + g * MR * COLS, vectors * W);
                if (vectors) activate(item, tables, groups[g], s.weight + g * MR * COLS, COLS, vectors, scale);
            }
            round_tile(s.weight, s.weight_rows, nullptr);
            tile_product(s.weight_rows, COLS, s.v_pairs + j0 / 2 * v_pad, v_pad, (width + DEPTH - 1) / DEPTH, s.out, v_pad, ROWS, v_pad, true);
        }
        unpack<T>(a.out, item, i0, min64(ROWS, item.queries - i0), a.v_dim, s.out, v_pad);
    }
}

template <typename T>
void backward_item(const HeadraceAttention& a, const Item& item, const PairTables& tables, Scratch& s, PairGrads& grads) {
    const int64_t qk_pad = round_up(a.qk_dim, DEPTH), v_pad = round_up(a.v_dim, DEPTH);
    const int64_t rows = round_up(item.queries, ROWS), cols = round_up(item.keys, COLS);
    pack_keys<T>(a, item, a.cache_k, a.k, a.qk_dim, s.k, qk_pad, cols);
    turn(s.k, qk_pad, cols, s.k_turned);
    pair_up(s.k, qk_pad, cols, s.k_pairs);
    pack_keys<T>(a, item, a.cache_v, a.v, a.v_dim, s.v, v_pad, cols);
    turn(s.v, v_pad, cols, s.v_turned);
    pack_queries<T>(a.preactivated, item, a.q, a.qk_dim, s.q, qk_pad, rows);
    across(s.q, qk_pad, rows, s.pairs_of, s.q_across);
    pack_queries<T>(false, item, a.grad, a.v_dim, s.grad, v_pad, rows);
    across(s.grad, v_pad, rows, s.pairs_of, s.grad_across);
    memset(s.dq, 0, sizeof(float) * rows * qk_pad);
    memset(s.dk_across, 0, sizeof(float) * cols * qk_pad);
    memset(s.dv_across, 0, sizeof(float) * cols * v_pad);
    grads.open(s.pairs, item);
    const float scale = static_cast<float>(a.scale);
    for (int64_t j0 = 0; j0 < item.keys; j0 += COLS)
        for (int64_t i0 = 0; i0 < item.queries; i0 += ROWS) {
            prefetch_buckets(item, tables, i0 + ROWS, j0, ROWS);
            Group groups[GROUPS];
            int64_t width = 0;
            for (int64_t g = 0; g < GROUPS; ++g) {
                groups[g] = see(item, i0 + g * MR, j0, COLS);
                width = max64(width, groups[g].width);
            }
            if (width == 0) continue;
            tile_product(s.q + i0 * qk_pad, qk_pad, s.k_turned + j0 * (qk_pad / 2), COLS, qk_pad / DEPTH, s.weight, COLS, ROWS, width, false);
            tile_product(s.grad + i0 * v_pad, v_pad, s.v_turned + j0 * (v_pad / 2), COLS, v_pad / DEPTH, s.slope, COLS, ROWS, width, false);
            for (int64_t g = 0; g < GROUPS; ++g) {
                float *weight = s.weight + g * MR * COLS, *slope = s.slope + g * MR * COLS;
                const int64_t vectors = (groups[g].width + W - 1) / W;
                clear_past(weight, vectors * W);
                clear_past(slope, vectors * W);
                if (vectors) activate_backward(item, tables, groups[g], weight, slope, COLS, vectors, scale, s.pairs);
            }
            time_gradient(item, tables, i0, j0, min64(ROWS, item.queries - i0), min64(COLS, round_up(item.keys - j0, W)), s.slope, COLS, grads);
            round_tile(s.weight, nullptr, s.weight_pairs);
            round_tile(s.slope, s.slope_rows, s.slope_pairs);
            tile_product(s.slope_rows, COLS, s.k_pairs + j0 / 2 * qk_pad, qk_pad, (width + DEPTH - 1) / DEPTH, s.dq + i0 * qk_pad, qk_pad, ROWS,
                         qk_pad, true);
            tile_product(s.grad_across + i0, rows, s.weight_pairs, COLS, 1, s.dv_across + j0, cols, v_pad, width, true);
            tile_product(s.q_across + i0, rows, s.slope_pairs, COLS, 1, s.dk_across + j0, cols, qk_pad, width, true);
        }
    grads.close(s.pairs, item);
    unpack_grad<T>(a, a.dq, a.q, item, a.qk_dim, s.dq, qk_pad);
    for (int64_t j = 0; j < cols; j += W)
        for (int64_t d = 0; d < qk_pad; d += W) transpose_block(s.dk_across + d * cols + j, cols, s.turned + j * qk_pad + d, qk_pad);
    unpack_grad<T>(a, a.dk, a.k, item, a.qk_dim, s.turned + item.cached * qk_pad, qk_pad);
    for (int64_t j = 0; j < cols; j += W)
        for (int64_t d = 0; d < v_pad; d += W) transpose_block(s.dv_across + d * cols + j, cols, s.turned + j * v_pad + d, v_pad);
    unpack_grad<T>(a, a.dv, a.v, item, a.v_dim, s.turned + item.cached * v_pad, v_pad);
}

HEADRACE_END
