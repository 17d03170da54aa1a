// One (user, head) of HSTU attention, forward and backward: shared by level/attention.cpp and level/layer.cpp.
//
// An item is cut into tiles of ROWS queries x COLS keys. Its operands are packed once (rows padded to whole vectors;
// keys and values also transposed, tile by tile), so that all seven products are the same register-blocked loop of
// simd.h. Groups of MR rows skip keys that they cannot see, so the upper triangle costs next to nothing.
#pragma once

#include "ahead.h"
#include "bias_grad.h"
#include "rows.h"
#include "simd.h"

HEADRACE_BEGIN

constexpr int64_t ROWS = 48;  // a multiple of MR
constexpr int64_t COLS = 48;  // a multiple of W and of MR
constexpr int64_t GROUPS = ROWS / MR;

struct TileRegisters {};  // nothing to configure here

struct Shape {  // of a scratch: the widest item
    int64_t rows, cols, qk_pad, v_pad;
};

struct Scratch {
    float *q, *k, *v, *grad;     // packed rows, padded with zeros
    float *k_turned, *v_turned;  // (tile, width, COLS)
    float *weight, *slope;       // one tile: A and dS
    float *out, *dq, *dk, *dv;   // accumulators of a tile of rows, or of the whole item
    BiasScratch pairs;

    void lay_out(Arena& arena, const Shape& s, bool backward, const HeadraceAttention& a) {
        q = arena.get<float>(s.rows * s.qk_pad);
        k = backward ? arena.get<float>(s.cols * s.qk_pad) : nullptr;
        k_turned = arena.get<float>(s.cols * s.qk_pad);
        v = backward ? nullptr : arena.get<float>(s.cols * s.v_pad);
        v_turned = backward ? arena.get<float>(s.cols * s.v_pad) : nullptr;
        grad = backward ? arena.get<float>(s.rows * s.v_pad) : nullptr;
        weight = arena.get<float>(ROWS * COLS);
        slope = backward ? arena.get<float>(ROWS * COLS) : nullptr;
        out = backward ? nullptr : arena.get<float>(ROWS * s.v_pad);
        dq = backward ? arena.get<float>(s.rows * s.qk_pad) : nullptr;
        dk = backward ? arena.get<float>(s.cols * s.qk_pad) : nullptr;
        dv = backward ? arena.get<float>(s.cols * s.v_pad) : nullptr;
        pairs.lay_out(arena, s.rows, s.cols, backward, a);
    }
};

// Copies rows of a tensor into a packed array of whole vectors, padded with zeros.
template <typename T>
void pack_rows(const T* source, int64_t stride, int64_t count, int64_t width, float* to, int64_t pad) {
    for (int64_t i = 0; i < count; ++i)
        for (int64_t d = 0; d < pad; d += W) store(to + i * pad + d, load_some(source + i * stride + d, width - d));
}

// Packed rows into column tiles: turned[(j / COLS), d, j % COLS].
inline void turn(const float* rows, int64_t pad, int64_t count, float* turned) {
    for (int64_t j0 = 0; j0 < count; j0 += COLS)
        for (int64_t d = 0; d < pad; d += W)
            for (int64_t j = 0; j < COLS; j += W)
                transpose_block(rows + (j0 + j) * pad + d, pad, turned + j0 * pad + d * COLS + j, COLS);
}

// Keys or values of an item: the cache's rows, then the new ones, then zeros up to `total`.
template <typename T>
void pack_keys(const HeadraceAttention& a, const Item& item, const HeadraceTensor& cache, const HeadraceTensor& fresh,
               int64_t width, float* to, int64_t pad, int64_t total) {
    if (item.cached)
        pack_rows(rows_of<T>(cache, a.cache_start[item.user], item.head), cache.row, item.cached, width, to, pad);
    pack_rows(rows_of<T>(fresh, item.first, item.head), fresh.row, item.queries, width, to + item.cached * pad, pad);
    memset(to + item.keys * pad, 0, sizeof(float) * (total - item.keys) * pad);
}

template <typename T>
void pack_queries(const Item& item, const HeadraceTensor& tensor, int64_t width, float* to, int64_t pad,
                  int64_t total) {
    pack_rows(rows_of<T>(tensor, item.first, item.head), tensor.row, item.queries, width, to, pad);
    memset(to + item.queries * pad, 0, sizeof(float) * (total - item.queries) * pad);
}

// ---- scores to weights ----

template <typename B>
HEADRACE_INLINE void weigh_rows(const B& biases, const Group& group, float* scores, int64_t vectors) {
    for (int r = 0; r < MR; ++r) {
        float* row = scores + r * COLS;
        if (r >= group.valid) {
            memset(row, 0, sizeof(float) * vectors * W);
            continue;
        }
        const auto pos = biases.pos(r);
        const auto buckets = biases.buckets(r);
        for (int64_t column = 0; column < vectors * W; column += W) {
            const vf s = biases.added(load(row + column), pos, buckets, column);
            vf weight = s * sigmoid(s);
            if (column + W > group.whole) weight = keep_seen(group, r, column, weight);
            store(row + column, weight);
        }
    }
}

