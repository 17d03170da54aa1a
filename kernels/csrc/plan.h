// Visibility and scheduling: one head of one user, groups of its queries against tiles of its keys, and the order of
// the work.
#pragma once

#include "attention.h"
#include "simd.h"

HEADRACE_BEGIN

constexpr int64_t MAX_CHUNKS =
    64;  // of items whose bias gradients are summed together; more threads than that have no work

// One head of one user.
struct Item {
    int64_t user, head, first, queries, keys, cached, context, targets;
    const void* buckets;        // rows of bucket_stride
    const int32_t* bucket_row;  // of each query: neighbours with equal times share one
    int64_t bucket_stride;
    bool monotone;

    int64_t position(int64_t query) const { return cached + query; }
    template <typename T>
    const T* buckets_of(int64_t query) const {
        return static_cast<const T*>(buckets) + bucket_row[query] * bucket_stride;
    }
};

// An estimate of an item's work: its groups of MR rows against tiles of this many columns.
inline int64_t num_groups(const Item& item, int64_t cols) {
    return item.queries * (item.keys + item.cached + 1) / (2 * MR * cols) + 1;
}

// MR query rows against one tile of keys, in the tile's coordinates.
struct Group {
    int64_t query, j0;
    int64_t width;  // columns that any row sees
    int32_t valid;  // rows that exist
    int32_t whole;  // columns that every row sees
#if defined(__AVX512F__)
    uint64_t bits[MR];  // bit c is set for a column that the row sees

    void set(int r, int64_t limit, int64_t self) {
        bits[r] = _bzhi_u64(~0ull, static_cast<uint32_t>(limit)) | (self >= 0 ? 1ull << self : 0);
    }
#else
    int32_t limit[MR];  // a row sees columns below it ...
    int32_t self[MR];   // ... and this one (-1: not in this tile)

    void set(int r, int64_t limit_r, int64_t self_r) {
        limit[r] = static_cast<int32_t>(limit_r);
        self[r] = static_cast<int32_t>(self_r);
    }
#endif
};

inline void see(const Item& item, int64_t query, int64_t j0, int64_t cols, Group& group) {
    group.query = query;
    group.j0 = j0;
    group.valid = static_cast<int32_t>(max64(0, min64(MR, item.queries - query)));
    const int64_t position = item.position(query), end = item.keys - item.targets;
    if (group.valid == MR && item.context <= position &&
        position + MR <= end) {  // every row sees what comes before it, and itself
        const auto seen = [&](int64_t r) { return max64(0, min64(cols, position + r + 1 - j0)); };
        group.width = seen(MR - 1);
        group.whole = static_cast<int32_t>(seen(0));
        if (group.whole < group.width)
            for (int r = 0; r < MR; ++r) group.set(r, seen(r), -1);
        return;
    }
    group.width = 0;
    group.whole = group.valid == MR ? static_cast<int32_t>(cols) : 0;
    for (int r = 0; r < MR; ++r) {
        const int64_t i = position + r,
                      past = r < group.valid ? min64(i < item.context ? item.context : i + 1, end) : 0;
        const int64_t limit = max64(0, min64(cols, past - j0)),
                      self = r < group.valid && i >= j0 && i < j0 + cols ? i - j0 : -1;
        group.set(r, limit, self);
        group.width = max64(group.width, max64(limit, self + 1));
        group.whole = static_cast<int32_t>(min64(group.whole, limit));
    }
}

// x where the row sees the column, else 0.
HEADRACE_INLINE vf keep_seen(const Group& group, int r, int64_t column, vf x) {
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_mov_ps(static_cast<__mmask16>(group.bits[r] >> column), (__m512)x);
#else
    const vi at = iota() + static_cast<int32_t>(column);
    return keep((at < group.limit[r]) | (at == group.self[r]), x);
#endif
}

struct Plan {
    struct Entry {
        int64_t cost, item;
    };
    Entry* entries = nullptr;    // items by descending cost
    int64_t* chunked = nullptr;  // items, chunk by chunk
    int64_t* bucket_starts = nullptr;
    int64_t chunk_starts[MAX_CHUNKS + 1];
    int64_t limit = MAX_CHUNKS;
    int64_t num_items = 0, num_chunks = 0, most_queries = 0, most_keys = 0, bucket_rows_end = 0;

