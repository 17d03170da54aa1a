// What lies between two tokens: the biases of position and time, SiLU, and the biases' gradients.
#pragma once

#include "plan.h"

HEADRACE_BEGIN

constexpr int64_t COPIES = 16;  // of the position gradient: a row's sums start at a whole vector, and do not wait for the row before

// Bias tables in the form the inner loop wants: positions reversed and extended (one load for W neighbours), times padded.
struct PairTables {
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
            time_size = round_up(a.num_buckets, 16) + 144;  // windows may reach past the end
            time = static_cast<float*>(calloc(static_cast<size_t>(time_size * time_heads), sizeof(float)));
            if (!time) return false;
            for (int64_t g = 0; g < time_heads; ++g) memcpy(time + g * time_size, a.time_bias + g * a.num_buckets, sizeof(float) * a.num_buckets);
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

struct PairScratch {
    float* pos;  // (COPIES, pos_size)
    int64_t pos_size;
    void lay_out(Arena& arena, int64_t, int64_t cols, bool backward, const HeadraceAttention& a) {
        pos_size = round_up(2 * cols + 96, 16) + 16;
        pos = backward && a.pos_bias ? arena.get<float>(COPIES * pos_size) : nullptr;
    }
};

// Where one item's bias gradients go: its chunk's sums, of its bias head.
struct PairGrads {
    float* pos_sum;   // (pos_heads, num_pos) or null
    float* time_sum;  // (time_heads, num_buckets, W) or null
    int64_t num_pos, pos_heads, num_buckets, time_heads;
    float* time;      // this item's

