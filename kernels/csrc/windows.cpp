// Parts of users' histories, one after the other, as columns: what `kernels.windows` describes.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "export.h"
#include "id_map.h"

namespace {

// The beginning of a row of `wire.example.row_type`, which its features follow.
struct Row {
    int64_t item, time, domain;
    uint32_t bits;
    float value;
};
static_assert(sizeof(Row) == 32, "expected the layout of wire.example.row_type");

constexpr int64_t BLOCK = 64;

// How many choices and known rows come before a block of interactions, and which of its own they are.
struct Before {
    int64_t num_chosen, num_known;
    uint64_t is_chosen, is_known;
};

struct ListedRows {
    const void* map;      // of items' ids; null: the rows are given
    const int64_t* item;  // only read with a map
    int64_t* row;         // written with a map, else read
    const uint32_t* bits;
    const int64_t* time;
    int64_t num;
    uint32_t positive, negative;
    const int64_t *first, *target;
    int64_t num_targets;
    int32_t* chosen;
    int64_t* chosen_time;
    int32_t *known, *other;
    Before* before;
    int64_t *bounds, *lengths;
};

}  // namespace

// For each target, how many of the interactions from `first` up to it have each kind. Consecutive targets of the same
// user continue each other's counts.
HEADRACE_API void headrace_count_kinds(const uint32_t* bits, const int64_t* first, const int64_t* target,
                                       int64_t num_targets, int64_t num_kinds, double* done) {
    for (int64_t r = 0; r < num_targets; ++r, done += num_kinds) {
        const bool goes_on = r > 0 && first[r] == first[r - 1] && target[r] >= target[r - 1];
        const int64_t start = goes_on ? target[r - 1] : first[r];
        for (int64_t kind = 0; kind < num_kinds; ++kind) {
            uint32_t num = 0;
            for (int64_t i = start; i < target[r]; ++i) num += bits[i] >> kind & 1;
            done[kind] = num + (goes_on ? done[kind - num_kinds] : 0.0);
        }
    }
}

// Lists the rows above 0 of `num` interactions: those of choices (a bit of `positive`, none of `negative`) with their
// times, all, and those of the others. `bounds` (6, targets): the places in the three lists of the first interaction
// from `first` on, and of the first from `target` on, list by list. `before` (num / BLOCK + 1): room to work with.
// Writes the lengths of the first two lists. Returns 0.
HEADRACE_API int headrace_list_rows(const ListedRows* of) {
    auto [map, item, row, bits, time, num, positive, negative, first, target, num_targets, chosen, chosen_time, known,
          other, before, bounds, lengths] = *of;
    if (map) id_map_lookup(map, item, num, 1, row);
    int64_t num_chosen = 0, num_known = 0;
    for (int64_t start = 0; start <= num; start += BLOCK, ++before) {
        *before = {num_chosen, num_known, 0, 0};
        for (int64_t i = start; i < std::min(num, start + BLOCK); ++i) {
            const bool is_known = row[i] > 0,
                       is_chosen = is_known & ((bits[i] & positive) != 0) & ((bits[i] & negative) == 0);
            // Each is written at the end of its list, and stays there if it belongs to it.
            chosen[num_chosen] = known[num_known] = other[num_known - num_chosen] = static_cast<int32_t>(row[i]);
            chosen_time[num_chosen] = time[i];
            num_chosen += is_chosen, num_known += is_known;
            before->is_chosen |= uint64_t{is_chosen} << (i - start);
            before->is_known |= uint64_t{is_known} << (i - start);
        }
    }
    before -= num / BLOCK + 1;
    for (int64_t r = 0; r < num_targets; ++r)
        for (int64_t end = 0; end < 2; ++end) {
            const int64_t at = end ? target[r] : first[r];
            const Before& block = before[at / BLOCK];
            const uint64_t earlier = (uint64_t{1} << at % BLOCK) - 1;
            const int64_t chosen_before = block.num_chosen + __builtin_popcountll(block.is_chosen & earlier),
                          known_before = block.num_known + __builtin_popcountll(block.is_known & earlier);
            int64_t* to = bounds + end * num_targets + r;
            to[0] = chosen_before, to[2 * num_targets] = known_before;
            to[4 * num_targets] = known_before - chosen_before;
        }
    lengths[0] = num_chosen, lengths[1] = num_known;
    return 0;
}

// Of each column the rows from `begin` on, `length` of them, range after range. `row_bytes`: of a row of each column.
HEADRACE_API void headrace_take_ranges(const int64_t* begin, const int64_t* length, int64_t num_ranges,
                                       int64_t num_columns, const int64_t* row_bytes, const uint8_t* const* from,
                                       uint8_t* const* to) {
    for (int64_t column = 0; column < num_columns; ++column) {
        uint8_t* at = to[column];
        for (int64_t range = 0; range < num_ranges; ++range) {
            const int64_t size = length[range] * row_bytes[column];
            std::memcpy(at, from[column] + begin[range] * row_bytes[column], static_cast<size_t>(size));
            at += size;
        }
    }
}

// kinds (num, num_kinds): 1 where a set of bits has a kind, else 0.
HEADRACE_API void headrace_unpack_kinds(const uint32_t* bits, int64_t num, int64_t num_kinds, float* kinds) {
    for (int64_t i = 0; i < num; ++i)
        for (int64_t kind = 0; kind < num_kinds; ++kind) *kinds++ = static_cast<float>(bits[i] >> kind & 1);
}

// The rows from each address on, `num` of each user. Returns how many have no item.
HEADRACE_API int64_t headrace_join_windows(const int64_t* address, const int64_t* num, int64_t num_users,
                                           int64_t num_features, int64_t* item, int64_t* time, int64_t* domain,
                                           uint32_t* bits, float* value, int64_t* features) {
    const int64_t row_bytes = sizeof(Row) + 8 * num_features;
    int64_t num_absent = 0;
    for (int64_t user = 0; user < num_users; ++user) {
        const uint8_t* from = reinterpret_cast<const uint8_t*>(address[user]);
        const int64_t size = num[user];
        for (int64_t i = 0; i < size; ++i) {
            Row row;
            std::memcpy(&row, from + i * row_bytes, sizeof row);
            item[i] = row.item, time[i] = row.time, domain[i] = row.domain, bits[i] = row.bits, value[i] = row.value;
            num_absent += row.item == 0;
        }
        for (int64_t i = 0; num_features > 0 && i < size; ++i)
            std::memcpy(features + i * num_features, from + i * row_bytes + sizeof(Row),
                        static_cast<size_t>(8 * num_features));
        item += size, time += size, domain += size, bits += size, value += size;
        features += size * num_features;
    }
    return num_absent;
}
