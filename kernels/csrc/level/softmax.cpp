// Cross entropy of queries against a target each and negatives shared by all (sampled, or the whole table).
//
// With few negatives one pass does everything (`shared_small`): scores of a block of queries stay in the cache, and the
// gradient of the negatives is summed in a fixed number of groups of queries, then over the groups in order. With many
// (`shared_large`) scores come in chunks with a running maximum, as in flash attention, and the negatives' gradient is a
// second pass over chunks of negatives. Neither depends on the number of threads.
#include <math.h>
#include <omp.h>
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
    const int64_t* negative_S;   // null: all rows of the table, in order
    const uint8_t* valid_V;      // with no negative_S: which rows compete; null: all
    const float* log_q_target_R; // or null
    const float* log_q_S;        // or null
    const float* weight_R;       // of each query's loss in the gradients; null: 1
    float inverse_temperature;
    int mask_hits;
    float* loss_R;
    float* coefficient_R;        // (probability of the target - 1), for the target row's gradient; or null
    float* log_sum_R;            // log of the sum over target and negatives of e^score; or null
    float* grad_query_RD;        // or null
    float* grad_negative_SD;     // small: or null
};

// Negatives ready for products: unit rows, panels of them over the temperature, ids, and what is added to scores.
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
        if (row < 0)
            memset(n.unit + s * stride, 0, stride * sizeof(float));
        else
            unit_row(loss.table, row, n.unit + s * stride);
    }
    pack_panels(n.unit + first * stride, num_padded, stride, loss.table.width, loss.inverse_temperature,
                n.panels + first * loss.table.width);
}

// A block of queries on its way.
struct Block {
    int64_t first, num;
    float* unit;     // (MAX_BLOCK, stride)
    float* target;   // (MAX_BLOCK, stride) unit target rows
    float* grad;     // (MAX_BLOCK, stride) sum over negatives of e^(score - largest) * unit row
    float* score;    // (MAX_BLOCK, columns)
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

// Adds the biases, drops hits; returns the largest of what came before and the row.
HEADRACE_INLINE float finish_scores(float* score, const float* bias, const int32_t* id, int64_t num, int32_t target, float before) {
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
                for (int64_t d = 0; d < stride; d += LANES) store(b.grad + i * stride + d, load(b.grad + i * stride + d) * shrink);
            b.largest[i] = most;
        }
        b.total[i] += exponentials(score, num, b.largest[i]);
    }
}

inline void end_block(const Loss& loss, Block& b) {
    const int64_t stride = loss.query.stride;
    for (int64_t i = 0; i < b.num; ++i) {
        const int64_t r = b.first + i;
        const float log_total = logf(b.total[i]);
        const float minus = expf(b.target_score[i] - b.largest[i]) / b.total[i] - 1.0f;
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
        const vf by = splat((loss.weight_R ? loss.weight_R[b.first + i] : 1.0f) * loss.inverse_temperature / b.total[i]);
        for (int64_t d = 0; d < stride; d += LANES) store(b.unit + i * stride + d, load(b.unit + i * stride + d) * by);
    }
}

inline int shared_small(const Loss& loss, int num_threads) {
    const int64_t stride = loss.query.stride, width = loss.query.width, num = loss.num_negatives;
    const int64_t num_padded = padded(num, PANEL), size = num_padded <= 1024 ? MAX_BLOCK : MAX_BLOCK / 2;
    const int64_t num_blocks = (loss.num_queries + size - 1) / size;
    int64_t num_groups = (4 << 20) / (num_padded * stride + 1);
    num_groups = num_groups < 4 ? 4 : num_groups > 16 ? 16 : num_groups;
    if (num_groups > num_blocks) num_groups = num_blocks > 0 ? num_blocks : 1;
    Scratch<float> unit(num_padded * stride), panels(num_padded * width), bias(num_padded);
    Scratch<int32_t> id(num_padded);
    Scratch<float> partial(loss.grad_negative_SD ? num_groups * num_padded * stride : 1);
    if (!unit.p || !panels.p || !bias.p || !id.p || !partial.p) return 1;
    const Negatives n = {num, num_padded, unit.p, panels.p, bias.p, id.p};
    int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
    {
#pragma omp for schedule(static)
        for (int64_t s = 0; s < num_padded; s += PANEL) prepare_negatives(loss, n, s, PANEL);
        Scratch<float> scratch(MAX_BLOCK * (3 * stride + num_padded));
        failed |= !scratch.p;
        Block b;
        b.unit = scratch.p;
        b.target = b.unit + MAX_BLOCK * stride;
        b.grad = loss.grad_query_RD ? b.target + MAX_BLOCK * stride : nullptr;
        b.score = scratch.p + 3 * MAX_BLOCK * stride;
#pragma omp for schedule(dynamic, 1)
        for (int64_t g = 0; g < num_groups; ++g) {
            if (!scratch.p) continue;
            float* sums = partial.p + g * num_padded * stride;
            if (loss.grad_negative_SD) memset(sums, 0, num_padded * stride * sizeof(float));
            for (int64_t block = num_blocks * g / num_groups; block < num_blocks * (g + 1) / num_groups; ++block) {
                b.first = block * size;
                b.num = loss.num_queries - b.first < size ? loss.num_queries - b.first : size;
                begin_block(loss, b);
                if (b.grad) memset(b.grad, 0, b.num * stride * sizeof(float));
                add_negatives(loss, n, b, 0, num_padded, num_padded);
                if (b.grad) multiply<false>(b.num, stride, num_padded, b.score, num_padded, 1, n.unit, stride, b.grad, stride);
                end_block(loss, b);
                if (!loss.grad_negative_SD) continue;
                weigh_queries(loss, b);
                multiply<true>(num_padded, stride, b.num, b.score, 1, num_padded, b.unit, stride, sums, stride);
            }
        }
        if (loss.grad_negative_SD) {
#pragma omp for schedule(static)
            for (int64_t s = 0; s < num; ++s) {
                float* total = partial.p + s * stride;
                for (int64_t g = 1; g < num_groups; ++g) add_scaled(total, partial.p + (g * num_padded + s) * stride, 1.0f, stride);
                store_row(loss.grad_negative_SD + s * width, total, width);
            }
        }
    }
    return failed;
}

