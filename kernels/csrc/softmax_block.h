// The parts of the losses with shared negatives that do not depend on how products are computed: a block of queries,
// from unit rows to losses and the queries' gradients, and the prepared negatives.
#pragma once

#include <math.h>
#include <string.h>

#include "softmax_call.h"
#include "tiles.h"

HEADRACE_BEGIN

constexpr int64_t CHUNK = 256;  // negatives at a time in the large case
constexpr int64_t MAX_BLOCK = 64;

struct Loss {
    Rows query, table;
    int64_t num_queries, num_negatives;
    const int64_t* target_R;
    const int64_t* negative_S;    // null: all rows of the table, in order
    const uint8_t* valid_V;       // with no negative_S: which rows compete; null: all
    const float* log_q_target_R;  // or null
    const float* log_q_S;         // or null
    const float* weight_R;        // of each query's loss in the gradients; null: 1
    float inverse_temperature;
    int mask_hits;
    float* loss_R;
    float* coefficient_R;     // (probability of the target - 1), for the target row's gradient; or null
    float* log_sum_R;         // log of the sum over target and negatives of e^score; or null
    float* grad_query_RD;     // or null
    float* grad_negative_SD;  // small: or null
};

// Negatives prepared for products: unit rows, panels of them divided by the temperature, ids, and what is added to
// scores.
struct Negatives {
    int64_t num, num_padded;
    float *unit, *panels, *bias;
    int32_t* id;
};

inline int64_t negative_at(const Loss& loss, int64_t s) {
    if (loss.negative_S) return loss.negative_S[s];
    return !loss.valid_V || loss.valid_V[s] ? s : -1;
}

// Negatives [first, first + num_padded).
inline void prepare_negatives(const Loss& loss, const Negatives& n, int64_t first, int64_t num_padded) {
    const int64_t stride = loss.table.stride;
    for (int64_t s = first; s < first + num_padded; ++s) {
        const int64_t row = s < n.num ? negative_at(loss, s) : -1;
        n.id[s] = (int32_t)row;
        n.bias[s] = row < 0 ? -INFINITY : loss.log_q_S ? -loss.log_q_S[s] : 0.0f;
        if (row < 0) memset(n.unit + s * stride, 0, stride * sizeof(float));
        else unit_row(loss.table, row, n.unit + s * stride);
    }
    pack_panels(n.unit + first * stride, num_padded, stride, loss.table.width, loss.inverse_temperature,
                n.panels + first * loss.table.width);
}

// A block of queries being processed.
struct Block {
    int64_t first, num;
    float* unit;    // (MAX_BLOCK, stride)
    float* target;  // (MAX_BLOCK, stride) unit target rows
    float* grad;    // (MAX_BLOCK, stride) sum over negatives of e^(score - largest) * unit row
    float* score;   // (MAX_BLOCK, columns)
    Length length[MAX_BLOCK];
    float target_score[MAX_BLOCK], largest[MAX_BLOCK], total[MAX_BLOCK];
    int32_t target_id[MAX_BLOCK];
};

inline void begin_block(const Loss& loss, Block& b) {
    const int64_t stride = loss.query.stride;
    for (int64_t i = 0; i < b.num; ++i) {
        const int64_t r = b.first + i;
        b.length[i] = unit_row(loss.query, r, b.unit + i * stride);
        unit_row(loss.table, loss.target_R[r], b.target + i * stride);
        const float score = dot(b.unit + i * stride, b.target + i * stride, stride) * loss.inverse_temperature;
        b.target_score[i] = loss.log_q_target_R ? score - loss.log_q_target_R[r] : score;
        b.target_id[i] = loss.mask_hits ? (int32_t)loss.target_R[r] : INT32_MIN;
        b.largest[i] = b.target_score[i];
        b.total[i] = 1.0f;
    }
}

// Adds the biases, drops hits; returns the maximum of the row and of the previous maximum.
HEADRACE_INLINE float finish_scores(float* score, const float* bias, const int32_t* id, int64_t num, int32_t target,
                                    float before) {
    const vi hit = splat(target);
    const vf dropped = splat(-INFINITY);
    vf most = splat(before);
    for (int64_t j = 0; j < num; j += LANES) {
        vf s = load(score + j) + load(bias + j);
        s = load(id + j) == hit ? dropped : s;
        store(score + j, s);
        most = larger(most, s);
    }
    return largest(most);
}

