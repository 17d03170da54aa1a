// The HSTU layer around its attention: x -> LayerNorm -> projection (pre-activations z), and
// attended -> LayerNorm * SiLU(z_u) -> projection -> dropout -> + x; both with their backward passes.
//
// Blocks of ROWS tokens stay in the cache from the norm to the product. LayerNorm and SiLU are recomputed in the backward
// pass; what is kept between the passes is x, z and the attention's output. Gradients of weights are summed per chunk of
// tokens, the chunks in their order: the same bits for any number of threads.
#include "layer.h"
#include "simd.h"

HEADRACE_BEGIN

constexpr int64_t ROWS = 48;
constexpr int64_t PAD = 48;  // of widths: a multiple of W and of MR
constexpr int64_t MAX_CHUNKS = 16;

// C[ROWS, n] = or += A[rows, k] B[k, n], panel by panel so that B's stays in the first cache.
inline void multiply(const float* a, int64_t a_row, int64_t a_step, int64_t rows, const float* b, int64_t ldb, int64_t k, float* c, int64_t ldc,
                     int64_t n, bool add) {
    for (int64_t column = 0; column < n; column += NV_MAX * W) {
        const int64_t vectors = min64(NV_MAX, (n - column + W - 1) / W);
        for (int64_t r = 0; r < rows; r += MR) gemm_rows(a + r * a_row, a_row, a_step, b + column, ldb, k, c + r * ldc + column, ldc, vectors, add);
    }
}

// A (rows, columns) matrix with padded columns; or its transpose.
float* padded(Arena& arena, const float* from, int64_t rows, int64_t columns, bool transposed) {
    const int64_t out_rows = transposed ? columns : rows, width = transposed ? rows : columns, pad = round_up(width, PAD);
    float* to = arena.get<float>(out_rows * pad);
    if (!arena.base) return to;
    for (int64_t r = 0; r < out_rows; ++r) {
        for (int64_t c = 0; c < width; ++c) to[r * pad + c] = transposed ? from[c * columns + r] : from[r * columns + c];
        for (int64_t c = width; c < pad; ++c) to[r * pad + c] = 0.0f;
    }
    return to;
}

float* padded_vector(Arena& arena, const float* from, int64_t count) { return padded(arena, from, from ? 1 : 0, count, false); }

HEADRACE_INLINE vf inside(int64_t column, int64_t width, vf x) {  // zero past the width
    return column + W <= width ? x : keep(iota() + static_cast<int32_t>(column) < static_cast<int32_t>(width), x);
}

// (x - mean) / sqrt(variance + eps) of rows; keeps 1 / sqrt(...) if asked.
template <typename T>
void normalize(const T* x, int64_t stride, int64_t count, int64_t width, float eps, float* to, int64_t pad, float* inverse) {
    for (int64_t r = 0; r < count; ++r) {
        float* row = to + r * pad;
        vf total = zero();
        for (int64_t c = 0; c < width; c += W) {
            const vf value = load_some(x + r * stride + c, width - c);
            store(row + c, value);
            total += value;
        }
        const float mean = sum(total) / static_cast<float>(width);
        vf squares = zero();
        for (int64_t c = 0; c < width; c += W) {
            const vf centred = inside(c, width, load(row + c) - mean);
            store(row + c, centred);
            squares += centred * centred;
        }
        const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + eps);
        for (int64_t c = 0; c < width; c += W) store(row + c, load(row + c) * scale);
        if (inverse) inverse[r] = scale;
    }
}

// Gradient through `normalize` in place: d -> (d - mean(d) - n mean(d n)) / sqrt(...).
inline void normalize_backward(const float* normalized, const float* inverse, int64_t count, int64_t width, float* d, int64_t pad) {
    for (int64_t r = 0; r < count; ++r) {
        const float* n = normalized + r * pad;
        float* row = d + r * pad;
        vf plain = zero(), along = zero();
        for (int64_t c = 0; c < width; c += W) {
            plain += load(row + c);
            along += load(row + c) * load(n + c);
        }
        const float mean = sum(plain) / static_cast<float>(width), slope = sum(along) / static_cast<float>(width);
        for (int64_t c = 0; c < width; c += W) store(row + c, inside(c, width, (load(row + c) - mean - load(n + c) * slope) * inverse[r]));
    }
}

