// Decodes actions as `wire.action` defines them, for records in which nothing is unusual. Records that are refused or
// rare (escapes in strings, keys above 64 bytes, repeated or nested unknown fields, requests to forget) are left to
// that definition.
#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "keys.h"
#include "utf8.h"

namespace headrace {

struct Action {
    std::string_view user, item;  // the item as the producer wrote it
    bool is_number = false;       // whether that was an integer
    uint32_t bits = 0;
    int64_t item_hash = 0, timestamp_ms = 0, id = 0, session = 0, domain = 0;  // 0: absent
    float value = std::numeric_limits<float>::quiet_NaN();
    int64_t features_at = 0;  // where its columns begin: the item's, then the user's
    int64_t index = 0;        // place in its record
};

struct ActionRules {
    std::vector<std::pair<std::string, uint32_t>> kinds;
    std::vector<std::string> features, user_features;
    bool propensity;  // whether its bits are a column behind the item's features
    int64_t min_timestamp_ms, max_timestamp_ms, max_future_ms, max_record_bytes, max_actions;
    int64_t partition, num_partitions;  // 0: takes every user

    size_t num_item_columns() const { return features.size() + propensity; }
    size_t num_columns() const { return num_item_columns() + user_features.size(); }

    bool is_ours(std::string_view user) const {
        return !num_partitions || (murmur2(user) & 0x7fffffff) % num_partitions == partition;
    }
};

class ActionDecoder {
public:
    ActionDecoder(const ActionRules& rules, std::vector<Action>& actions, std::vector<int64_t>& hashes)
        : rules_(rules), actions_(actions), hashes_(hashes) {}

    // Appends a record's actions; returns false, and appends nothing, if the definition has to decode it.
    bool record(const char* from, int64_t size, int64_t record_ms) {
        const size_t num_actions = actions_.size(), num_hashes = hashes_.size();
        at_ = from, end_ = from + size, record_ms_ = record_ms;
        if (size > 0 && size <= rules_.max_record_bytes && whole_record()) return true;
        actions_.resize(num_actions);
        hashes_.resize(num_hashes);
        return false;
    }

private:
    enum Field {
        USER,
        ITEM,
        ACTION,
        TIMESTAMP,
        ID,
        SESSION,
        DOMAIN,
        VALUE,
        PROPENSITY,
        FEATURES,
        USER_FEATURES,
        NUM_FIELDS
    };
    static constexpr int REQUIRED = 1 << USER | 1 << ITEM | 1 << ACTION | 1 << TIMESTAMP;
    static constexpr size_t MAX_KEY = 256, MAX_INT = 18, MAX_NUMBER = 40;
    static constexpr double MAX_VALUE = 3.4028234663852886e38;

    struct Key {
        std::string_view text;
        bool is_number = false;
    };

    bool whole_record() {
        if (*at_ == '{') return action(0) && rest();
        if (*at_ != '[') return false;
        ++at_;
        int64_t num = 0;
        do {
            if (num == rules_.max_actions) return false;
            space();
            if (!action(num++)) return false;
            space();
        } while (take(','));
        return take(']') && rest();
    }

    bool rest() {
        space();
        return at_ == end_;
    }

    bool action(int64_t index) {
        if (!take('{')) return false;
        Action made;
        made.index = index;
        made.features_at = static_cast<int64_t>(hashes_.size());
        hashes_.resize(hashes_.size() + rules_.num_columns());
        int seen = 0;
        do {
            space();
            std::string_view name;
            if (!text(name) || !colon()) return false;
            const int field = field_of(name);
            if (field == NUM_FIELDS) {
                if (!skip()) return false;
                continue;
            }
            if (seen & 1 << field) return false;
            seen |= 1 << field;
            if (!entry(field, made)) return false;
        } while (space(), take(','));
        if (!take('}') || (seen & REQUIRED) != REQUIRED) return false;
        if (std::max(made.timestamp_ms, record_ms_) > rules_.max_timestamp_ms) return false;
        const int64_t latest_ms = record_ms_ + rules_.max_future_ms;
        if (made.timestamp_ms < rules_.min_timestamp_ms || made.timestamp_ms > latest_ms) return false;
        if (!rules_.is_ours(made.user)) return false;
        actions_.push_back(made);
        return true;
    }

    static int field_of(std::string_view name) {
        static constexpr std::string_view NAMES[] = {"user",       "item",     "action",       "timestamp",
                                                     "id",         "session",  "domain",       "value",
                                                     "propensity", "features", "user_features"};
        for (int field = 0; field < NUM_FIELDS; ++field)
            if (NAMES[field] == name) return field;
        return NUM_FIELDS;
    }

    bool entry(int field, Action& made) {
        Key found;
        switch (field) {
            case USER:
                if (!key(found)) return false;
                made.user = found.text;
                return true;
            case ITEM:
                if (!key(found) || found.text.size() > MAX_HASHED) return false;
                made.item = found.text, made.is_number = found.is_number, made.item_hash = key_hash(found.text);
                return true;
            case ACTION: return kinds(made.bits);
            case TIMESTAMP: {
                std::string_view digits;
                if (!integer(digits)) return false;
                std::from_chars(digits.data(), digits.data() + digits.size(), made.timestamp_ms);
                return true;
            }
            case ID: return hash(made.id);
            case SESSION: return hash(made.session);
            case DOMAIN: return hash(made.domain);
            case VALUE: return value(made.value);
            case PROPENSITY: return propensity(made.features_at + static_cast<int64_t>(rules_.features.size()));
            case FEATURES: return features(rules_.features, made.features_at);
            default:
                return features(rules_.user_features,
                                made.features_at + static_cast<int64_t>(rules_.num_item_columns()));
        }
    }

