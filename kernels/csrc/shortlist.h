// Rescores the best few rows of an event by a small network with one hidden layer (kernels/memory/shortlist.py is the
// definition). Feature by feature, with a lane for each listed row.
#pragma once

#include <math.h>
#include <string.h>

#include "simd.h"

HEADRACE_BEGIN

constexpr int LISTED = 64, HIDDEN = 16;
constexpr int POOLED = 4 * LISTED;  // rows collected before the best of them are selected
constexpr float LEAK = .1f, FURTHEST = 4.0f, LEAST_VARIANCE = 1e-4f, LAST_LEAD = -20.0f;
constexpr float LISTS_REMEMBERED = 2000.0f;
constexpr float UNLISTED = -1e30f;

// Rows by score, ascending as integers; of equal scores the lower row is the larger key.
HEADRACE_INLINE uint64_t key_of(float score, int64_t row) {
    uint32_t bits;
    __builtin_memcpy(&bits, &score, sizeof bits);
    bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
    return (uint64_t)bits << 32 | (0xffffffffu - (uint32_t)row);
}
HEADRACE_INLINE int32_t row_of(uint64_t key) { return (int32_t)(0xffffffffu - (uint32_t)key); }

// Moves the `kept` largest of distinct keys to the front (Hoare's selection).
inline void select_largest(uint64_t* key, int64_t num, int64_t kept) {
    int64_t from = 0, to = num - 1;
    while (from < to) {
        const uint64_t pivot = key[from + (to - from) / 2];
        int64_t i = from, j = to;
        while (i <= j) {
            while (key[i] > pivot) ++i;
            while (key[j] < pivot) --j;
            if (i > j) break;
            const uint64_t other = key[i];
            key[i++] = key[j];
            key[j--] = other;
        }
        if (kept - 1 <= j) to = j;
        else if (kept - 1 >= i) from = i;
        else return;
    }
}

// Takes NUM_SEEN features per row. Its weights, concatenated: NUM_SEEN of the linear part, HIDDEN x NUM_SEEN, HIDDEN
// biases, HIDDEN of the output. `norm`: means, variances, and over how many lists they were taken.
template <int NUM_SEEN>
struct Shortlist {
    static constexpr int IN = NUM_SEEN, BIAS = IN + HIDDEN * IN, OUT_OF = BIAS + HIDDEN, NUM_WEIGHTS = OUT_OF + HIDDEN;
    uint64_t key[POOLED];
    float raw[NUM_SEEN][LISTED], seen[NUM_SEEN][LISTED], hidden[HIDDEN][LISTED];
    float score[LISTED], out[LISTED], push[LISTED], listed[LISTED];
    int32_t row[LISTED];
    int64_t num;
    float best_out;

    // The best rows of `score_V` above half of UNLISTED.
    void pick(const float* score_V, int64_t padded) {
        float low = UNLISTED / 2;
        num = 0;
        for (int64_t i = 0; i < padded; i += W) {
            const vf x = load(score_V + i);
            if (!(largest(x) > low)) continue;
            for (int l = 0; l < W; ++l) {
                if (!(x[l] > low)) continue;
                key[num++] = key_of(x[l], i + l);
                if (num == POOLED) {
                    num = LISTED;
                    select_largest(key, POOLED, num);
                    uint64_t least = key[0];
                    for (int64_t k = 1; k < num; ++k) least = key[k] < least ? key[k] : least;
                    low = score_V[row_of(least)];
                }
            }
        }
        if (num > LISTED) select_largest(key, num, LISTED);
        num = min64(num, LISTED);
        for (int64_t k = 0; k < LISTED; ++k) {
            row[k] = k < num ? row_of(key[k]) : 0;
            score[k] = k < num ? score_V[row[k]] : UNLISTED;
            listed[k] = k < num ? 1.0f : 0.0f;
        }
    }