HEADRACE_INLINE vu mix(vu h) {
    h ^= h >> 16;
    h *= 0x7FEB352Du;
    h ^= h >> 15;
    h *= 0x846CA68Bu;
    return h ^ (h >> 16);
}

// The dropout of kernels/layer/dropout.py.
HEADRACE_INLINE vf drop(const HeadraceLayer& a, int64_t token, int64_t column, vf x) {
    if (a.dropout_threshold == 0) return x;
    const uint64_t seed = static_cast<uint64_t>(a.seed);
    const uint32_t base = static_cast<uint32_t>(token) * 0x9E3779B1u + static_cast<uint32_t>(seed);
    vu h = ((vu)iota() + static_cast<uint32_t>(column)) * 0x85EBCA77u + base;
    h = mix(mix(h) + (static_cast<uint32_t>(seed >> 32) + 0xC2B2AE3Du));
    const vi kept = (vi)(h >> 8) >= static_cast<int32_t>(a.dropout_threshold);
    return keep(kept, x * static_cast<float>(a.dropout_scale));
}

HEADRACE_INLINE vf silu(vf x) { return x * sigmoid(x); }
HEADRACE_INLINE vf silu_slope(vf x) {
    const vf gate = sigmoid(x), activated = x * gate;
    return gate + activated - activated * gate;
}

// Chunks of tokens: a function of their number alone.
inline int64_t chunk_rows(int64_t tokens) { return max64(1024 / ROWS * ROWS + ROWS, round_up((tokens + MAX_CHUNKS - 1) / MAX_CHUNKS, ROWS)); }

struct Sums {  // one chunk's gradients of the weights
    float *weight, *bias, *norm_weight, *norm_bias;
    int64_t rows, columns, width;
    static int64_t size(int64_t rows, int64_t columns, int64_t width) {
        return round_up(rows, PAD) * round_up(columns, PAD) + round_up(columns, PAD) + 2 * round_up(width, PAD);
    }
    Sums(float* base, int64_t rows_, int64_t columns_, int64_t width_) : rows(rows_), columns(columns_), width(width_) {
        weight = base;
        bias = weight + round_up(rows, PAD) * round_up(columns, PAD);
        norm_weight = bias + round_up(columns, PAD);
        norm_bias = norm_weight + round_up(width, PAD);
    }
};

void add_up(const float* chunks, int64_t num_chunks, int64_t rows, int64_t columns, int64_t width, float* weight, float* bias, float* norm_weight,
            float* norm_bias) {
    const int64_t size = Sums::size(rows, columns, width), ld = round_up(columns, PAD);
    auto total = [&](int64_t at) {
        float x = 0;
        for (int64_t c = 0; c < num_chunks; ++c) x += chunks[c * size + at];
        return x;
    };
    const Sums at(nullptr, rows, columns, width);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) weight[r * columns + c] = total(r * ld + c);
    for (int64_t c = 0; bias && c < columns; ++c) bias[c] = total(at.bias - at.weight + c);
    for (int64_t c = 0; c < width; ++c) {
        norm_weight[c] = total(at.norm_weight - at.weight + c);
        norm_bias[c] = total(at.norm_bias - at.weight + c);
    }
}

// Runs body(thread's arena, first token, tokens, chunk) over blocks of tokens; chunks are whole units of work.
template <typename Layout, typename Body>
int over_blocks(const HeadraceLayer& a, const Layout& lay_out, const Body& body) {
    const int64_t per_chunk = chunk_rows(a.tokens), num_chunks = (a.tokens + per_chunk - 1) / per_chunk;
    bool failed = false;
#pragma omp parallel num_threads(a.num_threads) reduction(|| : failed)
    {
        Arena arena;
        lay_out(arena);
        failed = !arena.allocate();
        if (!failed) {
            auto scratch = lay_out(arena);
#pragma omp for schedule(dynamic, 1)
            for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
                const int64_t end = min64(a.tokens, (chunk + 1) * per_chunk);
                for (int64_t t = chunk * per_chunk; t < end; t += ROWS) body(scratch, t, min64(ROWS, end - t), chunk);
            }
        }
    }
    return failed ? 1 : 0;
}

