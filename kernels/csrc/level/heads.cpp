// The output heads of a training step, forward and backward in one call: logits of the kinds of action on each target
// and of the next item, both losses, and their gradients (kernels/heads/reference.py is the definition).
//
// There are two passes over the catalogue: its rows at unit length against all queries, and each row's gradient, back
// through its length. The logits in between, one row per query, are kept for the caller. Threads share rows, panels and
// queries; no sum depends on how many there are.
#include <math.h>
#include <omp.h>
#include <string.h>

#include "half.h"
#include "tiles.h"

// The argument, as the caller lays it out (kernels/heads/cpp.py).
struct HeadsCall {
    int64_t num_outputs, model, width, num_rows, num_kinds, num_priors, num_targets, num_queries, logit_stride,
        table_type, num_threads;
    const float* y_SM;
    const int64_t *output_R, *output_Q;  // rows of y; -1 in output_Q: the learnt start
    const void* table_VD;
    const uint8_t* valid_V;   // which rows compete; a target always does
    const int64_t* target_Q;  // 0: not learned
    const float *prior_RPK, *learned_RK;
    const uint8_t* is_new_R;
    const float *start_M, *query_weight, *query_bias, *rank_weight, *rank_bias_K, *rank_prior_PK, *norm_weight_M,
        *norm_bias_M;
    float *logit_QV, *logit_RK, *query_QD;
    float* loss;                 // mean losses of retrieval and ranking
    float *d_y_SM, *d_table_VD;  // null: no gradients
    float *d_start_M, *d_query_weight, *d_query_bias, *d_rank_weight, *d_rank_bias_K, *d_rank_prior_PK,
        *d_norm_weight_M, *d_norm_bias_M;
    double norm_eps, unit_eps, temperature, bias_scale, rank_share;  // rank_share: what ranking's loss is weighed by
    int64_t feedback;                                                // 0 reversal, 1 vanilla, 2 fnw
};

HEADRACE_BEGIN

constexpr int MOST_KINDS = 32;
constexpr int64_t TABLE_BLOCK = 64;

// ---- ranking: the kinds of action on a target ----

// Loss of one kind of one target, and its derivative with respect to the logit.
inline float rank_loss(float logit, float kind, bool is_new, int64_t feedback, float* slope) {
    const float small = expf(-fabsf(logit)), p = (logit >= 0 ? 1.0f : small) / (1.0f + small);
    const float positive = log1pf(small) + (logit < 0 ? -logit : 0.0f),
                negative = positive + logit;  // -log p, -log(1 - p)
    const bool is_done = kind > 0;
    float loss = is_done ? positive : negative, by = p - (is_done ? 1.0f : 0.0f);
    if (!is_new) {
        loss = (feedback == 0 ? -logit : positive) * kind;
        by = (feedback == 0 ? -1.0f : p - 1.0f) * kind;
    }
    const float weight = feedback == 2 ? (is_done ? 1.0f + p : (1.0f - p) * (1.0f + p)) : 1.0f;
    *slope = by * weight;
    return loss * weight;
}

// (K, model) of whole vectors from (model, K).
inline void turn(const float* from, int64_t rows, int64_t columns, int64_t stride, float* to) {
    memset(to, 0, columns * stride * sizeof(float));
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) to[c * stride + r] = from[r * columns + c];
}

