// The arguments of the HSTU layer besides those of its attention. Mirrored in kernels/layer/args.py: every field is
// eight bytes. Row-major, contiguous: x, dx (tokens, model); y, dy (outputs, model); attended (outputs, value), written
// by the forward pass.
#pragma once

#include <stdint.h>

struct HeadraceLayer {
    int64_t tokens, model, value, key;  // value = H*E, key = H*D
    int64_t num_threads, is_bf16;
    double eps;
    int64_t dropout_threshold;  // hashes below it (of 2^24) are dropped; 0 = no dropout
    double dropout_scale;
    int64_t seed;
    // (B+1,) or null: where each user's tokens begin, if only the last ones have outputs: attend.offsets is then of
    // those, and attend.cache_len the number of tokens before them.
    const int64_t* token_offsets;
    const void *x, *attended, *dy;
    void *y, *dx;
    const void* z;        // only for layer_output: activated U (tokens, value)
    void* z_out;          // only for layer_project: activated U, V, Q, K (tokens, 2 value + 2 key)
    void *k_out, *v_out;  // layer_forward: keys (tokens, key) and values (tokens, value) of all tokens, or null
    // float32
    const float *norm_in_weight, *norm_in_bias, *uvqk_weight, *uvqk_bias, *norm_out_weight, *norm_out_bias, *out_weight,
        *out_bias;
    float *d_norm_in_weight, *d_norm_in_bias, *d_uvqk_weight, *d_uvqk_bias, *d_norm_out_weight, *d_norm_out_bias,
        *d_out_weight, *d_out_bias;
};
