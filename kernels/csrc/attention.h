// The arguments of HSTU attention, forward and backward, over jagged users; delta attention also has a cache.
// Mirrored field by field in kernels/attention/cpp.py: every field is eight bytes.
#pragma once

#include <stdint.h>

struct HeadraceTensor {  // (rows, heads, width), width contiguous; strides in elements
    void* data;
    int64_t row, head;
};

struct HeadraceAttention {
    int64_t num_users, num_heads, qk_dim, v_dim, num_threads;
    int64_t is_bf16;
    double scale;  // 1 / norm_len
    HeadraceTensor q, k, v, cache_k, cache_v, out;
    const int64_t* offsets;                    // (B+1,)
    const int64_t *cache_start, *cache_len;    // (B,) or null
    const int64_t *num_context, *num_targets;  // (B,) or null
    const float *pos_bias, *time_bias;         // (pos_heads, num_pos), (time_heads, num_buckets) or null
    int64_t num_pos, pos_heads, num_buckets, time_heads;
    // For each user, space for (queries, round_up(keys, 64)) of uint8 or uint16, filled from its start; then one byte
    // per user, 1 = monotone; then, from `bucket_index_at` on, one int32 per query: its row in its user's space.
    const void* buckets;
    int64_t bucket_bytes;
    HeadraceTensor grad, dq, dk, dv;  // backward
    int64_t cache_grad;   // 1: also gradients of the cached keys, in the rows of dk and dv before those of the new ones
    float *dpos, *dtime;  // of the shapes of the biases, written
};

struct HeadraceBuckets {
    int64_t num_users, num_threads, num_thresholds, bucket_bytes;
    const int64_t* offsets;
    const int64_t *cache_start, *cache_len;
    const int64_t *query_time, *key_time, *cache_time;
    const int64_t* num_context;
    const int64_t* thresholds;
    void* buckets;
};

static inline int64_t bucket_index_at(int64_t rows_end, int64_t bucket_bytes, int64_t num_users) {
    return (rows_end * bucket_bytes + num_users + 3) / 4 * 4;
}
