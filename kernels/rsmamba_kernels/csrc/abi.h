// What crosses the border between Python (ctypes) and C++: plain structures of int64 and pointers.
//
// Every member takes 8 bytes, so that the mirrors (_Args in the cpu.py of every operator's folder)
// need no padding rules. Strides count floats; the last dimension of every tensor is contiguous.
// A work range [begin, end) counts units: batch * ceil(channels / group) of them, batch-major. Which
// thread runs which unit never changes a result: sums over units are left to the caller as partial
// sums, one slot per group.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#define RSM_X86 1  // the units for AVX2 and AVX-512 are there as well
#endif

namespace rsm {

// Raised with every change of a structure below; ../cpu.py refuses a library of another version.
constexpr int64_t kAbiVersion = 2;

constexpr int64_t kScanGroup = 64;    // channels per unit of the scans and the convolution
constexpr int64_t kFusionGroup = 32;  // channels per unit of the state fusion
constexpr int64_t kTaps = 25;         // distinct taps of three 3x3 kernels, dilations 1, 3 and 5

struct Rows {  // (batch, row, last), last contiguous
    const float* data;
    int64_t batch, row;
};

struct ScanArgs {
    int64_t batch, length, channels, states, softplus;
    int64_t accumulate;  // whether the forward adds to y
    int64_t order, height, width, slot;  // slot of the class token, -1 for none
    Rows u, dt, B, C;
    const float *A, *D, *bias;  // (D, N), (D) or null, (D) or null
    float* y;                   // (B, L, D)
    // Backward only.
    Rows dy;
    float *du, *ddt;          // (B, L, D)
    float *dA, *dD, *dbias;   // (B, D, N), (B, D), (B, D)
    float *dB, *dC;           // (groups, B, L, N)
};

struct ConvolutionArgs {
    int64_t batch, length, channels, directions, taps;  // taps 2, 3 or 4
    int64_t height, width, slot;
    const int64_t* orders;       // (K)
    Rows x;
    const float *weight, *bias;  // (K, W, D), (K, D) or null
    float* out;                  // (K, B, L, D)
    // Backward only.
    const float* dout;           // (K, B, L, D)
    float *dx;                   // (B, L, D)
    float *dweight, *dbias;      // (B, K, W, D), (B, K, D)
};

struct StateScanArgs {
    int64_t batch, length, channels, softplus;
    Rows x, dt, B;
    const float *A, *bias;  // (D), (D) or null
    float* h;               // (B, L, D), read by the backward
    // Backward only.
    Rows dh;
    float *dx, *ddt;    // (B, L, D)
    float *dA, *dbias;  // (B, D)
    float* dB;          // (groups, B, L)
};

struct FusionArgs {
    int64_t batch, height, width, channels, zeros;
    Rows h, x, C;
    const float *taps, *D;  // (25, D) in the order of kTapRow, kTapColumn; (D)
    float* y;               // (B, H, W, D)
    // Backward only.
    Rows dy;
    float *dh, *dx;      // (B, H, W, D)
    float* dC;           // (groups, B, H, W)
    float *dtaps, *dD;   // (B, 25, D), (B, D)
};

enum Operation : int64_t {
    kScanForward,
    kScanBackward,
    kStateScanForward,
    kStateScanBackward,
    kFusionForward,
    kFusionBackward,
    kConvolutionForward,
    kConvolutionBackward,
    kOperations
};

// What kernels and rsm_run return; the outputs are complete with kDone only.
enum Result : int {
    kDone = 0,
    kNoMemory = 1,  // for scratch
    kUnknown = 2,   // operation, or an instruction set that the library or the processor lacks
    kOutside = 3,   // the path would leave the sequence: the grid does not fit the length
};

using Kernel = int (*)(const void* args, int64_t begin, int64_t end);

struct Unit {
    Kernel kernels[kOperations];
};

extern const Unit kUnitBaseline;
#ifdef RSM_X86
extern const Unit kUnitAvx2;
extern const Unit kUnitAvx512;
#endif

}  // namespace rsm
