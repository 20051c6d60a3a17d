/* Causal attention (Vaswani et al., 2017, arXiv:1706.03762) over the blocks of the KV cache. */
#pragma once
#include "model.h"
#include "vector.h"

/* A sum of thousands of float32 is made of partial sums: the error of a sum grows with its length. */
#define PARTIAL (8 * BLOCK) /* keys of a partial sum */

#define KEYS 8 /* that some queries are compared with at a time; a block of the KV cache is BLOCK of them */

/* Scores of `count` keys against the queries in the lanes. */
ALWAYS void compare(int count, const float *keys, const float *queries, float *p, int64_t dim) {
    vec s[KEYS];
    for (int j = 0; j < count; j++) s[j] = (vec){0};
    for (int64_t d = 0; d < dim; d++) {
        vec q = load(queries + d * LANES);
        _Pragma("GCC unroll 8") for (int j = 0; j < count; j++) s[j] = vec_fma(broadcast(keys[j * dim + d]), q, s[j]);
    }
    for (int j = 0; j < count; j++) store(p + j * LANES, s[j]);
}

/* out += s, and s = 0. */
ALWAYS void flush(int count, vec s[][2], float out[][PANEL]) {
    for (int q = 0; q < count; q++)
        for (int h = 0; h < 2; h++) {
            store(out[q] + h * LANES, load(out[q] + h * LANES) + s[q][h]);
            s[q][h] = (vec){0};
        }
}

/* Sums of PANEL columns of the values, weighted by `count` neighbouring lanes of p. table: the blocks of the values. */
ALWAYS void weigh(int count, const float *p, const float *values, const int64_t *table, int64_t length, int64_t dim,
                  float out[][PANEL]) {
    vec s[4][2];
    for (int q = 0; q < count; q++) s[q][0] = s[q][1] = (vec){0};
    memset(out, 0, 4 * sizeof *out);
    for (int64_t j0 = 0; j0 < length; j0 += BLOCK, p += BLOCK * LANES) {
        if (j0 % PARTIAL == 0) flush(count, s, out);
        const float *here = values + *table++ * BLOCK * dim;
        for (int64_t j = 0; j < MIN(BLOCK, length - j0); j++) {
            vec v0 = load(here + j * dim), v1 = load(here + j * dim + LANES);
            _Pragma("GCC unroll 4") for (int q = 0; q < count; q++) {
                vec weight = broadcast(p[j * LANES + q]);
                s[q][0] = vec_fma(weight, v0, s[q][0]);
                s[q][1] = vec_fma(weight, v1, s[q][1]);
            }
        }
    }
    flush(count, s, out);
}

/* Causal attention of up to LANES queries of one sequence that share a key head: query i is row i / group of the span
 * and head i % group of the group. work: LANES (dim + length) numbers. */
