// AdamW on one vector, with its gradient clipped and cleared (kernels/adamw/reference.py is the definition): one pass
// for the gradient's length, one for all the rest.
#include <math.h>

#include "lanes.h"

// The argument, as the caller lays it out (kernels/adamw/cpp.py).
struct AdamWCall {
    float *weight, *gradient, *mean, *square;
    int64_t num;
    double clip_norm;                                       // 0: none
    double mean_share, square_share, mean_fix, square_fix;  // 1 - beta; 1 - beta^steps
    double lr, eps, weight_decay;
};

HEADRACE_BEGIN

HEADRACE_INLINE vf root_of(vf x) {
#if defined(__AVX512F__)
    return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
    return _mm256_sqrt_ps(x);
#else
    for (int l = 0; l < LANES; ++l) x[l] = __builtin_sqrtf(x[l]);
    return x;
#endif
}

inline void adamw(const AdamWCall& c) {
    float clip = 1.0f;
    if (c.clip_norm > 0) {
        double squares = 0;
        for (int64_t first = 0; first < c.num; first += 4096) {
            const int64_t end = first + 4096 < c.num ? first + 4096 : c.num;
            vf total = {};
            int64_t i = first;
            for (; i + LANES <= end; i += LANES) total = fma(load(c.gradient + i), load(c.gradient + i), total);
            if (i < end) {
                const vf rest = load_first(c.gradient + i, (int)(end - i));
                total = fma(rest, rest, total);
            }
            squares += (double)sum(total);
        }
        const double share = c.clip_norm / (sqrt(squares) + 1e-6);
        clip = (float)(share < 1.0 ? share : 1.0);
        if (squares != squares) clip = NAN;
    }
    const float mean_share = (float)c.mean_share, square_share = (float)c.square_share,
                kept = (float)(1.0 - c.square_share);
    const float decay = (float)(1.0 - c.lr * c.weight_decay), by = (float)(-c.lr / c.mean_fix),
                root = (float)(1.0 / sqrt(c.square_fix)), eps = (float)c.eps;
    for (int64_t i = 0; i < c.num; i += LANES) {
        const int n = c.num - i < LANES ? (int)(c.num - i) : LANES;
        const auto get = [&](const float* p) { return n == LANES ? load(p + i) : load_first(p + i, n); };
        const auto put = [&](float* p, vf x) { n == LANES ? store(p + i, x) : store_first(p + i, x, n); };
        const vf g = get(c.gradient) * clip;
        const vf before = get(c.mean), mean = fma(g - before, splat(mean_share), before),
                 square = fma(g * g, splat(square_share), get(c.square) * kept);
        put(c.weight, fma(mean / fma(root_of(square), splat(root), splat(eps)), splat(by), get(c.weight) * decay));
        put(c.mean, mean);
        put(c.square, square);
        put(c.gradient, vf{});
    }
}

HEADRACE_END

HEADRACE_LEVEL_API(adamw)(const AdamWCall* c) {
    headrace::HEADRACE_LEVEL::adamw(*c);
    return 0;
}
