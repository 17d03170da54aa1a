// The HSTU layer: LayerNorm -> U, V, Q, K -> SiLU -> attention -> LayerNorm * U -> projection -> dropout -> + x, and
// back.
//
// Each user goes through the whole layer at once, so that only x, y and the attention's output (saved for the backward
// pass) go to memory: projections, norms and activations stay in the L2 cache, and the backward pass recomputes them
// there. Gradients of weights are summed per chunk of users, and the chunks in order: the same bits for any number of
// threads.
//
// If only a user's last tokens have outputs, those before are silent: only keys and values are computed for them.
#if defined(HEADRACE_LEVEL_AMX)
#include "attend_amx.h"
#else
#include "attend.h"
#endif
#include "blocks.h"

HEADRACE_BEGIN

template <int TERMS>
struct Weights {  // padded copies
    float *uvqk, *uvqk_bias, *in_weight, *in_bias, *out, *out_bias, *out_norm_weight, *out_norm_bias;
    float *uvqk_turned, *out_turned;  // backward only
    Operand uvqk_operand, out_operand, uvqk_turned_operand = {}, out_turned_operand = {};
    int64_t model, value, key, columns, m_pad, v_pad, c_pad;

    Weights(Arena& arena, const HeadraceLayer& a, bool backward) {
        model = a.model, value = a.value, key = a.key, columns = 2 * a.value + 2 * a.key;
        m_pad = round_up(model, PAD), v_pad = round_up(value, PAD), c_pad = round_up(columns, PAD);
        uvqk = padded(arena, a.uvqk_weight, model, columns, false);
        uvqk_bias = padded_vector(arena, a.uvqk_bias, columns);
        in_weight = padded_vector(arena, a.norm_in_weight, model);
        in_bias = padded_vector(arena, a.norm_in_bias, model);
        out = padded(arena, a.out_weight, value, model, false);
        out_bias = padded_vector(arena, a.out_bias, model);
        out_norm_weight = padded_vector(arena, a.norm_out_weight, value);
        out_norm_bias = padded_vector(arena, a.norm_out_bias, value);
        uvqk_turned = backward ? padded(arena, a.uvqk_weight, model, columns, true) : nullptr;
        out_turned = backward ? padded(arena, a.out_weight, value, model, true) : nullptr;
        uvqk_operand = operand<TERMS>(arena, uvqk, c_pad, model, columns);
        out_operand = operand<TERMS>(arena, out, m_pad, value, model);
        if (!backward) return;
        uvqk_turned_operand = operand<TERMS>(arena, uvqk_turned, m_pad, columns, model);
        out_turned_operand = operand<TERMS>(arena, out_turned, v_pad, model, value);
    }
};

// Columns of U, V, Q, K: all, or those of V and of K, which is what silent tokens need.
struct Columns {
    struct {
        int64_t from, count;
    } part[2];
    int num_parts;
};

template <int TERMS>
Columns columns_of(const Weights<TERMS>& w, bool silent) {
    const bool whole_operands = w.value % DEPTHS == 0 && w.key % DEPTHS == 0;
    if (silent && whole_operands) return {{{w.value, w.value}, {2 * w.value + w.key, w.key}}, 2};
    return {{{0, w.columns}, {0, 0}}, 1};
}

struct UserScratch {
    float *z, *attended;                        // the whole user: (L, c_pad); the outputs: (L, v_pad)
    float *slopes, *dz, *dattended;             // backward; slopes: of SiLU at z
    float *in_normed, *in_affine, *in_inverse;  // backward: x normalized; (L, m_pad), (L,)
    float *normed, *affine, *wide, *inverse;    // a block
    Scratch attention;

