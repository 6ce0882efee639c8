// Attention of a few queries of one sequence over its blocks in the cache, for one head of keys and values.
//
// Keys lie as [d][16 positions], so a vector holds the scores of 16 positions and no sum crosses lanes; values as
// [position][d]. A query meets its positions in chunks that begin at multiples of 64, whatever else is in the pass:
// the same bits for any batch and any cut of a prompt.
#pragma once
#include "simd.h"

namespace herd {

constexpr int kQueries = 8;   // of a tile
constexpr int kChunk = 64;    // positions whose largest score is found before any is used
constexpr int kMostHead = 512;

struct Cache {
    void* keys;    // [layers, kv heads, blocks x block size / 16, head size, 16]
    void* values;  // [layers, kv heads, blocks x block size, padded]
    int64_t half;  // whether both are bfloat16 rather than float
    int64_t blocks, block_size, heads, head_size, padded;  // block_size and padded: multiples of 16

    int64_t head(int64_t layer, int64_t number) const { return (layer * heads + number) * blocks * block_size; }
};

// Where the key of a position begins; its values of d are 16 apart.
static inline int64_t key_at(const Cache& c, int64_t head, const int32_t* table, int64_t p) {
    const int64_t slot = head + table[p / c.block_size] * c.block_size + p % c.block_size;
    return slot / kLanes * kLanes * c.head_size + slot % kLanes;
}
static inline int64_t value_at(const Cache& c, int64_t head, const int32_t* table, int64_t p) {
    return (head + table[p / c.block_size] * c.block_size + p % c.block_size) * c.padded;
}

template <bool HALF> static inline Vec read(const void* from, int64_t at) {
    if constexpr (HALF) return from_bf16((const uint16_t*)from + at);
    return load<Vec>((const float*)from + at);
}
static inline uint16_t rounded_half(float value) {
    uint16_t parts[kLanes];
    to_bf16(parts, all(value));
    return parts[0];
}

// Write one position's key [head_size] and value [padded].
static void remember(const Cache& c, int64_t head, const int32_t* table, int64_t p, const float* key,
                     const float* value) {
    const int64_t k = key_at(c, head, table, p), v = value_at(c, head, table, p);
    for (int64_t d = 0; d < c.head_size; d++) {
        if (c.half)
            ((uint16_t*)c.keys)[k + d * kLanes] = rounded_half(key[d]);
        else
            ((float*)c.keys)[k + d * kLanes] = key[d];
    }
    for (int64_t d = 0; d < c.padded; d += kLanes) {
        if (c.half)
            to_bf16((uint16_t*)c.values + v + d, load<Vec>(value + d));
        else
            store((float*)c.values + v + d, load<Vec>(value + d));
    }
}

template <bool HALF, int Q>
static void attend_tile(const Cache& c, int64_t head, const int32_t* table, const float* const* queries,
                        const int64_t* limits, float* const* outs) {
    // queries are scaled and [head_size]; query q sees positions 0 .. limits[q] - 1
    alignas(64) float sums[Q][kMostHead];
    alignas(64) float chances[Q][kChunk];
    float most[Q], totals[Q];
    int64_t last = 0;
    for (int q = 0; q < Q; q++) {
        most[q] = -__builtin_inff(), totals[q] = 0;
        memset(sums[q], 0, c.padded * sizeof(float));
        last = last > limits[q] ? last : limits[q];
    }
    IntVec lanes;
    for (int i = 0; i < kLanes; i++) lanes[i] = i;
    for (int64_t start = 0; start < last; start += kChunk) {
        const int64_t count = last - start < kChunk ? last - start : kChunk;
        const int vectors = (int)((count + kLanes - 1) / kLanes);
        for (int part = 0; part < vectors; part++) {
            const int64_t at = key_at(c, head, table, start + part * kLanes);
            Vec scores[Q] = {};
            for (int64_t d = 0; d < c.head_size; d++) {
                const Vec key = read<HALF>(c.keys, at + d * kLanes);
                for (int q = 0; q < Q; q++) scores[q] += key * queries[q][d];
            }
            const IntVec places = lanes + (int32_t)(start + part * kLanes);
            for (int q = 0; q < Q; q++)
                store(chances[q] + part * kLanes,
                      places < all((int32_t)limits[q]) ? scores[q] : all(-__builtin_inff()));
        }
        for (int q = 0; q < Q; q++) {
            Vec high = load<Vec>(chances[q]);
            for (int part = 1; part < vectors; part++) high = larger(high, load<Vec>(chances[q] + part * kLanes));
            const float best = largest(high);
            if (best > most[q]) {
                const float shrink = totals[q] > 0 ? exponential(all(most[q] - best))[0] : 0.0f;
                for (int64_t d = 0; d < c.padded; d += kLanes)
                    store(sums[q] + d, load<Vec>(sums[q] + d) * shrink);
                totals[q] *= shrink, most[q] = best;
            }
            Vec total{};
            for (int part = 0; part < vectors; part++) {
                const Vec score = load<Vec>(chances[q] + part * kLanes);
                const Vec chance = score > all(-__builtin_inff()) ? exponential(score - most[q]) : Vec{};
                total += chance;
                store(chances[q] + part * kLanes, chance);
            }
            totals[q] += sum(total);
        }
        for (int64_t d = 0; d < c.padded; d += kLanes) {
            Vec parts[Q];
            for (int q = 0; q < Q; q++) parts[q] = load<Vec>(sums[q] + d);
            for (int64_t p = 0; p < count; p++) {
                const Vec value = read<HALF>(c.values, value_at(c, head, table, start + p) + d);
                for (int q = 0; q < Q; q++) parts[q] += value * chances[q][p];
            }
            for (int q = 0; q < Q; q++) store(sums[q] + d, parts[q]);
        }
    }
    for (int q = 0; q < Q; q++)
        for (int64_t d = 0; d < c.head_size; d++) outs[q][d] = sums[q][d] / totals[q];
}

template <bool HALF>
static void attend_some(const Cache& c, int64_t head, const int32_t* table, int count, const float* const* queries,
                        const int64_t* limits, float* const* outs) {
    switch (count) {
        case 1: return attend_tile<HALF, 1>(c, head, table, queries, limits, outs);
        case 2: return attend_tile<HALF, 2>(c, head, table, queries, limits, outs);
        case 3: return attend_tile<HALF, 3>(c, head, table, queries, limits, outs);
        case 4: return attend_tile<HALF, 4>(c, head, table, queries, limits, outs);
        case 5: return attend_tile<HALF, 5>(c, head, table, queries, limits, outs);
        case 6: return attend_tile<HALF, 6>(c, head, table, queries, limits, outs);
        case 7: return attend_tile<HALF, 7>(c, head, table, queries, limits, outs);
        default: return attend_tile<HALF, 8>(c, head, table, queries, limits, outs);
    }
}

}  // namespace herd
