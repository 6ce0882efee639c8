// Memory of a pass: it grows with the largest one, and is aligned and zero at first.
#pragma once
#include <cstdlib>
#include <new>

#include "linear.h"

namespace herd {

static inline int64_t padded(int64_t n) { return (n + kStrip - 1) / kStrip * kStrip; }

static inline float half_at(const void* from, int64_t at) {
    const uint32_t bits = (uint32_t)((const uint16_t*)from)[at] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

template <class T> class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer(Buffer&& other) noexcept : data_(other.data_), count_(other.count_) { other.data_ = nullptr; }
    ~Buffer() { free(data_); }

    // Room for `count` values; what was there is lost when it grows.
    T* get(int64_t count) {
        if (count > count_) {
            free(data_);
            const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
            data_ = (T*)aligned_alloc(64, bytes);
            if (!data_) throw std::bad_alloc();
            memset(data_, 0, bytes);
            count_ = count;
        }
        return data_;
    }
    T* at(int64_t place) { return data_ + place; }
    const T* at(int64_t place) const { return data_ + place; }

  private:
    T* data_ = nullptr;
    int64_t count_ = 0;
};

// Rows of x of one linear layer, as its kernels want them.
struct Prepared {
    Buffer<float> floats, scales;
    Buffer<int8_t> levels;
    Buffer<int32_t> corrections;
    Inputs inputs{};

    void shape(const Linear& w, int64_t rows) {
        inputs.stride = padded(w.width), inputs.groups = w.width / w.group;
        if (w.bits >= 16) {
            inputs.floats = floats.get(rows * inputs.stride);
        } else {
            inputs.levels = levels.get(rows * inputs.stride);
            inputs.scales = scales.get(rows * inputs.groups);
            inputs.corrections = corrections.get(rows * inputs.groups);
        }
    }
    void fill(const Linear& w, int64_t row, const float* x) {
        const int64_t at = row * inputs.stride, group = row * inputs.groups;
        if (w.bits >= 16)
            memcpy(floats.at(at), x, w.width * sizeof(float));
        else
            quantise_row(w, x, levels.at(at), scales.at(group), corrections.at(group));
    }
};

struct Scratch {  // of one thread
    Buffer<float> row, strip, query;
    Prepared prepared;
};

}  // namespace herd
