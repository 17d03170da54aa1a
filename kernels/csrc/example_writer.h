// Examples as they go to Kafka: the bytes that `wire.example_codec` defines.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "crc32.h"
#include "msgpack.h"
#include "user.h"

namespace headrace {

struct SequenceRules {
    int64_t partition, segment_len, num_slots, window_ms;
    int64_t num_columns, num_item_columns, num_user_features;  // `num_columns`: of an interaction
    bool deduplicate, user_tokens;
};

// Where the partition stands: the fields of `state.meta.Position`, and the offset at which the batch begins.
struct Position {
    int64_t applied_offset, applied_record_ms, newest_event_ms, counted_offset, num_accepted, num_duplicate, num_dead,
        num_late, next_number, writer_epoch, batch_start;
};

// What goes to the database in one batch; entries are offsets into `bytes`.
struct Puts {
    enum Kind : int64_t { EXAMPLE, USER, SEGMENT, NAME };
    struct Entry {
        int64_t kind, key_at, value_at, end, number, record_ms;
    };
    std::string bytes;
    std::vector<Entry> entries;

    // Adds the entry whose key and value were appended to `bytes` from `key_at` on.
    void add(Kind kind, size_t key_at, size_t value_at, int64_t number = -1, int64_t record_ms = -1) {
        entries.push_back({kind, static_cast<int64_t>(key_at), static_cast<int64_t>(value_at),
                           static_cast<int64_t>(bytes.size()), number, record_ms});
    }

    void clear() {
        bytes.clear();
        entries.clear();
    }
};

// An example, complete except for the numbers of its batch.
struct Draft {
    std::string user;
    std::vector<Name> names;
    std::string columns;
    int64_t record_ms, base_ms, offset, index, number, segment, first;
    int num, num_new, num_feedback, num_ids, flags, width;
};

inline void put_head(std::string& out, const SequenceRules& rules, const Draft& draft, const Position& at,
                     int64_t counted, int64_t replay_from) {
    out.append("\xdc\0\x19", 3);
    for (const int64_t each : {rules.partition, at.writer_epoch, rules.segment_len, rules.num_columns,
                               rules.num_user_features, at.applied_offset, replay_from, counted}) {
        put_integer(out, each);
    }
    out += '\x94';
    for (const int64_t each : {at.num_accepted, at.num_duplicate, at.num_dead, at.num_late}) put_integer(out, each);
    for (const int64_t each : {at.newest_event_ms, draft.record_ms, draft.base_ms, draft.offset, draft.index,
                               draft.number, draft.segment, draft.first}) {
        put_integer(out, each);
    }
    for (const int each : {draft.num, draft.num_new, draft.num_feedback, draft.num_ids, draft.flags, draft.width})
        put_integer(out, each);
    put_text(out, draft.user);
    const size_t num_names = draft.names.size();
    if (num_names < 16) {
        out += static_cast<char>(0x80 | num_names);
    } else {
        out += '\xde';
        put(out, __builtin_bswap16(static_cast<uint16_t>(num_names)));
    }
    for (const Name& each : draft.names) {
        put_integer(out, each.item);
        if (each.is_number) {
            int64_t number = 0;
            std::from_chars(each.text.data(), each.text.data() + each.text.size(), number);
            put_integer(out, number);
        } else {
            put_text(out, each.text);
        }
    }
}

// Writes an example's key, then the example.
inline void write_example(Puts& puts, const SequenceRules& rules, const Draft& draft, const Position& at,
                          int64_t counted, int64_t replay_from) {
    std::string& out = puts.bytes;
    const size_t key_at = out.size();
    out += draft.user;
    out += '\0';
    out += draft.num == rules.segment_len
               ? std::to_string(draft.segment % rules.num_slots)
               : "." + std::to_string(draft.segment % NUM_OPEN * rules.segment_len + draft.first);
    const size_t value_at = out.size();
    out.append("HRE\3\0\0\0\0\0\0", 10);
    const size_t head_at = out.size();
    put_head(out, rules, draft, at, counted, replay_from);
    const auto head_len = static_cast<uint16_t>(out.size() - head_at);
    std::memcpy(&out[head_at - 2], &head_len, 2);
    out += draft.columns;
    const uint32_t digest = crc32(reinterpret_cast<const uint8_t*>(&out[value_at + 8]), out.size() - value_at - 8);
    std::memcpy(&out[value_at + 4], &digest, 4);
    puts.add(Puts::EXAMPLE, key_at, value_at, draft.number, draft.record_ms);
}

}  // namespace headrace
