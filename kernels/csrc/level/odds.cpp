// The odds' events, in order: predict, learn, count (kernels/odds/reference.py is the definition). Single-threaded:
// each event is predicted from the state that the previous one left.
#include "odds_inputs.h"

HEADRACE_BEGIN

constexpr float LEAK = .1f, FURTHEST = 4.f, LEAST_VARIANCE = 1e-2f;
constexpr double EVENTS_REMEMBERED = 2000.;
constexpr int64_t LINE = 64, MOST_FETCHED = 256;

HEADRACE_INLINE float leaky(float x) { return x > 0 ? x : LEAK * x; }

// Predicts from an event's log-odds with the current weights.
inline void predict(const OddsCall& c, Scratch& s, const float* log, float* logit) {
    const int64_t K = c.num_kinds, num_features = s.num_logs / K;
    for (int64_t i = 0; i < s.num_logs; ++i) {
        const float x = (log[i] - c.norm[i]) / sqrtf(c.norm[s.num_logs + i] + LEAST_VARIANCE);
        s.seen[i] = x > FURTHEST ? FURTHEST : x < -FURTHEST ? -FURTHEST : x;
    }
    memcpy(s.seen + s.num_logs, log + s.num_logs, NUM_CONFIDENCES * sizeof(float));
    s.seen[s.num_seen - 1] = 1.0f;
    vf hidden[HIDDEN / W] = {};  // in registers
    for (int64_t j = 0; j < s.num_seen; ++j)
        for (int h = 0; h < HIDDEN / W; ++h) hidden[h] += s.seen[j] * load(c.hidden + j * HIDDEN + h * W);
    for (int h = 0; h < HIDDEN / W; ++h) store(s.hidden + h * W, hidden[h]);
    for (int64_t k = 0; k < K; k += W) {
        const int64_t num = K - k;
        vf sum = load_some(c.gain + s.num_logs + k, num);
        for (int64_t f = 0; f < num_features; ++f)
            sum += load_some(c.gain + f * K + k, num) * load_some(log + f * K + k, num);
        for (int h = 0; h < HIDDEN; ++h) sum += leaky(s.hidden[h]) * load_some(c.out + h * K + k, num);
        store_some(logit + k, sum, num);
    }
}

// 1 / sqrt(x) to 2 ulp, for x that is not tiny.
HEADRACE_INLINE vf inverse_root(vf x) {
#if defined(__AVX512F__)
    const vf guess = (vf)_mm512_rsqrt14_ps((__m512)x);
    return guess * (1.5f - .5f * x * guess * guess);
#else
    vf root;
    for (int l = 0; l < W; ++l) root[l] = sqrtf(x[l]);
    return 1.0f / root;
#endif
}

HEADRACE_INLINE void descend(float* weight, float* square, vf slope, int64_t num, float rate, float decay) {
    const vf sum = load_some(square, num) * decay + slope * slope;
    store_some(square, sum, num);
    store_some(weight, load_some(weight, num) - rate * slope * inverse_root(sum), num);
}

// The gradient of the loss with respect to the logits that `predict` has just computed.
inline void learn(const OddsCall& c, Scratch& s, const float* log, const float* slope) {
    const int64_t K = c.num_kinds, num_features = s.num_logs / K;
    float back[HIDDEN];
    for (int h = 0; h < HIDDEN; ++h) {
        float each = 0;
        for (int64_t k = 0; k < K; ++k) {
            each += c.out[h * K + k] * slope[k];
            s.slope[h * K + k] = leaky(s.hidden[h]) * slope[k];
        }
        back[h] = s.hidden[h] > 0 ? each : LEAK * each;
    }
    for (int64_t i = 0; i < HIDDEN * K; i += W)
        descend(c.out + i, c.out_square + i, load(s.slope + i), HIDDEN * K - i, c.hidden_rate, c.decay);
    for (int64_t f = 0; f < num_features; ++f)
        for (int64_t k = 0; k < K; ++k) s.slope[f * K + k] = log[f * K + k] * slope[k];
    memcpy(s.slope + s.num_logs, slope, K * sizeof(float));
    for (int64_t i = 0; i < s.num_logs + K; i += W)
        descend(c.gain + i, c.gain_square + i, load(s.slope + i), s.num_logs + K - i, c.rate, c.decay);
    for (int64_t i = 0; i < s.num_seen * HIDDEN; i += W) {
        const vf each = s.seen[i / HIDDEN] * load(back + i % HIDDEN);
        descend(c.hidden + i, c.hidden_square + i, each, W, c.hidden_rate, c.decay);
    }
}

