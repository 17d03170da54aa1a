// Ranks one choice among all rows without a long pause (kernels/memory/ranking.py is the definition).
//
// `begin`, at the moment of the prediction, keeps what the scores depend on beside the rows themselves, and scores the
// rows with evidence. Then a slice of rows is scored after each of the next events, and every row before it changes.
// `end` rescores the best rows, as for any prediction, counts the better ones, and learns from the list.
#include "memory_rank.h"

#include "memory_counts.h"

HEADRACE_BEGIN

inline int64_t most_touched(const MemoryCall& m) {
    const int64_t past = m.past_end_R[0] - m.past_begin_R[0], shown = m.shown_end_R[0] - m.shown_begin_R[0];
    return min64(m.num_rows, min64(past, WIDE_LAGS) * m.width + past + shown + NUM_PAIRED * NEXT_OF_PAIR) + 1;
}

inline bool make_touched(const MemoryCall& m, Scratch& s, Sparse& sparse, Arena& arena) {
    const int64_t most = most_touched(m);
    for (int pass = 0; pass < 2; ++pass) {
        s.touched = arena.get<int32_t>(most + 1);
        s.evidence = arena.get<float>(most * NUM_GATHERED);
        s.own = arena.get<float>(most * OWN_STRIDE);
        s.paired = arena.get<float>(most * NUM_PAIRED);
        get_groups(m, s, arena);
        if (pass == 0 && !arena.allocate()) return false;
    }
    if (!sparse.at_least(m.num_rows)) return false;
    memset(s.evidence, 0, most * NUM_GATHERED * sizeof(float));
    memset(s.own, 0, most * OWN_STRIDE * sizeof(float));
    memset(s.paired, 0, most * NUM_PAIRED * sizeof(float));
    s.slot = sparse.slot;
    return true;
}

inline void keep_moment(const RankCall& c, const Scratch& s) {
    const MemoryCall& m = c.memory;
    memcpy(c.gain, s.gain, sizeof s.gain);
    c.number[RANKED_ROWS] = m.num_rows, c.number[RANKED] = m.target_R[0], c.number[RANKED_GROUPS] = m.num_groups;
    c.number[RANKED_BUCKET] = bucket_of(m, m.past_end_R[0] - m.past_begin_R[0]);
    c.amount[BEST_SCORE] = OUT, c.amount[RANKED_PAUSE] = s.pause, c.amount[RANKED_WEIGHT] = weight_of(m, 0);
}

// Scores the rows with evidence; the first call is for the target, on whose logit the counts depend.
inline void score_touched(const RankCall& c, Scratch& s, Scored& b, int64_t from, int64_t to) {
    const MemoryCall& m = c.memory;
    for (int64_t t = from; t < to; t += SCORED) {
        const int64_t num = min64(SCORED, to - t);
        score_rows(c, m, s, b, s.touched + t, num);
        for (int64_t i = 0; i < num; ++i) {
            const int64_t row = s.touched[t + i], place = place_of(s, row);
            const float *evidence = s.evidence + place * NUM_GATHERED, *own = s.own + place * OWN_STRIDE,
                        *paired = s.paired + place * NUM_PAIRED;
            b.score[i] += weighed(s, place, s.gain);
            if (row == c.number[RANKED])
                c.amount[RANKED_LOGIT] = b.logit[i], c.amount[RANKED_COUNT] = evidence[FOLLOWS];
            if (c.score_V[row] == UNSCORED) keep_score(c, row, b, i, evidence, own, paired);
        }
    }
}

inline void count_touched(const RankCall& c, const Scratch& s) {
    const float own_count = (float)c.amount[RANKED_COUNT];
    for (int64_t t = 0; t < s.num_touched; ++t) {
        if (!(c.score_V[s.touched[t]] > OUT / 2)) continue;
        const float count = s.evidence[place_touched(s, t) * NUM_GATHERED + FOLLOWS];
        c.number[TOUCHED] += 1, c.number[TOUCHED_MORE] += count > own_count,
            c.number[TOUCHED_SAME] += count == own_count;
    }
}

