// Matrix products of floats on AMX tiles, each operand as a sum of TERMS bfloat16: 1 for inputs that are bfloat16
// themselves, 2 (16 bits, three products: high by high, high by low, low by high) where float32 is promised.
//
// A tile product is C[16, 16] += A[16, 32] B[32, 16]; both operands lie as whole tiles of 16 rows of 16 words, the tiles of
// the second term `apart` words after those of the first. A word holds the elements k and k + 1 of the sum, in an order that
// is free as long as both sides keep it; sums over columns pair column j with j + 16, so that packing needs no shuffle.
#pragma once

#include <immintrin.h>

#include "tiles.h"

HEADRACE_BEGIN

typedef uint32_t word;         // two bfloat16
constexpr int64_t TILE = 256;  // words or floats of a tile
constexpr int64_t DEPTH = 32;  // of a tile product

struct TileRegisters {  // the thread's: all 16 rows of 64 bytes
    TileRegisters() {
        alignas(64) uint8_t config[64] = {};
        config[0] = 1;
        for (int t = 0; t < 8; ++t) {
            config[16 + 2 * t] = 64;
            config[48 + t] = 16;
        }
        _tile_loadconfig(config);
    }
    ~TileRegisters() { _tile_release(); }
};

HEADRACE_INLINE void store(word* p, vu v) { _mm512_store_si512(p, (__m512i)v); }

constexpr uint32_t HIGH = 0xffff0000u;

// The first term in the high halves, rounded to nearest; what lies below it is to be cut off.
HEADRACE_INLINE vu high_term(vf x) { return (vu)x + 0x8000u; }
// The rest, whose high halves are the second term. A NaN stays one here, whatever the first term made of it.
HEADRACE_INLINE vu low_term(vf x, vu high) { return (vu)(x - (vf)(high & HIGH)); }
HEADRACE_INLINE vu words(vu even, vu odd) { return (even >> 16) | (odd & HIGH); }

template <int TERMS>
HEADRACE_INLINE void store_words(word* to, int64_t apart, vf even, vf odd) {
    const vu e = high_term(even), o = high_term(odd);
    store(to, words(e, o));
    if constexpr (TERMS == 2) store(to + apart, words(low_term(even, e), low_term(odd, o)));
}

// Left operand of a sum over columns: rows [0, 16 n) of x in tiles (row / 16, column / 32).
template <int TERMS>
inline void pack_rows(const float* x, int64_t num_rows, int64_t stride, word* to, int64_t apart) {
    for (int64_t r = 0; r < num_rows; ++r)
        for (int64_t d = 0; d < stride; d += DEPTH)
            store_words<TERMS>(to + (r / 16 * (stride / DEPTH) + d / DEPTH) * TILE + r % 16 * 16, apart, load(x + r * stride + d),
                               load(x + r * stride + d + 16));
}