// A group's scores → weights, in place.
inline void weigh(const Item& item, const BiasTables& tables, const Group& group, float* scores, int64_t vectors) {
    with_biases(item, tables, group,
                [&](const auto& biases) __attribute__((always_inline)) { weigh_rows(biases, group, scores, vectors); });
}

template <typename B>
HEADRACE_INLINE void slope_rows(const B& biases, const Item& item, const Group& group, float* weights, float* slopes,
                                int64_t vectors, const BiasScratch& scratch) {
    for (int r = 0; r < MR; ++r, weights += COLS, slopes += COLS) {
        if (r >= group.valid) {
            memset(weights, 0, sizeof(float) * vectors * W);
            memset(slopes, 0, sizeof(float) * vectors * W);
            continue;
        }
        const auto pos = biases.pos(r);
        const auto buckets = biases.buckets(r);
        float* pos_grad = B::HAS_POS ? BiasGrads::row(scratch, item, group.query + r, group.j0) : nullptr;
        for (int64_t column = 0; column < vectors * W; column += W) {
            const vf s = biases.added(load(weights + column), pos, buckets, column);
            const vf gate = sigmoid(s), activated = s * gate;
            vf weight = activated, slope = load(slopes + column) * silu_slope(gate, activated);
            if (column + W > group.whole) {
                weight = keep_seen(group, r, column, weight);
                slope = keep_seen(group, r, column, slope);
            }
            store(weights + column, weight);
            store(slopes + column, slope);
            if (B::HAS_POS) store(pos_grad + column, load(pos_grad + column) + slope);
        }
    }
}

// A group's scores and products of gradients → weights and slopes, in place.
inline void weigh_backward(const Item& item, const BiasTables& tables, const Group& group, float* weights,
                           float* slopes, int64_t vectors, const BiasScratch& scratch) {
    with_biases(item, tables, group, [&](const auto& biases) __attribute__((always_inline)) {
        slope_rows(biases, item, group, weights, slopes, vectors, scratch);
    });
}

// ---- an item ----

template <typename T, int TERMS>
void forward_item(const HeadraceAttention& a, const Item& item, const BiasTables& tables, Scratch& s, Ahead& ahead) {
    const int64_t qk_pad = round_up(a.qk_dim, W), v_pad = round_up(a.v_dim, W);
    const int64_t rows = round_up(item.queries, ROWS), cols = round_up(item.keys, COLS);
    float* keys = s.q;  // the keys' rows are only needed for transposing: the queries overwrite them
    pack_keys<T>(a, item, a.cache_k, a.k, a.qk_dim, keys, qk_pad, cols);
    turn(keys, qk_pad, cols, s.k_turned);
    pack_keys<T>(a, item, a.cache_v, a.v, a.v_dim, s.v, v_pad, cols);
    pack_queries<T>(item, a.q, a.qk_dim, s.q, qk_pad, rows);
    ahead.pace(num_groups(item, COLS));
    for (int64_t i0 = 0; i0 < item.queries; i0 += ROWS) {
        memset(s.out, 0, sizeof(float) * ROWS * v_pad);
        for (int64_t j0 = 0; j0 < item.keys; j0 += COLS) {
            for (int64_t g = 0; g < GROUPS && i0 + g * MR < item.queries; ++g) {
                Group group;
                see(item, i0 + g * MR, j0, COLS, group);
                if (group.width == 0) continue;
                ahead.step();
                prefetch_buckets(item, tables, i0 + g * MR, j0 + COLS, MR);
                const int64_t vectors = (group.width + W - 1) / W;
                float* scores = s.weight + g * MR * COLS;
                gemm_rows(s.q + (i0 + g * MR) * qk_pad, qk_pad, 1, s.k_turned + j0 * qk_pad, COLS, a.qk_dim, scores,
                          COLS, vectors, false);
                weigh(item, tables, group, scores, vectors);
                gemm_rows(scores, COLS, 1, s.v + j0 * v_pad, v_pad, group.width, s.out + g * MR * v_pad, v_pad,
                          v_pad / W, true);
            }
        }
        unpack<T>(a.out, item, i0, min64(ROWS, item.queries - i0), a.v_dim, s.out, v_pad, static_cast<float>(a.scale));
    }
}

