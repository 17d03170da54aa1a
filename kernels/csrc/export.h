// Names of exported functions. A function of csrc/level/ carries its instruction set as a suffix.
//
// Two rules keep one binary safe on every processor:
//  - everything in csrc/level/ and csrc/amx/ lives in `namespace headrace::HEADRACE_LEVEL` (open it with
//    HEADRACE_BEGIN), and
//  - uses no inline function or template of the C++ standard library (std::vector, std::sort, ...): the linker keeps
//    only one copy of such a function, and that copy may be the one compiled with AVX-512.
#pragma once

#define HEADRACE_CONCAT_(a, b) a##_##b
#define HEADRACE_CONCAT(a, b) HEADRACE_CONCAT_(a, b)
#define HEADRACE_API extern "C" __attribute__((visibility("default")))
#define HEADRACE_LEVEL_API(name) HEADRACE_API int HEADRACE_CONCAT(name, HEADRACE_LEVEL)
#define HEADRACE_BEGIN         \
    namespace headrace {       \
    namespace HEADRACE_LEVEL { \
    namespace {
#define HEADRACE_END \
    }                \
    }                \
    }
