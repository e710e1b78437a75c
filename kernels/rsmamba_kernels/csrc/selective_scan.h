// Selective scan, forward and backward: VL channels at a time, states outside, steps inside.
//
// The sequence is visited through an index, so that the four orders cost nothing. The backward
// recomputes the states from the inputs.
#pragma once

#include "abi.h"
#include "order.h"
#include "vector.h"

namespace rsm {
namespace RSM_ISA {

constexpr int64_t kSteps = 64;  // steps per chunk of the forward: its scratch stays in level 1

// States that advance together: they share the loads of a step and hide each other's latency.
constexpr int kForwardStates = VL == 16 ? 4 : 2;
constexpr int kBackwardStates = 2;

// (L, N) of one image in the order of the scan, without gaps.
template <int N>
static void gather(const Rows& from, int64_t b, const int32_t* index, int64_t length, float* to) {
    const float* data = from.data + b * from.batch;
    for (int64_t t = 0; t < length; ++t)
        memcpy(to + t * N, data + index[t] * from.row, sizeof(float) * N);
}

// One block of VL channels of one image.
struct Block {
    int64_t b, channel;
    int count;        // channels that exist
    V D, bias;
    bool softplus;

    Block(const ScanArgs& a, int64_t b_, int64_t channel_)
        : b(b_), channel(channel_), count(int(smaller(VL, a.channels - channel_))),
          D(a.D ? load_part(a.D + channel_, count) : V{}),
          bias(a.bias ? load_part(a.bias + channel_, count) : V{}), softplus(a.softplus) {}

    V row(const Rows& from, int64_t t) const {
        return load_part(from.data + b * from.batch + t * from.row + channel, count);
    }
    V output(const ScanArgs& a, int64_t t) const {
        return load_part(a.y + (b * a.length + t) * a.channels + channel, count);
    }
    // Rows lie too far apart for the processor to fetch ahead by itself.
    void fetch(const Rows& from, int64_t t) const {
        __builtin_prefetch(from.data + b * from.batch + t * from.row + channel, 0, 2);
    }
    template <int N>
    V decay(const ScanArgs& a, int n) const {
        V x = {};
        for (int i = 0; i < count; ++i) x[i] = a.A[(channel + i) * N + n];
        return x;
    }
};

template <int N, int NB>
RSM_INLINE void advance(int64_t steps, const V* delta, const V* drive, const float* B,
                        const float* C, const V* decay, V* states, V* y) {
    V h[NB], a[NB];
    for (int k = 0; k < NB; ++k) h[k] = states[k], a[k] = decay[k];
    for (int64_t t = 0; t < steps; ++t) {
        const V d = delta[t], x = drive[t];
        V out = y[t];
        for (int k = 0; k < NB; ++k) {
            h[k] = exp2(a[k] * d) * h[k] + x * B[t * N + k];
            out += h[k] * C[t * N + k];
        }
        y[t] = out;
    }
    for (int k = 0; k < NB; ++k) states[k] = h[k];
}

template <int N>
static void forward_block(const ScanArgs& a, const Block& block, const Block& next,
                          const int32_t* index, const float* B, const float* C, V* delta,
                          V* drive, V* y) {
    constexpr int NB = N < kForwardStates ? N : kForwardStates;
    V states[N] = {}, decay[N];
    for (int n = 0; n < N; ++n) decay[n] = block.decay<N>(a, n) * kLog2E;
    for (int64_t start = 0; start < a.length; start += kSteps) {
        const int64_t steps = smaller(kSteps, a.length - start);
        const bool last = start + kSteps >= a.length;
        for (int64_t t = 0; t < steps; ++t) {
            // What the next chunk reads and this one writes arrives while this one computes.
            const int64_t row = index[start + t];
            const int64_t ahead = index[last ? t : smaller(start + kSteps + t, a.length - 1)];
            (last ? next : block).fetch(a.u, ahead);
            (last ? next : block).fetch(a.dt, ahead);
            __builtin_prefetch(a.y + (block.b * a.length + row) * a.channels + block.channel, 1);
            const V u = block.row(a.u, row), raw = block.row(a.dt, row) + block.bias;
            delta[t] = block.softplus ? softplus(raw, nullptr) : raw;
            drive[t] = delta[t] * u;
            y[t] = block.D * u;
            if (a.accumulate) y[t] += block.output(a, row);
        }
        for (int n = 0; n < N; n += NB)
            advance<N, NB>(steps, delta, drive, B + start * N + n, C + start * N + n, decay + n,
                           states + n, y);
        for (int64_t t = 0; t < steps; ++t)
            store_part(a.y + (block.b * a.length + index[start + t]) * a.channels + block.channel,
                       y[t], block.count);
    }
}

template <int N>
static int scan_forward(const ScanArgs& a, int64_t begin, int64_t end) {
    const int64_t groups = (a.channels + kScanGroup - 1) / kScanGroup;
    Scratch scratch(a.length * (1 + 2 * N) + 64 + 3 * kSteps * VL);
    if (scratch.failed()) return 1;
    int32_t* index = reinterpret_cast<int32_t*>(scratch.floats(a.length));
    float *B = scratch.floats(a.length * N), *C = scratch.floats(a.length * N);
    V *delta = scratch.vectors(kSteps), *drive = scratch.vectors(kSteps);
    V* y = scratch.vectors(kSteps);
    fill_order(a.length, a.order, a.height, a.width, a.slot, index);
    int64_t gathered = -1;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / groups, first = unit % groups * kScanGroup;
        if (b != gathered) {
            gather<N>(a.B, b, index, a.length, B);
            gather<N>(a.C, b, index, a.length, C);
            gathered = b;
        }
        const int64_t last = smaller(first + kScanGroup, a.channels);
        for (int64_t channel = first; channel < last; channel += VL) {
            const Block block(a, b, channel), next(a, b, smaller(channel + VL, a.channels - 1));
            forward_block<N>(a, block, next, index, B, C, delta, drive, y);
        }
    }
    return 0;
}

// Scratch of the backward. One row per step, rounded up to whole vectors of steps: the added steps
// have delta = drive = dy = 0 and change nothing.
template <int N>
struct Tape {
    int64_t steps;
    V *delta, *drive, *dy, *slope, *over_B, *over_A, *decay, *kept;
    float *B, *C, *dB, *dC;  // (steps, N) inputs, (N, steps) sums over the unit's channels

