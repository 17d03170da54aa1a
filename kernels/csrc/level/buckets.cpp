// Time buckets of every visible pair, once per batch for all layers: exact integer thresholds and a monotone walk.
//
// For sorted times, the keys with dt >= threshold[k] are a prefix of the user's keys, and the prefix only grows from
// one query to the next: cut[k] walks forward once over the user. A row is then filled run by run.
#include "attention.h"
#include "simd.h"

HEADRACE_BEGIN

inline int64_t wrapped(int64_t a, int64_t b) {
    return static_cast<int64_t>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
}

bool ascending(const int64_t* x, int64_t n) {
    for (int64_t i = 1; i < n; ++i)
        if (x[i] < x[i - 1]) return false;
    return true;
}

int64_t bucket_of(int64_t dt, const int64_t* thresholds, int64_t count) {
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (thresholds[middle] <= dt) low = middle + 1;
        else high = middle;
    }
    return low;
}

template <typename T>
inline void fill(T* row, int64_t from, int64_t to, T value) {
    for (int64_t j = from; j < to; ++j) row[j] = value;
}

template <>
inline void fill<uint8_t>(uint8_t* row, int64_t from, int64_t to, uint8_t value) {
#if defined(__AVX512BW__)
    const __m512i all = _mm512_set1_epi8(static_cast<char>(value));
    for (int64_t j = from; j < to; j += 64) {
        const int64_t left = to - j;
        const __mmask64 mask = left >= 64 ? ~0ull : (1ull << left) - 1;
        _mm512_mask_storeu_epi8(row + j, mask, all);
    }
#else
    if (to > from) memset(row + from, value, static_cast<size_t>(to - from));
#endif
}

constexpr int64_t FAR = 16;  // keys beyond which a search beats a walk

template <typename T>
struct User {
    const int64_t *query_time, *key_time, *thresholds;
    int64_t num_queries, num_keys, stride, num_thresholds;
    T* rows;
    int32_t* row_of;  // of each query

    bool monotone() const {
        if (num_queries == 0 || num_keys == 0) return true;
        if (!ascending(key_time, num_keys) || !ascending(query_time, num_queries)) return false;
        if (query_time[num_queries - 1] == INT64_MAX) return false;  // means "never" in the walk
        int64_t unused;
        return !__builtin_sub_overflow(query_time[num_queries - 1], key_time[0], &unused) &&
               !__builtin_sub_overflow(query_time[0], key_time[num_keys - 1], &unused);
    }

    // Rows of sorted times; keys past the row's visible end are never examined. `due[k]` is the query time at which
    // cut[k] moves on: one comparison shows that a threshold has nothing to do.
    void walk(int64_t first_position, int64_t num_context, int64_t* cut, int64_t* due, int64_t* next) const {
        for (int64_t j = num_keys - 1; j >= 0; --j)
            next[j] = j + 1 < num_keys && key_time[j + 1] == key_time[j] ? next[j + 1] : j + 1;
        int64_t active = 0;  // thresholds below it have been reached by some key
        for (int64_t k = 0; k < num_thresholds; ++k) {
            cut[k] = 0;
            due[k] = due_time(0, k);
        }
        int64_t done = 0;
        T* row = rows - stride;
        for (int64_t i = 0; i < num_queries; ++i) {
            const int64_t now = query_time[i], end = max64(first_position + i + 1, num_context);
            if (i > 0 && now == query_time[i - 1]) {  // the row before, and what it did not see yet
                row_of[i] = row_of[i - 1];
                for (; done < end; ++done)
                    row[done] = static_cast<T>(bucket_of(now - key_time[done], thresholds, num_thresholds));
                finish(row, end);
                continue;
            }
            row_of[i] = i > 0 ? row_of[i - 1] + 1 : 0;
            row += stride;
            while (active < num_thresholds && now >= due[active]) ++active;
            advance(now, active, cut, due, next);
            done = end;
            int64_t to = end;
            for (int64_t k0 = 0; k0 < active; k0 += 8)
                for (uint32_t lower = lower_than_before(cut + k0); lower; lower &= lower - 1) {
                    const int64_t k = k0 + __builtin_ctz(lower);
                    if (k >= active) break;
                    if (cut[k] >= to) continue;
                    fill<T>(row, cut[k], to, static_cast<T>(k));
                    to = cut[k];
                }
            fill<T>(row, 0, to, static_cast<T>(active));
            finish(row, end);
        }
    }

    // Of eight cuts, those below the previous one: where a run ends.
    static uint32_t lower_than_before(const int64_t* cut) {
#if defined(__AVX512F__)
        return _mm512_cmplt_epi64_mask(_mm512_loadu_si512(cut), _mm512_loadu_si512(cut - 1));
#else
        uint32_t lower = 0;
        for (int l = 0; l < 8; ++l) lower |= static_cast<uint32_t>(cut[l] < cut[l - 1]) << l;
        return lower;
#endif
    }

    // Kernels compare whole vectors: values past a row's visible end must not be arbitrary.
    static void finish(T* row, int64_t end) { fill<T>(row, end, round_up(end, 16), T(0)); }

    int64_t due_time(int64_t key, int64_t k) const {
        int64_t due;
        return key < num_keys && !__builtin_add_overflow(key_time[key], thresholds[k], &due) ? due : INT64_MAX;
    }

