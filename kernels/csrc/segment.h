// A segment of a user's sequence, as columns (`state.segment`) and in stored form (`state.segment_codec`).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "action.h"

namespace headrace {

enum Flag { LONG_TIMES = 1, DOMAINS = 2, VALUES = 4, FEATURES = 8, SESSIONS = 16, IDS = 64 };
constexpr int MAX_IDS = 8;
constexpr size_t SEGMENT_HEAD = 18, SEGMENT_NUMBER_AT = 14;

template <class T>
void put(std::string& out, T number) {
    out.append(reinterpret_cast<const char*>(&number), sizeof(number));
}

template <class T>
void put_all(std::string& out, const std::vector<T>& column, size_t first, size_t end) {
    out.append(reinterpret_cast<const char*>(column.data() + first), (end - first) * sizeof(T));
}

template <class T>
T read(std::string_view from, size_t at) {
    T found;
    std::memcpy(&found, from.data() + at, sizeof(found));
    return found;
}

// Interactions as the codec lays them out.
struct Cut {
    int64_t first_ms;
    int num, num_ids, flags, width;  // width: bytes per entry of the action bits
    std::string columns;
};

// A stored segment's header.
struct Described {
    int64_t first_ms;
    int num, num_ids, flags, width;
};

inline Described describe(std::string_view stored) {
    return {read<int64_t>(stored, 0), read<uint16_t>(stored, 8), read<uint16_t>(stored, 10), read<uint8_t>(stored, 12),
            read<uint8_t>(stored, 13)};
}

// A column that `flags` leaves out holds "none" everywhere.
struct Segment {
    int64_t index = 0;
    size_t num_features = 0;
    int flags = 0;
    std::vector<int64_t> items, times, domains, sessions, features, ids;
    std::vector<uint32_t> bits;
    std::vector<float> values;
    std::vector<uint8_t> id_counts;

    size_t size() const { return times.size(); }

    // Place of the newest interaction that an action joins (`state.segment.Segment.find`), or -1.
    int64_t find(const Action& action, int64_t window_ms) const {
        for (size_t place = size(); place-- > 0;) {
            if (items[place] != action.item_hash) continue;
            const int64_t distance_ms = action.timestamp_ms - times[place];
            if (distance_ms > window_ms) return -1;
            if (distance_ms >= -window_ms && (!action.session || sessions[place] == action.session))
                return static_cast<int64_t>(place);
        }
        return -1;
    }

    void append(const Action& action, const int64_t* feature_hashes, int64_t timestamp_ms) {
        if (action.domain) flags |= DOMAINS;
        if (action.session) flags |= SESSIONS;
        if (!std::isnan(action.value)) flags |= VALUES;
        if (std::any_of(feature_hashes, feature_hashes + num_features, [](int64_t h) { return h != 0; }))
            flags |= FEATURES;
        items.push_back(action.item_hash);
        times.push_back(timestamp_ms);
        bits.push_back(action.bits);
        domains.push_back(action.domain);
        sessions.push_back(action.session);
        values.push_back(action.value);
        features.insert(features.end(), feature_hashes, feature_hashes + num_features);
        id_counts.push_back(0);
    }

    // Adds an action, with the first `num_given` of the columns, to an interaction; returns the kinds that are new to
    // it, and whether anything has changed.
    std::pair<uint32_t, bool> join(size_t place, const Action& action, const int64_t* given, size_t num_given) {
        const uint32_t new_bits = action.bits & ~bits[place];
        bool changed = new_bits != 0;
        bits[place] |= new_bits;
        if (action.domain) changed |= replace(DOMAINS, domains[place], action.domain);
        if (!std::isnan(action.value)) changed |= replace(VALUES, values[place], action.value);
        for (size_t column = 0; column < num_given; ++column)
            if (given[column]) changed |= replace(FEATURES, features[place * num_features + column], given[column]);
        return {new_bits, changed};
    }

    // Adds an action's id to an interaction. Beyond MAX_IDS, the oldest is forgotten.
    void remember(size_t place, int64_t id) {
        flags |= IDS;
        size_t end = 0;
        for (size_t i = 0; i <= place; ++i) end += id_counts[i];
        ids.insert(ids.begin() + static_cast<std::ptrdiff_t>(end), id);
        if (++id_counts[place] > MAX_IDS) {
            id_counts[place] = MAX_IDS;
            ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(end - MAX_IDS));
        }
    }