    template <int TERMS>
    void lay_out(Arena& arena, const Weights<TERMS>& w, int64_t most_tokens, const HeadraceAttention& attend,
                 const Plan& plan, bool backward) {
        // Products write whole groups of rows: a user's last block may begin anywhere, and extend past the last token.
        const int64_t rows = round_up(most_tokens, BLOCK) + BLOCK, widest_row = max64(w.m_pad, w.v_pad);
        z = arena.get<float>(rows * w.c_pad);
        attended = arena.get<float>(rows * w.v_pad);
        slopes = backward ? arena.get<float>(rows * w.c_pad) : nullptr;
        dz = backward ? arena.get<float>(rows * w.c_pad) : nullptr;
        in_normed = backward ? arena.get<float>(rows * w.m_pad) : nullptr;
        in_affine = backward ? arena.get<float>(rows * w.m_pad) : nullptr;
        in_inverse = backward ? arena.get<float>(rows) : nullptr;
        dattended = backward ? arena.get<float>(rows * w.v_pad) : nullptr;
        normed = arena.get<float>(BLOCK * widest_row);
        affine = arena.get<float>(BLOCK * widest_row);
        wide = arena.get<float>(BLOCK * widest_row);
        inverse = arena.get<float>(BLOCK);
        attention.lay_out(arena, widest(attend, plan, TERMS), backward, attend);
    }
};

// SiLU of a block's projections, and its slopes if there is room for them.
template <typename T, int TERMS>
void project_block(const HeadraceLayer& a, const Weights<TERMS>& w, int64_t token, int64_t count, bool silent,
                   const Normalized& normalized, float* z, float* slopes) {
    normalize(static_cast<const T*>(a.x) + token * w.model, w.model, count, w.model, static_cast<float>(a.eps),
              normalized);
    const Columns columns = columns_of(w, silent);
    for (int p = 0; p < columns.num_parts; ++p) {
        const int64_t from = columns.part[p].from, end = from + columns.part[p].count;
        const Operand weight = across(w.uvqk_operand, from);
        multiply<TERMS>(normalized.affine, w.m_pad, 1, count, w.uvqk + from, w.c_pad, w.model, z + from, w.c_pad,
                        end - from, false, &weight);
        for (int64_t r = 0; r < count; ++r)
            for (int64_t c = from; c < end; c += W) {
                vf x = load(z + r * w.c_pad + c);
                if (a.uvqk_bias) x += load(w.uvqk_bias + c);
                const vf gate = sigmoid(x), activated = x * gate;
                store(z + r * w.c_pad + c, activated);
                if (slopes) store(slopes + r * w.c_pad + c, silu_slope(gate, activated));
            }
    }
}

// y of a block, from the attention's output and the activated U. The first token's output is row `row` of y.
template <typename T, int TERMS, typename U>
void output_block(const HeadraceLayer& a, const Weights<TERMS>& w, int64_t token, int64_t row, int64_t count,
                  const U* attended, int64_t attended_row, const U* u, int64_t u_row, float* gated, float* out) {
    const Normalized to = {nullptr, gated, nullptr, w.out_norm_weight, w.out_norm_bias, w.v_pad};
    normalize(attended, attended_row, count, w.value, static_cast<float>(a.eps), to);
    for (int64_t r = 0; r < count; ++r)
        for (int64_t c = 0; c < w.value; c += W)
            store(gated + r * w.v_pad + c, load(gated + r * w.v_pad + c) * load_some(u + r * u_row + c, w.value - c));
    multiply<TERMS>(gated, w.v_pad, 1, count, w.out, w.m_pad, w.value, out, w.m_pad, w.model, false, &w.out_operand);
    const T* x = static_cast<const T*>(a.x) + token * w.model;
    T* y = static_cast<T*>(a.y) + row * w.model;
    for (int64_t r = 0; r < count; ++r)
        for (int64_t c = 0; c < w.model; c += W) {
            vf change = load(out + r * w.m_pad + c);
            if (a.out_bias) change += load(w.out_bias + c);
            change = drop(a, token + r, c, change);
            store_some(y + r * w.model + c, load_some(x + r * w.model + c, w.model - c) + change, w.model - c);
        }
}

constexpr int64_t AT_FIRST[] = {0};

