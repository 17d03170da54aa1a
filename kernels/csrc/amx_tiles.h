// Matrix products of floats on AMX tiles, each operand as a sum of TERMS bfloat16: 1 for inputs that are bfloat16
// themselves, 2 (16 bits, three products: high by high, high by low, low by high) where float32 is promised.
//
// A tile product is C[16, 16] += A[16, 32] B[32, 16]; both operands lie as whole tiles of 16 rows of 16 words. A word holds
// two neighbours of the sum, in an order that is free as long as both sides keep it: rows of floats pair column j with
// j + 16, so that packing needs no shuffle; rows of bfloat16 are taken as they lie.
//
// Packing reads a source: `row_words<TERMS>(to, apart, r, d)` stores the 16 words of row r's columns d .. d + 31, and
// `vector(r, d)` is 16 columns as floats.
#pragma once

#include <immintrin.h>

#include "lanes.h"

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

// A term in the high halves, rounded to nearest; what lies below it is to be cut off.
HEADRACE_INLINE vu term(vf x) { return (vu)x + 0x8000u; }
// What a first term leaves for the second. A NaN stays one here, whatever the first term made of it.
HEADRACE_INLINE vf rest(vf x, vu high) { return x - (vf)(high & HIGH); }
HEADRACE_INLINE vu words(vu even, vu odd) { return (even >> 16) | (odd & HIGH); }

template <int TERMS>
HEADRACE_INLINE void store_words(word* to, int64_t apart, vf even, vf odd) {
    const vu e = term(even), o = term(odd);
    store(to, words(e, o));
    if constexpr (TERMS == 2) store(to + apart, words(term(rest(even, e)), term(rest(odd, o))));
}

// An operand's tiles: along the sum one after another; the next 16 rows (left) or columns (right) `next` words on, the second
// term `apart` words on.
struct Operand {
    word* tiles;
    int64_t next, apart;

    Operand at(int64_t which, int64_t step) const { return {tiles + which * next + step * TILE, next, apart}; }
};

struct PaddedRows {  // floats, rows of whole tiles
    const float* x;
    int64_t stride;

    HEADRACE_INLINE vf vector(int64_t r, int64_t d) const { return load(x + r * stride + d); }
    template <int TERMS>
    HEADRACE_INLINE void row_words(word* to, int64_t apart, int64_t r, int64_t d) const {
        store_words<TERMS>(to, apart, vector(r, d), vector(r, d + 16));
    }
};

// Left operand of a sum over columns: tiles (row / 16, column / 32).
template <int TERMS, typename Source>
inline void pack_rows(const Source& x, int64_t num_rows, int64_t num_columns, const Operand& to) {
    for (int64_t r = 0; r < num_rows; ++r)
        for (int64_t d = 0; d < num_columns; d += DEPTH)
            x.template row_words<TERMS>(to.at(r / 16, d / DEPTH).tiles + r % 16 * 16, to.apart, r, d);
}

// 16 rows of 16 words, turned: words are moved as floats, not computed with.
inline void transpose(const word* from, word* to) { transpose_block(reinterpret_cast<const float*>(from), 16, reinterpret_cast<float*>(to), 16); }

// Right operand of x's own rows, transposed, in a sum over columns: tiles (row / 16, column / 32), turned.
template <int TERMS, typename Source>
inline void pack_turned(const Source& x, int64_t num_rows, int64_t num_columns, const Operand& to) {
    alignas(64) word part[TERMS * TILE];
    for (int64_t r = 0; r < num_rows; r += 16)
        for (int64_t d = 0; d < num_columns; d += DEPTH) {
            for (int64_t i = 0; i < 16; ++i) x.template row_words<TERMS>(part + i * 16, TILE, r + i, d);
            word* tile = to.at(r / 16, d / DEPTH).tiles;
            for (int t = 0; t < TERMS; ++t) transpose(part + t * TILE, tile + t * to.apart);
        }
}

