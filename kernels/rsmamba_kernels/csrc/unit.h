// The table of one translation unit. RSM_ISA names its namespace, RSM_UNIT its table.
#pragma once

#include "abi.h"
#include "conv1d_silu.h"
#include "selective_scan.h"
#include "state_fusion.h"
#include "state_scan.h"

namespace rsm {

extern const Unit RSM_UNIT;
const Unit RSM_UNIT = {{
    RSM_ISA::scan<false>,
    RSM_ISA::scan<true>,
    RSM_ISA::state_scan<false>,
    RSM_ISA::state_scan<true>,
    RSM_ISA::fusion<false>,
    RSM_ISA::fusion<true>,
    RSM_ISA::convolution<false>,
    RSM_ISA::convolution<true>,
}};

}  // namespace rsm
