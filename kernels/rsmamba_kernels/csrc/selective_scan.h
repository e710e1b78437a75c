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
constexpr int kBackwardStates = 4;

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

    Block(const ScanArgs& a, int64_t b_, int64_t channel_)
        : b(b_), channel(channel_), count(int(smaller(VL, a.channels - channel_))),
          D(a.D ? load_part(a.D + channel_, count) : V{}),
          bias(a.bias ? load_part(a.bias + channel_, count) : V{}) {}

    const float* at(const Rows& from) const { return from.data + b * from.batch + channel; }
    V row(const Rows& from, int64_t t) const { return load_part(at(from) + t * from.row, count); }
    void fetch(const Rows& from, int64_t t) const {
        __builtin_prefetch(at(from) + t * from.row, 0, 2);
    }
    float* out(const ScanArgs& a) const { return a.y + b * a.length * a.channels + channel; }
    // A by state; returns the largest |A|.
    template <int N>
    V rates(const ScanArgs& a, V* A) const {
        V largest = {};
        for (int n = 0; n < N; ++n) {
            float x[VL] = {};
            for (int i = 0; i < count; ++i) x[i] = a.A[(channel + i) * N + n];
            A[n] = load(x), largest = larger(size(A[n]), largest);
        }
        return largest;
    }
};

// Whether exp2_bounded does for every decay, by the largest |A| and |delta| of each channel.
RSM_INLINE bool bounded(V A, V delta) {
    return kExp2Unbounded || all_at_most(A * delta, kExp2Bound / kLog2E);
}

// Cache lines of one tensor that will be needed soon, one a step: rows lie too far apart for the
// processor to fetch ahead by itself, and all at once would have to wait for each other.
struct Stream {
    const float* data;
    int64_t row;
    const int32_t* index;
    int64_t count;

    void fetch(int64_t t) const {
        __builtin_prefetch(data + index[smaller(t, count - 1)] * row, 0, 2);
    }
};
constexpr int kStreams = 3;

// Rows of y that a chunk of a block writes.
struct Output {
    float* data;
    int64_t row;
    const int32_t* index;
    int count;

    void put(int64_t t, V x) const { store_part(data + index[t] * row, x, count); }
};

// The last states put y where it belongs.
template <int N, int NB, bool kBounded, bool kLast>
static void advance(int64_t steps, const V* delta, const V* drive, const float* B,
                    const float* C, const V* decay, V* states, V* y, const Stream* stream,
                    const Stream* end, const Output& output) {
    V h[NB], a[NB];
    for (int k = 0; k < NB; ++k) h[k] = states[k], a[k] = decay[k];
    for (int64_t t = 0; t < steps; ++t) {
        for (const Stream* s = stream; s < end; ++s) s->fetch(t);
        const V d = delta[t], x = drive[t];
        V out = y[t];
        for (int k = 0; k < NB; ++k) {
            const V e = kBounded ? exp2_bounded(a[k] * d) : exp2(a[k] * d);
            h[k] = e * h[k] + x * B[t * N + k];
            out += h[k] * C[t * N + k];
        }
        if (kLast) output.put(t, out);
        else y[t] = out;
    }
    for (int k = 0; k < NB; ++k) states[k] = h[k];
}

// Scratch of the forward.
template <int N>
struct Sheet {
    V delta[kSteps], drive[kSteps], y[kSteps], largest;  // largest: of |delta|
    struct Carry {
        V states[N], decay[N], A;  // A: the largest |A|
    } carry[kScanGroup / VL];      // of every block of a unit, from one chunk to the next
};

// All of a chunk that does not depend on a state; `index` starts at the chunk.
template <int N, bool kSoftplus, bool kAccumulate>
static void prepare(const ScanArgs& a, const Block& block, const int32_t* index, int64_t steps,
                    Sheet<N>& s) {
    const float *u = block.at(a.u), *dt = block.at(a.dt), *y = block.out(a);
    const int64_t u_row = a.u.row, dt_row = a.dt.row, y_row = a.channels;
    const V D = block.D, bias = block.bias;
    const int count = block.count;
    V largest = {};
    for (int64_t t = 0; t < steps; ++t) {
        const int64_t row = index[t];
        const V x = load_part(u + row * u_row, count);
        V delta = load_part(dt + row * dt_row, count) + bias;
        if (kSoftplus) delta = softplus(delta, nullptr);
        s.delta[t] = delta, s.drive[t] = delta * x, s.y[t] = D * x;
        if (kAccumulate) s.y[t] += load_part(y + row * y_row, count);
        largest = larger(size(delta), largest);
    }
    s.largest = largest;
}

