// One partition's users and what their actions change: `state.user`, `state.sequencer` and `state.emitter`.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "action.h"
#include "crc32.h"
#include "segment.h"

namespace headrace {

constexpr int64_t NUM_OPEN = 2;
constexpr size_t MAX_NAMES_BYTES = 60'000;

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
    std::vector<int64_t> old_ids;          // theirs
    std::vector<int64_t> dirty, features;
    int64_t offset = -1, index = -1, skip_offset = -1, skip_index = -1;
    int64_t run = -1, run_start = 0, run_first = 0, run_end = 0, run_record_ms = -1;
    bool run_changed = false, is_running = false, is_changed = false;
    std::map<int64_t, uint32_t> feedback;
    std::vector<std::pair<int64_t, std::vector<std::pair<uint16_t, uint16_t>>>> pieces;
    std::vector<Name> names;
    User *longer = nullptr, *shorter = nullptr;  // who has been quiet for longer, and not so long

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

    // The places, first and end, that an example of the places `first` to `end - 1` of a segment must hold.
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

    // What the store keeps under the user's name.
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

    // Takes what the store keeps, without older segments; false for other bytes.
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

// Whatever goes to the database in one batch, as places in `bytes`.
struct Puts {
    enum Kind : int64_t { EXAMPLE, USER, SEGMENT, NAME };
    struct Entry {
        int64_t kind, key_at, value_at, end, number, record_ms;
    };
    std::string bytes;
    std::vector<Entry> entries;

    void clear() {
        bytes.clear();
        entries.clear();
    }
};

class Sequences {
public:
    Sequences(const ActionRules& action, const SequenceRules& sequence)
        : action(action), decoder(this->action, actions, hashes), rules_(sequence) {
        ends_.longer = ends_.shorter = &ends_;
    }

    const ActionRules action;
    std::vector<Action> actions;
    std::vector<int64_t> hashes;  // of features, at `Action::features_at`
    ActionDecoder decoder;
    Puts puts;

    // Users of the actions that are not in memory, and items that no example is known to have named, each once.
    void missing(std::vector<std::string_view>& users, std::vector<int64_t>& items) const {
        std::unordered_set<std::string_view> wanted;
        std::unordered_set<int64_t> unnamed;
        for (const Action& one : actions) {
            if (!users_.count(one.user) && wanted.insert(one.user).second) users.push_back(one.user);
            if (!known_.count(one.item_hash) && unnamed.insert(one.item_hash).second) items.push_back(one.item_hash);
        }
    }

    // Takes a user from the store, without the segments before the last one. False for damaged bytes.
    bool load(std::string_view name, std::string_view stored) {
        auto made = std::make_unique<User>(name, rules_.num_columns);
        if (!made->decode(stored)) return false;
        own(std::move(made));
        return true;
    }

    // Users, each once, of whom the actions need the segments before the last one.
    std::vector<const User*> incomplete() const {
        std::unordered_map<const User*, size_t> wanted;
        std::vector<const User*> found;
        for (const Action& one : actions) {
            const auto at = users_.find(one.user);
            if (at == users_.end() || at->second->is_whole) continue;
            const User& user = *at->second;
            size_t& num = wanted[&user];
            const bool may_join = rules_.window_ms && user.tail.times[0] >= one.timestamp_ms - rules_.window_ms;
            const bool may_seal =
                !user.pieces.empty() && user.tail.size() + num + 1 > static_cast<size_t>(rules_.segment_len);
            if (num == WANTED || !(may_join || may_seal || (rules_.deduplicate && one.id))) {
                num += num != WANTED;
                continue;
            }
            num = WANTED;
            found.push_back(&user);
        }
        return found;
    }

    // Takes a loaded user's segments before the last one, in order. False for damaged bytes.
    bool complete(std::string_view name, const std::vector<std::string_view>& older) {
        User& user = *users_.at(name);
        if (user.tail.index - user.first_segment != static_cast<int64_t>(older.size())) return false;
        user.older.clear();
        for (const std::string_view stored : older) {
            Segment segment = blank(user.first_segment + static_cast<int64_t>(user.older.size()));
            if (!segment.unpack(stored)) return false;
            user.older.emplace(segment.index, stored);
        }
        user.gather_ids();
        user.is_whole = true;
        return true;
    }

    void know(int64_t item) { known_.insert(item); }

    void drop(std::string_view name) {
        const auto found = users_.find(name);
        if (found != users_.end()) release(*found->second);
    }

    // Applies the actions `first` to `last - 1` of one record.
    void apply(int64_t first, int64_t last, int64_t offset, int64_t record_ms, Position& at) {
        at.applied_offset = offset, at.applied_record_ms = record_ms;
        for (int64_t i = first; i < last; ++i) apply(actions[i], offset, record_ms, at);
    }

