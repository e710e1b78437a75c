// The order in which a scan visits tokens that are stored in raster order.
#pragma once

#include "vector.h"

namespace rsm {
namespace RSM_ISA {

// index[t] is the row of the t-th visited token: 0 rows, 1 rows reversed, 2 columns, 3 columns
// reversed; a class token keeps its slot (-1 for none).
// False if the grid does not fit: rows would lie outside [0, length), or never be visited.
static bool fill_order(int64_t length, int64_t order, int64_t height, int64_t width, int64_t slot,
                       int32_t* index) {
    const bool fits = height > 0 && height <= length && width <= length && slot < length &&
                      height * width + (slot >= 0) == length;
    if (order >= 2 && length > 0 && !fits) return false;
    for (int64_t t = 0; t < length; ++t) {
        const int64_t at = order & 1 ? length - 1 - t : t;
        int64_t row = at;
        if (order >= 2 && at != slot) {
            const int64_t k = at - (slot >= 0 && at > slot);
            const int64_t patch = k % height * width + k / height;
            row = patch + (slot >= 0 && patch >= slot);
        }
        index[t] = int32_t(row);
    }
    return true;
}

}  // namespace RSM_ISA
}  // namespace rsm