// score → e^(score - shift), returns their sum.
HEADRACE_INLINE float exponentials(float* score, int64_t num, float shift) {
    const vf by = splat(shift);
    vf total = {};
    for (int64_t j = 0; j < num; j += LANES) {
        const vf e = exp_negative(load(score + j) - by);
        store(score + j, e);
        total += e;
    }
    return sum(total);
}

// Scores of negatives [first, first + num) for the block, turned into e^(score - largest).
inline void add_negatives(const Loss& loss, const Negatives& n, Block& b, int64_t first, int64_t num, int64_t columns) {
    const int64_t width = loss.query.width, stride = loss.query.stride;
    multiply_panels(b.num, num / PANEL, width, b.unit, stride, n.panels + first * width, b.score, columns);
    for (int64_t i = 0; i < b.num; ++i) {
        float* score = b.score + i * columns;
        const float most = finish_scores(score, n.bias + first, n.id + first, num, b.target_id[i], b.largest[i]);
        if (most > b.largest[i]) {
            const float shrink = expf(b.largest[i] - most);
            b.total[i] *= shrink;
            if (b.grad)
                for (int64_t d = 0; d < stride; d += LANES)
                    store(b.grad + i * stride + d, load(b.grad + i * stride + d) * shrink);
            b.largest[i] = most;
        }
        b.total[i] += exponentials(score, num, b.largest[i]);
    }
}

inline void end_block(const Loss& loss, Block& b) {
    const int64_t stride = loss.query.stride;
    float of_target[MAX_BLOCK];
    for (int64_t i = 0; i < b.num; i += LANES)
        store(of_target + i, exp_negative(load(b.target_score + i) - load(b.largest + i)) / load(b.total + i));
    for (int64_t i = 0; i < b.num; ++i) {
        const int64_t r = b.first + i;
        const float log_total = logf(b.total[i]);
        const float minus = of_target[i] - 1.0f;
        loss.loss_R[r] = log_total + (b.largest[i] - b.target_score[i]);
        if (loss.log_sum_R) loss.log_sum_R[r] = b.largest[i] + log_total;
        if (loss.coefficient_R) loss.coefficient_R[r] = minus;
        if (!loss.grad_query_RD) continue;
        float* grad = b.grad + i * stride;
        const float weight = (loss.weight_R ? loss.weight_R[r] : 1.0f) * loss.inverse_temperature;
        const vf by = splat(weight / b.total[i]);
        for (int64_t d = 0; d < stride; d += LANES) store(grad + d, load(grad + d) * by);
        add_scaled(grad, b.target + i * stride, minus * weight, stride);
        gradient_through_length(grad, b.unit + i * stride, b.length[i], stride);
        store_row(loss.grad_query_RD + r * loss.query.width, grad, loss.query.width);
    }
}

// unit row *= weight / total: what the transposed product with the exponentials needs.
inline void weigh_queries(const Loss& loss, const Block& b) {
    const int64_t stride = loss.query.stride;
    for (int64_t i = 0; i < b.num; ++i) {
        const vf by =
            splat((loss.weight_R ? loss.weight_R[b.first + i] : 1.0f) * loss.inverse_temperature / b.total[i]);
        for (int64_t d = 0; d < stride; d += LANES) store(b.unit + i * stride + d, load(b.unit + i * stride + d) * by);
    }
}

inline Loss loss_of(const SoftmaxCall& c) {
    const int64_t stride = padded(c.width, LANES);
    return {{c.query_RD, c.type, c.width, stride, c.normalize, c.eps},
            {c.table_UD, c.type, c.width, stride, c.normalize, c.eps},
            c.num_queries,
            c.num_negatives,
            c.target_R,
            c.negatives,
            c.valid_V,
            c.log_q_target_R,
            c.log_q_negatives,
            c.weight_R,
            c.inverse_temperature,
            c.mask_hits,
            c.loss_R,
            c.coefficient_R,
            c.log_sum_R,
            c.grad_query_RD,
            c.grad_negative_SD};
}

HEADRACE_END
