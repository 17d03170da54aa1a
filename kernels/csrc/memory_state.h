// What the kernels of csrc/level/memory*.cpp share: their argument, the features, and an event's scratch memory
// (kernels/memory/reference.py is the definition).
//
// Evidence is scattered over the catalogue, so it is gathered into a dense array of eight floats per row, and another
// for the features that only a user's own rows have. Rows that have some are listed in `touched`, turned into
// features in place, and cleared when the event is done. The features that do not depend on the query (`standing`) are
// a dense matrix. The best rows by the weighted sum are rescored by a small network (shortlist.h).
#pragma once

#include <math.h>
#include <string.h>

#include "logs.h"
#include "shortlist.h"

// The argument, laid out as in kernels/memory/cpp.py.
struct MemoryCall {
    // The memory: `stride` rows of `width` neighbours each.
    int64_t stride, num_rows, width, num_buckets;
    int32_t *neighbour_row, *num_neighbours;
    float *after, *before, *direct, *weight;
    float *seen_V, *heat_HV;
    int64_t *first_V, *last_V;
    float *gain_BF, *square_BF;
    float *shortlist_weight, *shortlist_square, *shortlist_norm;
    double* clock;
    uint8_t* dirty_V;
    uint8_t* moved_VB;  // a bit for each neighbour
    int32_t* recent;    // the rows of the last RECENT choices
    // Groups of items, of which 0 is none: `num_columns` for each row, of `num_groups` each.
    int64_t num_columns, num_groups;
    int32_t *group_VC, *group_next;  // NEXT_GROUPS of each group
    float *group_count, *group_seen, *group_total, *group_share;
    // What followed two rows: `num_pairs` slots, a power of two or none, of NEXT_OF_PAIR rows.
    int64_t num_pairs;
    int32_t *pair_row, *pair_next;
    float* pair_count;
    uint8_t *pair_dirty, *pair_moved;
    // Choices by the time of day: NUM_HOURS of each row, or none.
    int64_t num_hours;
    float* hour_VH;
    // The events.
    int64_t num_events, logit_stride;
    const int32_t* target_R;  // 0: the target has no row
    const uint8_t* chosen_R;  // 0: only met; 1: predicted, learned and counted; 2: counted alone
    const float* weight_R;    // how much each choice counts and teaches; null: 1 each
    const int32_t *past_rows, *met_rows;
    const int64_t *past_begin_R, *past_end_R, *met_begin_R, *met_end_R, *past_ms, *now_ms_R;
    const int32_t* shown_rows;  // met, and not chosen
    const int64_t *shown_begin_R, *shown_end_R;
    const int32_t* group_RC;  // the groups of each event's item, 0: as known; null: all as known
    float* logit_AV;          // a row for each event to predict
    int32_t *rank_R, *model_rank_R, *count_rank_R;
    float* loss_R;
    // The rules.
    double seen_growth, heat_growth[3], repeat_decay;
    float gain_rate, gain_decay, weight_rate, shortlist_rate, shortlist_decay;
    int32_t exclude;  // what was met is left out: 0 never, 1 always, 2 if the stream has hardly any repeats
    int32_t learn;    // 0: only score all events; logit_AV becomes the scores and nothing else changes
};

HEADRACE_BEGIN

constexpr int NUM_STANDING = 8, NUM_GATHERED = 8, NUM_OWN = 8, NUM_EVIDENCE = NUM_GATHERED + NUM_OWN, NUM_HEAT = 3;
constexpr int MODEL = NUM_STANDING + NUM_EVIDENCE, LIFT = MODEL + 1, PAIR = LIFT + 1, NUM_PAIRED = 2,
              NUM_FEATURES = PAIR + NUM_PAIRED;
constexpr int LEAD = NUM_FEATURES, IS_OWN = LEAD + 1, LENGTH = IS_OWN + 1, PAUSE = LENGTH + 1, NUM_SEEN = PAUSE + 1;
constexpr int OWN_STRIDE = NUM_OWN;  // a whole vector
enum Standing { LOG_SEEN, HEAT, AGE = HEAT + NUM_HEAT, IDLE, RARITY, HOURLY };
enum Evidence { FOLLOWS, CHAIN, WIDE, AFTER, BEFORE, LEARNED, DIRECT, THREADS };
// Follow the gathered evidence.
enum Own { OWN_COUNT, OWN_RECENCY, OWN_VISIT, OWN_SINCE, SHOWN_COUNT, SHOWN_RECENCY, OWN_NEXT, OWN_HOUR };
enum Clock { EVENTS, SEEN_SCALE, HEAT_SCALE, REPEATS = HEAT_SCALE + NUM_HEAT, CHOICES, BEGUN, CONTINUED, NEWEST_MS };
constexpr int FOLLOWS_LAGS = 10, CHAIN_LAGS = 20, WIDE_LAGS = 60, NEAR_LAGS = 6, LEARNED_LAGS = 40, COUNT_LAGS = 20;
constexpr float FOLLOWS_DECAY = .8f, CHAIN_DECAY = .9f, WIDE_DECAY = .98f, NEAR_DECAY = .5f, LEARNED_DECAY = .95f,
                COUNT_DECAY = .9f;
