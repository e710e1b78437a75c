// Causal depthwise convolution along scan orders, then SiLU.
//
// A unit is the 64 channels of one image: small enough to stay in the level 2 cache, so that the
// directions after the first read x from there. The last taps stay in registers.
#pragma once

#include "abi.h"
#include "order.h"
#include "vector.h"

namespace rsm {
namespace RSM_ISA {

// 1 / (1 + e^-x)
RSM_INLINE V logistic(V x) {
    const V z = exp(-(at_least(x, 0.f) + at_least(-x, 0.f))), one = 1.f / (z + 1.f);
    return x < V{} ? z * one : one;
}

// VL channels of one image and direction.
template <int W>
struct Taps {
    int count;
    int64_t channel;
    V weight[W], bias;

    Taps(const ConvolutionArgs& a, int64_t k, int64_t channel_)
        : count(int(smaller(VL, a.channels - channel_))), channel(channel_),
          bias(a.bias ? load_part(a.bias + k * a.channels + channel_, count) : V{}) {
        for (int w = 0; w < W; ++w)
            weight[w] = load_part(a.weight + (k * W + w) * a.channels + channel, count);
    }
    // seen[w] is the token W - 1 - w steps ago.
    static void remember(V* seen, V now) {
        for (int w = 0; w + 1 < W; ++w) seen[w] = seen[w + 1];
        seen[W - 1] = now;
    }
    V weigh(const V* seen) const {
        V total = bias;
        for (int w = 0; w < W; ++w) total += weight[w] * seen[w];
        return total;
    }
};

template <int W>
static void convolve_forward(const ConvolutionArgs& a, int64_t b, int64_t k, int64_t channel,
                             const int32_t* index) {
    const Taps<W> taps(a, k, channel);
    const float* x = a.x.data + b * a.x.batch + channel;
    float* out = a.out + (k * a.batch + b) * a.length * a.channels + channel;
    V seen[W] = {};
    for (int64_t t = 0; t < a.length; ++t) {
        taps.remember(seen, load_part(x + index[t] * a.x.row, taps.count));
        const V total = taps.weigh(seen);
        store_part(out + index[t] * a.channels, total * logistic(total), taps.count);
    }
}

template <int W>
static void convolve_backward(const ConvolutionArgs& a, int64_t b, int64_t k, int64_t channel,
                              const int32_t* index) {
    const Taps<W> taps(a, k, channel);
    const float* x = a.x.data + b * a.x.batch + channel;
    const float* dout = a.dout + (k * a.batch + b) * a.length * a.channels + channel;
    float* dx = a.dx + b * a.length * a.channels + channel;
    V seen[W] = {}, ahead[W] = {}, dweight[W] = {}, dbias = {};
    V all_dweight[W] = {}, all_dbias = {};  // of the steps before
    // A token is complete when the W - 1 steps after it are done.
    for (int64_t t = 0; t < a.length + W - 1; ++t) {
        if (t % kShortSum == 0) {
            for (int w = 0; w < W; ++w) all_dweight[w] += dweight[w], dweight[w] = V{};
            all_dbias += dbias, dbias = V{};
        }
        V d = {};
        if (t < a.length) {
            taps.remember(seen, load_part(x + index[t] * a.x.row, taps.count));
            const V total = taps.weigh(seen), open = logistic(total);
            d = load_part(dout + index[t] * a.channels, taps.count) *
                (open + total * open * (1.f - open));
            for (int w = 0; w < W; ++w) dweight[w] += d * seen[w];
            dbias += d;
        }
        taps.remember(ahead, d);
        if (t < W - 1) continue;
        float* to = dx + index[t - (W - 1)] * a.channels;
        V sum = k ? load_part(to, taps.count) : V{};
        for (int w = 0; w < W; ++w) sum += taps.weight[W - 1 - w] * ahead[w];
        store_part(to, sum, taps.count);
    }
    const int64_t at = b * a.directions + k;
    for (int w = 0; w < W; ++w)
        store_part(a.dweight + (at * W + w) * a.channels + channel, all_dweight[w] + dweight[w],
                   taps.count);
    store_part(a.dbias + at * a.channels + channel, all_dbias + dbias, taps.count);
}

template <int W, bool kBackward>
static int convolve(const ConvolutionArgs& a, int64_t begin, int64_t end) {
    const int64_t groups = (a.channels + kScanGroup - 1) / kScanGroup;
    Scratch scratch(a.directions * round_up(a.length, 16));
    if (scratch.failed()) return kNoMemory;
    int32_t* index = reinterpret_cast<int32_t*>(scratch.floats(a.directions * a.length));
    for (int64_t k = 0; k < a.directions; ++k)
        if (!fill_order(a.length, a.orders[k], a.height, a.width, a.slot, index + k * a.length))
            return kOutside;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / groups, first = unit % groups * kScanGroup;
        const int64_t last = smaller(first + kScanGroup, a.channels);
        for (int64_t k = 0; k < a.directions; ++k)
            for (int64_t channel = first; channel < last; channel += VL) {
                if (kBackward) convolve_backward<W>(a, b, k, channel, index + k * a.length);
                else convolve_forward<W>(a, b, k, channel, index + k * a.length);
            }
    }
    return kDone;
}

template <bool kBackward>
static int convolution(const void* pointer, int64_t begin, int64_t end) {
    const ConvolutionArgs& a = *static_cast<const ConvolutionArgs*>(pointer);
    switch (a.taps) {
        case 2: return convolve<2, kBackward>(a, begin, end);
        case 3: return convolve<3, kBackward>(a, begin, end);
        default: return convolve<4, kBackward>(a, begin, end);
    }
}

}  // namespace RSM_ISA
}  // namespace rsm
