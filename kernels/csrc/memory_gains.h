// Scores from the memory's features, and updates of their weights.
#pragma once

#include "memory_evidence.h"

HEADRACE_BEGIN

// The evidence at a place, weighted by the gains.
HEADRACE_INLINE float weighed(const Scratch& s, int64_t place, const float* gain) {
    const v8 gathered = load8(s.evidence + place * NUM_GATHERED) * load8(gain + NUM_STANDING);
    const v8 own = load8(s.own + place * OWN_STRIDE) * load8(gain + NUM_STANDING + NUM_GATHERED);
    const float *paired = s.paired + place * NUM_PAIRED, pairs = paired[0] * gain[PAIR] + paired[1] * gain[PAIR + 1];
    return sum8(gathered) + sum8(own) + pairs;
}

inline int bucket_of(const MemoryCall& m, int64_t num_past) {
    int bucket = 0;  // round(log2(1 + n))
    while (bucket < m.num_buckets - 1 &&
           (double)(1 + num_past) * (double)(1 + num_past) >= (double)(2ull << (2 * bucket)))
        ++bucket;
    return 1 + bucket;
}

// The gains for a bucket.
inline void gains_of(const MemoryCall& m, int bucket, float* gain) {
    for (int f = 0; f < NUM_FEATURES; ++f) gain[f] = m.gain_BF[f] + m.gain_BF[bucket * NUM_FEATURES + f];
}

// Rescores the listed rows by the shortlist's network; returns the shift of all new scores. The list holds indices into
// `standing`, `logit` and `lift` (null: no item has any); `place_of_listed` maps them to places of the evidence.
template <typename PlaceOfListed>
inline float look_again(const MemoryCall& m, const Scratch& s, const float* standing, int64_t stride,
                        const float* logit, const float* lift, int bucket, float best, PlaceOfListed place_of_listed) {
    Shortlist<NUM_SEEN>& list = *s.shortlist;
    for (int64_t c = 0; c < LISTED; ++c) {
        const int64_t at = list.row[c], place = place_of_listed(at);
        const float *e = s.evidence + place * NUM_GATHERED, *own = s.own + place * OWN_STRIDE;
        const float used = list.listed[c], lead = list.score[c] - best;
        for (int f = 0; f < NUM_STANDING; ++f) list.raw[f][c] = used * standing[f * stride + at];
        for (int f = 0; f < NUM_GATHERED; ++f) list.raw[NUM_STANDING + f][c] = used * e[f];
        for (int f = 0; f < NUM_OWN; ++f) list.raw[NUM_STANDING + NUM_GATHERED + f][c] = used * own[f];
        list.raw[MODEL][c] = used * logit[at];
        list.raw[LIFT][c] = lift ? used * lift[at] : 0.0f;
        for (int f = 0; f < NUM_PAIRED; ++f) list.raw[PAIR + f][c] = used * s.paired[place * NUM_PAIRED + f];
        list.raw[LEAD][c] = used * (lead > LAST_LEAD ? lead : LAST_LEAD);
        list.raw[IS_OWN][c] = own[OWN_COUNT] > 0 ? used : 0.0f;
        list.raw[LENGTH][c] = used * LENGTH_SCALE * (float)bucket;
        list.raw[PAUSE][c] = used * s.pause;
    }
    list.look(m.shortlist_weight, m.shortlist_norm);
    return list.shift();
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

// `push` has a number for each place of the evidence, `stride` apart.
inline void learn_weights(const MemoryCall& m, const Scratch& s, const int32_t* past, int64_t num, const float* push,
                          int64_t stride) {
    float rate = m.weight_rate * s.gain[NUM_STANDING + LEARNED];
    for (int lag = 0; lag < LEARNED_LAGS && lag < num; ++lag, rate *= LEARNED_DECAY) {
        const int32_t row = past[num - 1 - lag];
        const int64_t base = row * m.width, count = m.num_neighbours[row];
        const int32_t* id = m.neighbour_row + base;
        float* weight = m.weight + base;
        for (int64_t j = 0; j < count; ++j) weight[j] -= rate * push[place_of(s, id[j]) * stride];
        m.dirty_V[row] = CHANGED;
    }
}

HEADRACE_END
