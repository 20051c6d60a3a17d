/* LoRA (Hu et al., 2021, arXiv:2106.09685): y += scaling (x A') B', for the rows of one adapter. */
#pragma once
#include "dot.h"
#include "model.h"

/* out += what a segment's adapter adds to a projection of its rows of x. work: (inputs). */
static void adapt(const Segment *s, int64_t which, const float *x, int64_t inputs, float *out, int64_t width, float *z,
                  int64_t stride, float *work) {
    if (!s->adapter) return;
    const Projection *p = s->adapter + which;
    for (int64_t t = s->first; t < s->first + s->rows; t++) {
        if (p->bf16) {
            deinterleave(x + t * inputs, work, inputs);
            dots_bf16_all(p->lora_A, work, z + t * stride, p->rank, inputs);
        } else dots_all(p->lora_A, x + t * inputs, z + t * stride, p->rank, inputs);
    }
    for (int64_t i = 0; i < p->parts; i++)
        for (int64_t t = s->first; t < s->first + s->rows; t++) {
            const float *from = z + t * stride + p->part[i].r0;
            float *row = out + t * width + p->part[i].offset, scaling = p->part[i].scaling;
            if (p->bf16) add_columns_bf16_all(p->part[i].lora_B, from, scaling, row, p->part[i].r, p->part[i].n);
            else add_columns_all(p->part[i].lora_B, from, scaling, row, p->part[i].r, p->part[i].n);
        }
}