inline bool begin_rank(const RankCall& c) {
    static thread_local Sparse sparse;
    const MemoryCall& m = c.memory;
    const int32_t target = m.target_R[0], *met = m.met_rows + m.met_begin_R[0];
    Scratch s = {};
    Scored b;
    Arena arena;
    if (!make_touched(m, s, sparse, arena)) return false;
    clear_all_groups(m, s);
    collect(m, s, 0);
    lift_groups(m, s, 0);
    touch(s, target);
    gains_of(m, bucket_of(m, m.past_end_R[0] - m.past_begin_R[0]), s.gain);
    keep_moment(c, s);
    memcpy(c.lift_base, s.lift_base, m.num_columns * sizeof(float));
    memcpy(c.lift_G, s.lift_G, m.num_columns * m.num_groups * sizeof(float));
    for (int64_t i = 0; i < m.num_rows; ++i) c.score_V[i] = UNSCORED;
    for (int64_t k = 0; leaves_out(m) && k < m.met_end_R[0] - m.met_begin_R[0]; ++k)
        if (met[k] != target) c.score_V[met[k]] = OUT;
    const int64_t at = place_of(s, target);
    score_touched(c, s, b, at, at + 1);
    score_touched(c, s, b, 0, s.num_touched);
    count_touched(c, s);
    clear(s);
    return true;
}

// Scores those of these rows that have no score yet.
inline void score_some(const RankCall& c) {
    const MemoryCall m = as_it_was(c);
    Scratch s = {};
    Scored b;
    int32_t rows[SCORED];
    recall(c, s);
    int64_t num = 0;
    for (int64_t k = 0; k <= c.num; ++k) {
        if (k < c.num && c.rows[k] < m.num_rows && c.score_V[c.rows[k]] == UNSCORED) rows[num++] = c.rows[k];
        if (num < SCORED && k < c.num) continue;
        score_rows(c, m, s, b, rows, num);
        for (int64_t i = 0; i < num; ++i)
            if (c.score_V[rows[i]] == UNSCORED) keep_score(c, rows[i], b, i);
        num = 0;
    }
}

// Adds a block of scores, in the order of the rows, to the sums of e^score and of the lifts weighted by that.
inline void add_mass(const RankCall& c, Scored& b, int64_t from, int64_t num) {
    for (int64_t i = 0; i < SCORED; ++i) {
        b.score[i] = i < num ? c.score_V[from + i] : OUT;
        b.lift[i] = i < num && c.memory.num_columns ? c.lift_V[from + i] : 0.0f;
    }
    vf top = splat(OUT), mass = zero(), lifted = zero();
    vi all = {};
    for (int64_t i = 0; i < SCORED; i += W) top = larger(top, load(b.score + i)), all -= load(b.score + i) > OUT / 2;
    const float best = largest(top);
    if (best > c.amount[BEST_SCORE]) {
        const double share = c.amount[BEST_SCORE] > OUT / 2 ? exp(c.amount[BEST_SCORE] - best) : 0.0;
        c.amount[MASS] *= share, c.amount[LIFT_MASS] *= share, c.amount[BEST_SCORE] = best;
    }
    const float reference = (float)c.amount[BEST_SCORE];
    for (int64_t i = 0; i < SCORED && reference > OUT / 2; i += W) {
        const vf p = exp_negative(load(b.score + i) - reference);
        mass += p;
        lifted = fma(p, load(b.lift + i), lifted);
    }
    c.amount[MASS] += sum(mass), c.amount[LIFT_MASS] += sum(lifted);
    for (int l = 0; l < W; ++l) c.number[COMPETING] += all[l];
}

// Scores the next `num` rows in order, in whole blocks: sums of other blocks would differ in the last bits.
inline void score_next(const RankCall& c) {
    const MemoryCall m = as_it_was(c);
    Scratch s = {};
    Scored b;
    recall(c, s);
    s.padded = SCORED;
    const int64_t end = min64(m.num_rows, round_up(c.number[NEXT_ROW] + c.num, SCORED));
    for (int64_t from = c.number[NEXT_ROW]; from < end; from += SCORED) {
        const int64_t num = min64(SCORED, end - from);
        s.standing = b.standing - from;
        stand(m, s, from, from + num);
        score_block(c, m, s, b, num, [from](int64_t i) { return from + i; });
        for (int64_t i = 0; i < num; ++i)
            if (c.score_V[from + i] == UNSCORED) keep_score(c, from + i, b, i);
        add_mass(c, b, from, num);
    }
    c.number[NEXT_ROW] = end;
}

