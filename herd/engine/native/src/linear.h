// y = W x for weights of 32, 16 (bfloat16), 8 or 4 bits, over one layout that serves one row of x and thousands.
//
// W [n, k] is cut into strips of 64 rows (4 vectors of 16; fewer in the last). A strip is one stream of bytes:
//
//     for each group of k:  [scales: vectors x 16 bfloat16, integers only]  then for each step of k in the group
//                           [vectors][16 rows][4 bytes]                     4 bytes: 1, 2, 4 or 8 values of one row
//
// so a vector of weights holds 16 outputs, x is broadcast, and nothing is summed across lanes. Integers are stored
// with an offset (128 or 8), as the instruction for dot products wants one side unsigned; x is rounded to 8 bits with
// a scale for each group. In a byte of two values the low one belongs to k .. k + 3, the high one to k + 4 .. k + 7.
//
// Each output is summed in one order, whatever else is in the pass: the same bits for any batch.
#pragma once
#include <algorithm>

#include "simd.h"

namespace herd {

struct Linear {
    int32_t bits;   // 32, 16, 8, 4
    int32_t group;  // values of k under one scale; of the floats: any
    int64_t rows;   // n
    int64_t width;  // k, padded with zeros to a multiple of `group`
    const uint8_t* data;
};

// Rows of x as the kernels read them: floats for floats, else integers with scales and corrections for each group.
struct Inputs {
    const float* floats;
    const int8_t* levels;
    const float* scales;
    const int32_t* corrections;  // -offset x the sum of the group's levels
    int64_t stride;              // between rows of floats or levels
    int64_t groups;              // between rows of scales and corrections

    Inputs from(int64_t row) const {
        return {floats + row * stride, levels + row * stride, scales + row * groups, corrections + row * groups,
                stride, groups};
    }
};

constexpr int kStrip = 64;
constexpr int kTile = 6;             // rows of x whose sums fit into registers together
constexpr int64_t kSmall = 16 << 10;  // bytes of weights that stay in the first cache while a few tiles pass by
constexpr int64_t kLarge = 32 << 10;  // the same for many tiles, which make less of the sums' way to memory
constexpr int kFew = 2;               // rows of x for which the processor's own prefetcher is as good

static inline int vectors_in(const Linear& w, int64_t strip) {
    const int64_t left = (w.rows - strip * kStrip + kLanes - 1) / kLanes;
    return left >= 3 ? 4 : (int)left;
}
static inline int per_vector(int bits) { return 32 / bits; }  // values of k in one vector of weights
static inline int64_t group_bytes(const Linear& w, int vectors) {
    return (w.bits < 16 ? vectors * kLanes * 2 : 0) + (int64_t)vectors * 64 * (w.group / per_vector(w.bits));
}
static inline const uint8_t* strip_at(const Linear& w, int64_t strip) {
    return w.data + strip * (w.width / w.group) * group_bytes(w, 4);
}

// acc + the products of 4 unsigned bytes of each lane with the 4 signed ones of x.
#if defined(__AVX512VNNI__)
static inline IntVec dot4(IntVec acc, BitVec w, int32_t x) {
    return (IntVec)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(x));
}
#elif defined(__AVX2__)
static inline __m256i dot4_half(__m256i acc, __m256i w, __m256i x) {
    // 8 unsigned by 8 signed bits would overflow the sums of two products in 16 bits: widen the weights first
    const __m256i even = _mm256_and_si256(w, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(w, 8);
    const __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), x_odd = _mm256_srai_epi16(x, 8);
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(even, x_even));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(odd, x_odd));
}
static inline IntVec dot4(IntVec acc, BitVec w, int32_t x) {
    __m256i a[2], b[2];
    memcpy(a, &acc, 64);
    memcpy(b, &w, 64);
    const __m256i xs = _mm256_set1_epi32(x);
    a[0] = dot4_half(a[0], b[0], xs);
    a[1] = dot4_half(a[1], b[1], xs);
    memcpy(&acc, a, 64);
    return acc;
}
#else
static inline IntVec dot4(IntVec acc, BitVec w, int32_t x) {
    for (int shift = 0; shift < 32; shift += 8)
        acc += (IntVec)((w >> shift) & 255u) * (int32_t)(int8_t)((uint32_t)x >> shift);
    return acc;
}
#endif