// Targets one by one: there are few, each a few dot products. Adds to d_y_SM.
inline int rank_targets(const HeadsCall& c) {
    const int64_t stride = padded(c.model, LANES), kinds = c.num_kinds;
    Scratch<float> room((6 + 2 * kinds) * stride);
    if (!room.p || kinds > MOST_KINDS) return 1;
    float *normed = room.p, *affine = normed + stride, *d = affine + stride, *weight = d + stride,
          *d_weight = weight + kinds * stride;
    float *norm_weight = d_weight + kinds * stride, *d_norm_weight = norm_weight + stride,
          *d_norm_bias = d_norm_weight + stride;
    const bool learns = c.d_y_SM != nullptr;
    turn(c.rank_weight, c.model, kinds, stride, weight);
    widen(c.norm_weight_M, c.model, norm_weight);
    memset(d_weight, 0, kinds * stride * sizeof(float));
    memset(d_norm_weight, 0, 2 * stride * sizeof(float));
    double loss = 0;
    float d_bias[MOST_KINDS] = {};
    if (learns) memset(c.d_rank_prior_PK, 0, c.num_priors * kinds * sizeof(float));
    const float scale = (float)(c.rank_share / (double)(c.num_targets > 0 ? c.num_targets : 1)),
                of_width = 1.0f / (float)c.model;
    for (int64_t r = 0; r < c.num_targets; ++r) {
        widen(c.y_SM + c.output_R[r] * c.model, c.model, normed);
        vf total = {};
        for (int64_t m = 0; m < stride; m += LANES) total += load(normed + m);
        const float mean = sum(total) * of_width;
        for (int64_t m = 0; m < c.model; ++m) normed[m] -= mean;
        const float inverse = 1.0f / __builtin_sqrtf(dot(normed, normed, stride) * of_width + (float)c.norm_eps);
        for (int64_t m = 0; m < stride; m += LANES) store(normed + m, load(normed + m) * inverse);
        widen(c.norm_bias_M, c.model, affine);
        for (int64_t m = 0; m < stride; m += LANES)
            store(affine + m, fma(load(normed + m), load(norm_weight + m), load(affine + m)));
        memset(d, 0, stride * sizeof(float));
        for (int64_t k = 0; k < kinds; ++k) {
            float logit = dot(affine, weight + k * stride, stride) + c.rank_bias_K[k];
            for (int64_t p = 0; p < c.num_priors; ++p)
                logit += c.prior_RPK[(r * c.num_priors + p) * kinds + k] * c.rank_prior_PK[p * kinds + k];
            c.logit_RK[r * kinds + k] = logit;
            float slope;
            loss += rank_loss(logit, c.learned_RK[r * kinds + k], c.is_new_R[r] != 0, c.feedback, &slope);
            if (!learns) continue;
            slope *= scale;
            d_bias[k] += slope;
            for (int64_t p = 0; p < c.num_priors; ++p)
                c.d_rank_prior_PK[p * kinds + k] += slope * c.prior_RPK[(r * c.num_priors + p) * kinds + k];
            add_scaled(d_weight + k * stride, affine, slope, stride);
            add_scaled(d, weight + k * stride, slope, stride);
        }
        if (!learns) continue;
        vf plain = {}, along = {};
        for (int64_t m = 0; m < stride; m += LANES) {
            const vf at = load(d + m), n = load(normed + m), dn = at * load(norm_weight + m);
            store(d_norm_weight + m, fma(at, n, load(d_norm_weight + m)));
            store(d_norm_bias + m, load(d_norm_bias + m) + at);
            store(d + m, dn);
            plain += dn;
            along = fma(dn, n, along);
        }
        const float middle = sum(plain) * of_width, slope = sum(along) * of_width;
        for (int64_t m = 0; m < stride; m += LANES)
            store(d + m, (load(d + m) - middle - load(normed + m) * slope) * inverse);
        add_scaled_row(c.d_y_SM + c.output_R[r] * c.model, d, 1.0f, c.model);
    }
    c.loss[1] = (float)(loss / (double)(c.num_targets > 0 ? c.num_targets : 1));
    if (!learns) return 0;
    memcpy(c.d_rank_bias_K, d_bias, kinds * sizeof(float));
    store_row(c.d_norm_weight_M, d_norm_weight, c.model);
    store_row(c.d_norm_bias_M, d_norm_bias, c.model);
    for (int64_t m = 0; m < c.model; ++m)
        for (int64_t k = 0; k < kinds; ++k) c.d_rank_weight[m * kinds + k] = d_weight[k * stride + m];
    return 0;
}

// ---- retrieval: the next item ----

// Scales the first `direction` columns of a row to unit length, keeps the next one, and pads with zeros.
inline Length unit_direction(float* row, int64_t direction, int64_t stride, float eps) {
    const float last = row[direction];
    row[direction] = 0.0f;
    const float length = __builtin_sqrtf(dot(row, row, stride));
    const bool clamped = length < eps;
    const Length found = {1.0f / (clamped ? eps : length), clamped};
    for (int64_t d = 0; d < stride; d += LANES) store(row + d, load(row + d) * found.inverse);
    row[direction] = last;
    return found;
}

// The gradient of that, in place; the kept column's stays as it is.
inline void through_direction(float* g, float* unit, Length length, int64_t direction, int64_t stride) {
    const float last = g[direction], kept = unit[direction];
    g[direction] = unit[direction] = 0.0f;
    gradient_through_length(g, unit, length, stride);
    g[direction] = last, unit[direction] = kept;
}

struct Retrieval {
    int64_t direction, model, item,
        columns;  // columns of a query's direction; the model's, a row's and the catalogue's padded
    float *x_QM, *raw, *query, *d_query, *weight, *weight_turned, *unit, *panels, *bias, *push, *inverse_Q;
    Length* length;
    double* loss_Q;
};