// Normalized rows times the norm's weight plus its bias.
inline void affine(const float* normalized, const float* weight, const float* bias, int64_t count, int64_t width, float* to, int64_t pad) {
    for (int64_t r = 0; r < count; ++r)
        for (int64_t c = 0; c < width; c += W) store(to + r * pad + c, load(normalized + r * pad + c) * load(weight + c) + load(bias + c));
}

struct ProjectScratch {
    float *weight, *bias, *norm_weight, *norm_bias, *normed, *out;
};

template <typename T>
int project(const HeadraceLayer& a) {
    const int64_t columns = 2 * a.value + 2 * a.key, m_pad = round_up(a.model, PAD), c_pad = round_up(columns, PAD);
    auto lay_out = [&](Arena& arena) {
        ProjectScratch s;
        s.weight = padded(arena, a.uvqk_weight, a.model, columns, false);
        s.bias = padded_vector(arena, a.uvqk_bias, columns);
        s.norm_weight = padded_vector(arena, a.norm_in_weight, a.model);
        s.norm_bias = padded_vector(arena, a.norm_in_bias, a.model);
        s.normed = arena.get<float>(ROWS * m_pad);
        s.out = arena.get<float>(ROWS * c_pad);
        return s;
    };
    return over_blocks(a, lay_out, [&](ProjectScratch& s, int64_t t, int64_t count, int64_t) {
        normalize(static_cast<const T*>(a.x) + t * a.model, a.model, count, a.model, static_cast<float>(a.eps), s.normed, m_pad, nullptr);
        affine(s.normed, s.norm_weight, s.norm_bias, count, a.model, s.normed, m_pad);
        multiply(s.normed, m_pad, 1, count, s.weight, c_pad, a.model, s.out, c_pad, columns, false);
        T* z = static_cast<T*>(a.z_out) + t * columns;
        for (int64_t r = 0; r < count; ++r)
            for (int64_t c = 0; c < columns; c += W) {
                vf x = load(s.out + r * c_pad + c);
                if (a.uvqk_bias) x += load(s.bias + c);
                store_some(z + r * columns + c, x, columns - c);
            }
    });
}

struct OutputScratch {
    float *weight, *bias, *norm_weight, *norm_bias, *gated, *out;
};

template <typename T>
int output(const HeadraceLayer& a) {
    const int64_t columns = 2 * a.value + 2 * a.key, m_pad = round_up(a.model, PAD), v_pad = round_up(a.value, PAD);
    auto lay_out = [&](Arena& arena) {
        OutputScratch s;
        s.weight = padded(arena, a.out_weight, a.value, a.model, false);
        s.bias = padded_vector(arena, a.out_bias, a.model);
        s.norm_weight = padded_vector(arena, a.norm_out_weight, a.value);
        s.norm_bias = padded_vector(arena, a.norm_out_bias, a.value);
        s.gated = arena.get<float>(ROWS * v_pad);
        s.out = arena.get<float>(ROWS * m_pad);
        return s;
    };
    return over_blocks(a, lay_out, [&](OutputScratch& s, int64_t t, int64_t count, int64_t) {
        normalize(static_cast<const T*>(a.attended) + t * a.value, a.value, count, a.value, static_cast<float>(a.eps), s.gated, v_pad, nullptr);
        affine(s.gated, s.norm_weight, s.norm_bias, count, a.value, s.gated, v_pad);
        const T *u = static_cast<const T*>(a.z) + t * columns, *x = static_cast<const T*>(a.x) + t * a.model;
        for (int64_t r = 0; r < count; ++r)
            for (int64_t c = 0; c < a.value; c += W)
                store(s.gated + r * v_pad + c, load(s.gated + r * v_pad + c) * silu(load_some(u + r * columns + c, a.value - c)));
        multiply(s.gated, v_pad, 1, count, s.weight, m_pad, a.value, s.out, m_pad, a.model, false);
        T* y = static_cast<T*>(a.y) + t * a.model;
        for (int64_t r = 0; r < count; ++r)
            for (int64_t c = 0; c < a.model; c += W) {
                vf change = load(s.out + r * m_pad + c);
                if (a.out_bias) change += load(s.bias + c);
                change = drop(a, t + r, c, change);
                store_some(y + r * a.model + c, load_some(x + r * a.model + c, a.model - c) + change, a.model - c);
            }
    });
}

