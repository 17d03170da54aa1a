// Events that are learned from a sample of the rows (kernels/memory/sampled.py is the definition), for catalogues that
// are too large to score for every event.
//
// The certain candidates are the rows with evidence, the target and those chosen lately; the others are represented by
// a few drawn at random, each of which stands for many. What an event costs depends on the history, not on the
// catalogue. Groups of items are counted, but do not lift scores here: see kernels/memory/sampled.py.
#include "memory_counts.h"
#include "memory_gains.h"
#include "sampled_rows.h"

// The argument, laid out as in kernels/memory/cpp.py.
struct SampledCall {
    MemoryCall memory;
    const float* query_AD;  // a query for each event to predict
    const void* table_VD;   // the table's rows, not normalised
    // D; columns of a row that are scaled to unit length; type (half.h)
    int64_t width, unit_width, table_type;
    // Where the table is elsewhere, instead of these five: the logits of each predicted event's candidates.
    const int32_t* given_row;
    const int64_t* given_begin_A1;
    const float* given_logit;
};

struct LogitsCall {
    const float* query_AD;
    const void* table_VD;
    int64_t num_queries, num_rows, width, unit_width, stride, table_type;
    float* logit_AV;
};

HEADRACE_BEGIN

struct Candidates {
    Scratch s = {};  // of it `touched`, `slot`, `evidence`, `own`, `pause`, `gain` and `shortlist`
    uint8_t* barred = nullptr;
    float* given = nullptr;  // by row, the logits of the event at hand
    int64_t most = 0, num_certain = 0, first_drawn = 0, num = 0,
            target = 0;  // padded between the certain ones and the drawn
    int32_t* row = nullptr;
    float *score = nullptr, *push = nullptr, *logit = nullptr, *share = nullptr, *standing = nullptr;
    float *seen = nullptr, *heat = nullptr, *hour = nullptr;
    int64_t *first = nullptr, *last = nullptr;
};

inline bool make_candidates(const MemoryCall& m, Candidates& c, Sparse& sparse, Arena& arena) {
    int64_t most_past = 0, most_shown = 0;
    for (int64_t r = 0; r < m.num_events; ++r) {
        most_past = max64(most_past, m.past_end_R[r] - m.past_begin_R[r]);
        most_shown = max64(most_shown, m.shown_end_R[r] - m.shown_begin_R[r]);
    }
    const int64_t most_met = min64(most_past, WIDE_LAGS) * m.width + most_past + most_shown + NUM_PAIRED * NEXT_OF_PAIR;
    const int64_t most = min64(m.num_rows, most_met + RECENT + 1);
    c.most = round_up(most, W) + round_up(DRAWN, W);
    for (int pass = 0; pass < 2; ++pass) {
        c.s.touched = arena.get<int32_t>(c.most + 1);
        c.s.evidence = arena.get<float>(c.most * NUM_GATHERED);
        c.s.own = arena.get<float>(c.most * OWN_STRIDE);
        c.s.paired = arena.get<float>(c.most * NUM_PAIRED);
        c.s.shortlist = arena.get<Shortlist<NUM_SEEN>>(1);
        c.row = arena.get<int32_t>(c.most);
        c.score = arena.get<float>(c.most);
        c.push = arena.get<float>(c.most);
        c.logit = arena.get<float>(c.most);
        c.share = arena.get<float>(c.most);
        c.standing = arena.get<float>(c.most * NUM_STANDING);
        c.seen = arena.get<float>(c.most);
        c.heat = arena.get<float>(c.most * NUM_HEAT);
        c.hour = arena.get<float>(c.most * NUM_HOURS);
        c.first = arena.get<int64_t>(c.most);
        c.last = arena.get<int64_t>(c.most);
        if (pass == 0 && !arena.allocate()) return false;
    }
    if (!sparse.at_least(m.num_rows)) return false;
    memset(c.s.evidence, 0, c.most * NUM_GATHERED * sizeof(float));
    memset(c.s.own, 0, c.most * OWN_STRIDE * sizeof(float));
    memset(c.s.paired, 0, c.most * NUM_PAIRED * sizeof(float));
    c.s.slot = sparse.slot;
    c.barred = sparse.barred;
    c.given = sparse.logit;
    return true;
}

