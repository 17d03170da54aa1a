// Takes rows that were evicted out of the lists of neighbours of all others, and out of what is counted of pairs of
// rows (kernels/memory/reference.py is the definition).
#include <stdint.h>

#include <vector>

#include "export.h"

// The argument, laid out as in kernels/memory/calls.py.
struct ForgetCall {
    int64_t num_rows, width, moved_stride, num_pairs;  // `moved_stride`: bytes of a row's bits
    int32_t *neighbour_row, *num_neighbours;
    float *after, *before, *direct, *weight;
    uint8_t *dirty_V, *moved_VB;
    int32_t *pair_row, *pair_next;
    float* pair_count;
    uint8_t *pair_dirty, *pair_moved;
    const uint8_t* gone_V;
    int64_t capacity;  // of gone_V: neighbours are below it
    int64_t num_threads;
};

namespace {

constexpr int NEXT_OF_PAIR = 8;  // as in memory_state.h

// A bit for each row: eight times as many fit into the cache as bytes.
std::vector<uint64_t> bits_of(const uint8_t* gone, int64_t num) {
    std::vector<uint64_t> bits((num + 63) / 64);
    for (int64_t i = 0; i < num; ++i) bits[i / 64] |= static_cast<uint64_t>(gone[i] != 0) << (i % 64);
    return bits;
}

inline bool is_gone(const std::vector<uint64_t>& bits, int32_t row) { return bits[row / 64] >> (row % 64) & 1; }

bool loses_any(const std::vector<uint64_t>& bits, const int32_t* neighbour, int32_t num) {
    bool found = false;
    for (int32_t j = 0; j < num; ++j) found |= is_gone(bits, neighbour[j]);
    return found;
}

void compact(const ForgetCall& c, const std::vector<uint64_t>& bits, int64_t row) {
    int32_t* neighbour = c.neighbour_row + row * c.width;
    int32_t kept = 0;
    for (int32_t j = 0; j < c.num_neighbours[row]; ++j) {
        if (is_gone(bits, neighbour[j])) continue;
        neighbour[kept] = neighbour[j];
        for (float* column : {c.after, c.before, c.direct, c.weight})
            column[row * c.width + kept] = column[row * c.width + j];
        ++kept;
    }
    c.num_neighbours[row] = kept;
    c.dirty_V[row] = 0xFF;
    for (int64_t b = 0; b < c.moved_stride; ++b) c.moved_VB[row * c.moved_stride + b] = 0xFF;
}

// Empties the slot of a pair if one of its rows is gone, else only takes such rows out of what followed it.
void forget_pair(const ForgetCall& c, const std::vector<uint64_t>& bits, int64_t slot) {
    int32_t *pair = c.pair_row + 2 * slot, *next = c.pair_next + slot * NEXT_OF_PAIR;
    if (pair[0] == 0) return;
    if (!loses_any(bits, pair, 2) && !loses_any(bits, next, NEXT_OF_PAIR)) return;  // nearly always
    const auto is_lost = [&](int32_t row) { return row != 0 && is_gone(bits, row); };
    const bool is_whole = is_lost(pair[0]) || is_lost(pair[1]);
    bool is_changed = is_whole;
    if (is_whole) pair[0] = pair[1] = 0;
    for (int j = 0; j < NEXT_OF_PAIR; ++j) {
        if (!is_whole && !is_lost(next[j])) continue;
        next[j] = 0, c.pair_count[slot * NEXT_OF_PAIR + j] = 0.0f;
        is_changed = true;
    }
    if (is_changed) c.pair_dirty[slot] = c.pair_moved[slot] = 0xFF;
}

}  // namespace

// Returns 1 if out of memory.
HEADRACE_API int memory_forget(const ForgetCall* call) {
    const ForgetCall& c = *call;
    try {
        const std::vector<uint64_t> bits = bits_of(c.gone_V, c.capacity);
#pragma omp parallel for num_threads(c.num_threads) schedule(static)
        for (int64_t row = 0; row < c.num_rows; ++row)
            if (loses_any(bits, c.neighbour_row + row * c.width, c.num_neighbours[row])) compact(c, bits, row);
#pragma omp parallel for num_threads(c.num_threads) schedule(static)
        for (int64_t slot = 0; slot < c.num_pairs; ++slot) forget_pair(c, bits, slot);
    } catch (...) {
        return 1;
    }
    return 0;
}
