// The HSTU layer: LayerNorm -> U, V, Q, K -> SiLU -> attention -> LayerNorm * U -> projection -> dropout -> + x, and
// its gradients.
//
// Each user goes through the whole layer at once, so that only x, y and the attention's output (saved for the backward
// pass) go to memory: projections, norms and activations stay in the L2 cache, and the backward pass recomputes them
// there. Gradients of weights are summed per chunk of users, and the chunks in order: the same bits for any number of
// threads.
//
// If only a user's last tokens have outputs, those before are silent: only keys and values are computed for them.
#include "layer_backward.h"

HEADRACE_BEGIN

template <typename T, int TERMS>
int layer_forward(const HeadraceLayer& a, const HeadraceAttention& attend) {
    HeadraceAttention users = attend;  // a plan of users, not of heads
    users.num_heads = 1;
    Plan plan;
    BiasTables tables;
    if (!plan.make(users) || !tables.make(attend, plan)) return 1;
    bool failed = false;
#pragma omp parallel num_threads(a.num_threads) reduction(|| : failed)
    {
        Arena arena;
        UserScratch scratch;
        scratch.lay_out(arena, Weights<TERMS>(arena, a, false), plan.most_keys, attend, plan, false);
        failed = !arena.allocate();
        if (!failed) {
            const Weights<TERMS> weights(arena, a, false);
            scratch.lay_out(arena, weights, plan.most_keys, attend, plan, false);
            [[maybe_unused]] const TileRegisters registers;
#pragma omp for schedule(dynamic, 1)
            for (int64_t index = 0; index < plan.num_items; ++index)
                forward_user<T, TERMS>(a, attend, weights, tables, plan.item(users, index), scratch);
        }
    }
    tables.release();
    plan.release();
    return failed ? 1 : 0;
}

// The gradient of users without outputs, who are in no plan.
template <typename T>
void clear_unread(const HeadraceLayer& a, const HeadraceAttention& attend) {
    for (int64_t b = 0; a.token_offsets && b < attend.num_users; ++b)
        if (attend.offsets[b] == attend.offsets[b + 1])
            memset(static_cast<T*>(a.dx) + a.token_offsets[b] * a.model, 0,
                   sizeof(T) * a.model * (a.token_offsets[b + 1] - a.token_offsets[b]));
}

template <typename T, int TERMS>
int layer_backward(const HeadraceLayer& a, const HeadraceAttention& attend) {
    HeadraceAttention users = attend;
    users.num_heads = 1;
    const int64_t columns = 2 * a.value + 2 * a.key;
    const int64_t in_size = Sums::size(a.model, columns, a.model), out_size = Sums::size(a.value, a.model, a.value);
    Plan plan;
    BiasTables tables;
    BiasGradChunks pairs;
    clear_unread<T>(a, attend);
    // At most 64 MB of sums, and not too many for the number of tokens, because each must be cleared and added up.
    plan.limit = max64(2, min64(min64(MAX_CHUNKS, a.tokens / 256), (int64_t{16} << 20) / (in_size + out_size)));
    if (!plan.make(users) || !tables.make(attend, plan) || !pairs.make(attend, plan)) return 1;
    const int64_t num_sums = max64(1, plan.num_chunks);  // zeros if there are no users
    float* chunks = static_cast<float*>(calloc(static_cast<size_t>(num_sums * (in_size + out_size)), sizeof(float)));
    if (!chunks) return 1;
    float* out_chunks = chunks + num_sums * in_size;
    bool failed = false;
#pragma omp parallel num_threads(a.num_threads) reduction(|| : failed)
    {
        Arena arena;
        UserScratch scratch;
        scratch.lay_out(arena, Weights<TERMS>(arena, a, true), plan.most_keys, attend, plan, true);
        failed = !arena.allocate();
        if (!failed) {
            const Weights<TERMS> weights(arena, a, true);
            scratch.lay_out(arena, weights, plan.most_keys, attend, plan, true);
            [[maybe_unused]] const TileRegisters registers;
#pragma omp for schedule(dynamic, 1)
            for (int64_t chunk = 0; chunk < plan.num_chunks; ++chunk) {
                BiasGrads grads = pairs.of(attend, chunk);
                Sums in_sums(chunks + chunk * in_size, a.model, columns, a.model),
                    out_sums(out_chunks + chunk * out_size, a.value, a.model, a.value);
                for (int64_t index = plan.chunk_starts[chunk]; index < plan.chunk_starts[chunk + 1]; ++index)
                    backward_user<T, TERMS>(a, attend, weights, tables, plan.chunked_item(users, index), scratch, grads,
                                            in_sums, out_sums);
            }
        }
    }
    if (!failed) {
        pairs.add_up(attend, plan);
        add_up(chunks, num_sums, a.model, columns, a.model, a.d_uvqk_weight, a.d_uvqk_bias, a.d_norm_in_weight,
               a.d_norm_in_bias);
        add_up(out_chunks, num_sums, a.value, a.model, a.value, a.d_out_weight, a.d_out_bias, a.d_norm_out_weight,
               a.d_norm_out_bias);
    }
    free(chunks);
    pairs.release();
    tables.release();
    plan.release();
    return failed ? 1 : 0;
}

HEADRACE_END

HEADRACE_LEVEL_API(layer_forward)(const HeadraceLayer* a, const HeadraceAttention* attend) {
    using namespace headrace::HEADRACE_LEVEL;
    return a->is_bf16 ? layer_forward<bf16, 1>(*a, *attend) : layer_forward<float, 2>(*a, *attend);
}

HEADRACE_LEVEL_API(layer_backward)(const HeadraceLayer* a, const HeadraceAttention* attend) {
    using namespace headrace::HEADRACE_LEVEL;
    return a->is_bf16 ? layer_backward<bf16, 1>(*a, *attend) : layer_backward<float, 2>(*a, *attend);
}
