// 64-bit ids → rows. Open addressing over buckets of one cache line (five ids with their rows), so that a look-up costs one
// miss, and a batch's misses overlap by prefetch. A bucket that ever overflowed into the next says so; rows are a function
// of the order of calls alone, never of the hash.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "export.h"

namespace {

constexpr int SLOTS = 5;
constexpr int64_t AHEAD = 24;        // ids whose buckets are on their way
constexpr int64_t BLOCK = 64;        // ids of an insert whose rows are looked up before any is changed
constexpr double FULLEST = 0.75;     // of the slots
constexpr int64_t MAX_ROWS = INT32_MAX;
constexpr int32_t ABSENT = INT32_MIN;

struct alignas(64) Bucket {
    int64_t id[SLOTS];
    int32_t place[SLOTS];  // a row, or ~(index of a pending id)
    uint8_t used;          // bit i: slot i
    uint8_t overflowed;
    uint8_t unused[2];
};
static_assert(sizeof(Bucket) == 64, "a bucket is a cache line");

struct FreeBuckets {
    void operator()(Bucket* p) const { free(p); }
};
using Buckets = std::unique_ptr<Bucket[], FreeBuckets>;

// On huge pages where the system allows: with small ones each look-up would also miss the page tables.
Buckets make_buckets(int64_t num) {
    const size_t page = 2u << 20, size = static_cast<size_t>(num) * sizeof(Bucket);
    void* p = aligned_alloc(size < page ? 64 : page, size < page ? size : (size + page - 1) / page * page);
    if (!p) throw std::bad_alloc();
#if defined(__linux__)
    if (size >= page) madvise(p, size, MADV_HUGEPAGE);
#endif
    memset(p, 0, size);
    return Buckets(static_cast<Bucket*>(p));
}

inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 32)) * 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9ull;
    return x ^ (x >> 32);
}

struct Slot {
    Bucket* bucket;
    int index;
};

struct Pending {
    int64_t id, count, last_seen_ms;
};

class IdMap {
public:
    IdMap(int64_t capacity_hint, int64_t admit_after) : admit_after_(admit_after) { rebuild(capacity_hint); }

    int64_t num_live() const { return num_live_; }
    int64_t num_rows() const { return static_cast<int64_t>(id_of_row_.size()); }
    int64_t num_pending() const { return num_used_ - num_live_; }

    void lookup(const int64_t* ids, int64_t num, int64_t* rows) const {
        for (int64_t i = 0; i < std::min(num, AHEAD); ++i) __builtin_prefetch(home(ids[i]));
        for (int64_t i = 0; i < num; ++i) {
            if (i + AHEAD < num) __builtin_prefetch(home(ids[i + AHEAD]));
            const int32_t place = find(ids[i]);
            rows[i] = place < 0 ? -1 : place;
        }
    }

    void insert(const int64_t* ids, int64_t num, int64_t now_ms, int64_t* rows) {
        for (int64_t start = 0; start < num; start += BLOCK) {
            const int64_t size = std::min(BLOCK, num - start);
            reserve(size);
            int32_t places[BLOCK];
            warm(ids + start, size, places);
            for (int64_t i = 0; i < size; ++i) {
                const int32_t place = places[i];
                rows[start + i] = place;
                if (place >= 0)  // nothing in the block can have changed it
                    last_seen_ms_[place] = std::max(last_seen_ms_[place], now_ms);
                else
                    rows[start + i] = see(ids[start + i], now_ms);
            }
        }
    }

    // Ids and rows of those evicted, by row; the arrays have room for num_live().
    int64_t evict(int64_t before_ms, int64_t* ids, int64_t* rows) {
        int64_t count = 0;
        for (int64_t row = 0; row < num_rows(); ++row) {
            if (!live_[row] || last_seen_ms_[row] >= before_ms) continue;
            ids[count] = id_of_row_[row];
            rows[count++] = row;
        }
        free_rows_.reserve(free_rows_.size() + count);  // before anything changes: this may fail
        free_pending_.reserve(pending_.size());
        for (int64_t i = 0; i < count; ++i) {
            erase(ids[i]);
            live_[rows[i]] = 0;
            id_of_row_[rows[i]] = 0;
            free_rows_.push_back(static_cast<int32_t>(rows[i]));
        }
        num_live_ -= count;
        std::make_heap(free_rows_.begin(), free_rows_.end(), std::greater<int32_t>());
        for (size_t i = 0; i < pending_.size(); ++i)
            if (pending_[i].count > 0 && pending_[i].last_seen_ms < before_ms) drop_pending(static_cast<int32_t>(i));
        if (num_erased_ > num_buckets_) rebuild(num_used_);
        return count;
    }

