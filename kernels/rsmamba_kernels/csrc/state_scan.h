// Spatial-Mamba's scan: one state per channel, and the states are the output.
//
// One pass over the rows each way, without scratch: the backward reads the states that the forward
// returned. A step handles the 64 channels of a unit, whose chains hide each other's latency.
#pragma once

#include "abi.h"
#include "vector.h"

namespace rsm {
namespace RSM_ISA {

constexpr int kBlocks = kScanGroup / VL;
// Steps before its use that the backward fetches a row: going back, rows lie too far apart for the
// processor to do so by itself.
constexpr int64_t kFetch = 4;

struct Lane {  // per block of VL channels
    int count;
    V A, bias;
};

// The blocks of the unit that starts at a channel; returns how many there are.
static int open_lanes(const StateScanArgs& a, int64_t first, Lane* lanes) {
    int blocks = 0;
    for (int64_t c = first; c < smaller(first + kScanGroup, a.channels); c += VL) {
        Lane& lane = lanes[blocks++];
        lane.count = int(smaller(VL, a.channels - c));
        lane.A = load_part(a.A + c, lane.count);
        lane.bias = a.bias ? load_part(a.bias + c, lane.count) : V{};
    }
    return blocks;
}

template <bool kSoftplus>
static void state_scan_forward(const StateScanArgs& a, int64_t b, int64_t first) {
    Lane lanes[kBlocks];
    const int blocks = open_lanes(a, first, lanes);
    V h[kBlocks] = {};
    for (int k = 0; k < blocks; ++k) lanes[k].A *= kLog2E;
    const float *x = a.x.data + b * a.x.batch + first, *dt = a.dt.data + b * a.dt.batch + first;
    const float* B = a.B.data + b * a.B.batch;
    float* out = a.h + b * a.length * a.channels + first;
    for (int64_t t = 0; t < a.length; ++t, x += a.x.row, dt += a.dt.row, out += a.channels) {
        const float weight = B[t * a.B.row];
        for (int k = 0; k < blocks; ++k) {
            const Lane& lane = lanes[k];
            V delta = load_part(dt + k * VL, lane.count) + lane.bias;
            if (kSoftplus) delta = softplus(delta, nullptr);
            const V drive = delta * load_part(x + k * VL, lane.count);
            h[k] = exp2(delta * lane.A) * h[k] + drive * weight;
            store_part(out + k * VL, h[k], lane.count);
        }
    }
}

template <bool kSoftplus>
static void state_scan_backward(const StateScanArgs& a, int64_t b, int64_t first, float* dB) {
    Lane lanes[kBlocks];
    const int blocks = open_lanes(a, first, lanes);
    V carried[kBlocks] = {}, dA[kBlocks] = {}, dbias[kBlocks] = {};
    V all_dA[kBlocks] = {}, all_dbias[kBlocks] = {};  // of the steps before
    const V zero = {};
    for (int64_t t = a.length - 1; t >= 0; --t) {
        const float* x = a.x.data + b * a.x.batch + t * a.x.row + first;
        const float* dt = a.dt.data + b * a.dt.batch + t * a.dt.row + first;
        const float* dh = a.dh.data + b * a.dh.batch + t * a.dh.row + first;
        const float weight = a.B.data[b * a.B.batch + t * a.B.row];
        const int64_t at = (b * a.length + t) * a.channels + first;
        V over_B = {};
        for (int k = 0; t > kFetch && k < blocks; ++k) {
            __builtin_prefetch(x - kFetch * a.x.row + k * VL);
            __builtin_prefetch(dt - kFetch * a.dt.row + k * VL);
            __builtin_prefetch(dh - kFetch * a.dh.row + k * VL);
            __builtin_prefetch(a.h + at - (kFetch + 1) * a.channels + k * VL);
            __builtin_prefetch(a.dx + at - kFetch * a.channels + k * VL, 1);
            __builtin_prefetch(a.ddt + at - kFetch * a.channels + k * VL, 1);
        }
        for (int k = 0; k < blocks; ++k) {
            const Lane& lane = lanes[k];
            const V u = load_part(x + k * VL, lane.count);
            V slope = splat(1.f), delta = load_part(dt + k * VL, lane.count) + lane.bias;
            if (kSoftplus) delta = softplus(delta, &slope);
            const V before = t ? load_part(a.h + at - a.channels + k * VL, lane.count) : zero;
            const V e = exp2(delta * lane.A * kLog2E);
            const V g = carried[k] + load_part(dh + k * VL, lane.count);
            const V w = g * e * before, gB = g * weight;
            const V ddt = (lane.A * w + gB * u) * slope;
            store_part(a.dx + at + k * VL, gB * delta, lane.count);
            store_part(a.ddt + at + k * VL, ddt, lane.count);
            over_B += g * (delta * u);
            dA[k] += w * delta;
            dbias[k] += ddt;
            carried[k] = g * e;
        }
        dB[t] = sum(over_B);
        for (int k = 0; t % kShortSum == 0 && k < blocks; ++k) {
            all_dA[k] += dA[k], all_dbias[k] += dbias[k];
            dA[k] = dbias[k] = zero;
        }
    }
    for (int k = 0; k < blocks; ++k) {
        const int64_t at = b * a.channels + first + k * VL;
        store_part(a.dA + at, all_dA[k], lanes[k].count);
        store_part(a.dbias + at, all_dbias[k], lanes[k].count);
    }
}

template <bool kBackward>
static int state_scan(const void* pointer, int64_t begin, int64_t end) {
    const StateScanArgs& a = *static_cast<const StateScanArgs*>(pointer);
    const Scratch flush_denormals(0);
    const int64_t groups = (a.channels + kScanGroup - 1) / kScanGroup;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / groups, group = unit % groups, first = group * kScanGroup;
        if (kBackward) {
            float* dB = a.dB + (group * a.batch + b) * a.length;
            if (a.softplus) state_scan_backward<true>(a, b, first, dB);
            else state_scan_backward<false>(a, b, first, dB);
        } else {
            if (a.softplus) state_scan_forward<true>(a, b, first);
            else state_scan_forward<false>(a, b, first);
        }
    }
    return kDone;
}

}  // namespace RSM_ISA
}  // namespace rsm
