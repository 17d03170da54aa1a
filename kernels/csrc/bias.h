// The biases added to a score, for the distance between two tokens in position and in time.
#pragma once

#include "plan.h"

HEADRACE_BEGIN

// Bias tables in the form the inner loop wants: positions reversed and extended (one load for W neighbours), times
// padded.
struct BiasTables {
    float *pos = nullptr, *time = nullptr;
    int64_t pos_size = 0, time_size = 0, pos_heads = 1, time_heads = 1, num_buckets = 0, last = 0, bucket_bytes = 1;

    bool make(const HeadraceAttention& a, const Plan& plan) {
        bucket_bytes = a.bucket_bytes;
        num_buckets = a.num_buckets;
        last = max64(plan.most_keys, 1) - 1;
        if (a.pos_bias) {
            pos_heads = a.pos_heads;
            pos_size = round_up(2 * plan.most_keys + 128, 16);
            pos = static_cast<float*>(malloc(sizeof(float) * pos_size * pos_heads));
            if (!pos) return false;
            for (int64_t g = 0; g < pos_heads; ++g)
                for (int64_t c = 0; c < pos_size; ++c)
                    pos[g * pos_size + c] = a.pos_bias[g * a.num_pos + min64(max64(last - c, 0), a.num_pos - 1)];
        }
        if (a.time_bias) {
            time_heads = a.time_heads;
            time_size = round_up(a.num_buckets, 16) + 144;  // windows may extend past the end
            time = static_cast<float*>(calloc(static_cast<size_t>(time_size * time_heads), sizeof(float)));
            if (!time) return false;
            for (int64_t g = 0; g < time_heads; ++g)
                memcpy(time + g * time_size, a.time_bias + g * a.num_buckets, sizeof(float) * a.num_buckets);
        }
        return true;
    }
    // pos_row(...)[j] is the bias of column j of the tile.
    const float* pos_row(const Item& item, int64_t query, int64_t j0) const {
        return pos + (pos_heads > 1 ? item.head : 0) * pos_size + last - item.position(query) + j0;
    }
    const float* time_row(const Item& item) const { return time + (time_heads > 1 ? item.head : 0) * time_size; }
    void release() {
        free(pos);
        free(time);
    }
};

// ---- time bias of W neighbours: a table in registers if the tile's buckets allow it, else loads one by one ----

enum TimeMode { NO_TIME, TABLE_32, TABLE_64, TABLE_128, ANY };

template <typename T>
struct TimeView {
    const T* row[MR];  // the group's rows that exist, at the tile's first column
    int32_t low;
    TimeMode mode;
};

template <typename T>
inline TimeView<T> look(const Item& item, const Group& group, int64_t num_buckets) {
    TimeView<T> view;
    for (int r = 0; r < group.valid; ++r) view.row[r] = item.buckets_of<T>(group.query + r) + group.j0;
    view.low = 0;
    int32_t high = static_cast<int32_t>(num_buckets) - 1;
    if (item.monotone && group.valid) {  // sorted times: buckets rise down a column and fall along a row
        high = view.row[group.valid - 1][0];
        if (group.whole == group.width) view.low = view.row[0][group.width - 1];
    }
    const int32_t range = high - view.low + 1;
#if defined(__AVX512F__)
    view.mode = range <= 32 ? TABLE_32 : range <= 64 ? TABLE_64 : range <= 128 ? TABLE_128 : ANY;
#else
    (void)range;
    view.mode = ANY;
#endif
    return view;
}

// Prefetches the buckets of the next tile.
inline void prefetch_buckets(const Item& item, const BiasTables& tables, int64_t i0, int64_t j0, int64_t rows) {
    if (!tables.time || j0 >= item.keys || j0 > item.position(i0 + rows - 1)) return;
    for (int64_t r = i0; r < min64(i0 + rows, item.queries); ++r)
        __builtin_prefetch(static_cast<const char*>(item.buckets) +
                           (item.bucket_row[r] * item.bucket_stride + j0) * tables.bucket_bytes);
}

