// What is done with the scores of a query's best rows: they are rescored, and those that may be answered are ranked.
// Included by csrc/level/memory_best.cpp and csrc/level/memory_among.cpp.
#pragma once

#include "best_pass.h"

HEADRACE_BEGIN

// Scores of a block of rows (a multiple of MR) for the queries [from, from + num_queries), whole vectors of them.
inline void multiply(BestPass& p, const float* rows, const float* bases, int64_t num, float* to, int64_t from,
                     int64_t num_queries) {
    const int64_t num_vectors = num_queries / W, num_buckets = p.call.memory.num_buckets;
    for (int64_t i = 0; i < num; i += MR) {
        float* tile = to + i * p.padded + from;
        gemm_rows(rows + i * p.call.width, p.call.width, 1, p.query_DQ + from, p.padded, p.call.width, tile, p.padded,
                  num_vectors, false);
        gemm_rows(bases + i * num_buckets, num_buckets, 1, p.bucket_BQ + from, p.padded, num_buckets, tile, p.padded,
                  num_vectors, true);
    }
}
inline void multiply(BestPass& p, const float* rows, const float* bases, int64_t num, float* to) {
    multiply(p, rows, bases, num, to, 0, p.padded);
}

// Copies up to BEST_CHUNK rows and their bases side by side, padded to a multiple of MR; returns how many that makes.
inline int64_t gather_rows(BestPass& p, const int32_t* from, int64_t num) {
    const BestCall& call = p.call;
    const int64_t num_buckets = call.memory.num_buckets, padded = round_up(num, MR);
    for (int64_t i = 0; i < padded; ++i) {
        const int64_t row = from[min64(i, num - 1)];
        memcpy(p.rows + i * call.width, call.table_VD + row * call.width, call.width * sizeof(float));
        memcpy(p.bases + i * num_buckets, call.base_VB + row * num_buckets, num_buckets * sizeof(float));
    }
    return padded;
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
    const int64_t r = p.first + q, end = call.allowed_begin_R1[r + 1];
    for (int64_t k = m.met_begin_R[r]; k < m.met_end_R[r]; ++k) p.barred[m.met_rows[k]] |= 4;
    for (int64_t at = call.allowed_begin_R1[r]; at < end; at += BEST_CHUNK) {
        const int64_t num = min64(BEST_CHUNK, end - at);
        multiply(p, p.rows, p.bases, gather_rows(p, call.allowed_rows + at, num), p.few);
        for (int64_t i = 0; i < num; ++i) {
            const int32_t row = call.allowed_rows[at + i];
            if (p.barred[row] & ~2) continue;
            add_groups(p, row, p.few + i * p.padded);
            p.answer.offer({p.few[i * p.padded + q] + weighed(p.s, row, p.gains(q)), row});
        }
    }
    for (int64_t k = m.met_begin_R[r]; k < m.met_end_R[r]; ++k) p.barred[m.met_rows[k]] &= ~4;
}

// The standing features of the listed rows, side by side.
inline void stand_listed(BestPass& p, int64_t num) {
    const MemoryCall& m = p.call.memory;
    float seen[LISTED], heat[NUM_HEAT * LISTED], hour[NUM_HOURS * LISTED];
    int64_t first[LISTED], last[LISTED];
    for (int64_t c = 0; c < LISTED; ++c) {
        const int64_t row = c < num ? p.ranked[c].row : 0;
        seen[c] = m.seen_V[row], first[c] = m.first_V[row], last[c] = m.last_V[row];
        for (int h = 0; h < NUM_HEAT; ++h) heat[h * LISTED + c] = m.heat_HV[h * m.stride + row];
        copy_hours(m, hour + c * NUM_HOURS, row);
    }
    MemoryCall few = m;
    few.stride = LISTED, few.seen_V = seen, few.heat_HV = heat, few.first_V = first, few.last_V = last;
    few.hour_VH = hour;
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
        for (int f = 0; f < NUM_PAIRED; ++f) list.raw[PAIR + f][c] = used * p.s.paired[row * NUM_PAIRED + f];
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
    for (int64_t k = out_from; k < out_to; ++k) p.barred[call.out_rows[k]] |= 1;
    p.answer.k = call.k_R[r];
    p.answer.start(OUT / 2);
    if (call.limited_R[r]) offer_limited(p, q, shift);
    else
        for (int64_t i = 0; i < num; ++i)
            if (!(p.barred[p.ranked[i].row] & 1))
                p.answer.offer({i < list.num ? list.out[i] + shift : p.ranked[i].score, p.ranked[i].row});
    for (int64_t k = out_from; k < out_to; ++k) p.barred[call.out_rows[k]] &= ~1;
    p.answer.write(call.row_RK + r * call.most, call.score_RK + r * call.most, call.most);
}

HEADRACE_END