    void live(int64_t* rows, int64_t* ids, int64_t* last_seen_ms) const {
        int64_t i = 0;
        for (int64_t row = 0; row < num_rows(); ++row) {
            if (!live_[row]) continue;
            rows[i] = row;
            ids[i] = id_of_row_[row];
            last_seen_ms[i++] = last_seen_ms_[row];
        }
    }

    void pending(int64_t* ids, int64_t* counts, int64_t* last_seen_ms) const {
        std::vector<Pending> sorted;
        for (const Pending& p : pending_)
            if (p.count > 0) sorted.push_back(p);
        std::sort(sorted.begin(), sorted.end(), [](const Pending& a, const Pending& b) { return a.id < b.id; });
        for (size_t i = 0; i < sorted.size(); ++i) {
            ids[i] = sorted[i].id;
            counts[i] = sorted[i].count;
            last_seen_ms[i] = sorted[i].last_seen_ms;
        }
    }

    const std::vector<int64_t>& id_of_row() const { return id_of_row_; }

    // Into an empty map; false if an id comes twice.
    bool load_live(int64_t num_rows, int64_t num, const int64_t* rows, const int64_t* ids, const int64_t* last_seen_ms) {
        reserve(num);
        id_of_row_.assign(num_rows, 0);
        last_seen_ms_.assign(num_rows, 0);
        live_.assign(num_rows, 0);
        for (int64_t i = 0; i < num; ++i) {
            if (i + AHEAD < num) __builtin_prefetch(home(ids[i + AHEAD]), 1);
            const int64_t row = rows[i];
            if (find(ids[i]) != ABSENT) return false;
            place(ids[i], static_cast<int32_t>(row));
            id_of_row_[row] = ids[i];
            last_seen_ms_[row] = last_seen_ms[i];
            live_[row] = 1;
        }
        num_live_ = num;
        for (int64_t row = 0; row < num_rows; ++row)
            if (!live_[row]) free_rows_.push_back(static_cast<int32_t>(row));
        return true;
    }

    bool load_pending(int64_t num, const int64_t* ids, const int64_t* counts, const int64_t* last_seen_ms) {
        reserve(num);
        for (int64_t i = 0; i < num; ++i) {
            if (find(ids[i]) != ABSENT) return false;
            place(ids[i], ~static_cast<int32_t>(pending_.size()));
            pending_.push_back({ids[i], counts[i], last_seen_ms[i]});
        }
        return true;
    }

private:
    Bucket* home(int64_t id) const {
        const unsigned __int128 wide = static_cast<unsigned __int128>(mix(static_cast<uint64_t>(id))) * num_buckets_;
        return buckets_.get() + static_cast<int64_t>(wide >> 64);
    }
    Bucket* after(Bucket* bucket) const {
        ++bucket;
        return bucket == buckets_.get() + num_buckets_ ? buckets_.get() : bucket;
    }

    static unsigned matches(const Bucket& bucket, int64_t id) {
        unsigned mask = 0;
        for (int i = 0; i < SLOTS; ++i) mask |= static_cast<unsigned>(bucket.id[i] == id) << i;
        return mask & bucket.used;
    }

    Slot slot_of(int64_t id) const {
        Bucket* bucket = home(id);
        for (int64_t steps = 0; steps < num_buckets_; ++steps) {
            if (const unsigned mask = matches(*bucket, id)) return {bucket, __builtin_ctz(mask)};
            if (!bucket->overflowed) break;
            bucket = after(bucket);
        }
        return {nullptr, 0};
    }

    int32_t find(int64_t id) const {
        const Slot slot = slot_of(id);
        return slot.bucket ? slot.bucket->place[slot.index] : ABSENT;
    }

