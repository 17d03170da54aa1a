// Decodes records of the sequences topic into columns, a Kafka batch at a time (`wire.example_codec` decodes them one
// by one).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "crc32.h"
#include "example_head.h"
#include "export.h"
#include "utf8.h"

namespace {

using headrace::crc32;
using namespace headrace::head;

constexpr int LONG_TIMES = 1, DOMAINS = 2, VALUES = 4, FEATURES = 8, SESSIONS = 16, IDS = 64;
constexpr int64_t HEADER_FIELDS = 25, NUM_COUNTS = 4;
constexpr int64_t MAX_COUNT = 1 << 20, MAX_SEGMENT = int64_t{1} << 40, MAX_NUMBER = int64_t{1} << 60;

enum Status { GOOD, TOMBSTONE, OTHER };

// Reads the bytes between two addresses; once something does not fit, `ok` is false and every read returns zero.
struct Reader {
    const uint8_t* at;
    const uint8_t* end;
    bool ok = true;

    bool has(int64_t num) {
        if (!ok || num < 0 || end - at < num) ok = false;
        return ok;
    }
    uint64_t big(int num) {
        if (!has(num)) return 0;
        uint64_t found = 0;
        for (int i = 0; i < num; ++i) found = found << 8 | *at++;
        return found;
    }
    int64_t zigzag() {
        uint64_t found = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            if (!has(1)) return 0;
            const uint8_t byte = *at++;
            found |= static_cast<uint64_t>(byte & 127) << shift;
            if (byte < 128) return static_cast<int64_t>(found >> 1) ^ -static_cast<int64_t>(found & 1);
        }
        ok = false;
        return 0;
    }
    const uint8_t* take(int64_t num) {
        if (!has(num)) return nullptr;
        const uint8_t* from = at;
        at += num;
        return from;
    }
    int64_t integer() {  // of MessagePack
        if (!has(1)) return 0;
        const uint8_t tag = *at++;
        if (tag < 0x80) return tag;
        if (tag >= 0xE0) return static_cast<int8_t>(tag);
        switch (tag) {
            case 0xCC: return static_cast<int64_t>(big(1));
            case 0xCD: return static_cast<int64_t>(big(2));
            case 0xCE: return static_cast<int64_t>(big(4));
            case 0xCF: {
                const uint64_t found = big(8);
                if (found >> 63) ok = false;
                return static_cast<int64_t>(found);
            }
            case 0xD0: return static_cast<int8_t>(big(1));
            case 0xD1: return static_cast<int16_t>(big(2));
            case 0xD2: return static_cast<int32_t>(big(4));
            case 0xD3: return static_cast<int64_t>(big(8));
            default: ok = false; return 0;
        }
    }
    int64_t array() {
        if (!has(1)) return 0;
        const uint8_t tag = *at++;
        if ((tag & 0xF0) == 0x90) return tag & 15;
        if (tag == 0xDC) return static_cast<int64_t>(big(2));
        ok = false;
        return 0;
    }
    int64_t text() {
        if (!has(1)) return 0;
        const uint8_t tag = *at++;
        if ((tag & 0xE0) == 0xA0) return tag & 31;
        if (tag == 0xD9) return static_cast<int64_t>(big(1));
        if (tag == 0xDA) return static_cast<int64_t>(big(2));
        if (tag == 0xDB) return static_cast<int64_t>(big(4));
        ok = false;
        return 0;
    }
};

template <typename T>
T load(const uint8_t* from) {
    T found;
    std::memcpy(&found, from, sizeof(T));
    return found;
}

template <typename T>
void store(uint8_t* to, T what) {
    std::memcpy(to, &what, sizeof(T));
}

struct Rows {
    uint8_t* at;
    int64_t used, capacity, num_features;
    int64_t width() const { return 32 + 8 * num_features; }
};