// The kept rows, ascending, as the shortlist's network sees them.
inline void lay_out_list(const RankCall& c, Shortlist<NUM_SEEN>& list) {
    int64_t order[LISTED];
    list.num = c.number[NUM_LISTED];
    for (int64_t k = 0; k < LISTED; ++k) {
        int64_t at = k;
        for (; k < list.num && at > 0 && c.listed_row[order[at - 1]] > c.listed_row[k]; --at) order[at] = order[at - 1];
        order[at] = k;
    }
    const float best = (float)c.amount[BEST_SCORE];
    for (int64_t k = 0; k < LISTED; ++k) {
        const bool used = k < list.num;
        const float *from = c.listed_feature + order[k] * NUM_FEATURES, score = c.listed_score[order[k]];
        list.row[k] = used ? c.listed_row[order[k]] : 0, list.score[k] = used ? score : UNLISTED;
        list.listed[k] = used ? 1.0f : 0.0f;
        for (int f = 0; f < NUM_FEATURES; ++f) list.raw[f][k] = used ? from[f] : 0.0f;
        list.raw[LEAD][k] = used ? (score - best > LAST_LEAD ? score - best : LAST_LEAD) : 0.0f;
        list.raw[IS_OWN][k] = used && from[NUM_STANDING + NUM_GATHERED + OWN_COUNT] > 0 ? 1.0f : 0.0f;
        list.raw[LENGTH][k] = used ? LENGTH_SCALE * (float)c.number[RANKED_BUCKET] : 0.0f;
        list.raw[PAUSE][k] = used ? (float)c.amount[RANKED_PAUSE] : 0.0f;
    }
}

inline int32_t rank_at(int64_t better, int64_t equal) { return (int32_t)(1 + better + equal / 2); }

// The ranks by score, by the network's logit and by what followed. The target is one of those that equal it.
inline void count_ranks(const RankCall& c) {
    const int64_t num_rows = c.number[RANKED_ROWS], *n = c.number;
    const float own = c.score_V[n[RANKED]], own_count = (float)c.amount[RANKED_COUNT];
    int64_t more = 0, same = 0;
    for (int64_t i = 0; i < num_rows; ++i) more += c.score_V[i] > own, same += c.score_V[i] == own;
    const int64_t untouched = n[COMPETING] - n[TOUCHED];
    c.rank_3[0] = rank_at(more, same);
    c.rank_3[1] = rank_at(n[MORE_LOGIT], n[SAME_LOGIT]);
    c.rank_3[2] =
        rank_at(n[TOUCHED_MORE] + (0 > own_count ? untouched : 0), n[TOUCHED_SAME] + (own_count == 0 ? untouched : 0));
}

// What only a comparison with all rows teaches: the gain of the lifts, and the network on the list of the best of all.
inline void learn_from_list(const RankCall& c, Shortlist<NUM_SEEN>& list) {
    const MemoryCall& m = c.memory;
    const float weight = (float)c.amount[RANKED_WEIGHT];
    const int64_t target = c.number[RANKED], bucket = c.number[RANKED_BUCKET];
    list.look(m.shortlist_weight, m.shortlist_norm);
    list.shift();
    list.learn((int32_t)target, m.shortlist_weight, m.shortlist_square, m.shortlist_rate, m.shortlist_decay, weight);
    list.settle(m.shortlist_norm);
    if (!m.num_columns) return;
    const float slope = weight * ((float)(c.amount[LIFT_MASS] / c.amount[MASS]) - c.lift_V[target]);
    for (int part = 0; part < 2; ++part) {
        const int64_t at = part * bucket * NUM_FEATURES + LIFT;
        m.square_BF[at] = m.square_BF[at] * m.gain_decay + slope * slope;
        m.gain_BF[at] -= (part ? .5f * m.gain_rate : m.gain_rate) * slope / sqrtf(m.square_BF[at]);
    }
}

inline void end_rank(const RankCall& c) {
    Shortlist<NUM_SEEN> list;
    lay_out_list(c, list);
    list.look(c.shortlist_weight, c.shortlist_norm);
    const float shift = list.shift();
    for (int64_t k = 0; k < list.num; ++k) c.score_V[list.row[k]] = list.out[k] + shift;
    count_ranks(c);
    *c.loss = (float)(c.amount[BEST_SCORE] + log(c.amount[MASS]) - c.score_V[c.number[RANKED]]);
    learn_from_list(c, list);
}

HEADRACE_END

// Returns 1 if out of memory.
HEADRACE_LEVEL_API(memory_rank_begin)(const RankCall* call) { return !headrace::HEADRACE_LEVEL::begin_rank(*call); }
HEADRACE_LEVEL_API(memory_rank_rows)(const RankCall* call) {
    headrace::HEADRACE_LEVEL::score_some(*call);
    return 0;
}
HEADRACE_LEVEL_API(memory_rank_next)(const RankCall* call) {
    headrace::HEADRACE_LEVEL::score_next(*call);
    return 0;
}
HEADRACE_LEVEL_API(memory_rank_end)(const RankCall* call) {
    headrace::HEADRACE_LEVEL::end_rank(*call);
    return 0;
}
