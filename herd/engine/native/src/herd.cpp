// One pass of the decoder over the new tokens of many sequences, in one parallel region. The mathematics is that of
// herd/model/transformer.py, which stays the definition: tests hold the two together.
#include <omp.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "barrier.h"
#include "buffers.h"
#include "pass.h"

namespace herd {

constexpr int kLoops = 12;    // loops of a layer that threads share
constexpr int64_t kAlone = 4;  // rows of x that every thread prepares for itself rather than wait for the others
constexpr int64_t kRows = 512;  // rows of x that meet a strip of weights before the next

static void rms_norm(const float* x, const float* weight, int64_t dim, float eps, float* out) {
    Vec squares[4] = {};
    for (int64_t i = 0; i < padded(dim); i += 4 * kLanes)
        for (int v = 0; v < 4; v++) {
            const Vec part = load<Vec>(x + i + v * kLanes);
            squares[v] += part * part;
        }
    const float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / (float)dim;
    const float scale = 1.0f / sqrtf(mean + eps);
    for (int64_t i = 0; i < padded(dim); i += kLanes)
        store(out + i, load<Vec>(x + i) * scale * load<Vec>(weight + i));
}

// Turn one head [size] by a position's angles, in halves, times `scale`.
static void rotate(const float* x, const float* cos, const float* sin, int64_t size, float scale, float* out) {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        out[i] = (a * cos[i] - b * sin[i]) * scale;
        out[i + half] = (b * cos[i] + a * sin[i]) * scale;
    }
}

struct Tokens {  // of one row, that attend together
    int64_t row, first, count, out;  // first: place in the row; out: where the first one's result goes
};

class Decoder {
  public:
    explicit Decoder(const Model& model)
        : model_(model), shape_(model.shape), scratch_(shape_.threads), counters_(shape_.layers * kLoops + kLoops) {}

    void run(const Pass& pass);
    void head(const float* states, int64_t rows, float* logits);

  private:
    const Model model_;
    const Shape shape_;
    const Pass* pass_ = nullptr;
    Barrier barrier_;
    std::vector<Scratch> scratch_;
    std::vector<std::atomic<int64_t>> counters_;
    Prepared prepared_;
    Buffer<float> x_, last_, qkv_, mixed_, hidden_;
    std::vector<int64_t> row_of_, first_of_, chosen_;
    std::vector<Tokens> tiles_, last_tiles_;

    // A thread's way through the pass: all threads go through the same loops in the same order.
    struct Thread {
        int id, count;
        Scratch& own;
        std::atomic<int64_t>* counter;
    };

    template <class Body> void share(Thread& t, int64_t count, Body body) {
        std::atomic<int64_t>& next = *t.counter++;
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
    }
    void wait(const Thread& t) { barrier_.wait(t.count); }
    void plan(const Pass& pass);
    void cut(std::vector<Tokens>& tiles, bool last);
    void layer(Thread& t, int64_t number);
    void place(Thread& t, int64_t layer, int64_t token, int64_t group);
    void attend(int64_t layer, const Tokens& tile, int64_t group);
    float* wide(int64_t token) { return qkv_.at(token * padded(queries() + 2 * keys())); }
    int64_t queries() const { return shape_.heads * shape_.head_size; }
    int64_t keys() const { return shape_.kv_heads * shape_.head_size; }

    // Normalise (or copy, without a weight) and round rows of x [rows, stride] for `w`.
    const Inputs& prepare(Thread& t, const Linear& w, const float* x, int64_t rows, const float* norm) {
        const int64_t stride = norm ? padded(shape_.dim) : padded(w.width);
        float* const spare = t.own.row.get(padded(shape_.dim));
        const auto fill = [&](Prepared& into, int64_t row) {
            const float* from = x + row * stride;
            if (norm) rms_norm(from, norm, shape_.dim, shape_.eps, spare), from = spare;
            into.fill(w, row, from);
        };
        if (rows <= kAlone) {
            t.own.prepared.shape(w, rows);
            for (int64_t row = 0; row < rows; row++) fill(t.own.prepared, row);
            t.counter++;
            return t.own.prepared.inputs;
        }
        if (t.id == 0) prepared_.shape(w, rows);
        wait(t);
        share(t, rows, [&](int64_t row) { fill(prepared_, row); });
        wait(t);
        return prepared_.inputs;
    }

    // take(strip, row, values [64]) for each strip of w and row of x.
    template <class Take> void multiply(Thread& t, const Linear& w, const Inputs& x, int64_t rows, Take take) {
        float* const out = t.own.strip.get(kRows * kStrip);
        std::atomic<int64_t>& claimed = *t.counter++;
        const int64_t strips = (w.rows + kStrip - 1) / kStrip;
        // the next one is claimed before this one is done, so that its beginning can be fetched
        for (int64_t strip = claimed.fetch_add(1, std::memory_order_relaxed), next; strip < strips; strip = next) {
            next = claimed.fetch_add(1, std::memory_order_relaxed);
            const uint8_t* after = next < strips ? strip_at(w, next) : nullptr;
            for (int64_t from = 0; from < rows; from += kRows) {
                const int64_t count = std::min(rows - from, kRows);
                multiply_strip(w, strip, x.from(from), count, after, out);
                for (int64_t row = 0; row < count; row++) take(strip, from + row, out + row * kStrip);
            }
        }
    }

