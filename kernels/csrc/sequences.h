// Applies a partition's actions to its users and emits examples: `state.user`, `state.sequencer`, `state.emitter`.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "action.h"
#include "example_writer.h"
#include "named_items.h"
#include "user_cache.h"

namespace headrace {

constexpr size_t MAX_NAMES_BYTES = 60'000;

class Sequences {
public:
    Sequences(const ActionRules& action, const SequenceRules& sequence)
        : action(action), decoder(this->action, actions, hashes), rules_(sequence) {}

    const ActionRules action;
    std::vector<Action> actions;
    std::vector<int64_t> hashes;  // of features, at `Action::features_at`
    ActionDecoder decoder;
    Puts puts;

    // Lists, each once, the users of the actions that are not in memory, and the items that no example is known to have
    // named.
    void missing(std::vector<std::string_view>& users, std::vector<int64_t>& items) const {
        std::unordered_set<std::string_view> wanted;
        std::unordered_set<int64_t> unnamed;
        for (const Action& one : actions) {
            if (!users_.find(one.user) && wanted.insert(one.user).second) users.push_back(one.user);
            if (!known_.has(one.item_hash) && unnamed.insert(one.item_hash).second) items.push_back(one.item_hash);
        }
    }

    // Adds a user from the store, without the segments before the last one. Returns false for damaged bytes.
    bool load(std::string_view name, std::string_view stored) {
        auto made = std::make_unique<User>(name, rules_.num_columns);
        if (!made->decode(stored)) return false;
        users_.add(std::move(made));
        return true;
    }

    // Users, each once, whose segments before the last one the actions need.
    std::vector<const User*> incomplete() const {
        std::unordered_map<const User*, size_t> wanted;
        std::vector<const User*> found;
        for (const Action& one : actions) {
            const User* user = users_.find(one.user);
            if (!user || user->is_whole) continue;
            size_t& num = wanted[user];
            const bool may_join = rules_.window_ms && user->tail.times[0] >= one.timestamp_ms - rules_.window_ms;
            const bool may_seal =
                !user->pieces.empty() && user->tail.size() + num + 1 > static_cast<size_t>(rules_.segment_len);
            if (num == WANTED || !(may_join || may_seal || (rules_.deduplicate && one.id))) {
                num += num != WANTED;
                continue;
            }
            num = WANTED;
            found.push_back(user);
        }
        return found;
    }

    // Adds a loaded user's segments before the last one, in order. Returns false for damaged bytes.
    bool complete(std::string_view name, const std::vector<std::string_view>& older) {
        User& user = users_.at(name);
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

    void know(int64_t item) { known_.add(item); }

    void drop(std::string_view name) {
        if (User* user = users_.find(name)) users_.drop(*user);
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
            write_example(puts, rules_, drafts_[i], at, counted, is_last ? at.applied_offset + 1 : at.batch_start);
        }
        drafts_.clear();
        at.batch_start = at.applied_offset + 1;
        for (User* user : changed_) save(*user);
        for (const int64_t item : fresh_) {
            const size_t key_at = puts.bytes.size();
            puts.bytes += 'n';
            put(puts.bytes, __builtin_bswap64(static_cast<uint64_t>(item)));
            puts.add(Puts::NAME, key_at, puts.bytes.size());
        }
    }

    // Call once `puts` is on disk. Bounds memory: the users who have been quiet longest are dropped first.
    void settle(size_t max_users, size_t max_names) {
        for (User* user : changed_) {
            user->is_changed = false;
            user->dirty.clear();
        }
        changed_.clear();
        fresh_.clear();
        puts.clear();
        users_.trim(max_users);
        known_.tidy();
        if (known_.size() > max_names) known_.forget_all();
    }

private:
    static constexpr size_t WANTED = std::numeric_limits<size_t>::max();

    Segment blank(int64_t index) const {
        Segment made;
        made.index = index, made.num_features = rules_.num_columns;
        return made;
    }

    User& reach(std::string_view name) {
        if (User* user = users_.find(name)) return *user;
        auto made = std::make_unique<User>(name, rules_.num_columns);
        made->features.assign(rules_.num_user_features, 0);
        return users_.add(std::move(made));
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
        if (!known_.has(action.item_hash)) name(user, action);
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

    // Place of the interaction that an action joins, or -1. An older segment is unpacked into `opened`.
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

    // Begins an interaction; returns whether its action was late.
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
            if (known_.has(each.item)) continue;
            size_t num_characters = 0;
            for (const char c : each.text) num_characters += (c & 0xc0) != 0x80;
            num_bytes += 16 + (each.is_number ? 8 : 4 * num_characters);
            if (num_bytes > MAX_NAMES_BYTES) break;
            known_.add(each.item);
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

    void save(User& user) {
        users_.touch(user);
        std::string& out = puts.bytes;
        size_t key_at = out.size();
        out += 'u';
        out += user.name;
        size_t value_at = out.size();
        user.encode(out);
        puts.add(Puts::USER, key_at, value_at);
        for (const int64_t index : user.dirty) {
            key_at = out.size();
            out += 's';
            out += user.name;
            put(out, __builtin_bswap32(static_cast<uint32_t>(index % rules_.num_slots)));
            value_at = out.size();
            out += user.older.at(index);
            puts.add(Puts::SEGMENT, key_at, value_at);
        }
    }

    const SequenceRules rules_;
    UserCache users_;
    NamedItems known_;
    std::vector<int64_t> fresh_;  // those named since the last `settle`
    std::vector<User*> running_, changed_;
    std::vector<int64_t> columns_;
    std::vector<Draft> drafts_;
};

}  // namespace headrace
