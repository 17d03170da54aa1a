// The users in memory, in the order in which they were last touched.
#pragma once

#include <memory>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "user.h"

namespace headrace {

class UserCache {
public:
    UserCache() { ends_.longer = ends_.shorter = &ends_; }
    UserCache(const UserCache&) = delete;
    UserCache& operator=(const UserCache&) = delete;

    // Null if the user is not in memory.
    User* find(std::string_view name) const {
        const auto found = users_.find(name);
        return found == users_.end() ? nullptr : found->second.get();
    }

    // Throws std::out_of_range if the user is not in memory.
    User& at(std::string_view name) const { return *users_.at(name); }

    User& add(std::unique_ptr<User> made) {
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

    void drop(User& user) {
        user.longer->shorter = user.shorter, user.shorter->longer = user.longer;
        users_.erase(users_.find(user.name));
    }

    // Drops the users who have been quiet longest, until there are no more than `max_users`.
    void trim(size_t max_users) {
        while (users_.size() > max_users) drop(*ends_.shorter);
    }

private:
    std::unordered_map<std::string_view, std::unique_ptr<User>> users_;
    User ends_{"", 0};
};

}  // namespace headrace
