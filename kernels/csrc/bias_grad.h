// The biases' gradients, from tiles of slopes.
#pragma once

#include "bias.h"

HEADRACE_BEGIN

constexpr int64_t COPIES =
    16;  // of the position gradient: a row's sums start at a whole vector, and do not wait for the row before

struct BiasScratch {
    float* pos;  // (COPIES, pos_size)
    int64_t pos_size;
    void lay_out(Arena& arena, int64_t, int64_t cols, bool backward, const HeadraceAttention& a) {
        pos_size = round_up(2 * cols + 96, 16) + 16;
        pos = backward && a.pos_bias ? arena.get<float>(COPIES * pos_size) : nullptr;
    }
};

// Where an item's bias gradients go: the sums of its chunk and bias head.
struct BiasGrads {
    float* pos_sum;   // (pos_heads, num_pos) or null
    float* time_sum;  // (time_heads, num_buckets, W) or null
    int64_t num_pos, pos_heads, num_buckets, time_heads;
    float* time;  // this item's

    static int64_t span(const Item& item) { return item.keys + item.context + 2 * W; }
    void open(BiasScratch& scratch, const Item& item) {
        if (time_sum) time = time_sum + (time_heads > 1 ? item.head : 0) * num_buckets * W;
        if (!pos_sum) return;
        for (int64_t c = 0; c < COPIES; ++c)
            memset(scratch.pos + c * scratch.pos_size, 0, sizeof(float) * (span(item) + 64));
    }
    // Distance of table entry c: keys - 1 - c. A copy's entries are shifted by `shift`, so that every tile's are
    // aligned.
    static int64_t shift(const Item& item, int64_t query) { return (query + 1 - item.queries) & (COPIES - 1); }
    static float* row(const BiasScratch& scratch, const Item& item, int64_t query, int64_t j0) {
        return scratch.pos + query % COPIES * scratch.pos_size + shift(item, query) + item.keys - 1 -
               item.position(query) + j0;
    }
    void close(const BiasScratch& scratch, const Item& item) {
        if (!pos_sum) return;
        float* to = pos_sum + (pos_heads > 1 ? item.head : 0) * num_pos;
        for (int64_t c = 0; c < span(item); c += W) {
            vf total = zero();
            for (int64_t copy = 0; copy < COPIES; ++copy)
                total += load(scratch.pos + copy * scratch.pos_size + shift(item, copy) + c);
            for (int l = 0; l < W; ++l) to[min64(max64(item.keys - 1 - c - l, 0), num_pos - 1)] += total[l];
        }
    }
};

struct BiasGradChunks {
    float* sums = nullptr;
    int64_t pos_size = 0, time_size = 0;
    bool make(const HeadraceAttention& a, const Plan& plan) {
        pos_size = a.pos_bias ? round_up(a.pos_heads * a.num_pos, 16) : 0;
        time_size = a.time_bias ? a.time_heads * a.num_buckets * W : 0;
        sums = static_cast<float*>(
            calloc(static_cast<size_t>(plan.num_chunks * (pos_size + time_size) + 1), sizeof(float)));
        return sums != nullptr;
    }
    BiasGrads of(const HeadraceAttention& a, int64_t chunk) const {
        float* at = sums + chunk * (pos_size + time_size);
        return {a.pos_bias ? at : nullptr,
                a.time_bias ? at + pos_size : nullptr,
                a.num_pos,
                a.pos_heads,
                a.num_buckets,
                a.time_heads,
                nullptr};
    }
    void add_up(const HeadraceAttention& a, const Plan& plan) const {
        for (int64_t x = 0; a.pos_bias && x < a.pos_heads * a.num_pos; ++x) {
            float total = 0;
            for (int64_t chunk = 0; chunk < plan.num_chunks; ++chunk) total += sums[chunk * (pos_size + time_size) + x];
            a.dpos[x] = total * static_cast<float>(a.scale);
        }
        for (int64_t x = 0; a.time_bias && x < a.time_heads * a.num_buckets; ++x) {
            float total = 0;
            for (int64_t chunk = 0; chunk < plan.num_chunks; ++chunk)
                total += sum(load(sums + chunk * (pos_size + time_size) + pos_size + x * W));
            a.dtime[x] = total * static_cast<float>(a.scale);
        }
    }
    void release() { free(sums); }
};

// ---- time ----

// Adds W slopes to the sums of their buckets, lanes of one bucket at once: neighbours mostly share a bucket, or have
// two.
template <typename T>
HEADRACE_INLINE void scatter_time(const T* buckets, vf slope, float* sums, int32_t num_buckets) {
#if defined(__AVX512F__)
    (void)num_buckets;
    const uint32_t lanes = _mm512_test_epi32_mask((__m512i)slope, (__m512i)slope);
    if (lanes == 0) return;
    const __m512i index = widen_buckets(buckets);
    const int32_t first = buckets[__builtin_ctz(lanes)], last = buckets[31 - __builtin_clz(lanes)];
    const __mmask16 in_first =
        _mm512_mask_cmpeq_epi32_mask(static_cast<__mmask16>(lanes), index, _mm512_set1_epi32(first));
    const __mmask16 in_last =
        _mm512_mask_cmpeq_epi32_mask(static_cast<__mmask16>(lanes & ~in_first), index, _mm512_set1_epi32(last));
    store(sums + first * W, load(sums + first * W) + (vf)_mm512_maskz_mov_ps(in_first, (__m512)slope));
    store(sums + last * W, load(sums + last * W) + (vf)_mm512_maskz_mov_ps(in_last, (__m512)slope));
    for (uint32_t left = lanes & ~(in_first | in_last); left;) {
        const int32_t bucket = buckets[__builtin_ctz(left)];
        const __mmask16 same =
            _mm512_mask_cmpeq_epi32_mask(static_cast<__mmask16>(left), index, _mm512_set1_epi32(bucket));
        store(sums + bucket * W, load(sums + bucket * W) + (vf)_mm512_maskz_mov_ps(same, (__m512)slope));
        left &= ~same;
    }
#else
    for (int l = 0; l < W; ++l)
        if (buckets[l] < num_buckets) sums[buckets[l] * W + l] += slope[l];
#endif
}

