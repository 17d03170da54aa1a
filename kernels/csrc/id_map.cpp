// 64-bit ids → rows. Open addressing over buckets of one cache line (five ids with their rows), so that a look-up costs
// one cache miss, and a batch's misses overlap by prefetching. A bucket records whether it ever overflowed into the
// next. Rows depend only on the order of calls, never on the hash.
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
constexpr int64_t AHEAD = 24;     // ids whose buckets are being prefetched
constexpr int64_t BLOCK = 64;     // ids of an insert whose rows are looked up before any is changed
constexpr double FULLEST = 0.75;  // of the slots
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

constexpr int64_t SMALL = 4096;     // buckets: a table of fewer grows at once
constexpr int64_t MOVED_AN_ID = 2;  // buckets that move for each id inserted while a table grows

// A table of buckets, all zero at first. A large one is mapped memory, whose pages the system clears when they are
// first touched, on huge pages if available: with small pages each look-up would also miss the TLB.
class Buckets {
public:
    Buckets() = default;
    explicit Buckets(int64_t num) : num_(num) {
#if defined(__linux__)
        if (bytes() >= LARGE) {
            void* p = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (p == MAP_FAILED) throw std::bad_alloc();
            madvise(p, bytes(), MADV_HUGEPAGE);
            first_ = static_cast<Bucket*>(p);
            return;
        }
#endif
        first_ = static_cast<Bucket*>(aligned_alloc(sizeof(Bucket), bytes()));
        if (!first_) throw std::bad_alloc();
        memset(static_cast<void*>(first_), 0, bytes());
    }
    Buckets(Buckets&& other) noexcept { swap(other); }
    Buckets& operator=(Buckets&& other) noexcept {
        Buckets taken(std::move(other));
        swap(taken);
        return *this;
    }
    ~Buckets() {
#if defined(__linux__)
        if (bytes() >= LARGE) {
            munmap(first_, bytes());
            return;
        }
#endif
        free(first_);
    }

    int64_t num() const { return num_; }
    Bucket& operator[](int64_t i) const { return first_[i]; }

private:
    static constexpr size_t LARGE = 2u << 20;
    size_t bytes() const { return static_cast<size_t>(num_) * sizeof(Bucket); }
    void swap(Buckets& other) noexcept {
        std::swap(first_, other.first_);
        std::swap(num_, other.num_);
    }

    Bucket* first_ = nullptr;
    int64_t num_ = 0;
};

// Like std::vector, for plain values: a large one grows without being copied, because realloc moves its pages.
template <class T>
class Column {
public:
    Column() = default;
    Column(const Column&) = delete;
    Column& operator=(const Column&) = delete;
    ~Column() { free(data_); }

