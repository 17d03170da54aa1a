// A step's inputs as its graph reads them, one array of integers and one of floats: what `kernels.step_inputs`
// describes.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "export.h"

namespace {

struct StepInputs {
    int64_t num, num_users, num_targets, num_choices, num_kinds, num_priors, num_rows;
    int64_t most, most_users, most_rows;  // what they are padded to: interactions; users, targets, choices; rows
    const int64_t *row, *time, *start, *target, *previous, *choice, *target_row;
    const uint32_t *bits, *learned_bits;
    const uint8_t *is_new, *live;
    const float *value, *prior, *weight;  // the last may be null
    int64_t* integers;
    float* floats;
};

// Writes one part after the other, each padded to its length.
template <class T>
class Writer {
public:
    explicit Writer(T* at) : at_(at) {}

    template <class Of>
    void put(int64_t num, int64_t length, T rest, Of of) {
        for (int64_t i = 0; i < num; ++i) at_[i] = of(i);
        std::fill(at_ + num, at_ + length, rest);
        at_ += length;
    }
    // As many numbers of each of `num`, which `write` writes.
    template <class Write>
    void put_each(int64_t num, int64_t width, int64_t length, T rest, Write write) {
        for (int64_t i = 0; i < num; ++i) write(i, at_ + i * width);
        std::fill(at_ + num * width, at_ + length * width, rest);
        at_ += length * width;
    }

private:
    T* at_;
};

void write_integers(const StepInputs& of) {
    Writer<int64_t> to(of.integers);
    const int64_t last_ms = of.time[of.num - 1], start = 2 * of.most;
    to.put(of.num, of.most, 0, [&](int64_t i) { return of.row[i]; });
    int64_t user = 0;
    to.put_each(of.num, 2, of.most, last_ms, [&](int64_t i, int64_t* token) {  // an action asks what comes next
        while (of.start[user + 1] <= i) ++user;
        token[0] = of.time[i], token[1] = of.time[i + 1 < of.start[user + 1] ? i + 1 : i];
    });
    to.put_each(of.num, 2, of.most, last_ms, [&](int64_t i, int64_t* token) { token[0] = token[1] = of.time[i]; });
    to.put(of.num_users + 1, of.most_users + 1, 2 * of.num, [&](int64_t b) { return 2 * of.start[b]; });
    to.put(of.num_targets, of.most_users, 0, [&](int64_t r) { return 2 * of.target[r]; });
    to.put(of.num_choices, of.most_users, start, [&](int64_t s) {
        const int64_t before = of.previous[of.choice[s]];
        return before >= 0 ? 2 * before + 1 : start;
    });
    to.put(of.num_choices, of.most_users, 0, [&](int64_t s) { return of.target_row[of.choice[s]]; });
}

// The tokens whose outputs are used: from the action before each user's first target on, or that target.
void write_read(const StepInputs& of, Writer<float>& to) {
    int64_t user = -1, target = 0, first = 0;
    to.put(2 * of.num, 2 * of.most, 0.0f, [&](int64_t t) {
        while (user + 1 < of.num_users && 2 * of.start[user + 1] <= t) {
            ++user;
            while (target < of.num_targets && of.target[target] < of.start[user]) ++target;
            const bool has_one = target < of.num_targets, has_previous = has_one && of.previous[target] >= 0;
            first = !has_one ? 2 * of.num : has_previous ? 2 * of.previous[target] + 1 : 2 * of.target[target];
        }
        return t >= first ? 1.0f : 0.0f;
    });
}

void write_floats(const StepInputs& of) {
    Writer<float> to(of.floats);
    const int64_t K = of.num_kinds;
    const auto unpacked = [K](const uint32_t* bits) {
        return [K, bits](int64_t i, float* kinds) {
            for (int64_t k = 0; k < K; ++k) kinds[k] = static_cast<float>(bits[i] >> k & 1);
        };
    };
    const auto is_learned = [&](int64_t s) { return of.target_row[of.choice[s]] > 0; };
    int64_t num_learned = 0;
    for (int64_t s = 0; s < of.num_choices; ++s) num_learned += is_learned(s);
    const float share = static_cast<float>(std::max<int64_t>(1, num_learned)),
                each = static_cast<float>(1.0 / static_cast<double>(std::max<int64_t>(1, of.num_targets)));
    to.put_each(of.num, K, of.most, 0.0f, unpacked(of.bits));
    to.put(of.num, of.most, NAN, [&](int64_t i) { return of.value[i]; });
    const int64_t num_priors = of.num_priors * K;
    to.put(of.num_targets * num_priors, of.most_users * num_priors, 0.0f, [&](int64_t i) { return of.prior[i]; });
    to.put_each(of.num_targets, K, of.most_users, 0.0f, unpacked(of.learned_bits));
    to.put(of.num_targets, of.most_users, 1.0f, [&](int64_t r) { return of.is_new[r] ? 1.0f : 0.0f; });
    to.put(of.num_targets, of.most_users, 0.0f, [&](int64_t) { return each; });
    to.put(of.num_choices, of.most_users, 0.0f,
           [&](int64_t s) { return is_learned(s) ? (of.weight ? of.weight[s] : 1.0f) / share : 0.0f; });
    write_read(of, to);
    to.put(of.num_rows, of.most_rows, 0.0f, [&](int64_t v) { return v > 0 && of.live[v] ? 1.0f : 0.0f; });
}

}  // namespace

HEADRACE_API void headrace_step_inputs(const StepInputs* inputs) {
    write_integers(*inputs);
    write_floats(*inputs);
}
