// The exact best rows for a few queries, in one pass over the table; included only by csrc/level/memory.cpp.
//
// The part of a score that depends only on the row and the length of the history (`base`: the standing features
// weighted by each bucket's gains) is computed once for a memory that no longer changes. A tile of scores is then one
// product: the table's rows with the queries, and the rows' bases with the queries' buckets as one-hot columns. What a
// history adds (evidence, or OUT for what was met) affects a few thousand rows per query. A small table is one tile, to
// which it is added at once; for a large one it is sorted by tile first. The best rows are then rescored (shortlist.h),
// which may move them behind rows that are not, so a few more than asked for are kept until then.
#pragma once

// The argument, laid out as in kernels/memory/cpp.py.
struct StandCall {
    MemoryCall memory;
    float *base_VB, *root_V;
};

struct BestCall {
    MemoryCall memory;              // of its events only the past is used, and what was met, which is left out
    const float *base_VB, *root_V;  // of memory_stand
    const float *query_RD, *table_VD;
    int64_t width, most;  // D; the rows that there is room for in the answer of a query
    const int64_t* k_R;
    const int32_t* out_rows;  // left out too, but may be in the shortlist
    const int64_t* out_begin_R1;
    const int32_t* allowed_rows;  // the only answers for queries that are limited
    const int64_t* allowed_begin_R1;
    const uint8_t* limited_R;
    int32_t* row_RK;  // -1 after the last
    float* score_RK;
};

HEADRACE_BEGIN

constexpr int64_t BEST_CHUNK = 96;         // a multiple of every MR
constexpr int64_t MOST_QUERIES = 64;       // of one pass
constexpr int64_t SMALL_TILE = 512 << 10;  // floats: what may be one tile
static_assert(BEST_CHUNK % MR == 0 && MOST_QUERIES % W == 0, "tiles are whole blocks");

// The base of rows with each bucket's gains, and one over the square root of `seen`.
inline bool stand_all(const StandCall& call) {
    const MemoryCall& m = call.memory;
    const int64_t num_buckets = m.num_buckets;
    Scratch s;
    float* closed;
    Arena arena;
    for (int pass = 0; pass < 2; ++pass) {
        s.standing = arena.get<float>(BEST_CHUNK * NUM_STANDING);
        closed = arena.get<float>(BEST_CHUNK);
        if (pass == 0 && !arena.allocate()) return false;
    }
    float* const standing = s.standing;
    s.padded = BEST_CHUNK;
    for (int64_t from = 0; from < m.num_rows; from += BEST_CHUNK) {
        const int64_t to = min64(m.num_rows, from + BEST_CHUNK);
        s.standing = standing - from;
        stand(m, s, from, to);
        for (int64_t i = from; i < to; ++i) {
            const bool is_open = m.first_V[i] >= 0;
            closed[i - from] = is_open ? 0.0f : OUT;
            call.root_V[i] = is_open && m.seen_V[i] > 0 ? 1.0f / sqrtf(m.seen_V[i]) : 0.0f;
        }
        for (int64_t b = 0; b < num_buckets; ++b)
            for (int64_t i = 0; i < to - from; i += W) {
                vf x = load(closed + i);
                for (int f = 0; f < NUM_STANDING; ++f) {
                    const float gain = m.gain_BF[f] + m.gain_BF[(1 + b) * NUM_FEATURES + f];
                    x = fma(load(standing + f * BEST_CHUNK + i), splat(gain), x);
                }
                const int64_t num = min64(W, to - from - i);
                for (int64_t l = 0; l < num; ++l) call.base_VB[(from + i + l) * num_buckets + b] = x[l];
            }
    }
    return true;
}

// A thread's per-row scratch memory, which every call leaves as it found it: all zero.
struct Blank {
    float *evidence = nullptr, *own = nullptr;
    uint8_t* bytes = nullptr;  // marked, then barred
    int64_t num_rows = 0;
    ~Blank() { clear(); }
    void clear() {
        free(evidence);
        free(own);
        free(bytes);
        evidence = own = nullptr, bytes = nullptr, num_rows = 0;
    }
    bool at_least(int64_t rows) {
        if (rows <= num_rows) return true;
        clear();
        evidence = static_cast<float*>(calloc(rows * NUM_GATHERED, sizeof(float)));
        own = static_cast<float*>(calloc(rows * NUM_OWN, sizeof(float)));
        bytes = static_cast<uint8_t*>(calloc(rows * 2, 1));
        if (!evidence || !own || !bytes) return clear(), false;
        num_rows = rows;
        return true;
    }
};

struct Extra {
    int32_t row, query;
    float add;
};
struct Candidate {
    float score;
    int32_t row;
};

