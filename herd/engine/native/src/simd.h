// Sixteen floats at a time: GCC's and Clang's vector types, which become one AVX-512 register, two of AVX2, or four of
// SSE or NEON. Only what the compiler can't derive is written by hand for each instruction set (dot4, in linear.h).
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace herd {

constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));
typedef uint32_t BitVec __attribute__((vector_size(64)));
typedef uint16_t HalfVec __attribute__((vector_size(32)));
typedef int8_t ByteVec __attribute__((vector_size(16)));

template <class T> static inline T load(const void* from) {
    T value;
    memcpy(&value, from, sizeof(T));
    return value;
}
template <class T> static inline void store(void* to, T value) { memcpy(to, &value, sizeof(T)); }

static inline Vec all(float value) { return Vec{} + value; }
static inline IntVec all(int32_t value) { return IntVec{} + value; }
static inline Vec as_floats(BitVec bits) { return (Vec)bits; }

// bfloat16 is the upper half of a float
static inline Vec from_bf16(const uint16_t* from) {
    return as_floats(__builtin_convertvector(load<HalfVec>(from), BitVec) << 16);
}
static inline void to_bf16(uint16_t* to, Vec value) {
    BitVec bits = (BitVec)value;
    bits += 0x7fff + ((bits >> 16) & 1);  // to nearest, ties to even
    store(to, __builtin_convertvector(bits >> 16, HalfVec));
}

static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
static inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
static inline Vec magnitude(Vec a) { return as_floats((BitVec)a & 0x7fffffffu); }

static inline float sum(Vec v) {
    float parts[kLanes];
    store(parts, v);
    for (int width = kLanes / 2; width; width /= 2)
        for (int i = 0; i < width; i++) parts[i] += parts[i + width];
    return parts[0];
}
static inline int32_t sum(IntVec v) {
    int32_t total = 0;
    for (int i = 0; i < kLanes; i++) total += v[i];
    return total;
}
static inline float largest(Vec v) {
    float parts[kLanes];
    store(parts, v);
    for (int width = kLanes / 2; width; width /= 2)
        for (int i = 0; i < width; i++) parts[i] = parts[i] > parts[i + width] ? parts[i] : parts[i + width];
    return parts[0];
}

// To the nearest integer, ties to even, for magnitudes below 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
constexpr float kRounder = 12582912.0f;
static inline IntVec rounded(Vec v) { return (IntVec)(v + kRounder) - 0x4b400000; }

// e^x to two units in the last place (Cephes' polynomial); below -87 the smallest normal number.
static inline Vec exponential(Vec x) {
    x = smaller(larger(x, all(-87.0f)), all(88.0f));
    const IntVec n = rounded(x * 1.44269504088896341f);
    const Vec whole = __builtin_convertvector(n, Vec);
    const Vec r = x - whole * 0.693359375f - whole * -2.12194440e-4f;
    Vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (Vec)((n + 127) << 23);
}

}  // namespace herd
