// Row-wise Adagrad on rows that are sorted and grouped (see ../adagrad.cpp): one pass over gradients, state and
// weights.
#include "dither.h"

HEADRACE_BEGIN

constexpr int AHEAD = 8;  // rows to prefetch ahead: roughly memory latency divided by the time per row

struct Rates {
    float lr, eps, weight_decay;
};

// Where a row's numbers go: rounded to nearest (float is not rounded), or stochastically.
struct Nearest {
    template <class W>
    HEADRACE_INLINE void put(W* weight_D, vf x, uint64_t, int64_t d, int64_t count) const {
        if (count >= LANES) store(weight_D + d, x);
        else store_first(weight_D + d, x, (int)count);
    }
    HEADRACE_INLINE uint32_t of_row(uint64_t) const { return 0; }
};
struct Stochastic {
    const Dither& dither;
    template <class W>
    HEADRACE_INLINE void put(W* weight_D, vf x, uint64_t key, int64_t d, int64_t count) const {
        store_dithered(weight_D + d, x, (uint32_t)key, d, count);
    }
    HEADRACE_INLINE uint32_t of_row(uint64_t place) const { return row_key(dither, place); }
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

template <class W, class Rounding>
HEADRACE_INLINE void step_row(W* weight_D, const float* sum_D, int64_t width, float step, Rounding rounding,
                              uint32_t key) {
    for (int64_t d = 0; d < width; d += LANES) {
        const vf before = d + LANES <= width ? load(weight_D + d) : load_first(weight_D + d, (int)(width - d));
        rounding.put(weight_D, fma(splat(-step), load(sum_D + d), before), key, d, width - d);
    }
}

// `order`: (row << 32 | position), sorted. Groups of equal rows are updated one after the other.
template <class W, class G, class Rounding>
void update_groups(W* weight_VD, float* state_V, const uint64_t* order, int64_t num, const G* grad_ND, int64_t width,
                   float* sum_D, Rates rates, Rounding rounding) {
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
        step_row(weight_D, sum_D, width, rates.lr / (__builtin_sqrtf(state) + rates.eps), rounding,
                 rounding.of_row(row));
        start = stop;
    }
}

template <class W, class Rounding>
void update_typed(W* weight_VD, float* state_V, const uint64_t* order, int64_t num, const void* grad_ND, int grad_type,
                  int64_t width, float* sum_D, Rates rates, Rounding rounding) {
    if (grad_type == 0)
        update_groups(weight_VD, state_V, order, num, (const float*)grad_ND, width, sum_D, rates, rounding);
    else update_groups(weight_VD, state_V, order, num, (const bf16*)grad_ND, width, sum_D, rates, rounding);
}

HEADRACE_END

// sum_D: scratch of width + 16 floats. Types: 0 float, 1 bfloat16, 2 float16 (weights only). dither: null, or how 16
// bits are rounded stochastically.
HEADRACE_LEVEL_API(adagrad_update)
(void* weight_VD, int weight_type, float* state_V, const uint64_t* order, int64_t num, const void* grad_ND,
 int grad_type, int64_t width, float* sum_D, float lr, float eps, float weight_decay, const Dither* dither) {
    using namespace headrace::HEADRACE_LEVEL;
    const Rates rates = {lr, eps, weight_decay};
    const auto update = [&](auto* weights, auto rounding) {
        update_typed(weights, state_V, order, num, grad_ND, grad_type, width, sum_D, rates, rounding);
    };
    if (weight_type == 0) update((float*)weight_VD, Nearest{});
    else if (weight_type == 1 && !dither) update((bf16*)weight_VD, Nearest{});
    else if (weight_type == 1) update((bf16*)weight_VD, Stochastic{*dither});
    else if (!dither) update((f16*)weight_VD, Nearest{});
    else update((f16*)weight_VD, Stochastic{*dither});
    return 0;
}