// Right operand of a sum over rows: tiles (column / 16, row / 32). Row j pairs with j + 16 where the left operand's columns do
// (APART), row 2j with 2j + 1 where that is `pack_across`.
enum Pairing { APART, NEIGHBOURS };
template <int TERMS, Pairing PAIRING, typename Source>
inline void pack_sum_of_rows(const Source& x, int64_t num_rows, int64_t num_columns, const Operand& to) {
    for (int64_t r = 0; r < num_rows; r += DEPTH)
        for (int64_t d = 0; d < num_columns; d += 16) {
            word* tile = to.at(d / 16, r / DEPTH).tiles;
            for (int64_t i = 0; i < 16; ++i) {
                const int64_t first = r + (PAIRING == APART ? i : 2 * i), second = first + (PAIRING == APART ? 16 : 1);
                store_words<TERMS>(tile + i * 16, to.apart, x.vector(first, d), x.vector(second, d));
            }
        }
}

// Left operand of x transposed, in a sum over its rows: tiles (column / 16, row / 32); row 2j pairs with 2j + 1.
template <int TERMS, typename Source>
inline void pack_across(const Source& x, int64_t num_rows, int64_t num_columns, const Operand& to) {
    alignas(64) word part[TERMS * TILE];
    for (int64_t r = 0; r < num_rows; r += DEPTH)
        for (int64_t d = 0; d < num_columns; d += 16) {
            for (int64_t i = 0; i < 16; ++i) store_words<TERMS>(part + i * 16, TILE, x.vector(r + 2 * i, d), x.vector(r + 2 * i + 1, d));
            word* tile = to.at(d / 16, r / DEPTH).tiles;
            for (int t = 0; t < TERMS; ++t) transpose(part + t * TILE, tile + t * to.apart);
        }
}

// The compiler does not know that a tile's load reads memory.
HEADRACE_INLINE void finish_stores() { __asm__ volatile("" ::: "memory"); }

// Four tiles of C, two by two, += the product along `steps` tiles.
template <int TERMS>
HEADRACE_INLINE void multiply_tiles(const Operand& left, const Operand& right, int64_t steps) {
    const word *a = left.tiles, *b = right.tiles;
    for (int64_t s = 0; s < steps; ++s, a += TILE, b += TILE) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + right.next, 64);
        _tile_loadd(5, a + left.next, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        if constexpr (TERMS == 2) {
            _tile_loadd(6, b + right.apart, 64);
            _tile_loadd(7, b + right.apart + right.next, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            _tile_loadd(4, a + left.apart, 64);
            _tile_loadd(5, a + left.apart + left.next, 64);
            _tile_loadd(6, b, 64);
            _tile_loadd(7, b + right.next, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
}

// C (16 m, 16 n) = or += A B, `steps` tiles along the sum; m and n even. C's four tiles of a block lie `ldc` floats a row
// apart, and its blocks where `row` and `column` floats lead from one tile to the next.
template <int TERMS, bool ADD>
HEADRACE_INLINE void multiply_to(int64_t m, int64_t n, int64_t steps, const Operand& a, const Operand& b, float* c, int64_t ldc, int64_t row,
                                 int64_t column) {
    finish_stores();
    for (int64_t j = 0; j < n; j += 2)
        for (int64_t i = 0; i < m; i += 2) {
            float *first = c + i * row + j * column, *second = first + row;
            if constexpr (ADD) {
                _tile_loadd(0, first, ldc * 4);
                _tile_loadd(1, first + column, ldc * 4);
                _tile_loadd(2, second, ldc * 4);
                _tile_loadd(3, second + column, ldc * 4);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            multiply_tiles<TERMS>(a.at(i, 0), b.at(j, 0), steps);
            _tile_stored(0, first, ldc * 4);
            _tile_stored(1, first + column, ldc * 4);
            _tile_stored(2, second, ldc * 4);
            _tile_stored(3, second + column, ldc * 4);
        }
    finish_stores();
}

// The same with C row-major.
template <int TERMS, bool ADD>
inline void multiply_rows(int64_t m, int64_t n, int64_t steps, const Operand& a, const Operand& b, float* c, int64_t ldc) {
    multiply_to<TERMS, ADD>(m, n, steps, a, b, c, ldc, 16 * ldc, 16);
}

// And with C in whole tiles (row tile, column tile).
template <int TERMS, bool ADD>
inline void multiply_whole(int64_t m, int64_t n, int64_t steps, const Operand& a, const Operand& b, float* c) {
    multiply_to<TERMS, ADD>(m, n, steps, a, b, c, 16, n * TILE, TILE);
}

HEADRACE_END