    void score(Thread& t, const float* states, int64_t rows, float* logits) {
        const Inputs& inputs = prepare(t, model_.head, states, rows, nullptr);
        multiply(t, model_.head, inputs, rows, [&](int64_t strip, int64_t row, const float* values) {
            const int64_t left = shape_.vocab - strip * kStrip;
            memcpy(logits + row * shape_.vocab + strip * kStrip, values, (left < kStrip ? left : kStrip) * 4);
        });
    }
};

void Decoder::cut(std::vector<Tokens>& tiles, bool last) {
    const int64_t together = std::max<int64_t>(1, kQueries / (shape_.heads / shape_.kv_heads));
    int64_t out = 0;
    tiles.clear();
    for (int64_t row = 0; row < pass_->rows; row++) {
        const int64_t begin = last ? pass_->counts[row] - pass_->scored[row] : 0;
        for (int64_t first = begin; first < pass_->counts[row]; first += together) {
            const int64_t count = std::min(together, pass_->counts[row] - first);
            tiles.push_back({row, first, count, out});
            out += count;
        }
    }
}

void Decoder::plan(const Pass& pass) {
    pass_ = &pass;
    row_of_.clear(), first_of_.clear(), chosen_.clear();
    for (int64_t row = 0; row < pass.rows; row++) {
        first_of_.push_back(row_of_.size());
        row_of_.insert(row_of_.end(), pass.counts[row], row);
        for (int64_t i = pass.counts[row] - pass.scored[row]; i < pass.counts[row]; i++)
            chosen_.push_back(first_of_[row] + i);
    }
    cut(tiles_, false), cut(last_tiles_, true);
    const int64_t tokens = pass.tokens, dim = padded(shape_.dim);
    x_.get(tokens * dim), last_.get(std::max<int64_t>(1, pass.wanted) * dim);
    qkv_.get(tokens * padded(queries() + 2 * keys()));
    mixed_.get(tokens * padded(queries())), hidden_.get(tokens * padded(shape_.hidden));
    for (auto& counter : counters_) counter.store(0, std::memory_order_relaxed);
}

// Rotate and keep one token's key and value of one group, and rotate its queries of that group.
void Decoder::place(Thread& t, int64_t layer, int64_t token, int64_t group) {
    const int64_t size = shape_.head_size, row = row_of_[token], repeat = shape_.heads / shape_.kv_heads;
    const int64_t at = pass_->starts[row] + token - first_of_[row];
    const float *cos = pass_->cos + at * (size / 2), *sin = pass_->sin + at * (size / 2);
    float* const all = wide(token);
    float* const spare = t.own.query.get(2 * kMostHead);
    rotate(all + queries() + group * size, cos, sin, size, 1.0f, spare);
    memcpy(spare + kMostHead, all + queries() + keys() + group * size, size * sizeof(float));
    memset(spare + kMostHead + size, 0, (pass_->cache.padded - size) * sizeof(float));
    const int32_t* table = pass_->tables + pass_->table_at[row];
    remember(pass_->cache, pass_->cache.head(layer, group), table, at, spare, spare + kMostHead);
    for (int64_t head = group * repeat; head < (group + 1) * repeat; head++) {
        rotate(all + head * size, cos, sin, size, 1.0f / sqrtf((float)size), spare);
        memcpy(all + head * size, spare, size * sizeof(float));
    }
}

void Decoder::attend(int64_t layer, const Tokens& tile, int64_t group) {
    const int64_t size = shape_.head_size, repeat = shape_.heads / shape_.kv_heads;
    const float* queries_of[kQueries];
    float* outs[kQueries];
    int64_t limits[kQueries];
    int count = 0;
    const int64_t head = pass_->cache.head(layer, group);
    const int32_t* table = pass_->tables + pass_->table_at[tile.row];
    const auto flush = [&] {
        if (pass_->cache.half)
            attend_some<true>(pass_->cache, head, table, count, queries_of, limits, outs);
        else
            attend_some<false>(pass_->cache, head, table, count, queries_of, limits, outs);
        count = 0;
    };
    for (int64_t i = 0; i < tile.count; i++)
        for (int64_t r = 0; r < repeat; r++) {
            queries_of[count] = wide(first_of_[tile.row] + tile.first + i) + (group * repeat + r) * size;
            outs[count] = mixed_.at((tile.out + i) * padded(queries())) + (group * repeat + r) * size;
            limits[count++] = pass_->starts[tile.row] + tile.first + i + 1;
            if (count == kQueries) flush();
        }
    if (count) flush();
}

