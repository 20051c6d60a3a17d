/* Matrix products with the base model's weights, to which the adapters of the batch are added.
 *
 * Weights are float32 or bfloat16. A bfloat16 number is widened, which is exact, then multiplied and summed in float32:
 * both types give the same bits for the same weights. AVX-512's own bfloat16 products would round the activations, too.
 */
#pragma once
#include <omp.h>

#include "fetch.h"
#include "lora.h"

#define DEPTH 96 /* numbers of a panel's columns that stay in the first cache for all rows */
#define ROWS (3 * LANES / 4) /* of a block: two registers of sums each; wider registers are twice as many */
#define FETCHED 4 /* from so many rows on, memory is asked for before it is read */
#define WIDENED 3 /* from so many blocks of rows on, a panel of bfloat16 is widened once for all of them */

int64_t panel_width(int64_t outputs) { return WIDTH(outputs); }

/* weight: (outputs, inputs) to panels, whose last columns are zeros where there are no more outputs. */
void pack(const float *weight, float *panels, int64_t outputs, int64_t inputs) {
#pragma omp parallel for
    for (int64_t p = 0; p < WIDTH(outputs) / PANEL; p++)
        for (int64_t k = 0; k < inputs; k++)
            for (int64_t c = 0, j = p * PANEL; c < PANEL; c++, j++)
                panels[(p * inputs + k) * PANEL + c] = j < outputs ? weight[j * inputs + k] : 0.0f;
}

/* The same in bfloat16. The first and the second half of a panel's columns alternate, as `load_bf16` reads them. */
void pack_bf16(const uint16_t *weight, uint16_t *panels, int64_t outputs, int64_t inputs) {
#pragma omp parallel for
    for (int64_t p = 0; p < WIDTH(outputs) / PANEL; p++)
        for (int64_t k = 0; k < inputs; k++)
            for (int64_t c = 0; c < PANEL; c++) {
                int64_t j = p * PANEL + c % 2 * LANES + c / 2;
                panels[(p * inputs + k) * PANEL + c] = j < outputs ? weight[j * inputs + k] : 0;
            }
}

/* `depth` numbers of each column of a panel as float32, in the order of `pack`. */
static void widen_panel(const uint16_t *panel, float *wide, int64_t depth) {
    for (int64_t k = 0; k < depth; k++, panel += PANEL, wide += PANEL) {
        vec first, second;
        load_bf16(panel, &first, &second);
        store(wide, first), store(wide + LANES, second);
    }
}

/* Sums of a block's rows and one panel's columns, with `stride` numbers from row to row. */
typedef struct {
    float *at;
    int64_t stride;
} Sums;

/* to = from + x w for `rows` rows of x and one panel of w, `depth` numbers of each. A vector of w meets all rows while
 * it is in a register. w: of bfloat16 where `bf16` is set, else of float32. */
ALWAYS void block(int bf16, int rows, const float *x, int64_t inputs, const void *w, int64_t depth, Sums from, Sums to,
                  Ahead weights, Ahead adapter) {
    vec s[ROWS][2];
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) s[r][h] = load(from.at + r * from.stride + h * LANES);
#define MULTIPLY(CALL)                                                                                                 \
    {                                                                                                                  \
        vec w0, w1;                                                                                                    \
        if (bf16) load_bf16((const uint16_t *)w + k * PANEL, &w0, &w1);                                                \
        else load_two((const float *)w + k * PANEL, &w0, &w1);                                               \
        CALL;                                                                                                          \
        _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) {                                                      \
            vec xs = broadcast(x[r * inputs + k]);                                                                     \
            s[r][0] = vec_fma(xs, w0, s[r][0]);                                                                        \
            s[r][1] = vec_fma(xs, w1, s[r][1]);                                                                        \
        }                                                                                                              \
    }
    // Evenly, in one or two streams each: of a burst, memory takes the first few and holds the rest up.
    int64_t k = 0, w_streams = (weights.count + depth - 1) / depth, a_streams = (adapter.count + depth - 1) / depth;
    int64_t w_part = (weights.count + 1) / MAX(w_streams, 1) * LINE, w_step = w_part / depth;
    int64_t a_part = (adapter.count + 1) / MAX(a_streams, 1) * LINE, a_step = a_part / depth;
#define FETCH(N, OF, AHEAD)                                                                                            \
    for (int i = 0; i < N; i++) __builtin_prefetch(AHEAD.from + i * OF##_part + k * OF##_step, 0, 2);
#define STREAMS(W, A)                                                                                                  \
    case 3 * W + A:                                                                                                    \
        for (; k < depth; k++) MULTIPLY(FETCH(W, w, weights) FETCH(A, a, adapter))                                     \
        break;
    switch (3 * w_streams + a_streams) {
        STREAMS(0, 0) STREAMS(0, 1) STREAMS(0, 2)
        STREAMS(1, 0) STREAMS(1, 1) STREAMS(1, 2)
        STREAMS(2, 0) STREAMS(2, 1) STREAMS(2, 2)
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) store(to.at + r * to.stride + h * LANES, s[r][h]);
}

