// The highest level that this processor supports: 0 portable, 1 avx2, 2 avx512, 3 amx (see kernels/library.py).
#include "export.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

// Linux lets a process use the AMX tile registers only on request.
bool amx_permitted() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    const bool tile = edx & (1u << 24), bf16 = edx & (1u << 22);
    if (!tile || !bf16) return false;
    if (!__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) || !(eax & (1u << 5))) return false;  // avx512_bf16
    const long arch_req_xcomp_perm = 0x1023, xfeature_tile_data = 18;
    return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_tile_data) == 0;
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd");
}

// A hypervisor may hide any of these.
bool has_avx2() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 29));
    return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2");
}

}  // namespace

HEADRACE_API int headrace_cpu_level() {
    __builtin_cpu_init();
    if (!has_avx2()) return 0;
    if (!has_avx512()) return 1;
    return __builtin_cpu_supports("avx512vbmi") && amx_permitted() ? 3 : 2;
}
#else
HEADRACE_API int headrace_cpu_level() { return 0; }
#endif

HEADRACE_API int headrace_built_level() { return HEADRACE_BUILT_LEVEL; }

// The digest of the library's sources (see kernels/sources.py).
HEADRACE_API const char* headrace_sources() { return HEADRACE_SOURCES; }