// A heap with the worst of the best rows at its root; of equal scores the later row is worse.
struct Best {
    Candidate* at;
    int64_t k;
    static bool worse(Candidate a, Candidate b) { return a.score < b.score || (a.score == b.score && a.row > b.row); }
    void start() {
        for (int64_t i = 0; i < k; ++i) at[i] = {OUT / 2, INT32_MAX};
    }
    void sift(int64_t size, int64_t i) {
        const Candidate moved = at[i];
        for (;;) {
            int64_t child = 2 * i + 1;
            if (child >= size) break;
            if (child + 1 < size && worse(at[child + 1], at[child])) ++child;
            if (!worse(at[child], moved)) break;
            at[i] = at[child];
            i = child;
        }
        at[i] = moved;
    }
    void offer(Candidate one) {
        if (k == 0 || !worse(at[0], one)) return;
        at[0] = one;
        sift(k, 0);
    }
    float least() const { return k ? at[0].score : INFINITY; }
    void write(int32_t* rows, float* scores, int64_t most) {  // the worst goes to the end again and again
        for (int64_t i = k; i < most; ++i) rows[i] = -1, scores[i] = -INFINITY;
        for (int64_t size = k; size > 0; --size) {
            const bool is_any = at[0].row != INT32_MAX;
            rows[size - 1] = is_any ? at[0].row : -1;
            scores[size - 1] = is_any ? at[0].score : -INFINITY;
            at[0] = at[size - 1];
            sift(size - 1, 0);
        }
    }
};

struct BestPass {
    const BestCall& call;
    int64_t first, num;  // queries of this pass
    int64_t padded = 0, chunk = 0, num_chunks = 0, num_extras = 0;
    Scratch s = {};
    uint8_t* barred = nullptr;
    float *query_DQ = nullptr, *bucket_BQ = nullptr, *tile = nullptr, *few = nullptr, *rows = nullptr, *bases = nullptr,
          *gain = nullptr;
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
        total += min64(call.memory.num_rows, min64(past, WIDE_LAGS) * call.memory.width + past);
        total += call.memory.met_end_R[r] - call.memory.met_begin_R[r];
    }
    return total;
}

// How many of the best by the weighted sum are needed: for a query with limited answers, those of the shortlist.
inline int64_t num_kept(const BestCall& call, int64_t r) {
    if (call.k_R[r] == 0) return 0;
    const int64_t more = call.limited_R[r] ? 0 : call.k_R[r] + call.out_begin_R1[r + 1] - call.out_begin_R1[r];
    return min64(call.memory.num_rows, LISTED + more);
}

inline bool make_pass(BestPass& p, Blank& blank) {
    const BestCall& call = p.call;
    const MemoryCall& m = call.memory;
    p.padded = round_up(p.num, W);
    const bool is_small = m.num_rows * p.padded <= SMALL_TILE;
    p.chunk = is_small ? round_up(m.num_rows, BEST_CHUNK) : BEST_CHUNK;
    p.num_chunks = (m.num_rows + p.chunk - 1) / p.chunk;
    const int64_t num_extras = is_small ? 0 : most_extras(call, p.first, p.num);
    Arena arena;
    for (int pass = 0; pass < 2; ++pass) {
        Scratch& s = p.s;
        s.touched = arena.get<int32_t>(m.num_rows + 1);
        p.query_DQ = arena.get<float>(call.width * p.padded);
        p.bucket_BQ = arena.get<float>(m.num_buckets * p.padded);
        p.tile = arena.get<float>(p.chunk * p.padded);
        p.few = arena.get<float>(BEST_CHUNK * p.padded);
        p.rows = arena.get<float>(BEST_CHUNK * call.width);
        p.bases = arena.get<float>(BEST_CHUNK * m.num_buckets);
        p.gain = arena.get<float>(p.num * NUM_FEATURES);
        p.extras = arena.get<Extra>(num_extras);
        p.sorted = arena.get<Extra>(num_extras);
        p.chunk_end = arena.get<int64_t>(p.num_chunks + 1);
        s.shortlist = arena.get<Shortlist<NUM_SEEN>>(1);
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
    p.s.evidence = blank.evidence;
    p.s.own = blank.own;
    p.s.marked = blank.bytes;
    p.barred = blank.bytes + blank.num_rows;
    p.s.inverse_root = const_cast<float*>(call.root_V);
    return true;
}

// The queries as columns, times the gain of the network's logit, and their buckets.
inline void lay_out(BestPass& p) {
    const BestCall& call = p.call;
    memset(p.query_DQ, 0, call.width * p.padded * sizeof(float));
    memset(p.bucket_BQ, 0, call.memory.num_buckets * p.padded * sizeof(float));
    for (int64_t q = 0; q < p.num; ++q) {
        const int64_t r = p.first + q;
        const int bucket = bucket_of(call.memory, p.num_past(r));
        float* gain = p.gains(q);
        for (int f = 0; f < NUM_FEATURES; ++f)
            gain[f] = call.memory.gain_BF[f] + call.memory.gain_BF[bucket * NUM_FEATURES + f];
        p.bucket_BQ[(bucket - 1) * p.padded + q] = 1.0f;
        for (int64_t d = 0; d < call.width; ++d)
            p.query_DQ[d * p.padded + q] = call.query_RD[r * call.width + d] * gain[MODEL];
        p.best[q].start();
    }
}

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
            p.answer.offer({p.few[i * p.padded + q] + weighed(p.s, row, p.gains(q)), row});
        }
    }
    for (int64_t k = m.met_begin_R[r]; k < m.met_end_R[r]; ++k) p.barred[m.met_rows[k]] &= ~4;
}