/* One panel's columns of all rows. Few rows read memory as fast as the hardware fetches it by itself; more of them
 * leave it idle between reads, and it is told what comes next: the panel's own continuation, and the adapters. */
static void multiply_panel(const Linear *f, int64_t panel, const float *x, float *out, int64_t rows, Stream *adapters,
                           float *work) {
    static float zeros[PANEL];
    int64_t inputs = f->inputs, width = WIDTH(f->outputs), blocks = (rows + ROWS - 1) / ROWS;
    int64_t calls = (inputs + DEPTH - 1) / DEPTH * blocks, lines = (adapters->lines + calls - 1) / calls;
    int64_t row_bytes = PANEL * (f->bf16 ? sizeof(uint16_t) : sizeof(float));
    const char *w = (const char *)f->weight + panel * inputs * row_bytes;
    float wide[DEPTH * PANEL];
    // What is not finished lies together: `out`'s rows are on a page each, which costs a quarter of the time.
    Sums begin = {f->bias ? (float *)f->bias + panel * PANEL : zeros, 0};
    for (int64_t k0 = 0; k0 < inputs; k0 += DEPTH) {
        int64_t depth = MIN(DEPTH, inputs - k0);
        const char *here = w + k0 * row_bytes, *after = here + depth * row_bytes;
        // Few rows wait for memory, and widening is free; many blocks of them read what was widened once.
        int bf16 = f->bf16 && blocks < WIDENED;
        if (f->bf16 && !bf16) widen_panel((const uint16_t *)here, wide, depth);
        const void *numbers = f->bf16 && !bf16 ? (const void *)wide : here;
        for (int64_t b = 0; b < blocks; b++) {
            int64_t r0 = rows * b / blocks, r1 = rows * (b + 1) / blocks;
            Sums middle = {work + r0 * PANEL, PANEL};
            Sums from = k0 ? middle : begin;
            Sums to = k0 + depth < inputs ? middle : (Sums){out + r0 * width + panel * PANEL, width};
            Ahead next = {0}, other = {0};
            if (rows >= FETCHED) {
                next = share(after, depth * row_bytes, b, blocks);
                other = take(adapters, MIN(lines, 2 * depth));
            }
#define CASE(R)                                                                                                        \
    case 2 * R: block(0, R, x + r0 * inputs + k0, inputs, numbers, depth, from, to, next, other); break;               \
    case 2 * R + 1: block(1, R, x + r0 * inputs + k0, inputs, numbers, depth, from, to, next, other); break;
            switch (2 * (r1 - r0) + bf16) {
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS > 6
                CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
            }
        }
    }
}

/* The functions from here to `forward` are called by all threads of its region, and each returns when all are done. */

/* out = x w' + bias; added = what the adapters add to that, or nothing is written there where there are no segments.
 * x: (rows, inputs), out, added: (rows, WIDTH(outputs)). A thread's segments come between its panels, each once it is
 * fetched; a few rows are not fetched for, so theirs come first. */
static void linear(const Linear *f, const float *x, float *out, int64_t rows, const Segments *segments, int64_t which,
                   float *added, float *z, int64_t stride, float *work) {
    int64_t inputs = f->inputs, width = WIDTH(f->outputs), panels = width / PANEL, threads = omp_get_num_threads();
    int64_t mine = omp_get_thread_num(), count = segments->count, most = (count + threads - 1) / threads * threads;
    Stream stream = {segments, mine, threads, which, 0, 0};
#define ADAPT(UNTIL)                                                                                                   \
    for (; mine < (UNTIL); mine += threads) {                                                                          \
        const Segment *s = segments->of + mine;                                                                        \
        memset(added + s->first * width, 0, s->rows * width * sizeof(float));                                          \
        adapt(s, which, x, inputs, added, width, z, stride, work);                                                     \
    }
    if (rows < FETCHED) ADAPT(count)
#pragma omp for schedule(guided) nowait
    for (int64_t i = 0; i < panels; i++) {
        // All are fetched when three quarters of the panels are done: what is left keeps the threads even.
        if (stream.next < count)
            stream.lines = lines_of(segments->of + stream.next, which) * most * 4 / (panels * 3) + 1;
        multiply_panel(f, i, x, out, rows, &stream, work);
        ADAPT(stream.next)
    }
    ADAPT(count)
#pragma omp barrier
}
