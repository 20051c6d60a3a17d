/* What a layer computes between its matrix products and attention. */
#pragma once
#include "dot.h"
#include "model.h"

/* out = rms_norm(x), times weight. */
ALWAYS void norm(const float *x, const float *weight, float *out, int64_t n, float eps) {
    float squares;
    dots(1, x, x, &squares, n);
    float scale = 1.0f / sqrtf(squares / n + eps);
    for (int64_t i = 0; i < n; i++) out[i] = weight[i] * (x[i] * scale);
}

/* row += delta + added, where there are such. */
ALWAYS void add(float *row, const float *delta, const float *added, int64_t n) {
    if (delta && added)
        for (int64_t i = 0; i < n; i++) row[i] += delta[i] + added[i];
    else if (delta)
        for (int64_t i = 0; i < n; i++) row[i] += delta[i];
}

/* x += delta + added; out = rms_norm(x). x, out: (rows, n); delta, added: (rows, width) or null. */
static void add_norm(float *x, const float *delta, const float *added, int64_t width, const float *weight, float *out,
                     int64_t rows, int64_t n, float eps) {
#pragma omp for
    for (int64_t t = 0; t < rows; t++) {
        add(x + t * n, delta ? delta + t * width : 0, added ? added + t * width : 0, n);
        norm(x + t * n, weight, out + t * n, n, eps);
    }
}

/* out = silu(gate) * up, of gate_up + added: (rows, width). out: (rows, n). */
static void silu_mul(float *gate_up, const float *added, int64_t width, float *out, int64_t rows, int64_t n) {
#pragma omp for
    for (int64_t t = 0; t < rows; t++) {
        float *gate = gate_up + t * width, *up = gate + n, *row = out + t * n;
        if (added) add(gate, added + t * width, 0, 2 * n);
        for (int64_t i = 0; i < n; i++) row[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
    }
}

ALWAYS void rotate(float *head, const float *cosine, const float *sine, int64_t dim) {
    int64_t half = dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + half] = b * cosine[i + half] + a * sine[i + half];
    }
}

/* qkv += added; turn queries and keys to their positions, and put keys and values into the cache. */
static void rope_store(const Model *m, const Layer *layer, const Step *s, float *qkv, const float *added,
                       int64_t width, float *keys, float *values) {
    int64_t dim = m->dim;
#pragma omp for
    for (int64_t t = 0; t < s->rows; t++) {
        if (added) add(qkv + t * width, added + t * width, 0, layer->qkv.outputs);
        const float *cosine = m->cosine + s->positions[t] * dim, *sine = m->sine + s->positions[t] * dim;
        for (int64_t h = 0; h < m->heads + m->kv_heads; h++) {
            float *head = qkv + t * width + h * dim;
            const float *weight = h < m->heads ? layer->q_norm : layer->k_norm;
            if (weight) norm(head, weight, head, dim, m->eps);
            rotate(head, cosine, sine, dim);
        }
        for (int64_t h = 0; h < m->kv_heads; h++) {
            const float *key = qkv + t * width + (m->heads + h) * dim;
            int64_t place = (h * m->capacity + s->slot_mapping[t]) * dim;
            memcpy(keys + place, key, dim * sizeof(float));
            memcpy(values + place, key + m->kv_heads * dim, dim * sizeof(float));
        }
    }
}