    static int64_t floats(int64_t steps) {
        return steps * VL * (6 + 2 * kBackwardStates) + steps * 4 * N + 64;
    }
    Tape(Scratch& s, int64_t steps_) : steps(steps_) {
        delta = s.vectors(steps), drive = s.vectors(steps), dy = s.vectors(steps);
        slope = s.vectors(steps), over_B = s.vectors(steps), over_A = s.vectors(steps);
        decay = s.vectors(steps * kBackwardStates), kept = s.vectors(steps * kBackwardStates);
        B = s.floats(steps * N), C = s.floats(steps * N);
        dB = s.floats(steps * N), dC = s.floats(steps * N);
        memset(B, 0, sizeof(float) * steps * N);
        memset(C, 0, sizeof(float) * steps * N);
    }
};

// Forward in time: the decays and what they leave of the states, kept for the way back.
template <int N, int NB>
RSM_INLINE void recompute(const Tape<N>& tape, int n, const V* A) {
    V h[NB] = {}, a[NB];
    for (int k = 0; k < NB; ++k) a[k] = A[k] * kLog2E;
    for (int64_t t = 0; t < tape.steps; ++t) {
        const V d = tape.delta[t], x = tape.drive[t];
        for (int k = 0; k < NB; ++k) {
            const V e = exp2(a[k] * d), q = e * h[k];
            h[k] = q + x * tape.B[t * N + n + k];
            tape.decay[t * NB + k] = e;
            tape.kept[t * NB + k] = q;
        }
    }
}

// Back in time, with g the gradient of a state and q = decay * (state before):
// g = C dy + (decay g of the step after),
// dB = sum_d g drive, dC = sum_d dy h, dA = sum_t delta g q.
template <int N, int NB>
RSM_INLINE void retrace(const Tape<N>& tape, int n, const V* A, V* dA) {
    V carried[NB] = {}, a[NB], da[NB] = {};
    for (int k = 0; k < NB; ++k) a[k] = A[k];
    for (int64_t block = tape.steps - VL; block >= 0; block -= VL) {
        V sums_B[NB][VL / 4], sums_C[NB][VL / 4];
        for (int quarter = VL / 4 - 1; quarter >= 0; --quarter) {
            V parts_B[NB][4], parts_C[NB][4];
#pragma GCC unroll 4
            for (int i = 3; i >= 0; --i) {
                const int64_t t = block + 4 * quarter + i;
                const V dy = tape.dy[t], x = tape.drive[t], d = tape.delta[t];
                V over_B = tape.over_B[t], over_A = tape.over_A[t];
                for (int k = 0; k < NB; ++k) {
                    const V q = tape.kept[t * NB + k];
                    const float B = tape.B[t * N + n + k];
                    const V g = carried[k] + dy * tape.C[t * N + n + k], w = g * q;
                    parts_B[k][i] = g * x;
                    parts_C[k][i] = dy * (q + x * B);
                    over_B += g * B;
                    over_A += w * a[k];
                    da[k] += w * d;
                    carried[k] = g * tape.decay[t * NB + k];
                }
                tape.over_B[t] = over_B;
                tape.over_A[t] = over_A;
            }
            for (int k = 0; k < NB; ++k) {
                sums_B[k][quarter] =
                    sum4(parts_B[k][0], parts_B[k][1], parts_B[k][2], parts_B[k][3]);
                sums_C[k][quarter] =
                    sum4(parts_C[k][0], parts_C[k][1], parts_C[k][2], parts_C[k][3]);
            }
        }
        for (int k = 0; k < NB; ++k) {
            float* dB = tape.dB + (n + k) * tape.steps + block;
            float* dC = tape.dC + (n + k) * tape.steps + block;
            store(dB, load(dB) + join(sums_B[k]));
            store(dC, load(dC) + join(sums_C[k]));
        }
    }
    for (int k = 0; k < NB; ++k) dA[k] = da[k];
}

template <int N>
static void backward_block(const ScanArgs& a, const Block& block, const Block& next,
                           const int32_t* index, const Tape<N>& tape) {
    constexpr int NB = N < kBackwardStates ? N : kBackwardStates;
    for (int64_t t = 0; t < tape.steps; ++t) {
        V delta = {}, u = {}, dy = {}, slope = splat(1.f);
        if (t < a.length) {
            const int64_t row = index[t];
            u = block.row(a.u, row), dy = block.row(a.dy, row);
            delta = block.row(a.dt, row) + block.bias;
            if (block.softplus) delta = softplus(delta, &slope);
        }
        tape.delta[t] = delta, tape.drive[t] = delta * u, tape.dy[t] = dy, tape.slope[t] = slope;
        tape.over_B[t] = tape.over_A[t] = V{};
    }
    V A[N], dA[N];
    for (int n = 0; n < N; ++n) A[n] = block.decay<N>(a, n);
    for (int n = 0; n < N; n += NB) {
        recompute<N, NB>(tape, n, A + n);
        retrace<N, NB>(tape, n, A + n, dA + n);
        // Meanwhile a share of what the next block reads comes closer.
        for (int64_t t = a.length * n / N; t < a.length * (n + NB) / N; ++t) {
            next.fetch(a.u, index[t]);
            next.fetch(a.dt, index[t]);
            next.fetch(a.dy, index[t]);
        }
    }
    V dD = {}, dbias = {};
    for (int64_t t = 0; t < a.length; ++t) {
        const int64_t row = index[t];
        const int64_t at = (block.b * a.length + row) * a.channels + block.channel;
        const V u = block.row(a.u, row), dy = tape.dy[t];
        const V ddt = (tape.over_A[t] + u * tape.over_B[t]) * tape.slope[t];
        store_part(a.du + at, tape.delta[t] * tape.over_B[t] + block.D * dy, block.count);
        store_part(a.ddt + at, ddt, block.count);
        dD += dy * u, dbias += ddt;
    }
    const int64_t at = block.b * a.channels + block.channel;
    store_part(a.dD + at, dD, block.count);
    store_part(a.dbias + at, dbias, block.count);
    for (int i = 0; i < block.count; ++i)
        for (int n = 0; n < N; ++n) a.dA[(at + i) * N + n] = dA[n][i];
}

template <int N>
static int scan_backward(const ScanArgs& a, int64_t begin, int64_t end) {
    const int64_t groups = (a.channels + kScanGroup - 1) / kScanGroup;
    const int64_t steps = round_up(a.length, VL);
    Scratch scratch(a.length + Tape<N>::floats(steps));
    if (scratch.failed()) return 1;
    int32_t* index = reinterpret_cast<int32_t*>(scratch.floats(a.length));
    const Tape<N> tape(scratch, steps);
    fill_order(a.length, a.order, a.height, a.width, a.slot, index);
    int64_t gathered = -1;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / groups, group = unit % groups, first = group * kScanGroup;
        if (b != gathered) {
            gather<N>(a.B, b, index, a.length, tape.B);
            gather<N>(a.C, b, index, a.length, tape.C);
            gathered = b;
        }
        memset(tape.dB, 0, sizeof(float) * steps * N);
        memset(tape.dC, 0, sizeof(float) * steps * N);
        const int64_t last = smaller(first + kScanGroup, a.channels);
        for (int64_t channel = first; channel < last; channel += VL) {
            const Block block(a, b, channel), next(a, b, smaller(channel + VL, a.channels - 1));
            backward_block<N>(a, block, next, index, tape);
        }
        const int64_t base = (group * a.batch + b) * a.length;
        for (int64_t t = 0; t < a.length; ++t)
            for (int n = 0; n < N; ++n) {
                a.dB[(base + index[t]) * N + n] = tape.dB[n * steps + t];
                a.dC[(base + index[t]) * N + n] = tape.dC[n * steps + t];
            }
    }
    return 0;
}

template <bool kBackward>
static int scan(const void* pointer, int64_t begin, int64_t end) {
    const ScanArgs& a = *static_cast<const ScanArgs*>(pointer);
    switch (a.states) {
        case 1: return kBackward ? scan_backward<1>(a, begin, end) : scan_forward<1>(a, begin, end);
        case 4: return kBackward ? scan_backward<4>(a, begin, end) : scan_forward<4>(a, begin, end);
        case 8: return kBackward ? scan_backward<8>(a, begin, end) : scan_forward<8>(a, begin, end);
        default:
            return kBackward ? scan_backward<16>(a, begin, end) : scan_forward<16>(a, begin, end);
    }
}

}  // namespace RSM_ISA
}  // namespace rsm
