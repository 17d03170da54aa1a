// Matrix products of floats on AMX tiles, each operand as a sum of TERMS bfloat16: 1 for inputs that are bfloat16
// themselves, 2 (16 bits; three products: high by high, high by low, low by high) for float32.
//
// A tile product is C[16, 16] += A[16, 32] B[32, 16]; both operands are stored as whole tiles of 16 rows of 16 words. A
// word holds two terms of the sum, in an order that is arbitrary as long as both sides have the same: sums over columns
// pair column j with j + 16, sums over rows follow their left operand.
//
// Packing reads a source once, however many forms are made of it: `row_words<TERMS>(to, apart, r, d)` stores the 16
// words of row r's columns d .. d + 31.
#pragma once

#include <immintrin.h>

#include "lanes.h"

HEADRACE_BEGIN

typedef uint32_t word;         // two bfloat16
constexpr int64_t TILE = 256;  // words or floats of a tile
constexpr int64_t DEPTH = 32;  // of a tile product

struct TileRegisters {  // configures the thread's tiles: 16 rows of 64 bytes
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

HEADRACE_INLINE vu load_words(const word* p) { return (vu)_mm512_load_si512(p); }
HEADRACE_INLINE void store(word* p, vu v) { _mm512_store_si512(p, (__m512i)v); }

// From 32 consecutive bfloat16, the order that pairs column j with j + 16.
HEADRACE_INLINE __m512i apart_words() {
    const vu low = (vu)iota();
    return (__m512i)(low | (low + 16u) << 16);
}

constexpr uint32_t HIGH = 0xffff0000u;

// A term in the high halves, rounded to nearest; the low halves are to be cut off.
HEADRACE_INLINE vu term(vf x) { return (vu)x + 0x8000u; }
// What the first term leaves for the second. A NaN stays a NaN here, whatever the first term made of it.
HEADRACE_INLINE vf rest(vf x, vu high) { return x - (vf)(high & HIGH); }
// The low halves of one and the high halves of the other.
HEADRACE_INLINE vu halves(vu low, vu high) {
    return (vu)_mm512_mask_blend_epi16(0xaaaaaaaau, (__m512i)low, (__m512i)high);
}
HEADRACE_INLINE vu words(vu even, vu odd) { return halves(even >> 16, odd); }

template <int TERMS>
HEADRACE_INLINE void store_words(word* to, int64_t apart, vf even, vf odd) {
    const vu e = term(even), o = term(odd);
    store(to, words(e, o));
    if constexpr (TERMS == 2) store(to + apart, words(term(rest(even, e)), term(rest(odd, o))));
}

// An operand's tiles: along the sum one after another; the next 16 rows (left) or columns (right) `next` words on, the
// second term `apart` words on.
struct Operand {
    word* tiles;
    int64_t next, apart;

    Operand at(int64_t which, int64_t step) const { return {tiles + which * next + step * TILE, next, apart}; }
};

// 16 rows of 16 words, transposed: words are moved as floats, but not computed with.
inline void transpose(const word* from, word* to) {
    transpose_block(reinterpret_cast<const float*>(from), 16, reinterpret_cast<float*>(to), 16);
}

struct PaddedRows {  // floats, rows of whole tiles
    const float* x;
    int64_t stride;

