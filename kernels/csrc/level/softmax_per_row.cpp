// Cross entropy of queries, each against a target and its own list of negatives. A chunk of queries at a time: first
// their probabilities (queries in parallel), then the table's gradient (every thread adds to its own rows, in the order
// of queries and lists, so that the result does not depend on the number of threads).
#include <math.h>
#include <omp.h>
#include <string.h>

#include "softmax_call.h"
#include "tiles.h"

HEADRACE_BEGIN

constexpr int64_t QUERIES = 64;  // a chunk
constexpr int GROUP = 4;         // vectors of a row's gradient in registers

// Lane j of the result: the sum of v[j]'s lanes. Halves of pairs are added, then quarters, and so on.
template <int HALF>
HEADRACE_INLINE vf add_halves(vf a, vf b) {
    vi low = {}, high = {};
    for (int lane = 0; lane < LANES; ++lane) {
        const int block = lane / HALF;
        low[lane] = (block / 2) * 2 * HALF + lane % HALF + (block % 2 ? LANES : 0);
        high[lane] = low[lane] + HALF;
    }
    return shuffle(a, b, low) + shuffle(a, b, high);
}
template <int HALF>
HEADRACE_INLINE vf sums(vf* v) {
#pragma GCC unroll 16
    for (int i = 0; i < HALF; ++i) v[i] = add_halves<HALF>(v[i], v[i + HALF]);
    return sums<HALF / 2>(v);
}
template <>
HEADRACE_INLINE vf sums<0>(vf* v) {
    return v[0];
}

// Lane j: query · row of id[j]. VECTORS of a row, held in registers (0: any number).
template <int VECTORS>
HEADRACE_INLINE vf dots(const float* query, const float* unit_UD, const int32_t* id, int64_t stride) {
    vf v[LANES] = {};
    if constexpr (VECTORS == 0) {
        for (int64_t d = 0; d < stride; d += LANES) {
            const vf q = load(query + d);
#pragma GCC unroll 16
            for (int j = 0; j < LANES; ++j) v[j] = fma(q, load(unit_UD + id[j] * stride + d), v[j]);
        }
    } else {
        vf q[VECTORS ? VECTORS : 1];
#pragma GCC unroll 8
        for (int i = 0; i < VECTORS; ++i) q[i] = load(query + i * LANES);
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) {
            const float* row = unit_UD + (int64_t)id[j] * (VECTORS * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < VECTORS; ++i) v[j] = fma(q[i], load(row + i * LANES), v[j]);
        }
    }
    return sums<LANES / 2>(v);
}

