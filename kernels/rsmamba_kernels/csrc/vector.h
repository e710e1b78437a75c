// One vector of VL floats and the few functions on it that the operators need.
//
// Included once per translation unit; everything lives in a namespace of its own (RSM_ISA), because
// functions of one name compiled for two instruction sets would be merged by the linker. For the
// same reason nothing of the C++ library is used.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define RSM_INLINE static inline __attribute__((always_inline))

namespace rsm {
namespace RSM_ISA {

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float V __attribute__((vector_size(4 * VL)));
typedef int32_t I __attribute__((vector_size(4 * VL)));
// Reads and writes through this type compile to one unaligned move; memcpy made gcc 12 go through
// the stack.
typedef float VU __attribute__((vector_size(4 * VL), aligned(4), may_alias));

RSM_INLINE V splat(float x) { return x - V{}; }
RSM_INLINE V load(const float* p) { return *reinterpret_cast<const VU*>(p); }
RSM_INLINE void store(float* p, V x) { *reinterpret_cast<VU*>(p) = x; }

// The last channels of a row that is no multiple of VL.
RSM_INLINE V load_part(const float* p, int count) {
    if (count >= VL) return load(p);
    V x = {};
    memcpy(&x, p, sizeof(float) * count);
    return x;
}
RSM_INLINE void store_part(float* p, V x, int count) {
    if (count >= VL) store(p, x);
    else memcpy(p, &x, sizeof(float) * count);
}

// A NaN in x stays.
RSM_INLINE V at_least(V x, float low) {
#if defined(__AVX512F__)
    return _mm512_max_ps(splat(low), x);
#elif defined(__AVX2__)
    return _mm256_max_ps(splat(low), x);
#elif defined(__SSE2__)
    return _mm_max_ps(splat(low), x);
#else
    return x < splat(low) ? splat(low) : x;
#endif
}
RSM_INLINE V at_most(V x, float high) {
#if defined(__AVX512F__)
    return _mm512_min_ps(splat(high), x);
#elif defined(__AVX2__)
    return _mm256_min_ps(splat(high), x);
#elif defined(__SSE2__)
    return _mm_min_ps(splat(high), x);
#else
    return x > splat(high) ? splat(high) : x;
#endif
}

// x = n + rest, n an integer, |rest| <= 1/2, and p * 2^n for p in [0.7, 1.5].
struct Split {
    V n, rest;
    I exponent;
};
#if defined(__AVX512F__)
RSM_INLINE Split split(V x) {
    const V n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return {n, x - n, I{}};
}
// Exact down to zero and up to infinity.
RSM_INLINE V scale(V p, Split s) { return _mm512_scalef_ps(p, s.n); }
#else
RSM_INLINE Split split(V x) {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. The limits keep 2^n a
    // normal number: below them the result is 1e-38 or less.
    x = at_most(at_least(x, -126.f), 127.f);
    const V magic = splat(12582912.f), shifted = x + magic, n = shifted - magic;
    return {n, x - n, reinterpret_cast<I>(shifted)};
}
RSM_INLINE V scale(V p, Split s) {
    return reinterpret_cast<V>(reinterpret_cast<I>(p) + (s.exponent << 23));
}
#endif

// 2^x to 9e-8 (relative), exactly 1 at 0. Minimax polynomial.
RSM_INLINE V exp2(V x) {
    const Split s = split(x);
    const V r = s.rest;
    V p = splat(0.001326472731307149f);
    p = p * r + 0.009671512991189957f;
    p = p * r + 0.05550733581185341f;
    p = p * r + 0.24022242426872253f;
    p = p * r + 0.6931470036506653f;
    return scale(p * r + 1.f, s);
}

constexpr float kLog2E = 1.44269504088896340736f;

// e^x to 1e-7 (relative) for x <= 0: the argument is reduced with log(2) in two pieces. From -87
// down the result stays at 1e-38.
RSM_INLINE V exp(V x) {
    x = at_least(x, -87.f);
    const Split s = split(x * kLog2E);
    const V r = (x - s.n * 0.693145751953125f) - s.n * 1.42860682030941723212e-6f;
    V p = splat(0.0013814602280035615f);
    p = p * r + 0.008368715643882751f;
    p = p * r + 0.04166838899254799f;
    p = p * r + 0.1666652113199234f;
    p = p * r + 0.4999999403953552f;
    return scale((p * r) * r + r + 1.f, s);
}

// softplus(x) = max(x, 0) + log1p(e^-|x|) and its derivative, the logistic function; without a
// threshold, and with a small relative error where x is very negative.
RSM_INLINE V softplus(V x, V* slope) {
    const V positive = at_least(x, 0.f), size = positive + at_least(-x, 0.f);
    const V z = exp(-size);
    const V s = z / (z + 2.f), q = s * s;  // log1p(z) = 2 artanh(z / (2 + z))
    V p = splat(0.1400599330663681f);
    p = p * q + 0.14000903069972992f;
    p = p * q + 0.2001076340675354f;
    p = p * q + 0.3333320915699005f;
    if (slope) {
        const V one = 1.f / (z + 1.f);
        *slope = x < V{} ? z * one : one;
    }
    return positive + 2.f * (s + (p * q) * s);
}

// Sums over the lanes of four vectors, each left as one partial sum per 128-bit lane.
RSM_INLINE V sum4(V a, V b, V c, V d) {
#if defined(__AVX512F__)
    const V ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    const V cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
    return _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
#elif defined(__AVX2__)
    const V ab = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
    const V cd = _mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d);
    return _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
#elif defined(__SSE2__)
    const V ab = _mm_unpacklo_ps(a, b) + _mm_unpackhi_ps(a, b);
    const V cd = _mm_unpacklo_ps(c, d) + _mm_unpackhi_ps(c, d);
    return _mm_shuffle_ps(ab, cd, 0x44) + _mm_shuffle_ps(ab, cd, 0xee);
#else
    V sum;
    sum[0] = (a[0] + a[2]) + (a[1] + a[3]);
    sum[1] = (b[0] + b[2]) + (b[1] + b[3]);
    sum[2] = (c[0] + c[2]) + (c[1] + c[3]);
    sum[3] = (d[0] + d[2]) + (d[1] + d[3]);
    return sum;
#endif
}

// From VL / 4 results of sum4: the VL lane sums, in order.
RSM_INLINE V join(const V* q) {
#if defined(__AVX512F__)
    const V ab = _mm512_shuffle_f32x4(q[0], q[1], 0x88) + _mm512_shuffle_f32x4(q[0], q[1], 0xdd);
    const V cd = _mm512_shuffle_f32x4(q[2], q[3], 0x88) + _mm512_shuffle_f32x4(q[2], q[3], 0xdd);
    return _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xdd);
#elif defined(__AVX2__)
    return _mm256_permute2f128_ps(q[0], q[1], 0x20) + _mm256_permute2f128_ps(q[0], q[1], 0x31);
#else
    return q[0];
#endif
}