void Decoder::layer(Thread& t, int64_t number) {
    const Layer& layer = model_.layers[number];
    const bool last = number + 1 == shape_.layers;
    const int64_t tokens = pass_->tokens, groups = shape_.kv_heads, dim = padded(shape_.dim);
    const Inputs& normed = prepare(t, layer.qkv, x_.at(0), tokens, layer.attention_norm);
    multiply(t, layer.qkv, normed, tokens, [&](int64_t strip, int64_t row, const float* values) {
        memcpy(wide(row) + strip * kStrip, values, vectors_in(layer.qkv, strip) * 64);
    });
    wait(t);
    const std::vector<Tokens>& tiles = last ? last_tiles_ : tiles_;
    const bool apart = tokens > pass_->rows || (int64_t)tiles.size() < pass_->rows;  // else a token has a tile
    if (apart) {
        share(t, tokens * groups, [&](int64_t i) { place(t, number, i / groups, i % groups); });
        wait(t);
    }
    share(t, tiles.size() * groups, [&](int64_t i) {
        const int64_t tile = tiles.size() - 1 - i / groups;  // those with the longest way back first
        if (!apart) place(t, number, tile, i % groups);
        attend(number, tiles[tile], i % groups);
    });
    float* x = x_.at(0);
    int64_t rows = tokens;
    if (last) {  // from here on only rows whose scores are wanted go on
        x = last_.at(0), rows = pass_->wanted;
        for (int64_t i = t.id; i < rows; i += t.count)
            memcpy(x + i * dim, x_.at(chosen_[i] * dim), dim * sizeof(float));
    }
    wait(t);
    const auto add = [&](int64_t strip, int64_t row, const float* values) {  // both are [dim, .]: cut alike
        float* const to = x + row * dim + strip * kStrip;
        for (int i = 0; i < vectors_in(layer.out, strip) * kLanes; i += kLanes)
            store(to + i, load<Vec>(to + i) + load<Vec>(values + i));
    };
    multiply(t, layer.out, prepare(t, layer.out, mixed_.at(0), rows, nullptr), rows, add);
    wait(t);
    multiply(t, layer.gate_up, prepare(t, layer.gate_up, x, rows, layer.ffn_norm), rows,
             [&](int64_t strip, int64_t row, const float* values) {
                 float* const to = hidden_.at(row * padded(shape_.hidden) + strip * (kStrip / 2));
                 const int half = vectors_in(layer.gate_up, strip) * kLanes / 2;
                 for (int i = 0; i < half; i += kLanes) {
                     const Vec gate = load<Vec>(values + i);
                     store(to + i, gate / (exponential(-gate) + 1.0f) * load<Vec>(values + half + i));
                 }
             });
    wait(t);
    multiply(t, layer.down, prepare(t, layer.down, hidden_.at(0), rows, nullptr), rows, add);
    wait(t);
}

void Decoder::run(const Pass& pass) {
    plan(pass);
    const int64_t dim = shape_.dim, wide = padded(dim);
#pragma omp parallel num_threads(shape_.threads)
    {
        Thread t{omp_get_thread_num(), omp_get_num_threads(), scratch_[omp_get_thread_num()], counters_.data()};
        for (int64_t i = t.id; i < pass.tokens; i += t.count) {
            float* const to = x_.at(i * wide);
            for (int64_t d = 0; d < dim; d++) {
                const int64_t at = (int64_t)pass.ids[i] * dim + d;
                to[d] = model_.embedding_half ? half_at(model_.embedding, at) : ((const float*)model_.embedding)[at];
            }
            memset(to + dim, 0, (wide - dim) * sizeof(float));
        }
        wait(t);
        for (int64_t number = 0; number < shape_.layers; number++) {
            t.counter = counters_.data() + number * kLoops;
            layer(t, number);
        }
        for (int64_t i = t.id; i < pass.wanted; i += t.count)
            rms_norm(last_.at(i * wide), model_.norm, dim, shape_.eps, pass.states + i * wide);
        if (pass.logits) {
            wait(t);
            t.counter = counters_.data() + shape_.layers * kLoops;
            score(t, pass.states, pass.wanted, pass.logits);
        }
    }
}

void Decoder::head(const float* states, int64_t rows, float* logits) {
    for (auto& counter : counters_) counter.store(0, std::memory_order_relaxed);
#pragma omp parallel num_threads(shape_.threads)
    {
        Thread t{omp_get_thread_num(), omp_get_num_threads(), scratch_[omp_get_thread_num()], counters_.data()};
        score(t, states, rows, logits);
    }
}

}  // namespace herd

extern "C" {

void* herd_open(const Model* model) { return new herd::Decoder(*model); }
void herd_close(void* decoder) { delete (herd::Decoder*)decoder; }
void herd_run(void* decoder, const Pass* pass) { ((herd::Decoder*)decoder)->run(*pass); }
void herd_head(void* decoder, const float* states, int64_t rows, float* logits) {
    ((herd::Decoder*)decoder)->head(states, rows, logits);
}

}
