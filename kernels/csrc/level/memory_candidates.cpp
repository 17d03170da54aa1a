// For learning from a sample where the table's rows are elsewhere: lists the rows that an event may be compared with,
// and computes the logits of such rows where they are.
#include "memory_counts.h"
#include "sampled_rows.h"

// The argument, laid out as in kernels/memory/cpp.py.
struct CandidatesCall {
    MemoryCall memory;
    int32_t* row;  // room for `most`
    int64_t* begin_A1;
    int64_t most;
};

struct RowLogitsCall {
    const float* query_AD;
    const void* table_VD;
    int64_t num_queries, width, unit_width, table_type;
    const int32_t* row;
    const int64_t* begin_A1;
    float* logit;
};

HEADRACE_BEGIN

// Which rows the events of a call make neighbours of a row: a hash table of lists.
struct Added {
    int32_t *key, *head, *other, *next;  // `head` and `next`: one above the place of a list's first and next entry
    int64_t mask = 0, num = 0;

    int64_t slot(int32_t row) const {
        int64_t at = (int64_t)((uint32_t)row * 0x9e3779b1u) & mask;
        while (key[at] != 0 && key[at] != row) at = (at + 1) & mask;
        return at;
    }
    void add(int32_t row, int32_t neighbour) {
        const int64_t at = slot(row);
        other[num] = neighbour, next[num] = key[at] ? head[at] : 0;
        key[at] = row, head[at] = (int32_t)++num;
    }
};

struct Listing {
    Added added;
    int32_t* recent;
    int64_t num_recent = 0, num = 0;
    uint8_t* is_listed;
    bool has_room = true;
};

inline bool make_listing(const MemoryCall& m, Listing& l, Arena& arena) {
    const int64_t most = 2 * COUNT_LAGS * m.num_events;
    int64_t slots = 2;
    while (slots < 2 * most) slots *= 2;
    for (int pass = 0; pass < 2; ++pass) {
        l.added.key = arena.get<int32_t>(slots);
        l.added.head = arena.get<int32_t>(slots);
        l.added.other = arena.get<int32_t>(most + 1);
        l.added.next = arena.get<int32_t>(most + 1);
        l.recent = arena.get<int32_t>(RECENT + m.num_events);
        if (pass == 0 && !arena.allocate()) return false;
    }
    memset(l.added.key, 0, slots * sizeof(int32_t));
    l.added.mask = slots - 1;
    for (int i = 0; i < RECENT; ++i)
        if (m.recent[i] > 0 && m.recent[i] < m.num_rows) l.recent[l.num_recent++] = m.recent[i];
    return true;
}

HEADRACE_INLINE void list(const CandidatesCall& call, Listing& l, int32_t row) {
    if (l.is_listed[row]) return;
    if (l.num == call.most) {
        l.has_room = false;
        return;
    }
    l.is_listed[row] = 1;
    call.row[l.num++] = row;
}

inline void list_neighbours(const CandidatesCall& call, Listing& l, int32_t row) {
    const MemoryCall& m = call.memory;
    const int32_t* id = m.neighbour_row + row * m.width;
    for (int64_t j = 0; j < m.num_neighbours[row]; ++j) list(call, l, id[j]);
    const int64_t at = l.added.slot(row);
    for (int32_t i = l.added.key[at] ? l.added.head[at] : 0; i > 0; i = l.added.next[i - 1])
        list(call, l, l.added.other[i - 1]);
}

inline void list_event(const CandidatesCall& call, Listing& l, int64_t r, uint64_t event) {
    const MemoryCall& m = call.memory;
    const int32_t* past = m.past_rows + m.past_begin_R[r];
    const int64_t num_past = m.past_end_R[r] - m.past_begin_R[r], begin = l.num;
    list(call, l, m.target_R[r]);
    for (int64_t k = 0; k < num_past; ++k) list(call, l, past[k]);
    for (int64_t k = m.shown_begin_R[r]; k < m.shown_end_R[r]; ++k) list(call, l, m.shown_rows[k]);
    for (int64_t lag = 0; lag < WIDE_LAGS && lag < num_past; ++lag) list_neighbours(call, l, past[num_past - 1 - lag]);
    const auto listed = [&](int, int32_t row, float) { list(call, l, row); };
    followers(m, r, listed);
    for (int64_t i = 0; i < l.num_recent; ++i) list(call, l, l.recent[i]);
    for (int draw = 0; draw < DRAWN; ++draw) list(call, l, (int32_t)drawn_row(event, draw, m.num_rows));
    for (int64_t i = begin; i < l.num; ++i) l.is_listed[call.row[i]] = 0;
}

// Notes what counting the event will add.
inline void note_count(const MemoryCall& m, Listing& l, int64_t r) {
    const int32_t target = m.target_R[r], *past = m.past_rows + m.past_begin_R[r];
    const int64_t num_past = m.past_end_R[r] - m.past_begin_R[r];
    l.recent[l.num_recent++] = target;
    for (int64_t lag = 0; lag < COUNT_LAGS && lag < num_past; ++lag) {
        const int32_t row = past[num_past - 1 - lag];
        if (row == target) continue;
        l.added.add(row, target);
        l.added.add(target, row);
    }
}

// Lists, for each event to predict, all rows whose logits `learn_all_sampled` may read, each once. Events make their
// rows neighbours of each other, so the list includes what earlier events of the call will have added. Returns false if
// there is no room.
inline bool list_candidates(const CandidatesCall& call) {
    static thread_local Sparse sparse;
    const MemoryCall& m = call.memory;
    Listing l;
    Arena arena;
    if (!sparse.at_least(m.num_rows) || !make_listing(m, l, arena)) return false;
    l.is_listed = sparse.barred;
    uint64_t event = (uint64_t)m.clock[EVENTS];
    int64_t* begin = call.begin_A1;
    for (int64_t r = 0; r < m.num_events; ++r) {
        if (m.chosen_R[r] == 1) *begin++ = l.num;
        if (m.target_R[r] == 0) continue;
        if (m.chosen_R[r] == 1) list_event(call, l, r, event);
        if (m.chosen_R[r]) note_count(m, l, r);
        ++event;
    }
    *begin = l.num;
    return l.has_room;
}

template <class T>
inline void row_logits(const RowLogitsCall& c, const T* table_VD) {
    for (int64_t a = 0; a < c.num_queries; ++a) {
        const float* query = c.query_AD + a * c.width;
        const int64_t end = c.begin_A1[a + 1];
        for (int64_t i = c.begin_A1[a]; i < end; ++i) {
            prefetch(table_VD + c.row[min64(i + AHEAD_ROWS, end - 1)] * c.width, c.width);
            logits_of_row<1>(table_VD + c.row[i] * c.width, query, c.width, c.unit_width, c.logit + i);
        }
    }
}

HEADRACE_END

// Returns 1 if out of memory.
HEADRACE_LEVEL_API(memory_candidates)(const CandidatesCall* call) {
    return !headrace::HEADRACE_LEVEL::list_candidates(*call);
}
HEADRACE_LEVEL_API(memory_row_logits)(const RowLogitsCall* call) {
    using namespace headrace::HEADRACE_LEVEL;
    with_rows(call->table_VD, call->table_type, [&](auto* table_VD) { row_logits(*call, table_VD); });
    return 0;
}
