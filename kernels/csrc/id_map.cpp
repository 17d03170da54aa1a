// 64-bit ids → rows (id_table.h). Rows depend only on the order of calls, never on the hash.
#include <algorithm>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "column.h"
#include "export.h"
#include "id_map.h"
#include "id_table.h"

namespace {

using namespace headrace;

constexpr int64_t AHEAD = 32;        // ids whose buckets are being prefetched
constexpr int64_t BLOCK = MANY_IDS;  // ids of an insert whose rows are looked up before any is changed
constexpr int64_t MAX_ROWS = INT32_MAX;

struct Pending {
    int64_t id, count, last_seen_ms;
};

class IdMap {
public:
    IdMap(int64_t capacity_hint, int64_t admit_after) : admit_after_(admit_after), table_(capacity_hint) {}

    int64_t num_live() const { return num_live_; }
    int64_t num_rows() const { return static_cast<int64_t>(id_of_row_.size()); }
    int64_t num_pending() const { return table_.num_used() - num_live_; }

    // Numbers the rows from `first` on.
    void lookup(const int64_t* ids, int64_t num, int64_t first, int64_t* rows) const {
        const Bucket* homes[AHEAD];
        const auto look_ahead = [&](int64_t i) {
            if (i < num) __builtin_prefetch(homes[i % AHEAD] = table_.home(ids[i]));
        };
        for (int64_t i = 0; i < AHEAD; ++i) look_ahead(i);
        for (int64_t i = 0; i < num; ++i) {
            const int32_t place = table_.find(ids[i], *homes[i % AHEAD]);
            rows[i] = first + (place < 0 ? -1 : place);
            look_ahead(i + AHEAD);
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
        make_free(rows, count);
        for (size_t i = 0; i < pending_.size(); ++i)
            if (pending_[i].count > 0 && pending_[i].last_seen_ms < before_ms) drop_pending(static_cast<int32_t>(i));
        table_.tidy();
        return count;
    }

    // The same for these ids, whenever they were seen; the arrays have room for `num`.
    int64_t remove(const int64_t* gone, int64_t num, int64_t* ids, int64_t* rows) {
        int64_t count = 0;
        for (int64_t i = 0; i < num; ++i)
            if (const int32_t place = table_.find(gone[i]); place >= 0) rows[count++] = place;
        std::sort(rows, rows + count);
        count = std::unique(rows, rows + count) - rows;
        for (int64_t i = 0; i < count; ++i) ids[i] = id_of_row_[rows[i]];
        make_free(rows, count);
        for (int64_t i = 0; i < num; ++i)
            if (const int32_t place = table_.find(gone[i]); place != ABSENT) drop_pending(~place);
        table_.tidy();
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
            if (i + AHEAD < num) __builtin_prefetch(table_.home(ids[i + AHEAD]), 1);
            const int64_t row = rows[i];
            if (table_.find(ids[i]) != ABSENT) return false;
            table_.place(ids[i], static_cast<int32_t>(row));
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
            if (table_.find(ids[i]) != ABSENT) return false;
            table_.place(ids[i], ~static_cast<int32_t>(pending_.size()));
            pending_.push_back({ids[i], counts[i], last_seen_ms[i]});
        }
        return true;
    }

private:
    // Room for `more` ids, in every array, so that `see` cannot fail half-way.
    void reserve(int64_t more) {
        table_.reserve(more);
        const auto room = [more](auto& v) {
            if (v.capacity() < v.size() + more) v.reserve(std::max(v.size() + more, v.size() + v.size() / 2));
        };
        room(id_of_row_), room(last_seen_ms_), room(live_), room(pending_), room(free_pending_);
        if (num_rows() + more > MAX_ROWS || static_cast<int64_t>(pending_.size()) + more > MAX_ROWS)
            throw std::bad_alloc();
    }

    // Looks up where the ids are now, with overlapping misses, and prefetches the entries they refer to.
    void warm(const int64_t* ids, int64_t num, int32_t* places) const {
        for (int64_t i = 0; i < num; ++i) __builtin_prefetch(table_.home(ids[i]), 1);
        for (int64_t i = 0; i < num; ++i) {
            const int32_t place = places[i] = table_.find(ids[i]);
            if (place >= 0) __builtin_prefetch(&last_seen_ms_[place], 1);
            if (place < 0 && place != ABSENT) __builtin_prefetch(&pending_[~place], 1);
        }
    }

    int64_t see(int64_t id, int64_t now_ms) {
        const Slot slot = table_.slot_of(id);
        if (!slot.bucket) {
            if (admit_after_ == 1) return admit(id, now_ms, nullptr);
            table_.place(id, ~add_pending({id, 1, now_ms}));
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
        else table_.place(id, row);
        ++num_live_;
        return row;
    }

    // Takes these distinct rows from their ids. Afterwards `drop_pending` cannot fail.
    void make_free(const int64_t* rows, int64_t num) {
        if (const size_t wanted = free_rows_.size() + num; wanted > free_rows_.capacity())
            free_rows_.reserve(std::max(wanted, 2 * free_rows_.capacity()));  // may fail, so before anything changes
        free_pending_.reserve(pending_.size());
        for (int64_t i = 0; i < num; ++i) {
            table_.erase(id_of_row_[rows[i]]);
            live_[rows[i]] = 0;
            id_of_row_[rows[i]] = 0;
            free_rows_.push_back(static_cast<int32_t>(rows[i]));
            std::push_heap(free_rows_.begin(), free_rows_.end(), std::greater<int32_t>());
        }
        num_live_ -= num;
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
        table_.erase(pending_[index].id);
        pending_[index].count = 0;
        free_pending_.push_back(index);
    }

    int64_t admit_after_;
    IdTable table_;
    int64_t num_live_ = 0;
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
HEADRACE_API void id_map_lookup(const void* map, const int64_t* ids, int64_t num, int64_t first, int64_t* rows) {
    static_cast<const IdMap*>(map)->lookup(ids, num, first, rows);
}
// The others return -1 if out of memory.
HEADRACE_API int64_t id_map_insert(void* map, const int64_t* ids, int64_t num, int64_t now_ms, int64_t* rows) {
    return guarded([&] { return static_cast<IdMap*>(map)->insert(ids, num, now_ms, rows), int64_t{0}; });
}
HEADRACE_API int64_t id_map_evict(void* map, int64_t before_ms, int64_t* ids, int64_t* rows) {
    return guarded([&] { return static_cast<IdMap*>(map)->evict(before_ms, ids, rows); });
}
HEADRACE_API int64_t id_map_remove(void* map, const int64_t* gone, int64_t num, int64_t* ids, int64_t* rows) {
    return guarded([&] { return static_cast<IdMap*>(map)->remove(gone, num, ids, rows); });
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