inline int shared_large(const Loss& loss, int num_threads) {
    const int64_t stride = loss.query.stride, width = loss.query.width, num = loss.num_negatives;
    const int64_t num_padded = padded(num, PANEL);
    const int64_t size = MAX_BLOCK, num_blocks = (loss.num_queries + size - 1) / size;
    Scratch<float> unit(num_padded * stride), panels(num_padded * width), bias(num_padded);
    Scratch<int32_t> id(num_padded);
    if (!unit.p || !panels.p || !bias.p || !id.p) return 1;
    const Negatives n = {num, num_padded, unit.p, panels.p, bias.p, id.p};
    int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
    {
#pragma omp for schedule(static)
        for (int64_t s = 0; s < num_padded; s += PANEL) prepare_negatives(loss, n, s, PANEL);
        Scratch<float> scratch(MAX_BLOCK * (3 * stride + CHUNK));
        failed |= !scratch.p;
        Block b;
        b.unit = scratch.p;
        b.target = b.unit + MAX_BLOCK * stride;
        b.grad = loss.grad_query_RD ? b.target + MAX_BLOCK * stride : nullptr;
        b.score = scratch.p + 3 * MAX_BLOCK * stride;
#pragma omp for schedule(dynamic, 1)
        for (int64_t block = 0; block < num_blocks; ++block) {
            if (!scratch.p) continue;
            b.first = block * size;
            b.num = loss.num_queries - b.first < size ? loss.num_queries - b.first : size;
            begin_block(loss, b);
            if (b.grad) memset(b.grad, 0, b.num * stride * sizeof(float));
            for (int64_t first = 0; first < num_padded; first += CHUNK) {
                const int64_t some = num_padded - first < CHUNK ? num_padded - first : CHUNK;
                add_negatives(loss, n, b, first, some, CHUNK);
                if (b.grad) multiply<true>(b.num, stride, some, b.score, CHUNK, 1, n.unit + first * stride, stride, b.grad, stride);
            }
            end_block(loss, b);
        }
    }
    return failed;
}

// The negatives' gradient from the log sums of `shared_large`: each thread owns chunks of negatives.
inline int shared_large_gradient(const Loss& loss, int num_threads) {
    const int64_t stride = loss.query.stride, width = loss.query.width, num = loss.num_negatives;
    const int64_t num_padded = padded(num, PANEL), num_chunks = (num_padded + CHUNK - 1) / CHUNK;
    Scratch<float> unit_RD(loss.num_queries * stride), weighed_RD(loss.num_queries * stride);
    if (!unit_RD.p || !weighed_RD.p) return 1;
    int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < loss.num_queries; ++r) {
            unit_row(loss.query, r, unit_RD.p + r * stride);
            const float by = (loss.weight_R ? loss.weight_R[r] : 1.0f) * loss.inverse_temperature;
            for (int64_t d = 0; d < stride; d += LANES)
                store(weighed_RD.p + r * stride + d, load(unit_RD.p + r * stride + d) * by);
        }
        Scratch<float> scratch(CHUNK * (2 * stride + width + 1) + MAX_BLOCK * CHUNK);
        Scratch<int32_t> id(CHUNK);
        failed |= !scratch.p || !id.p;
        float *unit = scratch.p, *sums = unit + CHUNK * stride, *panels = sums + CHUNK * stride;
        float *bias = panels + CHUNK * width, *score = bias + CHUNK;
