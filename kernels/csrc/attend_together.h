// Forward attention of new tokens that all see the same keys under the same biases: a server's candidates, which see a
// history and themselves. Lanes are queries, so nothing is masked, a key's bias is one number, and all products have
// whole vectors.
#pragma once

#include "bias.h"
#include "rows.h"

HEADRACE_BEGIN

#if defined(__AVX512F__)
constexpr int TOGETHER_M = 8, TOGETHER_N = 3;  // 24 accumulators of 32 registers
#else
constexpr int TOGETHER_M = 4, TOGETHER_N = 2;  // 8 of 16
#endif
constexpr int64_t TOGETHER_QUERIES = TOGETHER_N * W;
constexpr int64_t TOGETHER_KEYS = 64;  // a multiple of TOGETHER_M: their scores stay in the first cache

// Of t = -s / ln 2: SiLU(s) = s / (1 + 2^t) up to the same factor. Queries and biases come multiplied by it, outputs
// are divided.
constexpr float MINUS_LOG2E = -1.44269504f;
HEADRACE_INLINE vf activated(vf t) { return t * reciprocal(1.0f + exp2<5>(smaller(t, splat(126.0f)))); }

struct TogetherScratch {
    float *keys, *values, *bias;  // packed rows, padded with zeros; a bias for each
    float *rows, *q, *k, *v;  // a block of queries: as rows, and queries, own keys and own values with queries as lanes
    float *weight, *out;

    void lay_out(Arena& arena, int64_t most_keys, int64_t qk_pad, int64_t v_pad) {
        const int64_t cols = round_up(most_keys, TOGETHER_KEYS), widest = max64(qk_pad, v_pad);
        keys = arena.get<float>(cols * qk_pad);
        values = arena.get<float>(cols * v_pad);
        bias = arena.get<float>(cols);
        rows = arena.get<float>(TOGETHER_QUERIES * widest);
        q = arena.get<float>(TOGETHER_QUERIES * qk_pad);
        k = arena.get<float>(TOGETHER_QUERIES * qk_pad);
        v = arena.get<float>(TOGETHER_QUERIES * v_pad);
        weight = arena.get<float>(TOGETHER_KEYS * TOGETHER_QUERIES);
        out = arena.get<float>(TOGETHER_QUERIES * v_pad);
    }
};

// Whether all new tokens of an item are targets with the same row of buckets, and biases do not depend on positions.
inline bool is_together(const Item& item, const BiasTables& tables) {
    if (item.targets != item.queries || item.context || tables.pos || item.queries < W) return false;
    for (int64_t i = 1; tables.time && i < item.queries; ++i)
        if (item.bucket_row[i] != item.bucket_row[0]) return false;
    return true;
}

