// The C interface: which instruction sets there are, and one function that runs any operator.
// Compiled without any of the optional instruction sets.

#include "abi.h"

namespace {

// 0 baseline, 1 AVX2, 2 AVX-512: the order of ISAS in ../cpu.py.
const rsm::Unit* unit(int64_t isa) {
    if (isa == 0) return &rsm::kUnitBaseline;
#ifdef RSM_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == 1 && avx2) return &rsm::kUnitAvx2;
    if (isa == 2 && avx2 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        return &rsm::kUnitAvx512;
#endif
    return nullptr;
}

}  // namespace

#define RSM_EXPORT extern "C" __attribute__((visibility("default")))

RSM_EXPORT int64_t rsm_abi_version() { return rsm::kAbiVersion; }

RSM_EXPORT int rsm_supports(int64_t isa) { return unit(isa) != nullptr; }

// Returns a Result.
RSM_EXPORT int rsm_run(int64_t isa, int64_t operation, const void* args, int64_t begin,
                       int64_t end) {
    const rsm::Unit* table = unit(isa);
    if (!table || operation < 0 || operation >= rsm::kOperations) return rsm::kUnknown;
    return table->kernels[operation](args, begin, end);
}