// Prefetches what `collect` reads and writes of the neighbours: each lies elsewhere, and nothing else waits for them.
inline void fetch_neighbours(const MemoryCall& m, const Scratch& s, const int32_t* past, int64_t num_past) {
    for (int64_t lag = 0; lag < WIDE_LAGS && lag < num_past; ++lag) {
        const int64_t row = past[num_past - 1 - lag];
        for (int64_t j = row * m.width; j < row * m.width + m.num_neighbours[row]; ++j) {
            const int64_t id = m.neighbour_row[j];
            __builtin_prefetch(m.seen_V + id);
            __builtin_prefetch(s.slot + id, 1);
        }
    }
}

// Finds the event's candidates and collects their evidence.
inline void find_candidates(const MemoryCall& m, Candidates& c, int64_t r, const int32_t* past, int64_t num_past) {
    Scratch& s = c.s;
    const int32_t target = m.target_R[r];
    fetch_neighbours(m, s, past, num_past);
    collect(m, s, r);
    touch(s, target);
    for (int i = 0; i < RECENT; ++i)
        if (m.recent[i] > 0 && m.recent[i] < m.num_rows) touch(s, m.recent[i]);
    c.num_certain = s.num_touched;
    c.first_drawn = round_up(c.num_certain, W);
    for (int64_t i = 0; i < c.num_certain; ++i) {
        c.row[i] = s.touched[i];
        c.share[i] = 1.0f;
        if (c.row[i] == target) c.target = i;
    }
    for (int64_t i = c.num_certain; i < c.first_drawn; ++i) c.row[i] = 0, c.share[i] = 0.0f;
    c.num = c.first_drawn;
    const uint64_t event = (uint64_t)m.clock[EVENTS];
    for (int draw = 0; draw < DRAWN; ++draw) {
        const int64_t row = drawn_row(event, draw, m.num_rows);
        if (s.slot[row]) continue;
        c.row[c.num] = (int32_t)row;
        c.share[c.num++] = (float)(m.num_rows - 1) / DRAWN;
    }
    for (const int64_t end = round_up(c.num, W); c.num < end; ++c.num) c.row[c.num] = 0, c.share[c.num] = 0.0f;
}

// Looks up the candidates' standing features, then the network's logits.
inline void look_up(const SampledCall& call, Candidates& c, const float* query) {
    const MemoryCall& m = call.memory;
    for (int64_t i = 0; i < c.num; ++i) {
        const int64_t row = c.row[i], ahead = c.row[min64(i + AHEAD_ROWS, c.num - 1)];
        __builtin_prefetch(m.first_V + ahead);
        __builtin_prefetch(m.last_V + ahead);
        __builtin_prefetch(m.seen_V + ahead);
        for (int h = 0; h < NUM_HEAT; ++h) __builtin_prefetch(m.heat_HV + h * m.stride + ahead);
        if (m.num_hours) __builtin_prefetch(m.hour_VH + ahead * NUM_HOURS);
        c.seen[i] = m.seen_V[row], c.first[i] = m.first_V[row], c.last[i] = m.last_V[row];
        for (int h = 0; h < NUM_HEAT; ++h) c.heat[h * c.most + i] = m.heat_HV[h * m.stride + row];
        copy_hours(m, c.hour + i * NUM_HOURS, row);
    }
    MemoryCall few = m;
    few.stride = c.most, few.seen_V = c.seen, few.heat_HV = c.heat, few.first_V = c.first, few.last_V = c.last;
    few.hour_VH = c.hour;
    Scratch standing = {};
    standing.standing = c.standing, standing.padded = c.most;
    stand(few, standing, 0, c.num);
    if (call.given_row) {
        for (int64_t i = 0; i < c.num; ++i) c.logit[i] = c.given[c.row[i]];
        return;
    }
    with_rows(call.table_VD, call.table_type, [&](auto* table_VD) {
        for (int64_t i = 0; i < c.num; ++i) {
            if (i + AHEAD_ROWS < c.num) prefetch(table_VD + c.row[i + AHEAD_ROWS] * call.width, call.width);
            logits_of_row<1>(table_VD + c.row[i] * call.width, query, call.width, call.unit_width, c.logit + i);
        }
    });
}