    // The first of the keys [from, to) that is later than `time`, else `to`.
    int64_t first_later(int64_t time, int64_t from, int64_t to) const {
        while (from < to) {
            const int64_t middle = (from + to) / 2;
            if (key_time[middle] <= time) from = middle + 1;
            else to = middle;
        }
        return from;
    }

    void advance(int64_t now, int64_t active, int64_t* cut, int64_t* due, const int64_t* next) const {
        for (int64_t k0 = 0; k0 < active; k0 += 8) {
#if defined(__AVX512F__)
            uint32_t moved = _mm512_cmple_epi64_mask(_mm512_loadu_si512(due + k0), _mm512_set1_epi64(now));
#else
            uint32_t moved = 0;
            for (int l = 0; l < 8; ++l) moved |= static_cast<uint32_t>(due[k0 + l] <= now) << l;
#endif
            for (; moved; moved &= moved - 1) {
                const int64_t k = k0 + __builtin_ctz(moved);
                if (k >= active) break;
                // After a long pause many thresholds pass the same keys: try the place where the previous one stopped.
                if (k > 0 && cut[k - 1] > cut[k] + 1 && now - key_time[cut[k - 1] - 1] >= thresholds[k]) {
                    cut[k] = cut[k - 1];
                    due[k] = due_time(cut[k], k);
                    continue;
                }
                if (k > 0 && cut[k - 1] > cut[k] + FAR) {  // far, but no further than the previous threshold
                    cut[k] = first_later(now - thresholds[k], cut[k], cut[k - 1]);
                    due[k] = due_time(cut[k], k);
                    continue;
                }
                do cut[k] = next[cut[k]];
                while ((due[k] = due_time(cut[k], k)) <= now);
            }
        }
    }

    void look_up(int64_t first_position, int64_t num_context) const {
        for (int64_t i = 0; i < num_queries; ++i) {
            const int64_t end = max64(first_position + i + 1, num_context);
            row_of[i] = static_cast<int32_t>(i);
            for (int64_t j = 0; j < end; ++j)
                rows[i * stride + j] =
                    static_cast<T>(bucket_of(wrapped(query_time[i], key_time[j]), thresholds, num_thresholds));
            finish(rows + i * stride, end);
        }
    }
};

template <typename T>
int build(const HeadraceBuckets& args) {
    int64_t* starts = static_cast<int64_t*>(malloc(sizeof(int64_t) * (args.num_users + 1)));
    if (!starts) return 1;
    starts[0] = 0;
    int64_t most_keys = 0;
    for (int64_t b = 0; b < args.num_users; ++b) {
        const int64_t queries = args.offsets[b + 1] - args.offsets[b],
                      keys = queries + (args.cache_len ? args.cache_len[b] : 0);
        starts[b + 1] = starts[b] + queries * round_up(keys, 64);
        most_keys = max64(most_keys, keys);
    }
    T* buckets = static_cast<T*>(args.buckets);
    uint8_t* flags = reinterpret_cast<uint8_t*>(buckets + starts[args.num_users]);
    int32_t* row_of = reinterpret_cast<int32_t*>(
        static_cast<char*>(args.buckets) + bucket_index_at(starts[args.num_users], args.bucket_bytes, args.num_users));
    bool failed = false;
#pragma omp parallel num_threads(args.num_threads) reduction(|| : failed)
    {
        int64_t* room = static_cast<int64_t*>(
            malloc(sizeof(int64_t) * (2 * round_up(args.num_thresholds + 8, 8) + 2 * most_keys + 2)));
        int64_t* cut = room + 1;  // read eight at a time, together with the entry before
        int64_t* due = cut + round_up(args.num_thresholds + 8, 8);   // read eight at a time too
        int64_t* next = due + round_up(args.num_thresholds + 8, 8);  // the first key with a later time
        int64_t* joined = next + most_keys;
        failed = !room;
        if (room) room[0] = INT64_MAX;
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < args.num_users; ++b) {
            if (!room) continue;
            const int64_t first = args.offsets[b], queries = args.offsets[b + 1] - first,
                          cached = args.cache_len ? args.cache_len[b] : 0;
            const int64_t* key_time = args.key_time + first;
            if (cached) {  // cached and new keys, concatenated
                memcpy(joined, args.cache_time + args.cache_start[b], sizeof(int64_t) * cached);
                memcpy(joined + cached, key_time, sizeof(int64_t) * queries);
                key_time = joined;
            }
            const User<T> user{args.query_time + first, key_time,
                               args.thresholds,         queries,
                               cached + queries,        round_up(cached + queries, 64),
                               args.num_thresholds,     buckets + starts[b],
                               row_of + first};
            const int64_t context = args.num_context ? args.num_context[b] : 0;
            flags[b] = user.monotone();
            if (flags[b]) user.walk(cached, context, cut, due, next);
            else user.look_up(cached, context);
        }
        free(room);
    }
    free(starts);
    return failed ? 1 : 0;
}

HEADRACE_END

HEADRACE_LEVEL_API(attention_buckets)(const HeadraceBuckets* args) {
    using namespace headrace::HEADRACE_LEVEL;
    return args->bucket_bytes == 1 ? build<uint8_t>(*args) : build<uint16_t>(*args);
}
