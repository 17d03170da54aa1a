// Users' histories, folded from decoded records (`kernels.examples`): what `wire.history` defines, one record at a
// time.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "example_head.h"
#include "export.h"

namespace {

using namespace headrace::head;

constexpr int64_t FARTHEST_BACK = 1 << 20;  // interactions, as in `wire.history`
constexpr int64_t OVERHEAD = 250;           // bytes per user besides rows and name, with the place in the table

struct User {
    std::string name;
    int64_t segment_len = 1, start = 0, end = 0, capacity = 0;
    uint8_t* rows = nullptr;
    std::vector<int64_t> features;
    User *older = nullptr, *newer = nullptr;
    ~User() { std::free(rows); }
};

int64_t load(const uint8_t* from) {
    int64_t found;
    std::memcpy(&found, from, sizeof(found));
    return found;
}

class Histories {
public:
    Histories(int64_t num_features, int64_t max_context) : width_(32 + 8 * num_features), max_context_(max_context) {
        ends_.older = ends_.newer = &ends_;
    }

    int64_t size() const { return static_cast<int64_t>(users_.size()); }
    int64_t num_bytes() const { return num_bytes_; }
    int64_t width() const { return width_; }

    void put(std::string_view name, int64_t segment_len, int64_t first, const uint8_t* rows, int64_t num,
             const uint8_t* features, int64_t num_features) {
        User& user = reach(name, segment_len);
        touch(user);
        if (num == 0) return;
        const bool is_apart = first - user.end > max_context_ + user.segment_len || user.start - first > FARTHEST_BACK;
        if (user.start == user.end || is_apart) {
            user.start = user.end = first;
            if (user.capacity) std::memset(user.rows, 0, static_cast<size_t>(user.capacity * width_));
        }
        span(user, std::min(user.start, first), std::max(user.end, first + num));
        std::memcpy(user.rows + (first - user.start) * width_, rows, static_cast<size_t>(num * width_));
        user.features.resize(static_cast<size_t>(num_features));
        if (num_features) std::memcpy(user.features.data(), features, static_cast<size_t>(8 * num_features));
        const int64_t kept = kept_from(user);
        if (user.start < kept) span(user, kept, user.end);
    }

    // Forgets the users who have been quiet longest until the rest fits; at least one stays.
    int64_t bound(int64_t max_bytes) {
        int64_t num = 0;
        for (; num_bytes_ > max_bytes && users_.size() > 1; ++num) drop(*ends_.newer);
        return num;
    }

    const User* find(std::string_view name) const {
        const auto found = users_.find(name);
        return found == users_.end() ? nullptr : found->second.get();
    }

    bool drop(std::string_view name) {
        const auto found = users_.find(name);
        if (found == users_.end()) return false;
        drop(*found->second);
        return true;
    }

    const User* newest() const { return ends_.older == &ends_ ? nullptr : ends_.older; }
    const User* before(const User* user) const { return user->older == &ends_ ? nullptr : user->older; }

private:
    User& reach(std::string_view name, int64_t segment_len) {
        const auto found = users_.find(name);
        if (found != users_.end()) return *found->second;
        auto made = std::make_unique<User>();
        made->name = name;
        made->segment_len = segment_len;
        User& user = *made;
        user.older = user.newer = &user;
        users_.emplace(std::string_view(user.name), std::move(made));
        num_bytes_ += OVERHEAD + static_cast<int64_t>(user.name.size());
        return user;
    }

    void touch(User& user) {
        unlink(user);
        user.older = ends_.older, user.newer = &ends_;
        user.older->newer = user.newer->older = &user;
    }

    static void unlink(User& user) { user.older->newer = user.newer, user.newer->older = user.older; }

    void drop(User& user) {
        unlink(user);
        num_bytes_ -= OVERHEAD + static_cast<int64_t>(user.name.size()) + user.capacity * width_;
        users_.erase(users_.find(user.name));
    }

    int64_t kept_from(const User& user) const {
        const int64_t num_slots = (max_context_ + user.segment_len - 1) / user.segment_len + 1;
        return std::max<int64_t>(0, (user.end - 1) / user.segment_len - num_slots + 1) * user.segment_len;
    }

    // Makes room for the places start to end - 1, keeping the rows that are among them; the others become zero.
    void span(User& user, int64_t start, int64_t end) {
        const int64_t wanted = end - start;
        if (start == user.start && wanted <= user.capacity) {
            user.end = end;
            return;
        }
        const int64_t first = std::max(start, user.start), last = std::min(end, user.end);
        const int64_t num_kept = std::max<int64_t>(0, last - first);
        const auto bytes = [this](int64_t num) { return static_cast<size_t>(num * width_); };
        if (wanted <= user.capacity && start > user.start) {  // drop the oldest, in place
            std::memmove(user.rows, user.rows + bytes(first - user.start), bytes(num_kept));
            std::memset(user.rows + bytes(num_kept), 0, bytes(user.capacity - num_kept));
        } else {
            const int64_t most = max_context_ + 2 * user.segment_len;
            const int64_t capacity = std::max(wanted, std::min(2 * wanted, most));
            auto* rows = static_cast<uint8_t*>(std::calloc(static_cast<size_t>(capacity), static_cast<size_t>(width_)));
            if (rows == nullptr) throw std::bad_alloc();
            if (num_kept)
                std::memcpy(rows + bytes(first - start), user.rows + bytes(first - user.start), bytes(num_kept));
            std::free(user.rows);
            num_bytes_ += (capacity - user.capacity) * width_;
            user.rows = rows, user.capacity = capacity;
        }
        user.start = start, user.end = end;
    }