    // The id must be absent, and there must be room.
    void place(int64_t id, int32_t where) {
        Bucket* bucket = home(id);
        while (bucket->used == (1 << SLOTS) - 1) {
            bucket->overflowed = 1;
            bucket = after(bucket);
        }
        const int index = __builtin_ctz(~static_cast<unsigned>(bucket->used));
        bucket->id[index] = id;
        bucket->place[index] = where;
        bucket->used = static_cast<uint8_t>(bucket->used | 1u << index);
        ++num_used_;
    }

    void erase(int64_t id) {
        const Slot slot = slot_of(id);
        slot.bucket->used = static_cast<uint8_t>(slot.bucket->used & ~(1u << slot.index));
        --num_used_;
        ++num_erased_;
    }

    // Room for `more` ids, in every array, so that `see` cannot fail half-way.
    void reserve(int64_t more) {
        if (static_cast<double>(num_used_ + more) > FULLEST * SLOTS * static_cast<double>(num_buckets_))
            rebuild(std::max(num_used_ + more, 2 * num_used_));
        const auto grow = [more](auto& v) {
            if (v.capacity() < v.size() + more) v.reserve(std::max(v.size() + more, 2 * v.size()));
        };
        grow(id_of_row_), grow(last_seen_ms_), grow(live_), grow(pending_), grow(free_pending_);
        if (num_rows() + more > MAX_ROWS || static_cast<int64_t>(pending_.size()) + more > MAX_ROWS) throw std::bad_alloc();
    }

    void rebuild(int64_t capacity) {
        const int64_t num = std::max<int64_t>(16, static_cast<int64_t>(static_cast<double>(capacity) / (FULLEST * SLOTS)) + 1);
        Buckets old = make_buckets(num);
        old.swap(buckets_);
        const int64_t num_old = num_buckets_;
        num_buckets_ = num;
        num_used_ = num_erased_ = 0;
        for (int64_t b = 0; b < num_old; ++b)
            for (int i = 0; i < SLOTS; ++i)
                if (old[b].used >> i & 1) place(old[b].id[i], old[b].place[i]);
    }

    // Finds where the ids are now, with the misses overlapped, and brings in what that points to.
    void warm(const int64_t* ids, int64_t num, int32_t* places) const {
        for (int64_t i = 0; i < num; ++i) __builtin_prefetch(home(ids[i]), 1);
        for (int64_t i = 0; i < num; ++i) {
            const int32_t place = places[i] = find(ids[i]);
            if (place >= 0) __builtin_prefetch(&last_seen_ms_[place], 1);
            if (place < 0 && place != ABSENT) __builtin_prefetch(&pending_[~place], 1);
        }
    }

    int64_t see(int64_t id, int64_t now_ms) {
        const Slot slot = slot_of(id);
        if (!slot.bucket) {
            if (admit_after_ == 1) return admit(id, now_ms, nullptr);
            place(id, ~add_pending({id, 1, now_ms}));
            return -1;
        }
        const int32_t place = slot.bucket->place[slot.index];
        if (place >= 0) {
            last_seen_ms_[place] = std::max(last_seen_ms_[place], now_ms);
            return place;
        }
        Pending& pending = pending_[~place];
        pending.last_seen_ms = std::max(pending.last_seen_ms, now_ms);
        if (++pending.count < admit_after_) return -1;
        pending.count = 0;
        free_pending_.push_back(~place);
        return admit(id, pending.last_seen_ms, &slot);
    }

    int64_t admit(int64_t id, int64_t last_seen_ms, const Slot* slot) {
        int32_t row = static_cast<int32_t>(num_rows());
        if (free_rows_.empty()) {
            id_of_row_.push_back(id);
            last_seen_ms_.push_back(last_seen_ms);
            live_.push_back(1);
        } else {
            std::pop_heap(free_rows_.begin(), free_rows_.end(), std::greater<int32_t>());
            row = free_rows_.back();
            free_rows_.pop_back();
            id_of_row_[row] = id;
            last_seen_ms_[row] = last_seen_ms;
            live_[row] = 1;
        }
        if (slot)
            slot->bucket->place[slot->index] = row;
        else
            place(id, row);
        ++num_live_;
        return row;
    }

