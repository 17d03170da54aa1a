// A group of queries of csrc/level/memory_best.cpp that share one pass over the table, or of
// csrc/level/memory_among.cpp.
#pragma once

#include "best_rows.h"
#include "memory_gains.h"

// The argument, laid out as in kernels/memory/cpp.py.
struct BestCall {
    MemoryCall memory;              // its events supply the past, and what was met, which is left out
    const float *base_VB, *root_V;  // from memory_stand
    const float *query_RD, *table_VD;
    int64_t width, most;  // D; room for this many answers to a query
    const int64_t* k_R;
    const int32_t* out_rows;  // also left out, but may be in the shortlist
    const int64_t* out_begin_R1;
    const int32_t* allowed_rows;  // the only possible answers to limited queries
    const int64_t* allowed_begin_R1;
    const uint8_t* limited_R;
    int32_t* row_RK;  // -1 after the last
    float* score_RK;
};

HEADRACE_BEGIN

constexpr int64_t BEST_CHUNK = 96;         // a multiple of every MR
constexpr int64_t MOST_QUERIES = 64;       // in one pass
constexpr int64_t SMALL_TILE = 512 << 10;  // floats: what may be one tile
static_assert(BEST_CHUNK % MR == 0 && MOST_QUERIES % W == 0, "tiles are whole blocks");

struct Extra {
    int32_t row, query;
    float add;
};

struct BestPass {
    const BestCall& call;
    int64_t first, num;       // queries of this pass
    int64_t num_shared = -1;  // rows that all queries share; -1: every row of the table
    int64_t padded = 0, chunk = 0, num_chunks = 0, num_extras = 0;
    Scratch s = {};
    uint8_t* barred = nullptr;
    float *query_DQ = nullptr, *bucket_BQ = nullptr, *lift_GQ = nullptr, *base_CQ = nullptr, *tile = nullptr,
          *few = nullptr, *rows = nullptr, *bases = nullptr, *gain = nullptr, *shared_QS = nullptr, *weight = nullptr;
    Extra *extras = nullptr, *sorted = nullptr;
    int64_t* chunk_end = nullptr;
    Best best[MOST_QUERIES] = {}, answer = {};
    Candidate* ranked = nullptr;
    float* standing = nullptr;

    const MemoryCall& memory() const { return call.memory; }
    int64_t num_past(int64_t r) const { return memory().past_end_R[r] - memory().past_begin_R[r]; }
    float* gains(int64_t q) { return gain + q * NUM_FEATURES; }
};

inline int64_t most_extras(const BestCall& call, int64_t first, int64_t num) {
    int64_t total = 0;
    for (int64_t r = first; r < first + num; ++r) {
        const int64_t past = call.memory.past_end_R[r] - call.memory.past_begin_R[r];
        const int64_t shown = call.memory.shown_end_R[r] - call.memory.shown_begin_R[r];
        total += min64(call.memory.num_rows,
                       min64(past, WIDE_LAGS) * call.memory.width + past + shown + NUM_PAIRED * NEXT_OF_PAIR);
        total += call.memory.met_end_R[r] - call.memory.met_begin_R[r];
    }
    return total;
}

// How many of the best rows by weighted sum are needed; for a query with limited answers, just the shortlist.
inline int64_t num_kept(const BestCall& call, int64_t r) {
    if (call.k_R[r] == 0) return 0;
    const int64_t more = call.limited_R[r] ? 0 : call.k_R[r] + call.out_begin_R1[r + 1] - call.out_begin_R1[r];
    return min64(call.memory.num_rows, LISTED + more);
}

