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
// What is to be skipped is looked up only for the few rows that are good enough: it is another place in memory.
inline void offer_block(BestPass& p, Block& block, int64_t q, bool with_evidence) {
    if (!block.num) return;
    multiply(p, p.rows, p.bases, gather_rows(p, block.row, block.num), p.few, q / W * W, W);
    float least = p.best[q].least();
    for (int64_t i = 0; i < block.num; ++i) {
        const int32_t row = block.row[i];
        float *scores = p.few + i * p.padded, score = (add_groups(p, row, scores), scores[q]);
        if (with_evidence) score += weighed(p.s, row, p.gains(q));
        if (!(score >= least) || p.barred[row] & MET) continue;
        if (!with_evidence && (p.s.marked[row] || p.barred[row] & SHARED)) continue;
        p.best[q].offer({score, row});
        least = p.best[q].least();
    }
    block.num = 0;
}

// Adds a row to the block, and has its numbers fetched meanwhile.
HEADRACE_INLINE void add_to(BestPass& p, Block& block, int32_t row, int64_t q, bool with_evidence) {
    const char* at = (const char*)(p.call.table_VD + row * p.call.width);
    for (int64_t byte = 0; byte < p.call.width * (int64_t)sizeof(float); byte += 64) __builtin_prefetch(at + byte);
    __builtin_prefetch(p.call.base_VB + row * p.call.memory.num_buckets);
    block.row[block.num++] = row;
    if (block.num == BEST_CHUNK) offer_block(p, block, q, with_evidence);
}

// Offers the rows with evidence, and those of the lists, each once.
inline void offer_own(BestPass& p, const AmongCall& call, int64_t q) {
    Block block;
    for (int64_t t = 0; t < p.s.num_touched; ++t) add_to(p, block, p.s.touched[t], q, true);
    offer_block(p, block, q, true);
    const int32_t* probe = call.probe_RP + (p.first + q) * call.num_probes;
    for (int64_t j = 0; j < call.num_probes; ++j)
        for (int64_t k = call.list_begin_L1[probe[j]]; k < call.list_begin_L1[probe[j] + 1]; ++k)
            add_to(p, block, call.list_rows[k], q, false);
    offer_block(p, block, q, false);
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
