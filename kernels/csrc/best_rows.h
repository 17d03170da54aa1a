// Keeps the best few of the rows that are offered.
#pragma once

#include <math.h>

#include "lanes.h"

HEADRACE_BEGIN

// A row and its score; in a heap, the worst of the best rows is at the root. Of equal scores the later row is worse.
struct Candidate {
    float score;
    int32_t row;
};
HEADRACE_INLINE bool worse(Candidate a, Candidate b) {
    return a.score < b.score || (a.score == b.score && a.row > b.row);
}

// Moves the entry at `at` down to its place.
inline void sift_down(Candidate* heap, int64_t size, int64_t at) {
    const Candidate moved = heap[at];
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= size) break;
        if (child + 1 < size && worse(heap[child + 1], heap[child])) ++child;
        if (!worse(heap[child], moved)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

// The best k of the rows offered that score above a floor.
struct Best {
    Candidate* at;
    int64_t k;
    void start(float floor) {
        for (int64_t i = 0; i < k; ++i) at[i] = {floor, INT32_MAX};
    }
    void offer(Candidate one) {
        if (k == 0 || !worse(at[0], one)) return;
        at[0] = one;
        sift_down(at, k, 0);
    }
    float least() const { return k ? at[0].score : INFINITY; }
    void write(int32_t* rows, float* scores, int64_t most) {  // repeatedly moves the worst to the end
        for (int64_t i = k; i < most; ++i) rows[i] = -1, scores[i] = -INFINITY;
        for (int64_t size = k; size > 0; --size) {
            const bool is_any = at[0].row != INT32_MAX;
            rows[size - 1] = is_any ? at[0].row : -1;
            scores[size - 1] = is_any ? at[0].score : -INFINITY;
            at[0] = at[size - 1];
            sift_down(at, size - 1, 0);
        }
    }
};

HEADRACE_END
