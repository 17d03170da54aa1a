// The C interface of a partition's sequencer, for `kernels.sequences`.

#include "sequences.h"

#include <deque>
#include <exception>

#include "export.h"

namespace {

using namespace headrace;

// A sequencer, and the buffers that calls return pointers into.
struct Partition {
    Partition(const ActionRules& action, const SequenceRules& sequence) : sequences(action, sequence) {}

    Sequences sequences;
    std::vector<std::string_view> users;
    std::vector<int64_t> items;
    std::string text;  // names, joined
    std::vector<int64_t> ends;
    std::deque<std::string> kept;  // keys of actions that were decoded elsewhere
};

std::string_view next(const char*& text, const int64_t*& sizes) {
    const std::string_view found(text, static_cast<size_t>(*sizes));
    text += *sizes++;
    return found;
}

template <class Work>
int64_t guarded(const Work& work) {
    try {
        return work();
    } catch (const std::exception&) {
        return -2;  // out of memory, or a user whose segments are missing
    }
}

}  // namespace

// `numbers`: partition, num_partitions, segment_len, num_slots, window_ms, deduplicate, min_timestamp_ms,
// max_timestamp_ms, max_future_ms, max_record_bytes, max_actions, kinds, features, user features (how many),
// user_tokens, propensity. `text`: the names of kinds, features and user features, joined; `sizes`: the length of each.
HEADRACE_API void* headrace_sequences_new(const int64_t* numbers, const char* text, const int64_t* sizes) try {
    ActionRules action{};
    for (int64_t kind = 0; kind < numbers[11]; ++kind) action.kinds.emplace_back(next(text, sizes), 1u << kind);
    for (int64_t i = 0; i < numbers[12]; ++i) action.features.emplace_back(next(text, sizes));
    for (int64_t i = 0; i < numbers[13]; ++i) action.user_features.emplace_back(next(text, sizes));
    action.partition = numbers[0], action.num_partitions = numbers[1];
    action.min_timestamp_ms = numbers[6], action.max_timestamp_ms = numbers[7], action.max_future_ms = numbers[8];
    action.max_record_bytes = numbers[9], action.max_actions = numbers[10];
    action.propensity = numbers[15] != 0;
    const bool deduplicate = numbers[5] != 0, user_tokens = numbers[14] != 0;
    const auto num_item_columns = static_cast<int64_t>(action.num_item_columns());
    const SequenceRules sequence{
        numbers[0],       numbers[2],  numbers[3],  numbers[4], num_item_columns + (user_tokens ? numbers[13] : 0),
        num_item_columns, numbers[13], deduplicate, user_tokens};
    return new Partition(action, sequence);
} catch (const std::exception&) {
    return nullptr;
}

HEADRACE_API void headrace_sequences_free(void* made) { delete static_cast<Partition*>(made); }

// `records` (n, 3): where a record begins and ends in `data`, and its Kafka timestamp. `found` (n, 2): the range of its
// actions; the first is -1 if the definition has to decode it. Replaces what was decoded before; `data` must live until
// the next call.
HEADRACE_API int64_t headrace_sequences_decode(void* made, const char* data, const int64_t* records, int64_t num,
                                               int64_t* found) {
    return guarded([&]() -> int64_t {
        Partition& partition = *static_cast<Partition*>(made);
        Sequences& sequences = partition.sequences;
        sequences.actions.clear();
        sequences.hashes.clear();
        partition.kept.clear();
        for (int64_t i = 0; i < num; ++i, records += 3, found += 2) {
            found[0] = static_cast<int64_t>(sequences.actions.size());
            if (!sequences.decoder.record(data + records[0], records[1] - records[0], records[2])) found[0] = -1;
            found[1] = static_cast<int64_t>(sequences.actions.size());
        }
        return 0;
    });
}

// Adds an action that was decoded elsewhere; returns its index. `numbers`: lengths of the keys of user and item,
// whether the item is an integer, its hash, kinds, timestamp, id, session, domain, index; then its columns.
HEADRACE_API int64_t headrace_sequences_add(void* made, const char* keys, const int64_t* numbers, double value) {
    return guarded([&]() -> int64_t {
        Partition& partition = *static_cast<Partition*>(made);
        Sequences& sequences = partition.sequences;
        const std::string& kept = partition.kept.emplace_back(keys, static_cast<size_t>(numbers[0] + numbers[1]));
        Action one;
        one.user = std::string_view(kept).substr(0, numbers[0]);
        one.item = std::string_view(kept).substr(numbers[0]);
        one.is_number = numbers[2] != 0, one.item_hash = numbers[3], one.bits = static_cast<uint32_t>(numbers[4]);
        one.timestamp_ms = numbers[5], one.id = numbers[6], one.session = numbers[7], one.domain = numbers[8];
        one.index = numbers[9], one.value = static_cast<float>(value);
        one.features_at = static_cast<int64_t>(sequences.hashes.size());
        sequences.hashes.insert(sequences.hashes.end(), numbers + 10, numbers + 10 + sequences.action.num_columns());
        sequences.actions.push_back(one);
        return static_cast<int64_t>(sequences.actions.size()) - 1;
    });
}

