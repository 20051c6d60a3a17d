/* The parts of a decoding step that are not a matrix product with the base model's weights, for float32 on a CPU.
 *
 * Plain C and OpenMP, so that it builds in a second wherever there is a compiler; kernels.py says what each function
 * computes, in torch, and is what runs where there is none. Adapters are read where they lie: nothing is gathered or
 * padded, however many differ and whatever their ranks.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float v8 __attribute__((vector_size(32), aligned(4)));
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define SMALL 16384 /* below so many elements a second thread costs more than it does */

static inline v8 load(const float *p) { return *(const v8 *)p; }
static inline float sum(v8 v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

/* e^x to 1e-7, as in Cephes; written so that a compiler makes vectors of it. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = floorf(x * 1.44269504088896341f + 0.5f);
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    union { int32_t i; float f; } power = {((int32_t)n + 127) << 23};
    return y * power.f;
}

static inline float dot(const float *a, const float *b, int64_t n) {
    v8 s0 = {0}, s1 = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        s0 += load(a + i) * load(b + i);
        s1 += load(a + i + 8) * load(b + i + 8);
    }
    float s = sum(s0 + s1);
    for (; i < n; i++) s += a[i] * b[i];
    return s;
}

/* bfloat16 is float32's upper half. */
typedef uint16_t h8 __attribute__((vector_size(16), aligned(2)));
typedef uint32_t u8 __attribute__((vector_size(32)));
static inline v8 widen8(const uint16_t *p) { return (v8)(__builtin_convertvector(*(const h8 *)p, u8) << 16); }
static inline float widen(uint16_t h) {
    union { uint32_t i; float f; } wide = {(uint32_t)h << 16};
    return wide.f;
}

static inline float dot_half(const uint16_t *a, const float *b, int64_t n) {
    v8 s0 = {0}, s1 = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        s0 += widen8(a + i) * load(b + i);
        s1 += widen8(a + i + 8) * load(b + i + 8);
    }
    float s = sum(s0 + s1);
    for (; i < n; i++) s += widen(a[i]) * b[i];
    return s;
}

static inline void norm(const float *x, const float *weight, float *out, int64_t n, float eps) {
    float scale = 1.0f / sqrtf(dot(x, x, n) / n + eps);
    for (int64_t i = 0; i < n; i++) out[i] = weight[i] * (x[i] * scale);
}

/* x += delta (if there is one); out = rms_norm(x). x, delta, out: (rows, n). */
void add_rms_norm(float *x, const float *delta, const float *weight, float *out, int64_t rows, int64_t n, float eps) {
#pragma omp parallel for if (rows * n > SMALL)
    for (int64_t t = 0; t < rows; t++) {
        float *row = x + t * n;
        if (delta)
            for (int64_t i = 0; i < n; i++) row[i] += delta[t * n + i];
        norm(row, weight, out + t * n, n, eps);
    }
}

/* out = silu(gate) * up. gate_up: (rows, 2n), out: (rows, n). */
void silu_mul(const float *gate_up, float *out, int64_t rows, int64_t n) {
#pragma omp parallel for if (rows * n > SMALL)
    for (int64_t t = 0; t < rows; t++) {
        const float *gate = gate_up + t * 2 * n, *up = gate + n;
        float *row = out + t * n;
        for (int64_t i = 0; i < n; i++) row[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
    }
}

static inline void rotate(float *head, const float *cosine, const float *sine, int64_t dim) {
    int64_t half = dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + half] = b * cosine[i + half] + a * sine[i + half];
    }
}

/* Turn queries and keys to their positions and put keys and values into the cache.
 * qkv: (rows, (heads + 2 kv_heads) dim), changed in place; cosine, sine: (positions, dim);
 * keys, values: (kv_heads, capacity, dim); q_norm, k_norm: (dim) or null. */
