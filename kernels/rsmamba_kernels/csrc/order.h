// The order in which a scan visits tokens that are stored in raster order.
#pragma once

#include "vector.h"

namespace rsm {
namespace RSM_ISA {

// index[t] is the row of the t-th visited token: 0 rows, 1 rows reversed, 2 columns, 3 columns
// reversed; a class token keeps its slot (-1 for none).
static void fill_order(int64_t length, int64_t order, int64_t height, int64_t width, int64_t slot,
                       int32_t* index) {
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
}

}  // namespace RSM_ISA
}  // namespace rsm
