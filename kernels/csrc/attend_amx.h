// One (user, head) of HSTU attention on AMX tiles: the counterpart of attend.h, with the same names.
//
// Operands are sums of TERMS bfloat16 (amx_tiles.h): one if the model is bfloat16, two if it is float32. Scores,
// activations and sums are float32. An item's operands are packed once. The forward pass takes ROWS queries at a time
// and keeps their weights for all keys, so that the output is summed in registers. The backward pass takes COLS keys at
// a time and keeps the weights and slopes of all queries, so that the gradients of keys and values are summed in
// registers too; they are summed transposed, so that the weights can be a right operand without being rearranged.
#pragma once

#include "ahead.h"
#include "rows.h"
#include "weigh_amx.h"

HEADRACE_BEGIN

struct Shape {  // of a scratch: the widest item
    int64_t rows, cols, qk_pad, v_pad, terms;
};

Shape widest(const HeadraceAttention& a, const Plan& plan, int64_t terms) {
    return {round_up(plan.most_queries, ROWS), round_up(plan.most_keys, COLS), round_up(a.qk_dim, DEPTH),
            round_up(a.v_dim, DEPTH), terms};
}

struct Scratch {
    Operand q, grad;                    // queries and the output's gradient
    Operand k_turned, v_turned;         // keys and values, transposed
    Operand k_summed, v_summed;         // as rows to be summed
    Operand q_across, grad_across;      // queries and gradient, transposed
    Operand weight_rows, slope_rows;    // ROWS queries: against all keys (forward), against COLS (backward)
    Operand weight_pairs, slope_pairs;  // all queries against COLS keys
    float *weight, *slope;              // (ROWS, COLS): scores, then weights and slopes
    float *out, *dq, *across, *turned;
    int64_t terms;
    BiasScratch pairs;

    Operand get(Arena& arena, int64_t across_sum, int64_t along_sum) const {
        const int64_t apart = across_sum * along_sum / 2;
        return {arena.get<word>(terms * apart), along_sum / DEPTH * TILE, apart};
    }

    void lay_out(Arena& arena, const Shape& s, bool backward, const HeadraceAttention& a) {
        terms = s.terms;
        const int64_t pad = max64(s.qk_pad, s.v_pad);
        q = get(arena, s.rows, s.qk_pad);
        k_turned = get(arena, s.cols, s.qk_pad);
        weight = arena.get<float>(ROWS * COLS);
        if (!backward) {
            v_summed = get(arena, s.v_pad, s.cols);
            weight_rows = get(arena, ROWS, s.cols);
            out = arena.get<float>(ROWS * s.v_pad);
        } else {
            grad = get(arena, s.rows, s.v_pad);
            v_turned = get(arena, s.cols, s.v_pad);
            k_summed = get(arena, s.qk_pad, s.cols);
            q_across = get(arena, s.qk_pad, s.rows);
            grad_across = get(arena, s.v_pad, s.rows);
            slope_rows = get(arena, ROWS, COLS);
            weight_pairs = get(arena, COLS, s.rows);
            slope_pairs = get(arena, COLS, s.rows);
            slope = arena.get<float>(ROWS * COLS);
            dq = arena.get<float>(s.rows * s.qk_pad);
            across = arena.get<float>(pad * COLS);
            turned = arena.get<float>(COLS * pad);
        }
        pairs.lay_out(arena, s.rows, s.cols, backward, a);
    }
};

// ---- sources of operands: rows of a tensor, perhaps after those of a cache; zeros past their end ----

template <typename T>
struct TensorRows {
    const T *cached, *fresh;
    int64_t cached_stride, fresh_stride, num_cached, num_rows, width;

    HEADRACE_INLINE const T* row(int64_t r) const {
        return r < num_cached ? cached + r * cached_stride : fresh + (r - num_cached) * fresh_stride;
    }
    template <int TERMS>
    HEADRACE_INLINE void row_words(word* to, int64_t apart, int64_t r, int64_t d) const {
        const int64_t left = r < num_rows ? max64(width - d, 0) : 0;
        const __mmask32 mask = left >= DEPTH ? ~0u : (1u << left) - 1;
        const T* at = row(r) + d;
        if constexpr (sizeof(T) == 2)
            store(to, (vu)_mm512_permutexvar_epi16(apart_words(), _mm512_maskz_loadu_epi16(mask, at)));
        else
            store_words<TERMS>(to, apart, (vf)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), at),
                               (vf)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), at + 16));
    }
};

