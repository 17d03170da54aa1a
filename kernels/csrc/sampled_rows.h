// Where events are learned from a sample of the rows: which rows are drawn, the network's logits of a row, and the
// scratch memory by row.
#pragma once

#include <math.h>
#include <stdlib.h>

#include "half.h"
#include "simd.h"

HEADRACE_BEGIN

constexpr int DRAWN = 512;
constexpr float LEAST_NORM = 1e-6f;
constexpr int64_t AHEAD_ROWS = 12;  // rows between a prefetch and its use

// splitmix64 of the event's number and the draw's.
HEADRACE_INLINE int64_t drawn_row(uint64_t event, uint64_t draw, int64_t num_rows) {
    uint64_t x = (event * DRAWN + draw + 1) * 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return 1 + (int64_t)((x ^ x >> 31) % (uint64_t)(num_rows - 1));
}

// The network's logits of one row, for `NUM` queries side by side.
template <int NUM, class T>
HEADRACE_INLINE void logits_of_row(const T* row, const float* query, int64_t width, int64_t unit_width, float* logit) {
    vf square = zero(), dot[NUM] = {};
    int64_t d = 0;
    for (; d + W <= unit_width; d += W) {
        const vf x = load(row + d);
        square = fma(x, x, square);
        for (int q = 0; q < NUM; ++q) dot[q] = fma(x, load(query + q * width + d), dot[q]);
    }
    float squares = sum(square), rest[NUM] = {};
    for (; d < unit_width; ++d) {
        const float x = value(row + d);
        squares += x * x;
        for (int q = 0; q < NUM; ++q) rest[q] += x * query[q * width + d];
    }
    const float norm = sqrtf(squares), inverse = 1.0f / (norm > LEAST_NORM ? norm : LEAST_NORM);
    for (int q = 0; q < NUM; ++q) {
        float bias = 0.0f;
        for (int64_t b = unit_width; b < width; ++b) bias += value(row + b) * query[q * width + b];
        logit[q] = (sum(dot[q]) + rest[q]) * inverse + bias;
    }
}

// Fetches a row ahead of its use.
template <class T>
HEADRACE_INLINE void prefetch(const T* row, int64_t width) {
    for (int64_t d = 0; d < width; d += 64 / (int64_t)sizeof(T)) __builtin_prefetch(row + d);
}

// A thread's scratch memory by row, of which an event touches little. So it is small: what an event computes of its
// rows is beside it, in the order in which they are found. Every call leaves it all zero, but for `logit`, of which an
// event reads what was written for it.
struct Sparse {
    int32_t* slot = nullptr;
    float* logit = nullptr;
    uint8_t* barred = nullptr;
    int64_t num_rows = 0;
    ~Sparse() { clear(); }
    void clear() {
        free(slot);
        free(logit);
        free(barred);
        slot = nullptr, logit = nullptr, barred = nullptr, num_rows = 0;
    }
    bool at_least(int64_t rows) {
        if (rows <= num_rows) return true;
        clear();
        rows += rows / 4;  // so that a catalogue that grows does not get new pages with each item
        slot = static_cast<int32_t*>(calloc(rows, sizeof(int32_t)));
        logit = static_cast<float*>(calloc(rows, sizeof(float)));
        barred = static_cast<uint8_t*>(calloc(rows, 1));
        if (!slot || !logit || !barred) return clear(), false;
        num_rows = rows;
        return true;
    }
};

HEADRACE_END
