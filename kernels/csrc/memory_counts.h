// The memory's counts: neighbours of rows, sightings, heat, and repeated choices.
#pragma once

#include "memory_evidence.h"

HEADRACE_BEGIN

inline float weight_of(const MemoryCall& m, int64_t r) { return m.weight_R ? m.weight_R[r] : 1.0f; }

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

// Rescales counts before they overflow; returns whether the unit of `seen` changed.
inline bool rescale(const MemoryCall& m) {
    const bool is_due = m.clock[SEEN_SCALE] > RESCALE_AT;
    if (is_due) {
        const float unit = (float)(1 / m.clock[SEEN_SCALE]);
        for (int64_t i = 0; i < m.num_rows; ++i) {
            m.seen_V[i] *= unit;
            for (int64_t h = i * m.num_hours; h < (i + 1) * m.num_hours; ++h) m.hour_VH[h] *= unit;
            for (int64_t j = i * m.width; j < i * m.width + m.num_neighbours[i]; ++j)
                m.after[j] *= unit, m.before[j] *= unit, m.direct[j] *= unit;
            m.dirty_V[i] = CHANGED;
        }
        rescale_groups(m, unit);
        rescale_pairs(m, unit);
        memset(m.moved_VB, 255, m.num_rows * ((m.width + 7) / 8));
        m.clock[SEEN_SCALE] = 1;
    }
    for (int h = 0; h < NUM_HEAT; ++h) {
        double& scale = m.clock[HEAT_SCALE + h];
        if (scale <= RESCALE_AT) continue;
        for (int64_t i = 0; i < m.num_rows; ++i) {
            float& heat = m.heat_HV[h * m.stride + i];
            if (heat != 0 && m.first_V[i] >= 0) m.dirty_V[i] = CHANGED;  // a row not met lately has no heat left
            heat *= (float)(1 / scale);
        }
        scale = 1;
    }
    return is_due;
}

// Counts the choice of event r; returns whether the unit of `seen` changed.
inline bool count(const MemoryCall& m, int64_t r) {
    const int32_t target = m.target_R[r];
    const int64_t end = m.past_end_R[r], num = end - m.past_begin_R[r], visit = visit_of(m, r);
    const bool is_rescaled = rescale(m);
    const float weight = weight_of(m, r), unit = weight * (float)m.clock[SEEN_SCALE];
    float decay = unit, direct = unit;
    for (int lag = 0; lag < COUNT_LAGS && lag < num; ++lag, decay *= COUNT_DECAY, direct *= DIRECT_COUNT_DECAY) {
        const int32_t row = m.past_rows[end - 1 - lag];
        if (end - lag == visit) direct *= across_visits(m);
        if (row == target) continue;
        add(m, row, target, decay, 0.0f, direct);
        add(m, target, row, 0.0f, decay, 0.0f);
    }
    count_groups(m, r, unit);
    count_pairs(m, r, unit);
    count_hour(m, r, unit);
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

// Counts the choice of event r: a repeat or not, and, unless it is the user's first, the first of a visit or not.
inline void count_choice(const MemoryCall& m, int64_t r, bool is_repeat) {
    m.clock[REPEATS] = m.clock[REPEATS] * m.repeat_decay + is_repeat;
    m.clock[CHOICES] = m.clock[CHOICES] * m.repeat_decay + 1;
    if (m.past_end_R[r] == m.past_begin_R[r]) return;
    m.clock[BEGUN] *= m.repeat_decay, m.clock[CONTINUED] *= m.repeat_decay;
    m.clock[visit_of(m, r) == m.past_end_R[r] ? BEGUN : CONTINUED] += 1;
}

// Records that the event's row was met, and counts it if it was chosen; returns whether the unit of `seen` changed.
inline bool meet(const MemoryCall& m, int64_t r) {
    const int32_t target = m.target_R[r];
    const int64_t now = (int64_t)m.clock[EVENTS];
    bool is_rescaled = false;
    if (m.first_V[target] < 0 || (m.chosen_R[r] && m.last_V[target] < 0)) m.first_V[target] = now;
    m.dirty_V[target] = CHANGED;
    note_groups(m, r);
    if (m.chosen_R[r]) {
        m.last_V[target] = now;
        is_rescaled = count(m, r);
        m.recent[now % RECENT] = target;
    }
    m.clock[EVENTS] += 1;
    note_time(m, r);
    return is_rescaled;
}

HEADRACE_END
