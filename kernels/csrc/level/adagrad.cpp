// Row-wise Adagrad on rows that are sorted and grouped (see ../adagrad.cpp): one pass over gradients, state and
// weights.
#include "lanes.h"

HEADRACE_BEGIN

constexpr int AHEAD = 8;  // rows to prefetch ahead: roughly memory latency divided by the time per row

struct Rates {
    float lr, eps, weight_decay;
};

HEADRACE_INLINE void prefetch_row(const void* row, int64_t num_bytes) {
    const char* p = static_cast<const char*>(row);
    for (int64_t i = 0; i < num_bytes; i += 64) __builtin_prefetch(p + i, 1);
}

// g = sum of the group's gradient rows in order (+ decay * w), in `sum_D`; returns the sum of g squared.
template <class W, class G>
HEADRACE_INLINE float add_gradients(float* sum_D, const W* weight_D, const G* grad_ND, const uint64_t* group,
                                    int64_t size, int64_t width, float weight_decay) {
    vf squares = {};
    for (int64_t d = 0; d < width; d += LANES) {
        const bool whole = d + LANES <= width;
        const int n = (int)(width - d);
        const G* first = grad_ND + (group[0] & 0xffffffffu) * width + d;
        vf g = whole ? load(first) : load_first(first, n);
        for (int64_t i = 1; i < size; ++i) {
            const G* next = grad_ND + (group[i] & 0xffffffffu) * width + d;
            g += whole ? load(next) : load_first(next, n);
        }
        if (weight_decay != 0.0f)
            g = fma(splat(weight_decay), whole ? load(weight_D + d) : load_first(weight_D + d, n), g);
        store(sum_D + d, g);
        squares = fma(g, g, squares);
    }
    return sum(squares);
}

template <class W>
HEADRACE_INLINE void step_row(W* weight_D, const float* sum_D, int64_t width, float step) {
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) store(weight_D + d, fma(splat(-step), load(sum_D + d), load(weight_D + d)));
    if (d < width) {
        const int n = (int)(width - d);
        store_first(weight_D + d, fma(splat(-step), load(sum_D + d), load_first(weight_D + d, n)), n);
    }
}

// `order`: (row << 32 | position), sorted. Groups of equal rows are updated one after the other.
template <class W, class G>
void update_groups(W* weight_VD, float* state_V, const uint64_t* order, int64_t num, const G* grad_ND, int64_t width,
                   float* sum_D, Rates rates) {
    for (int64_t i = 0; i < num && i < AHEAD; ++i) {
        prefetch_row(weight_VD + (order[i] >> 32) * width, width * sizeof(W));
        __builtin_prefetch(state_V + (order[i] >> 32), 1);
    }
    for (int64_t start = 0; start < num;) {
        const uint64_t row = order[start] >> 32;
        int64_t stop = start;
        do {
            if (stop + AHEAD < num) {
                const uint64_t next = order[stop + AHEAD];
                prefetch_row(weight_VD + (next >> 32) * width, width * sizeof(W));
                prefetch_row(grad_ND + (next & 0xffffffffu) * width, width * sizeof(G));
                __builtin_prefetch(state_V + (next >> 32), 1);
            }
            ++stop;
        } while (stop < num && order[stop] >> 32 == row);
        W* weight_D = weight_VD + row * width;
        const float squares =
            add_gradients(sum_D, weight_D, grad_ND, order + start, stop - start, width, rates.weight_decay);
        const float state = state_V[row] + squares / (float)width;
        state_V[row] = state;
        step_row(weight_D, sum_D, width, rates.lr / (__builtin_sqrtf(state) + rates.eps));
        start = stop;
    }
}

HEADRACE_END

// sum_D: scratch of width + 16 floats. Types: 0 float, 1 bfloat16.
HEADRACE_LEVEL_API(adagrad_update)
(void* weight_VD, int weight_type, float* state_V, const uint64_t* order, int64_t num, const void* grad_ND,
 int grad_type, int64_t width, float* sum_D, float lr, float eps, float weight_decay) {
    using namespace headrace::HEADRACE_LEVEL;
    const Rates rates = {lr, eps, weight_decay};
    if (weight_type == 0 && grad_type == 0)
        update_groups((float*)weight_VD, state_V, order, num, (const float*)grad_ND, width, sum_D, rates);
    else if (weight_type == 0)
        update_groups((float*)weight_VD, state_V, order, num, (const bf16*)grad_ND, width, sum_D, rates);
    else if (grad_type == 0)
        update_groups((bf16*)weight_VD, state_V, order, num, (const float*)grad_ND, width, sum_D, rates);
    else update_groups((bf16*)weight_VD, state_V, order, num, (const bf16*)grad_ND, width, sum_D, rates);
    return 0;
}
