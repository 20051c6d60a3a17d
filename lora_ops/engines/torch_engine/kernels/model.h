/* What native_forward.py and projections.py hand over: the model, an adapter, and one step. */
#pragma once
#include <stdint.h>

/* What one adapter does to one fused projection: z = x a', then out[:, offset:offset+n] += scaling z[:, r0:r0+r] b.
 * Its matrices are float32, or bfloat16 where `bf16` is set; sums are float32 in both cases. */
typedef struct {
    const void *lora_A; /* (rank, inputs): the parts' A below each other */
    int64_t rank, parts, bf16, bytes; /* bytes of all matrices, which lie behind each other from `lora_A` on */
    struct {
        const void *lora_B; /* (r, n) */
        int64_t r0, r, offset, n;
        double scaling;
    } part[3];
} Projection;

typedef struct {
    const void *weight; /* (WIDTH(outputs) / PANEL, inputs, PANEL) of float32, or bfloat16 where `bf16` is set */
    const float *bias;  /* may be null */
    int64_t inputs, outputs, bf16;
} Linear;

typedef struct {
    const float *before_attention, *q_norm, *k_norm, *before_mlp; /* q_norm and k_norm may be null */
    Linear qkv, out, gate_up, down;
} Layer;

typedef struct {
    const void *embedding;             /* (vocabulary, hidden), of the type of `head` */
    const float *cosine, *sine, *norm; /* (positions, dim) twice, (hidden) */
    float *cache;                      /* (layers, keys and values, kv_heads, capacity, dim) */
    const Layer *layer;
    Linear head;
    int64_t layers, hidden, heads, kv_heads, dim, capacity;
    float eps;
} Model;

typedef struct { /* rows of one sequence, its last ones, and where its blocks begin in the step's `blocks` */
    int64_t first, rows, table, length;
} Span;

typedef struct { /* neighbouring rows with the same adapter: its projections, one for each of the model, or null */
    const Projection *adapter;
    int64_t first, rows;
} Segment;

typedef struct { /* none, or some that have all rows */
    int64_t count;
    const Segment *of;
} Segments;

typedef struct {
    const int64_t *tokens, *positions, *slot_mapping; /* (rows) */
    const int64_t *chosen;                      /* (choices): the rows of which the scores are wanted */
    const int64_t *blocks;                      /* of the cache, of each sequence's tokens in their order */
    const Span *span;
    Segments segments, head_segments;
    int64_t rows, choices, spans;
    int64_t rank; /* the largest of a projection */
    int64_t threads;
    float *scratch;                     /* of `scratch_size` numbers */
    float *scores;                      /* (choices, WIDTH(vocabulary)) */
    float *states;                      /* (choices, hidden): what the head reads; may be null */
} Step;
