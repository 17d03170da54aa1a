// The memory's events, in order: predict, learn, count (kernels/memory/reference.py is the definition).
// Single-threaded: each event is predicted from the state that the previous one left.
//
// Evidence is scattered over the catalogue, so it is gathered into a dense array of eight floats per row, and one of
// four for the features that only a user's own rows have; rows that have some are listed in `touched`, turned into
// features in place, and cleared when the event is done. The features that do not depend on the query (`standing`) are
// a dense matrix, recomputed every REFRESH events and kept exact for the row that an event has just changed. The best
// rows by the weighted sum are rescored by a small network (shortlist.h).
#include <math.h>
#include <string.h>

#include "logs.h"
#include "shortlist.h"

// The argument, laid out as in kernels/memory/cpp.py.
struct MemoryCall {
    // The memory: `stride` rows of `width` neighbours each.
    int64_t stride, num_rows, width, num_buckets;
    int32_t *neighbour_row, *num_neighbours;
    float *after, *before, *direct, *weight;
    float *seen_V, *heat_HV;
    int64_t *first_V, *last_V;
    float *gain_BF, *square_BF;
    float *shortlist_weight, *shortlist_square, *shortlist_norm;
    double* clock;
    uint8_t* dirty_V;
    uint8_t* moved_VB;  // a bit for each neighbour
    int32_t* recent;    // the rows of the last RECENT choices
    // The events.
    int64_t num_events, logit_stride;
    const int32_t* target_R;  // 0: a target without a row
    const uint8_t* chosen_R;  // 0: only met; 1: predicted, learned and counted; 2: counted alone
    const float* weight_R;    // how much each choice counts and teaches; null: 1 each
    const int32_t *past_rows, *met_rows;
    const int64_t *past_begin_R, *past_end_R, *met_begin_R, *met_end_R, *past_ms, *now_ms_R;
    float* logit_AV;  // a row for each event that is asked
    int32_t *rank_R, *model_rank_R, *count_rank_R;
    float* loss_R;
    // The rules.
    double seen_growth, heat_growth[3], repeat_decay;
    float gain_rate, gain_decay, weight_rate, shortlist_rate, shortlist_decay;
    int32_t exclude;  // 0 never, 1 always, 2 if the stream has no repeats
    int32_t learn;    // 0: every event is scored, and only logit_AV changes: it becomes the scores
};

HEADRACE_BEGIN

constexpr int NUM_STANDING = 7, NUM_GATHERED = 8, NUM_OWN = 4, NUM_EVIDENCE = NUM_GATHERED + NUM_OWN, NUM_HEAT = 3;
constexpr int MODEL = NUM_STANDING + NUM_EVIDENCE, NUM_FEATURES = MODEL + 1;
constexpr int LEAD = NUM_FEATURES, IS_OWN = LEAD + 1, LENGTH = IS_OWN + 1, PAUSE = LENGTH + 1, NUM_SEEN = PAUSE + 1;
enum Standing { LOG_SEEN, HEAT, AGE = HEAT + NUM_HEAT, IDLE, RARITY };
enum Evidence { FOLLOWS, CHAIN, WIDE, AFTER, BEFORE, LEARNED, DIRECT, THREADS };
enum Own { OWN_COUNT, OWN_RECENCY, OWN_VISIT, OWN_SINCE };  // the evidence after that
enum Clock { EVENTS, SEEN_SCALE, HEAT_SCALE, REPEATS = HEAT_SCALE + NUM_HEAT, CHOICES };
constexpr int FOLLOWS_LAGS = 10, CHAIN_LAGS = 20, WIDE_LAGS = 60, NEAR_LAGS = 6, LEARNED_LAGS = 40, COUNT_LAGS = 20,
              DIRECT_LAGS = 4;
constexpr float FOLLOWS_DECAY = .8f, CHAIN_DECAY = .9f, WIDE_DECAY = .98f, NEAR_DECAY = .5f, LEARNED_DECAY = .95f,
                COUNT_DECAY = .9f;
constexpr float DIRECT_DECAY = .3f, THREADS_DECAY = .97f, DIRECT_COUNT_DECAY = .2f;
constexpr float FOLLOWS_SCALE = 100.f, COSINE_SCALE = 1000.f, HEAT_SCALES[NUM_HEAT] = {10.f, 10.f, 1.f},
                TIME_SHARE = .3f;