    static int64_t span(const Item& item) { return item.keys + item.context + 2 * W; }
    void open(PairScratch& scratch, const Item& item) {
        if (time_sum) time = time_sum + (time_heads > 1 ? item.head : 0) * num_buckets * W;
        if (!pos_sum) return;
        for (int64_t c = 0; c < COPIES; ++c) memset(scratch.pos + c * scratch.pos_size, 0, sizeof(float) * (span(item) + 64));
    }
    // Distance of table entry c: keys - 1 - c. A copy's entries are `shift` further on, so that every tile's are aligned.
    static int64_t shift(const Item& item, int64_t query) { return (query + 1 - item.queries) & (COPIES - 1); }
    static float* row(const PairScratch& scratch, const Item& item, int64_t query, int64_t j0) {
        return scratch.pos + query % COPIES * scratch.pos_size + shift(item, query) + item.keys - 1 - item.position(query) + j0;
    }
    void close(const PairScratch& scratch, const Item& item) {
        if (!pos_sum) return;
        float* to = pos_sum + (pos_heads > 1 ? item.head : 0) * num_pos;
        for (int64_t c = 0; c < span(item); c += W) {
            vf total = zero();
            for (int64_t copy = 0; copy < COPIES; ++copy) total += load(scratch.pos + copy * scratch.pos_size + shift(item, copy) + c);
            for (int l = 0; l < W; ++l) to[min64(max64(item.keys - 1 - c - l, 0), num_pos - 1)] += total[l];
        }
    }
};

struct PairGradChunks {
    float* sums = nullptr;
    int64_t pos_size = 0, time_size = 0;
    bool make(const HeadraceAttention& a, const Plan& plan) {
        pos_size = a.pos_bias ? round_up(a.pos_heads * a.num_pos, 16) : 0;
        time_size = a.time_bias ? a.time_heads * a.num_buckets * W : 0;
        sums = static_cast<float*>(calloc(static_cast<size_t>(plan.num_chunks * (pos_size + time_size) + 1), sizeof(float)));
        return sums != nullptr;
    }
    PairGrads of(const HeadraceAttention& a, int64_t chunk) const {
        float* at = sums + chunk * (pos_size + time_size);
        return {a.pos_bias ? at : nullptr, a.time_bias ? at + pos_size : nullptr, a.num_pos, a.pos_heads, a.num_buckets, a.time_heads, nullptr};
    }
    void add_up(const HeadraceAttention& a, const Plan& plan) const {
        for (int64_t x = 0; a.pos_bias && x < a.pos_heads * a.num_pos; ++x) {
            float total = 0;
            for (int64_t chunk = 0; chunk < plan.num_chunks; ++chunk) total += sums[chunk * (pos_size + time_size) + x];
            a.dpos[x] = total * static_cast<float>(a.scale);
        }
        for (int64_t x = 0; a.time_bias && x < a.time_heads * a.num_buckets; ++x) {
            float total = 0;
            for (int64_t chunk = 0; chunk < plan.num_chunks; ++chunk) total += sum(load(sums + chunk * (pos_size + time_size) + pos_size + x * W));
            a.dtime[x] = total * static_cast<float>(a.scale);
        }
    }
    void release() { free(sums); }
};

// ---- time bias of W neighbours: a table in registers where the tile's buckets allow it, else loads one by one ----

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

// The buckets of a tile to come, while another is worked on.
inline void prefetch_buckets(const Item& item, const PairTables& tables, int64_t i0, int64_t j0, int64_t rows) {
    if (!tables.time || j0 >= item.keys || j0 > item.position(i0 + rows - 1)) return;
    for (int64_t r = i0; r < min64(i0 + rows, item.queries); ++r)
        __builtin_prefetch(static_cast<const char*>(item.buckets) + (item.bucket_row[r] * item.bucket_stride + j0) * tables.bucket_bytes);
}

#if defined(__AVX512F__)
HEADRACE_INLINE __m512i widen_buckets(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
HEADRACE_INLINE __m512i widen_buckets(const uint16_t* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
#endif

template <int MODE>
struct TimeTable {
#if defined(__AVX512F__)
    __m512 part[MODE == TABLE_128 ? 8 : MODE == TABLE_64 ? 4 : 2];
    __m512i low;
#endif
    const float* all;
    int32_t num_buckets;

    HEADRACE_INLINE TimeTable(const float* table, int32_t from, int64_t count) : all(table), num_buckets(static_cast<int32_t>(count)) {
#if defined(__AVX512F__)
        low = _mm512_set1_epi32(from);
        if (MODE != ANY && MODE != NO_TIME)
            for (int i = 0; i < (MODE == TABLE_128 ? 8 : MODE == TABLE_64 ? 4 : 2); ++i) part[i] = _mm512_loadu_ps(table + from + 16 * i);
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
                const __m512 low64 = _mm512_mask_blend_ps(upper, first, _mm512_permutex2var_ps(part[2], index, part[3]));
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
        for (int l = 0; l < W; ++l) x[l] = all[buckets[l] < num_buckets ? buckets[l] : 0];  // columns never seen hold anything
        return x;
#endif
    }
};

// ---- scores to weights ----

// x where the row sees the column, else 0.
HEADRACE_INLINE vf keep_seen(const Group& group, int r, int64_t column, vf x) {
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_mov_ps(static_cast<__mmask16>(group.bits[r] >> column), (__m512)x);
#else
    const vi at = iota() + static_cast<int32_t>(column);
    return keep((at < group.limit[r]) | (at == group.self[r]), x);
#endif
}

template <bool POS, int MODE, typename T>
void activate_as(const Item& item, const PairTables& tables, const Group& group, const TimeView<T>& view, float* scores, int64_t ld,
                 int64_t vectors) {
    const TimeTable<MODE> table(MODE != NO_TIME ? tables.time_row(item) : nullptr, view.low, tables.num_buckets);
    for (int r = 0; r < MR; ++r) {
        float* row = scores + r * ld;
        if (r >= group.valid) {
            memset(row, 0, sizeof(float) * vectors * W);
            continue;
        }
        const float* pos = POS ? tables.pos_row(item, group.query + r, group.j0) : nullptr;
        for (int64_t n = 0; n < vectors; ++n) {
            vf s = load(row + n * W);
            if (POS) s += load(pos + n * W);
            if (MODE != NO_TIME) s += table.at(view.row[r] + n * W);
            vf weight = s * sigmoid(s);
            if ((n + 1) * W > group.whole) weight = keep_seen(group, r, n * W, weight);
            store(row + n * W, weight);
        }
    }
}

// Adds W slopes to the sums of their buckets, lanes of one bucket at once: neighbours mostly share one, or lie in two.
template <typename T>
HEADRACE_INLINE void scatter_time(const T* buckets, vf slope, float* sums, int32_t num_buckets) {
#if defined(__AVX512F__)
    (void)num_buckets;
    const uint32_t lanes = _mm512_test_epi32_mask((__m512i)slope, (__m512i)slope);
    if (lanes == 0) return;
    const __m512i index = widen_buckets(buckets);
    const int32_t first = buckets[__builtin_ctz(lanes)], last = buckets[31 - __builtin_clz(lanes)];
    const __mmask16 in_first = _mm512_mask_cmpeq_epi32_mask(static_cast<__mmask16>(lanes), index, _mm512_set1_epi32(first));
    const __mmask16 in_last = _mm512_mask_cmpeq_epi32_mask(static_cast<__mmask16>(lanes & ~in_first), index, _mm512_set1_epi32(last));
    store(sums + first * W, load(sums + first * W) + (vf)_mm512_maskz_mov_ps(in_first, (__m512)slope));
    store(sums + last * W, load(sums + last * W) + (vf)_mm512_maskz_mov_ps(in_last, (__m512)slope));
    for (uint32_t left = lanes & ~(in_first | in_last); left;) {
        const int32_t bucket = buckets[__builtin_ctz(left)];
        const __mmask16 same = _mm512_mask_cmpeq_epi32_mask(static_cast<__mmask16>(left), index, _mm512_set1_epi32(bucket));
        store(sums + bucket * W, load(sums + bucket * W) + (vf)_mm512_maskz_mov_ps(same, (__m512)slope));
        left &= ~same;
    }
#else
    for (int l = 0; l < W; ++l)
        if (buckets[l] < num_buckets) sums[buckets[l] * W + l] += slope[l];
#endif
}

template <typename T>
HEADRACE_INLINE bool same_buckets(const T* a, const T* b) { return __builtin_memcmp(a, b, sizeof(T) * W) == 0; }

// The gradient of the time bias, from a tile of slopes. Down a column of vectors, rows of equal times (and old keys) have
// equal buckets: such rows are added first and scattered once.
template <typename T>
void time_gradient_of(const Item& item, const PairTables& tables, int64_t i0, int64_t j0, int64_t rows, int64_t cols, const float* slope,
                      int64_t ld, const PairGrads& grads) {
    const bool causal = item.position(i0) >= item.context;
    for (int64_t n = 0; n < cols; n += W) {
        int64_t r = causal ? max64(0, j0 + n - item.position(i0)) : 0;
        while (r < rows) {
            const T* buckets = item.buckets_of<T>(i0 + r) + j0 + n;
            vf total = load(slope + r * ld + n);
            for (++r; r < rows && same_buckets(buckets, item.buckets_of<T>(i0 + r) + j0 + n); ++r) total += load(slope + r * ld + n);
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
    for (int n = 0; n < 4; ++n) columns |= static_cast<uint64_t>(_mm512_test_epi32_mask((__m512i)total[n], (__m512i)total[n])) << n * W;
    return columns;
}

// Adds the sums of some columns to those of their buckets, a run of equal buckets at a time.
HEADRACE_INLINE void scatter_columns(const uint8_t* buckets, uint64_t columns, const vf (&total)[4], float* sums) {
    const uint64_t last = _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(buckets), _mm512_loadu_si512(buckets + 1)) | 1ull << 63;  // of a run
    while (columns) {
        const uint64_t run = columns & _blsmsk_u64(last & (0 - _blsi_u64(columns)));  // up to the first run's end that is not below them
        float* sum = sums + buckets[__builtin_ctzll(columns)] * W;
        __m512 first = load(sum), second = _mm512_maskz_mov_ps(columns_of(run, 1), (__m512)total[1]);
        first = _mm512_mask_add_ps(first, columns_of(run, 0), first, total[0]);
        second = _mm512_mask_add_ps(second, columns_of(run, 3), second, total[3]);
        first = _mm512_mask_add_ps(first, columns_of(run, 2), first, total[2]);
        store(sum, (vf)_mm512_add_ps(first, second));
        columns &= ~run;
    }
}

// The same for a tile of up to 64 columns of one byte. A row is compared with the row before in one step, and only the columns
// whose bucket changes are scattered: mostly a few, at the borders of buckets. Columns that nobody sees have slopes of zero,
// whatever their bytes.
inline void time_gradient_of_bytes(const Item& item, int64_t i0, int64_t j0, int64_t rows, int64_t cols, const float* slope, int64_t ld, float* sums) {
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
                for (int n = 0; n < 4; ++n) total[n] = (vf)_mm512_maskz_mov_ps(columns_of(~changed, n), (__m512)total[n]);
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

inline void time_gradient(const Item& item, const PairTables& tables, int64_t i0, int64_t j0, int64_t rows, int64_t cols, const float* slope,
                          int64_t ld, const PairGrads& grads) {
    if (!tables.time) return;
#if defined(__AVX512BW__)
    if (tables.bucket_bytes == 1 && rows > 0) return time_gradient_of_bytes(item, i0, j0, rows, cols, slope, ld, grads.time);
#endif
    if (tables.bucket_bytes == 1) time_gradient_of<uint8_t>(item, tables, i0, j0, rows, cols, slope, ld, grads);
    else time_gradient_of<uint16_t>(item, tables, i0, j0, rows, cols, slope, ld, grads);
}

template <bool POS, int MODE, typename T>
void activate_backward_as(const Item& item, const PairTables& tables, const Group& group, const TimeView<T>& view, float* weight, float* slope,
                          int64_t ld, int64_t vectors, const PairScratch& scratch) {
    const TimeTable<MODE> table(MODE != NO_TIME ? tables.time_row(item) : nullptr, view.low, tables.num_buckets);
    for (int r = 0; r < MR; ++r) {
        float *weights = weight + r * ld, *slopes = slope + r * ld;
        if (r >= group.valid) {
            memset(weights, 0, sizeof(float) * vectors * W);
            memset(slopes, 0, sizeof(float) * vectors * W);
            continue;
        }
        const float* pos = POS ? tables.pos_row(item, group.query + r, group.j0) : nullptr;
        float* pos_grad = POS ? PairGrads::row(scratch, item, group.query + r, group.j0) : nullptr;
        for (int64_t n = 0; n < vectors; ++n) {
            vf s = load(weights + n * W);
            if (POS) s += load(pos + n * W);
            if (MODE != NO_TIME) s += table.at(view.row[r] + n * W);
            const vf gate = sigmoid(s);
            const vf activated = s * gate;
            vf a = activated;
            vf d = load(slopes + n * W) * (gate + activated - activated * gate);
            if ((n + 1) * W > group.whole) {
                a = keep_seen(group, r, n * W, a);
                d = keep_seen(group, r, n * W, d);
            }
            store(weights + n * W, a);
            store(slopes + n * W, d);
            if (POS) store(pos_grad + n * W, load(pos_grad + n * W) + d);
        }
    }
}

template <bool POS, typename T, typename... Rest>
void activate_of(const Item& item, const PairTables& tables, const Group& group, Rest... rest) {
    const TimeView<T> view = look<T>(item, group, tables.num_buckets);
    switch (view.mode) {
#if defined(__AVX512F__)
        case TABLE_32: return activate_as<POS, TABLE_32, T>(item, tables, group, view, rest...);
        case TABLE_64: return activate_as<POS, TABLE_64, T>(item, tables, group, view, rest...);
        case TABLE_128: return activate_as<POS, TABLE_128, T>(item, tables, group, view, rest...);
#endif
        default: return activate_as<POS, ANY, T>(item, tables, group, view, rest...);
    }
}

inline void activate(const Item& item, const PairTables& tables, const Group& group, float* scores, int64_t ld, int64_t vectors) {
    const TimeView<uint8_t> none{{}, 0, NO_TIME};
    if (!tables.time) return tables.pos ? activate_as<true, NO_TIME, uint8_t>(item, tables, group, none, scores, ld, vectors)
                                        : activate_as<false, NO_TIME, uint8_t>(item, tables, group, none, scores, ld, vectors);
    if (tables.bucket_bytes == 1) return tables.pos ? activate_of<true, uint8_t>(item, tables, group, scores, ld, vectors)
                                                    : activate_of<false, uint8_t>(item, tables, group, scores, ld, vectors);
    return tables.pos ? activate_of<true, uint16_t>(item, tables, group, scores, ld, vectors)
                      : activate_of<false, uint16_t>(item, tables, group, scores, ld, vectors);
}

template <bool POS, typename T>
void activate_backward_of(const Item& item, const PairTables& tables, const Group& group, float* weight, float* slope, int64_t ld,
                          int64_t vectors, const PairScratch& scratch) {
    const TimeView<T> view = look<T>(item, group, tables.num_buckets);
    switch (view.mode) {
#if defined(__AVX512F__)
        case TABLE_32: return activate_backward_as<POS, TABLE_32, T>(item, tables, group, view, weight, slope, ld, vectors, scratch);
        case TABLE_64: return activate_backward_as<POS, TABLE_64, T>(item, tables, group, view, weight, slope, ld, vectors, scratch);
        case TABLE_128: return activate_backward_as<POS, TABLE_128, T>(item, tables, group, view, weight, slope, ld, vectors, scratch);
#endif
        default: return activate_backward_as<POS, ANY, T>(item, tables, group, view, weight, slope, ld, vectors, scratch);
    }
}

inline void activate_backward(const Item& item, const PairTables& tables, const Group& group, float* weight, float* slope, int64_t ld,
                              int64_t vectors, const PairScratch& scratch) {
    const TimeView<uint8_t> none{{}, 0, NO_TIME};
    if (!tables.time) {
        if (tables.pos) return activate_backward_as<true, NO_TIME, uint8_t>(item, tables, group, none, weight, slope, ld, vectors, scratch);
        return activate_backward_as<false, NO_TIME, uint8_t>(item, tables, group, none, weight, slope, ld, vectors, scratch);
    }
    if (tables.bucket_bytes == 1) {
        if (tables.pos) return activate_backward_of<true, uint8_t>(item, tables, group, weight, slope, ld, vectors, scratch);
        return activate_backward_of<false, uint8_t>(item, tables, group, weight, slope, ld, vectors, scratch);
    }
    if (tables.pos) return activate_backward_of<true, uint16_t>(item, tables, group, weight, slope, ld, vectors, scratch);
    return activate_backward_of<false, uint16_t>(item, tables, group, weight, slope, ld, vectors, scratch);
}

HEADRACE_END
