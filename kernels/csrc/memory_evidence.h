// What the memory knows of a row: features that do not depend on the query, and evidence from a user's history.
#pragma once

#include "memory_hours.h"
#include "memory_pairs.h"

HEADRACE_BEGIN

// Computes the standing features of rows [from, to).
inline void stand(const MemoryCall& m, Scratch& s, int64_t from, int64_t to) {
    const float seen_unit = (float)(1 / m.clock[SEEN_SCALE]);
    float heat_unit[NUM_HEAT];
    for (int h = 0; h < NUM_HEAT; ++h) heat_unit[h] = (float)(HEAT_SCALES[h] / m.clock[HEAT_SCALE + h]);
    const int64_t now = (int64_t)m.clock[EVENTS];
    const Hours hours((int64_t)m.clock[NEWEST_MS]);
    for (int64_t i = from; i < to; i += W) {
        const int count = (int)min64(W, to - i);
        float* at = s.standing + i;
        const vf seen = load_some(m.seen_V + i, count) * seen_unit;
        store_some(at + LOG_SEEN * s.padded, log1p_of(seen), count);
        store_some(at + RARITY * s.padded, 1.0f / (seen + 1.0f), count);
        for (int h = 0; h < NUM_HEAT; ++h) {
            const vf heat = load_some(m.heat_HV + h * m.stride + i, count) * heat_unit[h];
            store_some(at + (HEAT + h) * s.padded, log1p_of(heat), count);
        }
        vf hourly = splat(1.0f);
        for (int j = 0; m.num_hours && j < count; ++j)
            hourly[j] = hourly_of(m.hour_VH + (i + j) * NUM_HOURS, hours, seen_unit);
        store_some(at + HOURLY * s.padded, log_of<vf, vi>(hourly), count);
        vf age = zero(), idle = zero();
        for (int j = 0; j < count; ++j) {
            const int64_t first = m.first_V[i + j], last = m.last_V[i + j];
            age[j] = last >= 0 ? (float)(now - first) : 0.0f;
            idle[j] = last >= 0 ? (float)(now - last) : 0.0f;
        }
        store_some(at + AGE * s.padded, log1p_of(age) * TIME_SHARE, count);
        store_some(at + IDLE * s.padded, log1p_of(idle) * TIME_SHARE, count);
    }
}

HEADRACE_INLINE void touch(Scratch& s, int32_t row) {
    s.touched[s.num_touched] = row;
    if (s.slot) {
        s.num_touched += s.slot[row] == 0;
        if (s.slot[row] == 0) s.slot[row] = (int32_t)s.num_touched;
        return;
    }
    s.num_touched += !s.marked[row];
    s.marked[row] = 1;
}

// Where a touched row has its evidence; and the one that was touched as the t-th.
HEADRACE_INLINE int64_t place_of(const Scratch& s, int64_t row) { return s.slot ? s.slot[row] - 1 : row; }
HEADRACE_INLINE int64_t place_touched(const Scratch& s, int64_t t) { return s.slot ? t : s.touched[t]; }

// Transposes eight rows of eight floats.
HEADRACE_INLINE void transpose8(v8* x) {
    v8 y[8];
    const i8 low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};
    for (int i = 0; i < 8; i += 2) {
        y[i] = shuffle(x[i], x[i + 1], low);
        y[i + 1] = shuffle(x[i], x[i + 1], high);
    }
    const i8 even = {0, 1, 8, 9, 4, 5, 12, 13}, odd = {2, 3, 10, 11, 6, 7, 14, 15};
    for (int i = 0; i < 8; i += 4)
        for (int h = 0; h < 2; ++h) {
            x[i + 2 * h] = shuffle(y[i + h], y[i + h + 2], even);
            x[i + 2 * h + 1] = shuffle(y[i + h], y[i + h + 2], odd);
        }
    const i8 first = {0, 1, 2, 3, 8, 9, 10, 11}, second = {4, 5, 6, 7, 12, 13, 14, 15};
    for (int i = 0; i < 4; ++i) {
        y[i] = shuffle(x[i], x[i + 4], first);
        y[i + 4] = shuffle(x[i], x[i + 4], second);
    }
    for (int i = 0; i < 8; ++i) x[i] = y[i];
}

