// Ranks of targets and best rows over a whole table, chunk by chunk, without storing logits or sorting the catalogue. A
// row that does not compete for a query gets the score NaN, which is neither above, nor equal to, nor below anything.
// Threads own chunks of the table; counts are integers and the order of rows is total, so the number of threads changes
// nothing.
#include <math.h>
#include <omp.h>
#include <string.h>

#include "best_rows.h"
#include "tiles.h"

// The argument of both, laid out as in kernels/softmax/cpp_best.py.
struct RankCall {
    const void *query_RD, *table_VD;
    int64_t num_queries, num_rows, width, k;
    const int64_t* target_R;
    const uint8_t* valid_V;                            // or null
    const int64_t *exclude_rows, *exclude_offsets_R1;  // sorted within each query; or null
    int64_t *rank_R, *row_Rk;
    float* score_Rk;
    float eps;
    int32_t type, normalize, num_threads;
};

HEADRACE_BEGIN

constexpr int64_t CHUNK = 256;
constexpr int64_t BLOCK = 64;

struct Catalogue {
    const RankCall& call;
    Rows query, table;
    int64_t stride;
    float* unit_RD;
};

// A thread's working memory: a chunk of the table as panels, scores of a block of queries.
struct Chunk {
    int64_t first, num, num_padded;
    float *unit, *panels, *score;
};

inline int64_t chunk_floats(int64_t stride, int64_t width) { return CHUNK * (stride + width) + BLOCK * CHUNK; }

inline void load_chunk(const Catalogue& c, Chunk& chunk) {
    for (int64_t i = 0; i < chunk.num_padded; ++i) {
        float* unit = chunk.unit + i * c.stride;
        const int64_t row = chunk.first + i;
        if (i < chunk.num && (!c.call.valid_V || c.call.valid_V[row])) unit_row(c.table, row, unit);
        else
            for (int64_t d = 0; d < c.stride; ++d) unit[d] = NAN;
    }
    pack_panels(chunk.unit, chunk.num_padded, c.stride, c.call.width, 1.0f, chunk.panels);
}

// The first of a query's sorted excluded rows that is at or past `row`.
inline int64_t first_excluded(const RankCall& call, int64_t r, int64_t row) {
    int64_t low = call.exclude_offsets_R1[r], high = call.exclude_offsets_R1[r + 1];
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (call.exclude_rows[middle] < row) low = middle + 1;
        else high = middle;
    }
    return low;
}

inline void score_block(const Catalogue& c, const Chunk& chunk, int64_t first, int64_t num) {
    const RankCall& call = c.call;
    multiply_panels(num, chunk.num_padded / PANEL, call.width, c.unit_RD + first * c.stride, c.stride, chunk.panels,
                    chunk.score, CHUNK);
    for (int64_t i = 0; i < num; ++i) {
        float* score = chunk.score + i * CHUNK - chunk.first;
        const int64_t r = first + i;
        if (call.exclude_rows)
            for (int64_t e = first_excluded(call, r, chunk.first); e < call.exclude_offsets_R1[r + 1]; ++e) {
                const int64_t row = call.exclude_rows[e];
                if (row >= chunk.first + chunk.num) break;
                score[row] = NAN;
            }
        if (call.rank_R && call.target_R[r] >= chunk.first && call.target_R[r] < chunk.first + chunk.num)
            score[call.target_R[r]] = NAN;
    }
}

// Scores the i-th chunk of rows; `use` gets it with each query and that query's scores.
template <class Use>
inline void score_chunk(const Catalogue& c, int64_t i, float* scratch, Use use) {
    const RankCall& call = c.call;
    const int64_t left = call.num_rows - i * CHUNK;
    Chunk chunk = {i * CHUNK, left < CHUNK ? left : CHUNK, 0, scratch, nullptr, nullptr};
    chunk.num_padded = padded(chunk.num, PANEL);
    chunk.panels = chunk.unit + CHUNK * c.stride;
    chunk.score = chunk.panels + CHUNK * call.width;
    load_chunk(c, chunk);
    for (int64_t first = 0; first < call.num_queries; first += BLOCK) {
        const int64_t num = call.num_queries - first < BLOCK ? call.num_queries - first : BLOCK;
        score_block(c, chunk, first, num);
        for (int64_t r = 0; r < num; ++r) use(chunk, first + r, chunk.score + r * CHUNK);
    }
}

