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

// The last channels of a row that is no multiple of VL: rare, and out of the way of the loops.
__attribute__((noinline, cold)) static void load_few(const float* p, int count, V* x) {
    *x = V{};
    memcpy(x, p, sizeof(float) * count);
}
__attribute__((noinline, cold)) static void store_few(float* p, const V* x, int count) {
    memcpy(p, x, sizeof(float) * count);
}
RSM_INLINE V load_part(const float* p, int count) {
    if (count >= VL) return load(p);
    V x;
    load_few(p, count, &x);
    return x;
}
RSM_INLINE void store_part(float* p, V x, int count) {
    if (count >= VL) return store(p, x);
    const V copy = x;
    store_few(p, &copy, count);
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

// Whether x <= high in every lane; false for a NaN.
RSM_INLINE bool all_at_most(V x, float high) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(x, splat(high), _CMP_LE_OQ) == 0xffff;
#elif defined(__AVX2__)
    return _mm256_movemask_ps(_mm256_cmp_ps(x, splat(high), _CMP_LE_OQ)) == 0xff;
#else
    bool all = true;
    for (int i = 0; i < VL; ++i) all &= x[i] <= high;
    return all;
#endif
}

RSM_INLINE V size(V x) {
    return reinterpret_cast<V>(reinterpret_cast<I>(x) & 0x7fffffff);
}
RSM_INLINE V larger(V x, V y) { return x > y ? x : y; }

// 2^x = 2^n * T[j] * (1 + r p(r)) with x = n + j / kParts + r: a table that fits in registers
// shortens the minimax polynomial p, which is what the multipliers spend their time on.
#if defined(__AVX512F__)
constexpr int kParts = 16;  // 0 <= r <= 1 / 16
// Exact where they matter most, as decays add up: 1 + r p(r) T[15] / 2 is 1 at r = 1 / 16.
constexpr float kExp2[] = {0.6931473612785339f, 0.2401865869760513f, 0.05673075094819069f};
constexpr float kExp[] = {1.000000238418579f, 0.499916672706604f, 0.17035000026226044f};
alignas(64) constexpr float kPower[] = {
    1.f,           1.0442737340f, 1.0905077457f, 1.1387885809f, 1.1892070770f, 1.2418577671f,
    1.2968395948f, 1.3542555571f, 1.4142135382f, 1.4768261909f, 1.5422108173f, 1.6104903221f,
    1.6817928553f, 1.7562521696f, 1.8340080976f, 1.9152065516f};
#elif defined(__AVX2__)
constexpr int kParts = 8, kShift = 20;  // |r| <= 1 / 16
constexpr float kExp2[] = {0.6931472420692444f, 0.2402576357126236f, 0.0554962232708931f};
constexpr float kExp[] = {1.f, 0.5000647902488708f, 0.16664297878742218f};
// Less j << kShift in their bits: shifting 8 n + j there adds it to the exponent n.
alignas(32) constexpr int32_t kPower[] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                          0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
#else
constexpr int kParts = 1, kShift = 23;  // no table, |r| <= 1 / 2
constexpr float kExp2[] = {0.6931470036506653f, 0.24022242426872253f, 0.05550733581185341f,
                           0.009671512991189957f, 0.001326472731307149f};
constexpr float kExp[] = {0.9999997019767761f, 0.4999915063381195f, 0.1666763722896576f,
                          0.0418979749083519f, 0.0082903066650033f};
#endif

// Adding 1.5 * 2^23 / kParts rounds to a multiple of 1 / kParts and leaves kParts n + j in the low
// bits.
constexpr float kRounder = 12582912.f / kParts;
RSM_INLINE V rounded(V x) {
#if defined(__AVX512F__)
    return _mm512_add_round_ps(x, splat(kRounder), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    return x + kRounder;
#endif
}

// 2^n T[j] (1 + r p(r)), n and j as `rounded` left them. With AVX-512 `whole` gives n, rounded down.
template <int K>
RSM_INLINE V scaled(V r, const float (&c)[K], V rounded, V whole) {
    V p = splat(c[K - 1]);
    for (int k = K - 2; k >= 0; --k) p = p * r + c[k];
    const I index = reinterpret_cast<I>(rounded);
#if defined(__AVX512F__)
    const V table = *reinterpret_cast<const V*>(kPower);
    const V t = _mm512_scalef_ps(_mm512_permutexvar_ps(__m512i(index), table), whole);
    return (t * r) * p + t;
#elif defined(__AVX2__)
    const I table = *reinterpret_cast<const I*>(kPower);
    const I power = I(_mm256_permutevar8x32_epi32(__m256i(table), __m256i(index)));
    const V t = reinterpret_cast<V>(power + (index << kShift));
    return (t * r) * p + t;
#else
    return reinterpret_cast<V>(reinterpret_cast<I>(r * p + 1.f) + (index << kShift));
#endif
}

// 2^x to 1.3e-7 (relative) for |x| <= kExp2Bound, exactly 1 at 0; with AVX-512 for any x.
constexpr float kExp2Bound = 126.f;
constexpr bool kExp2Unbounded = VL == 16;
RSM_INLINE V exp2_bounded(V x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));  // no fused product here: the adders have time, the multipliers do not
    const V r = _mm512_reduce_ps(x, 4 << 4 | _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return scaled(r, kExp2, rounded(x), x);
#else
    const V s = rounded(x);
    return scaled(x - (s - kRounder), kExp2, s, x);
#endif
}