// B and C start at the chunk.
template <int N, bool kBounded>
static void advance_all(int64_t steps, const float* B, const float* C, Sheet<N>& s, int block,
                        const Stream* streams, const Output& output) {
    constexpr int NB = N < kForwardStates ? N : kForwardStates, kRuns = N / NB;
    auto& carry = s.carry[block];
    for (int i = 0; i < kRuns; ++i) {
        const int n = i * NB;
        const auto run = i + 1 < kRuns ? advance<N, NB, kBounded, false>
                                       : advance<N, NB, kBounded, true>;
        run(steps, s.delta, s.drive, B + n, C + n, carry.decay + n, carry.states + n, s.y,
            streams + kStreams * i / kRuns, streams + kStreams * (i + 1) / kRuns, output);
    }
}

// One unit; `next` is the unit after it.
template <int N>
static void forward_unit(const ScanArgs& a, int64_t unit, int64_t next, const int32_t* index,
                         const float* B, const float* C, Sheet<N>& s) {
    const int64_t groups = (a.channels + kScanGroup - 1) / kScanGroup, b = unit / groups;
    const int64_t first = unit % groups * kScanGroup, next_first = next % groups * kScanGroup;
    const int64_t width = smaller(kScanGroup, a.channels - first);
    for (int k = 0; k * VL < width; ++k) {
        auto& carry = s.carry[k];
        carry.A = Block(a, b, first + k * VL).rates<N>(a, carry.decay);
        for (int n = 0; n < N; ++n) carry.decay[n] *= kLog2E, carry.states[n] = V{};
    }
    const auto begin = a.softplus
        ? (a.accumulate ? prepare<N, true, true> : prepare<N, true, false>)
        : (a.accumulate ? prepare<N, false, true> : prepare<N, false, false>);
    // Chunks of about one length: what one reads arrives while the one before it advances.
    const int64_t chunks = (a.length + kSteps - 1) / kSteps;
    const int64_t most = (a.length + chunks - 1) / chunks;
    for (int64_t start = 0; start < a.length; start += most) {
        const int64_t steps = smaller(most, a.length - start);
        const int64_t later = start + most < a.length ? start + most : 0;
        const int64_t count = smaller(most, a.length - later);
        for (int k = 0; k * VL < width; ++k) {
            const Block block(a, b, first + k * VL);
            const Block after = later
                ? block : Block(a, next / groups, smaller(next_first + k * VL, a.channels - 1));
            const Stream streams[kStreams] = {
                {block.out(a), a.channels, index + start, steps},
                {after.at(a.u), a.u.row, index + later, count},
                {after.at(a.dt), a.dt.row, index + later, count}};
            begin(a, block, index + start, steps, s);
            const bool fits = bounded(s.carry[k].A, s.largest);
            (fits ? advance_all<N, true> : advance_all<N, false>)(
                steps, B + start * N, C + start * N, s, k, streams,
                {block.out(a), a.channels, index + start, block.count});
        }
    }
}

template <int N>
static int scan_forward(const ScanArgs& a, int64_t begin, int64_t end) {
    const int64_t groups = (a.channels + kScanGroup - 1) / kScanGroup;
    constexpr int64_t kSheet = sizeof(Sheet<N>) / sizeof(float);
    Scratch scratch(a.length * (1 + 2 * N) + 64 + kSheet);
    if (scratch.failed()) return kNoMemory;
    int32_t* index = reinterpret_cast<int32_t*>(scratch.floats(a.length));
    float *B = scratch.floats(a.length * N), *C = scratch.floats(a.length * N);
    Sheet<N>& sheet = *reinterpret_cast<Sheet<N>*>(scratch.floats(kSheet));
    if (!fill_order(a.length, a.order, a.height, a.width, a.slot, index)) return kOutside;
    int64_t gathered = -1;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / groups;
        if (b != gathered) {
            gather<N>(a.B, b, index, a.length, B);
            gather<N>(a.C, b, index, a.length, C);
            gathered = b;
        }
        forward_unit<N>(a, unit, smaller(unit + 1, end - 1), index, B, C, sheet);
    }
    return kDone;
}

// Scratch of the backward. One row per step, rounded up to whole vectors of steps: the added steps
// have delta = drive = dy = 0 and change nothing.
template <int N>
struct Tape {
    int64_t steps;
    V *delta, *drive, *dy, *slope, *over_B, *over_A, *decay, *kept;
    float *B, *C, *sums;  // (steps, N) twice; (N, steps, 2): dB, dC summed over the unit's channels