constexpr float THREADS_DECAY = .97f, DIRECT_COUNT_DECAY = .05f;
constexpr float FOLLOWS_SCALE = 100.f, COSINE_SCALE = 1000.f, HEAT_SCALES[NUM_HEAT] = {10.f, 10.f, 1.f},
                TIME_SHARE = .3f;
constexpr int RECENT = 512, MOST_MATCHED = 3;
constexpr float MATCHED = 4.f;
enum GroupPart { USUAL, NEXT, OWN, GROUP_PARTS };
constexpr int NEXT_GROUPS = 16, GROUP_LAGS = 20, NEXT_OF_PAIR = 8, NUM_HOURS = 6;
constexpr float PAIR_SCALE = 100.f, HOUR_PRIOR = 5.f;
constexpr float OWN_GROUP_DECAY = .9f, GROUP_SHARE_DECAY = .998f;
constexpr uint8_t CHANGED = 0xFF;  // a bit for each reader that copies changed rows
constexpr float LENGTH_SCALE = .25f, SINCE_SHARE = .1f;
constexpr int64_t VISIT_MS = 30 * 60 * 1000, MINUTE_MS = 60 * 1000, DAY_MS = 24 * 60 * MINUTE_MS, AROUND_MINUTES = 120;
constexpr int64_t WEEK_MS = 7 * DAY_MS, AROUND_WEEK = 720, WEEK_SHARE = 8;
constexpr double RESCALE_AT = 1e12, FEW_REPEATS = .02, PRIOR_CHOICES = 20., LEAST_ACROSS = .2, PRIOR_VISITS = 20.;
// Of a count beside a row's own: the most that it gives as a share, and the least of that row's that it is divided by.
constexpr float MOST_SHARE = 2.f, LEAST_SEEN = 1e-37f;
constexpr float OUT = -1e30f;

typedef float v8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));

HEADRACE_INLINE vf log1p_of(vf x) { return log_of<vf, vi>(x + 1.0f); }
HEADRACE_INLINE float log1p_one(float x) { return log1p_of(splat(x))[0]; }

HEADRACE_INLINE v8 load8(const float* p) {
    v8 v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
HEADRACE_INLINE void store8(float* p, v8 v) { __builtin_memcpy(p, &v, sizeof v); }
HEADRACE_INLINE float sum8(v8 v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

struct Scratch {
    float *standing, *evidence, *own, *paired, *score, *push, *inverse_root, *closed, *lift;
    int32_t* touched;
    uint8_t* marked;
    int32_t* slot = nullptr;  // one above where a touched row has its evidence; null: at the row's own number
    int64_t num_touched, padded;
    float *lift_G, *lift_base;  // memory_groups.h
    int32_t* lifted;
    int64_t num_lifted = 0;
    float pause;  // time since the user's last choice
    float gain[NUM_FEATURES];
    Shortlist<NUM_SEEN>* shortlist;
};

// A thread's per-row scratch memory: all zero between calls.
struct Blank {
    float *evidence = nullptr, *own = nullptr, *paired = nullptr;
    uint8_t* bytes = nullptr;  // marked, then barred
    int64_t num_rows = 0;
    ~Blank() { clear(); }
    void clear() {
        free(evidence);
        free(own);
        free(paired);
        free(bytes);
        evidence = own = paired = nullptr, bytes = nullptr, num_rows = 0;
    }
    bool at_least(int64_t rows) {
        if (rows <= num_rows) return true;
        clear();
        rows += rows / 4;  // so that a catalogue that grows does not get new pages with each item
        evidence = static_cast<float*>(calloc(rows * NUM_GATHERED, sizeof(float)));
        own = static_cast<float*>(calloc(rows * OWN_STRIDE, sizeof(float)));
        paired = static_cast<float*>(calloc(rows * NUM_PAIRED, sizeof(float)));
        bytes = static_cast<uint8_t*>(calloc(rows * 2, 1));
        if (!evidence || !own || !paired || !bytes) return clear(), false;
        num_rows = rows;
        return true;
    }
};

HEADRACE_END