    // Ends a batch: fills `puts` with what it has changed.
    void drain(Position& at) {
        for (User* user : running_) {
            end_run(*user, at);
            user->is_running = false;
        }
        running_.clear();
        const int64_t counted = std::max(at.counted_offset, at.applied_offset);
        for (size_t i = 0; i < drafts_.size(); ++i) {
            const bool is_last = i + 1 == drafts_.size();
            write(drafts_[i], at, counted, is_last ? at.applied_offset + 1 : at.batch_start);
        }
        drafts_.clear();
        at.batch_start = at.applied_offset + 1;
        for (User* user : changed_) save(*user);
        for (const int64_t item : fresh_) {
            const size_t key_at = puts.bytes.size();
            puts.bytes += 'n';
            put(puts.bytes, __builtin_bswap64(static_cast<uint64_t>(item)));
            add(Puts::NAME, key_at, puts.bytes.size());
        }
    }

    // Once `puts` is on disk: bounds what memory holds. The users who have been quiet longest go first.
    void settle(size_t max_users, size_t max_names) {
        for (User* user : changed_) {
            user->is_changed = false;
            user->dirty.clear();
        }
        changed_.clear();
        fresh_.clear();
        puts.clear();
        while (users_.size() > max_users) release(*ends_.shorter);
        if (known_.size() > max_names) known_.clear();
    }

private:
    static constexpr size_t WANTED = std::numeric_limits<size_t>::max();

    struct Draft {
        std::string user;
        std::vector<Name> names;
        std::string columns;
        int64_t record_ms, base_ms, offset, index, number, segment, first;
        int num, num_new, num_feedback, num_ids, flags, width;
    };

    Segment blank(int64_t index) const {
        Segment made;
        made.index = index, made.num_features = rules_.num_columns;
        return made;
    }

    User& own(std::unique_ptr<User> made) {
        User& user = *made;
        users_.emplace(user.name, std::move(made));
        user.longer = &user, user.shorter = &user;
        touch(user);
        return user;
    }

    void touch(User& user) {
        user.longer->shorter = user.shorter, user.shorter->longer = user.longer;
        user.longer = ends_.longer, user.shorter = &ends_;
        ends_.longer->shorter = &user, ends_.longer = &user;
    }

    void release(User& user) {
        user.longer->shorter = user.shorter, user.shorter->longer = user.longer;
        users_.erase(users_.find(user.name));
    }

    User& reach(std::string_view name) {
        const auto found = users_.find(name);
        if (found != users_.end()) return *found->second;
        auto made = std::make_unique<User>(name, rules_.num_columns);
        made->features.assign(rules_.num_user_features, 0);
        return own(std::move(made));
    }

    void apply(const Action& action, int64_t offset, int64_t record_ms, Position& at) {
        at.newest_event_ms = std::max(at.newest_event_ms, action.timestamp_ms);
        User& user = reach(action.user);
        if (std::pair(offset, action.index) <= std::pair(user.skip_offset, user.skip_index)) return;
        const bool is_counted = offset > at.counted_offset;
        const int64_t id = rules_.deduplicate ? action.id : 0;
        if (id && user.knows(id)) {
            at.num_duplicate += is_counted;
            return;
        }
        at.num_accepted += is_counted;
        const int64_t* features = hashes.data() + action.features_at;
        Segment opened, *segment = nullptr;
        int64_t place = rules_.window_ms ? find(user, action, opened, segment) : -1;
        bool changed = true;
        if (place < 0) {
            at.num_late += begin(user, action, features, at) && is_counted;
            segment = &user.tail, place = static_cast<int64_t>(segment->size()) - 1;
        } else {
            changed = join(user, *segment, place, action, features, at);
        }
        if (id) {
            segment->remember(place, id);
            changed = true;
        }
        changed |= user.replace_features(features + rules_.num_item_columns);
        if (!changed) return;
        if (!known_.count(action.item_hash)) name(user, action);
        if (segment != &user.tail) user.close_older(*segment);
        user.offset = offset, user.index = action.index, user.run_changed = true;
        user.run_record_ms = std::max(user.run_record_ms, record_ms);
    }

    static void name(User& user, const Action& action) {
        for (Name& each : user.names) {
            if (each.item != action.item_hash) continue;
            each.text = action.item, each.is_number = action.is_number;
            return;
        }
        user.names.push_back({action.item_hash, std::string(action.item), action.is_number});
    }

