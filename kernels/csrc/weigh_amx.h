// Scores to weights, and to slopes, as operands of the next products (amx_tiles.h): ROWS queries by COLS keys at a
// time. Neither is divided by norm_len here; their sums are, when they are written.
#pragma once

#include "amx_tiles.h"
#include "bias_grad.h"

HEADRACE_BEGIN

constexpr int64_t ROWS = 32;
constexpr int64_t COLS = 64;
constexpr int64_t GROUPS = ROWS / MR;

// SiLU's gate, to the precision of TERMS bfloat16.
template <int TERMS>
HEADRACE_INLINE vf gate_of(vf s) {
    if constexpr (TERMS == 2) return sigmoid(s);
    return rough_sigmoid(s);
}

// Eight rows of the block from i0 on, and what they see; returns how many columns any of the block's rows sees.
inline int64_t see_block(const Item& item, int64_t i0, int64_t j0, Group* groups) {
    if (item.context <= item.position(i0) && item.position(i0) + ROWS <= j0) return 0;
    int64_t width = 0;
    for (int64_t g = 0; g < GROUPS; ++g) {
        see(item, i0 + g * MR, j0, COLS, groups[g]);
        width = max64(width, groups[g].width);
    }
    return width;
}

template <int TERMS, bool MASK, typename B>
HEADRACE_INLINE void weigh_rows(const B& biases, const Group& group, const float* scores, int64_t steps, word* to,
                                int64_t apart) {
    for (int r = 0; r < MR; ++r) {
        const auto pos = biases.pos(r);
        const auto buckets = biases.buckets(r);
        for (int64_t c = 0; c < steps * DEPTH; c += DEPTH) {
            vf weight[2];
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                const int64_t column = c + h * 16;
                const vf s = biases.added(load(scores + r * COLS + column), pos, buckets, column);
                weight[h] = s * gate_of<TERMS>(s);
                if (MASK) weight[h] = keep_seen(group, r, column, weight[h]);
            }
            store_words<TERMS>(to + c / DEPTH * TILE + r * 16, apart, weight[0], weight[1]);
        }
    }
}

// A group's scores → weights as a left operand, `steps` tiles of columns.
template <int TERMS>
inline void weigh(const Item& item, const BiasTables& tables, const Group& group, const float* scores, int64_t steps,
                  word* to, int64_t apart) {
    if (group.width == 0) {
        for (int64_t s = 0; s < steps; ++s)
            for (int t = 0; t < TERMS; ++t) memset(to + s * TILE + t * apart, 0, sizeof(word) * MR * 16);
        return;
    }
    with_biases(item, tables, group, [&](const auto& biases) __attribute__((always_inline)) {
        if (group.whole >= steps * DEPTH) weigh_rows<TERMS, false>(biases, group, scores, steps, to, apart);
        else weigh_rows<TERMS, true>(biases, group, scores, steps, to, apart);
    });
}

// Destination of a block's weights and slopes.
struct Slopes {
    Operand weight_pairs, slope_pairs, slope_rows;  // at the block
};