// One over the square root of a row's own count, small enough for its square to be finite; 0 if nothing is counted.
HEADRACE_INLINE float inverse_root_of(float seen) {
    return seen > 0 ? 1.0f / sqrtf(seen > LEAST_SEEN ? seen : LEAST_SEEN) : 0.0f;
}

// The same of a row: precomputed for all rows, or computed here.
HEADRACE_INLINE float root_of(const MemoryCall& m, const Scratch& s, int64_t row) {
    return s.inverse_root ? s.inverse_root[row] : inverse_root_of(m.seen_V[row]);
}

HEADRACE_INLINE v8 at_most(v8 x, float most) { return x < most ? x : v8{} + most; }

// What `gather` reads of a row's neighbours from the j-th on.
HEADRACE_INLINE void prefetch_neighbours(const MemoryCall& m, int32_t row, int64_t j) {
    const int64_t at = row * m.width + j;
    __builtin_prefetch(m.neighbour_row + at);
    __builtin_prefetch(m.after + at);
    __builtin_prefetch(m.before + at);
    __builtin_prefetch(m.direct + at);
    __builtin_prefetch(m.weight + at);
}

// Adds the evidence from the neighbours of one past row, `lag` steps back: eight neighbours at a time, one vector add
// each. Meanwhile prefetches those of the row that comes `next`.
inline void gather(const MemoryCall& m, Scratch& s, int32_t row, int32_t next, int lag, const float* decay) {
    const int64_t base = row * m.width, num = m.num_neighbours[row];
    const float root = root_of(m, s, row), inverse = root * root;
    const auto share = [&](v8 x, int of) { return at_most(x * (inverse * decay[of]), MOST_SHARE * decay[of]); };
    const int32_t* id = m.neighbour_row + base;
    const int64_t num_next = m.num_neighbours[next];
    for (int64_t j = 0; j < num; j += 8) {
        const int count = (int)min64(8, num - j);
        if (j < num_next) prefetch_neighbours(m, next, j);
        v8 f = {}, b = {}, d = {}, w = {}, q = {};
        if (m.width - j >= 8) {
            f = load8(m.after + base + j), b = load8(m.before + base + j), w = load8(m.weight + base + j);
            d = load8(m.direct + base + j);
        } else {
            for (int l = 0; l < count; ++l) {
                f[l] = m.after[base + j + l], b[l] = m.before[base + j + l], w[l] = m.weight[base + j + l];
                d[l] = m.direct[base + j + l];
            }
        }
        for (int l = 0; l < count; ++l) q[l] = root_of(m, s, id[j + l]) * root;
        const v8 both = f + b * .5f, similar = at_most(both * q, MOST_SHARE);
        v8 add[NUM_GATHERED] = {};
        add[WIDE] = similar * decay[WIDE];
        if (lag < LEARNED_LAGS) add[LEARNED] = w * decay[LEARNED];
        if (lag < CHAIN_LAGS) add[CHAIN] = log_of<v8, i8>(similar * COSINE_SCALE + 1.0f) * (.1f * decay[CHAIN]);
        if (lag < FOLLOWS_LAGS) add[FOLLOWS] = share(both, FOLLOWS);
        if (lag < NEAR_LAGS) {
            add[AFTER] = at_most(f * q, MOST_SHARE) * decay[AFTER];
            add[BEFORE] = at_most(b * q, MOST_SHARE) * decay[AFTER];
        }
        add[THREADS] = share(d, THREADS);
        if (lag == 0) add[DIRECT] = share(d, DIRECT);
        transpose8(add);
        for (int l = 0; l < count; ++l) {
            touch(s, id[j + l]);
            float* e = s.evidence + place_of(s, id[j + l]) * NUM_GATHERED;
            store8(e, load8(e) + add[l]);
        }
    }
}