// 2^x for any x; a NaN stays. Zero from -127 down.
RSM_INLINE V exp2(V x) {
#if defined(__AVX512F__)
    return exp2_bounded(x);
#else
    return exp2_bounded(at_most(at_least(x, -127.f), 127.f));
#endif
}

constexpr float kLog2E = 1.44269504088896340736f;

// e^x to 1.3e-7 (relative) for x <= 0. From -87 down the result stays at 1e-38.
RSM_INLINE V exp(V x) {
    x = at_least(x, -87.f);
    const V s = rounded(x * kLog2E), n = s - kRounder;
#if defined(__AVX2__)
    const V r = x - n * 0.6931471805599453f;  // fused: exact but for 2e-9 n
#else
    const V r = (x - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
#endif
    return scaled(r, kExp, s, n);
}

// log(1 + z) = z + z^2 (c0 + c1 z + ...) to 3e-8 (relative) for 0 <= z <= 1: in two halves, which
// wait half as long.
constexpr float kLog1p[] = {-0.49999648332595825f, 0.3332132399082184f,  -0.24857163429260254f,
                            0.191536545753479f,    -0.13753803074359894f, 0.07920454442501068f,
                            -0.03006579726934433f, 0.0053648254834115505f};
RSM_INLINE V log1p_tail(V z) {
    const V q = z * z;
    V even = q * kLog1p[6] + kLog1p[4], odd = q * kLog1p[7] + kLog1p[5];
    even = even * q + kLog1p[2], odd = odd * q + kLog1p[3];
    even = even * q + kLog1p[0], odd = odd * q + kLog1p[1];
    return (odd * z + even) * q;
}

// softplus(x) = max(x, 0) + log1p(e^-|x|) and its derivative, the logistic function; without a
// threshold, and with a small relative error where x is very negative.
RSM_INLINE V softplus(V x, V* slope) {
    const V z = exp(-size(x));
    if (slope) {
        const V one = 1.f / (z + 1.f);
        *slope = x < V{} ? z * one : one;
    }
    return at_least(x, 0.f) + (log1p_tail(z) + z);
}

// Sums over the lanes of four vectors, each left as one partial sum per 128-bit lane; in two steps,
// so that the vectors need not all be at hand: sum4(a, b, c, d) = sum4(sum2(a, b), sum2(c, d)).
RSM_INLINE V sum2(V a, V b) {
#if defined(__AVX512F__)
    return _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
#elif defined(__SSE2__)
    return _mm_unpacklo_ps(a, b) + _mm_unpackhi_ps(a, b);
#else
    return V{a[0] + a[2], b[0] + b[2], a[1] + a[3], b[1] + b[3]};
#endif
}
RSM_INLINE V sum4(V ab, V cd) {
#if defined(__AVX512F__)
    return _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
#elif defined(__AVX2__)
    return _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
#elif defined(__SSE2__)
    return _mm_shuffle_ps(ab, cd, 0x44) + _mm_shuffle_ps(ab, cd, 0xee);
#else
    return V{ab[0] + ab[2], ab[1] + ab[3], cd[0] + cd[2], cd[1] + cd[3]};
#endif
}
RSM_INLINE V sum4(V a, V b, V c, V d) { return sum4(sum2(a, b), sum2(c, d)); }

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

// Gradients of parameters are sums over all steps. Every addition rounds to the size of the sum so
// far, so this many steps are summed apart before they join the others.
constexpr int64_t kShortSum = 64;

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
