// Numbers of the newest interactions by key: what `kernels.arrivals` describes.
#include <cstdint>

#include "export.h"
#include "id_table.h"

namespace {

constexpr int64_t AHEAD = 16;  // keys whose slots are being fetched

// A ring of keys, and a table of their places in it: open addressing, a slot has 32 bits of the key's hash and a
// place + 1, or 0. Each slot's place has the slot's key; a key that came several times has the slot of its last place.
class Ring {
public:
    Ring(int64_t* key, int64_t most, uint64_t* slot, int64_t num_slots)
        : key_(key), most_(most), slot_(slot), mask_(static_cast<uint64_t>(num_slots - 1)) {}

    // The number of a key if `num` interactions have come; -1 if it is none of the newest.
    int64_t number_of(int64_t key, int64_t num) const {
        const int64_t place = place_in(slot_[slot_of(key)]);
        return place < 0 ? -1 : num - 1 - (num - 1 - place) % most_;
    }

    void add(int64_t key, int64_t number) {
        const int64_t place = number % most_;
        if (number >= most_) forget(key_[place], place);
        slot_[slot_of(key)] = hash_of(key) << 32 | static_cast<uint64_t>(place + 1);
        key_[place] = key;
    }

    void fetch(int64_t key) const { __builtin_prefetch(slot_ + (hash_of(key) & mask_)); }

    // Of the key that the interaction with this number replaces.
    void fetch_replaced(int64_t number) const {
        if (number >= most_) fetch(key_[number % most_]);
    }

private:
    static uint64_t hash_of(int64_t key) { return headrace::mix(static_cast<uint64_t>(key)) >> 32; }
    static int64_t place_in(uint64_t slot) { return static_cast<int64_t>(slot & 0xFFFFFFFFu) - 1; }

    // Of a key, or the empty one where it would be.
    uint64_t slot_of(int64_t key) const {
        const uint64_t hash = hash_of(key);
        uint64_t at = hash & mask_;
        while (slot_[at] && (slot_[at] >> 32 != hash || key_[place_in(slot_[at])] != key)) at = (at + 1) & mask_;
        return at;
    }

    // Empties the key's slot if it has this place, and moves those behind it up.
    void forget(int64_t key, int64_t place) {
        uint64_t at = slot_of(key);
        if (place_in(slot_[at]) != place) return;
        for (uint64_t next = (at + 1) & mask_; slot_[next]; next = (next + 1) & mask_) {
            const uint64_t home = slot_[next] >> 32;
            if (((next - home) & mask_) < ((next - at) & mask_)) continue;
            slot_[at] = slot_[next];
            at = next;
        }
        slot_[at] = 0;
    }

    int64_t* key_;
    int64_t most_;
    uint64_t *slot_, mask_;
};

}  // namespace

// Numbers `num_events` interactions, of which `num` came before: first finds the earlier ones, then numbers the new
// ones, in their order or in that of `order`. Returns how many earlier ones were found.
HEADRACE_API int64_t headrace_number_arrivals(const int64_t* key, const uint8_t* is_new, const int64_t* order,
                                              int64_t num_events, int64_t num, int64_t* ring_key, int64_t most,
                                              uint64_t* slot, int64_t num_slots, int64_t* number) {
    Ring ring(ring_key, most, slot, num_slots);
    int64_t num_found = 0;
    for (int64_t r = 0; r < num_events; ++r) ring.fetch(key[r]);
    for (int64_t r = 0; r < num_events; ++r)
        if (!is_new[r]) num_found += (number[r] = ring.number_of(key[r], num)) >= 0;
    for (int64_t i = 0; i < num_events; ++i) {
        ring.fetch_replaced(num + AHEAD);
        const int64_t r = order ? order[i] : i;
        if (is_new[r]) ring.add(key[r], number[r] = num++);
    }
    return num_found;
}