HEADRACE_INLINE void transpose(const word* from, int64_t from_stride, word* to) {
    __m512 a[16], b[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) a[r] = _mm512_loadu_ps((const float*)(from + r * from_stride));
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += 2) {
        b[r] = _mm512_unpacklo_ps(a[r], a[r + 1]);
        b[r + 1] = _mm512_unpackhi_ps(a[r], a[r + 1]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 16; r += 4) {
        a[r] = _mm512_shuffle_ps(b[r], b[r + 2], 0x44);
        a[r + 1] = _mm512_shuffle_ps(b[r], b[r + 2], 0xee);
        a[r + 2] = _mm512_shuffle_ps(b[r + 1], b[r + 3], 0x44);
        a[r + 3] = _mm512_shuffle_ps(b[r + 1], b[r + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
        b[r] = _mm512_shuffle_f32x4(a[r], a[r + 4], 0x88);
        b[r + 4] = _mm512_shuffle_f32x4(a[r], a[r + 4], 0xdd);
        b[r + 8] = _mm512_shuffle_f32x4(a[r + 8], a[r + 12], 0x88);
        b[r + 12] = _mm512_shuffle_f32x4(a[r + 8], a[r + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
        _mm512_store_ps((float*)(to + r * 16), _mm512_shuffle_f32x4(b[r], b[r + 8], 0x88));
        _mm512_store_ps((float*)(to + (r + 8) * 16), _mm512_shuffle_f32x4(b[r], b[r + 8], 0xdd));
    }
}

// Right operand of x's own rows, transposed, in a sum over columns: tiles (row / 16, column / 32), turned.
template <int TERMS>
inline void pack_turned(const float* x, int64_t num_rows, int64_t stride, word* to, int64_t apart) {
    alignas(64) word part[TERMS * TILE];
    for (int64_t r = 0; r < num_rows; r += 16)
        for (int64_t d = 0; d < stride; d += DEPTH) {
            for (int64_t i = 0; i < 16; ++i) {
                const float* at = x + (r + i) * stride + d;
                store_words<TERMS>(part + i * 16, TILE, load(at), load(at + 16));
            }
            word* tile = to + (r / 16 * (stride / DEPTH) + d / DEPTH) * TILE;
            for (int t = 0; t < TERMS; ++t) transpose(part + t * TILE, 16, tile + t * apart);
        }
}

// Right operand of a sum over rows: tiles (column / 16, row / 32), `steps` of them for all rows; row j pairs with j + 16.
template <int TERMS>
inline void pack_sum_of_rows(const float* x, int64_t num_rows, int64_t stride, int64_t steps, word* to, int64_t apart) {
    for (int64_t r = 0; r < num_rows; r += DEPTH)
        for (int64_t d = 0; d < stride; d += 16)
            for (int64_t i = 0; i < 16; ++i)
                store_words<TERMS>(to + (d / 16 * steps + r / DEPTH) * TILE + i * 16, apart, load(x + (r + i) * stride + d),
                                   load(x + (r + i + 16) * stride + d));
}

// Left operand of x transposed, in a sum over its rows: tiles (column / 16, row / 32); row 2j pairs with 2j + 1.
template <int TERMS>
inline void pack_across(const float* x, int64_t num_rows, int64_t stride, word* to, int64_t apart) {
    alignas(64) word part[TERMS * TILE];
    for (int64_t r = 0; r < num_rows; r += DEPTH)
        for (int64_t d = 0; d < stride; d += 16) {
            for (int64_t i = 0; i < 16; ++i) {
                const float* at = x + (r + 2 * i) * stride + d;
                store_words<TERMS>(part + i * 16, TILE, load(at), load(at + stride));
            }
            word* tile = to + (d / 16 * (num_rows / DEPTH) + r / DEPTH) * TILE;
            for (int t = 0; t < TERMS; ++t) transpose(part + t * TILE, 16, tile + t * apart);
        }
}

// The compiler does not know that a tile's load reads memory.
HEADRACE_INLINE void finish_stores() { __asm__ volatile("" ::: "memory"); }

struct Operand {
    const word* tiles;  // of the first term
    int64_t apart;
};

// Four tiles of C, two by two, += the product along `steps` tiles; a and b at the first, the second `steps` tiles on.
template <int TERMS>
HEADRACE_INLINE void multiply_tiles(const word* a, int64_t a_apart, const word* b, int64_t b_apart, int64_t steps) {
    const int64_t second = steps * TILE;
    for (int64_t s = 0; s < steps; ++s, a += TILE, b += TILE) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + second, 64);
        _tile_loadd(5, a + second, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        if constexpr (TERMS == 2) {
            _tile_loadd(6, b + b_apart, 64);
            _tile_loadd(7, b + b_apart + second, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            _tile_loadd(4, a + a_apart, 64);
            _tile_loadd(5, a + a_apart + second, 64);
            _tile_loadd(6, b, 64);
            _tile_loadd(7, b + second, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
}

// C (16 m, 16 n) = A B, row-major; m and n even. `steps`: tiles along the sum.
template <int TERMS>
inline void multiply_rows(int64_t m, int64_t n, int64_t steps, Operand a, Operand b, float* c, int64_t ldc) {
    finish_stores();
    for (int64_t j = 0; j < n; j += 2)
        for (int64_t i = 0; i < m; i += 2) {
            float* at = c + i * 16 * ldc + j * 16;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            multiply_tiles<TERMS>(a.tiles + i * steps * TILE, a.apart, b.tiles + j * steps * TILE, b.apart, steps);
            _tile_stored(0, at, ldc * 4);
            _tile_stored(1, at + 16, ldc * 4);
            _tile_stored(2, at + 16 * ldc, ldc * 4);
            _tile_stored(3, at + 16 * ldc + 16, ldc * 4);
        }
}

// C += A B, C in whole tiles (row tile, column tile).
template <int TERMS>
inline void add_product(int64_t m, int64_t n, int64_t steps, Operand a, Operand b, float* c) {
    finish_stores();
    for (int64_t j = 0; j < n; j += 2)
        for (int64_t i = 0; i < m; i += 2) {
            float *first = c + (i * n + j) * TILE, *second = first + n * TILE;
            _tile_loadd(0, first, 64);
            _tile_loadd(1, first + TILE, 64);
            _tile_loadd(2, second, 64);
            _tile_loadd(3, second + TILE, 64);
            multiply_tiles<TERMS>(a.tiles + i * steps * TILE, a.apart, b.tiles + j * steps * TILE, b.apart, steps);
            _tile_stored(0, first, 64);
            _tile_stored(1, first + TILE, 64);
            _tile_stored(2, second, 64);
            _tile_stored(3, second + TILE, 64);
        }
}

HEADRACE_END
