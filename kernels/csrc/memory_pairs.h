// What followed two choices in a row, and what followed a choice with any one between: a hash table whose slots have a
// pair of rows, or a row and 0, and a few successors (kernels/memory/pairs.py is the definition).
#pragma once

#include "memory_groups.h"

HEADRACE_BEGIN

HEADRACE_INLINE int64_t slot_of_pair(const MemoryCall& m, int32_t first, int32_t second) {
    uint32_t hash = (uint32_t)first * 0x9e3779b1u ^ (uint32_t)second * 0x85ebca77u;
    hash ^= hash >> 15;
    hash *= 0x2c1b3c6du;
    hash ^= hash >> 13;
    return (int64_t)(hash & (uint32_t)(m.num_pairs - 1));
}

// Calls `each` with the place (0: both, 1: the first of them alone) and the rows of the pairs before event r.
template <typename Each>
HEADRACE_INLINE void pairs_before(const MemoryCall& m, int64_t r, Each each) {
    const int64_t end = m.past_end_R[r];
    if (!m.num_pairs || end - m.past_begin_R[r] < 2) return;
    each(0, m.past_rows[end - 2], m.past_rows[end - 1]);
    each(1, m.past_rows[end - 2], 0);
}

// How often anything followed a pair.
HEADRACE_INLINE float counted_of(const MemoryCall& m, int64_t slot) {
    float counted = 0.0f;
    for (int j = 0; j < NEXT_OF_PAIR; ++j) counted += m.pair_count[slot * NEXT_OF_PAIR + j];
    return counted;
}

// Calls `each` with the place of a pair before event r, a row that followed it, and its share of what did, smoothed by
// one sighting.
template <typename Each>
HEADRACE_INLINE void followers(const MemoryCall& m, int64_t r, Each each) {
    pairs_before(m, r, [&](int place, int32_t first, int32_t second) {
        const int64_t slot = slot_of_pair(m, first, second), at = slot * NEXT_OF_PAIR;
        if (m.pair_row[2 * slot] != first || m.pair_row[2 * slot + 1] != second) return;
        float counted = counted_of(m, slot);
        if (place && m.seen_V[first] > counted) counted = m.seen_V[first];
        const float all = counted + (float)m.clock[SEEN_SCALE];
        for (int j = 0; j < NEXT_OF_PAIR; ++j)
            if (m.pair_count[at + j] > 0) each(place, m.pair_next[at + j], m.pair_count[at + j] / all);
    });
}

// Gives a slot to a pair, unless another one has it that counts more; that is then reduced.
inline bool claim_slot(const MemoryCall& m, int64_t slot, int32_t first, int32_t second, float unit) {
    int32_t* pair = m.pair_row + 2 * slot;
    if (pair[0] == first && pair[1] == second) return true;
    const float counted = counted_of(m, slot);
    const bool is_given_up = !(unit < counted);
    const float left = is_given_up ? 0.0f : 1.0f - unit / counted;
    m.pair_moved[slot] = 255;
    if (is_given_up) pair[0] = first, pair[1] = second;
    for (int j = 0; j < NEXT_OF_PAIR; ++j) {
        m.pair_count[slot * NEXT_OF_PAIR + j] *= left;
        if (is_given_up) m.pair_next[slot * NEXT_OF_PAIR + j] = 0;
    }
    return is_given_up;
}

// Counts that `target` came after a pair. If there is no room, all that came as well lose as much (Misra and Gries,
// 1982).
inline void count_pair(const MemoryCall& m, int32_t first, int32_t second, int32_t target, float unit) {
    const int64_t slot = slot_of_pair(m, first, second);
    m.pair_dirty[slot] = CHANGED;
    if (!claim_slot(m, slot, first, second, unit)) return;
    int32_t* id = m.pair_next + slot * NEXT_OF_PAIR;
    float* count = m.pair_count + slot * NEXT_OF_PAIR;
    int at = 0;
    for (int j = 0; j < NEXT_OF_PAIR; ++j) {
        if (count[j] > 0 && id[j] == target) {
            count[j] += unit;
            m.pair_moved[slot] |= (uint8_t)(1 << j);
            return;
        }
        if (count[j] < count[at]) at = j;
    }
    const float taken = unit < count[at] ? unit : count[at];
    m.pair_moved[slot] |= (uint8_t)(taken > 0 ? 255 : 1 << at);
    for (int j = 0; j < NEXT_OF_PAIR && taken > 0; ++j) count[j] -= taken;
    if (unit > taken) id[at] = target, count[at] = unit - taken;
}

// Counts the choice of event r for what it followed; `unit`: what it counts.
inline void count_pairs(const MemoryCall& m, int64_t r, float unit) {
    pairs_before(m, r, [&](int, int32_t first, int32_t second) { count_pair(m, first, second, m.target_R[r], unit); });
}

inline void rescale_pairs(const MemoryCall& m, float by) {
    for (int64_t slot = 0; slot < m.num_pairs; ++slot) {
        if (!m.pair_row[2 * slot]) continue;
        for (int j = 0; j < NEXT_OF_PAIR; ++j) m.pair_count[slot * NEXT_OF_PAIR + j] *= by;
        m.pair_dirty[slot] = m.pair_moved[slot] = 255;
    }
}

HEADRACE_END