    size_t size() const { return size_; }
    size_t capacity() const { return capacity_; }
    T& operator[](size_t i) { return data_[i]; }
    const T& operator[](size_t i) const { return data_[i]; }
    const T* begin() const { return data_; }
    const T* end() const { return data_ + size_; }
    void reserve(size_t capacity) {
        if (capacity <= capacity_) return;
        void* p = realloc(static_cast<void*>(data_), capacity * sizeof(T));
        if (!p) throw std::bad_alloc();
        data_ = static_cast<T*>(p);
        capacity_ = capacity;
    }
    void push_back(T value) { data_[size_++] = value; }  // there must be room
    void assign(size_t size, T value) {
        reserve(size);
        size_ = size;
        std::fill(data_, data_ + size, value);
    }

private:
    T* data_ = nullptr;
    size_t size_ = 0, capacity_ = 0;
};

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
    IdMap(int64_t capacity_hint, int64_t admit_after) : admit_after_(admit_after), table_(buckets_for(capacity_hint)) {}

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
                else rows[start + i] = see(ids[start + i], now_ms);
            }
        }
    }

    // Writes the evicted ids and their rows, by row; the arrays have room for num_live().
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
        if (num_erased_ > table_.num()) rebuild(num_used_);
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

    const Column<int64_t>& id_of_row() const { return id_of_row_; }

    // Ids of rows and when each was last seen; zeros for a free row.
    void rows(const int64_t* rows, int64_t num, int64_t* ids, int64_t* last_seen_ms) const {
        for (int64_t i = 0; i < num; ++i) {
            if (i + AHEAD < num) {
                __builtin_prefetch(&id_of_row_[rows[i + AHEAD]]);
                __builtin_prefetch(&last_seen_ms_[rows[i + AHEAD]]);
            }
            ids[i] = id_of_row_[rows[i]];
            last_seen_ms[i] = live_[rows[i]] ? last_seen_ms_[rows[i]] : 0;
        }
    }

    // Loads into an empty map; false if an id occurs twice.
    bool load_live(int64_t num_rows, int64_t num, const int64_t* rows, const int64_t* ids,
                   const int64_t* last_seen_ms) {
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
    static int64_t place_in(const Buckets& table, int64_t id) {
        const unsigned __int128 wide =
            static_cast<unsigned __int128>(mix(static_cast<uint64_t>(id))) * static_cast<uint64_t>(table.num());
        return static_cast<int64_t>(wide >> 64);
    }
    // While a table grows, the buckets of `old_` from `start_` on move to `table_`, whole chains at a time: an id's
    // place in the old table says which table it is in.
    const Buckets& table_of(int64_t id) const {
        if (!old_.num()) return table_;
        const int64_t behind = place_in(old_, id) - start_;
        return (behind < 0 ? behind + old_.num() : behind) < num_moved_ ? table_ : old_;
    }
    Bucket* home(int64_t id) const {
        const Buckets& table = table_of(id);
        return &table[place_in(table, id)];
    }

    static unsigned matches(const Bucket& bucket, int64_t id) {
        unsigned mask = 0;
        for (int i = 0; i < SLOTS; ++i) mask |= static_cast<unsigned>(bucket.id[i] == id) << i;
        return mask & bucket.used;
    }

    Slot slot_of(int64_t id) const {
        const Buckets& table = table_of(id);
        int64_t at = place_in(table, id);
        for (int64_t steps = 0; steps < table.num(); ++steps) {
            if (const unsigned mask = matches(table[at], id)) return {&table[at], __builtin_ctz(mask)};
            if (!table[at].overflowed) break;
            at = at + 1 == table.num() ? 0 : at + 1;
        }
        return {nullptr, 0};
    }

    int32_t find(int64_t id) const {
        const Slot slot = slot_of(id);
        return slot.bucket ? slot.bucket->place[slot.index] : ABSENT;
    }

    // The id must not be in the map, and there must be room.
    void place(int64_t id, int32_t where) {
        put(table_of(id), id, where);
        ++num_used_;
    }

    static void put(const Buckets& table, int64_t id, int32_t where) {
        int64_t at = place_in(table, id);
        while (table[at].used == (1 << SLOTS) - 1) {
            table[at].overflowed = 1;
            at = at + 1 == table.num() ? 0 : at + 1;
        }
        Bucket& bucket = table[at];
        const int index = __builtin_ctz(~static_cast<unsigned>(bucket.used));
        bucket.id[index] = id;
        bucket.place[index] = where;
        bucket.used = static_cast<uint8_t>(bucket.used | 1u << index);
    }

    void erase(int64_t id) {
        const Slot slot = slot_of(id);
        slot.bucket->used = static_cast<uint8_t>(slot.bucket->used & ~(1u << slot.index));
        --num_used_;
        ++num_erased_;
    }

    // Room for `more` ids, in every array, so that `see` cannot fail half-way.
    void reserve(int64_t more) {
        move(MOVED_AN_ID * more);
        if (static_cast<double>(num_used_ + more) > FULLEST * SLOTS * static_cast<double>(table_.num())) grow(more);
        const auto room = [more](auto& v) {
            if (v.capacity() < v.size() + more) v.reserve(std::max(v.size() + more, v.size() + v.size() / 2));
        };
        room(id_of_row_), room(last_seen_ms_), room(live_), room(pending_), room(free_pending_);
        if (num_rows() + more > MAX_ROWS || static_cast<int64_t>(pending_.size()) + more > MAX_ROWS)
            throw std::bad_alloc();
    }

    static Buckets buckets_for(int64_t capacity) {
        return Buckets(
            std::max<int64_t>(16, static_cast<int64_t>(static_cast<double>(capacity) / (FULLEST * SLOTS)) + 1));
    }

    // Makes a larger table, to which the ids move gradually as others are inserted; at once if it is small, or for many
    // ids.
    void grow(int64_t more) {
        move(old_.num());
        const int64_t border = table_.num() < SMALL || more > BLOCK ? -1 : first_border();
        if (border < 0) {
            rebuild(std::max(num_used_ + more, 2 * num_used_));
            return;
        }
        Buckets larger = buckets_for(2 * num_used_);
        old_ = std::move(table_);
        table_ = std::move(larger);
        start_ = border, num_moved_ = num_erased_ = 0;
    }

    // A bucket that no chain runs into; -1 if there is none.
    int64_t first_border() const {
        for (int64_t i = 1; i < table_.num(); ++i)
            if (!table_[i - 1].overflowed) return i;
        return -1;
    }

    // Moves at least so many buckets of the old table, up to the end of a chain. Moved buckets are emptied: a chain
    // that later wraps around the end of the table, into buckets that moved first, is then followed there.
    void move(int64_t num) {
        bool within_chain = false;
        for (; old_.num() && (num > 0 || within_chain); --num) {
            Bucket& bucket = old_[(start_ + num_moved_) % old_.num()];
            for (int i = 0; i < SLOTS; ++i)
                if (bucket.used >> i & 1) put(table_, bucket.id[i], bucket.place[i]);
            within_chain = bucket.overflowed;
            bucket.used = bucket.overflowed = 0;
            if (++num_moved_ >= old_.num() && !within_chain) old_ = Buckets();
        }
    }

    void rebuild(int64_t capacity) {
        move(old_.num());
        Buckets other = buckets_for(capacity);  // before anything changes: this may fail
        for (int64_t b = 0; b < table_.num(); ++b)
            for (int i = 0; i < SLOTS; ++i)
                if (table_[b].used >> i & 1) put(other, table_[b].id[i], table_[b].place[i]);
        table_ = std::move(other);
        num_erased_ = 0;
    }

    // Finds where the ids are now, with overlapping misses, and prefetches what that points to.
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
        if (slot) slot->bucket->place[slot->index] = row;
        else place(id, row);
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
    Buckets table_, old_;
    int64_t start_ = 0, num_moved_ = 0;  // of the old table
    int64_t num_used_ = 0, num_erased_ = 0, num_live_ = 0;
    Column<int64_t> id_of_row_, last_seen_ms_;
    Column<uint8_t> live_;
    std::vector<int32_t> free_rows_;  // a heap, lowest first
    std::vector<Pending> pending_;    // count 0: a free entry
    std::vector<int32_t> free_pending_;
};

template <class Work>
int64_t guarded(Work work) {
    try {
        return work();
    } catch (...) {
        return -1;  // out of memory: the only exception thrown
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

// Live ids, rows ever assigned, pending ids.
HEADRACE_API void id_map_sizes(const void* map, int64_t* sizes) {
    const IdMap& m = *static_cast<const IdMap*>(map);
    sizes[0] = m.num_live(), sizes[1] = m.num_rows(), sizes[2] = m.num_pending();
}
HEADRACE_API void id_map_lookup(const void* map, const int64_t* ids, int64_t num, int64_t* rows) {
    static_cast<const IdMap*>(map)->lookup(ids, num, rows);
}
// The others return -1 if out of memory.
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
HEADRACE_API void id_map_rows(const void* map, const int64_t* rows, int64_t num, int64_t* ids, int64_t* last_seen_ms) {
    static_cast<const IdMap*>(map)->rows(rows, num, ids, last_seen_ms);
}
// The loads return -2 if an id occurs twice.
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