    static int64_t floats(int64_t steps) {
        return steps * VL * (6 + 2 * kBackwardStates) + kBackwardStates * VL + steps * 4 * N + 64;
    }
    Tape(Scratch& s, int64_t steps_) : steps(steps_) {
        delta = s.vectors(steps), drive = s.vectors(steps), dy = s.vectors(steps);
        slope = s.vectors(steps), over_B = s.vectors(steps), over_A = s.vectors(steps);
        decay = s.vectors(steps * kBackwardStates), kept = s.vectors((steps + 1) * kBackwardStates);
        B = s.floats(steps * N), C = s.floats(steps * N);
        sums = s.floats(2 * steps * N);
        memset(B, 0, sizeof(float) * steps * N);
        memset(C, 0, sizeof(float) * steps * N);
    }
};

// Forward in time: the decays and the states before each step, kept for the way back.
template <int N, int NB, bool kBounded>
static void recompute(const Tape<N>& tape, int n, const V* A) {
    V h[NB] = {}, a[NB];
    for (int k = 0; k < NB; ++k) a[k] = A[k] * kLog2E;
    for (int64_t t = 0; t < tape.steps; ++t) {
        const V d = tape.delta[t], x = tape.drive[t];
        for (int k = 0; k < NB; ++k) {
            const V e = kBounded ? exp2_bounded(a[k] * d) : exp2(a[k] * d);
            tape.decay[t * NB + k] = e;
            tape.kept[t * NB + k] = h[k];
            h[k] = e * h[k] + x * tape.B[t * N + n + k];
        }
    }
    for (int k = 0; k < NB; ++k) tape.kept[tape.steps * NB + k] = h[k];
}

// Brings what the end of a block writes and what the next block reads nearer, a share at a time:
// all at once would have to wait for each other.
struct Ahead {
    const ScanArgs& a;
    const Block &block, &next;
    const int32_t* index;
    int64_t share, t = 0;

    void fetch() {
        for (const int64_t end = smaller(t + share, a.length); t < end; ++t) {
            const int64_t row = index[t];
            next.fetch(a.u, row);
            next.fetch(a.dt, row);
            next.fetch(a.dy, row);
            const int64_t at = (block.b * a.length + row) * a.channels + block.channel;
            __builtin_prefetch(a.du + at, 1, 2);
            __builtin_prefetch(a.ddt + at, 1, 2);
        }
    }
};

constexpr int kReduced = VL / 2;  // steps whose sums dB and dC fill a vector

// Back in time, with g the gradient of a state:
// g = C dy + (decay g of the step after), dB = sum_d g drive, dC = sum_d dy h,
// dA = sum_t delta decay g (state before).
template <int N, int NB, bool kFirst>
static void retrace(const Tape<N>& tape, int n, const V* A, V* dA, Ahead& ahead) {
    V carried[NB] = {}, a[NB], da[NB] = {}, all_da[NB] = {}, h[NB];
    for (int k = 0; k < NB; ++k) a[k] = A[k], h[k] = tape.kept[tape.steps * NB + k];
    for (int64_t block = tape.steps - kReduced; block >= 0; block -= kReduced) {
        ahead.fetch();
        V sums[NB][VL / 4];
        for (int pair = VL / 4 - 1; pair >= 0; --pair) {
            V parts[NB][2];
#pragma GCC unroll 2
            for (int i = 1; i >= 0; --i) {
                const int64_t t = block + 2 * pair + i;
                const V dy = tape.dy[t], x = tape.drive[t], d = tape.delta[t];
                V over_B = kFirst ? V{} : tape.over_B[t];
                V over_A = kFirst ? V{} : tape.over_A[t];
                for (int k = 0; k < NB; ++k) {
                    const V g = carried[k] + dy * tape.C[t * N + n + k];
                    parts[k][i] = sum2(g * x, dy * h[k]);
                    over_B += g * tape.B[t * N + n + k];
                    carried[k] = g * tape.decay[t * NB + k];
                    h[k] = tape.kept[t * NB + k];
                    const V w = carried[k] * h[k];
                    over_A += w * a[k];
                    da[k] += w * d;
                }
                tape.over_B[t] = over_B;
                tape.over_A[t] = over_A;
            }
            for (int k = 0; k < NB; ++k) sums[k][pair] = sum4(parts[k][0], parts[k][1]);
        }
        for (int k = 0; k < NB; ++k) {
            float* to = tape.sums + 2 * ((n + k) * tape.steps + block);
            store(to, load(to) + join(sums[k]));
        }
        for (int k = 0; block % kShortSum == 0 && k < NB; ++k) all_da[k] += da[k], da[k] = V{};
    }
    for (int k = 0; k < NB; ++k) dA[k] = all_da[k];
}

