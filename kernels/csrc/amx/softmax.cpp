// Cross entropy against up to a few thousand shared negatives, with all three products on AMX tiles: the counterpart of
// `shared_small` in level/softmax.cpp. Everything but products is computed in float32. The negatives' gradient is
// summed transposed, so that the exponentials can be a right operand without being rearranged.
#include <omp.h>

#include "amx_tiles.h"
#include "softmax_block.h"

HEADRACE_BEGIN

// Negatives prepared for products: divided by the temperature for scores, unscaled for the queries' gradient.
struct NegativeTiles {
    int64_t num, num_padded, stride;
    Operand scored, summed;
    float* bias;
    int32_t* id;
};

// DEPTH negatives from `first` on.
template <int TERMS>
inline void pack_negatives(const Loss& loss, const NegativeTiles& n, int64_t first, float* unit) {
    memset(unit, 0, DEPTH * n.stride * sizeof(float));
    for (int64_t i = 0; i < DEPTH; ++i) {
        const int64_t s = first + i, row = s < n.num ? negative_at(loss, s) : -1;
        n.id[s] = (int32_t)row;
        n.bias[s] = row < 0 ? -INFINITY : loss.log_q_S ? -loss.log_q_S[s] : 0.0f;
        if (row >= 0) unit_row(loss.table, row, unit + i * n.stride);
    }
    const PaddedRows rows = {unit, n.stride};
    pack<TERMS>(rows, DEPTH, n.stride, RightRows<APART>{n.summed.at(0, first / DEPTH)});
    for (int64_t at = 0; at < DEPTH * n.stride; at += LANES)
        store(unit + at, load(unit + at) * loss.inverse_temperature);
    pack<TERMS>(rows, DEPTH, n.stride, RightTurned{n.scored.at(first / 16, 0)});
}

// A block's operands; `rows`: its queries, rounded up to whole steps of a sum.
struct BlockTiles {
    int64_t rows, ldc;
    Operand query, across;            // left operands: queries, and queries transposed
    Operand score_rows, score_pairs;  // e^(score - largest): left operand, and right operand of its transpose
};

// Two rows of scores → e^(score - shift), as operands; adds their sums to `total`.
template <int TERMS>
inline void exponentials_to_tiles(const float* score, int64_t ldc, int64_t num, const float* shift, int64_t row,
                                  const BlockTiles& t, float* total) {
    const vf by0 = splat(shift[0]), by1 = splat(shift[1]);
    word* rows = t.score_rows.at(row / 16, 0).tiles + row % 16 * 16;
    word* pairs = t.score_pairs.at(0, row / DEPTH).tiles + row % DEPTH / 2 * 16;
    vf total0 = {}, total1 = {};
    for (int64_t j = 0; j < num; j += DEPTH, rows += TILE, pairs += 2 * t.score_pairs.next) {
        const vf a = exp_negative(load(score + j) - by0), b = exp_negative(load(score + j + 16) - by0);
        const vf c = exp_negative(load(score + ldc + j) - by1), d = exp_negative(load(score + ldc + j + 16) - by1);
        total0 += a + b;
        total1 += c + d;
        store_words<TERMS>(rows, t.score_rows.apart, a, b);
        store_words<TERMS>(rows + 16, t.score_rows.apart, c, d);
        store_words<TERMS>(pairs, t.score_pairs.apart, a, c);
        store_words<TERMS>(pairs + t.score_pairs.next, t.score_pairs.apart, b, d);
    }
    total[0] += sum(total0);
    total[1] += sum(total1);
}

template <int TERMS>
inline void score_block(const NegativeTiles& n, Block& b, const BlockTiles& t) {
    pack<TERMS>(PaddedRows{b.unit, n.stride}, t.rows, n.stride, LeftRows{t.query});
    multiply_rows<TERMS, false>(t.rows / 16, n.num_padded / 16, n.stride / DEPTH, t.query, n.scored, b.score, t.ldc);
    for (int64_t i = 0; i < b.num; ++i)
        b.largest[i] = finish_scores(b.score + i * t.ldc, n.bias, n.id, n.num_padded, b.target_id[i], b.largest[i]);
    for (int64_t i = b.num; i < t.rows; ++i)
        b.largest[i] = INFINITY, b.target_score[i] = 0.0f;  // no query: exponentials of 0
    for (int64_t i = 0; i < t.rows; i += LANES)
        store(b.total + i, exp_negative(load(b.target_score + i) - load(b.largest + i)));
    for (int64_t i = 0; i < t.rows; i += 2)
        exponentials_to_tiles<TERMS>(b.score + i * t.ldc, t.ldc, n.num_padded, b.largest + i, i, t, b.total + i);
}

// (dimension, negative) tiles of all groups, summed in order, to rows of negatives [first, first + 16).
inline void write_negatives(const Loss& loss, const NegativeTiles& n, float* partial, int64_t num_groups, int64_t first,
                            float* rows) {
    const int64_t columns = n.num_padded / 16, size = n.num_padded * n.stride;
    for (int64_t d = 0; d < n.stride; d += 16) {
        float* total = partial + (d / 16 * columns + first / 16) * TILE;
        for (int64_t g = 1; g < num_groups; ++g) add_scaled(total, total + g * size, 1.0f, TILE);
        for (int64_t i = 0; i < 16; ++i)
            for (int64_t s = 0; s < 16; ++s) rows[s * n.stride + d + i] = total[i * 16 + s];
    }
    for (int64_t s = first; s < first + 16 && s < n.num; ++s)
        store_row(loss.grad_negative_SD + s * loss.table.width, rows + (s - first) * n.stride, loss.table.width);
}