// Queries from outputs: direction over the temperature, then the scale of the item's own bias.
inline void make_queries(const HeadsCall& c, const Retrieval& t) {
    for (int64_t q = 0; q < c.num_queries; ++q)
        widen(c.output_Q[q] < 0 ? c.start_M : c.y_SM + c.output_Q[q] * c.model, c.model, t.x_QM + q * t.model);
    memset(t.weight, 0, c.model * t.item * sizeof(float));
    memset(t.raw, 0, c.num_queries * t.item * sizeof(float));
    for (int64_t m = 0; m < c.model; ++m) widen(c.query_weight + m * t.direction, t.direction, t.weight + m * t.item);
    for (int64_t q = 0; q < c.num_queries; ++q) widen(c.query_bias, t.direction, t.raw + q * t.item);
    multiply<true>(c.num_queries, t.item, c.model, t.x_QM, t.model, 1, t.weight, t.item, t.raw, t.item);
    for (int64_t q = 0; q < c.num_queries; ++q) {
        float *raw = t.raw + q * t.item, *query = t.query + q * t.item;
        const Length length = unit_direction(raw, t.direction, t.item, (float)c.unit_eps);
        t.inverse_Q[q] = length.clamped ? -length.inverse : length.inverse;
        for (int64_t d = 0; d < t.item; d += LANES) store(query + d, load(raw + d) * (float)(1.0 / c.temperature));
        query[t.direction] = (float)c.bias_scale;
        store_row(c.query_QD + q * c.width, query, c.width);
    }
}

// Rows [first, first + PANEL) of the catalogue at unit length, as a panel, against all queries.
inline void score_panel(const HeadsCall& c, const Retrieval& t, int64_t first) {
    float *unit = t.unit + first * t.item, *panel = t.panels + first * t.item;
    for (int64_t v = 0; v < PANEL; ++v) {
        const int64_t row = first + v;
        const bool is_row = row < c.num_rows;
        if (is_row) {
            with_rows(c.table_VD, c.table_type,
                      [&](auto* table_VD) { widen(table_VD + row * c.width, c.width, unit + v * t.item); });
            t.length[row] = unit_direction(unit + v * t.item, t.direction, t.item, (float)c.unit_eps);
        } else {
            memset(unit + v * t.item, 0, t.item * sizeof(float));
        }
        t.bias[row] = is_row && c.valid_V[row] ? 0.0f : -INFINITY;
    }
    for (int64_t k = 0; k < t.item; k += LANES)
        for (int64_t v = 0; v < PANEL; v += LANES)
            transpose_block(unit + v * t.item + k, t.item, panel + k * PANEL + v, PANEL);
    column_of_tiles<2, false>(c.num_queries, t.query, t.item, 1, panel, PANEL, c.width, c.logit_QV + first,
                              c.logit_stride);
}

// The loss of one query, and its derivative with respect to each logit.
inline void push_query(const HeadsCall& c, const Retrieval& t, int64_t q, float scale) {
    const int64_t target = c.target_Q[q];
    float* push = t.push + q * t.columns;
    t.loss_Q[q] = 0;
    if (target <= 0) {
        if (c.d_y_SM) memset(push, 0, t.columns * sizeof(float));
        return;
    }
    const float *logit = c.logit_QV + q * c.logit_stride, own = logit[target];
    vf most = splat(own);
    for (int64_t v = 0; v < t.columns; v += LANES) most = larger(most, load(logit + v) + load(t.bias + v));
    const float best = largest(most);
    vf total = {};
    for (int64_t v = 0; v < t.columns; v += LANES) {
        const vf e = exp_negative(load(logit + v) + load(t.bias + v) - best);
        store(push + v, e);
        total += e;
    }
    float all = sum(total);
    if (!c.valid_V[target]) all += push[target] = exp_negative(splat(own - best))[0];
    t.loss_Q[q] = (double)(logf(all) + (best - own));
    const float by = scale / all;
    for (int64_t v = 0; v < t.columns; v += LANES) store(push + v, load(push + v) * by);
    push[target] -= scale;
}

// Gradients of rows [first, first + count) of the catalogue.
inline void pull_rows(const HeadsCall& c, const Retrieval& t, int64_t first, int64_t count, float* room) {
    multiply<false>(count, t.item, c.num_queries, t.push + first, 1, t.columns, t.query, t.item, room, t.item);
    for (int64_t v = 0; v < count; ++v) {
        through_direction(room + v * t.item, t.unit + (first + v) * t.item, t.length[first + v], t.direction, t.item);
        store_row(c.d_table_VD + (first + v) * c.width, room + v * t.item, c.width);
    }
}

