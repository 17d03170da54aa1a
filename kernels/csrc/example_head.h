// What is known about a record of the sequences topic: the columns of `kernels.examples.HEAD`.
#pragma once

namespace headrace::head {

enum Head { kStatus, kOffset, kValueAt, kValueLen, kFlags, kEpoch, kNumber, kSegment, kSegmentLen, kFirst, kNum, kRowsAt,
            kUserAt, kUserLen, kEventMs, kUserFeaturesAt, kNumUserFeatures, kPartition, kNumHeads };

}