    // Writes the network's output for `raw` into `out`.
    void look(const float* weight, const float* norm) {
        for (int f = 0; f < IN; ++f) {
            const vf mean = splat(norm[f]), scale = splat(1.0f / sqrtf(norm[IN + f] + LEAST_VARIANCE));
            for (int c = 0; c < LISTED; c += W) {
                const vf x = (load(raw[f] + c) - mean) * scale;
                store(seen[f] + c, smaller(larger(x, splat(-FURTHEST)), splat(FURTHEST)));
            }
        }
        for (int c = 0; c < LISTED; c += W) {
            vf total = load(score + c);
            for (int f = 0; f < IN; ++f) total = fma(load(seen[f] + c), splat(weight[f]), total);
            for (int h = 0; h < HIDDEN; ++h) {
                const float* of = weight + IN + h * IN;
                vf z = splat(weight[BIAS + h]);
                for (int f = 0; f < IN; ++f) z = fma(load(seen[f] + c), splat(of[f]), z);
                store(hidden[h] + c, z);
                total = fma(larger(z, z * LEAK), splat(weight[OUT_OF + h]), total);
            }
            for (int l = 0; l < W; ++l) out[c + l] = listed[c + l] > 0 ? total[l] : UNLISTED;
        }
    }

    // The shift of every `out` that preserves the list's share of the softmax under `score`; `push` becomes the list's
    // own softmax.
    float shift() {
        vf best = splat(UNLISTED), best_score = splat(UNLISTED);
        for (int c = 0; c < LISTED; c += W)
            best = larger(best, load(out + c)), best_score = larger(best_score, load(score + c));
        best_out = largest(best);
        const float top = largest(best_score);
        vf mass = zero(), mass_out = zero();
        for (int c = 0; c < LISTED; c += W) {
            const vf p = exp_negative(load(out + c) - best_out) * load(listed + c);
            store(push + c, p);
            mass_out += p;
            mass += exp_negative(load(score + c) - top) * load(listed + c);
        }
        const float all = sum(mass_out);
        for (int c = 0; c < LISTED; c += W) store(push + c, load(push + c) * (1.0f / all));
        return (top + logf(sum(mass))) - (best_out + logf(all));
    }

    // One step towards the row `target`, if it is listed; `how_much`: relative to others.
    void learn(int32_t target, float* weight, float* square, float rate, float decay, float how_much) {
        int64_t at = 0;
        while (at < num && row[at] != target) ++at;
        if (at == num) return;
        push[at] -= 1.0f;
        for (int c = 0; c < LISTED; c += W) store(push + c, load(push + c) * how_much);
        alignas(64) float slope[NUM_WEIGHTS + W];
        for (int f = 0; f < IN; ++f) slope[f] = along(push, seen[f]);
        for (int h = 0; h < HIDDEN; ++h) {
            alignas(64) float back[LISTED];
            const float of = weight[OUT_OF + h];
            vf bias = zero(), given = zero();
            for (int c = 0; c < LISTED; c += W) {
                const vf z = load(hidden[h] + c), g = load(push + c), leaked = z * LEAK;
                const vf each = g * of, slow = each * LEAK;
                const vf d = z > 0.0f ? each : slow;
                given = fma(g, larger(z, leaked), given);
                store(back + c, d);
                bias += d;
            }
            slope[BIAS + h] = sum(bias);
            slope[OUT_OF + h] = sum(given);
            for (int f = 0; f < IN; ++f) slope[IN + h * IN + f] = along(back, seen[f]);
        }
        for (int k = 0; k < NUM_WEIGHTS; ++k) {
            square[k] = square[k] * decay + slope[k] * slope[k];
            weight[k] -= rate * slope[k] / sqrtf(square[k]);
        }
    }

    // Updates the inputs' means and variances: first an average over all lists, later over the most recent ones.
    void settle(float* norm) {
        const float lists = norm[2 * IN] + 1.0f;
        const float share = 1.0f / (lists < LISTS_REMEMBERED ? lists : LISTS_REMEMBERED), each = 1.0f / (float)num;
        for (int f = 0; f < IN; ++f) {
            const float was = norm[f];
            vf total = zero(), squares = zero();
            for (int c = 0; c < LISTED; c += W) {
                const vf d = (load(raw[f] + c) - was) * load(listed + c);
                total += d;
                squares = fma(d, d, squares);
            }
            norm[f] += share * sum(total) * each;
            norm[IN + f] += share * (sum(squares) * each - norm[IN + f]);
            norm[2 * IN + f] = lists;
        }
    }

    static HEADRACE_INLINE float along(const float* a, const float* b) {
        vf total = zero();
        for (int c = 0; c < LISTED; c += W) total = fma(load(a + c), load(b + c), total);
        return sum(total);
    }
};

HEADRACE_END
