// The part of a user's sequence that is in memory: `state.user`.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "segment.h"

namespace headrace {

constexpr int64_t NUM_OPEN = 2;

struct Name {
    int64_t item;
    std::string text;
    bool is_number;
};

struct User {
    explicit User(std::string_view called, size_t num_features) : name(called) { tail.num_features = num_features; }

    std::string name;
    Segment tail;
    int64_t first_segment = 0;
    bool is_whole = true;                  // whether `older` is loaded
    std::map<int64_t, std::string> older;  // segment before the tail -> its stored form
    std::vector<int64_t> old_ids;          // ids of the actions in them
    std::vector<int64_t> dirty, features;
    int64_t offset = -1, index = -1, skip_offset = -1, skip_index = -1;
    int64_t run = -1, run_start = 0, run_first = 0, run_end = 0, run_record_ms = -1;
    bool run_changed = false, is_running = false, is_changed = false;
    std::map<int64_t, uint32_t> feedback;
    std::vector<std::pair<int64_t, std::vector<std::pair<uint16_t, uint16_t>>>> pieces;
    std::vector<Name> names;
    User *longer = nullptr, *shorter = nullptr;  // neighbours in `UserCache`: quiet for longer, and not as long

    bool knows(int64_t id) const {
        const auto holds = [id](const std::vector<int64_t>& ids) {
            int64_t found = 0;
            for (const int64_t each : ids) found |= each == id;
            return found != 0;
        };
        return holds(tail.ids) || holds(old_ids);
    }

    void gather_ids() {
        old_ids.clear();
        for (const auto& [_, stored] : older) {
            const size_t num = describe(stored).num_ids, size = old_ids.size();
            if (!num) continue;
            old_ids.resize(size + num);
            std::memcpy(old_ids.data() + size, stored.data() + stored.size() - 8 * num, 8 * num);
        }
    }

    void mark_dirty(int64_t segment) {
        if (std::find(dirty.begin(), dirty.end(), segment) == dirty.end()) dirty.push_back(segment);
    }

    void close_older(const Segment& segment) {
        older[segment.index] = segment.pack();
        gather_ids();
        mark_dirty(segment.index);
    }

    void roll(int64_t num_slots) {
        const size_t num_features = tail.num_features;
        const int64_t index_ = tail.index;
        older[index_] = tail.pack();
        mark_dirty(index_);
        tail = Segment();
        tail.index = index_ + 1, tail.num_features = num_features;
        const int64_t first = std::max(first_segment, tail.index - num_slots + 1);
        for (int64_t gone = first_segment; gone < first; ++gone) {
            older.erase(gone);
            dirty.erase(std::remove(dirty.begin(), dirty.end(), gone), dirty.end());
            drop_pieces(gone);
        }
        first_segment = first;
        gather_ids();
    }

    bool drop_pieces(int64_t segment) {
        const auto is_it = [segment](const auto& each) { return each.first == segment; };
        const auto at = std::find_if(pieces.begin(), pieces.end(), is_it);
        if (at == pieces.end()) return false;
        pieces.erase(at);
        return true;
    }

    // The range of places that an example must hold if places [first, end) of the segment have changed.
    std::pair<int64_t, int64_t> cover(int64_t segment, int64_t first, int64_t end, int64_t length) {
        if (segment <= tail.index - NUM_OPEN) return {0, length};
        auto own =
            std::find_if(pieces.begin(), pieces.end(), [segment](const auto& each) { return each.first == segment; });
        if (own == pieces.end()) own = pieces.insert(pieces.end(), {segment, {}});
        auto& held = own->second;
        auto at = std::find_if(held.begin(), held.end(), [first](const auto& each) { return each.first == first; });
        const int64_t num = std::max<int64_t>(end - first, at == held.end() ? 1 : at->second);
        if (num == length) {
            pieces.erase(own);
        } else if (num > 1) {
            if (at == held.end()) at = held.insert(held.end(), {static_cast<uint16_t>(first), 0});
            at->second = static_cast<uint16_t>(num);
        }
        return {first, first + num};
    }

    bool replace_features(const int64_t* given) {
        bool changed = false;
        for (size_t column = 0; column < features.size(); ++column) {
            if (!given[column] || features[column] == given[column]) continue;
            features[column] = given[column];
            changed = true;
        }
        return changed;
    }

    // Appends the form in which the store keeps the user.
    void encode(std::string& out) const {
        put(out, tail.index);
        put(out, offset);
        put(out, static_cast<int32_t>(index));
        put(out, first_segment);
        put(out, static_cast<uint16_t>(features.size()));
        put(out, static_cast<uint8_t>(pieces.size()));
        for (const auto& [segment, held] : pieces) {
            put(out, segment);
            put(out, static_cast<uint16_t>(held.size()));
            for (const auto& each : held) put(out, each.first);
            for (const auto& each : held) put(out, each.second);
        }
        put_all(out, features, 0, features.size());
        out += tail.pack();
    }

    // Restores the user from the stored form, without older segments; returns false for damaged bytes.
    bool decode(std::string_view stored) {
        constexpr size_t HEAD = 31, PIECES = 10;
        if (stored.size() < HEAD) return false;
        tail.index = read<int64_t>(stored, 0);
        offset = skip_offset = read<int64_t>(stored, 8);
        index = skip_index = read<int32_t>(stored, 16);
        first_segment = read<int64_t>(stored, 20);
        const size_t num_features = read<uint16_t>(stored, 28);
        size_t at = HEAD;
        for (int left = read<uint8_t>(stored, 30); left > 0; --left) {
            if (stored.size() < at + PIECES) return false;
            const size_t num = read<uint16_t>(stored, at + 8);
            if (stored.size() < at + PIECES + 4 * num) return false;
            auto& held = pieces.emplace_back(read<int64_t>(stored, at), 0).second;
            at += PIECES;
            for (size_t i = 0; i < num; ++i)
                held.emplace_back(read<uint16_t>(stored, at + 2 * i), read<uint16_t>(stored, at + 2 * (num + i)));
            at += 4 * num;
        }
        if (stored.size() < at + 8 * num_features) return false;
        features.resize(num_features);
        if (num_features) std::memcpy(features.data(), stored.data() + at, 8 * num_features);
        is_whole = first_segment == tail.index;
        return tail.unpack(stored.substr(at + 8 * num_features));
    }
};

}  // namespace headrace
