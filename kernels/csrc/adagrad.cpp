// Row-wise Adagrad, the part without vectors: each thread takes the rows that hash to it, sorts their positions by
// (row, position) and hands them to the level's update. A row's gradients are added in the order of positions for any
// number of threads, and no two threads touch the same row.
#include <omp.h>
#include <stdint.h>

#include <memory>
#include <vector>

#include "export.h"

namespace {

using Update = int (*)(void*, int, float*, const uint64_t*, int64_t, const void*, int, int64_t, float*, float, float,
                       float, const void*);

constexpr int DIGIT_BITS = 11;
constexpr int NUM_DIGITS = 1 << DIGIT_BITS;

inline uint32_t owner(int64_t row, uint32_t num_threads) {
    const uint64_t hash = static_cast<uint64_t>(row) * 0x9E3779B97F4A7C15ull;
    return static_cast<uint32_t>(((hash >> 32) * num_threads) >> 32);
}

// Stable radix sort by the row (high half); returns whichever buffer holds the result.
uint64_t* sort_by_row(uint64_t* from, uint64_t* to, int64_t num, int64_t num_rows) {
    for (int shift = 32; shift < 64 && (static_cast<uint64_t>(num_rows - 1) >> (shift - 32)) != 0;
         shift += DIGIT_BITS) {
        uint32_t place[NUM_DIGITS] = {};
        for (int64_t i = 0; i < num; ++i) ++place[(from[i] >> shift) & (NUM_DIGITS - 1)];
        uint32_t before = 0;
        for (uint32_t& p : place) {
            const uint32_t count = p;
            p = before;
            before += count;
        }
        for (int64_t i = 0; i < num; ++i) to[place[(from[i] >> shift) & (NUM_DIGITS - 1)]++] = from[i];
        std::swap(from, to);
    }
    return from;
}

}  // namespace

// `dither`: of the level's update. Rows outside [0, num_rows) are skipped. num and num_rows must be below 2^32. Returns
// 1 if out of memory.
HEADRACE_API int adagrad(Update update, void* weight_VD, int weight_type, float* state_V, int64_t num_rows,
                         int64_t width, const int64_t* rows_N, int64_t num, const void* grad_ND, int grad_type,
                         float lr, float eps, float weight_decay, const void* dither, int num_threads) {
    int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
    try {
        const uint32_t me = static_cast<uint32_t>(omp_get_thread_num());
        const uint32_t team = static_cast<uint32_t>(omp_get_num_threads());
        std::unique_ptr<uint64_t[]> order(new uint64_t[num]), spare(new uint64_t[num]);
        std::vector<float> sum_D(width + 64);
        int64_t mine = 0;
        for (int64_t n = 0; n < num; ++n) {
            const int64_t row = rows_N[n];
            order[mine] = static_cast<uint64_t>(row) << 32 | static_cast<uint64_t>(n);
            mine += row >= 0 && row < num_rows && (team == 1 || owner(row, team) == me);
        }
        const uint64_t* sorted = sort_by_row(order.get(), spare.get(), mine, num_rows);
        update(weight_VD, weight_type, state_V, sorted, mine, grad_ND, grad_type, width, sum_D.data(), lr, eps,
               weight_decay, dither);
    } catch (...) {
        failed = 1;
    }
    return failed;
}
