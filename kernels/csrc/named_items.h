// The items that have been named, in parts: neither growing nor forgetting all of them takes long at any one time.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_set>
#include <utility>
#include <vector>

namespace headrace {

class NamedItems {
public:
    bool has(int64_t item) const { return parts_[part_of(item)].count(item) != 0; }

    void add(int64_t item) { num_ += parts_[part_of(item)].insert(item).second; }

    size_t size() const { return num_; }

    // Their memory is given back by `tidy`, a part with each call.
    void forget_all() {
        for (Part& part : parts_)
            if (!part.empty()) past_.push_back(std::exchange(part, Part()));
        num_ = 0;
    }

    void tidy() {
        if (!past_.empty()) past_.pop_back();
    }

private:
    using Part = std::unordered_set<int64_t>;
    static constexpr size_t NUM_PARTS = 64;

    // By high bits: a part chooses its own places by the whole number.
    static size_t part_of(int64_t item) { return static_cast<uint64_t>(item) >> 58; }

    std::array<Part, NUM_PARTS> parts_;
    std::vector<Part> past_;  // of a past day
    size_t num_ = 0;
};

}  // namespace headrace
