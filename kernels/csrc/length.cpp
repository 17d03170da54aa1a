// Which tokens of long contexts to keep: those with the smallest integer keys (see kernels/length/reference.py).
#include <stdint.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "export.h"

namespace {

constexpr int AGE_BITS = 20;

inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}
inline uint64_t random_bits(uint64_t mixed_seed, uint64_t index) {
    return mix(mixed_seed + (index + 1) * 0x9E3779B97F4A7C15ull);
}

// -log2 of (2 * high 32 bits + 1) / 2^33, with 16 fractional bits.
inline uint64_t exponential(uint64_t bits) {
    uint64_t mantissa = (bits >> 32) << 1 | 1;
    uint64_t log2 = 63 - static_cast<uint64_t>(__builtin_clzll(mantissa));
    mantissa = log2 > 30 ? mantissa >> (log2 - 30) : mantissa << (30 - log2);
    for (int i = 0; i < 16; ++i) {
        mantissa = (mantissa * mantissa) >> 30;
        const uint64_t bit = mantissa >> 31;
        log2 = log2 << 1 | bit;
        mantissa >>= bit;
    }
    return (33ull << 16) - log2;
}

inline bool keeps_all(uint64_t mixed_seed, uint64_t num_units, uint64_t max_units) {
    return (random_bits(mixed_seed, ~0ull) >> 42) * num_units * num_units < (max_units * max_units) << 22;
}

struct Rule {
    int64_t max_units, unit;
    bool recency, sometimes_whole;
};

inline int64_t units_kept(const Rule& rule, uint64_t mixed_seed, int64_t num_units) {
    if (num_units <= rule.max_units) return num_units;
    return rule.sometimes_whole && keeps_all(mixed_seed, num_units, rule.max_units) ? num_units : rule.max_units;
}

// Writes the tokens kept from a context that starts at `start`; returns how many.
int64_t thin(const Rule& rule, uint64_t mixed_seed, int64_t start, int64_t num_units, std::vector<uint64_t>& keys,
             int64_t* kept) {
    keys.resize(num_units);
    for (int64_t index = 0; index < num_units; ++index) {
        const uint64_t bits = random_bits(mixed_seed, index), age = num_units - 1 - index;
        keys[index] = (rule.recency ? exponential(bits) * (age + 1) : bits >> 22) << AGE_BITS | age;
    }
    std::nth_element(keys.begin(), keys.begin() + rule.max_units, keys.end());
    keys.resize(rule.max_units);
    const uint64_t mask = (1ull << AGE_BITS) - 1;
    for (uint64_t& key : keys) key = num_units - 1 - (key & mask);  // the index
    std::sort(keys.begin(), keys.end());
    int64_t num = 0;
    for (const uint64_t index : keys)
        for (int64_t t = 0; t < rule.unit; ++t) kept[num++] = start + static_cast<int64_t>(index) * rule.unit + t;
    return num;
}

}  // namespace

// First call, with kept null: fills new_offsets. Second call: fills kept. Returns 1 if out of memory.
HEADRACE_API int stochastic_length(const int64_t* offsets, const int64_t* seeds, const int64_t* must_keep_last,
                                   int64_t num_users, int64_t max_kept, int64_t unit, int recency, int sometimes_whole,
                                   int64_t* new_offsets, int64_t* kept, int num_threads) {
    const Rule rule = {max_kept / unit, unit, recency != 0, sometimes_whole != 0};
    if (!kept) {
        new_offsets[0] = 0;
        for (int64_t b = 0; b < num_users; ++b) {
            const int64_t num_units = (offsets[b + 1] - offsets[b] - must_keep_last[b]) / unit;
            const int64_t num_kept = units_kept(rule, mix(seeds[b]), num_units) * unit + must_keep_last[b];
            new_offsets[b + 1] = new_offsets[b] + num_kept;
        }
        return 0;
    }
    int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
    {
        std::vector<uint64_t> keys;
#pragma omp for schedule(dynamic, 8)
        for (int64_t b = 0; b < num_users; ++b) {
            int64_t* out = kept + new_offsets[b];
            int64_t from = offsets[b];
            const int64_t num_kept = new_offsets[b + 1] - new_offsets[b];
            if (num_kept < offsets[b + 1] - offsets[b]) {
                try {
                    const int64_t num_units = (offsets[b + 1] - offsets[b] - must_keep_last[b]) / unit;
                    out += thin(rule, mix(seeds[b]), from, num_units, keys, out);
                    from += num_units * unit;
                } catch (...) {
                    failed = 1;
                }
            }
            while (from < offsets[b + 1]) *out++ = from++;
        }
    }
    return failed;
}