    template <int TERMS>
    HEADRACE_INLINE void row_words(word* to, int64_t apart, int64_t r, int64_t d) const {
        const float* at = x + r * stride + d;
        store_words<TERMS>(to, apart, load(at), load(at + 16));
    }
};

// 32 rows of 32 columns from (r, d) on, in words: 16 rows at `first`, 16 at `second`, the next term's `apart` words on.
struct Words {
    word *first, *second;
    int64_t apart, r, d;
};

// ---- forms of an operand: each takes one term's words, wherever the rows were read into ----

// Left operand of a sum over columns: tiles (row / 16, column / 32).
struct LeftRows {
    Operand to;
    Words room(int64_t r, int64_t d) const {
        return {to.at(r / 16, d / DEPTH).tiles, to.at(r / 16 + 1, d / DEPTH).tiles, to.apart, r, d};
    }
};

// Right operand of the rows, transposed, in a sum over columns: tiles (row / 16, column / 32), transposed.
struct RightTurned {
    Operand to;
    void take(const Words& x, int64_t term) const {
        transpose(x.first + term * x.apart, to.at(x.r / 16, x.d / DEPTH).tiles + term * to.apart);
        transpose(x.second + term * x.apart, to.at(x.r / 16 + 1, x.d / DEPTH).tiles + term * to.apart);
    }
};

// Row j pairs with j + 16 if the other operand's columns do (APART), row 2j with 2j + 1 if its rows do.
enum Pairing { APART, NEIGHBOURS };
HEADRACE_INLINE void pair_rows(const word* one, const word* other, word* left_half, word* right_half) {
    const vu a = load_words(one), b = load_words(other);
    store(left_half, halves(a, b << 16));
    store(right_half, halves(a >> 16, b));
}
template <Pairing PAIRING>
HEADRACE_INLINE void pair_rows(const Words& x, int64_t term, word* left_half, word* right_half) {
    const word *first = x.first + term * x.apart, *second = x.second + term * x.apart;
    for (int64_t i = 0; i < 16; ++i)
        if (PAIRING == APART) pair_rows(first + i * 16, second + i * 16, left_half + i * 16, right_half + i * 16);
        else if (i < 8)
            pair_rows(first + 2 * i * 16, first + (2 * i + 1) * 16, left_half + i * 16, right_half + i * 16);
        else pair_rows(second + (2 * i - 16) * 16, second + (2 * i - 15) * 16, left_half + i * 16, right_half + i * 16);
}

// Right operand of a sum over rows: tiles (column / 16, row / 32).
template <Pairing PAIRING>
struct RightRows {
    Operand to;
    void take(const Words& x, int64_t term) const {
        word* half = to.at(x.d / 16, x.r / DEPTH).tiles + term * to.apart;
        pair_rows<PAIRING>(x, term, half, half + to.next);
    }
};

// Left operand of the columns, in a sum over rows: tiles (column / 16, row / 32); row 2j pairs with 2j + 1.
struct LeftTurned {
    Operand to;
    void take(const Words& x, int64_t term) const {
        alignas(64) word half[2 * TILE];
        pair_rows<NEIGHBOURS>(x, term, half, half + TILE);
        for (int64_t i = 0; i < 2; ++i)
            transpose(half + i * TILE, to.at(x.d / 16 + i, x.r / DEPTH).tiles + term * to.apart);
    }
};

template <int TERMS, typename Source, typename Room, typename... Forms>
inline void pack_by_way_of(const Source& x, int64_t num_rows, int64_t num_columns, const Room& room,
                           const Forms&... forms) {
    for (int64_t r = 0; r < num_rows; r += DEPTH)
        for (int64_t d = 0; d < num_columns; d += DEPTH) {
            const Words words = room(r, d);
            for (int64_t i = 0; i < 16; ++i) x.template row_words<TERMS>(words.first + i * 16, words.apart, r + i, d);
            for (int64_t i = 0; i < 16; ++i)
                x.template row_words<TERMS>(words.second + i * 16, words.apart, r + 16 + i, d);
            for (int64_t term = 0; term < TERMS; ++term) (forms.take(words, term), ...);
        }
}

// A source in one or several forms; num_rows and num_columns are those of the forms, multiples of 32: the source pads
// itself.
template <int TERMS, typename Source, typename... Forms>
inline void pack(const Source& x, int64_t num_rows, int64_t num_columns, const Forms&... forms) {
    alignas(64) word words[TERMS * 2 * TILE];
    const auto room = [&](int64_t r, int64_t d) { return Words{words, words + TILE, 2 * TILE, r, d}; };
    pack_by_way_of<TERMS>(x, num_rows, num_columns, room, forms...);
}
template <int TERMS, typename Source, typename... Forms>
inline void pack(const Source& x, int64_t num_rows, int64_t num_columns, const LeftRows& rows, const Forms&... others) {
    const auto room = [&](int64_t r, int64_t d) { return rows.room(r, d); };
    pack_by_way_of<TERMS>(x, num_rows, num_columns, room, others...);
}

// The compiler does not know that loading a tile reads memory.
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

// C (16 m, 16 n) = or += A B, `steps` tiles along the sum; m and n even. Rows within a tile of C are `ldc` floats
// apart, and tiles `row` and `column` floats.
template <int TERMS, bool ADD>
HEADRACE_INLINE void multiply_to(int64_t m, int64_t n, int64_t steps, const Operand& a, const Operand& b, float* c,
                                 int64_t ldc, int64_t row, int64_t column) {
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
inline void multiply_rows(int64_t m, int64_t n, int64_t steps, const Operand& a, const Operand& b, float* c,
                          int64_t ldc) {
    multiply_to<TERMS, ADD>(m, n, steps, a, b, c, ldc, 16 * ldc, 16);
}

// And with C in whole tiles (row tile, column tile).
template <int TERMS, bool ADD>
inline void multiply_whole(int64_t m, int64_t n, int64_t steps, const Operand& a, const Operand& b, float* c) {
    multiply_to<TERMS, ADD>(m, n, steps, a, b, c, 16, n * TILE, TILE);
}

HEADRACE_END
