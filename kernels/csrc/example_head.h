// The columns of a decoded record of the sequences topic: `kernels.examples.HEAD`.
#pragma once

namespace headrace::head {

enum Head {
    STATUS,
    OFFSET,
    VALUE_AT,
    VALUE_LEN,
    FLAGS,
    EPOCH,
    NUMBER,
    SEGMENT,
    SEGMENT_LEN,
    FIRST,
    NUM,
    ROWS_AT,
    USER_AT,
    USER_LEN,
    EVENT_MS,
    USER_FEATURES_AT,
    NUM_USER_FEATURES,
    PARTITION,
    NUM_NEW,
    NUM_FEEDBACK,
    FEEDBACK_AT,
    NAMES_AT,
    NAMES_LEN,
    RESUME_FROM,
    RECORD_MS,
    NUM_HEADS
};

}