// Bytes that will be wanted next, fetched while others are used: `pace` of them at each step.
struct Ahead {
    const uint8_t* at;
    int pace;

    void fetch() {
        for (int i = 0; i < pace; i += 64) __builtin_prefetch(at + i);
        at += pace;
    }
};

template <int BITS, int VECTORS, int ROWS>
static inline void integer_group(const uint8_t* codes, int group, const Inputs& x, int64_t row, int64_t at,
                                 int64_t number, Ahead& ahead, Vec (&sums)[ROWS][VECTORS]) {
    const uint8_t* scales = codes;
    codes += VECTORS * kLanes * 2;
    const int8_t* levels = x.levels + row * x.stride + at;
    IntVec acc[ROWS][VECTORS];
    for (int m = 0; m < ROWS; m++)
        for (int v = 0; v < VECTORS; v++) acc[m][v] = all(x.corrections[(row + m) * x.groups + number]);
    for (int k = 0; k < group; k += per_vector(BITS), codes += VECTORS * 64) {
        BitVec w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = load<BitVec>(codes + v * 64);
        if (ROWS > kFew) ahead.fetch();
        if (BITS == 8) {
            for (int m = 0; m < ROWS; m++) {
                const int32_t quad = load<int32_t>(levels + m * x.stride + k);
                for (int v = 0; v < VECTORS; v++) acc[m][v] = dot4(acc[m][v], w[v], quad);
            }
        } else {
            BitVec high[VECTORS];
            for (int v = 0; v < VECTORS; v++) high[v] = (w[v] >> 4) & 0x0f0f0f0fu, w[v] &= 0x0f0f0f0fu;
            for (int m = 0; m < ROWS; m++) {
                const int32_t first = load<int32_t>(levels + m * x.stride + k);
                const int32_t second = load<int32_t>(levels + m * x.stride + k + 4);
                for (int v = 0; v < VECTORS; v++) acc[m][v] = dot4(acc[m][v], w[v], first);
                for (int v = 0; v < VECTORS; v++) acc[m][v] = dot4(acc[m][v], high[v], second);
            }
        }
    }
    for (int v = 0; v < VECTORS; v++) {
        const Vec scale = from_bf16((const uint16_t*)(scales + v * kLanes * 2));
        for (int m = 0; m < ROWS; m++)
            sums[m][v] += __builtin_convertvector(acc[m][v], Vec) * (scale * x.scales[(row + m) * x.groups + number]);
    }
}

template <int BITS, int VECTORS, int ROWS>
static inline void float_group(const uint8_t* codes, int group, const Inputs& x, int64_t row, int64_t at,
                               Ahead& ahead, Vec (&sums)[ROWS][VECTORS]) {
    const float* values = x.floats + row * x.stride + at;
    for (int k = 0; k < group; k += per_vector(BITS), codes += VECTORS * 64) {
        if (ROWS > kFew) ahead.fetch();
        for (int part = 0; part < per_vector(BITS); part++) {
            Vec w[VECTORS];
            for (int v = 0; v < VECTORS; v++) {
                const BitVec bits = load<BitVec>(codes + v * 64);
                w[v] = as_floats(BITS == 32 ? bits : part ? bits & 0xffff0000u : bits << 16);
            }
            for (int m = 0; m < ROWS; m++)
                for (int v = 0; v < VECTORS; v++) sums[m][v] += w[v] * values[m * x.stride + k + part];
        }
    }
}

// Adds groups [first, last) of one strip for ROWS rows of x to `out` [., 64]; the first group of all begins at 0.
template <int BITS, int VECTORS, int ROWS>
static void tile(const Linear& w, const uint8_t* strip, const Inputs& x, int64_t row, int64_t first, int64_t last,
                 Ahead ahead, float* out) {
    Vec sums[ROWS][VECTORS];
    for (int m = 0; m < ROWS; m++)
        for (int v = 0; v < VECTORS; v++) sums[m][v] = first ? load<Vec>(out + m * kStrip + v * kLanes) : Vec{};
    const int64_t bytes = group_bytes(w, VECTORS);
    for (int64_t g = first; g < last; g++) {
        if constexpr (BITS < 16)
            integer_group<BITS, VECTORS, ROWS>(strip + g * bytes, w.group, x, row, g * w.group, g, ahead, sums);
        else
            float_group<BITS, VECTORS, ROWS>(strip + g * bytes, w.group, x, row, g * w.group, ahead, sums);
    }
    for (int m = 0; m < ROWS; m++)
        for (int v = 0; v < VECTORS; v++) store(out + m * kStrip + v * kLanes, sums[m][v]);
}

