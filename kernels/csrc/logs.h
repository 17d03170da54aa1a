// Logarithms of vectors. Included only by csrc/level/*.cpp (see export.h for the rules there).
#pragma once

#include "simd.h"

HEADRACE_BEGIN

// log x, x > 0, to 2 ulp (Cephes).
template <typename F, typename I>
HEADRACE_INLINE F log_of(F x) {
    const I e = ((I)x - 0x3f3504f3) >> 23;
    const F f = (F)((I)x - (e << 23)) - 1.0f, z = f * f;
    F p = 7.0376836292e-2f * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    return f + (p * f * z - .5f * z) + __builtin_convertvector(e, F) * .69314718f;
}

HEADRACE_END
