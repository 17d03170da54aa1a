// Hashes of users' and items' keys: xxh3-64 of up to 64 bytes (`wire.hashing`), and Kafka's murmur2
// (`wire.partitioner`).
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

namespace headrace {

constexpr size_t MAX_HASHED = 64;

namespace xxh3 {

constexpr uint64_t PRIME1 = 0x9E3779B185EBCA87u, PRIME2 = 0xC2B2AE3D27D4EB4Fu, PRIME3 = 0x165667B19E3779F9u;
constexpr uint8_t SECRET[MAX_HASHED] = {0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7,
                                        0x21, 0xad, 0x1c, 0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40,
                                        0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5,
                                        0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74,
                                        0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c};

inline uint64_t read64(const void* at) {
    uint64_t found;
    std::memcpy(&found, at, 8);
    return found;
}

inline uint32_t read32(const void* at) {
    uint32_t found;
    std::memcpy(&found, at, 4);
    return found;
}

inline uint64_t folded(uint64_t a, uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline uint64_t avalanche(uint64_t h) {
    h = (h ^ h >> 37) * 0x165667919E3779F9u;
    return h ^ h >> 32;
}

inline uint64_t mixed(const uint8_t* at, const uint8_t* secret) {
    return folded(read64(at) ^ read64(secret), read64(at + 8) ^ read64(secret + 8));
}

inline uint64_t rotated(uint64_t h, int by) { return h << by | h >> (64 - by); }

// Hashes 1 to `MAX_HASHED` bytes.
inline uint64_t digest(const uint8_t* at, size_t num) {
    const uint8_t* s = SECRET;
    if (num <= 3) {
        const uint32_t joined = static_cast<uint32_t>(at[0]) << 16 | static_cast<uint32_t>(at[num >> 1]) << 24 |
                                static_cast<uint32_t>(at[num - 1]) | static_cast<uint32_t>(num) << 8;
        uint64_t h = joined ^ static_cast<uint64_t>(read32(s) ^ read32(s + 4));
        h = (h ^ h >> 33) * PRIME2;
        h = (h ^ h >> 29) * PRIME3;
        return h ^ h >> 32;
    }
    if (num <= 8) {
        const uint64_t joined = read32(at + num - 4) + (static_cast<uint64_t>(read32(at)) << 32);
        uint64_t h = joined ^ read64(s + 8) ^ read64(s + 16);
        h ^= rotated(h, 49) ^ rotated(h, 24);
        h *= 0x9FB21C651E98DF25u;
        h ^= (h >> 35) + num;
        h *= 0x9FB21C651E98DF25u;
        return h ^ h >> 28;
    }
    if (num <= 16) {
        const uint64_t low = read64(at) ^ read64(s + 24) ^ read64(s + 32);
        const uint64_t high = read64(at + num - 8) ^ read64(s + 40) ^ read64(s + 48);
        return avalanche(num + __builtin_bswap64(low) + high + folded(low, high));
    }
    uint64_t h = num * PRIME1;
    if (num > 32) h += mixed(at + 16, s + 32) + mixed(at + num - 32, s + 48);
    return avalanche(h + mixed(at, s) + mixed(at + num - 16, s + 16));
}

}  // namespace xxh3

// Never 0, which means "none". For 1 to `MAX_HASHED` bytes.
inline int64_t key_hash(std::string_view key) {
    const uint64_t found = xxh3::digest(reinterpret_cast<const uint8_t*>(key.data()), key.size());
    return found ? static_cast<int64_t>(found) : 1;
}

inline uint32_t murmur2(std::string_view key) {
    constexpr uint32_t MULTIPLIER = 0x5bd1e995u;
    const auto* at = reinterpret_cast<const uint8_t*>(key.data());
    size_t num = key.size();
    uint32_t state = 0x9747b28cu ^ static_cast<uint32_t>(num);
    for (; num >= 4; at += 4, num -= 4) {
        uint32_t word = xxh3::read32(at) * MULTIPLIER;
        word = (word ^ word >> 24) * MULTIPLIER;
        state = state * MULTIPLIER ^ word;
    }
    if (num) {
        uint32_t tail = 0;
        std::memcpy(&tail, at, num);
        state = (state ^ tail) * MULTIPLIER;
    }
    state = (state ^ state >> 13) * MULTIPLIER;
    return state ^ state >> 15;
}

}  // namespace headrace