    static int compare(const void* a, const void* b) {
        const Entry *x = static_cast<const Entry*>(a), *y = static_cast<const Entry*>(b);
        if (x->cost != y->cost) return x->cost > y->cost ? -1 : 1;
        return x->item < y->item ? -1 : x->item > y->item;
    }

    bool make(const HeadraceAttention& a) {
        const int64_t count = a.num_users * a.num_heads;
        entries = static_cast<Entry*>(malloc(sizeof(Entry) * (count + 1)));
        chunked = static_cast<int64_t*>(malloc(sizeof(int64_t) * (count + 1)));
        bucket_starts = static_cast<int64_t*>(malloc(sizeof(int64_t) * (a.num_users + 1)));
        if (!entries || !chunked || !bucket_starts) return false;
        bucket_starts[0] = 0;
        for (int64_t b = 0; b < a.num_users; ++b) {
            const int64_t queries = a.offsets[b + 1] - a.offsets[b],
                          keys = queries + (a.cache_len ? a.cache_len[b] : 0);
            bucket_starts[b + 1] = bucket_starts[b] + queries * round_up(keys, 64);
            most_queries = max64(most_queries, queries);
            most_keys = max64(most_keys, keys);
            if (queries)
                for (int64_t h = 0; h < a.num_heads; ++h)
                    entries[num_items++] = {queries * (2 * keys - queries + 1), b * a.num_heads + h};
        }
        bucket_rows_end = bucket_starts[a.num_users];
        qsort(entries, static_cast<size_t>(num_items), sizeof(Entry), compare);
        chunk();
        return true;
    }

    // Longest first, each to the lightest chunk: depends only on the lengths.
    void chunk() {
        num_chunks = min64(limit, num_items);
        int64_t load_of[MAX_CHUNKS] = {}, count_of[MAX_CHUNKS] = {};
        for (int64_t e = 0; e < num_items; ++e) {
            int64_t lightest = 0;
            for (int64_t c = 1; c < num_chunks; ++c) lightest = load_of[c] < load_of[lightest] ? c : lightest;
            load_of[lightest] += entries[e].cost;
            ++count_of[lightest];
            chunked[e] = lightest;
        }
        chunk_starts[0] = 0;
        for (int64_t c = 0; c < num_chunks; ++c) chunk_starts[c + 1] = chunk_starts[c] + count_of[c];
        int64_t next[MAX_CHUNKS];
        memcpy(next, chunk_starts, sizeof next);
        int64_t* order = static_cast<int64_t*>(malloc(sizeof(int64_t) * (num_items + 1)));
        for (int64_t e = 0; e < num_items; ++e) order[next[chunked[e]]++] = entries[e].item;
        free(chunked);
        chunked = order;
    }

    Item at(const HeadraceAttention& a, int64_t which) const {
        Item item;
        item.user = which / a.num_heads;
        item.head = which % a.num_heads;
        item.first = a.offsets[item.user];
        item.queries = a.offsets[item.user + 1] - item.first;
        item.cached = a.cache_len ? a.cache_len[item.user] : 0;
        item.keys = item.queries + item.cached;
        item.context = a.num_context ? a.num_context[item.user] : 0;
        item.targets = a.num_targets ? a.num_targets[item.user] : 0;
        item.bucket_stride = round_up(item.keys, 64);
        item.buckets = nullptr;
        item.bucket_row = nullptr;
        item.monotone = false;
        if (a.buckets) {
            const char* bytes = static_cast<const char*>(a.buckets);
            item.buckets = bytes + bucket_starts[item.user] * a.bucket_bytes;
            item.monotone = bytes[bucket_rows_end * a.bucket_bytes + item.user] != 0;
            item.bucket_row = reinterpret_cast<const int32_t*>(
                                  bytes + bucket_index_at(bucket_rows_end, a.bucket_bytes, a.num_users)) +
                              item.first;
        }
        return item;
    }
    Item item(const HeadraceAttention& a, int64_t index) const { return at(a, entries[index].item); }
    Item chunked_item(const HeadraceAttention& a, int64_t index) const { return at(a, chunked[index]); }

    void release() {
        free(entries);
        free(chunked);
        free(bucket_starts);
    }
};

HEADRACE_END
