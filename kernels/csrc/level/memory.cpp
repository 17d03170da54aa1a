// The memory's events, in order: predict, learn, count (kernels/memory/reference.py is the definition).
// Single-threaded: each event is predicted from the state that the previous one left. All rows are scored; their
// standing features are recomputed every REFRESH events and kept exact for the row that an event has just changed.
#include "memory_counts.h"
#include "memory_gains.h"

HEADRACE_BEGIN

constexpr int REFRESH = 16;

inline bool make_scratch(const MemoryCall& m, Scratch& s, Blank& blank) {
    s.padded = round_up(m.num_rows, W);
    if (!blank.at_least(s.padded)) return false;
    s.evidence = blank.evidence, s.own = blank.own, s.paired = blank.paired, s.marked = blank.bytes;
    Arena arena;
    for (int pass = 0; pass < 2; ++pass) {
        s.standing = arena.get<float>(s.padded * NUM_STANDING);
        s.score = arena.get<float>(s.padded);
        s.push = arena.get<float>(s.padded);
        s.inverse_root = arena.get<float>(s.padded);
        s.closed = arena.get<float>(s.padded);
        s.lift = arena.get<float>(m.num_columns ? s.padded : 0);
        s.shortlist = arena.get<Shortlist<NUM_SEEN>>(1);
        s.touched = arena.get<int32_t>(s.padded);
        get_groups(m, s, arena);
        if (pass == 0 && !arena.allocate()) return false;
    }
    clear_all_groups(m, s);
    for (int f = 0; f < NUM_STANDING; ++f)
        for (int64_t i = m.num_rows; i < s.padded; ++i) s.standing[f * s.padded + i] = 0.0f;
    for (int64_t i = m.num_rows; m.num_columns && i < s.padded; ++i) s.lift[i] = 0.0f;
    for (int64_t i = 0; i < s.padded; ++i) {
        const bool is_open = i < m.num_rows && m.first_V[i] >= 0;
        s.closed[i] = is_open ? 0.0f : OUT;
        s.inverse_root[i] = is_open ? inverse_root_of(m.seen_V[i]) : 0.0f;
    }
    return true;
}

inline int64_t sum_of(vi x) {
    int64_t total = 0;
    for (int l = 0; l < W; ++l) total += x[l];
    return total;
}

// Scores of all rows, and the largest. Rows that do not compete get OUT.
inline float mix(const MemoryCall& m, Scratch& s, const float* logit, int bucket, const int32_t* met, int64_t num_met) {
    gains_of(m, bucket, s.gain);
    for (int64_t i = 0; i < s.padded; i += W) {
        vf x = load(s.closed + i) + load_some(logit + i, m.num_rows - i) * s.gain[MODEL];
        for (int f = 0; f < NUM_STANDING; ++f) x = fma(load(s.standing + f * s.padded + i), splat(s.gain[f]), x);
        store(s.score + i, x);
    }
    for (int64_t i = 0; m.num_columns && i < m.num_rows; ++i) {
        s.lift[i] = lift_of(m, s, i);
        s.score[i] += s.gain[LIFT] * s.lift[i];
    }
    for (int64_t t = 0; t < s.num_touched; ++t) s.score[s.touched[t]] += weighed(s, s.touched[t], s.gain);
    for (int64_t k = 0; k < num_met; ++k) s.score[met[k]] = OUT;
    vf best = splat(OUT);
    for (int64_t i = 0; i < s.padded; i += W) best = larger(best, load(s.score + i));
    return largest(best);
}

// 1 + the better competitors + half of the equal ones, rounded up; the target is one of `equal` if it competes.
inline int32_t rank_from(int64_t better, int64_t equal, bool competes) {
    return (int32_t)(1 + better + (equal - competes + 1) / 2);
}

// The target's ranks by score, by the network's logit, and by what followed (which untouched rows have none of). Rows
// whose score is above OUT / 2 compete.
inline void rank(const MemoryCall& m, const Scratch& s, int64_t r, const float* logit, int32_t target) {
    const float own = s.score[target], own_logit = logit[target],
                own_count = s.evidence[target * NUM_GATHERED + FOLLOWS];
    vi all = {}, more = {}, same = {}, more_logit = {}, same_logit = {};
    for (int64_t i = 0; i < s.padded; i += W) {
        const vf x = load(s.score + i), y = load_some(logit + i, m.num_rows - i);
        const vi competes = x > OUT / 2;
        all -= competes;
        more -= competes & (x > own);
        same -= competes & (x == own);
        more_logit -= competes & (y > own_logit);
        same_logit -= competes & (y == own_logit);
    }
    const bool competes = own > OUT / 2;
    m.rank_R[r] = rank_from(sum_of(more), sum_of(same), competes);
    m.model_rank_R[r] = rank_from(sum_of(more_logit), sum_of(same_logit), competes);
    int64_t untouched = sum_of(all), better = 0, equal = 0;
    for (int64_t t = 0; t < s.num_touched; ++t) {
        if (!(s.score[s.touched[t]] > OUT / 2)) continue;
        const float count = s.evidence[s.touched[t] * NUM_GATHERED + FOLLOWS];
        --untouched, better += count > own_count, equal += count == own_count;
    }
    better += 0 > own_count ? untouched : 0, equal += own_count == 0 ? untouched : 0;
    m.count_rank_R[r] = rank_from(better, equal, competes);
}

