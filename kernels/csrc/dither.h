// Stochastic rounding to 16 bits: up with the probability that makes the rounded number right on average. The random
// bits are a function of a key, the row and the column (kernels/adagrad/dither.py is the definition).
#pragma once

#include "half.h"

// As laid out in kernels/adagrad/cpp.py. Row `place * stride + first` of the whole table is at `place` here.
struct Dither {
    int64_t key, stride, first;
};

HEADRACE_BEGIN

constexpr uint32_t COLUMN_STEP = 0x9e3779b9u;

// MurmurHash3's finaliser.
template <class U>
HEADRACE_INLINE U mixed(U x) {
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    return x ^ x >> 16;
}

HEADRACE_INLINE uint32_t row_key(const Dither& dither, uint64_t place) {
    const uint32_t row = (uint32_t)(place * dither.stride + dither.first);
    return mixed(mixed(row + (uint32_t)dither.key) + (uint32_t)((uint64_t)dither.key >> 32));
}

// Random bits of columns [first, first + LANES).
HEADRACE_INLINE vu random_bits(uint32_t row_key, int64_t first) {
    return mixed(((vu)iota() + (uint32_t)first) * COLUMN_STEP + row_key);
}

HEADRACE_INLINE vh dithered(vf v, vu random, bf16) {
    const vu rounded = ((vu)v + (random >> 16)) >> 16, quiet = ((vu)v >> 16) | 0x40u;
    return __builtin_convertvector(v == v ? rounded : quiet, vh);
}
HEADRACE_INLINE vh dithered(vf v, vu random, f16) {
    return cut_to_f16(v, [&](vu drop, vu) { return random >> (32u - drop); });
}

// Stores up to LANES numbers of a row, from column `first` on.
template <class T>
HEADRACE_INLINE void store_dithered(T* p, vf v, uint32_t row_key, int64_t first, int64_t count) {
    const vh h = dithered(v, random_bits(row_key, first), T{});
    if (count >= LANES) __builtin_memcpy(p, &h, sizeof h);
    else
        for (int i = 0; i < count; ++i) p[i].bits = h[i];
}

HEADRACE_END