using Tile = void (*)(const Linear&, const uint8_t*, const Inputs&, int64_t, int64_t, int64_t, Ahead, float*);

template <int BITS, int VECTORS> static Tile tile_of_rows(int rows) {
    static const Tile kernels[kTile] = {tile<BITS, VECTORS, 1>, tile<BITS, VECTORS, 2>, tile<BITS, VECTORS, 3>,
                                        tile<BITS, VECTORS, 4>, tile<BITS, VECTORS, 5>, tile<BITS, VECTORS, 6>};
    return kernels[rows - 1];
}
template <int BITS> static Tile tile_of_vectors(int vectors, int rows) {
    return vectors == 4 ? tile_of_rows<BITS, 4>(rows)
                        : vectors == 2 ? tile_of_rows<BITS, 2>(rows) : tile_of_rows<BITS, 1>(rows);
}
static Tile tile_for(int bits, int vectors, int rows) {
    switch (bits) {
        case 4: return tile_of_vectors<4>(vectors, rows);
        case 8: return tile_of_vectors<8>(vectors, rows);
        case 16: return tile_of_vectors<16>(vectors, rows);
        default: return tile_of_vectors<32>(vectors, rows);
    }
}

// One strip for rows [0, rows) of x: out [rows, 64]. next: the strip that this thread will read then, or null.
//
// Few rows go through the whole strip; tiles of more share each piece of it, and fetch the next one between them.
static void multiply_strip(const Linear& w, int64_t strip, const Inputs& x, int64_t rows, const uint8_t* next,
                           float* out) {
    const int vectors = vectors_in(w, strip);
    const uint8_t* data = strip_at(w, strip);
    const int64_t groups = w.width / w.group, bytes = group_bytes(w, vectors), tiles = (rows + kTile - 1) / kTile;
    const int64_t piece = rows <= kFew ? groups : std::max<int64_t>(1, (tiles <= 4 ? kSmall : kLarge) / bytes);
    for (int64_t first = 0; first < groups; first += piece) {
        const int64_t last = std::min(first + piece, groups), size = (last - first) * bytes;
        const uint8_t* wanted = last < groups ? data + last * bytes : next;
        const int64_t lines = (vectors + tiles - 1) / tiles;  // to fetch at each step, so that all tiles fetch a piece
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t from = rows * t / tiles, to = rows * (t + 1) / tiles, skip = t * lines * size / vectors;
            const Ahead ahead{wanted + skip, wanted && skip < size ? (int)lines * 64 : 0};
            tile_for(w.bits, vectors, (int)(to - from))(w, data, x, from, first, last, ahead, out + from * kStrip);
        }
    }
}

// How x is rounded for `w`: levels, scales and corrections of one row [width], which is padded with zeros.
static inline void quantise_row(const Linear& w, const float* x, int8_t* levels, float* scales, int32_t* corrections) {
    const int offset = w.bits == 8 ? 128 : 8;
    for (int64_t g = 0; g * w.group < w.width; g++) {
        const float* from = x + g * w.group;
        Vec most{};
        for (int i = 0; i < w.group; i += kLanes) most = larger(most, magnitude(load<Vec>(from + i)));
        const float scale = largest(most) / 127.0f, inverse = scale > 1e-30f ? 1.0f / scale : 0.0f;
        IntVec total{};
        for (int i = 0; i < w.group; i += kLanes) {
            const IntVec level = rounded(load<Vec>(from + i) * inverse);
            total += level;
            store(levels + g * w.group + i, __builtin_convertvector(level, ByteVec));
        }
        scales[g] = scale;
        corrections[g] = -offset * sum(total);
    }
}

}  // namespace herd