    int64_t width_, max_context_, num_bytes_ = 0;
    std::unordered_map<std::string_view, std::unique_ptr<User>> users_;
    User ends_;  // of the ring of users: the oldest is `newer`, the newest `older`
};

std::string_view text(const uint8_t* at, int64_t num) {
    return {reinterpret_cast<const char*>(at), static_cast<size_t>(num)};
}

}  // namespace

HEADRACE_API void* headrace_histories_new(int64_t num_features, int64_t max_context) {
    return new (std::nothrow) Histories(num_features, max_context);
}

HEADRACE_API void headrace_histories_free(void* histories) { delete static_cast<Histories*>(histories); }

HEADRACE_API int64_t headrace_histories_size(const void* histories) {
    return static_cast<const Histories*>(histories)->size();
}

HEADRACE_API int64_t headrace_histories_bytes(const void* histories) {
    return static_cast<const Histories*>(histories)->num_bytes();
}

// Folds `num` records, given as heads (num, NUM_HEADS), the bytes that they point into, and their rows. Returns how
// many users were forgotten, or -1 if there was no memory.
HEADRACE_API int64_t headrace_histories_fold(void* to, const uint8_t* data, const int64_t* heads, int64_t num,
                                             const uint8_t* rows, int64_t max_bytes) try {
    auto& histories = *static_cast<Histories*>(to);
    int64_t num_forgotten = 0;
    for (int64_t i = 0; i < num; ++i) {
        const int64_t* head = heads + i * NUM_HEADS;
        histories.put(text(data + head[USER_AT], head[USER_LEN]), head[SEGMENT_LEN],
                      head[SEGMENT] * head[SEGMENT_LEN] + head[FIRST], rows + head[ROWS_AT] * histories.width(),
                      head[NUM], data + head[USER_FEATURES_AT], head[NUM_USER_FEATURES]);
        num_forgotten += histories.bound(max_bytes);
    }
    return num_forgotten;
} catch (const std::bad_alloc&) {
    return -1;
}

HEADRACE_API int64_t headrace_histories_put(void* to, const uint8_t* name, int64_t name_len, int64_t segment_len,
                                            int64_t first, const uint8_t* rows, int64_t num, const uint8_t* features,
                                            int64_t num_features, int64_t max_bytes) try {
    auto& histories = *static_cast<Histories*>(to);
    histories.put(text(name, name_len), segment_len, first, rows, num, features, num_features);
    return histories.bound(max_bytes);
} catch (const std::bad_alloc&) {
    return -1;
}

HEADRACE_API int64_t headrace_histories_drop(void* from, const uint8_t* name, int64_t name_len) {
    return static_cast<Histories*>(from)->drop(text(name, name_len));
}

// Writes how many rows and features a user has into `nums`; returns false for an unknown user. Counts rows that have
// not arrived, too.
HEADRACE_API int64_t headrace_histories_find(const void* in, const uint8_t* name, int64_t name_len, int64_t* nums) {
    const User* user = static_cast<const Histories*>(in)->find(text(name, name_len));
    if (user == nullptr) return 0;
    nums[0] = user->end - user->start;
    nums[1] = static_cast<int64_t>(user->features.size());
    return 1;
}

// Copies what `find` counted, without rows that have not arrived; returns how many have.
HEADRACE_API int64_t headrace_histories_read(const void* in, const uint8_t* name, int64_t name_len, uint8_t* rows,
                                             int64_t* features) {
    const auto& histories = *static_cast<const Histories*>(in);
    const User& user = *histories.find(text(name, name_len));
    const int64_t width = histories.width();
    int64_t num = 0;
    for (int64_t i = 0; i < user.end - user.start; ++i) {
        const uint8_t* row = user.rows + i * width;
        if (load(row) != 0) std::memcpy(rows + num++ * width, row, static_cast<size_t>(width));
    }
    std::copy(user.features.begin(), user.features.end(), features);
    return num;
}

// Names of up to `num` users, the newest first, one after the other, and where each ends. Returns how many there are;
// names that do not fit into `capacity` bytes are left out, but their ends are written.
HEADRACE_API int64_t headrace_histories_newest(const void* in, int64_t num, int64_t* ends, uint8_t* names,
                                               int64_t capacity) {
    const auto& histories = *static_cast<const Histories*>(in);
    int64_t at = 0, found = 0;
    for (const User* user = histories.newest(); user != nullptr && found < num; user = histories.before(user)) {
        const auto size = static_cast<int64_t>(user->name.size());
        if (at + size <= capacity) std::memcpy(names + at, user->name.data(), user->name.size());
        ends[found++] = at += size;
    }
    return found;
}