inline bool make_pass(BestPass& p, Blank& blank) {
    const BestCall& call = p.call;
    const MemoryCall& m = call.memory;
    p.padded = round_up(p.num, W);
    const bool is_whole = p.num_shared < 0, is_small = is_whole && m.num_rows * p.padded <= SMALL_TILE;
    p.chunk = is_small ? round_up(m.num_rows, BEST_CHUNK) : BEST_CHUNK;
    p.num_chunks = (m.num_rows + p.chunk - 1) / p.chunk;
    const int64_t num_extras = is_small || !is_whole ? 0 : most_extras(call, p.first, p.num);
    Arena arena;
    for (int pass = 0; pass < 2; ++pass) {
        Scratch& s = p.s;
        s.touched = arena.get<int32_t>(m.num_rows + 1);
        p.query_DQ = arena.get<float>(call.width * p.padded);
        p.bucket_BQ = arena.get<float>(m.num_buckets * p.padded);
        p.lift_GQ = arena.get<float>(m.num_columns * m.num_groups * p.padded);
        p.base_CQ = arena.get<float>(m.num_columns * p.padded);
        p.tile = arena.get<float>(p.chunk * p.padded);
        p.few = arena.get<float>(BEST_CHUNK * p.padded);
        p.weight = arena.get<float>(round_up(call.width, W));
        p.shared_QS = arena.get<float>(is_whole ? 0 : p.num_shared * p.num);
        p.rows = arena.get<float>(BEST_CHUNK * call.width);
        p.bases = arena.get<float>(BEST_CHUNK * m.num_buckets);
        p.gain = arena.get<float>(p.num * NUM_FEATURES);
        p.extras = arena.get<Extra>(num_extras);
        p.sorted = arena.get<Extra>(num_extras);
        p.chunk_end = arena.get<int64_t>(p.num_chunks + 1);
        s.shortlist = arena.get<Shortlist<NUM_SEEN>>(1);
        get_groups(m, s, arena);
        p.standing = arena.get<float>(LISTED * NUM_STANDING);
        int64_t most = 0;
        for (int64_t q = 0; q < p.num; ++q) {
            p.best[q].k = num_kept(call, p.first + q);
            p.best[q].at = arena.get<Candidate>(p.best[q].k + 1);
            most = max64(most, p.best[q].k);
        }
        p.answer.at = arena.get<Candidate>(call.most + 1);
        p.ranked = arena.get<Candidate>(most + 1);
        if (pass == 0 && !arena.allocate()) return false;
    }
    if (!blank.at_least(m.num_rows)) return false;
    clear_all_groups(m, p.s);
    p.s.evidence = blank.evidence;
    p.s.own = blank.own;
    p.s.paired = blank.paired;
    p.s.marked = blank.bytes;
    p.barred = blank.bytes + blank.num_rows;
    p.s.inverse_root = const_cast<float*>(call.root_V);
    return true;
}

// How much likelier than usual the q-th query's history makes each group, times its gain.
inline void lay_out_groups(BestPass& p, int64_t q) {
    const MemoryCall& m = p.call.memory;
    const float gain = p.gains(q)[LIFT];
    lift_groups(m, p.s, p.first + q);
    for (int64_t c = 0; c < m.num_columns; ++c) p.base_CQ[c * p.padded + q] = gain * p.s.lift_base[c];
    for (int64_t k = 0; k < p.s.num_lifted; ++k)
        p.lift_GQ[p.s.lifted[k] * p.padded + q] = gain * p.s.lift_G[p.s.lifted[k]];
    clear_groups(p.s);
}

// The queries as columns, times the gain of the network's logit, their buckets, and what they make of groups.
inline void lay_out(BestPass& p) {
    const BestCall& call = p.call;
    memset(p.query_DQ, 0, call.width * p.padded * sizeof(float));
    memset(p.bucket_BQ, 0, call.memory.num_buckets * p.padded * sizeof(float));
    const int64_t num_columns = call.memory.num_columns;
    memset(p.lift_GQ, 0, num_columns * call.memory.num_groups * p.padded * sizeof(float));
    memset(p.base_CQ, 0, num_columns * p.padded * sizeof(float));
    for (int64_t q = 0; q < p.num; ++q) {
        const int64_t r = p.first + q;
        const int bucket = bucket_of(call.memory, p.num_past(r));
        float* gain = p.gains(q);
        gains_of(call.memory, bucket, gain);
        p.bucket_BQ[(bucket - 1) * p.padded + q] = 1.0f;
        for (int64_t d = 0; d < call.width; ++d)
            p.query_DQ[d * p.padded + q] = call.query_RD[r * call.width + d] * gain[MODEL];
        lay_out_groups(p, q);
        p.best[q].start(OUT / 2);
    }
}

HEADRACE_END
