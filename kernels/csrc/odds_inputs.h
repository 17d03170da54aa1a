// What the odds know of an event before it is predicted: log-odds from the counts of its item, its attributes, their
// pairs and its user (kernels/odds/reference.py is the definition).
#pragma once

#include <math.h>
#include <string.h>

#include "logs.h"

// The argument, as the caller lays it out (kernels/odds/cpp.py).
struct OddsCall {
    int64_t num_events, num_kinds, num_domains, num_attributes, num_alike, num_items, num_domain_rows, num_feature_rows;
    int64_t num_pair_rows, num_past, num_kept;  // the first is a power of 2
    // The odds: rows of 1 + num_kinds counts, an item's NUM_BLOCKS times.
    float *item, *domain, *feature, *pause, *pair;
    double* total;
    float *gain, *gain_square, *hidden, *hidden_square, *out, *out_square, *norm;
    double* clock;
    uint8_t *item_dirty, *domain_dirty, *feature_dirty, *pair_dirty;
    // The newest interactions, as they were seen when they were new: a ring of rows of num_logs + NUM_CONFIDENCES, and
    // the num_kinds probabilities that the weights had for them when they learned of them.
    float* kept_log;
    uint32_t* kept_bits;
    int64_t* kept_count;  // interactions so far, and how many of them the weights have learned
    uint8_t* kept_dirty;
    // The events.
    const int32_t* row_R;
    const int64_t* item_R;
    const int32_t* attribute_RA;
    const float* network_RK;
    const uint32_t* bits_R;
    const uint8_t* is_new_R;
    const int64_t *order_R, *past_item;
    const uint32_t* past_bits;
    const int64_t *past_begin_R, *past_end_R, *alike_RL, *past_alike_nL;
    const int32_t* kept_R;
    float* logit_RK;
    float rate, hidden_rate, decay;
    int32_t learn;    // 0: only predict, in any order
    int64_t horizon;  // the weights learn an interaction this many interactions later
};

HEADRACE_BEGIN

constexpr int NUM_RECENT = 2, NUM_BLOCKS = 1 + NUM_RECENT, NUM_LATE = 3, NUM_ALIKE = 3, NUM_COUNTED = 9, HIDDEN = 16,
              NUM_CONFIDENCES = 3, NUM_PAUSES = 32, MOST_PAIRED = 6;
constexpr int MOST_KINDS = 32, MOST_VECTORS = (MOST_KINDS + W) / W, MOST_COLUMNS = MOST_VECTORS * W;
constexpr float ITEM_STRENGTH = 30.f, BOLD_STRENGTH = 3.f, RECENT_STRENGTH = 2.f, USER_STRENGTH = 5.f,
                LATE_STRENGTH = 2.f;
constexpr float LEAST_COME = 1.f;  // of the rarer outcome, so many are in an item's prior
constexpr float OWN_STRENGTH = 1.f, ALIKE_STRENGTH = 3.f, ATTRIBUTE_STRENGTH = 20.f, PAIR_STRENGTH = 3.f;
constexpr float MOST_COUNTED = 1 << 22;
constexpr float RECENT_DECAYS[NUM_RECENT] = {.9f, .98f}, LATE_DECAYS[NUM_LATE] = {.5f, .8f, .95f},
                ALIKE_DECAYS[NUM_ALIKE] = {1.f, .98f, .9f};
constexpr float KNOWN_SCALE = .3f, KNOWN_OFFSET = -1.f;
constexpr float FAINT = 1e-30f;  // a weight that changes no odds: further products would be denormal, and slow
constexpr double LEAST_RATE = 1e-6;

// What a user did before an event.
struct Past {
    int64_t begin = -1, end = -1;
    float all[MOST_COLUMNS], late[NUM_LATE][MOST_COLUMNS], own[MOST_COLUMNS];
    float* alike;  // (num_alike, NUM_ALIKE, MOST_COLUMNS)
};

struct Scratch {
    float *log, *seen, *slope;
    int64_t num_logs, num_seen, num_paired, num_pairs;  // of all attributes but the pause, the first are paired
    int64_t* pair;                                      // rows of the event's pairs
    Past past;
    float hidden[HIDDEN];
};

