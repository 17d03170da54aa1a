// Prefetches memory that will be read or written soon, a few lines at a time while the core computes: a batch's tensors
// are in the L3 cache or beyond, and prefetching whole users at once would fill the queue of misses.
#pragma once

#include "rows.h"

HEADRACE_BEGIN

class Ahead {
    static constexpr int64_t LINE = 64, MOST_RANGES = 9;
    struct Range {
        const char* row;
        int64_t stride, bytes, rows, share;
    } ranges[MOST_RANGES];
    int num = 0;

public:
    void add(const void* first, int64_t stride, int64_t bytes, int64_t rows) {
        const char* row = static_cast<const char*>(first);
        if (stride == bytes) ranges[num++] = {row, LINE, LINE, (bytes * rows + LINE - 1) / LINE, 0};
        else ranges[num++] = {row, stride, bytes, rows, 0};
    }
    // An item's tokens in a tensor.
    template <typename T>
    void add(const HeadraceTensor& x, const Item& item, int64_t width) {
        add(rows_of<T>(x, item.first, item.head), x.row * sizeof(T), width * sizeof(T), item.queries);
    }
    template <typename T>
    void add_cached(const HeadraceAttention& a, const HeadraceTensor& cache, const Item& item, int64_t width) {
        if (item.cached)
            add(rows_of<T>(cache, a.cache_start[item.user], item.head), cache.row * sizeof(T), width * sizeof(T),
                item.cached);
    }
    // Spreads the remaining prefetches over this many steps.
    void pace(int64_t steps) {
        for (int n = 0; n < num; ++n) ranges[n].share = ranges[n].rows / steps + 1;
    }
    void step() {
        for (int n = 0; n < num; ++n) {
            Range& range = ranges[n];
            const int64_t count = min64(range.share, range.rows);
            for (int64_t i = 0; i < count; ++i, range.row += range.stride)
                for (int64_t at = 0; at < range.bytes; at += LINE) __builtin_prefetch(range.row + at, 0, 2);
            range.rows -= count;
        }
    }
};

template <typename T>
Ahead ahead_of_inputs(const HeadraceAttention& a, const Item& next) {
    Ahead ahead;
    ahead.add_cached<T>(a, a.cache_k, next, a.qk_dim);
    ahead.add_cached<T>(a, a.cache_v, next, a.v_dim);
    ahead.add<T>(a.k, next, a.qk_dim);
    ahead.add<T>(a.v, next, a.v_dim);
    ahead.add<T>(a.q, next, a.qk_dim);
    return ahead;
}

// What the forward pass reads for the next item and writes for its own.
template <typename T>
Ahead ahead_of_forward(const HeadraceAttention& a, const Item& item, const Item& next) {
    Ahead ahead = ahead_of_inputs<T>(a, next);
    ahead.add<T>(a.out, item, a.v_dim);
    return ahead;
}

template <typename T>
Ahead ahead_of_backward(const HeadraceAttention& a, const Item& item, const Item& next) {
    Ahead ahead = ahead_of_inputs<T>(a, next);
    ahead.add<T>(a.grad, next, a.v_dim);
    ahead.add<T>(a.dk, item, a.qk_dim);
    ahead.add<T>(a.dv, item, a.v_dim);
    ahead.add<T>(a.dq, item, a.qk_dim);
    return ahead;
}

HEADRACE_END
