// Rows of a user's tokens in a jagged tensor, and gradients written back to them.
#pragma once

#include "attention.h"
#include "pairs.h"
#include "simd.h"

HEADRACE_BEGIN

template <typename T>
const T* rows_of(const HeadraceTensor& tensor, int64_t row, int64_t head) {
    return static_cast<const T*>(tensor.data) + row * tensor.row + head * tensor.head;
}

template <typename T>
void unpack(const HeadraceTensor& tensor, const Item& item, int64_t from, int64_t count, int64_t width, const float* rows, int64_t pad, float scale) {
    T* to = static_cast<T*>(tensor.data) + (item.first + from) * tensor.row + item.head * tensor.head;
    const int64_t stride = tensor.row;
    for (int64_t i = 0; i < count; ++i)
        for (int64_t d = 0; d < width; d += W) store_some(to + i * stride + d, load(rows + i * pad + d) * scale, width - d);
}

// Queries [first, first + count) of a gradient, divided by norm_len; through SiLU where the inputs were pre-activations (`through`).
template <typename T>
void unpack_grad(const HeadraceAttention& a, const HeadraceTensor& tensor, const HeadraceTensor& through, const Item& item, int64_t first,
                 int64_t count, int64_t width, const float* rows, int64_t pad) {
    const float scale = static_cast<float>(a.scale);
    if (!a.preactivated) return unpack<T>(tensor, item, first, count, width, rows, pad, scale);
    T* to = static_cast<T*>(tensor.data) + (item.first + first) * tensor.row + item.head * tensor.head;
    const T* from = rows_of<T>(through, item.first + first, item.head);
    const int64_t stride = tensor.row, from_stride = through.row;
    for (int64_t i = 0; i < count; ++i)
        for (int64_t d = 0; d < width; d += W) {
            const vf x = load_some(from + i * from_stride + d, width - d), gate = sigmoid(x), activated = x * gate;
            store_some(to + i * stride + d, load(rows + i * pad + d) * scale * (gate + activated - activated * gate), width - d);
        }
}

HEADRACE_END
