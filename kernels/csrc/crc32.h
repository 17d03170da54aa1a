// CRC-32 with zlib's polynomial, slicing by eight.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

namespace headrace {

inline const std::array<std::array<uint32_t, 256>, 8>& crc_tables() {
    static const auto tables = [] {
        std::array<std::array<uint32_t, 256>, 8> t{};
        for (uint32_t i = 0; i < 256; ++i) {
            uint32_t c = i;
            for (int k = 0; k < 8; ++k) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
            t[0][i] = c;
        }
        for (uint32_t i = 0; i < 256; ++i)
            for (int k = 1; k < 8; ++k) t[k][i] = t[0][t[k - 1][i] & 255] ^ (t[k - 1][i] >> 8);
        return t;
    }();
    return tables;
}

inline uint32_t crc32(const uint8_t* at, int64_t num) {
    const auto& t = crc_tables();
    uint32_t c = 0xFFFFFFFFu;
    for (; num >= 8; at += 8, num -= 8) {
        uint64_t word;
        std::memcpy(&word, at, 8);
        word ^= c;
        c = t[7][word & 255] ^ t[6][word >> 8 & 255] ^ t[5][word >> 16 & 255] ^ t[4][word >> 24 & 255] ^
            t[3][word >> 32 & 255] ^ t[2][word >> 40 & 255] ^ t[1][word >> 48 & 255] ^ t[0][word >> 56];
    }
    for (; num > 0; ++at, --num) c = t[0][(c ^ *at) & 255] ^ (c >> 8);
    return ~c;
}

}  // namespace headrace
