// What a trainer counts of its predictions and their outcomes, a step at a time: what `kernels.outcomes` describes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <new>
#include <vector>

#include "export.h"
#include "id_table.h"

namespace {

constexpr int MOST_KINDS = 32, MOST_SLICES = 8, NUM_GAINS = 6;
constexpr double LEAST = 1e-7, FAINT = 1e-200;

// -log q summed over predictions q of what happened. A product of dozens of them needs one logarithm.
class LogLoss {
public:
    void add(double probability, bool happened) {
        const double q = happened ? probability : 1.0 - probability;
        product_ *= q < LEAST ? LEAST : q > 1.0 - LEAST ? 1.0 - LEAST : q;
        if (product_ < FAINT) settle();
    }
    double settle() {
        sum_ -= std::log(product_);
        product_ = 1.0;
        return sum_;
    }

private:
    double sum_ = 0.0, product_ = 1.0;
};

// Of one kind.
struct Sums {
    LogLoss model, baseline, undone_model, undone_baseline;  // undone: what counted as absent, and has come
    double expected = 0.0;
    int64_t num_done = 0;
};

int64_t bin_of(float probability, int64_t num_bins) {
    const double at = static_cast<double>(probability) * static_cast<double>(num_bins);
    return at >= 0 ? static_cast<int64_t>(std::min(at, static_cast<double>(num_bins - 1))) : 0;
}

}  // namespace

// `KindCounts` of kernels/outcomes.
struct KindCounts {
    int64_t num_kinds, num_bins, most;
    double *entropy, *calibration;        // (kinds, 4), (kinds, 2)
    int64_t* bins;                        // (kinds, 2, num_bins)
    float *first_model, *first_baseline;  // (most, kinds)
    uint8_t* first_done;                  // (most, kinds)
    int64_t* span;                        // the ring's end, how many are in it, how many came too late
};

// Returns 1 if a prediction of a new interaction is no probability, or has no number; then nothing is counted.
HEADRACE_API int headrace_score_kinds(const KindCounts* counts, int64_t num_events, const int64_t* number,
                                      const double* model, const double* baseline, const uint8_t* done,
                                      const uint8_t* is_new) {
    const KindCounts& c = *counts;
    const int64_t K = c.num_kinds;
    Sums sums[MOST_KINDS];
    int64_t end = c.span[0], num_new = 0;
    for (int64_t r = 0; r < num_events; ++r) {
        if (!is_new[r]) continue;
        for (int64_t k = 0; k < K; ++k)
            if (!(model[r * K + k] >= 0.0 && model[r * K + k] <= 1.0)) return 1;
        if (number[r] < 0) return 1;
        end = num_new++ ? std::max(end, number[r] + 1) : number[r] + 1;
    }
    int64_t filled = c.span[1];
    for (int64_t r = 0; r < num_events; ++r) {
        if (!is_new[r]) continue;
        const bool is_kept = number[r] >= end - c.most;
        const int64_t place = number[r] % c.most * K;
        filled += is_kept;
        for (int64_t k = 0; k < K; ++k) {
            const float by_model = static_cast<float>(model[r * K + k]);
            const float by_rate = static_cast<float>(baseline[r * K + k]);
            const bool happened = done[r * K + k];
            sums[k].model.add(by_model, happened);
            sums[k].baseline.add(by_rate, happened);
            sums[k].expected += by_model;
            sums[k].num_done += happened;
            ++c.bins[(2 * k + happened) * c.num_bins + bin_of(by_model, c.num_bins)];
            if (!is_kept) continue;
            c.first_model[place + k] = by_model, c.first_baseline[place + k] = by_rate;
            c.first_done[place + k] = happened;
        }
    }
    c.span[0] = end, c.span[1] = filled = std::min(filled, c.most);
    for (int64_t r = 0; r < num_events; ++r) {
        if (is_new[r]) continue;
        if (number[r] < end - filled || number[r] >= end) {
            ++c.span[2];
            continue;
        }
        const int64_t place = number[r] % c.most * K;
        for (int64_t k = 0; k < K; ++k) {
            if (!done[r * K + k] || c.first_done[place + k]) continue;
            const float by_model = c.first_model[place + k], by_rate = c.first_baseline[place + k];
            c.first_done[place + k] = 1;
            sums[k].model.add(by_model, true), sums[k].undone_model.add(by_model, false);
            sums[k].baseline.add(by_rate, true), sums[k].undone_baseline.add(by_rate, false);
            ++sums[k].num_done;
            const int64_t bin = bin_of(by_model, c.num_bins);
            ++c.bins[(2 * k + 1) * c.num_bins + bin], --c.bins[2 * k * c.num_bins + bin];
        }
    }
    for (int64_t k = 0; k < K; ++k) {
        Sums& of = sums[k];
        c.entropy[4 * k] += static_cast<double>(num_new), c.entropy[4 * k + 1] += static_cast<double>(of.num_done);
        c.entropy[4 * k + 2] += of.model.settle() - of.undone_model.settle();
        c.entropy[4 * k + 3] += of.baseline.settle() - of.undone_baseline.settle();
        c.calibration[2 * k] += of.expected, c.calibration[2 * k + 1] += static_cast<double>(of.num_done);
    }
    return 0;
}

