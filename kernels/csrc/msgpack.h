// Integers and strings as MessagePack, each in its shortest form.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "segment.h"

namespace headrace {

inline void put_integer(std::string& out, int64_t number) {
    const auto bits = static_cast<uint64_t>(number);
    const auto big = [&](char mark, int num_bytes) {
        out += mark;
        for (int shift = 8 * (num_bytes - 1); shift >= 0; shift -= 8) out += static_cast<char>(bits >> shift & 255);
    };
    if (number >= 0) {
        if (number < 128) out += static_cast<char>(number);
        else if (number < 1 << 8) big('\xcc', 1);
        else if (number < 1 << 16) big('\xcd', 2);
        else if (number < int64_t{1} << 32) big('\xce', 4);
        else big('\xcf', 8);
    } else if (number >= -32) {
        out += static_cast<char>(number);
    } else if (number >= std::numeric_limits<int8_t>::min()) {
        big('\xd0', 1);
    } else if (number >= std::numeric_limits<int16_t>::min()) {
        big('\xd1', 2);
    } else if (number >= std::numeric_limits<int32_t>::min()) {
        big('\xd2', 4);
    } else {
        big('\xd3', 8);
    }
}

inline void put_text(std::string& out, std::string_view written) {
    const size_t num = written.size();
    if (num < 32) {
        out += static_cast<char>(0xa0 | num);
    } else if (num < 256) {
        out += '\xd9';
        out += static_cast<char>(num);
    } else {
        out += '\xda';
        put(out, __builtin_bswap16(static_cast<uint16_t>(num)));
    }
    out += written;
}

}  // namespace headrace
