// Which group of items comes next: counts of groups (a category, a brand) that follow each other, and how much likelier
// than usual they make each item (kernels/memory/groups.py is the definition).
//
// In each column the next group's distribution is a mixture of what is usual, what follows the last choice's group, and
// the groups of the user's last choices. Relative to what is usual it is the same number for all groups but a few, so
// only those are written into a dense array, and cleared when the event is done.
#pragma once

#include "memory_state.h"

HEADRACE_BEGIN

// The place of a column's group among those of all columns; 0 for none.
HEADRACE_INLINE int64_t place_of_group(const MemoryCall& m, int64_t c, int64_t group) {
    return group ? c * m.num_groups + group : 0;
}

HEADRACE_INLINE int64_t group_of_row(const MemoryCall& m, int64_t row, int64_t c) {
    return place_of_group(m, c, m.group_VC[row * m.num_columns + c]);
}

// The group of event r's item: as the event says, or else as known.
HEADRACE_INLINE int64_t group_of(const MemoryCall& m, int64_t r, int64_t c) {
    const int32_t told = m.group_RC ? m.group_RC[r * m.num_columns + c] : 0;
    return told ? place_of_group(m, c, told) : group_of_row(m, m.target_R[r], c);
}

HEADRACE_INLINE int64_t last_group(const MemoryCall& m, int64_t r, int64_t c) {
    return m.past_end_R[r] > m.past_begin_R[r] ? group_of_row(m, m.past_rows[m.past_end_R[r] - 1], c) : 0;
}

// The groups of event r's last choices. `each`: called with a group and how much it counts.
template <typename Each>
HEADRACE_INLINE void own_groups(const MemoryCall& m, int64_t r, int64_t c, Each each) {
    const int64_t end = m.past_end_R[r], num = min64(GROUP_LAGS, end - m.past_begin_R[r]);
    float decay = 1.0f;
    for (int64_t k = 0; k < num; ++k, decay *= OWN_GROUP_DECAY)
        if (const int64_t group = group_of_row(m, m.past_rows[end - 1 - k], c)) each(group, decay);
}

// A column's mixture for event r, relative to what is usual. `base`: of a group that neither part knows; `own`: how
// much the groups of the last choices count together, 0 if nothing is known of the user.
struct GroupMixture {
    float unit, total, share[GROUP_PARTS], counted = 0, own = 0, base;
    int64_t last;

    GroupMixture(const MemoryCall& m, int64_t r, int64_t c) {
        unit = (float)m.clock[SEEN_SCALE], total = m.group_total[c] + unit;
        const float* of = m.group_share + c * GROUP_PARTS;
        const float all = of[USUAL] + of[NEXT] + of[OWN] + (float)GROUP_PARTS;
        for (int part = 0; part < GROUP_PARTS; ++part) share[part] = (of[part] + 1.0f) / all;
        last = last_group(m, r, c);
        const float* count = m.group_count + last * NEXT_GROUPS;
        for (int j = 0; last && j < NEXT_GROUPS; ++j) counted += count[j];
        own_groups(m, r, c, [&](int64_t, float count) { own += count; });
        base = share[USUAL] + share[NEXT] * next(0.0f, 1.0f);
    }
    // One over a group's usual share.
    float rarity(const MemoryCall& m, int64_t group) const { return total / (m.group_seen[group] + unit); }
    // What follows the last group, as a multiple of what is usual.
    float next(float count, float rarity) const { return (count * rarity + unit) / (counted + unit); }
};

// Writes the logarithms of a column's mixture: of its base, and of how far the groups that differ are above that.
inline void lift_column(const MemoryCall& m, Scratch& s, int64_t r, int64_t c) {
    const GroupMixture mix(m, r, c);
    s.lift_base[c] = 0.0f;
    if (!(mix.own > 0)) return;
    const int64_t first = s.num_lifted;
    const auto add = [&](int64_t group, float more) {
        if (!(more > 0)) return;
        if (s.lift_G[group] == 0.0f) s.lifted[s.num_lifted++] = (int32_t)group;
        s.lift_G[group] += more;
    };
    own_groups(m, r, c, [&](int64_t group, float count) {
        add(group, mix.share[OWN] * count / mix.own * mix.rarity(m, group));
    });
    const int64_t at = mix.last * NEXT_GROUPS;
    for (int j = 0; mix.last && j < NEXT_GROUPS; ++j)
        if (m.group_count[at + j] > 0) {
            const int64_t group = place_of_group(m, c, m.group_next[at + j]);
            const float rarity = mix.rarity(m, group);
            add(group, mix.share[NEXT] * (mix.next(m.group_count[at + j], rarity) - mix.next(0.0f, rarity)));
        }
    s.lift_base[c] = logf(mix.base);
    for (int64_t k = first; k < s.num_lifted; ++k)
        s.lift_G[s.lifted[k]] = logf(1.0f + s.lift_G[s.lifted[k]] / mix.base);
}