// The scores of rows `from` on before any history, as many as a tile holds; how many there are.
inline int64_t fill_tile(BestPass& p, int64_t from) {
    const BestCall& call = p.call;
    const int64_t num_buckets = call.memory.num_buckets, num = min64(p.chunk, call.memory.num_rows - from),
                  whole = num / MR * MR;
    const float *rows = call.table_VD + from * call.width, *bases = call.base_VB + from * num_buckets;
    multiply(p, rows, bases, whole, p.tile);
    if (whole == num) return num;
    memset(p.rows, 0, MR * call.width * sizeof(float));  // the last ones, with room behind them
    memset(p.bases, 0, MR * num_buckets * sizeof(float));
    memcpy(p.rows, rows + whole * call.width, (num - whole) * call.width * sizeof(float));
    memcpy(p.bases, bases + whole * num_buckets, (num - whole) * num_buckets * sizeof(float));
    multiply(p, p.rows, p.bases, MR, p.tile + whole * p.padded);
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

// The best few, best first, rescored while their evidence is there; then those that may be answered.
inline void answer(BestPass& p, int64_t q) {
    const BestCall& call = p.call;
    const MemoryCall& m = call.memory;
    const int64_t r = p.first + q;
    Best& best = p.best[q];
    int64_t num = 0;
    for (int64_t size = best.k; size > 0; --size) {  // the worst goes to the end again and again
        if (best.at[0].row != INT32_MAX) ++num;
        p.ranked[size - 1] = best.at[0];
        best.at[0] = best.at[size - 1];
        best.sift(size - 1, 0);
    }
    Shortlist<NUM_SEEN>& list = *p.s.shortlist;
    list.num = min64(num, LISTED);
    stand_listed(p, num);
    const float length = LENGTH_SCALE * (float)bucket_of(m, p.num_past(r));
    for (int64_t c = 0; c < LISTED; ++c) {
        const bool is_listed = c < list.num;
        const int64_t row = is_listed ? p.ranked[c].row : 0;
        const float *e = p.s.evidence + row * NUM_GATHERED, *own = p.s.own + row * NUM_OWN;
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
        list.raw[LEAD][c] = used * (lead > LAST_LEAD ? lead : LAST_LEAD);
        list.raw[IS_OWN][c] = own[OWN_COUNT] > 0 ? used : 0.0f;
        list.raw[LENGTH][c] = used * length;
        list.raw[PAUSE][c] = used * p.s.pause;
    }
    float shift = 0.0f;
    if (list.num) {
        list.look(m.shortlist_weight, m.shortlist_norm);
        shift = list.shift();
    }
    const int64_t out_from = call.out_begin_R1[r], out_to = call.out_begin_R1[r + 1];
    for (int64_t k = out_from; k < out_to; ++k) p.barred[call.out_rows[k]] = 1;
    p.answer.k = call.k_R[r];
    p.answer.start();
    if (call.limited_R[r]) {  // rescored rows are offered below, and no others of the list
        for (int64_t k = call.allowed_begin_R1[r]; k < call.allowed_begin_R1[r + 1]; ++k)
            p.barred[call.allowed_rows[k]] |= 2;
        for (int64_t c = 0; c < list.num; ++c) {
            uint8_t& state = p.barred[list.row[c]];
            if (state == 2) p.answer.offer({list.out[c] + shift, list.row[c]});
            state |= 1;
        }
        offer_allowed(p, q);
        for (int64_t c = 0; c < list.num; ++c) p.barred[list.row[c]] = 0;
        for (int64_t k = call.allowed_begin_R1[r]; k < call.allowed_begin_R1[r + 1]; ++k)
            p.barred[call.allowed_rows[k]] = 0;
    } else {
        for (int64_t i = 0; i < num; ++i)
            if (!p.barred[p.ranked[i].row])
                p.answer.offer({i < list.num ? list.out[i] + shift : p.ranked[i].score, p.ranked[i].row});
    }
    for (int64_t k = out_from; k < out_to; ++k) p.barred[call.out_rows[k]] = 0;
    p.answer.write(call.row_RK + r * call.most, call.score_RK + r * call.most, call.most);
}

// What a history adds to which rows: added to a single tile, or noted for many tiles. Its evidence is kept.
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

// The rows of a tile that are better than the worst of the best so far.
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

// Both return 1 when memory ran out.
HEADRACE_LEVEL_API(memory_stand)(const StandCall* call) { return !headrace::HEADRACE_LEVEL::stand_all(*call); }
HEADRACE_LEVEL_API(memory_best)(const BestCall* call) { return !headrace::HEADRACE_LEVEL::find_best(*call); }