// The attention of one user in its scratch memory: the item's outputs start at row 0, its silent tokens are cached
// keys.
template <int TERMS>
HeadraceAttention on_scratch(const HeadraceAttention& attend, const Weights<TERMS>& w, const UserScratch& s,
                             Item& item) {
    HeadraceAttention local = attend;
    const int64_t value = attend.v_dim, key = attend.qk_dim, v = w.value, q = 2 * w.value, k = q + w.key,
                  own = item.cached * w.c_pad;
    item.first = item.user = 0;
    local.is_bf16 = 0;
    local.v = {s.z + own + v, w.c_pad, value};
    local.q = {s.z + own + q, w.c_pad, key};
    local.k = {s.z + own + k, w.c_pad, key};
    local.cache_v = {s.z + v, w.c_pad, value};
    local.cache_k = {s.z + k, w.c_pad, key};
    local.cache_start = AT_FIRST;
    local.cache_grad = 1;
    local.out = {s.attended, w.v_pad, value};
    local.dv = {s.dz + own + v, w.c_pad, value};
    local.dq = {s.dz + own + q, w.c_pad, key};
    local.dk = {s.dz + own + k, w.c_pad, key};
    local.grad = {s.dattended, w.v_pad, value};
    return local;
}

// Blocks of a user's tokens: first the silent ones, then those with outputs.
template <typename Body>
void over_tokens(const Item& item, const Body& body) {
    for (int64_t t = 0; t < item.cached; t += BLOCK) body(t, min64(BLOCK, item.cached - t), true);
    for (int64_t t = item.cached; t < item.keys; t += BLOCK) body(t, min64(BLOCK, item.keys - t), false);
}

inline int64_t first_token(const HeadraceLayer& a, const Item& item) {
    return a.token_offsets ? a.token_offsets[item.user] : item.first;
}

template <typename T, int TERMS>
void forward_user(const HeadraceLayer& a, const HeadraceAttention& attend, const Weights<TERMS>& w,
                  const BiasTables& tables, Item item, UserScratch& s) {
    const int64_t first = first_token(a, item), row = item.first, cached = item.cached;
    over_tokens(item, [&](int64_t t, int64_t count, bool silent) {
        project_block<T, TERMS>(a, w, first + t, count, silent,
                                {nullptr, s.normed, nullptr, w.in_weight, w.in_bias, w.m_pad}, s.z + t * w.c_pad,
                                nullptr);
    });
    const HeadraceAttention local = on_scratch(attend, w, s, item);
    for (item.head = 0; item.head < attend.num_heads; ++item.head) {
        Ahead nothing;  // everything is in the cache
        forward_item<float, TERMS>(local, item, tables, s.attention, nothing);
    }
    T* attended = static_cast<T*>(const_cast<void*>(a.attended)) + row * w.value;
    for (int64_t t = 0; t < item.queries; t += BLOCK) {
        const int64_t count = min64(BLOCK, item.queries - t);
        for (int64_t r = t; r < t + count; ++r)
            for (int64_t c = 0; c < w.value; c += W)
                store_some(attended + r * w.value + c, load(s.attended + r * w.v_pad + c), w.value - c);
        output_block<T, TERMS, float>(a, w, first + cached + t, row + t, count, s.attended + t * w.v_pad, w.v_pad,
                                      s.z + (cached + t) * w.c_pad, w.c_pad, s.normed, s.wide);
    }
}

// Positions of outputs: the first one's token and row of y in the batch, and its token and row among its user's.
struct Outputs {
    int64_t token, row, own_token, own_row, count;
};