// The same chain of multiply-adds as in a tile, so that an equal row has an equal score.
inline float chain(const float* a, const float* b, int64_t width) {
    vf total = {};
    for (int64_t k = 0; k < width; ++k) total = fma(splat(a[k]), splat(b[k]), total);
    return total[0];
}

HEADRACE_INLINE int64_t count(vi truths) {  // of lanes that are -1
    int64_t lanes = 0;
    for (int i = 0; i < LANES; ++i) lanes -= truths[i];
    return lanes;
}

struct Counts {
    int64_t above, equal;
};

// The number of rows that may compete: valid rows, minus the query's excluded ones and its target.
inline int64_t num_competitors(const RankCall& call, int64_t r) {
    const int64_t target = call.target_R[r];
    int64_t num = 0;
    for (int64_t row = 0; row < call.num_rows; ++row) num += row != target && (!call.valid_V || call.valid_V[row]);
    if (!call.exclude_rows) return num;
    for (int64_t e = call.exclude_offsets_R1[r]; e < call.exclude_offsets_R1[r + 1]; ++e) {
        const int64_t row = call.exclude_rows[e];
        const bool repeated = e > call.exclude_offsets_R1[r] && call.exclude_rows[e - 1] == row;
        num -= !repeated && row != target && (!call.valid_V || call.valid_V[row]);
    }
    return num;
}

inline void count_scores(const float* score, int64_t num, float target, Counts& counts) {
    vi above = {}, equal = {};
    for (int64_t j = 0; j < num; j += LANES) {
        const vf s = load(score + j);
        above += s > splat(target);
        equal += s == splat(target);
    }
    counts.above += count(above);
    counts.equal += count(equal);
}

inline Catalogue catalogue(const RankCall& call, float* unit_RD) {
    const int64_t stride = padded(call.width, LANES);
    return {call,
            {call.query_RD, call.type, call.width, stride, call.normalize, call.eps},
            {call.table_VD, call.type, call.width, stride, call.normalize, call.eps},
            stride,
            unit_RD};
}

inline int rank(const RankCall& call) {
    const int64_t stride = padded(call.width, LANES), num_chunks = (call.num_rows + CHUNK - 1) / CHUNK;
    Scratch<float> unit_RD(call.num_queries * stride), target_score_R(call.num_queries);
    Scratch<Counts> counts_R(call.num_queries);
    if (!unit_RD.p || !target_score_R.p || !counts_R.p) return 1;
    const Catalogue c = catalogue(call, unit_RD.p);
    int failed = 0;
#pragma omp parallel num_threads(call.num_threads) reduction(| : failed)
    {
        Scratch<float> scratch(chunk_floats(stride, call.width));
        Scratch<Counts> mine(call.num_queries);
        failed |= !scratch.p || !mine.p;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < call.num_queries; ++r) {
            if (!scratch.p) continue;
            Rows query = c.query;
            query.normalize = 0;  // a query's length does not change ranks
            unit_row(query, r, c.unit_RD + r * stride);
            unit_row(c.table, call.target_R[r], scratch.p);
            target_score_R.p[r] = chain(c.unit_RD + r * stride, scratch.p, call.width);
            counts_R.p[r] = {};
        }
        if (mine.p) memset(mine.p, 0, call.num_queries * sizeof(Counts));
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < num_chunks; ++i) {
            if (!scratch.p || !mine.p) continue;
            score_chunk(c, i, scratch.p, [&](const Chunk& chunk, int64_t r, const float* score) {
                count_scores(score, chunk.num_padded, target_score_R.p[r], mine.p[r]);
            });
        }
        if (mine.p) {
#pragma omp critical(headrace_rank)
            for (int64_t r = 0; r < call.num_queries; ++r) {
                counts_R.p[r].above += mine.p[r].above;
                counts_R.p[r].equal += mine.p[r].equal;
            }
        }
    }
    for (int64_t r = 0; r < call.num_queries && !failed; ++r) {
        const Counts& n = counts_R.p[r];
        const bool undefined = target_score_R.p[r] != target_score_R.p[r];
        call.rank_R[r] = 1 + (undefined ? num_competitors(call, r) : n.above + (n.equal + 1) / 2);
    }
    return failed;
}