#pragma omp for schedule(dynamic, 1)
        for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
            if (!scratch.p || !id.p) continue;
            const int64_t first = chunk * CHUNK, some = num_padded - first < CHUNK ? num_padded - first : CHUNK;
            // As if the arrays began `first` negatives earlier.
            const Negatives n = {num, num_padded, unit - first * stride, panels - first * width, bias - first, id.p - first};
            prepare_negatives(loss, n, first, some);
            memset(sums, 0, some * stride * sizeof(float));
            for (int64_t start = 0; start < loss.num_queries; start += MAX_BLOCK) {
                const int64_t rows = loss.num_queries - start < MAX_BLOCK ? loss.num_queries - start : MAX_BLOCK;
                multiply_panels(rows, some / PANEL, width, unit_RD.p + start * stride, stride, panels, score, CHUNK);
                for (int64_t i = 0; i < rows; ++i) {
                    const int32_t hit = loss.mask_hits ? (int32_t)loss.target_R[start + i] : INT32_MIN;
                    finish_scores(score + i * CHUNK, bias, id.p, some, hit, 0.0f);
                    exponentials(score + i * CHUNK, some, loss.log_sum_R[start + i]);
                }
                multiply<true>(some, stride, rows, score, 1, CHUNK, weighed_RD.p + start * stride, stride, sums, stride);
            }
            for (int64_t s = first; s < first + some && s < num; ++s)
                store_row(loss.grad_negative_SD + s * width, sums + (s - first) * stride, width);
        }
    }
    return failed;
}

HEADRACE_INLINE bool mine(int64_t row, uint32_t me, uint32_t team) {
    return team == 1 || (uint32_t)((((uint64_t)row * 0x9E3779B97F4A7C15ull >> 32) * team) >> 32) == me;
}

// grad_table += the negatives' gradients and each target's; then through the rows' lengths. Each thread owns rows.
inline int scatter(const Loss& loss, int64_t num_rows, float* grad_UD, int through_length, int num_threads) {
    const int64_t width = loss.table.width, stride = loss.table.stride;
    int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
    {
        const uint32_t me = (uint32_t)omp_get_thread_num(), team = (uint32_t)omp_get_num_threads();
        Scratch<float> scratch(2 * stride);
        Scratch<uint8_t> touched(num_rows);
        failed |= !scratch.p || !touched.p;
        if (scratch.p && touched.p) {
            float *unit = scratch.p, *g = unit + stride;
            memset(g, 0, stride * sizeof(float));
            memset(touched.p, 0, num_rows);
            for (int64_t s = 0; loss.grad_negative_SD && s < loss.num_negatives; ++s) {
                const int64_t row = negative_at(loss, s);
                if (row < 0 || !mine(row, me, team)) continue;
                touched.p[row] = 1;
                add_scaled_row(grad_UD + row * width, loss.grad_negative_SD + s * width, 1.0f, width);
            }
            for (int64_t r = 0; loss.target_R && r < loss.num_queries; ++r) {
                const int64_t row = loss.target_R[r];
                if (!mine(row, me, team)) continue;
                touched.p[row] = 1;
                unit_row(loss.query, r, unit);
                const float by = loss.coefficient_R[r] * (loss.weight_R ? loss.weight_R[r] : 1.0f) * loss.inverse_temperature;
                add_scaled_row(grad_UD + row * width, unit, by, width);
            }
            for (int64_t row = 0; through_length && row < num_rows; ++row) {
                if (!touched.p[row]) continue;
                const Length length = unit_row(loss.table, row, unit);
                widen(grad_UD + row * width, width, g);
                gradient_through_length(g, unit, length, stride);
                store_row(grad_UD + row * width, g, width);
            }
        }
    }
    return failed;
}

HEADRACE_END

HEADRACE_BEGIN
inline Loss loss_of(const SoftmaxCall& c) {
    const int64_t stride = padded(c.width, LANES);
    return {{c.query_RD, c.type, c.width, stride, c.normalize, c.eps},
            {c.table_UD, c.type, c.width, stride, c.normalize, c.eps},
            c.num_queries, c.num_negatives, c.target_R, c.negatives, c.valid_V, c.log_q_target_R, c.log_q_negatives,
            c.weight_R, c.inverse_temperature, c.mask_hits, c.loss_R, c.coefficient_R, c.log_sum_R, c.grad_query_RD,
            c.grad_negative_SD};
}
HEADRACE_END

HEADRACE_LEVEL_API(softmax_shared_small)(const SoftmaxCall* c) {
    using namespace headrace::HEADRACE_LEVEL;
    return shared_small(loss_of(*c), c->num_threads);
}
HEADRACE_LEVEL_API(softmax_shared_large)(const SoftmaxCall* c) {
    using namespace headrace::HEADRACE_LEVEL;
    return shared_large(loss_of(*c), c->num_threads);
}
HEADRACE_LEVEL_API(softmax_shared_large_gradient)(const SoftmaxCall* c) {
    using namespace headrace::HEADRACE_LEVEL;
    return shared_large_gradient(loss_of(*c), c->num_threads);
}
HEADRACE_LEVEL_API(softmax_scatter)(const SoftmaxCall* c) {
    using namespace headrace::HEADRACE_LEVEL;
    return scatter(loss_of(*c), c->num_rows, c->grad_table_UD, c->normalize, c->num_threads);
}