// Decodes one value into its head and rows; returns false if the codec has to decode it.
bool decode(const uint8_t* value, int64_t size, const uint8_t* origin, int64_t* head, Rows& rows) {
    if (size < 10 || std::memcmp(value, "HRE\x03", 4) != 0) return false;
    if (crc32(value + 8, size - 8) != load<uint32_t>(value + 4)) return false;
    const int64_t header_len = load<uint16_t>(value + 8);
    if (10 + header_len > size) return false;
    Reader in{value + 10, value + 10 + header_len};
    if (in.array() != HEADER_FIELDS) return false;
    head[PARTITION] = in.integer();
    head[EPOCH] = in.integer();
    head[SEGMENT_LEN] = in.integer();
    const int64_t num_features = in.integer();
    const int64_t num_user_features = head[NUM_USER_FEATURES] = in.integer();
    in.integer();  // the offset applied
    head[RESUME_FROM] = in.integer();
    in.integer();  // the offset counted
    if (in.array() != NUM_COUNTS) return false;
    for (int i = 0; i < NUM_COUNTS; ++i) in.integer();
    head[EVENT_MS] = in.integer();
    head[RECORD_MS] = in.integer();
    const int64_t base_ms = in.integer();
    in.integer(), in.integer();  // the user's last action
    head[NUMBER] = in.integer();
    head[SEGMENT] = in.integer();
    const int64_t first = head[FIRST] = in.integer();
    const int64_t num = head[NUM] = in.integer();
    const int64_t num_new = head[NUM_NEW] = in.integer(), num_feedback = head[NUM_FEEDBACK] = in.integer();
    const int64_t num_ids = in.integer();
    const int64_t flags = head[FLAGS] = in.integer();
    const int64_t width = in.integer();
    const int64_t user_len = head[USER_LEN] = in.text();
    const uint8_t* user = in.take(user_len);
    if (!in.ok || in.at >= in.end) return false;  // names follow, which the caller reads if it needs them
    if (!headrace::is_utf8(user, user_len)) return false;
    head[USER_AT] = user - origin;
    head[NAMES_AT] = in.at - origin, head[NAMES_LEN] = in.end - in.at;
    if (num_features != rows.num_features || flags & 32) return false;
    for (const int64_t each : {first, num, num_new, num_feedback, num_ids, num_user_features, head[SEGMENT_LEN]})
        if (each < 0 || each > MAX_COUNT) return false;
    for (const int64_t each : {head[EPOCH], head[NUMBER]})
        if (each < -1 || each > MAX_NUMBER) return false;
    if (head[SEGMENT_LEN] < 1 || (width != 1 && width != 2 && width != 4)) return false;
    if (num_new > num || num_feedback > num - num_new || num + first > head[SEGMENT_LEN]) return false;
    if (head[SEGMENT] < 0 || head[SEGMENT] > MAX_SEGMENT) return false;
    const int64_t time_width = flags & LONG_TIMES ? 8 : 4, index_width = head[SEGMENT_LEN] <= 256 ? 1 : 2;
    const int64_t row = 8 + time_width + width + (flags & DOMAINS ? 8 : 0) + (flags & VALUES ? 4 : 0) +
                        (flags & FEATURES ? 8 * num_features : 0) + (flags & SESSIONS ? 8 : 0) + (flags & IDS ? 1 : 0);
    const uint8_t* at = value + 10 + header_len;
    if (at + num * row + 8 * (num_ids + num_user_features) + num_feedback * (4 + index_width) != value + size)
        return false;
    if ((num_ids != 0) != ((flags & IDS) != 0) || rows.used + num > rows.capacity) return false;
    const uint8_t *item = at, *time = item + 8 * num, *bits = time + time_width * num, *next = bits + width * num;
    const auto column = [&](int flag, int64_t bytes) {
        const uint8_t* from = flags & flag ? next : nullptr;
        if (from) next += bytes * num;
        return from;
    };
    const uint8_t *domain = column(DOMAINS, 8), *amount = column(VALUES, 4);
    const uint8_t* features = column(FEATURES, 8 * num_features);
    column(SESSIONS, 8);
    if (const uint8_t* counts = column(IDS, 1)) {
        int64_t sum = 0;
        for (int64_t i = 0; i < num; ++i) sum += counts[i];
        if (sum != num_ids) return false;
    }
    head[USER_FEATURES_AT] = next + 8 * num_ids - origin;
    head[FEEDBACK_AT] = head[USER_FEATURES_AT] + 8 * num_user_features;
    const uint8_t* places = origin + head[FEEDBACK_AT];
    for (int64_t i = 0; i < num_feedback; ++i)
        if ((index_width == 1 ? places[i] : load<uint16_t>(places + 2 * i)) >= num - num_new) return false;
    head[ROWS_AT] = rows.used;
    for (int64_t i = 0; i < num; ++i) {
        uint8_t* to = rows.at + (rows.used + i) * rows.width();
        store(to, load<int64_t>(item + 8 * i));
        store(to + 8, static_cast<uint64_t>(base_ms) +
                          (flags & LONG_TIMES ? load<uint64_t>(time + 8 * i) : load<uint32_t>(time + 4 * i)));
        store(to + 16, domain ? load<int64_t>(domain + 8 * i) : int64_t{0});
        store(to + 24, width == 1   ? uint32_t{bits[i]}
                       : width == 2 ? uint32_t{load<uint16_t>(bits + 2 * i)}
                                    : load<uint32_t>(bits + 4 * i));
        store(to + 28, amount ? load<float>(amount + 4 * i) : std::numeric_limits<float>::quiet_NaN());
        if (features) std::memcpy(to + 32, features + 8 * num_features * i, static_cast<size_t>(8 * num_features));
        else std::memset(to + 32, 0, static_cast<size_t>(8 * num_features));
    }
    rows.used += num;
    return true;
}