// Everything of a block that does not depend on a state; returns the largest |delta|.
template <int N, bool kSoftplus>
static V open_tape(const ScanArgs& a, const Block& block, const int32_t* index,
                   const Tape<N>& tape) {
    const float *u = block.at(a.u), *dt = block.at(a.dt), *dy = block.at(a.dy);
    const int64_t u_row = a.u.row, dt_row = a.dt.row, dy_row = a.dy.row, length = a.length;
    const int count = block.count;
    const V bias = block.bias;
    V *delta = tape.delta, *drive = tape.drive, *slopes = tape.slope, *dys = tape.dy;
    V largest = {};
    for (int64_t t = 0; t < length; ++t) {
        const int64_t row = index[t];
        const V x = load_part(u + row * u_row, count);
        V d = load_part(dt + row * dt_row, count) + bias, slope = splat(1.f);
        if (kSoftplus) d = softplus(d, &slope);
        delta[t] = d, drive[t] = d * x, slopes[t] = slope;
        dys[t] = load_part(dy + row * dy_row, count);
        largest = larger(size(d), largest);
    }
    for (int64_t t = length; t < tape.steps; ++t)
        delta[t] = drive[t] = slopes[t] = dys[t] = V{};
    return largest;
}

template <int N>
static void backward_block(const ScanArgs& a, const Block& block, const Block& next,
                           const int32_t* index, const Tape<N>& tape) {
    constexpr int NB = N < kBackwardStates ? N : kBackwardStates;
    const V largest =
        (a.softplus ? open_tape<N, true> : open_tape<N, false>)(a, block, index, tape);
    V A[N], dA[N];
    const bool fits = bounded(block.rates<N>(a, A), largest);
    const int64_t shares = tape.steps / kReduced * (N / NB);
    Ahead ahead = {a, block, next, index, (a.length + shares - 1) / shares};
    for (int n = 0; n < N; n += NB) {
        if (fits) recompute<N, NB, true>(tape, n, A + n);
        else recompute<N, NB, false>(tape, n, A + n);
        const auto back = n ? retrace<N, NB, false> : retrace<N, NB, true>;
        back(tape, n, A + n, dA + n, ahead);
    }
    V dD = {}, dbias = {}, all_dD = {}, all_dbias = {};
    for (int64_t t = 0; t < a.length; ++t) {
        if (t % kShortSum == 0) all_dD += dD, all_dbias += dbias, dD = dbias = V{};
        const int64_t row = index[t];
        const int64_t at = (block.b * a.length + row) * a.channels + block.channel;
        const V u = block.row(a.u, row), dy = tape.dy[t];
        const V ddt = (tape.over_A[t] + u * tape.over_B[t]) * tape.slope[t];
        store_part(a.du + at, tape.delta[t] * tape.over_B[t] + block.D * dy, block.count);
        store_part(a.ddt + at, ddt, block.count);
        dD += dy * u, dbias += ddt;
    }
    const int64_t at = block.b * a.channels + block.channel;
    store_part(a.dD + at, all_dD + dD, block.count);
    store_part(a.dbias + at, all_dbias + dbias, block.count);
    for (int i = 0; i < block.count; ++i)
        for (int n = 0; n < N; ++n) a.dA[(at + i) * N + n] = dA[n][i];
}

template <int N>
static int scan_backward(const ScanArgs& a, int64_t begin, int64_t end) {
    const int64_t groups = (a.channels + kScanGroup - 1) / kScanGroup;
    const int64_t steps = round_up(a.length, VL);
    Scratch scratch(a.length + Tape<N>::floats(steps));
    if (scratch.failed()) return kNoMemory;
    int32_t* index = reinterpret_cast<int32_t*>(scratch.floats(a.length));
    const Tape<N> tape(scratch, steps);
    if (!fill_order(a.length, a.order, a.height, a.width, a.slot, index)) return kOutside;
    int64_t gathered = -1;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / groups, group = unit % groups, first = group * kScanGroup;
        if (b != gathered) {
            gather<N>(a.B, b, index, a.length, tape.B);
            gather<N>(a.C, b, index, a.length, tape.C);
            gathered = b;
        }
        memset(tape.sums, 0, 2 * sizeof(float) * steps * N);
        const int64_t last = smaller(first + kScanGroup, a.channels);
        for (int64_t channel = first; channel < last; channel += VL) {
            const Block block(a, b, channel), next(a, b, smaller(channel + VL, a.channels - 1));
            backward_block<N>(a, block, next, index, tape);
        }
        const int64_t base = (group * a.batch + b) * a.length;
        for (int64_t t = 0; t < a.length; ++t)
            for (int n = 0; n < N; ++n) {
                a.dB[(base + index[t]) * N + n] = tape.sums[2 * (n * steps + t)];
                a.dC[(base + index[t]) * N + n] = tape.sums[2 * (n * steps + t) + 1];
            }
    }
    return kDone;
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