HEADRACE_INLINE void offer(Candidate* heap, int64_t k, Candidate one) {
    if (!worse(heap[0], one)) return;
    heap[0] = one;
    sift_down(heap, k, 0);
}

constexpr Candidate NOTHING = {-INFINITY, INT32_MAX};

inline void offer_scores(Candidate* heap, int64_t k, const float* score, int64_t num, int64_t first) {
    for (int64_t j = 0; j < num; j += LANES) {
        const vi better = load(score + j) >= splat(heap[0].score);
        uint64_t any = 0;
        for (int i = 0; i < LANES; i += 2) any |= ((const uint64_t*)&better)[i / 2];
        if (!any) continue;
        for (int i = 0; i < LANES; ++i)
            if (better[i]) offer(heap, k, {score[j + i], (int32_t)(first + j + i)});
    }
}

// Best first: repeatedly moves the worst to the end.
inline void write_sorted(Candidate* heap, int64_t k, float* scores, int64_t* rows) {
    for (int64_t size = k; size > 0; --size) {
        scores[size - 1] = heap[0].score;
        rows[size - 1] = heap[0].row == INT32_MAX ? -1 : heap[0].row;
        heap[0] = heap[size - 1];
        sift_down(heap, size - 1, 0);
    }
}

inline int best(const RankCall& call) {
    const int64_t stride = padded(call.width, LANES), num_chunks = (call.num_rows + CHUNK - 1) / CHUNK, k = call.k;
    Scratch<float> unit_RD(call.num_queries * stride);
    Scratch<Candidate> all(call.num_queries * k);
    if (!unit_RD.p || !all.p) return 1;
    const Catalogue c = catalogue(call, unit_RD.p);
    for (int64_t i = 0; i < call.num_queries * k; ++i) all.p[i] = NOTHING;
    int failed = 0;
#pragma omp parallel num_threads(call.num_threads) reduction(| : failed)
    {
        Scratch<float> scratch(chunk_floats(stride, call.width));
        Scratch<Candidate> mine(call.num_queries * k);
        failed |= !scratch.p || !mine.p;
        for (int64_t i = 0; mine.p && i < call.num_queries * k; ++i) mine.p[i] = NOTHING;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < call.num_queries; ++r) unit_row(c.query, r, c.unit_RD + r * stride);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < num_chunks; ++i) {
            if (!scratch.p || !mine.p) continue;
            score_chunk(c, i, scratch.p, [&](const Chunk& chunk, int64_t r, const float* score) {
                offer_scores(mine.p + r * k, k, score, chunk.num_padded, chunk.first);
            });
        }
        if (mine.p) {
#pragma omp critical(headrace_best)
            for (int64_t i = 0; i < call.num_queries * k; ++i)
                if (mine.p[i].row != INT32_MAX) offer(all.p + i / k * k, k, mine.p[i]);
        }
    }
    for (int64_t r = 0; r < call.num_queries && !failed; ++r)
        write_sorted(all.p + r * k, k, call.score_Rk + r * k, call.row_Rk + r * k);
    return failed;
}

HEADRACE_END

HEADRACE_LEVEL_API(softmax_rank)(const RankCall* call) { return headrace::HEADRACE_LEVEL::rank(*call); }
HEADRACE_LEVEL_API(softmax_best)(const RankCall* call) { return headrace::HEADRACE_LEVEL::best(*call); }