// Adds the gains of the ranks (rankers, num) to the sums (rankers, slices, NUM_GAINS) of the slices (slices, num).
HEADRACE_API void headrace_score_ranks(const int64_t* rank, const uint8_t* slice, int64_t num_rankers,
                                       int64_t num_slices, int64_t num, int64_t unranked, double* sums) {
    for (int64_t ranker = 0; ranker < num_rankers; ++ranker, rank += num, sums += num_slices * NUM_GAINS) {
        double step[MOST_SLICES * NUM_GAINS] = {};
        for (int64_t s = 0; s < num; ++s) {
            const int64_t at = rank[s];
            if (at == unranked) continue;
            const bool is_hit = at > 0;
            const double safe = static_cast<double>(is_hit ? at : 1);
            const double gains[NUM_GAINS] = {
                1.0,
                is_hit && at <= 1 ? 1.0 : 0.0,
                is_hit && at <= 10 ? 1.0 : 0.0,
                is_hit && at <= 50 ? 1.0 : 0.0,
                is_hit && at <= 10 ? 1.0 / std::log2(1.0 + safe) : 0.0,
                is_hit ? 1.0 / safe : 0.0,
            };
            for (int64_t x = 0; x < num_slices; ++x)
                if (slice[x * num + s])
                    for (int g = 0; g < NUM_GAINS; ++g) step[x * NUM_GAINS + g] += gains[g];
        }
        for (int64_t i = 0; i < num_slices * NUM_GAINS; ++i) sums[i] += step[i];
    }
}

// rate (rows, kinds): each row's counts of kinds over its count of interactions, which `count` (·, width) begins with,
// smoothed by `strength` interactions at the rates `overall`.
HEADRACE_API void headrace_smoothed_rates(const float* count, int64_t width, const int64_t* row, int64_t num,
                                          int64_t num_kinds, const double* overall, double strength, double* rate) {
    double prior[MOST_KINDS];
    for (int64_t k = 0; k < num_kinds; ++k) prior[k] = strength * overall[k];
    for (int64_t r = 0; r < num; ++r) {
        const float* of = count + row[r] * width;
        const double all = static_cast<double>(of[0]) + strength;
        for (int64_t k = 0; k < num_kinds; ++k) *rate++ = (static_cast<double>(of[1 + k]) + prior[k]) / all;
    }
}

// Moves rows from one count to another: `with` has how many rows have the count 1, 2, ..., and `block` the sums of each
// `block_len` of these.
HEADRACE_API void headrace_move_counts(const int64_t* from, const int64_t* to, int64_t num, int64_t block_len,
                                       int64_t* with, int64_t* block) {
    for (int64_t i = 0; i < num; ++i) {
        if (from[i] > 0) --with[from[i] - 1], --block[(from[i] - 1) / block_len];
        if (to[i] > 0) ++with[to[i] - 1], ++block[(to[i] - 1) / block_len];
    }
}

// met (2, num): of the distinct rows above 0 that stand from `first` up to `target`, how many have a count of `above`
// or more, and how many others than `own` have one from `least` up to that. Returns 1 if out of memory.
HEADRACE_API int headrace_count_met(const int64_t* count, const int64_t* row, const int64_t* first,
                                    const int64_t* target, const int64_t* own, const int64_t* least,
                                    const int64_t* above, int64_t num, int64_t* met) {
    try {
        std::vector<int64_t> slot;  // a set of rows, by open addressing
        for (int64_t r = 0; r < num; ++r) {
            uint64_t size = 16;
            while (size < 2 * static_cast<uint64_t>(target[r] - first[r])) size *= 2;
            slot.assign(size, 0);
            int64_t num_higher = 0, num_equal = 0;
            for (int64_t i = first[r]; i < target[r]; ++i) {
                if (row[i] <= 0 || count[row[i]] < least[r]) continue;
                uint64_t at = headrace::mix(static_cast<uint64_t>(row[i])) & (size - 1);
                while (slot[at] && slot[at] != row[i]) at = (at + 1) & (size - 1);
                if (slot[at]) continue;
                slot[at] = row[i];
                num_higher += count[row[i]] >= above[r];
                num_equal += count[row[i]] < above[r] && row[i] != own[r];
            }
            met[r] = num_higher, met[num + r] = num_equal;
        }
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// came (2, kinds): how many events brought each kind, new interactions and others.
HEADRACE_API void headrace_count_came(const uint32_t* bits, const uint8_t* is_new, int64_t num_events,
                                      int64_t num_kinds, int64_t* came) {
    std::fill(came, came + 2 * num_kinds, 0);
    for (int64_t r = 0; r < num_events; ++r)
        for (int64_t k = 0; k < num_kinds; ++k) came[(is_new[r] ? 0 : num_kinds) + k] += bits[r] >> k & 1;
}