// Updates means and variances of the inputs of new interactions.
inline void gauge(const OddsCall& c, const Scratch& s, const float* log) {
    *c.clock += 1.0;
    const float share = (float)(1.0 / (*c.clock + 1.0 < EVENTS_REMEMBERED ? *c.clock + 1.0 : EVENTS_REMEMBERED));
    for (int64_t i = 0; i < s.num_logs; ++i) {
        const float away = log[i] - c.norm[i];
        c.norm[i] += share * away;
        c.norm[s.num_logs + i] += share * (away * away - c.norm[s.num_logs + i]);
    }
}

HEADRACE_INLINE float* kept_row(const OddsCall& c, const Scratch& s, int64_t place) {
    return c.kept_log + place * (s.num_logs + NUM_CONFIDENCES + c.num_kinds);
}

// Learns an interaction that has just been predicted, with the kinds that have arrived by now.
inline void settle(const OddsCall& c, Scratch& s, int64_t place, const float* logit) {
    float *log = kept_row(c, s, place), *taught = log + s.num_logs + NUM_CONFIDENCES, slope[MOST_KINDS];
    for (int64_t k = 0; k < c.num_kinds; ++k) {
        taught[k] = 1.0f / (1.0f + expf(-logit[k]));
        slope[k] = taught[k] - (float)(c.kept_bits[place] >> k & 1);
    }
    learn(c, s, log, slope);
    c.kept_dirty[place] = 0xFF;
}

// Keeps a new interaction, which has just been predicted, and learns those that are old enough.
inline void keep(const OddsCall& c, Scratch& s, int64_t r) {
    const int64_t place = c.kept_count[0]++ % c.num_kept;
    memcpy(kept_row(c, s, place), s.log, (s.num_logs + NUM_CONFIDENCES) * sizeof(float));
    c.kept_bits[place] = c.bits_R[r];
    c.kept_dirty[place] = 0xFF;
    const bool is_only = c.kept_count[1] + 1 == c.kept_count[0];
    while (c.kept_count[1] + c.horizon < c.kept_count[0]) {
        const int64_t due = c.kept_count[1]++ % c.num_kept;
        float logit[MOST_KINDS];
        if (!is_only) predict(c, s, kept_row(c, s, due), logit);
        settle(c, s, due, is_only ? c.logit_RK + r * c.num_kinds : logit);
    }
    gauge(c, s, s.log);
}

// Kinds that arrived for an earlier interaction. If the weights have learned their absence, that is reversed: they were
// moved by the slope `taught`, and should have been moved by that of a 1.
inline void amend(const OddsCall& c, Scratch& s, int64_t r) {
    const int64_t place = c.kept_R[r], newer = (c.kept_count[0] - 1 - place) % c.num_kept;
    const uint32_t more = c.bits_R[r] & ~c.kept_bits[place];
    c.kept_bits[place] |= more;
    c.kept_dirty[place] = 0xFF;
    if (newer < c.kept_count[0] - c.kept_count[1]) return;
    const float *log = kept_row(c, s, place), *taught = log + s.num_logs + NUM_CONFIDENCES;
    float slope[MOST_KINDS];
    predict(c, s, log, slope);
    for (int64_t k = 0; k < c.num_kinds; ++k)
        slope[k] = more >> k & 1 ? 1.0f / (1.0f + expf(-slope[k])) - 1.0f - taught[k] : 0.0f;
    learn(c, s, log, slope);
}

// Counts one more interaction, or kinds that arrived for an earlier one: each at most as often as interactions, since
// the earlier one may have been counted in another row, which is gone by now. Counts are halved long before a float
// cannot grow by one any more.
HEADRACE_INLINE void come(float* count, int64_t columns, uint32_t bits, bool is_new) {
    const vf num = splat(count[0] + (float)is_new);
    for (int64_t i = 0; i < columns; i += W) {
        const vf had = load_some(count + i, columns - i), more = had + columns_of(bits, (int)(i / W), is_new);
        store_some(count + i, larger(had, smaller(more, num)), columns - i);
    }
    if (count[0] >= MOST_COUNTED)
        for (int64_t i = 0; i < columns; ++i) count[i] *= 0.5f;
}