template <typename T>
TensorRows<T> new_rows(const HeadraceTensor& fresh, const Item& item, int64_t width) {
    return {nullptr, rows_of<T>(fresh, item.first, item.head), 0, fresh.row, 0, item.queries, width};
}

template <typename T>
TensorRows<T> all_rows(const HeadraceAttention& a, const HeadraceTensor& cache, const HeadraceTensor& fresh,
                       const Item& item, int64_t width) {
    TensorRows<T> rows = new_rows<T>(fresh, item, width);
    if (!item.cached) return rows;
    rows.cached = rows_of<T>(cache, a.cache_start[item.user], item.head);
    rows.cached_stride = cache.row;
    rows.num_cached = item.cached;
    rows.num_rows = item.keys;
    return rows;
}

// ---- an item ----

template <int TERMS>
inline void clear_step(const Operand& x, int64_t step) {
    for (int t = 0; t < TERMS; ++t)
        for (int64_t r = 0; r < ROWS / 16; ++r) memset(x.at(r, step).tiles + t * x.apart, 0, sizeof(word) * TILE);
}

template <typename T, int TERMS>
void forward_item(const HeadraceAttention& a, const Item& item, const BiasTables& tables, Scratch& s, Ahead& ahead) {
    const int64_t qk_pad = round_up(a.qk_dim, DEPTH), v_pad = round_up(a.v_dim, DEPTH);
    const int64_t rows = round_up(item.queries, ROWS), cols = round_up(item.keys, COLS);
    s.v_summed.next = cols / DEPTH * TILE;
    pack<TERMS>(all_rows<T>(a, a.cache_k, a.k, item, a.qk_dim), cols, qk_pad, RightTurned{s.k_turned});
    pack<TERMS>(all_rows<T>(a, a.cache_v, a.v, item, a.v_dim), cols, v_pad, RightRows<APART>{s.v_summed});
    pack<TERMS>(new_rows<T>(a.q, item, a.qk_dim), rows, qk_pad, LeftRows{s.q});
    ahead.pace(num_groups(item, COLS));
    for (int64_t i0 = 0; i0 < item.queries; i0 += ROWS) {
        int64_t last = 0;  // steps of keys that any row sees
        for (int64_t j0 = 0; j0 < item.keys; j0 += COLS) {
            Group groups[GROUPS];
            const int64_t steps = (see_block(item, i0, j0, groups) + DEPTH - 1) / DEPTH;
            for (; steps && last < j0 / DEPTH; ++last) clear_step<TERMS>(s.weight_rows, last);
            if (steps == 0) continue;
            multiply_rows<TERMS, false>(ROWS / 16, 2 * steps, qk_pad / DEPTH, s.q.at(i0 / 16, 0),
                                        s.k_turned.at(j0 / 16, 0), s.weight, COLS);
            for (int64_t g = 0; g < GROUPS; ++g) {
                ahead.step();
                prefetch_buckets(item, tables, i0 + g * MR, j0 + COLS, MR);
                weigh<TERMS>(item, tables, groups[g], s.weight + g * MR * COLS, steps,
                             s.weight_rows.at(g * MR / 16, j0 / DEPTH).tiles + g * MR % 16 * 16, s.weight_rows.apart);
            }
            last = j0 / DEPTH + steps;
        }
        multiply_rows<TERMS, false>(ROWS / 16, v_pad / 16, last, s.weight_rows, s.v_summed, s.out, v_pad);
        unpack<T>(a.out, item, i0, min64(ROWS, item.queries - i0), a.v_dim, s.out, v_pad, static_cast<float>(a.scale));
    }
}

// The transposed sums of a strip of keys (dimension, COLS) → rows of a gradient; cached keys may have none.
template <typename T>
void finish_strip(const HeadraceAttention& a, const HeadraceTensor& tensor, const HeadraceTensor* slopes,
                  const Item& item, int64_t j0, int64_t width, int64_t pad, const Scratch& s) {
    for (int64_t j = 0; j < COLS; j += W)
        for (int64_t d = 0; d < pad; d += W)
            transpose_block(s.across + d * COLS + j, COLS, s.turned + j * pad + d, pad);
    const int64_t first = a.cache_grad ? j0 : max64(j0, item.cached);
    unpack_grad<T>(a, tensor, slopes, item, first - item.cached, min64(j0 + COLS, item.keys) - first, width,
                   s.turned + (first - j0) * pad, pad);
}

