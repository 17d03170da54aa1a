// Keeps the best few of the rows that are offered.
#pragma once

#include "memory_state.h"

HEADRACE_BEGIN

struct Candidate {
    float score;
    int32_t row;
};

// A heap with the worst of the best rows at its root; of equal scores the later row is worse.
struct Best {
    Candidate* at;
    int64_t k;
    static bool worse(Candidate a, Candidate b) { return a.score < b.score || (a.score == b.score && a.row > b.row); }
    void start() {
        for (int64_t i = 0; i < k; ++i) at[i] = {OUT / 2, INT32_MAX};
    }
    void sift(int64_t size, int64_t i) {
        const Candidate moved = at[i];
        for (;;) {
            int64_t child = 2 * i + 1;
            if (child >= size) break;
            if (child + 1 < size && worse(at[child + 1], at[child])) ++child;
            if (!worse(at[child], moved)) break;
            at[i] = at[child];
            i = child;
        }
        at[i] = moved;
    }
    void offer(Candidate one) {
        if (k == 0 || !worse(at[0], one)) return;
        at[0] = one;
        sift(k, 0);
    }
    float least() const { return k ? at[0].score : INFINITY; }
    void write(int32_t* rows, float* scores, int64_t most) {  // repeatedly moves the worst to the end
        for (int64_t i = k; i < most; ++i) rows[i] = -1, scores[i] = -INFINITY;
        for (int64_t size = k; size > 0; --size) {
            const bool is_any = at[0].row != INT32_MAX;
            rows[size - 1] = is_any ? at[0].row : -1;
            scores[size - 1] = is_any ? at[0].score : -INFINITY;
            at[0] = at[size - 1];
            sift(size - 1, 0);
        }
    }
};

HEADRACE_END
