// y = C * F(h) + D * x, with F three dilated depthwise 3x3 kernels folded to 25 distinct taps.
//
// VL channels of a tile are copied with their margin (replicated or zero) to scratch, where the
// taps need no bounds. The gradient of h runs the flipped taps over a zero-padded gradient; what
// the replicated margin received is added to the border pixels afterwards.
#pragma once

#include "abi.h"
#include "vector.h"

namespace rsm {
namespace RSM_ISA {

constexpr int64_t kMargin = 5, kTile = 64, kPlane = kTile + 2 * kMargin;

// The order of the taps; ../state_fusion/taps.py folds the kernels in the same one.
constexpr int kTapRow[kTaps] = {-5, -5, -5, -3, -3, -3, -1, -1, -1, 0, 0, 0, 0,
                                0,  0,  0,  1,  1,  1,  3,  3,  3,  5, 5, 5};
constexpr int kTapColumn[kTaps] = {-5, 0,  5, -3, 0, 3, -1, 0, 1, -5, -3, -1, 0,
                                   1,  3,  5, -1, 0, 1, -3, 0, 3, -5, 0,  5};

// Pixels of a row that share each load of a tap. AVX-512 has registers for all 25 taps instead.
constexpr int kPixels = VL == 16 ? 1 : 4;

struct Tile {
    int64_t b, top, bottom, left, right;  // image coordinates, ends excluded
    int64_t rows() const { return bottom - top; }
    int64_t columns() const { return right - left; }
    int64_t pitch() const { return columns() + 2 * kMargin; }
};

constexpr int64_t kAhead = 12;  // pixels

struct Pixels {  // VL channels of one tensor of one image
    const float* data;
    int64_t pixel, width;
    int count;

