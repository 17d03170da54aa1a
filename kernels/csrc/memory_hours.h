// At what time of day rows are chosen (kernels/memory/hours.py is the definition).
#pragma once

#include "memory_state.h"

HEADRACE_BEGIN

// Two parts of the day, and the share of a choice at this time that counts for the second of them.
struct Hours {
    int64_t first, second;
    float share;
    explicit Hours(int64_t time_ms) {
        constexpr int64_t width = DAY_MS / NUM_HOURS;
        const int64_t place = ((time_ms - width / 2) % DAY_MS + DAY_MS) % DAY_MS;
        first = place / width, second = (first + 1) % NUM_HOURS;
        share = (float)(place % width) / (float)width;
    }
};

// How much more often than at all times a row is chosen at this one; `unit`: what a choice counts.
HEADRACE_INLINE float hourly_of(const float* hour_H, const Hours& hours, float unit) {
    float all = 0.0f;
    for (int h = 0; h < NUM_HOURS; ++h) all += hour_H[h];
    const float now = hour_H[hours.first] * (1.0f - hours.share) + hour_H[hours.second] * hours.share;
    return (NUM_HOURS * now * unit + HOUR_PRIOR) / (all * unit + HOUR_PRIOR);
}

inline void copy_hours(const MemoryCall& m, float* to_H, int64_t row) {
    if (m.num_hours) memcpy(to_H, m.hour_VH + row * NUM_HOURS, NUM_HOURS * sizeof(float));
}

// Notes when event r was, unless a later one has come before it.
inline void note_time(const MemoryCall& m, int64_t r) {
    double& newest = m.clock[NEWEST_MS];
    const double now = (double)m.now_ms_R[r];
    if (m.num_hours && (newest == 0 || now > newest)) newest = now;
}

// Counts the choice of event r; `unit`: what it counts.
inline void count_hour(const MemoryCall& m, int64_t r, float unit) {
    if (!m.num_hours) return;
    const Hours hours(m.now_ms_R[r]);
    float* hour_H = m.hour_VH + m.target_R[r] * NUM_HOURS;
    hour_H[hours.first] += unit * (1.0f - hours.share);
    hour_H[hours.second] += unit * hours.share;
}

HEADRACE_END