// C[M, TOGETHER_QUERIES] (+)= A B, where A's element (m, p) is at a[m * a_row + p * a_step]; else C begins with
// `bias`[m].
template <bool ADD>
HEADRACE_INLINE void product_together(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t depth,
                                      const float* bias, float* c) {
    vf sums[TOGETHER_M][TOGETHER_N];
#pragma GCC unroll 8
    for (int m = 0; m < TOGETHER_M; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < TOGETHER_N; ++n) sums[m][n] = ADD ? load(c + m * TOGETHER_QUERIES + n * W) : splat(bias[m]);
    for (int64_t p = 0; p < depth; ++p) {
        vf row[TOGETHER_N];
#pragma GCC unroll 4
        for (int n = 0; n < TOGETHER_N; ++n) row[n] = load(b + p * TOGETHER_QUERIES + n * W);
#pragma GCC unroll 8
        for (int m = 0; m < TOGETHER_M; ++m) {
            const vf x = splat(a[m * a_row + p * a_step]);
#pragma GCC unroll 4
            for (int n = 0; n < TOGETHER_N; ++n) sums[m][n] = fma(x, row[n], sums[m][n]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < TOGETHER_M; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < TOGETHER_N; ++n) store(c + m * TOGETHER_QUERIES + n * W, sums[m][n]);
}

// `count` rows of a tensor from `first` on, times `scale`, as columns of TOGETHER_QUERIES lanes; lanes without a row
// are zero.
template <typename T>
void load_across(const HeadraceTensor& tensor, const Item& item, int64_t first, int64_t count, int64_t width,
                 int64_t pad, float scale, float* rows, float* to) {
    const T* source = static_cast<const T*>(tensor.data) + (item.first + first) * tensor.row + item.head * tensor.head;
    for (int64_t i = 0; i < TOGETHER_QUERIES; ++i)
        for (int64_t d = 0; d < pad; d += W)
            store(rows + i * pad + d, i < count ? load_some(source + i * tensor.row + d, width - d) * scale : zero());
    for (int64_t i = 0; i < TOGETHER_QUERIES; i += W)
        for (int64_t d = 0; d < pad; d += W)
            transpose_block(rows + i * pad + d, pad, to + d * TOGETHER_QUERIES + i, TOGETHER_QUERIES);
}

template <typename T>
void pack_cached(const HeadraceAttention& a, const Item& item, const HeadraceTensor& cache, int64_t width, int64_t pad,
                 float* to) {
    const T* source = item.cached ? rows_of<T>(cache, a.cache_start[item.user], item.head) : nullptr;
    for (int64_t j = 0; j < item.cached; ++j)
        for (int64_t d = 0; d < pad; d += W) store(to + j * pad + d, load_some(source + j * cache.row + d, width - d));
    memset(to + item.cached * pad, 0, sizeof(float) * (round_up(item.cached, TOGETHER_KEYS) - item.cached) * pad);
}

// Keys [from, to) → their biases times MINUS_LOG2E, padded with zeros; zeros without time biases.
inline void biases_together(const Item& item, const BiasTables& tables, int64_t from, int64_t to, int64_t padded,
                            float* bias) {
    memset(bias, 0, sizeof(float) * padded);
    if (!tables.time) return;
    const float* table = tables.time_row(item);
    for (int64_t j = from; j < to; ++j)
        bias[j - from] =
            MINUS_LOG2E *
            table[tables.bucket_bytes == 1 ? item.buckets_of<uint8_t>(0)[j] : item.buckets_of<uint16_t>(0)[j]];
}

template <typename T>
void forward_together(const HeadraceAttention& a, const Item& item, const BiasTables& tables, TogetherScratch& s) {
    const int64_t qk_pad = round_up(a.qk_dim, W), v_pad = round_up(a.v_dim, W);
    pack_cached<T>(a, item, a.cache_k, a.qk_dim, qk_pad, s.keys);
    pack_cached<T>(a, item, a.cache_v, a.v_dim, v_pad, s.values);
    biases_together(item, tables, 0, item.cached, round_up(item.cached, TOGETHER_KEYS), s.bias);
    for (int64_t i0 = 0; i0 < item.queries; i0 += TOGETHER_QUERIES) {
        const int64_t count = min64(TOGETHER_QUERIES, item.queries - i0);
        load_across<T>(a.q, item, i0, count, a.qk_dim, qk_pad, MINUS_LOG2E, s.rows, s.q);
        load_across<T>(a.k, item, i0, count, a.qk_dim, qk_pad, 1.0f, s.rows, s.k);
        load_across<T>(a.v, item, i0, count, a.v_dim, v_pad, 1.0f, s.rows, s.v);
        memset(s.out, 0, sizeof(float) * TOGETHER_QUERIES * v_pad);
        for (int64_t j0 = 0; j0 < item.cached; j0 += TOGETHER_KEYS) {
            const int64_t keys = min64(TOGETHER_KEYS, round_up(item.cached - j0, TOGETHER_M));
            for (int64_t j = 0; j < keys; j += TOGETHER_M)
                product_together<false>(s.keys + (j0 + j) * qk_pad, qk_pad, 1, s.q, a.qk_dim, s.bias + j0 + j,
                                        s.weight + j * TOGETHER_QUERIES);
            for (int64_t at = 0; at < keys * TOGETHER_QUERIES; at += W)
                store(s.weight + at, activated(load(s.weight + at)));
            for (int64_t e = 0; e < v_pad; e += TOGETHER_M)
                product_together<true>(s.values + j0 * v_pad + e, 1, v_pad, s.weight, keys, nullptr,
                                       s.out + e * TOGETHER_QUERIES);
        }
        float own_bias[TOGETHER_QUERIES];
        biases_together(item, tables, item.cached + i0, item.cached + i0 + count, TOGETHER_QUERIES, own_bias);
        for (int64_t i = 0; i < TOGETHER_QUERIES; i += W) {
            vf own = load(own_bias + i);
            for (int64_t d = 0; d < a.qk_dim; ++d)
                own = fma(load(s.q + d * TOGETHER_QUERIES + i), load(s.k + d * TOGETHER_QUERIES + i), own);
            own = activated(own);
            for (int64_t e = 0; e < v_pad; ++e) {
                float* sum = s.out + e * TOGETHER_QUERIES + i;
                store(sum, fma(own, load(s.v + e * TOGETHER_QUERIES + i), load(sum)));
            }
            for (int64_t e = 0; e < v_pad; e += W)
                transpose_block(s.out + e * TOGETHER_QUERIES + i, TOGETHER_QUERIES, s.rows + i * v_pad + e, v_pad);
        }
        unpack<T>(a.out, item, i0, count, a.v_dim, s.rows, v_pad, static_cast<float>(a.scale / MINUS_LOG2E));
    }
}

HEADRACE_END
