// Parts of users' histories, one after the other, as columns: what `kernels.windows` describes.
#include <cstdint>
#include <cstring>

#include "export.h"

namespace {

// The beginning of a row of `wire.history.row_type`, which its features follow.
struct Row {
    int64_t item, time, domain;
    uint32_t bits;
    float value;
};
static_assert(sizeof(Row) == 32, "expected the layout of wire.history.row_type");

}  // namespace

// `windows` (users, 2): each the address of the first row, and how many there are. Returns how many have no item.
HEADRACE_API int64_t headrace_join_windows(const int64_t* windows, int64_t num_users, int64_t num_features,
                                           int64_t* item, int64_t* time, int64_t* domain, uint32_t* bits, float* value,
                                           int64_t* features, int64_t* owner) {
    const int64_t row_bytes = sizeof(Row) + 8 * num_features;
    int64_t at = 0, num_absent = 0;
    for (int64_t user = 0; user < num_users; ++user) {
        const uint8_t* from = reinterpret_cast<const uint8_t*>(windows[2 * user]);
        for (int64_t i = 0; i < windows[2 * user + 1]; ++i, ++at, from += row_bytes) {
            Row row;
            std::memcpy(&row, from, sizeof row);
            item[at] = row.item, time[at] = row.time, domain[at] = row.domain;
            bits[at] = row.bits, value[at] = row.value, owner[at] = user;
            num_absent += row.item == 0;
            std::memcpy(features + at * num_features, from + sizeof row, static_cast<size_t>(8 * num_features));
        }
    }
    return num_absent;
}
