// The argument of the softmax losses, laid out as in kernels/softmax/cpp_loss.py.
#pragma once

#include <stdint.h>

struct SoftmaxCall {
    const void *query_RD, *table_UD;
    int64_t num_queries, num_rows, width, num_negatives;
    const int64_t* target_R;
    const int64_t* negatives;                       // (S,), or (R, S) for lists; null: all rows of the table
    const uint8_t* valid_V;                         // with no negatives: which rows compete; null: all
    const float *log_q_target_R, *log_q_negatives;  // or null
    const float* weight_R;                          // of each query's loss in the gradients; null: 1
    float* loss_R;
    float* coefficient_R;  // probability of the target - 1: for the target row's gradient
    float* log_sum_R;      // log of the sum over target and negatives of e^score
    float *grad_query_RD, *grad_negative_SD, *grad_table_UD;  // each may be null: not needed
    float inverse_temperature, eps;
    int32_t type, normalize, mask_hits, num_threads;  // type: 0 float, 1 bfloat16
};
