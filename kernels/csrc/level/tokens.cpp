// The tokens of interactions, and the gradients of their inputs (kernels/tokens/reference.py is the definition).
//
// Blocks of interactions go through the products one by one, so that their rows stay in the first caches. Gradients of
// weights are summed per chunk of blocks, the chunks in their order: the same bits for any number of threads.
#include <math.h>
#include <omp.h>
#include <string.h>

#include "half.h"
#include "tiles.h"

// The argument, as the caller lays it out (kernels/tokens/cpp.py).
struct TokensCall {
    int64_t num, width, model, kinds, table_type, num_threads;
    const void* table_VD;
    const int64_t* place_n;
    const float *kinds_nK, *value_n, *side_nM;                                     // the last two or null
    const float *item_weight, *action_M, *kind_KM, *action_item_weight, *value_M;  // the last or null
    float* tokens_TM;  // written by `tokens_forward`, read by `tokens_backward`
    // Of `tokens_backward` alone: d_table_VD is added to, the others are written.
    const float* grad_TM;
    float *d_table_VD, *d_side_nM, *d_item_weight, *d_action_M, *d_kind_KM, *d_action_item_weight, *d_value_M;
};

HEADRACE_BEGIN

constexpr int64_t ROWS = 64, CHUNK_ROWS = 512, MOST_CHUNKS = 16;

// (rows, columns) with rows of whole vectors; or its transpose.
inline void pad_matrix(const float* from, int64_t rows, int64_t columns, bool turned, float* to) {
    const int64_t out_rows = turned ? columns : rows, width = turned ? rows : columns, stride = padded(width, LANES);
    for (int64_t r = 0; r < out_rows; ++r) {
        if (!turned) {
            widen(from + r * columns, columns, to + r * stride);
            continue;
        }
        for (int64_t c = 0; c < width; ++c) to[r * stride + c] = from[c * columns + r];
        for (int64_t c = width; c < stride; ++c) to[r * stride + c] = 0.0f;
    }
}

// A value as an input of the action's token: whether there is one, and its signed logarithm.
HEADRACE_INLINE void parts_of(float value, float* present, float* scaled) {
    const bool is_there = isfinite(value);
    *present = is_there ? 1.0f : 0.0f;
    *scaled = is_there ? copysignf(log1pf(fabsf(value)), value) : 0.0f;
}

struct Widths {
    int64_t item, model;  // rounded up to whole vectors
    explicit Widths(const TokensCall& c) : item(padded(c.width, LANES)), model(padded(c.model, LANES)) {}
};

inline void gather_rows(const TokensCall& c, int64_t first, int64_t count, int64_t stride, float* to) {
    with_rows(c.table_VD, c.table_type, [&](auto* table_VD) {
        for (int64_t r = 0; r < count; ++r) widen(table_VD + c.place_n[first + r] * c.width, c.width, to + r * stride);
    });
}

inline int tokens_forward(const TokensCall& c) {
    const Widths w(c);
    Scratch<float> weights((c.width + c.model) * w.model);
    if (!weights.p) return 1;
    float *item_weight = weights.p, *action_item = item_weight + c.width * w.model;
    pad_matrix(c.item_weight, c.width, c.model, false, item_weight);
    pad_matrix(c.action_item_weight, c.model, c.model, false, action_item);
    int failed = 0;
#pragma omp parallel num_threads(c.num_threads) reduction(| : failed)
    {
        Scratch<float> scratch(ROWS * (w.item + 2 * w.model) + w.model);
        failed |= !scratch.p;
        float *rows = scratch.p, *item = rows + ROWS * w.item, *action = item + ROWS * w.model,
              *wide = action + ROWS * w.model;
#pragma omp for schedule(static)
        for (int64_t first = 0; first < c.num; first += ROWS) {
            if (!scratch.p) continue;
            const int64_t count = c.num - first < ROWS ? c.num - first : ROWS;
            gather_rows(c, first, count, w.item, rows);
            multiply<false>(count, w.model, c.width, rows, w.item, 1, item_weight, w.model, item, w.model);
            for (int64_t r = 0; r < count; ++r) {
                const int64_t n = first + r;
                float *own = item + r * w.model, *act = action + r * w.model;
                if (c.side_nM) {
                    widen(c.side_nM + n * c.model, c.model, wide);
                    add_scaled(own, wide, 1.0f, w.model);
                }
                widen(c.action_M, c.model, act);
                for (int64_t k = 0; k < c.kinds; ++k)
                    if (c.kinds_nK[n * c.kinds + k] != 0.0f) {
                        widen(c.kind_KM + k * c.model, c.model, wide);
                        add_scaled(act, wide, c.kinds_nK[n * c.kinds + k], w.model);
                    }
                for (int part = 0; c.value_n && part < 2; ++part) {
                    float parts[2];
                    parts_of(c.value_n[n], parts, parts + 1);
                    widen(c.value_M + part * c.model, c.model, wide);
                    add_scaled(act, wide, parts[part], w.model);
                }
            }
            multiply<true>(count, w.model, c.model, item, w.model, 1, action_item, w.model, action, w.model);
            for (int64_t r = 0; r < count; ++r) {
                float* to = c.tokens_TM + 2 * (first + r) * c.model;
                store_row(to, item + r * w.model, c.model);
                store_row(to + c.model, action + r * w.model, c.model);
            }
        }
    }
    return failed;
}

// One chunk's sums of the weights' gradients.
struct TokenSums {
    float *item_weight, *action_item, *action, *kinds, *value;
    static int64_t size(const TokensCall& c, const Widths& w) {
        return (c.width + c.model + 1 + c.kinds + 2) * w.model;
    }
    TokenSums(float* base, const TokensCall& c, const Widths& w) {
        item_weight = base;
        action_item = item_weight + c.width * w.model;
        action = action_item + c.model * w.model;
        kinds = action + w.model;
        value = kinds + c.kinds * w.model;
    }
};