    // The interactions at the places `first` to `end - 1`: at least one.
    Cut cut(size_t first, size_t end) const {
        Cut made{times[first], static_cast<int>(end - first), 0, 0, 0, {}};
        std::string& out = made.columns;
        const bool is_whole = first == 0 && end == size();
        put_all(out, items, first, end);
        const auto is_far = [&](int64_t time_ms) {
            return time_ms < made.first_ms || time_ms - made.first_ms > std::numeric_limits<uint32_t>::max();
        };
        if (std::any_of(times.begin() + first, times.begin() + end, is_far)) {
            made.flags = LONG_TIMES;
            put_all(out, times, first, end);
        } else {
            for (size_t i = first; i < end; ++i) put(out, static_cast<uint32_t>(times[i] - made.first_ms));
        }
        const uint32_t most = *std::max_element(bits.begin() + first, bits.begin() + end);
        made.width = most < 1u << 8 ? 1 : most < 1u << 16 ? 2 : 4;
        for (size_t i = first; i < end; ++i) out.append(reinterpret_cast<const char*>(&bits[i]), made.width);
        const auto optional = [&](int flag, const auto& column, size_t row, const auto is_none) {
            if (!(flags & flag)) return;
            const auto from = column.begin() + first * row, to = column.begin() + end * row;
            if (!is_whole && std::all_of(from, to, is_none)) return;
            made.flags |= flag;
            put_all(out, column, first * row, end * row);
        };
        const auto is_zero = [](int64_t hash) { return hash == 0; };
        const auto is_no_value = [](float value) {
            uint32_t found;
            std::memcpy(&found, &value, 4);
            return found == 0x7fc00000u;
        };
        optional(DOMAINS, domains, 1, is_zero);
        optional(VALUES, values, 1, is_no_value);
        optional(FEATURES, features, num_features, is_zero);
        optional(SESSIONS, sessions, 1, is_zero);
        if (flags & IDS) {
            size_t start = 0;
            for (size_t i = 0; i < first; ++i) start += id_counts[i];
            for (size_t i = first; i < end; ++i) made.num_ids += id_counts[i];
            if (made.num_ids || is_whole) {
                made.flags |= IDS;
                put_all(out, id_counts, first, end);
                put_all(out, ids, start, start + made.num_ids);
            }
        }
        return made;
    }

    std::string pack() const {
        const Cut made = cut(0, size());
        std::string out;
        put(out, made.first_ms);
        put(out, static_cast<uint16_t>(made.num));
        put(out, static_cast<uint16_t>(made.num_ids));
        put(out, static_cast<uint8_t>(made.flags));
        put(out, static_cast<uint8_t>(made.width));
        put(out, static_cast<uint32_t>(index));
        return out += made.columns;
    }

    // From the stored form; false for bytes that are not one of this index.
    bool unpack(std::string_view stored) {
        if (stored.size() < SEGMENT_HEAD) return false;
        const Described head = describe(stored);
        const auto num = static_cast<size_t>(head.num);
        flags = head.flags & ~LONG_TIMES;
        const size_t time_bytes = head.flags & LONG_TIMES ? 8 : 4, width = head.width;
        if (width != 1 && width != 2 && width != 4) return false;
        size_t row = 8 + time_bytes + width;
        row += flags & DOMAINS ? 8 : 0;
        row += flags & VALUES ? 4 : 0;
        row += flags & FEATURES ? 8 * num_features : 0;
        row += flags & SESSIONS ? 8 : 0;
        row += flags & IDS ? 1 : 0;
        if (!num || stored.size() != SEGMENT_HEAD + num * row + 8 * head.num_ids) return false;
        if (read<uint32_t>(stored, SEGMENT_NUMBER_AT) != static_cast<uint32_t>(index)) return false;
        const char* at = stored.data() + SEGMENT_HEAD;
        const auto column = [&](auto& into, int flag, size_t wanted, auto none) {
            into.assign(wanted, none);
            if (!wanted || (flag && !(flags & flag))) return;
            std::memcpy(into.data(), at, wanted * sizeof(into[0]));
            at += wanted * sizeof(into[0]);
        };
        column(items, 0, num, int64_t{0});
        if (time_bytes == 8) {
            column(times, 0, num, int64_t{0});
        } else {
            times.resize(num);
            for (size_t i = 0; i < num; ++i) times[i] = head.first_ms + read<uint32_t>({at, 4 * num}, 4 * i);
            at += 4 * num;
        }
        bits.assign(num, 0);
        for (size_t i = 0; i < num; ++i, at += width) std::memcpy(&bits[i], at, width);
        column(domains, DOMAINS, num, int64_t{0});
        column(values, VALUES, num, std::numeric_limits<float>::quiet_NaN());
        column(features, FEATURES, num * num_features, int64_t{0});
        column(sessions, SESSIONS, num, int64_t{0});
        column(id_counts, IDS, num, uint8_t{0});
        column(ids, 0, head.num_ids, int64_t{0});
        size_t num_ids = 0;
        for (const uint8_t each : id_counts) num_ids += each;
        return num_ids == static_cast<size_t>(head.num_ids);
    }

private:
    template <class T>
    bool replace(int flag, T& held, T given) {
        flags |= flag;
        if (held == given) return false;
        held = given;
        return true;
    }
};

}  // namespace headrace
