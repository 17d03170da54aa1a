// Rows of a user's tokens in a jagged tensor, and gradients written back to them.
#pragma once

#include "plan.h"

HEADRACE_BEGIN

template <typename T>
const T* rows_of(const HeadraceTensor& tensor, int64_t row, int64_t head) {
    return static_cast<const T*>(tensor.data) + row * tensor.row + head * tensor.head;
}

template <typename T>
void unpack(const HeadraceTensor& tensor, const Item& item, int64_t from, int64_t count, int64_t width,
            const float* rows, int64_t pad, float scale) {
    T* to = static_cast<T*>(tensor.data) + (item.first + from) * tensor.row + item.head * tensor.head;
    const int64_t stride = tensor.row;
    for (int64_t i = 0; i < count; ++i)
        for (int64_t d = 0; d < width; d += W)
            store_some(to + i * stride + d, load(rows + i * pad + d) * scale, width - d);
}

// SiLU's slopes if q, k and v are activations, in the same shape (rows, heads, width): used by the layer.
struct Through {
    HeadraceTensor q, k, v;
};

// Queries [first, first + count) of a gradient, divided by norm_len, and multiplied by SiLU's slopes if there are any.
template <typename T>
void unpack_grad(const HeadraceAttention& a, const HeadraceTensor& tensor, const HeadraceTensor* slopes,
                 const Item& item, int64_t first, int64_t count, int64_t width, const float* rows, int64_t pad) {
    const float scale = static_cast<float>(a.scale);
    if (!slopes) return unpack<T>(tensor, item, first, count, width, rows, pad, scale);
    T* to = static_cast<T*>(tensor.data) + (item.first + first) * tensor.row + item.head * tensor.head;
    const float* slope = rows_of<float>(*slopes, item.first + first, item.head);
    for (int64_t i = 0; i < count; ++i)
        for (int64_t d = 0; d < width; d += W)
            store_some(to + i * tensor.row + d,
                       load(rows + i * pad + d) * scale * load_some(slope + i * slopes->row + d, width - d), width - d);
}

HEADRACE_END