static void attend_block(const Model *m, const Span *span, const int64_t *table, int64_t q0, int64_t kv_head,
                         const float *qkv, int64_t width, const float *keys, const float *values, float *work,
                         float *out) {
    int64_t dim = m->dim, group = m->heads / m->kv_heads, count = MIN(LANES, span->rows * group - q0);
    int64_t before = span->length - span->rows, j;
    int64_t length = before + (q0 + count - 1) / group + 1, limit[LANES];
    float *queries = work, *p = work + LANES * dim, scale = 1.0f / sqrtf(dim);
    const float *source[LANES];
    memset(queries, 0, LANES * dim * sizeof(float));
    for (int64_t q = 0; q < LANES; q++) {
        int64_t row = span->first + (q0 + q) / group, head = kv_head * group + (q0 + q) % group;
        limit[q] = q < count ? before + (q0 + q) / group + 1 : length;
        source[q] = qkv + row * width + head * dim;
        if (q < count)
            for (int64_t d = 0; d < dim; d++) queries[d * LANES + q] = source[q][d] * scale;
    }
    keys += kv_head * m->capacity * dim, values += kv_head * m->capacity * dim;
    for (int64_t j0 = 0; j0 < length; j0 += BLOCK) {
        const float *here = keys + table[j0 / BLOCK] * BLOCK * dim;
        float *to = p + j0 * LANES;
        int64_t here_length = MIN(BLOCK, length - j0);
        for (j = 0; j + KEYS <= here_length; j += KEYS) compare(KEYS, here + j * dim, queries, to + j * LANES, dim);
        for (; j + 4 <= here_length; j += 4) compare(4, here + j * dim, queries, to + j * LANES, dim);
        for (; j < here_length; j++) compare(1, here + j * dim, queries, to + j * LANES, dim);
    }
    for (j = limit[0]; j < length; j++)
        for (int64_t q = 0; q < LANES; q++)
            if (j >= limit[q]) p[j * LANES + q] = -INFINITY;

    float top[LANES], total[LANES] = {0};
    for (int64_t q = 0; q < LANES; q++) top[q] = -INFINITY;
    for (j = 0; j < length; j++)
        for (int64_t q = 0; q < LANES; q++) top[q] = MAX(p[j * LANES + q], top[q]);
    for (int64_t j0 = 0; j0 < length; j0 += PARTIAL) {
        float part[LANES] = {0};
        for (j = j0; j < MIN(j0 + PARTIAL, length); j++)
            for (int64_t q = 0; q < LANES; q++) {
                float difference = p[j * LANES + q] - top[q];
                p[j * LANES + q] = difference < -87.0f ? 0.0f : exponential(difference);
                part[q] += p[j * LANES + q];
            }
        for (int64_t q = 0; q < LANES; q++) total[q] += part[q];
    }

    for (int64_t q = 0; q < count; q += 4) {
        int64_t rows = MIN(4, count - q), d = 0;
        float sums[4][PANEL];
        for (; d < dim; d += PANEL) {
            int64_t columns = MIN(PANEL, dim - d);
            if (columns == PANEL) switch (rows) {
                case 1: weigh(1, p + q, values + d, table, length, dim, sums); break;
                case 2: weigh(2, p + q, values + d, table, length, dim, sums); break;
                case 3: weigh(3, p + q, values + d, table, length, dim, sums); break;
                case 4: weigh(4, p + q, values + d, table, length, dim, sums); break;
            }
            else {
                memset(sums, 0, sizeof sums);
                for (int64_t j0 = 0; j0 < length; j0 += PARTIAL) {
                    float part[4][PANEL] = {0};
                    for (j = j0; j < MIN(j0 + PARTIAL, length); j++)
                        for (int64_t r = 0; r < rows; r++)
                            for (int64_t c = 0; c < columns; c++)
                                part[r][c] +=
                                    p[j * LANES + q + r] * values[(table[j / BLOCK] * BLOCK + j % BLOCK) * dim + d + c];
                    for (int64_t r = 0; r < rows; r++)
                        for (int64_t c = 0; c < columns; c++) sums[r][c] += part[r][c];
                }
            }
            for (int64_t r = 0; r < rows; r++) {
                float inverse = 1.0f / total[q + r];
                float *to = out + (source[q + r] - qkv) / width * m->heads * dim + (source[q + r] - qkv) % width + d;
                for (int64_t c = 0; c < columns; c++) to[c] = sums[r][c] * inverse;
            }
        }
    }
}

/* out: (rows, heads dim). work: for each thread. */
static void attend(const Model *m, const Step *s, const float *qkv, int64_t width, const float *keys,
                   const float *values, float *work, float *out) {
    int64_t group = m->heads / m->kv_heads;
    for (int64_t i = 0; i < s->spans; i++) {
        const Span *span = s->span + i;
        int64_t blocks = (span->rows * group + LANES - 1) / LANES;
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t task = 0; task < blocks * m->kv_heads; task++)
            attend_block(m, span, s->blocks + span->table, task / m->kv_heads * LANES, task % m->kv_heads, qkv, width,
                         keys, values, work, out);
    }
#pragma omp barrier
}