// Scores the candidates; returns the largest score, and in `best_certain` the largest of the certain ones.
inline float score_candidates(const MemoryCall& m, Candidates& c, int bucket, const int32_t* met, int64_t num_met,
                              float& best_certain) {
    gains_of(m, bucket, c.s.gain);
    const float* gains = c.s.gain;
    for (int64_t k = 0; k < num_met; ++k) c.barred[met[k]] = 1;
    for (int64_t i = 0; i < c.num; i += W) {
        vf x = load(c.logit + i) * gains[MODEL];
        for (int f = 0; f < NUM_STANDING; ++f) x = fma(load(c.standing + f * c.most + i), splat(gains[f]), x);
        store(c.score + i, x);
    }
    float best = OUT;
    best_certain = OUT;
    for (int64_t i = 0; i < c.num; ++i) {
        const int64_t row = c.row[i];
        const bool competes = c.share[i] > 0 && c.first[i] >= 0 && (!c.barred[row] || i == c.target);
        if (i < c.num_certain) c.score[i] += weighed(c.s, i, gains);
        if (!competes) c.score[i] = OUT;
        best = c.score[i] > best ? c.score[i] : best;
        if (i < c.num_certain) best_certain = best;
    }
    for (int64_t k = 0; k < num_met; ++k) c.barred[met[k]] = 0;
    return best;
}

// push = weight * (share of the softmax - [is the target]); returns the log of the estimated sum of e^score.
inline float push_candidates(Candidates& c, float best, float weight) {
    vf total = zero();
    for (int64_t i = 0; i < c.num; i += W) {
        const vf p = exp_negative(load(c.score + i) - best) * load(c.share + i);
        store(c.push + i, p);
        total += p;
    }
    const float all = sum(total), share = weight / all;
    for (int64_t i = 0; i < c.num; i += W) store(c.push + i, load(c.push + i) * share);
    c.push[c.target] -= weight;
    return best + logf(all);
}

inline void learn_from_candidates(const MemoryCall& m, Candidates& c, const int32_t* past, int64_t num_past,
                                  int bucket) {
    float slope[NUM_FEATURES];
    vf dense[NUM_STANDING + 1] = {};
    for (int64_t i = 0; i < c.num; i += W) {
        const vf push = load(c.push + i);
        for (int f = 0; f < NUM_STANDING; ++f) dense[f] = fma(load(c.standing + f * c.most + i), push, dense[f]);
        dense[NUM_STANDING] = fma(load(c.logit + i), push, dense[NUM_STANDING]);
    }
    for (int f = 0; f < NUM_STANDING; ++f) slope[f] = sum(dense[f]);
    slope[MODEL] = sum(dense[NUM_STANDING]), slope[LIFT] = 0.0f;
    for (int f = 0; f < NUM_PAIRED; ++f) slope[PAIR + f] = 0.0f;
    v8 sparse = {};
    v8 own = {};
    for (int64_t i = 0; i < c.num_certain; ++i) {
        float* e = c.s.evidence + i * NUM_GATHERED;
        sparse += load8(e) * c.push[i];
        own += load8(c.s.own + i * OWN_STRIDE) * c.push[i];
        for (int f = 0; f < NUM_PAIRED; ++f) slope[PAIR + f] += c.s.paired[i * NUM_PAIRED + f] * c.push[i];
        e[0] = c.push[i];  // kept for learn_weights; the evidence is no longer needed
    }
    store8(slope + NUM_STANDING, sparse);
    for (int f = 0; f < NUM_OWN; ++f) slope[NUM_STANDING + NUM_GATHERED + f] = own[f];
    learn_weights(m, c.s, past, num_past, c.s.evidence, NUM_GATHERED);
    descend(m, slope, bucket);
}