// dy -> the attention's gradient and the U columns of dz; adds to the output weights' sums.
template <typename T, int TERMS>
void output_backward_block(const HeadraceLayer& a, const Weights<TERMS>& w, const Outputs& at, const UserScratch& s,
                           Sums& sums) {
    const int64_t count = at.count, own = at.own_token;
    const T* dy = static_cast<const T*>(a.dy) + at.row * w.model;
    for (int64_t r = 0; r < count; ++r)
        for (int64_t c = 0; c < w.model; c += W) {
            const vf d = drop(a, at.token + r, c, load_some(dy + r * w.model + c, w.model - c));
            store(s.wide + r * w.m_pad + c, d);
            store(sums.bias + c, load(sums.bias + c) + d);
        }
    float* d_value = s.dattended + at.own_row * w.v_pad;
    multiply<TERMS>(s.wide, w.m_pad, 1, count, w.out_turned, w.v_pad, w.model, d_value, w.v_pad, w.value, false,
                    &w.out_turned_operand);
    const Normalized to = {s.normed, nullptr, s.inverse, nullptr, nullptr, w.v_pad};
    normalize(static_cast<const T*>(a.attended) + at.row * w.value, w.value, count, w.value, static_cast<float>(a.eps),
              to);
    for (int64_t r = 0; r < count; ++r)
        for (int64_t c = 0; c < w.value; c += W) {
            const vf u = load(s.z + (own + r) * w.c_pad + c), slope = load(s.slopes + (own + r) * w.c_pad + c);
            const vf n = load(s.normed + r * w.v_pad + c),
                     scaled = n * load(w.out_norm_weight + c) + load(w.out_norm_bias + c);
            const vf d = load(d_value + r * w.v_pad + c), dn = d * u;
            store(s.affine + r * w.v_pad + c, scaled * u);
            store_some(s.dz + (own + r) * w.c_pad + c, d * scaled * slope, w.value - c);
            store(sums.norm_weight + c, load(sums.norm_weight + c) + dn * n);
            store(sums.norm_bias + c, load(sums.norm_bias + c) + dn);
            store(d_value + r * w.v_pad + c, dn * load(w.out_norm_weight + c));
        }
    multiply<TERMS>(s.affine, 1, w.v_pad, w.value, s.wide, w.m_pad, count, sums.weight, w.m_pad, w.model, true,
                    nullptr);
    normalize_backward(s.normed, s.inverse, count, w.value, d_value, w.v_pad);
}

// Zeros for the gradients of a silent token's U and Q.
template <int TERMS>
void clear_others(const Weights<TERMS>& w, float* dz) {
    memset(dz, 0, sizeof(float) * w.value);
    memset(dz + 2 * w.value, 0, sizeof(float) * w.key);
}

// dz, dy -> dx; adds to the input weights' sums. `dy` is null for silent tokens, `own` the first one's place among its
// user's.
template <typename T, int TERMS>
void project_backward_block(const HeadraceLayer& a, const Weights<TERMS>& w, int64_t token, int64_t count, const T* dy,
                            const UserScratch& s, int64_t own, Sums& sums) {
    float* dz = s.dz + own * w.c_pad;
    const float *normed = s.in_normed + own * w.m_pad, *affine = s.in_affine + own * w.m_pad;
    const Columns columns = columns_of(w, dy == nullptr);
    if (columns.num_parts == 1)
        for (int64_t r = 0; r < count; ++r) {
            if (dy == nullptr) clear_others(w, dz + r * w.c_pad);
            for (int64_t c = w.columns; c < round_up(w.columns, W); ++c) dz[r * w.c_pad + c] = 0.0f;
        }
    for (int p = 0; p < columns.num_parts; ++p) {
        const int64_t from = columns.part[p].from, num = columns.part[p].count;
        for (int64_t c = from; c < from + num; c += W) {
            vf total = load(sums.bias + c);
            for (int64_t r = 0; r < count; ++r) total += load(dz + r * w.c_pad + c);
            store(sums.bias + c, total);
        }
        const Operand turned = along(w.uvqk_turned_operand, from);
        multiply<TERMS>(dz + from, w.c_pad, 1, count, w.uvqk_turned + from * w.m_pad, w.m_pad, num, s.wide, w.m_pad,
                        w.model, p > 0, &turned);
        multiply<TERMS>(affine, 1, w.m_pad, w.model, dz + from, w.c_pad, count, sums.weight + from, w.c_pad, num, true,
                        nullptr);
    }
    for (int64_t r = 0; r < count; ++r)
        for (int64_t c = 0; c < w.model; c += W) {
            const vf dn = load(s.wide + r * w.m_pad + c);
            store(sums.norm_weight + c, load(sums.norm_weight + c) + dn * load(normed + r * w.m_pad + c));
            store(sums.norm_bias + c, load(sums.norm_bias + c) + dn);
            store(s.wide + r * w.m_pad + c, dn * load(w.in_weight + c));
        }
    normalize_backward(normed, s.in_inverse + own, count, w.model, s.wide, w.m_pad);
    T* dx = static_cast<T*>(a.dx) + token * w.model;
    for (int64_t r = 0; r < count; ++r)
        for (int64_t c = 0; c < w.model; c += W) {
            vf d = load(s.wide + r * w.m_pad + c);
            if (dy) d += load_some(dy + r * w.model + c, w.model - c);
            store_some(dx + r * w.model + c, d, w.model - c);
        }
}