    Pixels(const FusionArgs& a, const Rows& rows, int64_t b, int64_t channel, int count_)
        : data(rows.data + b * rows.batch + channel), pixel(rows.row), width(a.width),
          count(count_) {}
    V operator()(int64_t i, int64_t j) const {
        return load_part(data + (i * width + j) * pixel, count);
    }
    // At the first touch: pixels lie a whole row of channels apart, too far for the processor to
    // fetch ahead by itself.
    V first(int64_t i, int64_t j) const {
        const float* at = data + (i * width + j) * pixel;
        __builtin_prefetch(at + kAhead * pixel);
        return load_part(at, count);
    }
};

RSM_INLINE int64_t clamp(int64_t i, int64_t size) { return i < 0 ? 0 : i < size ? i : size - 1; }

// The tile and its margin, from the nearest pixel of the image or with zeros outside it.
static void copy_padded(const FusionArgs& a, const Tile& tile, const Pixels& from, bool zeros,
                        V* plane) {
    for (int64_t i = tile.top - kMargin; i < tile.bottom + kMargin; ++i)
        for (int64_t j = tile.left - kMargin; j < tile.right + kMargin; ++j) {
            const int64_t row = clamp(i, a.height), column = clamp(j, a.width);
            *plane++ = zeros && (row != i || column != j) ? V{} : from.first(row, column);
        }
}

// The output weights of the tile times its gradient, zero outside the image.
static void copy_gradient(const FusionArgs& a, const Tile& tile, const Pixels& dy, V* plane) {
    const float* C = a.C.data + tile.b * a.C.batch;
    for (int64_t i = tile.top - kMargin; i < tile.bottom + kMargin; ++i)
        for (int64_t j = tile.left - kMargin; j < tile.right + kMargin; ++j) {
            const bool inside = i >= 0 && i < a.height && j >= 0 && j < a.width;
            *plane++ = inside ? dy.first(i, j) * C[(i * a.width + j) * a.C.row] : V{};
        }
}

// The 25 taps over `plane`, at pixels (i, j + 0 .. M - 1) of the tile; sign -1 flips them.
template <int M, int kSign>
RSM_INLINE void convolve(const V* plane, int64_t pitch, int64_t i, int64_t j, const V* taps,
                         V* out) {
    const V* centre = plane + (i + kMargin) * pitch + j + kMargin;
    V sums[M][2] = {};  // two chains
#pragma GCC unroll 25
    for (int k = 0; k < kTaps; ++k) {
        const V* at = centre + kSign * (kTapRow[k] * pitch + kTapColumn[k]);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) sums[m][k & 1] += taps[k] * at[m];
    }
    for (int m = 0; m < M; ++m) out[m] = sums[m][0] + sums[m][1];
}

// Calls sink(i, j, value) for every pixel of the tile, in image coordinates.
template <int kSign, class Sink>
RSM_INLINE void convolve_tile(const Tile& tile, const V* plane, const V* weights,
                              const Sink& sink) {
    V taps[kTaps];
    for (int k = 0; k < kTaps; ++k) taps[k] = weights[k];
    for (int64_t i = 0; i < tile.rows(); ++i) {
        int64_t j = 0;
        for (; j + kPixels <= tile.columns(); j += kPixels) {
            V out[kPixels];
            convolve<kPixels, kSign>(plane, tile.pitch(), i, j, taps, out);
            for (int m = 0; m < kPixels; ++m) sink(tile.top + i, tile.left + j + m, out[m]);
        }
        for (; j < tile.columns(); ++j) {
            V out;
            convolve<1, kSign>(plane, tile.pitch(), i, j, taps, &out);
            sink(tile.top + i, tile.left + j, out);
        }
    }
}

// Sums of gradient times h under the taps [kFirst, kLast), which must fit into registers.
template <int kFirst, int kLast>
RSM_INLINE void correlate(const Tile& tile, const V* gradient, const V* h, V* dtaps) {
    V sums[kLast - kFirst] = {};  // of this tile alone: shorter sums lose less
    for (int64_t i = 0; i < tile.rows(); ++i) {
        const int64_t row = (i + kMargin) * tile.pitch() + kMargin;
        for (int64_t j = 0; j < tile.columns(); ++j) {
            const V g = gradient[row + j];
#pragma GCC unroll 25
            for (int k = kFirst; k < kLast; ++k)
                sums[k - kFirst] += g * h[row + j + kTapRow[k] * tile.pitch() + kTapColumn[k]];
        }
    }
    for (int k = kFirst; k < kLast; ++k) dtaps[k] += sums[k - kFirst];
}

static void correlate_tile(const Tile& tile, const V* gradient, const V* h, V* dtaps) {
#if defined(__AVX512F__)
    correlate<0, kTaps>(tile, gradient, h, dtaps);
#else
    correlate<0, 9>(tile, gradient, h, dtaps);
    correlate<9, 16>(tile, gradient, h, dtaps);
    correlate<16, kTaps>(tile, gradient, h, dtaps);
#endif
}

// What the flipped taps leave on the replicated margin belongs to the nearest border pixel.
static void fold_margin(const FusionArgs& a, const Tile& tile, const V* gradient, const V* taps,
                        float* dh, int count) {
    const int64_t top = tile.top ? tile.top : -kMargin;
    const int64_t bottom = tile.bottom < a.height ? tile.bottom : a.height + kMargin;
    const int64_t left = tile.left ? tile.left : -kMargin;
    const int64_t right = tile.right < a.width ? tile.right : a.width + kMargin;
    const V* origin = gradient + (kMargin - tile.top) * tile.pitch() + kMargin - tile.left;
    for (int64_t i = top; i < bottom; ++i) {
        const bool outside = i < 0 || i >= a.height;
        for (int64_t j = left; j < right; ++j) {
            if (!outside && j >= 0 && j < a.width) {
                j = smaller(right, a.width) - 1;  // nothing to do inside the image
                continue;
            }
            V sum = {};
            for (int k = 0; k < kTaps; ++k) {
                const int64_t y = i - kTapRow[k], x = j - kTapColumn[k];
                if (y >= 0 && y < a.height && x >= 0 && x < a.width)
                    sum += taps[k] * origin[y * tile.pitch() + x];
            }
            float* border = dh + (clamp(i, a.height) * a.width + clamp(j, a.width)) * a.channels;
            store_part(border, load_part(border, count) + sum, count);
        }
    }
}

struct FusionBlock {  // VL channels of one image
    int64_t channel;
    int count;
    V taps[kTaps], D;