struct TokenScratch {
    float *rows, *item, *action, *d_item, *d_rows;
    static int64_t size(const Widths& w) { return ROWS * (2 * w.item + 3 * w.model); }
    TokenScratch(float* base, const Widths& w) {
        rows = base;
        item = rows + ROWS * w.item;
        action = item + ROWS * w.model;
        d_item = action + ROWS * w.model;
        d_rows = d_item + ROWS * w.model;
    }
};

// The gradients of a block of interactions; those of their rows go to `d_row_nD`.
inline void backward_block(const TokensCall& c, const Widths& w, const float* item_turned, const float* action_turned,
                           int64_t first, int64_t count, const TokenScratch& s, const TokenSums& sums,
                           float* d_row_nD) {
    gather_rows(c, first, count, w.item, s.rows);
    for (int64_t r = 0; r < count; ++r) {
        const int64_t n = first + r;
        widen(c.tokens_TM + 2 * n * c.model, c.model, s.item + r * w.model);
        widen(c.grad_TM + 2 * n * c.model, c.model, s.d_item + r * w.model);
        widen(c.grad_TM + (2 * n + 1) * c.model, c.model, s.action + r * w.model);
        const float* d = s.action + r * w.model;
        add_scaled(sums.action, d, 1.0f, w.model);
        for (int64_t k = 0; k < c.kinds; ++k)
            if (c.kinds_nK[n * c.kinds + k] != 0.0f)
                add_scaled(sums.kinds + k * w.model, d, c.kinds_nK[n * c.kinds + k], w.model);
        if (c.value_n) {
            float parts[2];
            parts_of(c.value_n[n], parts, parts + 1);
            for (int part = 0; part < 2; ++part) add_scaled(sums.value + part * w.model, d, parts[part], w.model);
        }
    }
    multiply<true>(c.model, w.model, count, s.item, 1, w.model, s.action, w.model, sums.action_item, w.model);
    multiply<true>(count, w.model, c.model, s.action, w.model, 1, action_turned, w.model, s.d_item, w.model);
    multiply<true>(c.width, w.model, count, s.rows, 1, w.item, s.d_item, w.model, sums.item_weight, w.model);
    multiply<false>(count, w.item, c.model, s.d_item, w.model, 1, item_turned, w.item, d_row_nD + first * w.item,
                    w.item);
    if (c.d_side_nM)
        for (int64_t r = 0; r < count; ++r)
            store_row(c.d_side_nM + (first + r) * c.model, s.d_item + r * w.model, c.model);
}

inline int tokens_backward(const TokensCall& c) {
    const Widths w(c);
    int64_t num_chunks = (c.num + CHUNK_ROWS - 1) / CHUNK_ROWS;
    num_chunks = num_chunks < 1 ? 1 : num_chunks > MOST_CHUNKS ? MOST_CHUNKS : num_chunks;
    const int64_t num_blocks = (c.num + ROWS - 1) / ROWS, size = TokenSums::size(c, w);
    Scratch<float> weights(c.model * (w.item + w.model)), sums(num_chunks * size), d_row_nD(c.num * w.item);
    if (!weights.p || !sums.p || !d_row_nD.p) return 1;
    float *item_turned = weights.p, *action_turned = item_turned + c.model * w.item;
    pad_matrix(c.item_weight, c.width, c.model, true, item_turned);
    pad_matrix(c.action_item_weight, c.model, c.model, true, action_turned);
    memset(sums.p, 0, num_chunks * size * sizeof(float));
    int failed = 0;
#pragma omp parallel num_threads(c.num_threads) reduction(| : failed)
    {
        Scratch<float> room(TokenScratch::size(w));
        failed |= !room.p;
        const TokenScratch scratch(room.p, w);
#pragma omp for schedule(dynamic, 1)
        for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
            if (!room.p) continue;
            const TokenSums into(sums.p + chunk * size, c, w);
            for (int64_t block = num_blocks * chunk / num_chunks; block < num_blocks * (chunk + 1) / num_chunks;
                 ++block) {
                const int64_t first = block * ROWS, count = c.num - first < ROWS ? c.num - first : ROWS;
                backward_block(c, w, item_turned, action_turned, first, count, scratch, into, d_row_nD.p);
            }
        }
    }
    if (failed) return failed;
    for (int64_t chunk = 1; chunk < num_chunks; ++chunk) add_scaled(sums.p, sums.p + chunk * size, 1.0f, size);
    const TokenSums all(sums.p, c, w);
    const struct {
        float *to, *from;
        int64_t rows;
    } parts[] = {{c.d_item_weight, all.item_weight, c.width},
                 {c.d_action_item_weight, all.action_item, c.model},
                 {c.d_action_M, all.action, 1},
                 {c.d_kind_KM, all.kinds, c.kinds},
                 {c.d_value_M, all.value, 2}};
    for (const auto& part : parts)
        for (int64_t r = 0; part.to && r < part.rows; ++r)
            store_row(part.to + r * c.model, part.from + r * w.model, c.model);
    for (int64_t n = 0; n < c.num; ++n)
        add_scaled_row(c.d_table_VD + c.place_n[n] * c.width, d_row_nD.p + n * w.item, 1.0f, c.width);
    return 0;
}

HEADRACE_END

HEADRACE_LEVEL_API(tokens_forward)(const TokensCall* c) {
    using namespace headrace::HEADRACE_LEVEL;
    return tokens_forward(*c);
}
HEADRACE_LEVEL_API(tokens_backward)(const TokensCall* c) {
    using namespace headrace::HEADRACE_LEVEL;
    return tokens_backward(*c);
}