template <int TERMS>
inline int shared_small(const Loss& loss, int num_threads) {
    const int64_t stride = loss.query.stride, num_padded = padded(loss.num_negatives, DEPTH);
    const int64_t size = num_padded <= 512 ? MAX_BLOCK : MAX_BLOCK / 2,
                  num_blocks = (loss.num_queries + size - 1) / size;
    int64_t num_groups = (4 << 20) / (num_padded * stride + 1);
    num_groups = num_groups < 4 ? 4 : num_groups > 16 ? 16 : num_groups;
    if (num_groups > num_blocks) num_groups = num_blocks > 0 ? num_blocks : 1;
    const int64_t apart = num_padded * stride / 2;
    Scratch<word> tiles(2 * TERMS * apart);
    Scratch<float> bias(num_padded), partial(loss.grad_negative_SD ? num_groups * num_padded * stride : 1);
    Scratch<int32_t> id(num_padded);
    if (!tiles.p || !bias.p || !id.p || !partial.p) return 1;
    const NegativeTiles n = {loss.num_negatives,
                             num_padded,
                             stride,
                             {tiles.p, stride / DEPTH * TILE, apart},
                             {tiles.p + TERMS * apart, num_padded / DEPTH * TILE, apart},
                             bias.p,
                             id.p};
    int failed = 0;
#pragma omp parallel num_threads(num_threads) reduction(| : failed)
    {
        TileRegisters registers;
        BlockTiles t;
        t.ldc = num_padded + 16;  // rows a power of two apart would compete for a few cache lines
        const int64_t query_size = size * stride / 2, score_size = size * num_padded / 2;
        Scratch<float> scratch(size * (3 * stride + t.ldc));
        Scratch<word> operands(2 * TERMS * (query_size + score_size));
        const bool ready = scratch.p && operands.p;
        failed |= !ready;
        Block b;
        b.unit = scratch.p;
        b.target = b.unit + size * stride;
        b.grad = loss.grad_query_RD ? b.target + size * stride : nullptr;
        b.score = scratch.p + 3 * size * stride;
        t.query = {operands.p, stride / DEPTH * TILE, query_size};
        t.across = {operands.p + TERMS * query_size, 0, query_size};
        t.score_rows = {t.across.tiles + TERMS * query_size, num_padded / DEPTH * TILE, score_size};
        t.score_pairs = {t.score_rows.tiles + TERMS * score_size, 0, score_size};
#pragma omp for schedule(static)
        for (int64_t s = 0; s < num_padded; s += DEPTH)
            if (ready) pack_negatives<TERMS>(loss, n, s, b.unit);
#pragma omp for schedule(dynamic, 1)
        for (int64_t g = 0; g < num_groups; ++g) {
            if (!ready) continue;
            float* sums = partial.p + g * num_padded * stride;
            if (loss.grad_negative_SD) memset(sums, 0, num_padded * stride * sizeof(float));
            for (int64_t block = num_blocks * g / num_groups; block < num_blocks * (g + 1) / num_groups; ++block) {
                b.first = block * size;
                b.num = loss.num_queries - b.first < size ? loss.num_queries - b.first : size;
                t.rows = padded(b.num, DEPTH);
                t.across.next = t.score_pairs.next = t.rows / DEPTH * TILE;
                memset(b.unit, 0, 2 * size * stride * sizeof(float));  // rows are padded beyond what `unit_row` writes
                begin_block(loss, b);
                score_block<TERMS>(n, b, t);
                if (b.grad)
                    multiply_rows<TERMS, false>(t.rows / 16, stride / 16, num_padded / DEPTH, t.score_rows, n.summed,
                                                b.grad, stride);
                end_block(loss, b);
                if (!loss.grad_negative_SD) continue;
                weigh_queries(loss, b);
                pack<TERMS>(PaddedRows{b.unit, stride}, t.rows, stride, LeftTurned{t.across});
                multiply_whole<TERMS, true>(stride / 16, num_padded / 16, t.rows / DEPTH, t.across, t.score_pairs,
                                            sums);
            }
        }
        if (loss.grad_negative_SD) {
#pragma omp for schedule(static)
            for (int64_t s = 0; s < num_padded; s += 16)
                if (ready) write_negatives(loss, n, partial.p, num_groups, s, b.unit);
        }
    }
    return failed;
}

HEADRACE_END

HEADRACE_LEVEL_API(softmax_shared_small)(const SoftmaxCall* c) {
    using namespace headrace::HEADRACE_LEVEL;
    Loss loss = loss_of(*c);
    loss.query.stride = loss.table.stride = padded(c->width, DEPTH);
    return c->type ? shared_small<1>(loss, c->num_threads) : shared_small<2>(loss, c->num_threads);
}