// Collects how much likelier than usual event r's past makes each group.
inline void lift_groups(const MemoryCall& m, Scratch& s, int64_t r) {
    s.num_lifted = 0;
    for (int64_t c = 0; c < m.num_columns; ++c) lift_column(m, s, r, c);
}

inline void clear_groups(Scratch& s) {
    for (int64_t k = 0; k < s.num_lifted; ++k) s.lift_G[s.lifted[k]] = 0.0f;
    s.num_lifted = 0;
}

// The logarithm of how much likelier than usual a row's groups are.
HEADRACE_INLINE float lift_of(const MemoryCall& m, const Scratch& s, int64_t row) {
    float lift = 0.0f;
    for (int64_t c = 0; c < m.num_columns; ++c)
        if (const int64_t group = group_of_row(m, row, c)) lift += s.lift_base[c] + s.lift_G[group];
    return lift;
}

inline void get_groups(const MemoryCall& m, Scratch& s, Arena& arena) {
    s.lift_G = arena.get<float>(m.num_columns * m.num_groups);
    s.lift_base = arena.get<float>(m.num_columns);
    s.lifted = arena.get<int32_t>(m.num_columns * (GROUP_LAGS + NEXT_GROUPS));
}

inline void clear_all_groups(const MemoryCall& m, Scratch& s) {
    memset(s.lift_G, 0, m.num_columns * m.num_groups * sizeof(float));
    s.num_lifted = 0;
}

// Counts for each column which part of its mixture predicted event r's group.
inline void learn_groups(const MemoryCall& m, int64_t r) {
    const float weight = m.weight_R ? m.weight_R[r] : 1.0f;
    for (int64_t c = 0; c < m.num_columns; ++c) {
        const GroupMixture mix(m, r, c);
        const int64_t group = group_of(m, r, c);
        if (!group || !(mix.own > 0)) continue;
        float count = 0.0f, own = 0.0f;
        for (int64_t at = mix.last * NEXT_GROUPS; mix.last && at < (mix.last + 1) * NEXT_GROUPS; ++at)
            if (place_of_group(m, c, m.group_next[at]) == group) count += m.group_count[at];
        own_groups(m, r, c, [&](int64_t each, float much) { own += each == group ? much : 0.0f; });
        const float rarity = mix.rarity(m, group);
        const float part[GROUP_PARTS] = {mix.share[USUAL], mix.share[NEXT] * mix.next(count, rarity),
                                         mix.share[OWN] * own / mix.own * rarity};
        const float all = part[USUAL] + part[NEXT] + part[OWN];
        float* shares = m.group_share + c * GROUP_PARTS;
        for (int p = 0; p < GROUP_PARTS; ++p) shares[p] = shares[p] * GROUP_SHARE_DECAY + weight * part[p] / all;
    }
}

// Counts that `group` came after `last`, as `add` of memory_counts.h does for rows.
inline void count_next(const MemoryCall& m, int64_t last, int32_t group, float unit) {
    int32_t* id = m.group_next + last * NEXT_GROUPS;
    float* count = m.group_count + last * NEXT_GROUPS;
    int least = 0;
    for (int j = 0; j < NEXT_GROUPS; ++j) {
        if (count[j] > 0 && id[j] == group) {
            count[j] += unit;
            return;
        }
        if (count[j] < count[least]) least = j;
    }
    if (unit < count[least]) {
        count[least] *= 1.0f - unit / count[least];
        return;
    }
    id[least] = group, count[least] = unit;
}

// Counts the groups of event r's choice; `unit`: what it counts.
inline void count_groups(const MemoryCall& m, int64_t r, float unit) {
    for (int64_t c = 0; c < m.num_columns; ++c) {
        const int64_t group = group_of(m, r, c), last = last_group(m, r, c);
        if (!group) continue;
        m.group_seen[group] += unit;
        m.group_total[c] += unit;
        if (last) count_next(m, last, (int32_t)(group - c * m.num_groups), unit);
    }
}

// Notes the groups of event r's item, if it says them.
inline void note_groups(const MemoryCall& m, int64_t r) {
    for (int64_t at = 0; m.group_RC && at < m.num_columns; ++at)
        if (const int32_t told = m.group_RC[r * m.num_columns + at])
            m.group_VC[m.target_R[r] * m.num_columns + at] = told;
}

inline void rescale_groups(const MemoryCall& m, float by) {
    const int64_t num = m.num_columns * m.num_groups;
    for (int64_t g = 0; g < num; ++g) m.group_seen[g] *= by;
    for (int64_t at = 0; at < num * NEXT_GROUPS; ++at) m.group_count[at] *= by;
    for (int64_t c = 0; c < m.num_columns; ++c) m.group_total[c] *= by;
}

HEADRACE_END