    // The interaction that an action joins, or -1. One of an older segment is in `opened`.
    int64_t find(User& user, const Action& action, Segment& opened, Segment*& segment) const {
        Segment& tail = user.tail;
        const int64_t window_ms = rules_.window_ms, place = tail.find(action, window_ms);
        if (place >= 0) {
            segment = &tail;
            return place;
        }
        if (tail.index == user.first_segment || tail.times[0] < action.timestamp_ms - window_ms) return -1;
        for (int64_t index = tail.index - 1; index >= user.first_segment; --index) {
            const std::string& stored = user.older.at(index);
            opened = blank(index);
            opened.unpack(stored);
            const int64_t at = opened.find(action, window_ms);
            if (at >= 0) {
                segment = &opened;
                return at;
            }
            if (describe(stored).first_ms < action.timestamp_ms - window_ms) return -1;
        }
        return -1;
    }

    // Begins an interaction; returns whether its action came late.
    bool begin(User& user, const Action& action, const int64_t* features, Position& at) {
        const int64_t last_ms = user.tail.size() ? user.tail.times.back() : action.timestamp_ms;
        if (static_cast<int64_t>(user.tail.size()) >= rules_.segment_len) {
            end_run(user, at);
            seal(user, at);
            user.roll(rules_.num_slots);
        }
        if (user.run != user.tail.index) begin_run(user, user.tail, at);
        user.run_end = static_cast<int64_t>(user.tail.size()) + 1;
        user.tail.append(action, columns_of(user, features), std::max(action.timestamp_ms, last_ms));
        return action.timestamp_ms < last_ms;
    }

    // Those of an interaction that begins with an action: with `user_tokens` the user's features as they are now, too.
    const int64_t* columns_of(const User& user, const int64_t* given) {
        if (!rules_.user_tokens) return given;
        columns_.assign(given, given + rules_.num_columns);
        for (int64_t i = 0; i < rules_.num_user_features; ++i) {
            int64_t& now = columns_[rules_.num_item_columns + i];
            if (!now) now = user.features[i];
        }
        return columns_.data();
    }

    bool join(User& user, Segment& segment, int64_t place, const Action& action, const int64_t* features,
              Position& at) {
        if (user.run != segment.index) begin_run(user, segment, at);
        const auto [new_bits, changed] = segment.join(place, action, features, rules_.num_item_columns);
        if (place < user.run_start) {
            user.run_first = std::min(user.run_first, place);
            user.run_end = std::max(user.run_end, place + 1);
            if (new_bits) user.feedback[place] |= new_bits;
        }
        return changed;
    }

    void begin_run(User& user, const Segment& segment, Position& at) {
        end_run(user, at);
        user.run = segment.index;
        user.run_start = user.run_first = static_cast<int64_t>(segment.size());
        user.run_end = 0;
        if (!user.is_running) running_.push_back(&user);
        user.is_running = true;
    }

    void end_run(User& user, Position& at) {
        if (user.run_changed) {
            const bool is_tail = user.run == user.tail.index;
            const int64_t num_new = is_tail ? static_cast<int64_t>(user.tail.size()) - user.run_start : 0;
            const auto [first, end] = user.cover(user.run, user.run_first, user.run_end, rules_.segment_len);
            emit(user, user.run, first, end, num_new, user.run_record_ms, take_names(user), at);
            if (!user.is_changed) changed_.push_back(&user);
            user.is_changed = true;
            user.feedback.clear();
            user.names.clear();
            user.run_changed = false, user.run_record_ms = -1;
        }
        user.run = -1;
    }

    void seal(User& user, Position& at) {
        const int64_t index = user.tail.index + 1 - NUM_OPEN;
        if (user.drop_pieces(index) && index > user.tail.index + 1 - rules_.num_slots)
            emit(user, index, 0, rules_.segment_len, 0, at.applied_record_ms, {}, at);
    }

    // As many of a user's names as fit into an example.
    std::vector<Name> take_names(User& user) {
        std::vector<Name> taken;
        size_t num_bytes = 0;
        for (Name& each : user.names) {
            if (known_.count(each.item)) continue;
            size_t num_characters = 0;
            for (const char c : each.text) num_characters += (c & 0xc0) != 0x80;
            num_bytes += 16 + (each.is_number ? 8 : 4 * num_characters);
            if (num_bytes > MAX_NAMES_BYTES) break;
            known_.insert(each.item);
            fresh_.push_back(each.item);
            taken.push_back(std::move(each));
        }
        return taken;
    }

    void emit(const User& user, int64_t index, int64_t first, int64_t end, int64_t num_new, int64_t record_ms,
              std::vector<Name> names, Position& at) {
        Cut made;
        if (index == user.tail.index) {
            made = user.tail.cut(first, std::min<int64_t>(end, user.tail.size()));
        } else if (const std::string& stored = user.older.at(index); end - first == rules_.segment_len) {
            const Described head = describe(stored);
            made = {head.first_ms, head.num, head.num_ids, head.flags, head.width, stored.substr(SEGMENT_HEAD)};
        } else {
            Segment segment = blank(index);
            segment.unpack(stored);
            made = segment.cut(first, std::min<int64_t>(end, segment.size()));
        }
        put_all(made.columns, user.features, 0, user.features.size());
        for (const auto& [place, _] : user.feedback)
            if (rules_.segment_len <= 256) put(made.columns, static_cast<uint8_t>(place - first));
            else put(made.columns, static_cast<uint16_t>(place - first));
        for (const auto& [_, bits] : user.feedback) put(made.columns, bits);
        drafts_.push_back({user.name, std::move(names), std::move(made.columns), record_ms,
                           made.flags & LONG_TIMES ? 0 : made.first_ms, user.offset, user.index, at.next_number++,
                           index, first, made.num, static_cast<int>(num_new), static_cast<int>(user.feedback.size()),
                           made.num_ids, made.flags, made.width});
    }

