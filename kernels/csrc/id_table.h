// 64-bit ids -> 32-bit numbers. Open addressing over buckets of one cache line (five ids with their numbers), so that a
// look-up costs one cache miss, and a batch's misses overlap by prefetching. A bucket records whether it ever
// overflowed into the next.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <new>
#include <utility>

namespace headrace {

constexpr int SLOTS = 5;
constexpr double FULLEST = 0.75;  // of the slots
constexpr int32_t ABSENT = INT32_MIN;
constexpr int64_t SMALL = 4096;     // a table of fewer buckets grows at once
constexpr int64_t MOVED_AN_ID = 1;  // buckets that move for each id inserted while a table grows
constexpr int64_t MANY_IDS = 64;    // inserts of more than this many also grow the table at once

struct alignas(64) Bucket {
    int64_t id[SLOTS];
    int32_t place[SLOTS];  // a row, or ~(index of a pending id)
    uint8_t used;          // bit i: slot i
    uint8_t overflowed;
    uint8_t unused[2];
};
static_assert(sizeof(Bucket) == 64, "a bucket is a cache line");

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

inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 32)) * 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9ull;
    return x ^ (x >> 32);
}

struct Slot {
    Bucket* bucket;
    int index;
};

// Grows without a pause: a large table's ids move to the larger one gradually, as others are inserted.
class IdTable {
public:
    explicit IdTable(int64_t capacity_hint) : table_(buckets_for(capacity_hint)) {}

    int64_t num_used() const { return num_used_; }

    Bucket* home(int64_t id) const {
        const Buckets& table = table_of(id);
        return &table[place_in(table, id)];
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

    // `find` for an id whose `home` is known, where it nearly always is.
    int32_t find(int64_t id, const Bucket& home) const {
        const unsigned mask = matches(home, id);
        return mask ? home.place[__builtin_ctz(mask)] : home.overflowed ? find(id) : ABSENT;
    }

    // The id must not be in the map, and there must be room.
    void place(int64_t id, int32_t where) {
        put(table_of(id), id, where);
        ++num_used_;
    }

    void erase(int64_t id) {
        const Slot slot = slot_of(id);
        slot.bucket->used = static_cast<uint8_t>(slot.bucket->used & ~(1u << slot.index));
        --num_used_;
        ++num_erased_;
    }

    // Room for `more` ids, so that `place` cannot fail.
    void reserve(int64_t more) {
        move(MOVED_AN_ID * more);
        if (static_cast<double>(num_used_ + more) > FULLEST * SLOTS * static_cast<double>(table_.num())) grow(more);
    }

    // After many erasures, rebuilds the table, which clears the overflow marks that they left.
    void tidy() {
        if (num_erased_ > table_.num()) rebuild(num_used_);
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

    static unsigned matches(const Bucket& bucket, int64_t id) {
        unsigned mask = 0;
        for (int i = 0; i < SLOTS; ++i) mask |= static_cast<unsigned>(bucket.id[i] == id) << i;
        return mask & bucket.used;
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

    static Buckets buckets_for(int64_t capacity) {
        return Buckets(
            std::max<int64_t>(16, static_cast<int64_t>(static_cast<double>(capacity) / (FULLEST * SLOTS)) + 1));
    }

    // Makes a larger table. Ids move to it gradually as others are inserted, or at once if the table is small or many
    // ids are coming.
    void grow(int64_t more) {
        move(old_.num());
        const int64_t border = table_.num() < SMALL || more > MANY_IDS ? -1 : first_border();
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

    // Moves at least this many buckets of the old table, up to the end of a chain. Moved buckets are emptied: a chain
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
        Buckets other = buckets_for(capacity);  // may fail, so before anything changes
        for (int64_t b = 0; b < table_.num(); ++b)
            for (int i = 0; i < SLOTS; ++i)
                if (table_[b].used >> i & 1) put(other, table_[b].id[i], table_[b].place[i]);
        table_ = std::move(other);
        num_erased_ = 0;
    }

    Buckets table_, old_;
    int64_t start_ = 0, num_moved_ = 0;  // of the old table
    int64_t num_used_ = 0, num_erased_ = 0;
};

}  // namespace headrace