constexpr int REFRESH = 16, RECENT = 512;
constexpr uint8_t CHANGED = 0xFF;  // a bit for each of those who copy changed rows
constexpr float LENGTH_SCALE = .25f, SINCE_SHARE = .1f;
constexpr int64_t VISIT_MS = 30 * 60 * 1000;
constexpr float ACROSS_VISITS = .2f;  // what the very next choice counts if it is of a later visit
constexpr double RESCALE_AT = 1e12, FEW_REPEATS = .02, PRIOR_CHOICES = 20.;
constexpr float OUT = -1e30f;

typedef float v4 __attribute__((vector_size(16)));
typedef float v8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));

HEADRACE_INLINE vf log1p_of(vf x) { return log_of<vf, vi>(x + 1.0f); }
HEADRACE_INLINE float log1p_one(float x) { return log1p_of(splat(x))[0]; }

HEADRACE_INLINE v8 load8(const float* p) {
    v8 v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
HEADRACE_INLINE v4 load4(const float* p) {
    v4 v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
HEADRACE_INLINE void store4(float* p, v4 v) { __builtin_memcpy(p, &v, sizeof v); }
HEADRACE_INLINE void store8(float* p, v8 v) { __builtin_memcpy(p, &v, sizeof v); }
HEADRACE_INLINE float sum8(v8 v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

struct Scratch {
    float *standing, *evidence, *own, *score, *push, *inverse_root, *closed;
    int32_t* touched;
    uint8_t *marked, *excluded;
    int64_t num_touched, padded;
    float pause;  // of the user, since the last choice
    float gain[NUM_FEATURES];
    Shortlist<NUM_SEEN>* shortlist;
};

inline bool make_scratch(const MemoryCall& m, Scratch& s) {
    s.padded = round_up(m.num_rows, W);
    Arena arena;
    for (int pass = 0; pass < 2; ++pass) {
        s.standing = arena.get<float>(s.padded * NUM_STANDING);
        s.evidence = arena.get<float>(s.padded * NUM_GATHERED);
        s.own = arena.get<float>(s.padded * NUM_OWN);
        s.score = arena.get<float>(s.padded);
        s.push = arena.get<float>(s.padded);
        s.inverse_root = arena.get<float>(s.padded);
        s.closed = arena.get<float>(s.padded);
        s.shortlist = arena.get<Shortlist<NUM_SEEN>>(1);
        s.touched = arena.get<int32_t>(s.padded);
        s.marked = arena.get<uint8_t>(s.padded);
        s.excluded = arena.get<uint8_t>(s.padded);
        if (pass == 0 && !arena.allocate()) return false;
    }
    memset(s.standing, 0, s.padded * NUM_STANDING * sizeof(float));
    memset(s.evidence, 0, s.padded * NUM_GATHERED * sizeof(float));
    memset(s.own, 0, s.padded * NUM_OWN * sizeof(float));
    memset(s.marked, 0, s.padded);
    memset(s.excluded, 0, s.padded);
    for (int64_t i = 0; i < s.padded; ++i) {
        const bool is_open = i < m.num_rows && m.first_V[i] >= 0;
        s.closed[i] = is_open ? 0.0f : OUT;
        s.inverse_root[i] = is_open && m.seen_V[i] > 0 ? 1.0f / sqrtf(m.seen_V[i]) : 0.0f;
    }
    return true;
}

// The standing features of rows from..to.
inline void stand(const MemoryCall& m, Scratch& s, int64_t from, int64_t to) {
    const float seen_unit = (float)(1 / m.clock[SEEN_SCALE]);
    float heat_unit[NUM_HEAT];
    for (int h = 0; h < NUM_HEAT; ++h) heat_unit[h] = (float)(HEAT_SCALES[h] / m.clock[HEAT_SCALE + h]);
    const int64_t now = (int64_t)m.clock[EVENTS];
    for (int64_t i = from; i < to; i += W) {
        const int count = (int)min64(W, to - i);
        float* at = s.standing + i;
        const vf seen = load_some(m.seen_V + i, count) * seen_unit;
        store_some(at + LOG_SEEN * s.padded, log1p_of(seen), count);
        store_some(at + RARITY * s.padded, 1.0f / (seen + 1.0f), count);
        for (int h = 0; h < NUM_HEAT; ++h) {
            const vf heat = load_some(m.heat_HV + h * m.stride + i, count) * heat_unit[h];
            store_some(at + (HEAT + h) * s.padded, log1p_of(heat), count);
        }
        vf age = zero(), idle = zero();
        for (int j = 0; j < count; ++j) {
            const int64_t first = m.first_V[i + j], last = m.last_V[i + j];
            age[j] = last >= 0 ? (float)(now - first) : 0.0f;
            idle[j] = last >= 0 ? (float)(now - last) : 0.0f;
        }
        store_some(at + AGE * s.padded, log1p_of(age) * TIME_SHARE, count);
        store_some(at + IDLE * s.padded, log1p_of(idle) * TIME_SHARE, count);
    }
}

HEADRACE_INLINE void touch(Scratch& s, int32_t row) {
    s.touched[s.num_touched] = row;
    s.num_touched += !s.marked[row];
    s.marked[row] = 1;
}

// Transposes eight rows of eight floats.
HEADRACE_INLINE void transpose8(v8* x) {
    v8 y[8];
    const i8 low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};
    for (int i = 0; i < 8; i += 2) {
        y[i] = __builtin_shuffle(x[i], x[i + 1], low);
        y[i + 1] = __builtin_shuffle(x[i], x[i + 1], high);
    }
    const i8 even = {0, 1, 8, 9, 4, 5, 12, 13}, odd = {2, 3, 10, 11, 6, 7, 14, 15};
    for (int i = 0; i < 8; i += 4)
        for (int h = 0; h < 2; ++h) {
            x[i + 2 * h] = __builtin_shuffle(y[i + h], y[i + h + 2], even);
            x[i + 2 * h + 1] = __builtin_shuffle(y[i + h], y[i + h + 2], odd);
        }
    const i8 first = {0, 1, 2, 3, 8, 9, 10, 11}, second = {4, 5, 6, 7, 12, 13, 14, 15};
    for (int i = 0; i < 4; ++i) {
        y[i] = __builtin_shuffle(x[i], x[i + 4], first);
        y[i + 4] = __builtin_shuffle(x[i], x[i + 4], second);
    }
    for (int i = 0; i < 8; ++i) x[i] = y[i];
}

// One over the square root of `seen`: kept for all rows, or computed for the one.
HEADRACE_INLINE float root_of(const MemoryCall& m, const Scratch& s, int64_t row) {
    if (s.inverse_root) return s.inverse_root[row];
    return m.seen_V[row] > 0 ? 1.0f / sqrtf(m.seen_V[row]) : 0.0f;
}

// Adds the evidence from the neighbours of one past row, `lag` steps back: eight neighbours at a time, one vector add
// each.
inline void gather(const MemoryCall& m, Scratch& s, int32_t row, int lag, const float* decay) {
    const int64_t base = row * m.width, num = m.num_neighbours[row];
    const float root = root_of(m, s, row), inverse = root * root;
    const int32_t* id = m.neighbour_row + base;
    for (int64_t j = 0; j < num; j += 8) {
        const int count = (int)min64(8, num - j);
        v8 f = {}, b = {}, d = {}, w = {}, q = {};
        if (m.width - j >= 8) {
            f = load8(m.after + base + j), b = load8(m.before + base + j), w = load8(m.weight + base + j);
            d = load8(m.direct + base + j);
        } else {
            for (int l = 0; l < count; ++l) {
                f[l] = m.after[base + j + l], b[l] = m.before[base + j + l], w[l] = m.weight[base + j + l];
                d[l] = m.direct[base + j + l];
            }
        }
        for (int l = 0; l < count; ++l) q[l] = root_of(m, s, id[j + l]) * root;
        const v8 both = f + b * .5f, similar = both * q;
        v8 add[NUM_GATHERED] = {};
        add[WIDE] = similar * decay[WIDE];
        if (lag < LEARNED_LAGS) add[LEARNED] = w * decay[LEARNED];
        if (lag < CHAIN_LAGS) add[CHAIN] = log_of<v8, i8>(similar * COSINE_SCALE + 1.0f) * (.1f * decay[CHAIN]);
        if (lag < FOLLOWS_LAGS) add[FOLLOWS] = both * (inverse * decay[FOLLOWS]);
        if (lag < NEAR_LAGS) {
            add[AFTER] = f * q * decay[AFTER];
            add[BEFORE] = b * q * decay[AFTER];
        }
        add[THREADS] = d * (inverse * decay[THREADS]);
        if (lag < DIRECT_LAGS) add[DIRECT] = d * (inverse * decay[DIRECT]);
        transpose8(add);
        for (int l = 0; l < count; ++l) {
            touch(s, id[j + l]);
            float* e = s.evidence + (int64_t)id[j + l] * NUM_GATHERED;
            store8(e, load8(e) + add[l]);
        }
    }
}

// What has passed between two times, as a feature.
HEADRACE_INLINE float since(int64_t now_ms, int64_t then_ms) {
    return now_ms > then_ms ? SINCE_SHARE * log1p_one((float)(now_ms - then_ms) * 1e-3f) : 0.0f;
}

// Where among the past choices of event r those of the visit under way begin.
HEADRACE_INLINE int64_t visit_of(const MemoryCall& m, int64_t r) {
    int64_t visit = m.past_end_R[r];
    for (int64_t after = m.now_ms_R[r]; visit > m.past_begin_R[r] && after - m.past_ms[visit - 1] < VISIT_MS; --visit)
        after = m.past_ms[visit - 1];
    return visit;
}

// What only the user's own rows have, and how long ago the last choice was.
inline void collect_own(const MemoryCall& m, Scratch& s, int64_t r, int64_t visit) {
    const int64_t first = m.past_begin_R[r], end = m.past_end_R[r], now = m.now_ms_R[r];
    for (int64_t k = first; k < end; ++k) {
        touch(s, m.past_rows[k]);
        float* own = s.own + (int64_t)m.past_rows[k] * NUM_OWN;
        own[OWN_COUNT] += 1.0f;
        own[OWN_RECENCY] = 1.0f / (1.0f + .1f * (float)(end - 1 - k));
        own[OWN_VISIT] = k >= visit ? 1.0f : 0.0f;
        own[OWN_SINCE] = since(now, m.past_ms[k]);
    }
    s.pause = end > first ? since(now, m.past_ms[end - 1]) : 0.0f;
}

inline void collect(const MemoryCall& m, Scratch& s, int64_t r) {
    const int64_t first = m.past_begin_R[r], end = m.past_end_R[r], visit = visit_of(m, r);
    s.num_touched = 0;
    float decay[NUM_GATHERED] = {1, 1, 1, 1, 1, 1, 1, 1};
    for (int lag = 0; lag < WIDE_LAGS && lag < end - first; ++lag) {
        if (end - lag == visit) decay[DIRECT] *= ACROSS_VISITS;
        gather(m, s, m.past_rows[end - 1 - lag], lag, decay);
        decay[FOLLOWS] *= FOLLOWS_DECAY, decay[CHAIN] *= CHAIN_DECAY, decay[WIDE] *= WIDE_DECAY;
        decay[AFTER] *= NEAR_DECAY, decay[LEARNED] *= LEARNED_DECAY, decay[DIRECT] *= DIRECT_DECAY;
        decay[THREADS] *= THREADS_DECAY;
    }
    collect_own(m, s, r, visit);
    const v8 scale = {FOLLOWS_SCALE, 0, COSINE_SCALE, COSINE_SCALE, COSINE_SCALE, 0, FOLLOWS_SCALE, FOLLOWS_SCALE};
    const i8 plain = {0, -1, 0, 0, 0, -1, 0, 0};
    for (int64_t t = 0; t < s.num_touched; ++t) {
        float *e = s.evidence + (int64_t)s.touched[t] * NUM_GATHERED, *own = s.own + (int64_t)s.touched[t] * NUM_OWN;
        if (own[OWN_COUNT] > 0) own[OWN_COUNT] = log1p_one(own[OWN_COUNT]);
        const v8 raw = load8(e), logs = log_of<v8, i8>(raw * scale + 1.0f);
        store8(e, (v8)(((i8)raw & plain) | ((i8)logs & ~plain)));
    }
}

// What a row's evidence is worth with the gains of all features.
HEADRACE_INLINE float weighed(const Scratch& s, int64_t row, const float* gain) {
    const v8 gathered = load8(s.evidence + row * NUM_GATHERED) * load8(gain + NUM_STANDING);
    const v4 own = load4(s.own + row * NUM_OWN) * load4(gain + NUM_STANDING + NUM_GATHERED);
    return sum8(gathered) + ((own[0] + own[2]) + (own[1] + own[3]));
}

inline int bucket_of(const MemoryCall& m, int64_t num_past) {
    int bucket = 0;  // round(log2(1 + n))
    while (bucket < m.num_buckets - 1 &&
           (double)(1 + num_past) * (double)(1 + num_past) >= (double)(2ull << (2 * bucket)))
        ++bucket;
    return 1 + bucket;
}

inline void set_gains(const MemoryCall& m, Scratch& s, int bucket) {
    for (int f = 0; f < NUM_FEATURES; ++f) s.gain[f] = m.gain_BF[f] + m.gain_BF[bucket * NUM_FEATURES + f];
}

// Scores of all rows, and the largest. Rows that do not compete get OUT.
inline float mix(const MemoryCall& m, Scratch& s, const float* logit, int bucket, const int32_t* met, int64_t num_met) {
    set_gains(m, s, bucket);
    for (int64_t i = 0; i < s.padded; i += W) {
        vf x = load(s.closed + i) + load_some(logit + i, m.num_rows - i) * s.gain[MODEL];
        for (int f = 0; f < NUM_STANDING; ++f) x = fma(load(s.standing + f * s.padded + i), splat(s.gain[f]), x);
        store(s.score + i, x);
    }
    for (int64_t t = 0; t < s.num_touched; ++t) s.score[s.touched[t]] += weighed(s, s.touched[t], s.gain);
    for (int64_t k = 0; k < num_met; ++k) s.score[met[k]] = OUT;
    vf best = splat(OUT);
    for (int64_t i = 0; i < s.padded; i += W) best = larger(best, load(s.score + i));
    return largest(best);
}

// 1 + the better competitors + half of the equal ones, rounded up. `running`: scores above OUT / 2 compete.
inline int32_t rank_of(const float* score, const float* running, int64_t stride, int64_t padded, int64_t num,
                       int64_t target) {
    const float own = score[target * stride];
    int64_t better = 0, equal = 0;
    if (stride == 1) {
        vi more = {}, same = {};
        for (int64_t i = 0; i < padded; i += W) {
            const vf x = load_some(score + i, num - i);
            const vi runs = load(running + i) > OUT / 2;
            more -= runs & (x > own);
            same -= runs & (x == own);
        }
        for (int l = 0; l < W; ++l) better += more[l], equal += same[l];
    } else {
        for (int64_t i = 0; i < num; ++i)
            if (running[i] > OUT / 2) better += score[i * stride] > own, equal += score[i * stride] == own;
    }
    equal -= running[target] > OUT / 2;
    return (int32_t)(1 + better + (equal + 1) / 2);
}

// New scores of the listed rows by the shortlist's network; returns by how much all are shifted. The list counts what
// `standing` and `logit` are of; `row_of_listed` gives its rows, which have evidence.
template <typename RowOfListed>
inline float look_again(const MemoryCall& m, const Scratch& s, const float* standing, int64_t stride,
                        const float* logit, int bucket, float best, RowOfListed row_of_listed) {
    Shortlist<NUM_SEEN>& list = *s.shortlist;
    for (int64_t c = 0; c < LISTED; ++c) {
        const int64_t at = list.row[c], row = row_of_listed(at);
        const float *e = s.evidence + row * NUM_GATHERED, *own = s.own + row * NUM_OWN;
        const float used = list.listed[c], lead = list.score[c] - best;
        for (int f = 0; f < NUM_STANDING; ++f) list.raw[f][c] = used * standing[f * stride + at];
        for (int f = 0; f < NUM_GATHERED; ++f) list.raw[NUM_STANDING + f][c] = used * e[f];
        for (int f = 0; f < NUM_OWN; ++f) list.raw[NUM_STANDING + NUM_GATHERED + f][c] = used * own[f];
        list.raw[MODEL][c] = used * logit[at];
        list.raw[LEAD][c] = used * (lead > LAST_LEAD ? lead : LAST_LEAD);
        list.raw[IS_OWN][c] = own[OWN_COUNT] > 0 ? used : 0.0f;
        list.raw[LENGTH][c] = used * LENGTH_SCALE * (float)bucket;
        list.raw[PAUSE][c] = used * s.pause;
    }
    list.look(m.shortlist_weight, m.shortlist_norm);
    return list.shift();
}

// The same for the best of all rows by the weighted sum.
inline float look_again(const MemoryCall& m, Scratch& s, const float* logit, int bucket, float best) {
    s.shortlist->pick(s.score, s.padded);
    return look_again(m, s, s.standing, s.padded, logit, bucket, best, [](int64_t row) { return row; });
}

inline void rescore(Scratch& s, float shift) {
    for (int64_t c = 0; c < s.shortlist->num; ++c) s.score[s.shortlist->row[c]] = s.shortlist->out[c] + shift;
}

inline float weight_of(const MemoryCall& m, int64_t r) { return m.weight_R ? m.weight_R[r] : 1.0f; }

// push = weight * (probability - [is the target]); returns the log of the sum of e^score.
inline float push_of(Scratch& s, float best, int64_t target, float weight) {
    vf total = zero();
    for (int64_t i = 0; i < s.padded; i += W) {
        const vf p = exp_negative(load(s.score + i) - best);
        store(s.push + i, p);
        total += p;
    }
    const float all = sum(total), share = weight / all;
    for (int64_t i = 0; i < s.padded; i += W) store(s.push + i, load(s.push + i) * share);
    s.push[target] -= weight;
    return best + logf(all);
}

// One step of the shared gains and of the bucket's against their slopes.
inline void descend(const MemoryCall& m, const float* slope, int bucket) {
    for (int part = 0; part < 2; ++part) {
        float *gain = m.gain_BF + part * bucket * NUM_FEATURES, *square = m.square_BF + part * bucket * NUM_FEATURES;
        const float rate = part ? .5f * m.gain_rate : m.gain_rate;
        for (int f = 0; f < NUM_FEATURES; ++f) {
            square[f] = square[f] * m.gain_decay + slope[f] * slope[f];
            gain[f] -= rate * slope[f] / sqrtf(square[f]);
        }
    }
}

inline void learn_gains(const MemoryCall& m, Scratch& s, const float* logit, int bucket) {
    float slope[NUM_FEATURES];
    vf dense[NUM_STANDING + 1] = {};
    for (int64_t i = 0; i < s.padded; i += W) {
        const vf push = load(s.push + i);
        for (int f = 0; f < NUM_STANDING; ++f) dense[f] = fma(load(s.standing + f * s.padded + i), push, dense[f]);
        dense[NUM_STANDING] = fma(load_some(logit + i, m.num_rows - i), push, dense[NUM_STANDING]);
    }
    for (int f = 0; f < NUM_STANDING; ++f) slope[f] = sum(dense[f]);
    slope[MODEL] = sum(dense[NUM_STANDING]);
    v8 sparse = {};
    v4 own = {};
    for (int64_t t = 0; t < s.num_touched; ++t) {
        const int64_t row = s.touched[t];
        sparse += load8(s.evidence + row * NUM_GATHERED) * s.push[row];
        own += load4(s.own + row * NUM_OWN) * s.push[row];
    }
    store8(slope + NUM_STANDING, sparse);
    store4(slope + NUM_STANDING + NUM_GATHERED, own);
    descend(m, slope, bucket);
}

// `push` has a number for each row, `stride` apart.
inline void learn_weights(const MemoryCall& m, const Scratch& s, const int32_t* past, int64_t num, const float* push,
                          int64_t stride) {
    float rate = m.weight_rate * s.gain[NUM_STANDING + LEARNED];
    for (int lag = 0; lag < LEARNED_LAGS && lag < num; ++lag, rate *= LEARNED_DECAY) {
        const int32_t row = past[num - 1 - lag];
        const int64_t base = row * m.width, count = m.num_neighbours[row];
        const int32_t* id = m.neighbour_row + base;
        float* weight = m.weight + base;
        for (int64_t j = 0; j < count; ++j) weight[j] -= rate * push[id[j] * stride];
        m.dirty_V[row] = CHANGED;
    }
}

inline void mark(const MemoryCall& m, int32_t row, int64_t at) {
    m.moved_VB[row * ((m.width + 7) / 8) + at / 8] |= (uint8_t)(1 << at % 8);
}

// Counts one more sighting of `other` beside `row`. If the row is full, its weakest neighbour is reduced, and replaced
// by one that outweighs what is left of it (Misra and Gries, 1982, but only for the weakest).
inline void add(const MemoryCall& m, int32_t row, int32_t other, float after, float before, float direct) {
    const int64_t base = row * m.width;
    int32_t* id = m.neighbour_row + base;
    const int64_t num = m.num_neighbours[row];
    m.dirty_V[row] = CHANGED;
    for (int64_t j = 0; j < num; j += W) {
        if (j + W <= num) {
            const vi same = load(id + j) == other;
            int found = 0;
            for (int l = 0; l < W; ++l) found |= same[l];
            if (!found) continue;
        }
        for (int64_t l = j; l < num && l < j + W; ++l)
            if (id[l] == other) {
                m.after[base + l] += after;
                m.before[base + l] += before;
                m.direct[base + l] += direct;
                mark(m, row, l);
                return;
            }
    }
    int64_t at = num;
    if (num == m.width) {
        float least = m.after[base] + m.before[base];
        at = 0;
        for (int64_t j = 1; j < num; ++j) {
            const float x = m.after[base + j] + m.before[base + j];
            if (x < least) least = x, at = j;
        }
        const float coming = after + before;
        if (coming < least) {
            const float left = 1.0f - coming / least;
            m.after[base + at] *= left;
            m.before[base + at] *= left;
            m.direct[base + at] *= left;
            mark(m, row, at);
            return;
        }
    } else {
        m.num_neighbours[row] += 1;
    }
    id[at] = other;
    m.after[base + at] = after;
    m.before[base + at] = before;
    m.direct[base + at] = direct;
    m.weight[base + at] = 0.0f;
    mark(m, row, at);
}

// Whether the unit of `seen` changed.
inline bool rescale(const MemoryCall& m) {
    const bool is_due = m.clock[SEEN_SCALE] > RESCALE_AT;
    if (is_due) {
        const float unit = (float)(1 / m.clock[SEEN_SCALE]);
        for (int64_t i = 0; i < m.num_rows; ++i) {
            m.seen_V[i] *= unit;
            for (int64_t j = i * m.width; j < i * m.width + m.num_neighbours[i]; ++j)
                m.after[j] *= unit, m.before[j] *= unit, m.direct[j] *= unit;
            m.dirty_V[i] = CHANGED;
        }
        memset(m.moved_VB, 255, m.num_rows * ((m.width + 7) / 8));
        m.clock[SEEN_SCALE] = 1;
    }
    for (int h = 0; h < NUM_HEAT; ++h) {
        double& scale = m.clock[HEAT_SCALE + h];
        if (scale <= RESCALE_AT) continue;
        for (int64_t i = 0; i < m.num_rows; ++i) {
            float& heat = m.heat_HV[h * m.stride + i];
            if (heat != 0 && m.first_V[i] >= 0) m.dirty_V[i] = CHANGED;  // what was not met lately has none left
            heat *= (float)(1 / scale);
        }
        scale = 1;
    }
    return is_due;
}

// Whether the unit of `seen` changed.
inline bool count(const MemoryCall& m, int64_t r) {
    const int32_t target = m.target_R[r];
    const int64_t end = m.past_end_R[r], num = end - m.past_begin_R[r], visit = visit_of(m, r);
    const bool is_rescaled = rescale(m);
    const float weight = weight_of(m, r), unit = weight * (float)m.clock[SEEN_SCALE];
    float decay = unit, direct = unit;
    for (int lag = 0; lag < COUNT_LAGS && lag < num; ++lag, decay *= COUNT_DECAY, direct *= DIRECT_COUNT_DECAY) {
        const int32_t row = m.past_rows[end - 1 - lag];
        if (end - lag == visit) direct *= ACROSS_VISITS;
        if (row == target) continue;
        add(m, row, target, decay, 0.0f, direct);
        add(m, target, row, 0.0f, decay, 0.0f);
    }
    m.seen_V[target] += unit;
    m.clock[SEEN_SCALE] *= m.seen_growth;
    for (int h = 0; h < NUM_HEAT; ++h) {
        m.heat_HV[h * m.stride + target] += weight * (float)m.clock[HEAT_SCALE + h];
        m.clock[HEAT_SCALE + h] *= m.heat_growth[h];
    }
    return is_rescaled;
}

inline bool leaves_out(const MemoryCall& m) {
    if (m.exclude != 2) return m.exclude == 1;
    return m.clock[REPEATS] < FEW_REPEATS * (m.clock[CHOICES] + PRIOR_CHOICES);
}

inline void count_repeat(const MemoryCall& m, bool is_repeat) {
    m.clock[REPEATS] = m.clock[REPEATS] * m.repeat_decay + is_repeat;
    m.clock[CHOICES] = m.clock[CHOICES] * m.repeat_decay + 1;
}

inline void clear(Scratch& s) {
    for (int64_t t = 0; t < s.num_touched; ++t) {
        const int64_t row = s.touched[t];
        s.marked[row] = 0;
        store8(s.evidence + row * NUM_GATHERED, v8{});
        store4(s.own + row * NUM_OWN, v4{});
    }
}

inline void predict(const MemoryCall& m, Scratch& s, int64_t r, const float* logit) {
    const int32_t target = m.target_R[r], *past = m.past_rows + m.past_begin_R[r], *met = m.met_rows + m.met_begin_R[r];
    const int64_t num_past = m.past_end_R[r] - m.past_begin_R[r], num_met = m.met_end_R[r] - m.met_begin_R[r];
    const int bucket = bucket_of(m, num_past);
    const bool excludes = leaves_out(m);
    collect(m, s, r);
    bool is_repeat = false;
    for (int64_t k = 0; k < num_met; ++k) is_repeat |= met[k] == target;
    float best = mix(m, s, logit, bucket, met, excludes ? num_met : 0);
    if (excludes && is_repeat) {  // the target competes even if it is left out
        float own = s.gain[MODEL] * logit[target] + weighed(s, target, s.gain);
        for (int f = 0; f < NUM_STANDING; ++f) own += s.gain[f] * s.standing[f * s.padded + target];
        s.score[target] = own;
        best = own > best ? own : best;
    }
    const float shift = look_again(m, s, logit, bucket, best), mass = push_of(s, best, target, weight_of(m, r));
    rescore(s, shift);
    m.rank_R[r] = rank_of(s.score, s.score, 1, s.padded, m.num_rows, target);
    m.model_rank_R[r] = rank_of(logit, s.score, 1, s.padded, m.num_rows, target);
    m.count_rank_R[r] = rank_of(s.evidence + FOLLOWS, s.score, NUM_GATHERED, s.padded, m.num_rows, target);
    m.loss_R[r] = mass - s.score[target];
    learn_weights(m, s, past, num_past, s.push, 1);
    learn_gains(m, s, logit, bucket);
    s.shortlist->learn(target, m.shortlist_weight, m.shortlist_square, m.shortlist_rate, m.shortlist_decay,
                       weight_of(m, r));
    s.shortlist->settle(m.shortlist_norm);
    clear(s);
    count_repeat(m, is_repeat);
}

// Meets and counts the event's row; whether the unit of `seen` changed.
inline bool meet(const MemoryCall& m, int64_t r) {
    const int32_t target = m.target_R[r];
    const int64_t now = (int64_t)m.clock[EVENTS];
    bool is_rescaled = false;
    if (m.first_V[target] < 0 || (m.chosen_R[r] && m.last_V[target] < 0)) m.first_V[target] = now;
    m.dirty_V[target] = CHANGED;
    if (m.chosen_R[r]) {
        m.last_V[target] = now;
        is_rescaled = count(m, r);
        m.recent[now % RECENT] = target;
    }
    m.clock[EVENTS] += 1;
    return is_rescaled;
}

// Brings up to date what is kept of all rows, after an event of `target`.
inline void refresh(const MemoryCall& m, Scratch& s, int32_t target, bool is_rescaled) {
    s.closed[target] = 0.0f;
    const int64_t from = is_rescaled ? 0 : target, to = is_rescaled ? m.num_rows : target + 1;
    for (int64_t i = from; i < to; ++i) s.inverse_root[i] = m.seen_V[i] > 0 ? 1.0f / sqrtf(m.seen_V[i]) : 0.0f;
    if ((int64_t)m.clock[EVENTS] % REFRESH == 0) stand(m, s, 0, m.num_rows);
    else stand(m, s, target, target + 1);
}

inline void score_all(const MemoryCall& m, Scratch& s) {
    for (int64_t r = 0; r < m.num_events; ++r) {
        const int64_t num_past = m.past_end_R[r] - m.past_begin_R[r];
        float* logit = m.logit_AV + r * m.logit_stride;
        const int64_t num_met = m.met_end_R[r] - m.met_begin_R[r];
        const int bucket = bucket_of(m, num_past);
        collect(m, s, r);
        const float best = mix(m, s, logit, bucket, m.met_rows + m.met_begin_R[r], num_met);
        rescore(s, look_again(m, s, logit, bucket, best));
        memcpy(logit, s.score, m.num_rows * sizeof(float));
        clear(s);
    }
}

HEADRACE_END

// Returns 1 if out of memory.
HEADRACE_LEVEL_API(memory_events)(const MemoryCall* call) {
    using namespace headrace::HEADRACE_LEVEL;
    const MemoryCall& m = *call;
    Scratch s;
    if (!make_scratch(m, s)) return 1;
    stand(m, s, 0, m.num_rows);
    if (!m.learn) {
        score_all(m, s);
        return 0;
    }
    const float* logit = m.logit_AV;
    for (int64_t r = 0; r < m.num_events; ++r) {
        const int32_t target = m.target_R[r];
        const bool is_asked = m.chosen_R[r] == 1;
        m.rank_R[r] = m.model_rank_R[r] = m.count_rank_R[r] = is_asked ? 0 : -1;
        m.loss_R[r] = NAN;
        if (target > 0 && is_asked && m.first_V[target] >= 0) predict(m, s, r, logit);
        logit += is_asked * m.logit_stride;
        if (target > 0) refresh(m, s, target, meet(m, r));
    }
    return 0;
}

#include "memory_best.h"
#include "memory_sampled.h"