void rope_store(float *qkv, const float *cosine, const float *sine, const int64_t *positions, const int64_t *places,
                float *keys, float *values, const float *q_norm, const float *k_norm, int64_t rows, int64_t heads,
                int64_t kv_heads, int64_t dim, int64_t capacity, float eps) {
    int64_t width = (heads + 2 * kv_heads) * dim;
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t t = 0; t < rows; t++) {
        const float *c = cosine + positions[t] * dim, *s = sine + positions[t] * dim;
        for (int64_t h = 0; h < heads + kv_heads; h++) {
            float *head = qkv + t * width + h * dim;
            const float *weight = h < heads ? q_norm : k_norm;
            if (weight) norm(head, weight, head, dim, eps);
            rotate(head, c, s, dim);
        }
        for (int64_t h = 0; h < kv_heads; h++) {
            const float *key = qkv + t * width + (heads + h) * dim;
            int64_t place = (h * capacity + places[t]) * dim;
            memcpy(keys + place, key, dim * sizeof(float));
            memcpy(values + place, key + kv_heads * dim, dim * sizeof(float));
        }
    }
}

/* One query head over `length` keys and values. */
static void attend_head(const float *q, const float *k, const float *v, float *p, float *out, int64_t length,
                        int64_t dim, float scale) {
    float top = -INFINITY, total = 0.0f;
    for (int64_t j = 0; j < length; j++) {
        p[j] = dot(q, k + j * dim, dim) * scale;
        top = p[j] > top ? p[j] : top;
    }
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < length; j++) {
        p[j] = exponential(p[j] - top);
        total += p[j];
    }
    float inverse = 1.0f / total;
    int64_t d = 0;
    for (; d + 32 <= dim; d += 32) {
        v8 a0 = {0}, a1 = {0}, a2 = {0}, a3 = {0};
        for (int64_t j = 0; j < length; j++) {
            const float *row = v + j * dim + d;
            a0 += p[j] * load(row);
            a1 += p[j] * load(row + 8);
            a2 += p[j] * load(row + 16);
            a3 += p[j] * load(row + 24);
        }
        *(v8 *)(out + d) = a0 * inverse;
        *(v8 *)(out + d + 8) = a1 * inverse;
        *(v8 *)(out + d + 16) = a2 * inverse;
        *(v8 *)(out + d + 24) = a3 * inverse;
    }
    for (; d < dim; d++) {
        float a = 0.0f;
        for (int64_t j = 0; j < length; j++) a += p[j] * v[j * dim + d];
        out[d] = a * inverse;
    }
}

/* Attention of rows that are one token each, over their own part of the cache.
 * qkv as above; starts, lengths: (rows); out: (rows, heads dim). Returns 0, or 1 when there is no memory. */
int attend(const float *qkv, const float *keys, const float *values, const int64_t *starts, const int64_t *lengths,
           float *out, int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, int64_t capacity, float scale) {
    int64_t width = (heads + 2 * kv_heads) * dim, longest = 0;
    int failed = 0;
    for (int64_t t = 0; t < rows; t++) longest = lengths[t] > longest ? lengths[t] : longest;
#pragma omp parallel if (rows * heads * dim * longest > 4 * SMALL)
    {
        float *p = malloc(longest * sizeof(float));
        if (!p) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 3)
        for (int64_t task = 0; task < rows * heads; task++) {
            int64_t t = task / heads, h = task % heads, g = h / (heads / kv_heads);
            int64_t place = (g * capacity + starts[t]) * dim;
            if (p)
                attend_head(qkv + t * width + h * dim, keys + place, values + place, p, out + task * dim, lengths[t],
                            dim, scale);
        }
        free(p);
    }
    return failed;
}

/* What one adapter does to one fused projection: z = x a', then out[:, offset:offset+n] += z[:, r0:r0+r] b.
 * Its matrices are float32, or bfloat16 where `half` is set; sums are float32 in both cases. */
typedef struct {
    const void *a; /* (rank, inputs): the parts' A below each other */
    int64_t rank, parts, half;
    struct {
        const void *b; /* (r, n), scaled */
        int64_t r0, r, offset, n;
    } part[3];
} Projection;

#define A_ROWS 8
#define B_COLUMNS 256