template <typename T, int TERMS>
void backward_item(const HeadraceAttention& a, const Item& item, const BiasTables& tables, Scratch& s, BiasGrads& grads,
                   const Through* through, Ahead& ahead) {
    const int64_t qk_pad = round_up(a.qk_dim, W), v_pad = round_up(a.v_dim, W);
    const int64_t rows = round_up(item.queries, ROWS), cols = round_up(item.keys, COLS);
    pack_keys<T>(a, item, a.cache_v, a.v, a.v_dim, s.dv, v_pad, cols);
    turn(s.dv, v_pad, cols, s.v_turned);
    pack_keys<T>(a, item, a.cache_k, a.k, a.qk_dim, s.k, qk_pad, cols);
    turn(s.k, qk_pad, cols, s.k_turned);
    pack_queries<T>(item, a.q, a.qk_dim, s.q, qk_pad, rows);
    pack_queries<T>(item, a.grad, a.v_dim, s.grad, v_pad, rows);
    memset(s.dq, 0, sizeof(float) * rows * qk_pad);
    memset(s.dk, 0, sizeof(float) * cols * qk_pad);
    memset(s.dv, 0, sizeof(float) * cols * v_pad);
    grads.open(s.pairs, item);
    ahead.pace(num_groups(item, COLS));
    for (int64_t j0 = 0; j0 < item.keys; j0 += COLS)
        for (int64_t i0 = 0; i0 < item.queries; i0 += ROWS) {
            bool any = false;
            for (int64_t g = 0; g < GROUPS; ++g) {
                Group group;
                see(item, i0 + g * MR, j0, COLS, group);
                float *weight = s.weight + g * MR * COLS, *slope = s.slope + g * MR * COLS;
                const int64_t vectors = (group.width + W - 1) / W;
                if (vectors < COLS / W)
                    for (int64_t r = 0; r < MR; ++r) {
                        memset(weight + r * COLS + vectors * W, 0, sizeof(float) * (COLS - vectors * W));
                        memset(slope + r * COLS + vectors * W, 0, sizeof(float) * (COLS - vectors * W));
                    }
                if (group.width == 0) continue;
                any = true;
                ahead.step();
                prefetch_buckets(item, tables, i0 + ROWS + g * MR, j0, MR);
                const int64_t i = i0 + g * MR;
                gemm_rows(s.q + i * qk_pad, qk_pad, 1, s.k_turned + j0 * qk_pad, COLS, a.qk_dim, weight, COLS, vectors,
                          false);
                gemm_rows(s.grad + i * v_pad, v_pad, 1, s.v_turned + j0 * v_pad, COLS, a.v_dim, slope, COLS, vectors,
                          false);
                weigh_backward(item, tables, group, weight, slope, vectors, s.pairs);
                gemm_rows(slope, COLS, 1, s.k + j0 * qk_pad, qk_pad, group.width, s.dq + i * qk_pad, qk_pad, qk_pad / W,
                          true);
            }
            if (!any) continue;
            time_gradient(item, tables, i0, j0, min64(ROWS, item.queries - i0),
                          min64(COLS, round_up(item.keys - j0, W)), s.slope, COLS, grads);
            const int64_t last = min64(COLS, item.keys - j0);
            for (int64_t c = 0; c < last; c += MR) {
                // Rows above the diagonal see none of these keys.
                const int64_t skip = item.position(i0) >= item.context ? max64(0, j0 + c - item.position(i0)) : 0;
                if (skip >= ROWS) continue;
                const int64_t from = skip, count = min64(ROWS, item.queries - i0) - from;
                if (count <= 0) continue;
                gemm_rows(s.weight + from * COLS + c, 1, COLS, s.grad + (i0 + from) * v_pad, v_pad, count,
                          s.dv + (j0 + c) * v_pad, v_pad, v_pad / W, true);
                gemm_rows(s.slope + from * COLS + c, 1, COLS, s.q + (i0 + from) * qk_pad, qk_pad, count,
                          s.dk + (j0 + c) * qk_pad, qk_pad, qk_pad / W, true);
            }
        }
    grads.close(s.pairs, item);
    unpack_grad<T>(a, a.dq, through ? &through->q : nullptr, item, 0, item.queries, a.qk_dim, s.dq, qk_pad);
    const int64_t first = a.cache_grad ? 0 : item.cached;
    unpack_grad<T>(a, a.dk, through ? &through->k : nullptr, item, first - item.cached, item.keys - first, a.qk_dim,
                   s.dk + first * qk_pad, qk_pad);
    unpack_grad<T>(a, a.dv, through ? &through->v : nullptr, item, first - item.cached, item.keys - first, a.v_dim,
                   s.dv + first * v_pad, v_pad);
}

inline Shape widest(const HeadraceAttention& a, const Plan& plan, int64_t) {
    // Row groups may extend past the last tile's keys: one more tile than the longest user has.
    const int64_t rows = round_up(plan.most_queries, ROWS), cols = round_up(plan.most_keys, COLS);
    return {max64(rows, cols), cols, round_up(a.qk_dim, W), round_up(a.v_dim, W)};
}

HEADRACE_END