template <typename T, int TERMS>
void backward_item(const HeadraceAttention& a, const Item& item, const BiasTables& tables, Scratch& s, BiasGrads& grads,
                   const Through* through, Ahead& ahead) {
    const int64_t qk_pad = round_up(a.qk_dim, DEPTH), v_pad = round_up(a.v_dim, DEPTH);
    const int64_t rows = round_up(item.queries, ROWS), cols = round_up(item.keys, COLS), row_steps = rows / DEPTH;
    s.k_summed.next = cols / DEPTH * TILE;
    s.q_across.next = s.grad_across.next = s.weight_pairs.next = s.slope_pairs.next = row_steps * TILE;
    pack<TERMS>(all_rows<T>(a, a.cache_k, a.k, item, a.qk_dim), cols, qk_pad, RightTurned{s.k_turned},
                RightRows<APART>{s.k_summed});
    pack<TERMS>(all_rows<T>(a, a.cache_v, a.v, item, a.v_dim), cols, v_pad, RightTurned{s.v_turned});
    pack<TERMS>(new_rows<T>(a.q, item, a.qk_dim), rows, qk_pad, LeftRows{s.q}, LeftTurned{s.q_across});
    pack<TERMS>(new_rows<T>(a.grad, item, a.v_dim), rows, v_pad, LeftRows{s.grad}, LeftTurned{s.grad_across});
    grads.open(s.pairs, item);
    ahead.pace(2 * num_groups(item, COLS));
    for (int64_t j0 = 0; j0 < item.keys; j0 += COLS) {
        int64_t from = row_steps;  // the first block that sees any of these keys
        for (int64_t i0 = 0; i0 < item.queries; i0 += ROWS) {
            Group groups[GROUPS];
            const int64_t steps = (see_block(item, i0, j0, groups) + DEPTH - 1) / DEPTH, block = i0 / DEPTH;
            const Slopes to = {s.weight_pairs.at(0, block), s.slope_pairs.at(0, block), s.slope_rows};
            float* dq = s.dq + i0 * qk_pad;
            if (steps == 0) {
                if (j0 == 0) memset(dq, 0, sizeof(float) * ROWS * qk_pad);
                if (from < block)
                    for (int64_t g = 0; g < GROUPS; ++g)
                        clear_slopes<TERMS>(s.slope + g * MR * COLS, g * MR, 0, COLS / DEPTH, to);
                continue;
            }
            from = min64(from, block);
            ahead.step();
            multiply_rows<TERMS, false>(ROWS / 16, 2 * steps, qk_pad / DEPTH, s.q.at(i0 / 16, 0),
                                        s.k_turned.at(j0 / 16, 0), s.weight, COLS);
            ahead.step();
            multiply_rows<TERMS, false>(ROWS / 16, 2 * steps, v_pad / DEPTH, s.grad.at(i0 / 16, 0),
                                        s.v_turned.at(j0 / 16, 0), s.slope, COLS);
            for (int64_t g = 0; g < GROUPS; ++g) {
                ahead.step();
                prefetch_buckets(item, tables, i0 + ROWS + g * MR, j0, MR);
                weigh_backward<TERMS>(item, tables, groups[g], s.weight + g * MR * COLS, s.slope + g * MR * COLS,
                                      g * MR, to, s.pairs);
            }
            ahead.step();
            time_gradient(item, tables, i0, j0, min64(ROWS, item.queries - i0),
                          min64(steps * DEPTH, round_up(item.keys - j0, W)), s.slope, COLS, grads);
            ahead.step();
            if (j0 == 0)
                multiply_rows<TERMS, false>(ROWS / 16, qk_pad / 16, steps, s.slope_rows, s.k_summed, dq, qk_pad);
            else
                multiply_rows<TERMS, true>(ROWS / 16, qk_pad / 16, steps, s.slope_rows, s.k_summed.at(0, j0 / DEPTH),
                                           dq, qk_pad);
        }
        if (!a.cache_grad && j0 + COLS <= item.cached) continue;
        const int64_t count = row_steps - from;
        multiply_rows<TERMS, false>(v_pad / 16, COLS / 16, count, s.grad_across.at(0, from), s.weight_pairs.at(0, from),
                                    s.across, COLS);
        finish_strip<T>(a, a.dv, through ? &through->v : nullptr, item, j0, a.v_dim, v_pad, s);
        multiply_rows<TERMS, false>(qk_pad / 16, COLS / 16, count, s.q_across.at(0, from), s.slope_pairs.at(0, from),
                                    s.across, COLS);
        finish_strip<T>(a, a.dk, through ? &through->k : nullptr, item, j0, a.qk_dim, qk_pad, s);
    }
    grads.close(s.pairs, item);
    unpack_grad<T>(a, a.dq, through ? &through->q : nullptr, item, 0, item.queries, a.qk_dim, s.dq, qk_pad);
}

HEADRACE_END