struct BackwardScratch {
    float *weight, *norm_weight, *norm_bias, *normalized, *affine, *dout, *din, *inverse;
};

// dy -> dattended, the U columns of dz, and the gradients of the output's weights.
template <typename T>
int output_backward(const HeadraceLayer& a) {
    const int64_t columns = 2 * a.value + 2 * a.key, m_pad = round_up(a.model, PAD), v_pad = round_up(a.value, PAD);
    const int64_t size = Sums::size(a.value, a.model, a.value), per_chunk = chunk_rows(a.tokens), num_chunks = (a.tokens + per_chunk - 1) / per_chunk;
    float* chunks = static_cast<float*>(calloc(static_cast<size_t>(num_chunks * size + 1), sizeof(float)));
    if (!chunks) return 1;
    auto lay_out = [&](Arena& arena) {
        BackwardScratch s;
        s.weight = padded(arena, a.out_weight, a.value, a.model, true);
        s.norm_weight = padded_vector(arena, a.norm_out_weight, a.value);
        s.norm_bias = padded_vector(arena, a.norm_out_bias, a.value);
        s.normalized = arena.get<float>(ROWS * v_pad);
        s.affine = arena.get<float>(ROWS * v_pad);
        s.din = arena.get<float>(ROWS * v_pad);
        s.dout = arena.get<float>(ROWS * m_pad);
        s.inverse = arena.get<float>(ROWS);
        return s;
    };
    const int result = over_blocks(a, lay_out, [&](BackwardScratch& s, int64_t t, int64_t count, int64_t chunk) {
        Sums sums(chunks + chunk * size, a.value, a.model, a.value);
        const T* dy = static_cast<const T*>(a.dy) + t * a.model;
        for (int64_t r = 0; r < count; ++r)
            for (int64_t c = 0; c < a.model; c += W) {
                const vf d = drop(a, t + r, c, load_some(dy + r * a.model + c, a.model - c));
                store(s.dout + r * m_pad + c, d);
                store(sums.bias + c, load(sums.bias + c) + d);
            }
        multiply(s.dout, m_pad, 1, count, s.weight, v_pad, a.model, s.din, v_pad, a.value, false);
        normalize(static_cast<const T*>(a.attended) + t * a.value, a.value, count, a.value, static_cast<float>(a.eps), s.normalized, v_pad, s.inverse);
        const T* z = static_cast<const T*>(a.z) + t * columns;
        T* dz = static_cast<T*>(a.dz) + t * columns;
        for (int64_t r = 0; r < count; ++r)
            for (int64_t c = 0; c < a.value; c += W) {
                const vf pre = load_some(z + r * columns + c, a.value - c), gate = sigmoid(pre), u = pre * gate;
                const vf n = load(s.normalized + r * v_pad + c), scaled = n * load(s.norm_weight + c) + load(s.norm_bias + c);
                const vf d = load(s.din + r * v_pad + c), dn = d * u;
                store(s.affine + r * v_pad + c, scaled * u);
                store_some(dz + r * columns + c, d * scaled * (gate + u - u * gate), a.value - c);
                store(sums.norm_weight + c, load(sums.norm_weight + c) + dn * n);
                store(sums.norm_bias + c, load(sums.norm_bias + c) + dn);
                store(s.din + r * v_pad + c, dn * load(s.norm_weight + c));
            }
        multiply(s.affine, 1, v_pad, a.value, s.dout, m_pad, count, sums.weight, m_pad, a.model, true);
        normalize_backward(s.normalized, s.inverse, count, a.value, s.din, v_pad);
        T* dattended = static_cast<T*>(a.dattended) + t * a.value;
        for (int64_t r = 0; r < count; ++r)
            for (int64_t c = 0; c < a.value; c += W) store_some(dattended + r * a.value + c, load(s.din + r * v_pad + c), a.value - c);
    });
    if (result == 0) add_up(chunks, num_chunks, a.value, a.model, a.value, a.d_out_weight, a.d_out_bias, a.d_norm_out_weight, a.d_norm_out_bias);
    free(chunks);
    return result;
}