    void open(const FusionArgs& a, int64_t first) {
        channel = first, count = int(smaller(VL, a.channels - first));
        D = load_part(a.D + first, count);
        for (int k = 0; k < kTaps; ++k)
            taps[k] = load_part(a.taps + k * a.channels + channel, count);
    }
};

static void fusion_forward(const FusionArgs& a, const Tile& tile, const FusionBlock& block,
                           V* plane) {
    const Pixels h(a, a.h, tile.b, block.channel, block.count);
    const Pixels x(a, a.x, tile.b, block.channel, block.count);
    copy_padded(a, tile, h, a.zeros, plane);
    const float* C = a.C.data + tile.b * a.C.batch;
    float* y = a.y + tile.b * a.height * a.width * a.channels + block.channel;
    convolve_tile<1>(tile, plane, block.taps, [&](int64_t i, int64_t j, V fused) {
        const int64_t p = i * a.width + j;
        const V value = fused * C[p * a.C.row] + block.D * x.first(i, j);
        store_part(y + p * a.channels, value, block.count);
    });
}

struct FusionSums {  // over the pixels of one image
    V taps[kTaps], D;
};

static void fusion_backward(const FusionArgs& a, const Tile& tile, const FusionBlock& block,
                            V* plane, V* gradient, float* dC, FusionSums& sums) {
    const Pixels h(a, a.h, tile.b, block.channel, block.count);
    const Pixels x(a, a.x, tile.b, block.channel, block.count);
    const Pixels dy(a, a.dy, tile.b, block.channel, block.count);
    const int64_t image = tile.b * a.height * a.width * a.channels + block.channel;
    copy_padded(a, tile, h, a.zeros, plane);
    copy_gradient(a, tile, dy, gradient);
    V dD = {};  // of this tile alone, like the taps' sums
    convolve_tile<1>(tile, plane, block.taps, [&](int64_t i, int64_t j, V fused) {
        const int64_t p = i * a.width + j;
        const V g = dy(i, j);
        dC[p] += sum(g * fused);
        dD += g * x.first(i, j);
        store_part(a.dx + image + p * a.channels, g * block.D, block.count);
    });
    sums.D += dD;
    float* dh = a.dh + image;
    convolve_tile<-1>(tile, gradient, block.taps, [&](int64_t i, int64_t j, V value) {
        store_part(dh + (i * a.width + j) * a.channels, value, block.count);
    });
    if (!a.zeros) fold_margin(a, tile, gradient, block.taps, dh, block.count);
    correlate_tile(tile, gradient, plane, sums.taps);
}

// One unit: tile by tile, and in each the blocks of VL channels that share its cache lines.
template <bool kBackward>
static void fusion_unit(const FusionArgs& a, int64_t b, int64_t first, V* plane, V* gradient,
                        float* dC) {
    FusionBlock blocks[kFusionGroup / VL];
    FusionSums sums[kFusionGroup / VL] = {};
    int count = 0;
    for (int64_t c = first; c < smaller(first + kFusionGroup, a.channels); c += VL)
        blocks[count++].open(a, c);
    const int64_t down = (a.height + kTile - 1) / kTile, across = (a.width + kTile - 1) / kTile;
    for (int64_t i = 0; i < down; ++i)
        for (int64_t j = 0; j < across; ++j) {
            const Tile tile = {b, a.height * i / down, a.height * (i + 1) / down,
                               a.width * j / across, a.width * (j + 1) / across};
            for (int k = 0; k < count; ++k) {
                if (kBackward) fusion_backward(a, tile, blocks[k], plane, gradient, dC, sums[k]);
                else fusion_forward(a, tile, blocks[k], plane);
            }
        }
    for (int k = 0; kBackward && k < count; ++k) {
        float* dtaps = a.dtaps + b * kTaps * a.channels + blocks[k].channel;
        for (int tap = 0; tap < kTaps; ++tap)
            store_part(dtaps + tap * a.channels, sums[k].taps[tap], blocks[k].count);
        store_part(a.dD + b * a.channels + blocks[k].channel, sums[k].D, blocks[k].count);
    }
}

template <bool kBackward>
static int fusion(const void* pointer, int64_t begin, int64_t end) {
    const FusionArgs& a = *static_cast<const FusionArgs*>(pointer);
    const int64_t groups = (a.channels + kFusionGroup - 1) / kFusionGroup;
    Scratch scratch(2 * kPlane * kPlane * VL);
    if (scratch.failed()) return kNoMemory;
    V *plane = scratch.vectors(kPlane * kPlane), *gradient = scratch.vectors(kPlane * kPlane);
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / groups, group = unit % groups, first = group * kFusionGroup;
        const int64_t pixels = a.height * a.width;
        float* dC = nullptr;
        if (kBackward) {
            dC = a.dC + (group * a.batch + b) * pixels;
            memset(dC, 0, sizeof(float) * pixels);
        }
        fusion_unit<kBackward>(a, b, first, plane, gradient, dC);
    }
    return kDone;
}

}  // namespace RSM_ISA
}  // namespace rsm