    int32_t add_pending(Pending pending) {
        if (free_pending_.empty()) {
            pending_.push_back(pending);
            return static_cast<int32_t>(pending_.size() - 1);
        }
        const int32_t index = free_pending_.back();
        free_pending_.pop_back();
        pending_[index] = pending;
        return index;
    }

    void drop_pending(int32_t index) {
        erase(pending_[index].id);
        pending_[index].count = 0;
        free_pending_.push_back(index);
    }

    int64_t admit_after_;
    Buckets buckets_;
    int64_t num_buckets_ = 0, num_used_ = 0, num_erased_ = 0, num_live_ = 0;
    std::vector<int64_t> id_of_row_, last_seen_ms_;
    std::vector<uint8_t> live_;
    std::vector<int32_t> free_rows_;  // a heap, lowest first
    std::vector<Pending> pending_;    // count 0: a free entry
    std::vector<int32_t> free_pending_;
};

template <class Work>
int64_t guarded(Work work) {
    try {
        return work();
    } catch (...) {
        return -1;  // out of memory: nothing else is thrown
    }
}

}  // namespace

HEADRACE_API void* id_map_new(int64_t capacity_hint, int64_t admit_after) {
    try {
        return new IdMap(capacity_hint, admit_after);
    } catch (...) {
        return nullptr;
    }
}
HEADRACE_API void id_map_delete(void* map) { delete static_cast<IdMap*>(map); }

// Live ids, rows ever given, pending ids.
HEADRACE_API void id_map_sizes(const void* map, int64_t* sizes) {
    const IdMap& m = *static_cast<const IdMap*>(map);
    sizes[0] = m.num_live(), sizes[1] = m.num_rows(), sizes[2] = m.num_pending();
}
HEADRACE_API void id_map_lookup(const void* map, const int64_t* ids, int64_t num, int64_t* rows) {
    static_cast<const IdMap*>(map)->lookup(ids, num, rows);
}
// The others return -1 when memory ran out.
HEADRACE_API int64_t id_map_insert(void* map, const int64_t* ids, int64_t num, int64_t now_ms, int64_t* rows) {
    return guarded([&] { return static_cast<IdMap*>(map)->insert(ids, num, now_ms, rows), int64_t{0}; });
}
HEADRACE_API int64_t id_map_evict(void* map, int64_t before_ms, int64_t* ids, int64_t* rows) {
    return guarded([&] { return static_cast<IdMap*>(map)->evict(before_ms, ids, rows); });
}
HEADRACE_API void id_map_live(const void* map, int64_t* rows, int64_t* ids, int64_t* last_seen_ms) {
    static_cast<const IdMap*>(map)->live(rows, ids, last_seen_ms);
}
HEADRACE_API int64_t id_map_pending(const void* map, int64_t* ids, int64_t* counts, int64_t* last_seen_ms) {
    return guarded([&] { return static_cast<const IdMap*>(map)->pending(ids, counts, last_seen_ms), int64_t{0}; });
}
HEADRACE_API void id_map_ids(const void* map, int64_t* ids) {
    const auto& id_of_row = static_cast<const IdMap*>(map)->id_of_row();
    std::copy(id_of_row.begin(), id_of_row.end(), ids);
}
// The loads return -2 when an id comes twice.
HEADRACE_API int64_t id_map_load_live(void* map, int64_t num_rows, int64_t num, const int64_t* rows, const int64_t* ids,
                                      const int64_t* last_seen_ms) {
    return guarded([&] {
        if (num_rows > MAX_ROWS) throw std::bad_alloc();
        return static_cast<IdMap*>(map)->load_live(num_rows, num, rows, ids, last_seen_ms) ? int64_t{0} : int64_t{-2};
    });
}
HEADRACE_API int64_t id_map_load_pending(void* map, int64_t num, const int64_t* ids, const int64_t* counts,
                                         const int64_t* last_seen_ms) {
    return guarded([&] {
        return static_cast<IdMap*>(map)->load_pending(num, ids, counts, last_seen_ms) ? int64_t{0} : int64_t{-2};
    });
}
