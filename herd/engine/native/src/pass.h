// What is asked of the kernels, as plain values. herd/engine/native/library.py writes the same structures down.
#pragma once
#include "attention.h"
#include "linear.h"

extern "C" {

struct Shape {
    int64_t dim, layers, heads, kv_heads, head_size, hidden, vocab;
    float eps;
    int32_t threads;
};

struct Layer {
    const float* attention_norm;  // [dim, padded to 64 with zeros]
    const float* ffn_norm;
    herd::Linear qkv, out, gate_up, down;  // gate_up: in a strip, 32 rows of w1 and then the same 32 of w3
};

struct Model {
    Shape shape;
    const Layer* layers;
    const float* norm;
    herd::Linear head;
    const void* embedding;  // [vocab, dim]
    int32_t embedding_half;
};

// New tokens of all rows, one row after the other. A row's blocks are tables[table_at[row]] and those behind it.
struct Pass {
    int64_t tokens, rows, wanted;
    const int32_t *ids, *starts, *counts, *scored, *tables;
    const int64_t* table_at;
    herd::Cache cache;
    const float *cos, *sin;  // [positions, head_size / 2]
    float* states;           // [wanted, dim padded to 64], after the last norm, of the last `scored` tokens of each row
    float* logits;           // [wanted, vocab], or null
};

}