// log(1 + scale x), except for those that stay `plain`.
HEADRACE_INLINE v8 logs_of(v8 x, v8 scale, i8 plain) {
    return (v8)(((i8)x & plain) | ((i8)log_of<v8, i8>(x * scale + 1.0f) & ~plain));
}

// The time between two moments, as a feature.
HEADRACE_INLINE float since(int64_t now_ms, int64_t then_ms) {
    return now_ms > then_ms ? SINCE_SHARE * log1p_one((float)(now_ms - then_ms) * 1e-3f) : 0.0f;
}

// How many minutes are left of `most` at the distance between two moments in a cycle, at least 0.
HEADRACE_INLINE int64_t left_of(int64_t most, int64_t apart_ms, int64_t cycle_ms) {
    const int64_t away = apart_ms % cycle_ms, minutes = min64(away, cycle_ms - away) / MINUTE_MS;
    return minutes < most ? most - minutes : 0;
}

// How close two moments are in time of day, and in time of the week if they are at least half a week apart.
HEADRACE_INLINE float around(int64_t now_ms, int64_t then_ms) {
    const int64_t apart = now_ms > then_ms ? now_ms - then_ms : then_ms - now_ms;
    const int64_t of_week = 2 * apart < WEEK_MS ? 0 : left_of(AROUND_WEEK, apart, WEEK_MS) / WEEK_SHARE;
    return (float)(left_of(AROUND_MINUTES, apart, DAY_MS) + of_week);
}

// Index of the first past choice of event r that belongs to the current visit.
HEADRACE_INLINE int64_t visit_of(const MemoryCall& m, int64_t r) {
    int64_t visit = m.past_end_R[r];
    for (int64_t after = m.now_ms_R[r]; visit > m.past_begin_R[r] && after - m.past_ms[visit - 1] < VISIT_MS; --visit)
        after = m.past_ms[visit - 1];
    return visit;
}

// The weight of the first choice after a pause as the very next one.
HEADRACE_INLINE float across_visits(const MemoryCall& m) {
    const double begun = m.clock[BEGUN], all = begun + m.clock[CONTINUED];
    const double share = (begun + .5 * PRIOR_VISITS) / (all + PRIOR_VISITS), square = share * share;
    return (float)(LEAST_ACROSS + (1 - LEAST_ACROSS) * square * square);
}

// Collects the features that only rows have which the user chose or was shown, and how long ago the last choice was.
inline void collect_own(const MemoryCall& m, Scratch& s, int64_t r, int64_t visit) {
    const int64_t first = m.past_begin_R[r], end = m.past_end_R[r], now = m.now_ms_R[r];
    for (int64_t k = first; k < end; ++k) {
        touch(s, m.past_rows[k]);
        float* own = s.own + place_of(s, m.past_rows[k]) * OWN_STRIDE;
        own[OWN_COUNT] += 1.0f;
        own[OWN_RECENCY] = 1.0f / (1.0f + .1f * (float)(end - 1 - k));
        own[OWN_VISIT] = k >= visit ? 1.0f : 0.0f;
        own[OWN_SINCE] = since(now, m.past_ms[k]);
        own[OWN_HOUR] += around(now, m.past_ms[k]);
    }
    const int64_t shown_end = m.shown_end_R[r];
    for (int64_t k = m.shown_begin_R[r]; k < shown_end; ++k) {
        touch(s, m.shown_rows[k]);
        float* own = s.own + place_of(s, m.shown_rows[k]) * OWN_STRIDE;
        own[SHOWN_COUNT] += 1.0f;
        own[SHOWN_RECENCY] = 1.0f / (1.0f + .1f * (float)(shown_end - 1 - k));
    }
    s.pause = end > first ? since(now, m.past_ms[end - 1]) : 0.0f;
}