void decode_value(const uint8_t* value, int64_t size, const uint8_t* origin, int64_t* head, Rows& rows) {
    head[VALUE_AT] = value - origin;
    head[VALUE_LEN] = size;
    head[STATUS] = size < 0 ? TOMBSTONE : GOOD;
    if (size >= 0 && !decode(value, size, origin, head, rows)) head[STATUS] = OTHER;
}

}  // namespace

// Decodes consecutive batches of records (format 2, uncompressed), given (base offset, records) of each. Writes heads
// (records, NUM_HEADS) and rows; returns the number of rows, or -1 if the bytes are not batches.
HEADRACE_API int64_t headrace_decode_examples(const uint8_t* data, int64_t size, int64_t num_batches,
                                              const int64_t* batches, int64_t num_features, int64_t* heads,
                                              uint8_t* rows_at, int64_t capacity) {
    Reader in{data, data + size};
    Rows rows{rows_at, 0, capacity, num_features};
    int64_t* head = heads - NUM_HEADS;
    for (int64_t b = 0; b < num_batches; ++b)
        for (int64_t i = 0; i < batches[2 * b + 1]; ++i) {
            head += NUM_HEADS;
            std::memset(head, 0, sizeof(int64_t) * NUM_HEADS);
            const int64_t length = in.zigzag();
            if (!in.has(length)) return -1;
            Reader record{in.at, in.at + length};
            in.at += length;
            record.take(1);
            record.zigzag();
            head[OFFSET] = batches[2 * b] + record.zigzag();
            const int64_t key_len = record.zigzag();
            if (key_len > 0) record.take(key_len);
            const int64_t value_len = record.zigzag();
            const uint8_t* value = value_len > 0 ? record.take(value_len) : record.at;
            if (!record.ok) return -1;
            decode_value(value, value_len, data, head, rows);
        }
    return in.at == in.end ? rows.used : -1;
}

// Decodes values that stand one after the other in `data`, each of the length given; -1 for a tombstone. Otherwise like
// the above.
HEADRACE_API int64_t headrace_decode_values(const uint8_t* data, int64_t num, const int64_t* lengths,
                                            int64_t num_features, int64_t* heads, uint8_t* rows_at, int64_t capacity) {
    Rows rows{rows_at, 0, capacity, num_features};
    std::memset(heads, 0, sizeof(int64_t) * static_cast<size_t>(NUM_HEADS * num));
    const uint8_t* value = data;
    for (int64_t i = 0; i < num; value += std::max(lengths[i], int64_t{0}), ++i)
        decode_value(value, lengths[i], data, heads + i * NUM_HEADS, rows);
    return rows.used;
}