template <typename T>
HEADRACE_INLINE bool same_buckets(const T* a, const T* b) {
    return __builtin_memcmp(a, b, sizeof(T) * W) == 0;
}

// The gradient of the time bias, from a tile of slopes. Down a column of vectors, rows of equal times (and old keys)
// have equal buckets: such rows are added first and scattered once.
template <typename T>
void time_gradient_of(const Item& item, const BiasTables& tables, int64_t i0, int64_t j0, int64_t rows, int64_t cols,
                      const float* slope, int64_t ld, const BiasGrads& grads) {
    const bool causal = item.position(i0) >= item.context;
    for (int64_t n = 0; n < cols; n += W) {
        int64_t r = causal ? max64(0, j0 + n - item.position(i0)) : 0;
        while (r < rows) {
            const T* buckets = item.buckets_of<T>(i0 + r) + j0 + n;
            vf total = load(slope + r * ld + n);
            for (++r; r < rows && same_buckets(buckets, item.buckets_of<T>(i0 + r) + j0 + n); ++r)
                total += load(slope + r * ld + n);
            scatter_time(buckets, total, grads.time, tables.num_buckets);
        }
    }
}

#if defined(__AVX512BW__)
// Four vectors of sums, a bit a column.
HEADRACE_INLINE __mmask16 columns_of(uint64_t columns, int n) { return static_cast<__mmask16>(columns >> n * W); }
HEADRACE_INLINE uint64_t not_zero(const vf (&total)[4]) {
    uint64_t columns = 0;
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n)
        columns |= static_cast<uint64_t>(_mm512_test_epi32_mask((__m512i)total[n], (__m512i)total[n])) << n * W;
    return columns;
}

// Adds the sums of some columns to those of their buckets, a run of equal buckets at a time.
HEADRACE_INLINE void scatter_columns(const uint8_t* buckets, uint64_t columns, const vf (&total)[4], float* sums) {
    const uint64_t last =
        _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(buckets), _mm512_loadu_si512(buckets + 1)) | 1ull << 63;  // of a run
    while (columns) {
        const uint64_t run =
            columns & _blsmsk_u64(last & (0 - _blsi_u64(columns)));  // up to the first run's end that is not below them
        float* sum = sums + buckets[__builtin_ctzll(columns)] * W;
        __m512 first = load(sum), second = _mm512_maskz_mov_ps(columns_of(run, 1), (__m512)total[1]);
        first = _mm512_mask_add_ps(first, columns_of(run, 0), first, total[0]);
        second = _mm512_mask_add_ps(second, columns_of(run, 3), second, total[3]);
        first = _mm512_mask_add_ps(first, columns_of(run, 2), first, total[2]);
        store(sum, (vf)_mm512_add_ps(first, second));
        columns &= ~run;
    }
}

// The same for a tile of up to 64 columns of one byte. A row is compared with the previous row in one step, and only
// the columns whose bucket changes are scattered: mostly a few, at the boundaries of buckets. Columns that no row sees
// have slopes of zero, whatever their bytes.
inline void time_gradient_of_bytes(const Item& item, int64_t i0, int64_t j0, int64_t rows, int64_t cols,
                                   const float* slope, int64_t ld, float* sums) {
    const uint8_t* row = item.buckets_of<uint8_t>(i0) + j0;
    const int64_t vectors = (cols + W - 1) / W;
    vf total[4] = {};
    for (int64_t r = 0; r < rows; ++r, slope += ld) {
        const uint8_t* next = item.buckets_of<uint8_t>(i0 + r) + j0;
        if (next != row) {
            const uint64_t changed = _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(next), _mm512_loadu_si512(row));
            if (changed) {
                scatter_columns(row, changed & not_zero(total), total, sums);
#pragma GCC unroll 4
                for (int n = 0; n < 4; ++n)
                    total[n] = (vf)_mm512_maskz_mov_ps(columns_of(~changed, n), (__m512)total[n]);
            }
            row = next;
        }
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n)
            if (n < vectors) total[n] += load(slope + n * W);
    }
    scatter_columns(row, not_zero(total), total, sums);
}
#endif

inline void time_gradient(const Item& item, const BiasTables& tables, int64_t i0, int64_t j0, int64_t rows,
                          int64_t cols, const float* slope, int64_t ld, const BiasGrads& grads) {
    if (!tables.time) return;
#if defined(__AVX512BW__)
    if (tables.bucket_bytes == 1 && rows > 0)
        return time_gradient_of_bytes(item, i0, j0, rows, cols, slope, ld, grads.time);
#endif
    if (tables.bucket_bytes == 1) time_gradient_of<uint8_t>(item, tables, i0, j0, rows, cols, slope, ld, grads);
    else time_gradient_of<uint16_t>(item, tables, i0, j0, rows, cols, slope, ld, grads);
}

HEADRACE_END
