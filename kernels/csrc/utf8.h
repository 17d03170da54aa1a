// Which bytes are UTF-8, as Python's decoder has it: no surrogates, nothing overlong, nothing beyond U+10FFFF.
#pragma once

#include <cstdint>

namespace headrace {

// The length of the character that begins at `at`, of which `left` bytes may be read; 0 if there is no valid one.
inline int utf8_char(const uint8_t* at, int64_t left) {
    const uint8_t lead = at[0];
    if (lead < 0x80) return 1;
    const int num = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || left < num) return 0;
    const unsigned least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const unsigned most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (at[1] < least || at[1] > most) return 0;
    for (int i = 2; i < num; ++i)
        if ((at[i] & 0xc0) != 0x80) return 0;
    return num;
}

inline bool is_utf8(const uint8_t* at, int64_t num) {
    for (const uint8_t* end = at + num; at < end;) {
        const int size = utf8_char(at, end - at);
        if (size == 0) return false;
        at += size;
    }
    return true;
}

}  // namespace headrace