// The same for the best of all rows by the weighted sum.
inline float look_again(const MemoryCall& m, Scratch& s, const float* logit, int bucket, float best) {
    s.shortlist->pick(s.score, s.padded);
    return look_again(m, s, s.standing, s.padded, logit, m.num_columns ? s.lift : nullptr, bucket, best,
                      [](int64_t row) { return row; });
}

inline void rescore(Scratch& s, float shift) {
    for (int64_t c = 0; c < s.shortlist->num; ++c) s.score[s.shortlist->row[c]] = s.shortlist->out[c] + shift;
}

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

inline void learn_gains(const MemoryCall& m, Scratch& s, const float* logit, int bucket) {
    float slope[NUM_FEATURES];
    vf dense[NUM_STANDING + 2] = {};
    for (int64_t i = 0; i < s.padded; i += W) {
        const vf push = load(s.push + i);
        for (int f = 0; f < NUM_STANDING; ++f) dense[f] = fma(load(s.standing + f * s.padded + i), push, dense[f]);
        dense[NUM_STANDING] = fma(load_some(logit + i, m.num_rows - i), push, dense[NUM_STANDING]);
        if (m.num_columns) dense[NUM_STANDING + 1] = fma(load(s.lift + i), push, dense[NUM_STANDING + 1]);
    }
    for (int f = 0; f < NUM_STANDING; ++f) slope[f] = sum(dense[f]);
    slope[MODEL] = sum(dense[NUM_STANDING]), slope[LIFT] = sum(dense[NUM_STANDING + 1]);
    v8 sparse = {};
    v8 own = {};
    for (int f = 0; f < NUM_PAIRED; ++f) slope[PAIR + f] = 0.0f;
    for (int64_t t = 0; t < s.num_touched; ++t) {
        const int64_t row = s.touched[t];
        for (int f = 0; f < NUM_PAIRED; ++f) slope[PAIR + f] += s.paired[row * NUM_PAIRED + f] * s.push[row];
        sparse += load8(s.evidence + row * NUM_GATHERED) * s.push[row];
        own += load8(s.own + row * OWN_STRIDE) * s.push[row];
    }
    store8(slope + NUM_STANDING, sparse);
    for (int f = 0; f < NUM_OWN; ++f) slope[NUM_STANDING + NUM_GATHERED + f] = own[f];
    descend(m, slope, bucket);
}

inline void predict(const MemoryCall& m, Scratch& s, int64_t r, const float* logit) {
    const int32_t target = m.target_R[r], *past = m.past_rows + m.past_begin_R[r], *met = m.met_rows + m.met_begin_R[r];
    const int64_t num_past = m.past_end_R[r] - m.past_begin_R[r], num_met = m.met_end_R[r] - m.met_begin_R[r];
    const int bucket = bucket_of(m, num_past);
    const bool excludes = leaves_out(m);
    collect(m, s, r);
    lift_groups(m, s, r);
    bool is_repeat = false;
    for (int64_t k = 0; k < num_met; ++k) is_repeat |= met[k] == target;
    float best = mix(m, s, logit, bucket, met, excludes ? num_met : 0);
    if (excludes && is_repeat) {  // the target competes even if it is left out
        float own = s.gain[MODEL] * logit[target] + s.gain[LIFT] * lift_of(m, s, target) + weighed(s, target, s.gain);
        for (int f = 0; f < NUM_STANDING; ++f) own += s.gain[f] * s.standing[f * s.padded + target];
        s.score[target] = own;
        best = own > best ? own : best;
    }
    const float shift = look_again(m, s, logit, bucket, best), mass = push_of(s, best, target, weight_of(m, r));
    rescore(s, shift);
    rank(m, s, r, logit, target);
    m.loss_R[r] = mass - s.score[target];
    learn_weights(m, s, past, num_past, s.push, 1);
    learn_gains(m, s, logit, bucket);
    learn_groups(m, r);
    s.shortlist->learn(target, m.shortlist_weight, m.shortlist_square, m.shortlist_rate, m.shortlist_decay,
                       weight_of(m, r));
    s.shortlist->settle(m.shortlist_norm);
    clear(s);
    count_choice(m, r, is_repeat);
}

// Updates what is precomputed for all rows, after an event of `target`.
inline void refresh(const MemoryCall& m, Scratch& s, int32_t target, bool is_rescaled) {
    s.closed[target] = 0.0f;
    const int64_t from = is_rescaled ? 0 : target, to = is_rescaled ? m.num_rows : target + 1;
    for (int64_t i = from; i < to; ++i) s.inverse_root[i] = inverse_root_of(m.seen_V[i]);
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
        lift_groups(m, s, r);
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
    static thread_local Blank blank;
    Scratch s;
    if (!make_scratch(m, s, blank)) return 1;
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
