// The two halves of the HSTU layer, before and after its attention, for cached inference: blocks of tokens, no
// gradients.
#include "layer_forward.h"

HEADRACE_BEGIN

template <typename Body>
int over_blocks(const HeadraceLayer& a, const Body& body) {
    bool failed = false;
#pragma omp parallel num_threads(a.num_threads) reduction(|| : failed)
    {
        Arena arena;
        const Weights<0> counted(arena, a, false);
        const int64_t widest_row = max64(counted.c_pad, max64(counted.m_pad, counted.v_pad));
        arena.get<float>(2 * BLOCK * widest_row + 64);
        failed = !arena.allocate();
        if (!failed) {
            const Weights<0> weights(arena, a, false);
            float *first = arena.get<float>(BLOCK * widest_row), *second = arena.get<float>(BLOCK * widest_row);
#pragma omp for schedule(dynamic, 1)
            for (int64_t t = 0; t < a.tokens; t += BLOCK) body(weights, t, min64(BLOCK, a.tokens - t), first, second);
        }
    }
    return failed ? 1 : 0;
}

template <typename T>
int project(const HeadraceLayer& a) {
    return over_blocks(a, [&](const Weights<0>& w, int64_t t, int64_t count, float* normed, float* z) {
        project_block<T, 0>(a, w, t, count, false, {nullptr, normed, nullptr, w.in_weight, w.in_bias, w.m_pad}, z,
                            nullptr);
        T* to = static_cast<T*>(a.z_out) + t * w.columns;
        for (int64_t r = 0; r < count; ++r)
            for (int64_t c = 0; c < w.columns; c += W)
                store_some(to + r * w.columns + c, load(z + r * w.c_pad + c), w.columns - c);
    });
}

template <typename T>
int output(const HeadraceLayer& a) {
    return over_blocks(a, [&](const Weights<0>& w, int64_t t, int64_t count, float* gated, float* out) {
        output_block<T, 0, T>(a, w, t, t, count, static_cast<const T*>(a.attended) + t * w.value, w.value,
                              static_cast<const T*>(a.z) + t * w.value, w.value, gated, out);
    });
}

HEADRACE_END

HEADRACE_LEVEL_API(layer_project)(const HeadraceLayer* a) {
    using namespace headrace::HEADRACE_LEVEL;
    return a->is_bf16 ? project<bf16>(*a) : project<float>(*a);
}

HEADRACE_LEVEL_API(layer_output)(const HeadraceLayer* a) {
    using namespace headrace::HEADRACE_LEVEL;
    return a->is_bf16 ? output<bf16>(*a) : output<float>(*a);
}
