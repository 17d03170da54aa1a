// Ranks of one choice among all rows, in slices between later events (kernels/memory/ranking.py is the definition).
#pragma once

#include "memory_gains.h"
#include "sampled_rows.h"

// The argument, laid out as in kernels/memory/ranking_cpp.py. From `score_V` on, the fields of MemoryRanking.
struct RankCall {
    MemoryCall memory;
    const void* table_VD;
    int64_t width, unit_width, table_type;  // (half.h)
    const int32_t* rows;                    // of memory_rank_rows
    int64_t num;
    int32_t* rank_3;
    float* loss;
    float *score_V, *lift_V;
    const float* logit_V;  // null: from the query and the table
    const float* query_D;
    float *gain, *shortlist_weight, *shortlist_norm, *lift_G, *lift_base;
    double* clock;
    int32_t* listed_row;
    float *listed_score, *listed_feature;  // NUM_FEATURES of each
    int64_t* number;
    double* amount;
};

HEADRACE_BEGIN

constexpr float UNSCORED = 3e38f;
constexpr int64_t SCORED = 64;  // rows at a time
static_assert(SCORED % W == 0, "a block is whole vectors");
enum RankNumber {
    RANKED_ROWS,
    RANKED,
    RANKED_BUCKET,
    NEXT_ROW,
    RANKED_GROUPS,
    NUM_LISTED,
    LEAST_LISTED,
    COMPETING,
    MORE_LOGIT,
    SAME_LOGIT,
    TOUCHED,
    TOUCHED_MORE,
    TOUCHED_SAME
};
enum RankAmount { BEST_SCORE, MASS, LIFT_MASS, RANKED_LOGIT, RANKED_COUNT, RANKED_PAUSE, RANKED_WEIGHT };

// Some rows' features and scores.
struct Scored {
    float standing[NUM_STANDING * SCORED], logit[SCORED], lift[SCORED], closed[SCORED], score[SCORED];
};

// The memory as it was when the choice was predicted, of which only rows that have a score may have changed since.
inline MemoryCall as_it_was(const RankCall& c) {
    MemoryCall m = c.memory;
    m.clock = c.clock, m.num_groups = c.number[RANKED_GROUPS], m.num_rows = c.number[RANKED_ROWS];
    return m;
}

inline void list_row(const RankCall& c, int64_t row, float score, const Scored& b, int64_t i, const float* evidence,
                     const float* own, const float* paired) {
    int64_t at = c.number[NUM_LISTED];
    if (at < LISTED) {
        c.number[NUM_LISTED] += 1;
    } else {
        at = c.number[LEAST_LISTED];
        if (!(key_of(score, row) > key_of(c.listed_score[at], c.listed_row[at]))) return;
    }
    float* to = c.listed_feature + at * NUM_FEATURES;
    c.listed_row[at] = (int32_t)row, c.listed_score[at] = score;
    for (int f = 0; f < NUM_STANDING; ++f) to[f] = b.standing[f * SCORED + i];
    for (int f = 0; f < NUM_GATHERED; ++f) to[NUM_STANDING + f] = evidence ? evidence[f] : 0.0f;
    for (int f = 0; f < NUM_OWN; ++f) to[NUM_STANDING + NUM_GATHERED + f] = own ? own[f] : 0.0f;
    to[MODEL] = b.logit[i], to[LIFT] = b.lift[i];
    for (int f = 0; f < NUM_PAIRED; ++f) to[PAIR + f] = paired ? paired[f] : 0.0f;
    int64_t least = 0;
    for (int64_t k = 1; k < c.number[NUM_LISTED]; ++k)
        if (key_of(c.listed_score[k], c.listed_row[k]) < key_of(c.listed_score[least], c.listed_row[least])) least = k;
    c.number[LEAST_LISTED] = least;
}

// Keeps the score of the block's i-th row, which has evidence or not.
inline void keep_score(const RankCall& c, int64_t row, const Scored& b, int64_t i, const float* evidence = nullptr,
                       const float* own = nullptr, const float* paired = nullptr) {
    const float score = b.score[i];
    c.score_V[row] = score;
    if (c.memory.num_columns) c.lift_V[row] = b.lift[i];
    if (!(score > OUT / 2)) return;
    const float own_logit = (float)c.amount[RANKED_LOGIT];
    c.number[MORE_LOGIT] += b.logit[i] > own_logit, c.number[SAME_LOGIT] += b.logit[i] == own_logit;
    list_row(c, row, score, b, i, evidence, own, paired);
}

// Scores of a block of `num` rows from their standing features, logits and groups, as memory.cpp mixes them.
template <typename RowAt>
inline void score_block(const RankCall& c, const MemoryCall& m, Scratch& s, Scored& b, int64_t num, RowAt row_at) {
    for (int64_t i = 0; i < num; ++i) b.closed[i] = m.first_V[row_at(i)] >= 0 ? 0.0f : OUT;
    for (int64_t i = 0; c.logit_V && i < num; ++i) b.logit[i] = c.logit_V[row_at(i)];
    with_rows(c.table_VD, c.table_type, [&](auto* table_VD) {
        for (int64_t i = 0; !c.logit_V && i < num; ++i)
            logits_of_row<1>(table_VD + row_at(i) * c.width, c.query_D, c.width, c.unit_width, b.logit + i);
    });
    for (int64_t i = 0; i < num; i += W) {
        vf x = load(b.closed + i) + load(b.logit + i) * s.gain[MODEL];
        for (int f = 0; f < NUM_STANDING; ++f) x = fma(load(b.standing + f * SCORED + i), splat(s.gain[f]), x);
        store(b.score + i, x);
    }
    for (int64_t i = 0; i < num; ++i) {
        b.lift[i] = m.num_columns ? lift_of(m, s, row_at(i)) : 0.0f;
        if (m.num_columns) b.score[i] += s.gain[LIFT] * b.lift[i];
    }
}

// The same of rows in any order; looks up their standing features.
inline void score_rows(const RankCall& c, const MemoryCall& m, Scratch& s, Scored& b, const int32_t* rows,
                       int64_t num) {
    alignas(64) float seen[SCORED], heat[NUM_HEAT * SCORED], hour[NUM_HOURS * SCORED];
    int64_t first[SCORED], last[SCORED];
    for (int64_t i = 0; i < num; ++i) {
        const int64_t row = rows[i];
        seen[i] = m.seen_V[row], first[i] = m.first_V[row], last[i] = m.last_V[row];
        for (int h = 0; h < NUM_HEAT; ++h) heat[h * SCORED + i] = m.heat_HV[h * m.stride + row];
        copy_hours(m, hour + i * NUM_HOURS, row);
    }
    MemoryCall few = m;
    few.stride = SCORED, few.seen_V = seen, few.heat_HV = heat, few.first_V = first, few.last_V = last;
    few.hour_VH = hour;
    Scratch standing = {};
    standing.standing = b.standing, standing.padded = SCORED;
    stand(few, standing, 0, num);
    score_block(c, m, s, b, num, [&](int64_t i) { return (int64_t)rows[i]; });
}

// What scoring reads of the scratch: the gains and the lifts of the moment of the prediction.
inline void recall(const RankCall& c, Scratch& s) {
    memcpy(s.gain, c.gain, sizeof s.gain);
    s.lift_G = c.lift_G, s.lift_base = c.lift_base;
}

HEADRACE_END