template <int TERMS, bool MASK, typename B>
HEADRACE_INLINE void slope_rows(const B& biases, const Item& item, const Group& group, const float* scores,
                                float* slopes, int64_t row, int64_t steps, const Slopes& to,
                                const BiasScratch& scratch) {
    word* rows = to.slope_rows.at(row / 16, 0).tiles + row % 16 * 16;
    for (int r = 0; r < MR; r += 2) {
        const decltype(biases.pos(0)) pos[2] = {biases.pos(r), biases.pos(r + 1)};
        const decltype(biases.buckets(0)) buckets[2] = {biases.buckets(r), biases.buckets(r + 1)};
        float* pos_grad[2] = {nullptr, nullptr};
        if (B::HAS_POS)
            for (int i = 0; i < 2; ++i)
                pos_grad[i] = BiasGrads::row(scratch, item, group.query + biases.row(r + i), group.j0);
        word *weight_pair = to.weight_pairs.tiles + (row + r) / 2 * 16,
             *slope_pair = to.slope_pairs.tiles + (row + r) / 2 * 16;
        for (int64_t c = 0; c < steps * DEPTH; c += DEPTH) {
            vf d[2][2];
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                const int64_t column = c + h * 16;
                vf weight[2];
#pragma GCC unroll 2
                for (int i = 0; i < 2; ++i) {
                    const vf s = biases.added(load(scores + (r + i) * COLS + column), pos[i], buckets[i], column);
                    const vf gate = gate_of<TERMS>(s), activated = s * gate;
                    float* slope = slopes + (r + i) * COLS + column;
                    weight[i] = activated;
                    d[i][h] = load(slope) * silu_slope(gate, activated);
                    if (MASK) {
                        weight[i] = keep_seen(group, r + i, column, weight[i]);
                        d[i][h] = keep_seen(group, r + i, column, d[i][h]);
                    }
                    if (B::HAS_TIME) store(slope, d[i][h]);  // for the time bias's gradient
                    if (B::HAS_POS) store(pos_grad[i] + column, load(pos_grad[i] + column) + d[i][h]);
                }
                store_words<TERMS>(weight_pair + (c / 16 + h) * to.weight_pairs.next, to.weight_pairs.apart, weight[0],
                                   weight[1]);
                store_words<TERMS>(slope_pair + (c / 16 + h) * to.slope_pairs.next, to.slope_pairs.apart, d[0][h],
                                   d[1][h]);
            }
            store_words<TERMS>(rows + c / DEPTH * TILE + r * 16, to.slope_rows.apart, d[0][0], d[0][1]);
            store_words<TERMS>(rows + c / DEPTH * TILE + (r + 1) * 16, to.slope_rows.apart, d[1][0], d[1][1]);
        }
    }
}

// Zeros for eight rows of a block, columns of the steps [from, end).
template <int TERMS>
inline void clear_slopes(float* slopes, int64_t row, int64_t from, int64_t end, const Slopes& to) {
    for (int64_t r = 0; r < MR; ++r) memset(slopes + r * COLS + from * DEPTH, 0, sizeof(float) * (end - from) * DEPTH);
    for (int t = 0; t < TERMS; ++t) {
        for (int64_t s = from; s < end; ++s)
            memset(to.slope_rows.at(row / 16, s).tiles + t * to.slope_rows.apart + row % 16 * 16, 0,
                   sizeof(word) * MR * 16);
        for (int64_t c = 2 * from; c < 2 * end; ++c) {
            memset(to.weight_pairs.at(c, 0).tiles + t * to.weight_pairs.apart + row / 2 * 16, 0,
                   sizeof(word) * MR / 2 * 16);
            memset(to.slope_pairs.at(c, 0).tiles + t * to.slope_pairs.apart + row / 2 * 16, 0,
                   sizeof(word) * MR / 2 * 16);
        }
    }
}

// A group's scores and products of gradients → weights and slopes as operands, all COLS columns.
template <int TERMS>
inline void weigh_backward(const Item& item, const BiasTables& tables, const Group& group, const float* scores,
                           float* slopes, int64_t row, const Slopes& to, const BiasScratch& scratch) {
    const int64_t steps = (group.width + DEPTH - 1) / DEPTH;
    if (steps < COLS / DEPTH) clear_slopes<TERMS>(slopes, row, steps, COLS / DEPTH, to);
    if (steps == 0) return;
    with_biases(item, tables, group, [&](const auto& biases) __attribute__((always_inline)) {
        if (group.whole >= steps * DEPTH)
            slope_rows<TERMS, false>(biases, item, group, scores, slopes, row, steps, to, scratch);
        else slope_rows<TERMS, true>(biases, item, group, scores, slopes, row, steps, to, scratch);
    });
}

HEADRACE_END