template <typename T, int TERMS>
void backward_user(const HeadraceLayer& a, const HeadraceAttention& attend, const Weights<TERMS>& w,
                   const BiasTables& tables, Item item, UserScratch& s, BiasGrads& pairs, Sums& in_sums,
                   Sums& out_sums) {
    const int64_t first = first_token(a, item), row = item.first, cached = item.cached;
    over_tokens(item, [&](int64_t t, int64_t count, bool silent) {
        const Normalized to = {
            s.in_normed + t * w.m_pad, s.in_affine + t * w.m_pad, s.in_inverse + t, w.in_weight, w.in_bias, w.m_pad};
        project_block<T, TERMS>(a, w, first + t, count, silent, to, s.z + t * w.c_pad, s.slopes + t * w.c_pad);
        if (!silent)
            output_backward_block<T, TERMS>(a, w, {first + t, row + t - cached, t, t - cached, count}, s, out_sums);
    });
    const HeadraceAttention local = on_scratch(attend, w, s, item);
    const auto slopes_of = [&](const HeadraceTensor& x) {
        return HeadraceTensor{s.slopes + (static_cast<float*>(x.data) - s.z), x.row, x.head};
    };
    const Through through = {slopes_of(local.q), slopes_of(local.k), slopes_of(local.v)};
    for (item.head = 0; item.head < attend.num_heads; ++item.head) {
        Ahead nothing;
        backward_item<float, TERMS>(local, item, tables, s.attention, pairs, &through, nothing);
    }
    const T* dy = static_cast<const T*>(a.dy) + row * w.model;
    over_tokens(item, [&](int64_t t, int64_t count, bool silent) {
        project_backward_block<T, TERMS>(a, w, first + t, count, silent ? nullptr : dy + (t - cached) * w.model, s, t,
                                         in_sums);
    });
}

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

#if !defined(HEADRACE_LEVEL_AMX)
// ---- the two halves alone, for cached inference: blocks of tokens, no gradients ----

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

#endif

HEADRACE_END

HEADRACE_LEVEL_API(layer_forward)(const HeadraceLayer* a, const HeadraceAttention* attend) {
    using namespace headrace::HEADRACE_LEVEL;
    return a->is_bf16 ? layer_forward<bf16, 1>(*a, *attend) : layer_forward<float, 2>(*a, *attend);
}

HEADRACE_LEVEL_API(layer_backward)(const HeadraceLayer* a, const HeadraceAttention* attend) {
    using namespace headrace::HEADRACE_LEVEL;
    return a->is_bf16 ? layer_backward<bf16, 1>(*a, *attend) : layer_backward<float, 2>(*a, *attend);
}

#if !defined(HEADRACE_LEVEL_AMX)
HEADRACE_LEVEL_API(layer_project)(const HeadraceLayer* a) {
    using namespace headrace::HEADRACE_LEVEL;
    return a->is_bf16 ? project<bf16>(*a) : project<float>(*a);
}

HEADRACE_LEVEL_API(layer_output)(const HeadraceLayer* a) {
    using namespace headrace::HEADRACE_LEVEL;
    return a->is_bf16 ? output<bf16>(*a) : output<float>(*a);
}
#endif
