// The exact best rows for a few queries, in one pass over the table.
//
// The part of a score that depends only on the row and the length of the history (`base`: the standing features
// weighted by each bucket's gains) is computed once for a memory that no longer changes. A tile of scores is then one
// product: the table's rows with the queries, and the rows' bases with the queries' buckets as one-hot columns. What a
// history adds (evidence, or OUT for what was met) affects a few thousand rows per query. A small table is one tile, to
// which it is added at once; for a large one it is sorted by tile first. The best rows are then rescored (shortlist.h),
// which may move them behind rows that are not, so a few more than asked for are kept until then.
#include "best_pass.h"

HEADRACE_BEGIN

// Scores of a block of rows (a multiple of MR) for all queries of the pass.
inline void multiply(BestPass& p, const float* rows, const float* bases, int64_t num, float* to) {
    const int64_t num_vectors = p.padded / W, num_buckets = p.call.memory.num_buckets;
    for (int64_t i = 0; i < num; i += MR) {
        float* tile = to + i * p.padded;
        gemm_rows(rows + i * p.call.width, p.call.width, 1, p.query_DQ, p.padded, p.call.width, tile, p.padded,
                  num_vectors, false);
        gemm_rows(bases + i * num_buckets, num_buckets, 1, p.bucket_BQ, p.padded, num_buckets, tile, p.padded,
                  num_vectors, true);
    }
}

// Adds what the queries make of a row's groups to its scores.
HEADRACE_INLINE void add_groups(const BestPass& p, int64_t row, float* scores) {
    const MemoryCall& m = p.call.memory;
    for (int64_t c = 0; c < m.num_columns; ++c) {
        const int64_t group = group_of_row(m, row, c);
        if (!group) continue;
        const float *base = p.base_CQ + c * p.padded, *lift = p.lift_GQ + group * p.padded;
        for (int64_t q = 0; q < p.padded; q += W)
            store(scores + q, load(scores + q) + (load(base + q) + load(lift + q)));
    }
}

// Offers the weighted sums of the rows that a limited query may choose among, except those that were met.
inline void offer_allowed(BestPass& p, int64_t q) {
    const BestCall& call = p.call;
    const MemoryCall& m = call.memory;
    const int64_t r = p.first + q, num_buckets = m.num_buckets, end = call.allowed_begin_R1[r + 1];
    for (int64_t k = m.met_begin_R[r]; k < m.met_end_R[r]; ++k) p.barred[m.met_rows[k]] |= 4;
    for (int64_t at = call.allowed_begin_R1[r]; at < end; at += BEST_CHUNK) {
        const int64_t num = min64(BEST_CHUNK, end - at);
        for (int64_t i = 0; i < round_up(num, MR); ++i) {
            const int64_t row = call.allowed_rows[at + min64(i, num - 1)];
            memcpy(p.rows + i * call.width, call.table_VD + row * call.width, call.width * sizeof(float));
            memcpy(p.bases + i * num_buckets, call.base_VB + row * num_buckets, num_buckets * sizeof(float));
        }
        multiply(p, p.rows, p.bases, round_up(num, MR), p.few);
        for (int64_t i = 0; i < num; ++i) {
            const int32_t row = call.allowed_rows[at + i];
            if (p.barred[row] & ~2) continue;
            add_groups(p, row, p.few + i * p.padded);
            p.answer.offer({p.few[i * p.padded + q] + weighed(p.s, row, p.gains(q)), row});
        }
    }
    for (int64_t k = m.met_begin_R[r]; k < m.met_end_R[r]; ++k) p.barred[m.met_rows[k]] &= ~4;
}

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

// The standing features of the listed rows, side by side.
inline void stand_listed(BestPass& p, int64_t num) {
    const MemoryCall& m = p.call.memory;
    float seen[LISTED], heat[NUM_HEAT * LISTED];
    int64_t first[LISTED], last[LISTED];
    for (int64_t c = 0; c < LISTED; ++c) {
        const int64_t row = c < num ? p.ranked[c].row : 0;
        seen[c] = m.seen_V[row], first[c] = m.first_V[row], last[c] = m.last_V[row];
        for (int h = 0; h < NUM_HEAT; ++h) heat[h * LISTED + c] = m.heat_HV[h * m.stride + row];
    }
    MemoryCall few = m;
    few.stride = LISTED, few.seen_V = seen, few.heat_HV = heat, few.first_V = first, few.last_V = last;
    p.s.standing = p.standing, p.s.padded = LISTED;
    stand(few, p.s, 0, LISTED);
}

