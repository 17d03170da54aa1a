// HSTU attention, forward and backward: in float32 arithmetic (bfloat16 tensors are widened while packing), or on AMX
// tiles as one bfloat16 term (bfloat16 tensors) or two (float32 tensors).
//
// No result depends on the number of threads: each (user, head) is computed by one thread, and the biases' gradients
// are summed per chunk of them, and the chunks in order.
#include <omp.h>

#if defined(HEADRACE_LEVEL_AMX)
#include "attend_amx.h"
#else
#include "attend.h"
#include "attend_together.h"
#endif

HEADRACE_BEGIN

template <typename T, int TERMS>
int forward(const HeadraceAttention& a) {
    Plan plan;
    BiasTables tables;
    if (!plan.make(a) || !tables.make(a, plan)) return 1;
    bool failed = false;
#pragma omp parallel num_threads(a.num_threads) reduction(|| : failed)
    {
        Arena arena;
        Scratch scratch;
#if !defined(HEADRACE_LEVEL_AMX)
        TogetherScratch together;
#endif
        const Shape shape = widest(a, plan, TERMS);
        const auto lay_out = [&] {
            scratch.lay_out(arena, shape, false, a);
#if !defined(HEADRACE_LEVEL_AMX)
            if (a.num_targets && a.cache_len) together.lay_out(arena, plan.most_keys, shape.qk_pad, shape.v_pad);
#endif
        };
        lay_out();
        failed = !arena.allocate();
        if (!failed) lay_out();
        [[maybe_unused]] const TileRegisters registers;
#pragma omp for schedule(dynamic, 1)
        for (int64_t index = 0; index < plan.num_items; ++index) {
            if (failed) continue;
            const Item item = plan.item(a, index);
#if !defined(HEADRACE_LEVEL_AMX)
            if (a.num_targets && a.cache_len && is_together(item, tables)) {
                forward_together<T>(a, item, tables, together);
                continue;
            }
#endif
            Ahead ahead =
                ahead_of_forward<T>(a, item, plan.item(a, min64(index + omp_get_num_threads(), plan.num_items - 1)));
            forward_item<T, TERMS>(a, item, tables, scratch, ahead);
        }
    }
    tables.release();
    plan.release();
    return failed ? 1 : 0;
}

template <typename T, int TERMS>
int backward(const HeadraceAttention& a) {
    Plan plan;
    BiasTables tables;
    BiasGradChunks sums;
    if (!plan.make(a) || !tables.make(a, plan) || !sums.make(a, plan)) return 1;
    bool failed = false;
#pragma omp parallel num_threads(a.num_threads) reduction(|| : failed)
    {
        Arena arena;
        Scratch scratch;
        const Shape shape = widest(a, plan, TERMS);
        scratch.lay_out(arena, shape, true, a);
        failed = !arena.allocate();
        if (!failed) scratch.lay_out(arena, shape, true, a);
        [[maybe_unused]] const TileRegisters registers;
#pragma omp for schedule(dynamic, 1)
        for (int64_t chunk = 0; chunk < plan.num_chunks; ++chunk) {
            if (failed) continue;
            BiasGrads grads = sums.of(a, chunk);
            for (int64_t index = plan.chunk_starts[chunk]; index < plan.chunk_starts[chunk + 1]; ++index) {
                const Item item = plan.chunked_item(a, index);
                Ahead ahead = ahead_of_backward<T>(a, item, plan.chunked_item(a, min64(index + 1, plan.num_items - 1)));
                backward_item<T, TERMS>(a, item, tables, scratch, grads, nullptr, ahead);
            }
        }
    }
    if (!failed) sums.add_up(a, plan);
    sums.release();
    tables.release();
    plan.release();
    return failed ? 1 : 0;
}

HEADRACE_END

HEADRACE_LEVEL_API(attention_forward)(const HeadraceAttention* a) {
    using namespace headrace::HEADRACE_LEVEL;
    return a->is_bf16 ? forward<bf16, 1>(*a) : forward<float, 2>(*a);
}

HEADRACE_LEVEL_API(attention_backward)(const HeadraceAttention* a) {
    using namespace headrace::HEADRACE_LEVEL;
    return a->is_bf16 ? backward<bf16, 1>(*a) : backward<float, 2>(*a);
}
