/* One forward pass of a Llama-like decoder on a CPU: one token or many of every sequence of the batch.
 *
 * torch_forward.py says in torch what is computed here, and runs where this doesn't. All of a pass is one call and one
 * parallel region: at a few rows, dozens of small operators a layer cost more than they compute. Weights lie in panels
 * as the matrix product reads them; adapters are read where they lie, and nothing is gathered or padded, however many
 * differ and whatever their ranks.
 *
 * Every number is summed in an order that depends neither on the other rows nor on the threads: a sequence gets the
 * same bits alone and in any batch.
 */
#include <omp.h>
#include <string.h>

#include "attention.h"
#include "layer.h"
#include "linear.h"

/* Where each array of a pass lies in its scratch memory. */
typedef struct {
    float *x, *normed, *qkv, *attended, *delta, *gate_up, *gated, *added, *z, *work;
    int64_t work_size, total;
} Scratch;

static Scratch lay_out(const Model *m, const Step *s, float *from) {
    const Layer *layer = m->layer;
    int64_t rows = MAX(s->rows, s->choices), longest = 0, at = 0, widest = WIDTH(m->hidden);
    widest = MAX(widest, WIDTH(layer->qkv.outputs)), widest = MAX(widest, WIDTH(layer->gate_up.outputs));
    for (int64_t i = 0; i < s->spans; i++) longest = MAX(longest, s->span[i].length);
    Scratch a;
#define PLACE(NAME, SIZE) a.NAME = from + at, at += ((SIZE) + 15) / 16 * 16
    PLACE(x, rows * m->hidden);
    PLACE(normed, rows * m->hidden);
    PLACE(qkv, rows * WIDTH(layer->qkv.outputs));
    PLACE(attended, rows * m->heads * m->dim);
    PLACE(delta, rows * WIDTH(m->hidden));
    PLACE(gate_up, rows * WIDTH(layer->gate_up.outputs));
    PLACE(gated, rows * layer->down.inputs);
    PLACE(added, s->segments.count ? rows * widest : 0);
    PLACE(z, rows * s->rank);
    a.work_size = MAX(MAX(LANES * (m->dim + longest), rows * PANEL), MAX(m->hidden, layer->down.inputs));
    a.work_size = (MAX(a.work_size, m->heads * m->dim) + 15) / 16 * 16;
    PLACE(work, a.work_size * s->threads);
    a.total = at;
    return a;
}

int64_t scratch_size(const Model *m, const Step *s) { return lay_out(m, s, 0).total; }

/* row = the embedding of `token`, as float32. */
static void embed(const Model *m, int64_t token, float *row) {
    if (m->head.bf16) {
        const uint16_t *from = (const uint16_t *)m->embedding + token * m->hidden;
        for (int64_t i = 0; i < m->hidden; i++) row[i] = widen(from[i]);
    } else memcpy(row, (const float *)m->embedding + token * m->hidden, m->hidden * sizeof(float));
}

/* What `seconds` of `forward` is about. */
enum { EMBED, NORM, QKV, ROPE, ATTEND, OUT, GATE_UP, SILU, DOWN, HEAD };

/* seconds: what each part took is added to it. */
void forward(const Model *m, const Step *s, double *seconds) {
    Scratch a = lay_out(m, s, s->scratch);
    const Layer *first = m->layer;
    int64_t rows = s->rows, hidden = m->hidden, qkv_width = WIDTH(first->qkv.outputs), width = WIDTH(hidden);
    int64_t gate_up_width = WIDTH(first->gate_up.outputs), block = m->kv_heads * m->capacity * m->dim;
    double then = omp_get_wtime();
#define COUNT(PART)                                                                                                    \
    if (omp_get_thread_num() == 0) {                                                                                   \
        double now = omp_get_wtime();                                                                                  \
        seconds[PART] += now - then;                                                                                   \
        then = now;                                                                                                    \
    }
#pragma omp parallel num_threads(s->threads)
    {
        float *work = a.work + omp_get_thread_num() * a.work_size, *delta = 0, *added = 0;
#pragma omp for
        for (int64_t t = 0; t < rows; t++) embed(m, s->tokens[t], a.x + t * hidden);
        COUNT(EMBED)
        for (int64_t l = 0; l < m->layers; l++) {
            const Layer *layer = m->layer + l;
            float *keys = m->cache + 2 * l * block, *values = keys + block;
            add_norm(a.x, delta, added, width, layer->before_attention, a.normed, rows, hidden, m->eps);
            delta = a.delta, added = s->segments.count ? a.added : 0;
            COUNT(NORM)
            linear(&layer->qkv, a.normed, a.qkv, rows, &s->segments, 4 * l, added, a.z, s->rank, work);
            COUNT(QKV)
            rope_store(m, layer, s, a.qkv, added, qkv_width, keys, values);
            COUNT(ROPE)
            attend(m, s, a.qkv, qkv_width, keys, values, work, a.attended);
            COUNT(ATTEND)
            linear(&layer->out, a.attended, delta, rows, &s->segments, 4 * l + 1, added, a.z, s->rank, work);
            COUNT(OUT)
            add_norm(a.x, delta, added, width, layer->before_mlp, a.normed, rows, hidden, m->eps);
            COUNT(NORM)
            linear(&layer->gate_up, a.normed, a.gate_up, rows, &s->segments, 4 * l + 2, added, a.z, s->rank, work);
            COUNT(GATE_UP)
            silu_mul(a.gate_up, added, gate_up_width, a.gated, rows, layer->down.inputs);
            COUNT(SILU)
            linear(&layer->down, a.gated, delta, rows, &s->segments, 4 * l + 3, added, a.z, s->rank, work);
            COUNT(DOWN)
        }
#pragma omp for
        for (int64_t c = 0; c < s->choices; c++) {
            float *row = a.x + s->chosen[c] * hidden;
            int64_t at = s->chosen[c] * width;
            add(row, delta + at, added ? added + at : 0, hidden);
            norm(row, m->norm, a.normed + c * hidden, hidden, m->eps);
            if (s->states) memcpy(s->states + c * hidden, a.normed + c * hidden, hidden * sizeof(float));
        }
        if (s->choices) {
            const Segments none = {0};
            linear(&m->head, a.normed, s->scores, s->choices, &none, 0, 0, 0, 0, work);
#pragma omp for
            for (int64_t i = 0; i < s->head_segments.count; i++)
                adapt(s->head_segments.of + i, 4 * m->layers, a.normed, hidden, s->scores, WIDTH(m->head.outputs), a.z,
                      s->rank, work);
        }
        COUNT(HEAD)
    }
}