// Sorts the best rows of a query into `ranked`, best first; returns how many there are.
inline int64_t rank_best(BestPass& p, int64_t q) {
    Best& best = p.best[q];
    int64_t num = 0;
    for (int64_t size = best.k; size > 0; --size) {  // repeatedly moves the worst to the end
        if (best.at[0].row != INT32_MAX) ++num;
        p.ranked[size - 1] = best.at[0];
        best.at[0] = best.at[size - 1];
        sift_down(best.at, size - 1, 0);
    }
    return num;
}

// New scores of the first ranked rows by the shortlist's network, while their evidence is there; returns by how much
// all are shifted.
inline float rescore_ranked(BestPass& p, int64_t q, int64_t num) {
    const BestCall& call = p.call;
    const MemoryCall& m = call.memory;
    const int64_t r = p.first + q;
    Shortlist<NUM_SEEN>& list = *p.s.shortlist;
    list.num = min64(num, LISTED);
    stand_listed(p, num);
    lift_groups(m, p.s, r);
    const float length = LENGTH_SCALE * (float)bucket_of(m, p.num_past(r));
    for (int64_t c = 0; c < LISTED; ++c) {
        const bool is_listed = c < list.num;
        const int64_t row = is_listed ? p.ranked[c].row : 0;
        const float *e = p.s.evidence + row * NUM_GATHERED, *own = p.s.own + row * OWN_STRIDE;
        list.row[c] = (int32_t)row;
        list.score[c] = is_listed ? p.ranked[c].score : UNLISTED;
        const float used = list.listed[c] = is_listed ? 1.0f : 0.0f, lead = list.score[c] - p.ranked[0].score;
        float logit = 0.0f;
        for (int64_t d = 0; d < call.width; ++d)
            logit += call.query_RD[r * call.width + d] * call.table_VD[row * call.width + d];
        for (int f = 0; f < NUM_STANDING; ++f) list.raw[f][c] = used * p.standing[f * LISTED + c];
        for (int f = 0; f < NUM_GATHERED; ++f) list.raw[NUM_STANDING + f][c] = used * e[f];
        for (int f = 0; f < NUM_OWN; ++f) list.raw[NUM_STANDING + NUM_GATHERED + f][c] = used * own[f];
        list.raw[MODEL][c] = used * logit;
        list.raw[LIFT][c] = used * lift_of(m, p.s, row);
        list.raw[LEAD][c] = used * (lead > LAST_LEAD ? lead : LAST_LEAD);
        list.raw[IS_OWN][c] = own[OWN_COUNT] > 0 ? used : 0.0f;
        list.raw[LENGTH][c] = used * length;
        list.raw[PAUSE][c] = used * p.s.pause;
    }
    clear_groups(p.s);
    if (!list.num) return 0.0f;
    list.look(m.shortlist_weight, m.shortlist_norm);
    return list.shift();
}

// Offers the rows that a limited query may choose among: the rescored ones, and all others by their weighted sum.
inline void offer_limited(BestPass& p, int64_t q, float shift) {
    const BestCall& call = p.call;
    const int64_t r = p.first + q, from = call.allowed_begin_R1[r], to = call.allowed_begin_R1[r + 1];
    const Shortlist<NUM_SEEN>& list = *p.s.shortlist;
    for (int64_t k = from; k < to; ++k) p.barred[call.allowed_rows[k]] |= 2;
    for (int64_t c = 0; c < list.num; ++c) {
        uint8_t& state = p.barred[list.row[c]];
        if (state == 2) p.answer.offer({list.out[c] + shift, list.row[c]});
        state |= 1;  // not again in `offer_allowed`
    }
    offer_allowed(p, q);
    for (int64_t c = 0; c < list.num; ++c) p.barred[list.row[c]] = 0;
    for (int64_t k = from; k < to; ++k) p.barred[call.allowed_rows[k]] = 0;
}

// The best few that may be answered, best first.
inline void answer(BestPass& p, int64_t q) {
    const BestCall& call = p.call;
    const int64_t r = p.first + q, num = rank_best(p, q);
    const Shortlist<NUM_SEEN>& list = *p.s.shortlist;
    const float shift = rescore_ranked(p, q, num);
    const int64_t out_from = call.out_begin_R1[r], out_to = call.out_begin_R1[r + 1];
    for (int64_t k = out_from; k < out_to; ++k) p.barred[call.out_rows[k]] = 1;
    p.answer.k = call.k_R[r];
    p.answer.start(OUT / 2);
    if (call.limited_R[r]) offer_limited(p, q, shift);
    else
        for (int64_t i = 0; i < num; ++i)
            if (!p.barred[p.ranked[i].row])
                p.answer.offer({i < list.num ? list.out[i] + shift : p.ranked[i].score, p.ranked[i].row});
    for (int64_t k = out_from; k < out_to; ++k) p.barred[call.out_rows[k]] = 0;
    p.answer.write(call.row_RK + r * call.most, call.score_RK + r * call.most, call.most);
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
