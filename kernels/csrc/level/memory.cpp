// The memory's events, in order: predict, learn, count (kernels/memory/reference.py is the definition).
// Single-threaded: each event is predicted from the state that the previous one left. All rows are scored; their
// standing features are recomputed every REFRESH events and kept exact for the row that an event has just changed.
#include "memory_counts.h"
#include "memory_gains.h"

HEADRACE_BEGIN

constexpr int REFRESH = 16;

inline bool make_scratch(const MemoryCall& m, Scratch& s) {
    s.padded = round_up(m.num_rows, W);
    Arena arena;
    for (int pass = 0; pass < 2; ++pass) {
        s.standing = arena.get<float>(s.padded * NUM_STANDING);
        s.evidence = arena.get<float>(s.padded * NUM_GATHERED);
        s.own = arena.get<float>(s.padded * OWN_STRIDE);
        s.score = arena.get<float>(s.padded);
        s.push = arena.get<float>(s.padded);
        s.inverse_root = arena.get<float>(s.padded);
        s.closed = arena.get<float>(s.padded);
        s.lift = arena.get<float>(s.padded);
        s.shortlist = arena.get<Shortlist<NUM_SEEN>>(1);
        s.touched = arena.get<int32_t>(s.padded);
        s.marked = arena.get<uint8_t>(s.padded);
        s.excluded = arena.get<uint8_t>(s.padded);
        get_groups(m, s, arena);
        if (pass == 0 && !arena.allocate()) return false;
    }
    memset(s.standing, 0, s.padded * NUM_STANDING * sizeof(float));
    memset(s.evidence, 0, s.padded * NUM_GATHERED * sizeof(float));
    memset(s.own, 0, s.padded * OWN_STRIDE * sizeof(float));
    memset(s.lift, 0, s.padded * sizeof(float));
    memset(s.marked, 0, s.padded);
    clear_all_groups(m, s);
    memset(s.excluded, 0, s.padded);
    for (int64_t i = 0; i < s.padded; ++i) {
        const bool is_open = i < m.num_rows && m.first_V[i] >= 0;
        s.closed[i] = is_open ? 0.0f : OUT;
        s.inverse_root[i] = is_open && m.seen_V[i] > 0 ? 1.0f / sqrtf(m.seen_V[i]) : 0.0f;
    }
    return true;
}

// Scores of all rows, and the largest. Rows that do not compete get OUT.
inline float mix(const MemoryCall& m, Scratch& s, const float* logit, int bucket, const int32_t* met, int64_t num_met) {
    gains_of(m, bucket, s.gain);
    if (m.num_columns)
        for (int64_t i = 0; i < m.num_rows; ++i) s.lift[i] = lift_of(m, s, i);
    for (int64_t i = 0; i < s.padded; i += W) {
        vf x = load(s.closed + i) + load_some(logit + i, m.num_rows - i) * s.gain[MODEL];
        for (int f = 0; f < NUM_STANDING; ++f) x = fma(load(s.standing + f * s.padded + i), splat(s.gain[f]), x);
        store(s.score + i, fma(load(s.lift + i), splat(s.gain[LIFT]), x));
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

// The same for the best of all rows by the weighted sum.
inline float look_again(const MemoryCall& m, Scratch& s, const float* logit, int bucket, float best) {
    s.shortlist->pick(s.score, s.padded);
    return look_again(m, s, s.standing, s.padded, logit, s.lift, bucket, best, [](int64_t row) { return row; });
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
        dense[NUM_STANDING + 1] = fma(load(s.lift + i), push, dense[NUM_STANDING + 1]);
    }
    for (int f = 0; f < NUM_STANDING; ++f) slope[f] = sum(dense[f]);
    slope[MODEL] = sum(dense[NUM_STANDING]), slope[LIFT] = sum(dense[NUM_STANDING + 1]);
    v8 sparse = {};
    v8 own = {};
    for (int64_t t = 0; t < s.num_touched; ++t) {
        const int64_t row = s.touched[t];
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
    bool is_repeat = false;
    for (int64_t k = 0; k < num_met; ++k) is_repeat |= met[k] == target;
    float best = mix(m, s, logit, bucket, met, excludes ? num_met : 0);
    if (excludes && is_repeat) {  // the target competes even if it is left out
        float own = s.gain[MODEL] * logit[target] + s.gain[LIFT] * s.lift[target] + weighed(s, target, s.gain);
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
    learn_groups(m, r);
    s.shortlist->learn(target, m.shortlist_weight, m.shortlist_square, m.shortlist_rate, m.shortlist_decay,
                       weight_of(m, r));
    s.shortlist->settle(m.shortlist_norm);
    clear(s);
    count_repeat(m, is_repeat);
}

// Updates what is precomputed for all rows, after an event of `target`.
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
