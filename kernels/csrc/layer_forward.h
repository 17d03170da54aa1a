// The forward pass of the HSTU layer, a block of tokens or a user at a time.
#pragma once

#include "layer_user.h"

HEADRACE_BEGIN

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

// A user's rows of keys or values, for a cache.
template <typename T>
void keep_rows(const float* z, int64_t stride, int64_t count, int64_t width, void* to) {
    for (int64_t t = 0; t < count; ++t)
        for (int64_t c = 0; c < width; c += W)
            store_some(static_cast<T*>(to) + t * width + c, load(z + t * stride + c), width - c);
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
    if (a.k_out) {
        keep_rows<T>(s.z + w.value, w.c_pad, item.keys, w.value, static_cast<T*>(a.v_out) + first * w.value);
        keep_rows<T>(s.z + 2 * w.value + w.key, w.c_pad, item.keys, w.key, static_cast<T*>(a.k_out) + first * w.key);
    }
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

HEADRACE_END