// out = sum over s of weight[s] * row of id[s], `vectors` vectors of it from column d on
template <int VECTORS>
HEADRACE_INLINE void weighted_rows(const float* unit_UD, const int32_t* id, const float* weight, int64_t num,
                                   int64_t stride, int64_t d, float* out) {
    vf total[VECTORS] = {};
    for (int64_t s = 0; s < num; ++s) {
        if (weight[s] == 0.0f) continue;
        const float* row = unit_UD + (int64_t)id[s] * stride + d;
        const vf w = splat(weight[s]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) total[v] = fma(w, load(row + v * LANES), total[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(out + d + v * LANES, total[v]);
}

struct PerRow {
    const SoftmaxCall& call;
    Rows query, table;
    int64_t stride, num_padded;
    float* unit_UD;
    float* sum_UD;     // the unit rows' gradient; or null
    float* unit_QD;    // of a chunk of queries
    float* weight_QS;  // e^(score - largest), later what multiplies the unit query in the rows' gradient
    float* target_Q;   // the same of the target
    int32_t* id_QS;
};

// Ids of a query's list, and what is added to its scores: -infinity for slots that do not compete. Returns whether all
// are rows of the table or -1; other ids are never dereferenced.
inline bool load_list(const PerRow& p, int64_t r, float* bias, int32_t* id) {
    const SoftmaxCall& c = p.call;
    const int64_t* negatives = c.negatives + r * c.num_negatives;
    const int64_t hit = c.mask_hits ? c.target_R[r] : -1;
    uint64_t outside = 0;
    for (int64_t s = 0; s < c.num_negatives; ++s) {
        const bool inside = (uint64_t)negatives[s] < (uint64_t)c.num_rows;
        outside |= (uint64_t)(!inside & (negatives[s] != -1));
        id[s] = (int32_t)(inside ? negatives[s] : 0);
        bias[s] = (!inside | (negatives[s] == hit)) ? -INFINITY : 0.0f;
    }
    for (int64_t s = c.num_negatives; s < p.num_padded; ++s) {
        id[s] = 0;
        bias[s] = -INFINITY;
    }
    if (!c.log_q_negatives) return outside == 0;
    const float* log_q = c.log_q_negatives + r * c.num_negatives;
    for (int64_t s = 0; s < c.num_negatives; ++s) bias[s] = bias[s] == 0.0f ? -log_q[s] : bias[s];
    return outside == 0;
}

// bias → score; returns the largest of them and of `before`.
template <int VECTORS>
inline float score_list(const PerRow& p, const float* unit, float* score, const int32_t* id, float before) {
    vf most = splat(before);
    for (int64_t s = 0; s < p.num_padded; s += LANES) {
        const vf bias = load(score + s);
        const vf product = dots<VECTORS>(unit, p.unit_UD, id + s, p.stride) * splat(p.call.inverse_temperature);
        const vf result = bias == splat(-INFINITY) ? bias : product + bias;
        store(score + s, result);
        most = larger(most, result);
    }
    return largest(most);
}

inline float score_query(const PerRow& p, const float* unit, float* score, const int32_t* id, float target_score) {
    switch (p.stride / LANES) {
        case 2: return score_list<2>(p, unit, score, id, target_score);
        case 4: return score_list<4>(p, unit, score, id, target_score);
        case 8: return score_list<8>(p, unit, score, id, target_score);
        default: return score_list<0>(p, unit, score, id, target_score);
    }
}

// Returns whether its list is valid.
inline bool one_query(const PerRow& p, int64_t r, int64_t place) {
    const SoftmaxCall& c = p.call;
    float *unit = p.unit_QD + place * p.stride, *weight = p.weight_QS + place * p.num_padded;
    int32_t* id = p.id_QS + place * p.num_padded;
    const Length length = unit_row(p.query, r, unit);
    const float* target = p.unit_UD + c.target_R[r] * p.stride;
    const float target_score =
        dot(unit, target, p.stride) * c.inverse_temperature - (c.log_q_target_R ? c.log_q_target_R[r] : 0.0f);
    const bool valid = load_list(p, r, weight, id);
    const float most = score_query(p, unit, weight, id, target_score);
    vf total = {};
    for (int64_t s = 0; s < p.num_padded; s += LANES) {
        const vf e = exp_negative(load(weight + s) - splat(most));
        store(weight + s, e);
        total += e;
    }
    const float of_target = expf(target_score - most), all = sum(total) + of_target;
    c.loss_R[r] = logf(all) + (most - target_score);
    const float by = (c.weight_R ? c.weight_R[r] : 1.0f) * c.inverse_temperature;
    for (int64_t s = 0; s < p.num_padded; s += LANES) store(weight + s, load(weight + s) * splat(by / all));
    p.target_Q[place] = (of_target / all - 1.0f) * by;
    if (!c.grad_query_RD) return valid;
    float grad[LANES * 256];  // width is at most 4096 (checked by the caller)
    int64_t d = 0;
    for (; d + GROUP * LANES <= p.stride; d += GROUP * LANES)
        weighted_rows<GROUP>(p.unit_UD, id, weight, p.num_padded, p.stride, d, grad);
    for (; d < p.stride; d += LANES) weighted_rows<1>(p.unit_UD, id, weight, p.num_padded, p.stride, d, grad);
    add_scaled(grad, target, p.target_Q[place], p.stride);
    gradient_through_length(grad, unit, length, p.stride);
    store_row(c.grad_query_RD + r * c.width, grad, c.width);
    return valid;
}

HEADRACE_INLINE bool owns(int64_t row, uint32_t me, uint32_t team) {
    return team == 1 || (uint32_t)((((uint64_t)row * 0x9E3779B97F4A7C15ull >> 32) * team) >> 32) == me;
}

// sum rows += weight * unit, for those of a query's negatives that belong to the thread; VECTORS per row (0: any
// number).
template <int VECTORS>
HEADRACE_INLINE void add_to_negatives(const PerRow& p, const float* unit, const float* weight, const int32_t* id,
                                      uint32_t me, uint32_t team) {
    const int64_t num = p.call.num_negatives, stride = VECTORS ? VECTORS * LANES : p.stride;
    vf held[VECTORS ? VECTORS : 1];
    for (int v = 0; v < VECTORS; ++v) held[v] = load(unit + v * LANES);
    for (int64_t s = 0; s < num; ++s) {
        if (weight[s] == 0.0f || !owns(id[s], me, team)) continue;
        float* sum = p.sum_UD + id[s] * stride;
        const vf w = splat(weight[s]);
        if constexpr (VECTORS == 0) add_scaled(sum, unit, weight[s], stride);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) store(sum + v * LANES, fma(w, held[v], load(sum + v * LANES)));
    }
}

inline void add_to_rows(const PerRow& p, int64_t first, int64_t num, uint32_t me, uint32_t team) {
    for (int64_t i = 0; i < num; ++i) {
        const float *unit = p.unit_QD + i * p.stride, *weight = p.weight_QS + i * p.num_padded;
        const int32_t* id = p.id_QS + i * p.num_padded;
        switch (p.stride / LANES) {
            case 2: add_to_negatives<2>(p, unit, weight, id, me, team); break;
            case 4: add_to_negatives<4>(p, unit, weight, id, me, team); break;
            case 8: add_to_negatives<8>(p, unit, weight, id, me, team); break;
            default: add_to_negatives<0>(p, unit, weight, id, me, team);
        }
        const int64_t target = p.call.target_R[first + i];
        if (owns(target, me, team)) add_scaled(p.sum_UD + target * p.stride, unit, p.target_Q[i], p.stride);
    }
}

inline int per_row(const SoftmaxCall& c) {
    const int64_t stride = padded(c.width, LANES), num_padded = padded(c.num_negatives, LANES);
    Scratch<float> unit_UD(c.num_rows * stride), sum_UD(c.grad_table_UD ? c.num_rows * stride : 1);
    Scratch<float> unit_QD(QUERIES * stride), weight_QS(QUERIES * num_padded), target_Q(QUERIES);
    Scratch<int32_t> id_QS(QUERIES * num_padded);
    Scratch<Length> length_U(c.num_rows);
    if (!unit_UD.p || !sum_UD.p || !unit_QD.p || !weight_QS.p || !target_Q.p || !id_QS.p || !length_U.p) return 1;
    const Rows table = {c.table_UD, c.type, c.width, stride, c.normalize, c.eps};
    const Rows query = {c.query_RD, c.type, c.width, stride, c.normalize, c.eps};
    const PerRow p = {
        c,         query,       table,      stride, num_padded, unit_UD.p, c.grad_table_UD ? sum_UD.p : nullptr,
        unit_QD.p, weight_QS.p, target_Q.p, id_QS.p};
    int outside = 0;
#pragma omp parallel num_threads(c.num_threads) reduction(| : outside)
    {
        const uint32_t me = (uint32_t)omp_get_thread_num(), team = (uint32_t)omp_get_num_threads();
#pragma omp for schedule(static)
        for (int64_t row = 0; row < c.num_rows; ++row) {
            length_U.p[row] = unit_row(table, row, unit_UD.p + row * stride);
            if (p.sum_UD) memset(p.sum_UD + row * stride, 0, stride * sizeof(float));
        }
        for (int64_t first = 0; first < c.num_queries; first += QUERIES) {
            const int64_t num = c.num_queries - first < QUERIES ? c.num_queries - first : QUERIES;
#pragma omp for schedule(static)
            for (int64_t i = 0; i < num; ++i) outside |= !one_query(p, first + i, i);
            if (p.sum_UD) add_to_rows(p, first, num, me, team);
#pragma omp barrier
        }
        if (p.sum_UD) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < c.num_rows; ++row) {
                float* sum = p.sum_UD + row * stride;
                gradient_through_length(sum, unit_UD.p + row * stride, length_U.p[row], stride);
                store_row(c.grad_table_UD + row * c.width, sum, c.width);
            }
        }
    }
    return outside ? 2 : 0;  // the caller finds out which
}

HEADRACE_END

HEADRACE_LEVEL_API(softmax_per_row)(const SoftmaxCall* c) { return headrace::HEADRACE_LEVEL::per_row(*c); }