    // Writes an example: its key, and the bytes that `wire.example_codec` defines.
    void write(const Draft& draft, const Position& at, int64_t counted, int64_t replay_from) {
        std::string& out = puts.bytes;
        const size_t key_at = out.size();
        out += draft.user;
        out += '\0';
        out += draft.num == rules_.segment_len
                   ? std::to_string(draft.segment % rules_.num_slots)
                   : "." + std::to_string(draft.segment % NUM_OPEN * rules_.segment_len + draft.first);
        const size_t value_at = out.size();
        out.append("HRE\3\0\0\0\0\0\0", 10);
        const size_t head_at = out.size();
        header(out, draft, at, counted, replay_from);
        const auto head_len = static_cast<uint16_t>(out.size() - head_at);
        std::memcpy(&out[head_at - 2], &head_len, 2);
        out += draft.columns;
        const uint32_t digest = crc32(reinterpret_cast<const uint8_t*>(&out[value_at + 8]), out.size() - value_at - 8);
        std::memcpy(&out[value_at + 4], &digest, 4);
        add(Puts::EXAMPLE, key_at, value_at, draft.number, draft.record_ms);
    }

    void header(std::string& out, const Draft& draft, const Position& at, int64_t counted, int64_t replay_from) const {
        out.append("\xdc\0\x19", 3);
        for (const int64_t each : {rules_.partition, at.writer_epoch, rules_.segment_len, rules_.num_columns,
                                   rules_.num_user_features, at.applied_offset, replay_from, counted}) {
            integer(out, each);
        }
        out += '\x94';
        for (const int64_t each : {at.num_accepted, at.num_duplicate, at.num_dead, at.num_late}) integer(out, each);
        for (const int64_t each : {at.newest_event_ms, draft.record_ms, draft.base_ms, draft.offset, draft.index,
                                   draft.number, draft.segment, draft.first}) {
            integer(out, each);
        }
        for (const int each : {draft.num, draft.num_new, draft.num_feedback, draft.num_ids, draft.flags, draft.width})
            integer(out, each);
        text(out, draft.user);
        const size_t num_names = draft.names.size();
        if (num_names < 16) {
            out += static_cast<char>(0x80 | num_names);
        } else {
            out += '\xde';
            put(out, __builtin_bswap16(static_cast<uint16_t>(num_names)));
        }
        for (const Name& each : draft.names) {
            integer(out, each.item);
            if (each.is_number) {
                int64_t number = 0;
                std::from_chars(each.text.data(), each.text.data() + each.text.size(), number);
                integer(out, number);
            } else {
                text(out, each.text);
            }
        }
    }

    // MessagePack, the shortest form.
    static void integer(std::string& out, int64_t number) {
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

    static void text(std::string& out, std::string_view written) {
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

    void save(User& user) {
        touch(user);
        std::string& out = puts.bytes;
        size_t key_at = out.size();
        out += 'u';
        out += user.name;
        size_t value_at = out.size();
        user.encode(out);
        add(Puts::USER, key_at, value_at);
        for (const int64_t index : user.dirty) {
            key_at = out.size();
            out += 's';
            out += user.name;
            put(out, __builtin_bswap32(static_cast<uint32_t>(index % rules_.num_slots)));
            value_at = out.size();
            out += user.older.at(index);
            add(Puts::SEGMENT, key_at, value_at);
        }
    }

    void add(Puts::Kind kind, size_t key_at, size_t value_at, int64_t number = -1, int64_t record_ms = -1) {
        puts.entries.push_back({kind, static_cast<int64_t>(key_at), static_cast<int64_t>(value_at),
                                static_cast<int64_t>(puts.bytes.size()), number, record_ms});
    }

    const SequenceRules rules_;
    std::unordered_map<std::string_view, std::unique_ptr<User>> users_;
    std::unordered_set<int64_t> known_;  // items that have been named
    std::vector<int64_t> fresh_;         // those named since `settle`
    std::vector<User*> running_, changed_;
    std::vector<int64_t> columns_;
    std::vector<Draft> drafts_;
    User ends_{"", 0};
};

}  // namespace headrace