// Collects what came after the user's earlier choices of the last item; each further choice before it that was the same
// too counts it MATCHED times as much.
inline void collect_next(const MemoryCall& m, Scratch& s, int64_t r) {
    const int64_t first = m.past_begin_R[r], end = m.past_end_R[r];
    const int32_t* row = m.past_rows;
    for (int64_t k = first + 1; k < end; ++k) {
        if (row[k - 1] != row[end - 1]) continue;
        float weight = 1.0f;
        for (int back = 2; back <= MOST_MATCHED && k - back >= first && row[k - back] == row[end - back]; ++back)
            weight *= MATCHED;
        s.own[place_of(s, row[k]) * OWN_STRIDE + OWN_NEXT] += weight;
    }
}

// Collects what followed the last two choices, and the last but one.
inline void collect_pairs(const MemoryCall& m, Scratch& s, int64_t r) {
    followers(m, r, [&](int place, int32_t row, float share) {
        touch(s, row);
        s.paired[place_of(s, row) * NUM_PAIRED + place] = log1p_one(PAIR_SCALE * share);
    });
}

inline void collect(const MemoryCall& m, Scratch& s, int64_t r) {
    const int64_t first = m.past_begin_R[r], end = m.past_end_R[r], visit = visit_of(m, r);
    s.num_touched = 0;
    float decay[NUM_GATHERED] = {1, 1, 1, 1, 1, 1, 1, 1};
    if (end == visit) decay[DIRECT] = across_visits(m);
    for (int lag = 0; lag < WIDE_LAGS && lag < end - first; ++lag) {
        const int64_t next = end - 2 - lag;
        gather(m, s, m.past_rows[end - 1 - lag], m.past_rows[next < first ? first : next], lag, decay);
        decay[FOLLOWS] *= FOLLOWS_DECAY, decay[CHAIN] *= CHAIN_DECAY, decay[WIDE] *= WIDE_DECAY;
        decay[AFTER] *= NEAR_DECAY, decay[LEARNED] *= LEARNED_DECAY, decay[THREADS] *= THREADS_DECAY;
    }
    collect_own(m, s, r, visit);
    collect_next(m, s, r);
    collect_pairs(m, s, r);
    const v8 scale = {FOLLOWS_SCALE, 0, COSINE_SCALE, COSINE_SCALE, COSINE_SCALE, 0, FOLLOWS_SCALE, FOLLOWS_SCALE};
    const i8 plain = {0, -1, 0, 0, 0, -1, 0, 0};
    const v8 own_scale = {1, 0, 0, 0, 1, 0, 1, 1.0f / AROUND_MINUTES};
    const i8 own_plain = {0, -1, -1, -1, 0, -1, 0, 0};
    for (int64_t t = 0; t < s.num_touched; ++t) {
        float *e = s.evidence + place_touched(s, t) * NUM_GATHERED, *own = s.own + place_touched(s, t) * OWN_STRIDE;
        store8(e, logs_of(load8(e), scale, plain));
        if (own[OWN_COUNT] > 0 || own[SHOWN_COUNT] > 0) store8(own, logs_of(load8(own), own_scale, own_plain));
    }
}

inline void clear(Scratch& s) {
    for (int64_t t = 0; t < s.num_touched; ++t) {
        const int64_t place = place_touched(s, t);
        if (s.slot) s.slot[s.touched[t]] = 0;
        else s.marked[place] = 0;
        store8(s.evidence + place * NUM_GATHERED, v8{});
        store8(s.own + place * OWN_STRIDE, v8{});
        for (int f = 0; f < NUM_PAIRED; ++f) s.paired[place * NUM_PAIRED + f] = 0.0f;
    }
    clear_groups(s);
}

HEADRACE_END