inline bool make_scratch(const OddsCall& c, Scratch& s) {
    s.num_paired = c.num_attributes - 1 < MOST_PAIRED ? c.num_attributes - 1 : MOST_PAIRED;
    s.num_pairs = s.num_paired * (s.num_paired - 1) / 2;
    s.num_logs = (NUM_COUNTED + NUM_ALIKE * c.num_alike + c.num_attributes + s.num_pairs + 1) * c.num_kinds;
    s.num_seen = s.num_logs + NUM_CONFIDENCES + 1;
    const int64_t padded = round_up(s.num_seen, W);
    Arena arena;
    for (int pass = 0; pass < 2; ++pass) {
        s.log = arena.get<float>(padded);
        s.seen = arena.get<float>(padded);
        s.slope = arena.get<float>(round_up(max64(s.num_logs, HIDDEN * c.num_kinds) + c.num_kinds, W));
        s.pair = arena.get<int64_t>(s.num_pairs);
        s.past.alike = arena.get<float>(c.num_alike * NUM_ALIKE * MOST_COLUMNS);
        if (pass == 0 && !arena.allocate()) return false;
    }
    return true;
}

// An event's attributes are its domains, its features and its pause.
HEADRACE_INLINE float* attribute_count(const OddsCall& c, int64_t a, int64_t row) {
    float* table = a < c.num_domains ? c.domain : a < c.num_attributes - 1 ? c.feature : c.pause;
    return table + row * (1 + c.num_kinds);
}

HEADRACE_INLINE uint64_t mixed(uint64_t key) { return (key ^ key >> 32) * 0xD6E8FEB86659FD93ull; }

// The rows of an event's pairs of attributes.
inline void find_pairs(const OddsCall& c, Scratch& s, const int32_t* row) {
    int64_t number = 0;
    for (int64_t a = 0; a < s.num_paired; ++a)
        for (int64_t b = a + 1; b < s.num_paired; ++b) {
            const uint64_t key = mixed((number + 1) * 0x9E3779B97F4A7C15ull + row[a]);
            s.pair[number++] = (int64_t)(mixed(key + row[b]) >> 32) & (c.num_pair_rows - 1);
        }
}

// Columns g * W ... of an interaction: 1 (0 if it has been counted already), then 1 for each kind that it has.
HEADRACE_INLINE vf columns_of(uint32_t bits, int g, bool is_new = true) {
    vi lane;
    for (int l = 0; l < W; ++l) lane[l] = l;
    const vi shifted = vi{} + (int32_t)(((uint64_t)bits << 1 | is_new) >> (g * W));
    return __builtin_convertvector((shifted >> lane) & 1, vf);
}

// Candidates of one user share the user's counts; counts with the item, and with items like it, differ.
inline void recall(const OddsCall& c, Past& past, int64_t r) {
    const int64_t begin = c.past_begin_R[r], end = c.past_end_R[r], item = c.item_R[r];
    const int num_vectors = (int)((c.num_kinds + W) / W);
    if (begin != past.begin || end != past.end) {
        for (int g = 0; g < num_vectors; ++g) {
            vf all = zero(), late[NUM_LATE] = {};
            float weight[NUM_LATE] = {1, 1, 1};
            for (int64_t i = end - 1; i >= begin; --i) {
                const vf did = columns_of(c.past_bits[i], g);
                all += did;
                for (int l = 0; l < NUM_LATE; ++l) {
                    late[l] += did * weight[l];
                    weight[l] = weight[l] < FAINT ? 0.0f : weight[l] * LATE_DECAYS[l];
                }
            }
            store(past.all + g * W, all);
            for (int l = 0; l < NUM_LATE; ++l) store(past.late[l] + g * W, late[l]);
        }
        past.begin = begin, past.end = end;
    }
    memset(past.own, 0, sizeof past.own);
    for (int64_t i = begin; i < end; ++i) {
        if (c.past_item[i] != item) continue;
        for (int g = 0; g < num_vectors; ++g)
            store(past.own + g * W, load(past.own + g * W) + columns_of(c.past_bits[i], g));
    }
    memset(past.alike, 0, c.num_alike * NUM_ALIKE * MOST_COLUMNS * sizeof(float));
    for (int64_t a = 0; a < c.num_alike; ++a) {
        const int64_t key = c.alike_RL[r * c.num_alike + a];
        float* alike = past.alike + a * NUM_ALIKE * MOST_COLUMNS;
        float weight[NUM_ALIKE] = {1, 1, 1};
        for (int64_t i = end - 1; key && i >= begin; --i) {
            if (c.past_alike_nL[i * c.num_alike + a] == key)
                for (int l = 0; l < NUM_ALIKE; ++l)
                    for (int g = 0; g < num_vectors; ++g) {
                        float* at = alike + l * MOST_COLUMNS + g * W;
                        store(at, load(at) + columns_of(c.past_bits[i], g) * weight[l]);
                    }
            for (int l = 0; l < NUM_ALIKE; ++l) weight[l] *= ALIKE_DECAYS[l];
        }
    }
}

