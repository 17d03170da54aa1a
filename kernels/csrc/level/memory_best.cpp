// The exact best rows for a few queries, in one pass over the table.
//
// The part of a score that depends only on the row and the length of the history (`base`: the standing features
// weighted by each bucket's gains) is computed once for a memory that no longer changes. A tile of scores is then one
// product: the table's rows with the queries, and the rows' bases with the queries' buckets as one-hot columns. What a
// history adds (evidence, or OUT for what was met) affects a few thousand rows per query. A small table is one tile, to
// which it is added at once; for a large one it is sorted by tile first. The best rows are then rescored (shortlist.h),
// which may move them behind rows that are not, so a few more than asked for are kept until then.
#include "best_answer.h"

HEADRACE_BEGIN

// Fills the tile with scores of rows from `from` on, without any history; returns how many rows it holds.
inline int64_t fill_tile(BestPass& p, int64_t from) {
    const BestCall& call = p.call;
    const int64_t num_buckets = call.memory.num_buckets, num = min64(p.chunk, call.memory.num_rows - from),
                  whole = num / MR * MR;
    const float *rows = call.table_VD + from * call.width, *bases = call.base_VB + from * num_buckets;
    multiply(p, rows, bases, whole, p.tile);
    if (whole < num) {
        memset(p.rows, 0, MR * call.width * sizeof(float));  // the last rows, padded
        memset(p.bases, 0, MR * num_buckets * sizeof(float));
        memcpy(p.rows, rows + whole * call.width, (num - whole) * call.width * sizeof(float));
        memcpy(p.bases, bases + whole * num_buckets, (num - whole) * num_buckets * sizeof(float));
        multiply(p, p.rows, p.bases, MR, p.tile + whole * p.padded);
    }
    for (int64_t i = 0; i < num; ++i) add_groups(p, from + i, p.tile + i * p.padded);
    return num;
}

// Adds what a history contributes to its rows: to the tile if there is only one, else to the list of extras. The
// evidence stays.
inline void note_history(BestPass& p, int64_t q) {
    const MemoryCall& m = p.call.memory;
    const int64_t r = p.first + q;
    const bool is_one = p.num_chunks == 1;
    collect(m, p.s, r);
    const auto add = [&](int32_t row, float value) {
        if (is_one) p.tile[row * p.padded + q] += value;
        else p.extras[p.num_extras++] = {row, (int32_t)q, value};
    };
    for (int64_t t = 0; t < p.s.num_touched; ++t) {
        const int32_t row = p.s.touched[t];
        add(row, weighed(p.s, row, p.gains(q)));
    }
    for (int64_t k = m.met_begin_R[r]; k < m.met_end_R[r]; ++k) add(m.met_rows[k], OUT);
}

inline void sort_extras(BestPass& p) {
    memset(p.chunk_end, 0, (p.num_chunks + 1) * sizeof(int64_t));
    for (int64_t e = 0; e < p.num_extras; ++e) ++p.chunk_end[p.extras[e].row / BEST_CHUNK + 1];
    for (int64_t c = 0; c < p.num_chunks; ++c) p.chunk_end[c + 1] += p.chunk_end[c];
    for (int64_t e = 0; e < p.num_extras; ++e) p.sorted[p.chunk_end[p.extras[e].row / BEST_CHUNK]++] = p.extras[e];
}

// Offers the rows of a tile that beat the worst of the best so far.
inline void offer_tile(BestPass& p, int64_t first_row, int64_t num, float* least_Q) {
    for (int64_t i = 0; i < num; ++i)
        for (int64_t q = 0; q < p.padded; q += W) {
            const float* at = p.tile + i * p.padded + q;
            const vi better = load(at) >= load(least_Q + q);
            uint64_t any = 0;
            for (int l = 0; l < W; l += 2) any |= ((const uint64_t*)&better)[l / 2];
            if (!any) continue;
            for (int l = 0; l < W; ++l)
                if (better[l]) {
                    p.best[q + l].offer({at[l], (int32_t)(first_row + i)});
                    least_Q[q + l] = p.best[q + l].least();
                }
        }
}

inline void score_small_table(BestPass& p) {
    const int64_t num = fill_tile(p, 0);
    for (int64_t q = 0; q < p.num; ++q) {
        if (p.best[q].k) {
            note_history(p, q);
            float least = p.best[q].least();
            for (int64_t row = 0; row < num; ++row) {
                const float score = p.tile[row * p.padded + q];
                if (!(score >= least)) continue;
                p.best[q].offer({score, (int32_t)row});
                least = p.best[q].least();
            }
        }
        answer(p, q);
        if (p.best[q].k) clear(p.s);
    }
}

inline void score_large_table(BestPass& p) {
    float least_Q[MOST_QUERIES];
    for (int64_t q = 0; q < p.padded; ++q) {
        least_Q[q] = q < p.num ? p.best[q].least() : INFINITY;
        if (q >= p.num || !p.best[q].k) continue;
        note_history(p, q);
        clear(p.s);
    }
    sort_extras(p);
    int64_t e = 0;
    for (int64_t c = 0; c < p.num_chunks; ++c) {
        const int64_t from = c * BEST_CHUNK, num = fill_tile(p, from);
        for (; e < p.chunk_end[c]; ++e)
            p.tile[(p.sorted[e].row - from) * p.padded + p.sorted[e].query] += p.sorted[e].add;
        offer_tile(p, from, num, least_Q);
    }
    for (int64_t q = 0; q < p.num; ++q) {
        const MemoryCall& m = p.call.memory;
        const int64_t r = p.first + q;
        if (p.best[q].k) collect(m, p.s, r);
        answer(p, q);
        if (p.best[q].k) clear(p.s);
    }
}

inline bool find_best(const BestCall& call) {
    static thread_local Blank blank;
    for (int64_t first = 0; first < call.memory.num_events; first += MOST_QUERIES) {
        BestPass p{call, first, min64(MOST_QUERIES, call.memory.num_events - first)};
        if (!make_pass(p, blank)) return false;
        lay_out(p);
        if (p.num_chunks == 1) score_small_table(p);
        else score_large_table(p);
    }
    return true;
}

HEADRACE_END

// Returns 1 if out of memory.
HEADRACE_LEVEL_API(memory_best)(const BestCall* call) { return !headrace::HEADRACE_LEVEL::find_best(*call); }