    bool kinds(uint32_t& bits) {
        if (!take('[')) return kind(bits);
        do {
            space();
            if (!kind(bits)) return false;
            space();
        } while (take(','));
        return take(']');
    }

    bool kind(uint32_t& bits) {
        std::string_view name;
        if (!text(name)) return false;
        for (const auto& [known, bit] : rules_.kinds)
            if (known == name) {
                bits |= bit;
                return true;
            }
        return false;
    }

    // A key's hash, or 0 for null.
    bool hash(int64_t& found) {
        Key read;
        if (word("null")) return found = 0, true;
        if (!key(read) || read.text.size() > MAX_HASHED) return false;
        found = key_hash(read.text);
        return true;
    }

    bool value(float& found) {
        if (word("null")) return true;
        const char* from = at_;
        double read;
        if (!number() || static_cast<size_t>(at_ - from) > MAX_NUMBER) return false;
        if (std::from_chars(from, at_, read).ec != std::errc() || !(std::fabs(read) <= MAX_VALUE)) return false;
        if (read == 0 && *from == '-') return false;  // -0 is an integer in Python, without a sign
        found = static_cast<float>(read);
        return true;
    }

    // The bits of a probability, or 0 for null, in this column if there is one.
    bool propensity(int64_t column) {
        if (word("null")) return true;
        const char* from = at_;
        double read;
        if (!number() || static_cast<size_t>(at_ - from) > MAX_NUMBER) return false;
        if (std::from_chars(from, at_, read).ec != std::errc() || !(read > 0 && read <= 1)) return false;
        if (rules_.propensity) std::memcpy(&hashes_[column], &read, sizeof(read));
        return true;
    }

    bool features(const std::vector<std::string>& names, int64_t first) {
        if (word("null")) return true;
        if (!take('{')) return false;
        space();
        if (take('}')) return true;
        std::vector<bool>& seen = seen_;
        seen.assign(names.size(), false);
        do {
            space();
            std::string_view name;
            int64_t found;
            if (!text(name) || !colon() || !hash(found)) return false;
            for (size_t column = 0; column < names.size(); ++column) {
                if (names[column] != name) continue;
                if (seen[column]) return false;
                seen[column] = true;
                hashes_[first + column] = found;
            }
            space();
        } while (take(','));
        return take('}');
    }

    // Any JSON value except lists and objects.
    bool skip() {
        std::string_view ignored;
        if (at_ < end_ && *at_ == '"') return text(ignored);
        return word("null") || word("true") || word("false") || number();
    }

    bool key(Key& found) {
        if (at_ < end_ && *at_ == '"') return text(found.text) && !found.text.empty() && found.text.size() <= MAX_KEY;
        found.is_number = true;
        return integer(found.text);
    }

    // Digits written as Python writes the integer.
    bool integer(std::string_view& found) {
        const char* from = at_;
        const bool is_negative = take('-');
        const char* digits = at_;
        while (at_ < end_ && *at_ >= '0' && *at_ <= '9') ++at_;
        const auto num = static_cast<size_t>(at_ - digits);
        if (num == 0 || num > MAX_INT || (*digits == '0' && (num > 1 || is_negative))) return false;
        if (at_ < end_ && (*at_ == '.' || *at_ == 'e' || *at_ == 'E')) return false;
        found = {from, static_cast<size_t>(at_ - from)};
        return true;
    }

    bool digits() {
        const char* from = at_;
        while (at_ < end_ && *at_ >= '0' && *at_ <= '9') ++at_;
        return at_ > from;
    }

    bool number() {
        take('-');
        const char* from = at_;
        if (!digits() || (*from == '0' && at_ - from > 1)) return false;
        if (take('.') && !digits()) return false;
        if (at_ < end_ && (*at_ == 'e' || *at_ == 'E')) {
            ++at_;
            if (!take('-')) take('+');
            return digits();
        }
        return true;
    }

    // A string without escapes, in valid UTF-8.
    bool text(std::string_view& found) {
        if (!take('"')) return false;
        const char* from = at_;
        while (at_ < end_) {
            const auto c = static_cast<unsigned char>(*at_);
            if (c == '"') {
                found = {from, static_cast<size_t>(at_ - from)};
                ++at_;
                return true;
            }
            if (c < 0x20 || c == '\\') return false;
            const int num = utf8_char(reinterpret_cast<const uint8_t*>(at_), end_ - at_);
            if (num == 0) return false;
            at_ += num;
        }
        return false;
    }

    bool colon() {
        space();
        if (!take(':')) return false;
        space();
        return true;
    }

    bool word(std::string_view wanted) {
        if (static_cast<size_t>(end_ - at_) < wanted.size() || std::string_view(at_, wanted.size()) != wanted)
            return false;
        at_ += wanted.size();
        return true;
    }

    bool take(char wanted) {
        if (at_ == end_ || *at_ != wanted) return false;
        ++at_;
        return true;
    }

    void space() {
        while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
    }

    const ActionRules& rules_;
    std::vector<Action>& actions_;
    std::vector<int64_t>& hashes_;
    std::vector<bool> seen_;
    const char *at_ = nullptr, *end_ = nullptr;
    int64_t record_ms_ = 0;
};

}  // namespace headrace
