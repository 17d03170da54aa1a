// The best rows for a few queries among candidates: rows that all of them share, lists that each probes, and those with
// evidence from its history. Scored and answered like all rows in memory_best.cpp, to the bit.
#include "best_answer.h"

struct AmongCall {
    BestCall best;  // no query is limited
    const int32_t* shared_rows;
    int64_t num_shared;
    const int32_t* list_rows;
    const int64_t* list_begin_L1;
    const int32_t* probe_RP;
    int64_t num_probes;
};

HEADRACE_BEGIN

constexpr uint8_t MET = 4, SHARED = 8;  // bits of `barred`
constexpr int64_t AHEAD = 12;           // rows
constexpr float ROUNDING = 1e-3f;       // in relation to a score: a hundred times what rounding makes of it

// Rows of one query that are scored together.
struct Block {
    int64_t num = 0;
    int32_t row[BEST_CHUNK];
};

// The shared rows' scores for each query, without any history.
inline void score_shared(BestPass& p, const AmongCall& call) {
    for (int64_t at = 0; at < call.num_shared; at += BEST_CHUNK) {
        const int64_t num = min64(BEST_CHUNK, call.num_shared - at);
        multiply(p, p.rows, p.bases, gather_rows(p, call.shared_rows + at, num), p.few);
        for (int64_t i = 0; i < num; ++i) {
            float* scores = p.few + i * p.padded;
            add_groups(p, call.shared_rows[at + i], scores);
            for (int64_t q = 0; q < p.num; ++q) p.shared_QS[q * call.num_shared + at + i] = scores[q];
        }
    }
}

inline void offer_shared(BestPass& p, const AmongCall& call, int64_t q) {
    const float* score_S = p.shared_QS + q * call.num_shared;
    float least = p.best[q].least();
    for (int64_t k = 0; k < call.num_shared; ++k) {
        const int32_t row = call.shared_rows[k];
        if (!(score_S[k] >= least) || p.s.marked[row] || p.barred[row] & MET) continue;
        p.best[q].offer({score_S[k], row});
        least = p.best[q].least();
    }
}

// `with_evidence`: the rows have evidence; otherwise those that do are skipped, and so are those that are shared.
inline void offer_block(BestPass& p, Block& block, int64_t q, bool with_evidence) {
    if (!block.num) return;
    multiply(p, p.rows, p.bases, gather_rows(p, block.row, block.num), p.few, q / W * W, W);
    for (int64_t i = 0; i < block.num; ++i) {
        const int32_t row = block.row[i];
        float* scores = p.few + i * p.padded;
        add_groups(p, row, scores);
        if (p.barred[row] & MET || (!with_evidence && (p.s.marked[row] || p.barred[row] & SHARED))) continue;
        p.best[q].offer({with_evidence ? scores[q] + weighed(p.s, row, p.gains(q)) : scores[q], row});
    }
    block.num = 0;
}

HEADRACE_INLINE void add_to(BestPass& p, Block& block, int32_t row, int64_t q, bool with_evidence) {
    block.row[block.num++] = row;
    if (block.num == BEST_CHUNK) offer_block(p, block, q, with_evidence);
}

HEADRACE_INLINE void prefetch_row(const BestCall& call, int64_t row) {
    const char* at = (const char*)(call.table_VD + row * call.width);
    for (int64_t byte = 0; byte < call.width * (int64_t)sizeof(float); byte += 64) __builtin_prefetch(at + byte);
    __builtin_prefetch(call.base_VB + row * call.memory.num_buckets);
}

// One query's weights of a row's numbers side by side, and its length of history.
struct Single {
    const float* weight;
    int64_t q, bucket;
};

