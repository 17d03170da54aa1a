// The backward pass of the HSTU layer. It first recomputes what the forward pass did not save.
#pragma once

#include "layer_forward.h"

HEADRACE_BEGIN

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

HEADRACE_END
