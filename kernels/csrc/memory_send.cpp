// The memory's events as a GPU reads them: what `kernels.memory.device` describes.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "export.h"

namespace {

struct SentEvents {
    int64_t num, stride, num_buckets, visit_ms, outcome_stride;
    const int32_t* target;
    const uint8_t* chosen;
    const int64_t *past_begin, *past_end, *met_begin, *met_end, *shown_begin, *shown_end, *past_ms, *now_ms;
    int32_t *event, *outcome;
};

// How many of the choices before event r belong to its visit, which begins after the last pause.
int64_t visit(const SentEvents& of, int64_t r) {
    const int64_t begin = of.past_begin[r], end = of.past_end[r];
    int64_t at = end, next_ms = of.now_ms[r];
    for (; at > begin && next_ms - of.past_ms[at - 1] < of.visit_ms; --at) next_ms = of.past_ms[at - 1];
    return end - at;
}

}  // namespace

// Writes a row of `stride` numbers for each event, and its outcome as it is before it is predicted: three ranks.
HEADRACE_API void headrace_memory_send(const SentEvents* given) {
    const SentEvents& of = *given;
    int32_t num_asked = 0;
    for (int64_t r = 0; r < of.num; ++r) {
        const bool is_asked = of.chosen[r] == 1;
        num_asked += is_asked;
        const double num_past = static_cast<double>(of.past_end[r] - of.past_begin[r]);
        const int64_t bucket = 1 + std::min(of.num_buckets - 1, static_cast<int64_t>(std::log2(1.0 + num_past) + 0.5));
        const int64_t columns[] = {
            of.target[r],    of.chosen[r],      of.past_begin[r], of.past_end[r],
            of.met_begin[r], of.met_end[r],     bucket,           std::max(num_asked - 1, int32_t{0}),
            visit(of, r),    of.shown_begin[r], of.shown_end[r]};
        int32_t* to = of.event + r * of.stride;
        std::fill_n(to, of.stride, 0);
        for (const int64_t each : columns) *to++ = static_cast<int32_t>(each);
        for (int64_t rank = 0; rank < 3; ++rank) of.outcome[rank * of.outcome_stride + r] = is_asked ? 0 : -1;
    }
}