// A row's score before evidence, up to rounding: the numbers are not added in the order of `multiply`, which takes
// several times as long for one query.
HEADRACE_INLINE float roughly(const BestPass& p, const Single& one, int64_t row) {
    const BestCall& call = p.call;
    const MemoryCall& m = call.memory;
    const float* numbers = call.table_VD + row * call.width;
    vf sums = zero();
    int64_t d = 0;
    for (; d + W <= call.width; d += W) sums = fma(load(numbers + d), load(one.weight + d), sums);
    if (d < call.width) sums = fma(load_some(numbers + d, call.width - d), load(one.weight + d), sums);
    float score = sum(sums) + call.base_VB[row * m.num_buckets + one.bucket];
    for (int64_t c = 0; c < m.num_columns; ++c)
        if (const int64_t group = group_of_row(m, row, c))
            score += p.base_CQ[c * p.padded + one.q] + p.lift_GQ[group * p.padded + one.q];
    return score;
}

// Scores the rows of the lists, all roughly, and those that come near the best ones like every other row.
inline void offer_lists(BestPass& p, const AmongCall& call, Block& block, int64_t q) {
    float* weight = p.weight;
    memset(weight, 0, round_up(call.best.width, W) * sizeof(float));
    for (int64_t d = 0; d < call.best.width; ++d) weight[d] = p.query_DQ[d * p.padded + q];
    const Single one{weight, q, bucket_of(p.memory(), p.num_past(p.first + q)) - 1};
    const int32_t* probe = call.probe_RP + (p.first + q) * call.num_probes;
    for (int64_t j = 0; j < call.num_probes; ++j) {
        const int64_t end = call.list_begin_L1[probe[j] + 1];
        for (int64_t k = call.list_begin_L1[probe[j]]; k < end; ++k) {
            if (k + AHEAD < end) prefetch_row(call.best, call.list_rows[k + AHEAD]);
            const float least = p.best[q].least(), margin = ROUNDING * (1.0f + fabsf(least));
            if (roughly(p, one, call.list_rows[k]) >= least - margin) add_to(p, block, call.list_rows[k], q, false);
        }
    }
    offer_block(p, block, q, false);
}

// Offers the rows with evidence, and those of the lists, each once.
inline void offer_own(BestPass& p, const AmongCall& call, int64_t q) {
    Block block;
    for (int64_t t = 0; t < p.s.num_touched; ++t) add_to(p, block, p.s.touched[t], q, true);
    offer_block(p, block, q, true);
    offer_lists(p, call, block, q);
}

inline void answer_among(BestPass& p, const AmongCall& call, int64_t q) {
    const MemoryCall& m = p.memory();
    const int64_t r = p.first + q, met_from = m.met_begin_R[r], met_to = m.met_end_R[r];
    if (p.best[q].k) {
        collect(m, p.s, r);
        for (int64_t k = met_from; k < met_to; ++k) p.barred[m.met_rows[k]] |= MET;
        offer_shared(p, call, q);
        offer_own(p, call, q);
        for (int64_t k = met_from; k < met_to; ++k) p.barred[m.met_rows[k]] &= ~MET;
    }
    answer(p, q);
    if (p.best[q].k) clear(p.s);
}

inline bool find_among(const AmongCall& call) {
    static thread_local Blank blank;
    const int64_t num_queries = call.best.memory.num_events;
    for (int64_t first = 0; first < num_queries; first += MOST_QUERIES) {
        BestPass p{call.best, first, min64(MOST_QUERIES, num_queries - first)};
        p.num_shared = call.num_shared;
        if (!make_pass(p, blank)) return false;
        lay_out(p);
        for (int64_t k = 0; k < call.num_shared; ++k) p.barred[call.shared_rows[k]] |= SHARED;
        score_shared(p, call);
        for (int64_t q = 0; q < p.num; ++q) answer_among(p, call, q);
        for (int64_t k = 0; k < call.num_shared; ++k) p.barred[call.shared_rows[k]] &= ~SHARED;
    }
    return true;
}

HEADRACE_END

// Returns 1 if out of memory.
HEADRACE_LEVEL_API(memory_among)(const AmongCall* call) { return !headrace::HEADRACE_LEVEL::find_among(*call); }