// What `load` and `know` must be given before the actions can be applied. `nums`: how many users and items; `found`:
// the users' names, joined, where each ends, and the items' hashes.
HEADRACE_API int64_t headrace_sequences_missing(void* made, int64_t* nums, const void** found) {
    return guarded([&]() -> int64_t {
        Partition& partition = *static_cast<Partition*>(made);
        partition.users.clear();
        partition.items.clear();
        partition.text.clear();
        partition.ends.clear();
        partition.sequences.missing(partition.users, partition.items);
        for (const std::string_view name : partition.users) {
            partition.text += name;
            partition.ends.push_back(static_cast<int64_t>(partition.text.size()));
        }
        nums[0] = static_cast<int64_t>(partition.users.size()), nums[1] = static_cast<int64_t>(partition.items.size());
        found[0] = partition.text.data(), found[1] = partition.ends.data(), found[2] = partition.items.data();
        return 0;
    });
}

// `text`: name and stored user, joined; `sizes`: the length of each. -1 for damaged bytes.
HEADRACE_API int64_t headrace_sequences_load(void* made, const char* text, const int64_t* sizes) {
    return guarded([&]() -> int64_t {
        const std::string_view name = next(text, sizes), stored = next(text, sizes);
        return static_cast<Partition*>(made)->sequences.load(name, stored) ? 0 : -1;
    });
}

// Returns how many users need `complete`. `found`: their names, joined; and of each where it ends, and the range of the
// segments.
HEADRACE_API int64_t headrace_sequences_incomplete(void* made, const void** found) {
    return guarded([&]() -> int64_t {
        Partition& partition = *static_cast<Partition*>(made);
        partition.text.clear();
        partition.ends.clear();
        const auto users = partition.sequences.incomplete();
        for (const User* user : users) {
            partition.text += user->name;
            partition.ends.push_back(static_cast<int64_t>(partition.text.size()));
            partition.ends.push_back(user->first_segment);
            partition.ends.push_back(user->tail.index);
        }
        found[0] = partition.text.data(), found[1] = partition.ends.data();
        return static_cast<int64_t>(users.size());
    });
}

// `text`: name and `num` stored segments, joined; `sizes`: the length of each. -1 for damaged bytes.
HEADRACE_API int64_t headrace_sequences_complete(void* made, const char* text, const int64_t* sizes, int64_t num) {
    return guarded([&]() -> int64_t {
        const std::string_view name = next(text, sizes);
        std::vector<std::string_view> older;
        for (int64_t i = 0; i < num; ++i) older.push_back(next(text, sizes));
        return static_cast<Partition*>(made)->sequences.complete(name, older) ? 0 : -1;
    });
}

// Items that an example has named.
HEADRACE_API int64_t headrace_sequences_know(void* made, const int64_t* items, int64_t num) {
    return guarded([&]() -> int64_t {
        for (int64_t i = 0; i < num; ++i) static_cast<Partition*>(made)->sequences.know(items[i]);
        return 0;
    });
}

HEADRACE_API int64_t headrace_sequences_drop(void* made, const char* name, int64_t size) {
    return guarded([&]() -> int64_t {
        static_cast<Partition*>(made)->sequences.drop({name, static_cast<size_t>(size)});
        return 0;
    });
}

// Applies records: `records` (n, 4) are the range of a record's actions, its offset and its Kafka timestamp. `position`
// is read and written. Then ends the batch; returns how many entries `found` has, with the bytes that they refer to.
HEADRACE_API int64_t headrace_sequences_apply(void* made, const int64_t* records, int64_t num, int64_t* position,
                                              int64_t* num_bytes, const void** found) {
    return guarded([&]() -> int64_t {
        Sequences& sequences = static_cast<Partition*>(made)->sequences;
        Position at;
        static_assert(sizeof(at) == 11 * sizeof(int64_t));
        std::memcpy(&at, position, sizeof(at));
        for (; num > 0; --num, records += 4) sequences.apply(records[0], records[1], records[2], records[3], at);
        sequences.drain(at);
        std::memcpy(position, &at, sizeof(at));
        *num_bytes = static_cast<int64_t>(sequences.puts.bytes.size());
        found[0] = sequences.puts.bytes.data(), found[1] = sequences.puts.entries.data();
        return static_cast<int64_t>(sequences.puts.entries.size());
    });
}

// Call once everything is on disk.
HEADRACE_API int64_t headrace_sequences_settle(void* made, int64_t max_users, int64_t max_names) {
    return guarded([&]() -> int64_t {
        static_cast<Partition*>(made)->sequences.settle(static_cast<size_t>(max_users), static_cast<size_t>(max_names));
        return 0;
    });
}
