// float16 beside float32 and bfloat16: loads, stores, single numbers, and the choice among a table's types at run time.
#pragma once

#include "lanes.h"

HEADRACE_BEGIN

struct f16 {
    uint16_t bits;
};

// `add(drop, bits)`: what is added to a number's bits before the lowest `drop` of them are cut off, below 2^drop.
// Numbers beyond float16's range become infinite; those below half of the smallest one with 31 bits to cut, zero.
template <class Add>
HEADRACE_INLINE vh cut_to_f16(vf v, Add add) {
    const vu u = (vu)v, magnitude = u & 0x7fffffffu, exponent = magnitude >> 23;
    const vi is_subnormal = exponent < 113u, is_zero = exponent < 95u;  // below 2^-14, float16's steps are 2^-24
    const vu wide = 126u - exponent;
    const vu drop = is_subnormal ? (wide < 31u ? wide : vu{} + 31u) : vu{} + 13u;
    const vu bits = is_subnormal ? (magnitude & 0x7fffffu) | 0x800000u : magnitude - (112u << 23);
    vu half = (bits + add(drop, bits)) >> drop;
    half = is_zero ? vu{} : half;
    half = ((half > 0x7c00u) | (magnitude >= 0x7f800000u)) ? vu{} + 0x7c00u : half;
    half = v == v ? half : vu{} + 0x7e00u;
    return __builtin_convertvector(half | (u >> 16 & 0x8000u), vh);
}

HEADRACE_INLINE vf load(const f16* p) {
    vh h;
    __builtin_memcpy(&h, p, sizeof h);
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps((__m256i)h);
#elif defined(__AVX2__)
    return (vf)_mm256_cvtph_ps((__m128i)h);
#else
    const vu bits = __builtin_convertvector(h, vu), magnitude = (bits & 0x7fffu) << 13;
    const vu exponent = magnitude & 0x0f800000u, normal = magnitude + (112u << 23);
    const vf subnormal = (vf)(normal + (1u << 23)) - 6.103515625e-05f;  // 2^-14
    vu found = exponent == 0u ? (vu)subnormal : normal;
    found = exponent == 0x0f800000u ? normal + (112u << 23) : found;
    return (vf)(found | (bits & 0x8000u) << 16);
#endif
}

#if defined(__AVX512F__)
template <>
HEADRACE_INLINE vf load_first<f16>(const f16* p, int n) {
    return (vf)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
}
#endif

HEADRACE_INLINE vh round_to_f16(vf v) {
#if defined(__AVX512F__)
    return (vh)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__)
    return (vh)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
    return cut_to_f16(v, [](vu drop, vu bits) { return (1u << (drop - 1u)) - 1u + ((bits >> drop) & 1u); });
#endif
}
HEADRACE_INLINE void store(f16* p, vf v) {
    const vh h = round_to_f16(v);
    __builtin_memcpy(p, &h, sizeof h);
}

// One number.
HEADRACE_INLINE float value(const float* p) { return *p; }
HEADRACE_INLINE float value(const bf16* p) {
    const uint32_t bits = (uint32_t)p->bits << 16;
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}
HEADRACE_INLINE float value(const f16* p) {
#if defined(__AVX2__) || defined(__AVX512F__)
    return _cvtsh_ss(p->bits);
#else
    return load_first(p, 1)[0];
#endif
}

// Calls `work` with a table's rows as what they are. Types: 0 float, 1 bfloat16, 2 float16.
template <class Work>
HEADRACE_INLINE void with_rows(const void* rows, int64_t type, Work work) {
    if (type == 0) work(static_cast<const float*>(rows));
    else if (type == 1) work(static_cast<const bf16*>(rows));
    else work(static_cast<const f16*>(rows));
}

HEADRACE_END