// From the queries' gradients to those of the outputs and weights. Adds to d_y_SM.
inline void pull_queries(const HeadsCall& c, const Retrieval& t) {
    for (int64_t q = 0; q < c.num_queries; ++q) {
        float *d = t.d_query + q * t.item, *unit = t.raw + q * t.item;
        d[t.direction] = unit[t.direction] = 0.0f;
        for (int64_t i = 0; i < t.item; i += LANES) store(d + i, load(d + i) * (float)(1.0 / c.temperature));
        gradient_through_length(d, unit, {fabsf(t.inverse_Q[q]), t.inverse_Q[q] < 0}, t.item);
    }
    float* sums = t.panels;  // done with: (model + 1, item)
    memset(sums, 0, (c.model + 1) * t.item * sizeof(float));
    multiply<true>(c.model, t.item, c.num_queries, t.x_QM, 1, t.model, t.d_query, t.item, sums, t.item);
    for (int64_t m = 0; m < c.model; ++m) store_row(c.d_query_weight + m * t.direction, sums + m * t.item, t.direction);
    float* d_bias = sums + c.model * t.item;
    for (int64_t q = 0; q < c.num_queries; ++q) add_scaled(d_bias, t.d_query + q * t.item, 1.0f, t.item);
    store_row(c.d_query_bias, d_bias, t.direction);
    turn(t.weight, c.model, t.item, t.model, t.weight_turned);
    multiply<false>(c.num_queries, t.model, t.item, t.d_query, t.item, 1, t.weight_turned, t.model, t.x_QM, t.model);
    memset(c.d_start_M, 0, c.model * sizeof(float));
    for (int64_t q = 0; q < c.num_queries; ++q)
        add_scaled_row(c.output_Q[q] < 0 ? c.d_start_M : c.d_y_SM + c.output_Q[q] * c.model, t.x_QM + q * t.model, 1.0f,
                       c.model);
}

inline int retrieve(const HeadsCall& c) {
    Retrieval t;
    t.direction = c.width - 1;
    t.model = padded(c.model, LANES), t.item = padded(c.width, LANES), t.columns = padded(c.num_rows, PANEL);
    const int64_t num = c.num_queries,
                  panels = t.columns * t.item > (c.model + 1) * t.item ? t.columns * t.item : (c.model + 1) * t.item;
    Scratch<float> room(num * (t.model + 3 * t.item + 1) + 64 + c.model * t.item + t.item * t.model);
    Scratch<float> rows(t.columns * (t.item + 1) + panels), push(num * t.columns);
    Scratch<Length> length(t.columns);
    Scratch<double> losses(num);
    if (!room.p || !rows.p || !push.p || !length.p || !losses.p) return 1;
    t.x_QM = room.p, t.raw = t.x_QM + num * t.model, t.query = t.raw + num * t.item, t.d_query = t.query + num * t.item;
    t.weight = t.d_query + num * t.item, t.weight_turned = t.weight + c.model * t.item,
    t.inverse_Q = t.weight_turned + t.item * t.model;
    t.unit = rows.p, t.panels = t.unit + t.columns * t.item, t.bias = t.panels + panels;
    t.push = push.p, t.length = length.p, t.loss_Q = losses.p;
    int64_t num_learned = 0;
    for (int64_t q = 0; q < num; ++q) num_learned += c.target_Q[q] > 0;
    const float scale = 1.0f / (float)(num_learned > 0 ? num_learned : 1);
    make_queries(c, t);
    int failed = 0;
#pragma omp parallel num_threads(c.num_threads) reduction(| : failed)
    {
        Scratch<float> block(TABLE_BLOCK * t.item);
        failed |= !block.p;
#pragma omp for schedule(static)
        for (int64_t first = 0; first < t.columns; first += PANEL) score_panel(c, t, first);
#pragma omp for schedule(static)
        for (int64_t q = 0; q < num; ++q) push_query(c, t, q, scale);
        if (c.d_y_SM && block.p) {
#pragma omp for schedule(static)
            for (int64_t q = 0; q < num; q += TILE_ROWS) {
                const int64_t count = num - q < TILE_ROWS ? num - q : TILE_ROWS;
                multiply<false>(count, t.item, c.num_rows, t.push + q * t.columns, t.columns, 1, t.unit, t.item,
                                t.d_query + q * t.item, t.item);
            }
#pragma omp for schedule(static)
            for (int64_t first = 0; first < c.num_rows; first += TABLE_BLOCK)
                pull_rows(c, t, first, c.num_rows - first < TABLE_BLOCK ? c.num_rows - first : TABLE_BLOCK, block.p);
        }
    }
    if (failed) return 1;
    double loss = 0;
    for (int64_t q = 0; q < num; ++q) loss += t.loss_Q[q];
    c.loss[0] = (float)(loss * (num_learned > 0 ? 1.0 / (double)num_learned : 0.0));
    if (c.d_y_SM) pull_queries(c, t);
    return 0;
}

HEADRACE_END

// Returns 1 if out of memory.
HEADRACE_LEVEL_API(heads)(const HeadsCall* c) {
    using namespace headrace::HEADRACE_LEVEL;
    if (c->d_y_SM) memset(c->d_y_SM, 0, c->num_outputs * c->model * sizeof(float));
    return retrieve(*c) || rank_targets(*c);
}