/* z = x a' for ranks r0 to r1. */
static void project_down(const Projection *f, const float *x, float *z, int64_t rows, int64_t inputs, int64_t stride,
                         int64_t r0, int64_t r1) {
    for (int64_t t = 0; t < rows; t++)
        for (int64_t r = r0; r < r1; r++)
            z[t * stride + r] = f->half ? dot_half((const uint16_t *)f->a + r * inputs, x + t * inputs, inputs)
                                        : dot((const float *)f->a + r * inputs, x + t * inputs, inputs);
}

/* row += z b for columns c0 to c1, with b's numbers read by WIDE. */
#define ADD_ROWS(TYPE, WIDE)                                                                                        \
    {                                                                                                               \
        const TYPE *b = f->part[index].b;                                                                           \
        int64_t r = 0;                                                                                              \
        for (; r + 4 <= rank; r += 4, b += 4 * n) {                                                                 \
            float z0 = zt[r], z1 = zt[r + 1], z2 = zt[r + 2], z3 = zt[r + 3];                                       \
            _Pragma("omp simd") for (int64_t c = c0; c < c1; c++) row[c] +=                                         \
                (z0 * WIDE(b[c]) + z1 * WIDE(b[n + c])) + (z2 * WIDE(b[2 * n + c]) + z3 * WIDE(b[3 * n + c]));      \
        }                                                                                                           \
        for (; r < rank; r++, b += n)                                                                               \
            _Pragma("omp simd") for (int64_t c = c0; c < c1; c++) row[c] += zt[r] * WIDE(b[c]);                     \
    }

/* out += z b for columns c0 to c1 of one part. */
static void project_up(const Projection *f, int64_t index, const float *z, float *out, int64_t rows, int64_t outputs,
                       int64_t stride, int64_t c0, int64_t c1) {
    int64_t n = f->part[index].n, rank = f->part[index].r;
    for (int64_t t = 0; t < rows; t++) {
        const float *zt = z + t * stride + f->part[index].r0;
        float *row = out + t * outputs + f->part[index].offset;
        if (f->half) ADD_ROWS(uint16_t, widen)
        else ADD_ROWS(float, )
    }
}

/* Add to each segment of rows what its adapter adds.
 * x: (rows, inputs), out: (rows, outputs); segment s is rows starts[s] to starts[s] + lengths[s] with adapters[s], an
 * adapter's table of projections, of which number `which` is meant; z: scratch of (rows, stride), stride >= any rank.
 * Where there are segments for all threads each takes whole ones, and nobody waits for anybody; else they share one. */
void add_lora(const float *x, float *out, float *z, const Projection *const *adapters, int64_t which,
              const int64_t *starts, const int64_t *lengths, int64_t segments, int64_t inputs, int64_t outputs,
              int64_t stride) {
    if (segments >= 2 * omp_get_max_threads()) {
#pragma omp parallel for schedule(dynamic, 1)
        for (int64_t s = 0; s < segments; s++) {
            const Projection *f = adapters[s] + which;
            float *zs = z + starts[s] * stride;
            project_down(f, x + starts[s] * inputs, zs, lengths[s], inputs, stride, 0, f->rank);
            for (int64_t i = 0; i < f->parts; i++)
                project_up(f, i, zs, out + starts[s] * outputs, lengths[s], outputs, stride, 0, f->part[i].n);
        }
        return;
    }
    for (int64_t s = 0; s < segments; s++) {
        const Projection *f = adapters[s] + which;
        float *zs = z + starts[s] * stride, *row = out + starts[s] * outputs;
#pragma omp parallel if (f->rank * inputs * lengths[s] > SMALL / 4)
        {
#pragma omp for schedule(static)
            for (int64_t r0 = 0; r0 < f->rank; r0 += A_ROWS)
                project_down(f, x + starts[s] * inputs, zs, lengths[s], inputs, stride, r0, MIN(r0 + A_ROWS, f->rank));
            for (int64_t i = 0; i < f->parts; i++) {
                int64_t n = f->part[i].n;
#pragma omp for schedule(static) nowait
                for (int64_t c0 = 0; c0 < n; c0 += B_COLUMNS)
                    project_up(f, i, zs, row, lengths[s], outputs, stride, c0, MIN(c0 + B_COLUMNS, n));
            }
        }
    }
}