inline void count(const OddsCall& c, const Scratch& s, int64_t r) {
    const int64_t K = c.num_kinds, columns = 1 + K, row = c.row_R[r];
    const uint32_t bits = K < 32 ? c.bits_R[r] & ((1u << K) - 1) : c.bits_R[r];
    const bool is_new = c.is_new_R[r];
    for (int b = 0; b < NUM_BLOCKS; ++b) {
        float* block = c.item + (row * NUM_BLOCKS + b) * columns;
        if (b > 0 && is_new)
            for (int64_t i = 0; i < columns; ++i) block[i] *= RECENT_DECAYS[b - 1];
        come(block, columns, bits, is_new);
    }
    c.item_dirty[row] = 0xFF;
    for (int64_t a = 0; a < c.num_attributes; ++a) {
        const int64_t at = c.attribute_RA[r * c.num_attributes + a];
        come(attribute_count(c, a, at), columns, bits, is_new);
        if (a < c.num_attributes - 1) (a < c.num_domains ? c.domain_dirty : c.feature_dirty)[at] = 0xFF;
    }
    for (int64_t p = 0; p < s.num_pairs; ++p) {
        come(c.pair + s.pair[p] * columns, columns, bits, is_new);
        c.pair_dirty[s.pair[p]] = 0xFF;
    }
    c.total[0] += is_new;
    for (int64_t k = 0; k < K; ++k) c.total[1 + k] += bits >> k & 1;
}

// Begins to fetch what an event reads: its item's counts, and the last of what its user did, which is far from what
// others did.
HEADRACE_INLINE void fetch(const OddsCall& c, int64_t r) {
    const int64_t end = c.past_end_R[r], begin = max64(c.past_begin_R[r], end - MOST_FETCHED);
    for (int64_t i = begin; i < end; i += LINE / sizeof(int64_t)) __builtin_prefetch(c.past_item + i);
    for (int64_t i = begin; i < end; i += LINE / sizeof(uint32_t)) __builtin_prefetch(c.past_bits + i);
    __builtin_prefetch(c.item + c.row_R[r] * NUM_BLOCKS * (1 + c.num_kinds));
}

HEADRACE_INLINE bool is_within(int64_t from, int64_t to, int64_t num) { return from >= 0 && from <= to && to <= num; }

inline bool fits(const OddsCall& c) {
    for (int64_t r = 0; r < c.num_events; ++r) {
        if (!is_within(c.order_R[r], c.order_R[r] + 1, c.num_events) ||
            !is_within(c.row_R[r], c.row_R[r] + 1, c.num_items))
            return false;
        if (!is_within(c.past_begin_R[r], c.past_end_R[r], c.num_past)) return false;
        if (c.learn && !c.is_new_R[r] && !is_within(c.kept_R[r], c.kept_R[r], c.num_kept - 1) && c.kept_R[r] != -1)
            return false;
        for (int64_t a = 0; a < c.num_attributes; ++a) {
            const int64_t at = c.attribute_RA[r * c.num_attributes + a];
            const int64_t num = a < c.num_domains          ? c.num_domain_rows
                                : a < c.num_attributes - 1 ? c.num_feature_rows
                                                           : NUM_PAUSES;
            if (!is_within(at, at + 1, num)) return false;
        }
    }
    return true;
}

HEADRACE_END

// Returns 1 if out of memory, 2 for an index out of range (then nothing is changed).
HEADRACE_LEVEL_API(odds_events)(const OddsCall* call) {
    using namespace headrace::HEADRACE_LEVEL;
    const OddsCall& c = *call;
    Scratch s;
    if (!fits(c)) return 2;
    if (!make_scratch(c, s)) return 1;
    for (int64_t i = 0; i < c.num_events; ++i) {
        const int64_t r = c.order_R[i];
        if (i + 1 < c.num_events) fetch(c, c.order_R[i + 1]);
        float* logit = c.logit_RK + r * c.num_kinds;
        gather(c, s, r);
        predict(c, s, s.log, logit);
        if (!c.learn) continue;
        if (c.is_new_R[r]) keep(c, s, r);
        else if (c.kept_R[r] >= 0) amend(c, s, r);
        count(c, s, r);
    }
    return 0;
}
