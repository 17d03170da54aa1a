// Cross entropy of queries against a target each and negatives shared by all (sampled, or the whole table).
//
// With few negatives one pass does everything (`shared_small`): the scores of a block of queries stay in the cache, and
// the negatives' gradient is summed over a fixed number of groups of queries, then over the groups in order. With many
// (`shared_large`) scores are computed in chunks with a running maximum, as in flash attention, and the negatives'
// gradient in a second pass over chunks of negatives. Neither depends on the number of threads.
#include <math.h>
#include <omp.h>
#include <string.h>

#include "softmax_block.h"

HEADRACE_BEGIN

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
                if (b.grad)
                    multiply<false>(b.num, stride, num_padded, b.score, num_padded, 1, n.unit, stride, b.grad, stride);
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
                for (int64_t g = 1; g < num_groups; ++g)
                    add_scaled(total, partial.p + (g * num_padded + s) * stride, 1.0f, stride);
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
                if (b.grad)
                    multiply<true>(b.num, stride, some, b.score, CHUNK, 1, n.unit + first * stride, stride, b.grad,
                                   stride);
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
            // Pointers as if the arrays began `first` negatives earlier.
            const Negatives n = {num,          num_padded,  unit - first * stride, panels - first * width,
                                 bias - first, id.p - first};
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
                multiply<true>(some, stride, rows, score, 1, CHUNK, weighed_RD.p + start * stride, stride, sums,
                               stride);
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
                const float by =
                    loss.coefficient_R[r] * (loss.weight_R ? loss.weight_R[r] : 1.0f) * loss.inverse_temperature;
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
