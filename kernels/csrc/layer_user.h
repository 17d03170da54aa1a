// What the HSTU layer keeps for one user at a time: weights packed for products, and scratch memory.
#pragma once

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

// Columns of U, V, Q, K to compute: all, or for silent tokens only those of V and K.
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

HEADRACE_END