inline void learn_sampled(const SampledCall& call, Candidates& c, int64_t r, const float* query) {
    const MemoryCall& m = call.memory;
    const int32_t target = m.target_R[r], *past = m.past_rows + m.past_begin_R[r], *met = m.met_rows + m.met_begin_R[r];
    const int64_t num_past = m.past_end_R[r] - m.past_begin_R[r], num_met = m.met_end_R[r] - m.met_begin_R[r];
    const int bucket = bucket_of(m, num_past);
    bool is_repeat = false;
    for (int64_t k = 0; k < num_met; ++k) is_repeat |= met[k] == target;
    find_candidates(m, c, r, past, num_past);
    look_up(call, c, query);
    float best_certain;
    const float best = score_candidates(m, c, bucket, met, leaves_out(m) ? num_met : 0, best_certain);
    Shortlist<NUM_SEEN>& list = *c.s.shortlist;
    list.pick(c.score, c.first_drawn);
    const float shift =
        look_again(m, c.s, c.standing, c.most, c.logit, nullptr, bucket, best_certain, [](int64_t at) { return at; });
    const float mass = push_candidates(c, best, weight_of(m, r));
    float own = c.score[c.target];
    for (int64_t k = 0; k < list.num; ++k)
        if (list.row[k] == c.target) own = list.out[k] + shift;
    m.loss_R[r] = mass - own;
    learn_from_candidates(m, c, past, num_past, bucket);
    learn_groups(m, r);
    list.learn((int32_t)c.target, m.shortlist_weight, m.shortlist_square, m.shortlist_rate, m.shortlist_decay,
               weight_of(m, r));
    list.settle(m.shortlist_norm);
    clear(c.s);
    count_choice(m, r, is_repeat);
}

inline bool learn_all_sampled(const SampledCall& call) {
    static thread_local Sparse sparse;
    const MemoryCall& m = call.memory;
    Candidates c;
    Arena arena;
    if (!make_candidates(m, c, sparse, arena)) return false;
    const float* query = call.query_AD;
    const int64_t* begin = call.given_begin_A1;
    for (int64_t r = 0; r < m.num_events; ++r) {
        const int32_t target = m.target_R[r];
        const bool is_asked = m.chosen_R[r] == 1;
        m.rank_R[r] = m.model_rank_R[r] = m.count_rank_R[r] = -1;
        m.loss_R[r] = NAN;
        if (target > 0 && is_asked && m.first_V[target] >= 0) {
            for (int64_t i = begin ? begin[0] : 0, end = begin ? begin[1] : 0; i < end; ++i)
                c.given[call.given_row[i]] = call.given_logit[i];
            learn_sampled(call, c, r, query);
        }
        query += is_asked * call.width;
        if (begin) begin += is_asked;
        if (target > 0) meet(m, r);
    }
    return true;
}

// The logits of all rows, for up to four queries in each pass over the table.
template <class T>
inline void all_logits(const LogitsCall& c, const T* table_VD) {
    for (int64_t first = 0; first < c.num_queries; first += 4) {
        const int64_t num = min64(4, c.num_queries - first);
        const float* query = c.query_AD + first * c.width;
        for (int64_t i = 0; i < c.num_rows; ++i) {
            const T* row = table_VD + i * c.width;
            float logit[4];
            if (num == 4) logits_of_row<4>(row, query, c.width, c.unit_width, logit);
            else
                for (int64_t q = 0; q < num; ++q)
                    logits_of_row<1>(row, query + q * c.width, c.width, c.unit_width, logit + q);
            for (int64_t q = 0; q < num; ++q) c.logit_AV[(first + q) * c.stride + i] = logit[q];
        }
    }
}

HEADRACE_END

// Returns 1 if out of memory.
HEADRACE_LEVEL_API(memory_sampled)(const SampledCall* call) {
    return !headrace::HEADRACE_LEVEL::learn_all_sampled(*call);
}
HEADRACE_LEVEL_API(memory_logits)(const LogitsCall* call) {
    using namespace headrace::HEADRACE_LEVEL;
    with_rows(call->table_VD, call->table_type, [&](auto* table_VD) { all_logits(*call, table_VD); });
    return 0;
}