// A rate and its complement, which 1 - rate would lose for a rate near 1.
struct Rate {
    float rate, rest;
};
HEADRACE_INLINE Rate rate_of(float odds) { return {odds / (1.0f + odds), 1.0f / (1.0f + odds)}; }

// The odds of a rate, smoothed by `strength` sightings of another.
HEADRACE_INLINE float odds_of(const float* count, int64_t k, Rate to, float strength) {
    const float done = count[1 + k], left = count[0] - done;
    return (done + strength * to.rate) / ((left > 0 ? left : 0.0f) + strength * to.rest);
}

// How many sightings an item's prior is worth: of a rare kind more, so that a single one does not multiply its odds.
HEADRACE_INLINE float item_strength(Rate overall) {
    const float few = overall.rate < overall.rest ? overall.rate : overall.rest;
    return few * ITEM_STRENGTH < LEAST_COME ? LEAST_COME / few : ITEM_STRENGTH;
}

// The log-odds of event r, and its confidences.
inline void gather(const OddsCall& c, Scratch& s, int64_t r) {
    const int64_t K = c.num_kinds, columns = 1 + K;
    const float* block = c.item + c.row_R[r] * NUM_BLOCKS * columns;
    const int32_t* row_A = c.attribute_RA + r * c.num_attributes;
    float* to = s.log;
    recall(c, s.past, r);
    find_pairs(c, s, row_A);
    for (int64_t k = 0; k < K; ++k) {
        double overall = (c.total[1 + k] + 1.0) / (c.total[0] + 2.0);
        overall = overall < LEAST_RATE ? LEAST_RATE : overall > 1.0 - LEAST_RATE ? 1.0 - LEAST_RATE : overall;
        const Rate rate = {(float)overall, (float)(1.0 - overall)};
        const float inverse = (float)((1.0 - overall) / overall);
        const float item = odds_of(block, k, rate, item_strength(rate));
        const float user = odds_of(s.past.all, k, rate, USER_STRENGTH);
        int f = 0;
        to[f++ * K + k] = item;
        to[f++ * K + k] = odds_of(block, k, rate, BOLD_STRENGTH) * inverse;
        for (int b = 1; b < NUM_BLOCKS; ++b)
            to[f++ * K + k] = odds_of(block + b * columns, k, rate_of(item), RECENT_STRENGTH) / item;
        to[f++ * K + k] = user * inverse;
        for (int l = 0; l < NUM_LATE; ++l) to[f++ * K + k] = odds_of(s.past.late[l], k, rate, LATE_STRENGTH) * inverse;
        to[f++ * K + k] = odds_of(s.past.own, k, rate_of(user), OWN_STRENGTH) / user;
        for (int64_t l = 0; l < NUM_ALIKE * c.num_alike; ++l)
            to[f++ * K + k] = odds_of(s.past.alike + l * MOST_COLUMNS, k, rate_of(user), ALIKE_STRENGTH) / user;
        const float* attributes = to + f * K + k;
        for (int64_t a = 0; a < c.num_attributes; ++a)
            to[f++ * K + k] = odds_of(attribute_count(c, a, row_A[a]), k, rate, ATTRIBUTE_STRENGTH) * inverse;
        const int64_t* pair = s.pair;
        for (int64_t a = 0; a < s.num_paired; ++a)
            for (int64_t b = a + 1; b < s.num_paired; ++b) {
                const float both = attributes[a * K] * attributes[b * K] / inverse;
                to[f++ * K + k] = odds_of(c.pair + *pair++ * columns, k, rate_of(both), PAIR_STRENGTH) / both;
            }
    }
    const int64_t num_counted = s.num_logs - K;
    for (int64_t i = 0; i < num_counted; i += W)
        store_some(to + i, log_of<vf, vi>(load_some(to + i, num_counted - i)), num_counted - i);
    memcpy(to + num_counted, c.network_RK + r * K, K * sizeof(float));
    float* known = to + s.num_logs;
    known[0] = KNOWN_SCALE * log1pf(block[0]) + KNOWN_OFFSET;
    known[1] = KNOWN_SCALE * log1pf(s.past.all[0]) + KNOWN_OFFSET;
    known[2] = log1pf(s.past.own[0]);
}

HEADRACE_END