#if defined(__AVX512F__)
HEADRACE_INLINE __m512i widen_buckets(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
HEADRACE_INLINE __m512i widen_buckets(const uint16_t* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
#endif

template <int MODE>
struct TimeTable {
#if defined(__AVX512F__)
    __m512 part[MODE == TABLE_128 ? 8 : MODE == TABLE_64 ? 4 : 2];
    __m512i low;
#endif
    const float* all;
    int32_t num_buckets;

    HEADRACE_INLINE TimeTable(const float* table, int32_t from, int64_t count)
        : all(table), num_buckets(static_cast<int32_t>(count)) {
#if defined(__AVX512F__)
        low = _mm512_set1_epi32(from);
        if (MODE != ANY && MODE != NO_TIME)
            for (int i = 0; i < (MODE == TABLE_128 ? 8 : MODE == TABLE_64 ? 4 : 2); ++i)
                part[i] = _mm512_loadu_ps(table + from + 16 * i);
#else
        (void)from;
#endif
    }

    template <typename T>
    HEADRACE_INLINE vf at(const T* buckets) const {
#if defined(__AVX512F__)
        if (MODE != ANY) {
            const __m512i index = _mm512_sub_epi32(widen_buckets(buckets), low);
            const __m512 first = _mm512_permutex2var_ps(part[0], index, part[1]);
            if (MODE == TABLE_32) return (vf)first;
            const __mmask16 upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
            if constexpr (MODE == TABLE_64)
                return (vf)_mm512_mask_blend_ps(upper, first, _mm512_permutex2var_ps(part[2], index, part[3]));
            if constexpr (MODE == TABLE_128) {
                const __m512 low64 =
                    _mm512_mask_blend_ps(upper, first, _mm512_permutex2var_ps(part[2], index, part[3]));
                const __m512 third = _mm512_permutex2var_ps(part[4], index, part[5]);
                const __m512 fourth = _mm512_permutex2var_ps(part[6], index, part[7]);
                const __mmask16 top = _mm512_test_epi32_mask(index, _mm512_set1_epi32(64));
                return (vf)_mm512_mask_blend_ps(top, low64, _mm512_mask_blend_ps(upper, third, fourth));
            }
        }
        const __m512i index = _mm512_min_epi32(widen_buckets(buckets), _mm512_set1_epi32(num_buckets - 1));
        return (vf)_mm512_i32gather_ps(index, all, 4);
#else
        vf x;
        for (int l = 0; l < W; ++l)
            x[l] = all[buckets[l] < num_buckets ? buckets[l] : 0];  // columns never seen hold arbitrary values
        return x;
#endif
    }
};

// ---- both biases of a group ----

// Pointers to a group's biases, by row. Rows that do not exist read the last one that does.
template <bool POS, int MODE, typename B>
struct Biases {
    const Item& item;
    const BiasTables& tables;
    const Group& group;
    const TimeView<B>& view;
    TimeTable<MODE> table;

    static constexpr bool HAS_POS = POS, HAS_TIME = MODE != NO_TIME;

    HEADRACE_INLINE Biases(const Item& i, const BiasTables& t, const Group& g, const TimeView<B>& v)
        : item(i),
          tables(t),
          group(g),
          view(v),
          table(MODE != NO_TIME ? t.time_row(i) : nullptr, v.low, t.num_buckets) {}

    HEADRACE_INLINE int64_t row(int r) const { return r < group.valid ? r : group.valid - 1; }
    HEADRACE_INLINE const float* pos(int r) const {
        return POS ? tables.pos_row(item, group.query + row(r), group.j0) : nullptr;
    }
    HEADRACE_INLINE const B* buckets(int r) const { return MODE != NO_TIME ? view.row[row(r)] : nullptr; }
    HEADRACE_INLINE vf added(vf s, const float* pos_row, const B* bucket_row, int64_t column) const {
        if (POS) s += load(pos_row + column);
        if (MODE != NO_TIME) s += table.at(bucket_row + column);
        return s;
    }
};

// Calls `body` with the group's biases and whether anything is masked, all known at compile time.
template <bool POS, typename B, typename Body>
HEADRACE_INLINE void with_time(const Item& item, const BiasTables& tables, const Group& group, const Body& body) {
    const TimeView<B> view = look<B>(item, group, tables.num_buckets);
    switch (view.mode) {
#if defined(__AVX512F__)
        case TABLE_32: return body(Biases<POS, TABLE_32, B>(item, tables, group, view));
        case TABLE_64: return body(Biases<POS, TABLE_64, B>(item, tables, group, view));
        case TABLE_128: return body(Biases<POS, TABLE_128, B>(item, tables, group, view));
#endif
        default: return body(Biases<POS, ANY, B>(item, tables, group, view));
    }
}

template <typename Body>
HEADRACE_INLINE void with_biases(const Item& item, const BiasTables& tables, const Group& group, const Body& body) {
    if (!tables.time) {
        const TimeView<uint8_t> none{{}, 0, NO_TIME};
        if (tables.pos) return body(Biases<true, NO_TIME, uint8_t>(item, tables, group, none));
        return body(Biases<false, NO_TIME, uint8_t>(item, tables, group, none));
    }
    if (tables.bucket_bytes == 1) {
        if (tables.pos) return with_time<true, uint8_t>(item, tables, group, body);
        return with_time<false, uint8_t>(item, tables, group, body);
    }
    if (tables.pos) return with_time<true, uint16_t>(item, tables, group, body);
    return with_time<false, uint16_t>(item, tables, group, body);
}

HEADRACE_END