// dz, dy -> dx, and the gradients of the input projection's weights.
template <typename T>
int project_backward(const HeadraceLayer& a) {
    const int64_t columns = 2 * a.value + 2 * a.key, m_pad = round_up(a.model, PAD), c_pad = round_up(columns, PAD);
    const int64_t size = Sums::size(a.model, columns, a.model), per_chunk = chunk_rows(a.tokens), num_chunks = (a.tokens + per_chunk - 1) / per_chunk;
    float* chunks = static_cast<float*>(calloc(static_cast<size_t>(num_chunks * size + 1), sizeof(float)));
    if (!chunks) return 1;
    auto lay_out = [&](Arena& arena) {
        BackwardScratch s;
        s.weight = padded(arena, a.uvqk_weight, a.model, columns, true);
        s.norm_weight = padded_vector(arena, a.norm_in_weight, a.model);
        s.norm_bias = padded_vector(arena, a.norm_in_bias, a.model);
        s.normalized = arena.get<float>(ROWS * m_pad);
        s.affine = arena.get<float>(ROWS * m_pad);
        s.din = arena.get<float>(ROWS * m_pad);
        s.dout = arena.get<float>(ROWS * c_pad);
        s.inverse = arena.get<float>(ROWS);
        return s;
    };
    const int result = over_blocks(a, lay_out, [&](BackwardScratch& s, int64_t t, int64_t count, int64_t chunk) {
        Sums sums(chunks + chunk * size, a.model, columns, a.model);
        const T* dz = static_cast<const T*>(a.dz) + t * columns;
        for (int64_t r = 0; r < count; ++r)
            for (int64_t c = 0; c < columns; c += W) {
                const vf d = load_some(dz + r * columns + c, columns - c);
                store(s.dout + r * c_pad + c, d);
                store(sums.bias + c, load(sums.bias + c) + d);
            }
        multiply(s.dout, c_pad, 1, count, s.weight, m_pad, columns, s.din, m_pad, a.model, false);
        normalize(static_cast<const T*>(a.x) + t * a.model, a.model, count, a.model, static_cast<float>(a.eps), s.normalized, m_pad, s.inverse);
        affine(s.normalized, s.norm_weight, s.norm_bias, count, a.model, s.affine, m_pad);
        multiply(s.affine, 1, m_pad, a.model, s.dout, c_pad, count, sums.weight, c_pad, columns, true);
        for (int64_t r = 0; r < count; ++r)
            for (int64_t c = 0; c < a.model; c += W) {
                const vf dn = load(s.din + r * m_pad + c);
                store(sums.norm_weight + c, load(sums.norm_weight + c) + dn * load(s.normalized + r * m_pad + c));
                store(sums.norm_bias + c, load(sums.norm_bias + c) + dn);
                store(s.din + r * m_pad + c, dn * load(s.norm_weight + c));
            }
        normalize_backward(s.normalized, s.inverse, count, a.model, s.din, m_pad);
        const T* dy = static_cast<const T*>(a.dy) + t * a.model;
        T* dx = static_cast<T*>(a.dx) + t * a.model;
        for (int64_t r = 0; r < count; ++r)
            for (int64_t c = 0; c < a.model; c += W)
                store_some(dx + r * a.model + c, load(s.din + r * m_pad + c) + load_some(dy + r * a.model + c, a.model - c), a.model - c);
    });
    if (result == 0) add_up(chunks, num_chunks, a.model, columns, a.model, a.d_uvqk_weight, a.d_uvqk_bias, a.d_norm_in_weight, a.d_norm_in_bias);
    free(chunks);
    return result;
}

HEADRACE_END

#define HEADRACE_LAYER_API(name, function)                       \
    HEADRACE_LEVEL_API(name)(const HeadraceLayer* a) {           \
        using namespace headrace::HEADRACE_LEVEL;                \
        return a->is_bf16 ? function<bf16>(*a) : function<float>(*a); \
    }

HEADRACE_LAYER_API(layer_project, project)
HEADRACE_LAYER_API(layer_output, output)
HEADRACE_LAYER_API(layer_output_backward, output_backward)
HEADRACE_LAYER_API(layer_project_backward, project_backward)
