// Scores of all rows before any history, for a memory that no longer changes: computed once, for memory_best.cpp.
#include "memory_evidence.h"

// The argument, laid out as in kernels/memory/cpp.py.
struct StandCall {
    MemoryCall memory;
    float *base_VB, *root_V;
};

HEADRACE_BEGIN

constexpr int64_t CHUNK = 96;  // rows at a time

// The base of rows with each bucket's gains, and one over the square root of `seen`.
inline bool stand_all(const StandCall& call) {
    const MemoryCall& m = call.memory;
    const int64_t num_buckets = m.num_buckets;
    Scratch s;
    float* closed;
    Arena arena;
    for (int pass = 0; pass < 2; ++pass) {
        s.standing = arena.get<float>(CHUNK * NUM_STANDING);
        closed = arena.get<float>(CHUNK);
        if (pass == 0 && !arena.allocate()) return false;
    }
    float* const standing = s.standing;
    s.padded = CHUNK;
    for (int64_t from = 0; from < m.num_rows; from += CHUNK) {
        const int64_t to = min64(m.num_rows, from + CHUNK);
        s.standing = standing - from;
        stand(m, s, from, to);
        for (int64_t i = from; i < to; ++i) {
            const bool is_open = m.first_V[i] >= 0;
            closed[i - from] = is_open ? 0.0f : OUT;
            call.root_V[i] = is_open ? inverse_root_of(m.seen_V[i]) : 0.0f;
        }
        for (int64_t b = 0; b < num_buckets; ++b)
            for (int64_t i = 0; i < to - from; i += W) {
                vf x = load(closed + i);
                for (int f = 0; f < NUM_STANDING; ++f) {
                    const float gain = m.gain_BF[f] + m.gain_BF[(1 + b) * NUM_FEATURES + f];
                    x = fma(load(standing + f * CHUNK + i), splat(gain), x);
                }
                const int64_t num = min64(W, to - from - i);
                for (int64_t l = 0; l < num; ++l) call.base_VB[(from + i + l) * num_buckets + b] = x[l];
            }
    }
    return true;
}

HEADRACE_END

// Returns 1 if out of memory.
HEADRACE_LEVEL_API(memory_stand)(const StandCall* call) { return !headrace::HEADRACE_LEVEL::stand_all(*call); }