RSM_INLINE float sum(V x) {
    float total = 0;
    const V q = sum4(x, x, x, x);  // four equal sums per 128-bit lane
    for (int i = 0; i < VL; i += 4) total += q[i];
    return total;
}

RSM_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
RSM_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A bump allocator over one aligned block. Decayed states pass through denormal numbers, which cost
// a hundred cycles each on some cores; they are flushed to zero for the life of a Scratch.
class Scratch {
   public:
    explicit Scratch(int64_t floats) {
        block_ = malloc(sizeof(float) * (floats + 1024));
        const uintptr_t start = (reinterpret_cast<uintptr_t>(block_) + 63) & ~uintptr_t(63);
        next_ = reinterpret_cast<float*>(start);
#if defined(__SSE2__)
        control_ = _mm_getcsr();
        _mm_setcsr(control_ | 0x8040);
#endif
    }
    ~Scratch() {
        free(block_);
#if defined(__SSE2__)
        _mm_setcsr(control_);
#endif
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    bool failed() const { return block_ == nullptr; }
    float* floats(int64_t count) {
        float* result = next_;
        next_ += round_up(count, 16);
        return result;
    }
    V* vectors(int64_t count) { return reinterpret_cast<V*>(floats(count * VL)); }

   private:
    void* block_;
    float* next_;
    unsigned control_ = 0;
};

}  // namespace RSM_ISA
}  // namespace rsm
