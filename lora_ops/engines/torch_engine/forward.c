/* One forward pass of a Llama-like decoder in float32 on a CPU: one token or many of every sequence of the batch.
 *
 * torch_forward.py says in torch what is computed here, and runs where this doesn't. All of a pass is one call and one
 * parallel region: at a few rows, dozens of small operators a layer cost more than they compute. Weights lie in panels
 * as the matrix product reads them; adapters are read where they lie, and nothing is gathered or padded, however many
 * differ and whatever their ranks.
 *
 * Every number is summed in an order that depends neither on the other rows nor on the threads: a sequence gets the
 * same bits alone and in any batch.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>
#ifdef __FMA__
#include <immintrin.h>
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bfloat16 is read as little-endian CPUs write it"
#endif

#ifndef LANES /* of a vector register */
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#endif
#define PANEL (2 * LANES) /* columns of a weight that lie together */
#define DEPTH 96          /* numbers of a panel's columns that stay in the first cache for all rows */
#define ROWS (3 * LANES / 4) /* of a block: two registers of sums each; wider registers are twice as many */
#define LINE 64           /* bytes that memory gives at a time */
#define FETCHED 4         /* from so many rows on, memory is asked for before it is read */
#define KEYS 8            /* that some queries are compared with at a time; a block of the KV cache is BLOCK of them */

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define ALWAYS static inline __attribute__((always_inline))
#define WIDTH(n) (((n) + PANEL - 1) / PANEL * PANEL)

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint32_t loose __attribute__((vector_size(4 * LANES), aligned(2), may_alias));

/* What one adapter does to one fused projection: z = x a', then out[:, offset:offset+n] += scale z[:, r0:r0+r] b.
 * Its matrices are float32, or bfloat16 where `half` is set; sums are float32 in both cases. */
typedef struct {
    const void *a; /* (rank, inputs): the parts' A below each other */
    int64_t rank, parts, half, bytes; /* bytes of all matrices, which lie behind each other from `a` on */
    struct {
        const void *b; /* (r, n) */
        int64_t r0, r, offset, n;
        double scale;
    } part[3];
} Projection;

typedef struct {
    const float *weight, *bias; /* in panels: (WIDTH(outputs) / PANEL, inputs, PANEL); bias may be null */
    int64_t inputs, outputs;
} Linear;

typedef struct {
    const float *before_attention, *q_norm, *k_norm, *before_mlp; /* q_norm and k_norm may be null */
    Linear qkv, out, gate_up, down;
} Layer;

typedef struct {
    const float *embedding, *cosine, *sine, *norm; /* (vocabulary, hidden), (positions, dim) twice, (hidden) */
    float *cache;                                  /* (layers, keys and values, kv_heads, capacity, dim) */
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
    const int64_t *tokens, *positions, *places; /* (rows) */
    const int64_t *chosen;                      /* (choices): the rows of which the scores are wanted */
    const int64_t *blocks;                      /* of the cache, of each sequence's tokens in their order */
    const Span *span;
    Segments segments, head_segments;
    int64_t rows, choices, spans;
    int64_t rank; /* the largest of a projection */
    int64_t threads;
    float *scratch;                     /* of `scratch_size` numbers */
    float *scores;                      /* (choices, WIDTH(vocabulary)) */
} Step;

ALWAYS vec load(const float *p) { return *(const vec *)p; }
ALWAYS void store(float *p, vec v) { *(vec *)p = v; }

/* a b + c, rounded once wherever the CPU can: left to itself a compiler does so in one place and not in another, and
 * the sums of the same numbers would differ. */
ALWAYS vec fused(vec a, vec b, vec c) {
#if defined(__FMA__) && LANES == 8
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__AVX512F__) && LANES == 16
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return a * b + c;
#endif
}
ALWAYS vec spread(float f) { return f - (vec){0}; }

ALWAYS float sum(vec v) {
    float s = 0.0f;
    for (int i = 0; i < LANES / 2; i++) s += v[i] + v[i + LANES / 2];
    return s;
}

/* e^x to 1e-7, as in Cephes; written so that a compiler makes vectors of it. */
ALWAYS float exponential(float x) {
    x = !(x > -87.0f) ? -87.0f : x > 88.0f ? 88.0f : x; /* so that what is no number becomes one */
    float n = floorf(x * 1.44269504088896341f + 0.5f);
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    union { int32_t i; float f; } power = {((int32_t)n + 127) * (1 << 23)};
    return y * power.f;
}

/* bfloat16 is float32's upper half. A register of them is read as two vectors: the even numbers and the odd ones. */
ALWAYS float widen(uint16_t h) {
    union { uint32_t i; float f; } wide = {(uint32_t)h << 16};
    return wide.f;
}
ALWAYS void load_halves(const uint16_t *p, vec *even, vec *odd) {
    words both = *(const loose *)p;
    *even = (vec)(both << 16), *odd = (vec)(both & 0xffff0000u);
}
ALWAYS void in_order(vec *even, vec *odd) {
    float mixed[2 * LANES];
    for (int i = 0; i < LANES; i++) mixed[2 * i] = (*even)[i], mixed[2 * i + 1] = (*odd)[i];
    *even = load(mixed), *odd = load(mixed + LANES);
}
/* x as `load_halves` would read it. */
static void take_apart(const float *x, float *apart, int64_t n) {
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (int j = 0; j < LANES; j++) apart[i + j] = x[i + 2 * j], apart[i + LANES + j] = x[i + 2 * j + 1];
    memcpy(apart + i, x + i, (n - i) * sizeof(float));
}

ALWAYS float same(float f) { return f; }
ALWAYS void load_two(const float *p, vec *first, vec *second) { *first = load(p), *second = load(p + LANES); }
ALWAYS void as_they_are(vec *first, vec *second) { (void)first, (void)second; }

/* z = a x for `count` rows of a, and row += scale (z b) for `count` pairs of vectors of b's columns. The matrices'
 * numbers are of TYPE, read by LOAD and WIDEN, and ORDER puts right what LOAD took apart; x is in LOAD's order. */
#define PRODUCTS(DOTS, COLUMNS, TYPE, LOAD, WIDEN, ORDER)                                                              \
    ALWAYS void DOTS(int count, const TYPE *a, const float *x, float *z, int64_t n) {                                  \
        vec s[4][2] = {{{0}}}, a0, a1;                                                                                 \
        int64_t i = 0;                                                                                                 \
        for (; i + 2 * LANES <= n; i += 2 * LANES)                                                                     \
            for (int r = 0; r < count; r++) {                                                                          \
                LOAD(a + r * n + i, &a0, &a1);                                                                         \
                s[r][0] = fused(a0, load(x + i), s[r][0]), s[r][1] = fused(a1, load(x + i + LANES), s[r][1]);          \
            }                                                                                                          \
        for (int r = 0; r < count; r++) z[r] = sum(s[r][0] + s[r][1]);                                                 \
        for (; i < n; i++)                                                                                             \
            for (int r = 0; r < count; r++) z[r] += WIDEN(a[r * n + i]) * x[i];                                        \
    }                                                                                                                  \
    ALWAYS void COLUMNS(int count, const TYPE *b, const float *z, float scale, float *row, int64_t rank, int64_t n) {  \
        vec s[2][2] = {{{0}}}, b0, b1;                                                                                 \
        for (int64_t r = 0; r < rank; r++)                                                                             \
            for (int v = 0; v < count; v++) {                                                                          \
                LOAD(b + r * n + 2 * v * LANES, &b0, &b1);                                                             \
                s[v][0] = fused(spread(z[r]), b0, s[v][0]), s[v][1] = fused(spread(z[r]), b1, s[v][1]);                \
            }                                                                                                          \
        for (int v = 0; v < count; v++) {                                                                              \
            ORDER(&s[v][0], &s[v][1]);                                                                                 \
            for (int h = 0; h < 2; h++, row += LANES) store(row, fused(spread(scale), s[v][h], load(row)));            \
        }                                                                                                              \
    }                                                                                                                  \
    static void DOTS##_all(const TYPE *a, const float *x, float *z, int64_t rank, int64_t n) {                         \
        int64_t r = 0;                                                                                                 \
        for (; r + 4 <= rank; r += 4) DOTS(4, a + r * n, x, z + r, n);                                                 \
        for (; r < rank; r++) DOTS(1, a + r * n, x, z + r, n);                                                         \
    }                                                                                                                  \
    static void COLUMNS##_all(const TYPE *b, const float *z, float scale, float *row, int64_t rank, int64_t n) {       \
        int64_t c = 0;                                                                                                 \
        for (; c + 4 * LANES <= n; c += 4 * LANES) COLUMNS(2, b + c, z, scale, row + c, rank, n);                      \
        for (; c + 2 * LANES <= n; c += 2 * LANES) COLUMNS(1, b + c, z, scale, row + c, rank, n);                      \
        for (; c < n; c++) {                                                                                           \
            float total = 0.0f;                                                                                        \
            for (int64_t r = 0; r < rank; r++) total += z[r] * WIDEN(b[r * n + c]);                                    \
            row[c] += scale * total;                                                                                   \
        }                                                                                                              \
    }
PRODUCTS(dots, add_columns, float, load_two, same, as_they_are)
PRODUCTS(dots_half, add_columns_half, uint16_t, load_halves, widen, in_order)

/* Matrix products with the base model's weights. */

int64_t panel_width(int64_t outputs) { return WIDTH(outputs); }

/* weight: (outputs, inputs) to panels, whose last columns are zeros where there are no more outputs. */
void pack(const float *weight, float *panels, int64_t outputs, int64_t inputs) {
#pragma omp parallel for
    for (int64_t p = 0; p < WIDTH(outputs) / PANEL; p++)
        for (int64_t k = 0; k < inputs; k++)
            for (int64_t c = 0, j = p * PANEL; c < PANEL; c++, j++)
                panels[(p * inputs + k) * PANEL + c] = j < outputs ? weight[j * inputs + k] : 0.0f;
}

/* Memory that is soon read: `count` lines from `from` on, which the hardware is told to fetch meanwhile. */
typedef struct {
    const char *from;
    int64_t count;
} Ahead;

/* The part of some memory that falls to number `i` of `n` who share it. */
ALWAYS Ahead share(const void *from, int64_t bytes, int64_t i, int64_t n) {
    int64_t lines = (bytes + LINE - 1) / LINE, first = lines * i / n;
    return (Ahead){(const char *)from + first * LINE, lines * (i + 1) / n - first};
}

/* The adapters that one thread reads, of each `step`-th segment from `next` on one projection: they are fetched behind
 * each other, whatever their sizes. */
typedef struct {
    const Segments *segments;
    int64_t next, step, which;
    int64_t line, lines; /* of `next`: fetched so far; a panel's share of all */
} Stream;

ALWAYS int64_t lines_of(const Segment *s, int64_t which) {
    return s->adapter ? (s->adapter[which].bytes + LINE - 1) / LINE : 0;
}

/* The next `count` lines at most, all of one adapter. */
ALWAYS Ahead take(Stream *s, int64_t count) {
    int64_t left;
    for (; s->next < s->segments->count; s->next += s->step, s->line = 0)
        if ((left = lines_of(s->segments->of + s->next, s->which) - s->line) > 0) break;
    if (s->next >= s->segments->count) return (Ahead){0};
    Ahead taken = {(const char *)s->segments->of[s->next].adapter[s->which].a + s->line * LINE, MIN(count, left)};
    s->line += taken.count;
    return taken;
}

/* Sums of a block's rows and one panel's columns, with `stride` numbers from row to row. */
typedef struct {
    float *at;
    int64_t stride;
} Sums;

/* to = from + x w for `rows` rows of x and one panel of w, `depth` numbers of each. A vector of w meets all rows while
 * it is in a register. */
ALWAYS void block(int rows, const float *x, int64_t inputs, const float *w, int64_t depth, Sums from, Sums to,
                  Ahead weights, Ahead adapter) {
    vec s[ROWS][2];
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) s[r][h] = load(from.at + r * from.stride + h * LANES);
#define MULTIPLY(CALL)                                                                                                 \
    {                                                                                                                  \
        vec w0 = load(w + k * PANEL), w1 = load(w + k * PANEL + LANES);                                                \
        CALL;                                                                                                          \
        _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) {                                                      \
            vec xs = spread(x[r * inputs + k]);                                                                        \
            s[r][0] = fused(xs, w0, s[r][0]);                                                                          \
            s[r][1] = fused(xs, w1, s[r][1]);                                                                          \
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
    const float *w = f->weight + panel * inputs * PANEL;
    // What is not finished lies together: `out`'s rows are on a page each, which costs a quarter of the time.
    Sums begin = {f->bias ? (float *)f->bias + panel * PANEL : zeros, 0};
    for (int64_t k0 = 0; k0 < inputs; k0 += DEPTH) {
        int64_t depth = MIN(DEPTH, inputs - k0);
        for (int64_t b = 0; b < blocks; b++) {
            int64_t r0 = rows * b / blocks, r1 = rows * (b + 1) / blocks;
            const float *here = w + k0 * PANEL;
            Sums middle = {work + r0 * PANEL, PANEL};
            Sums from = k0 ? middle : begin;
            Sums to = k0 + depth < inputs ? middle : (Sums){out + r0 * width + panel * PANEL, width};
            Ahead next = {0}, other = {0};
            if (rows >= FETCHED) {
                next = share(here + depth * PANEL, depth * PANEL * sizeof(float), b, blocks);
                other = take(adapters, MIN(lines, 2 * depth));
            }
#define CASE(R)                                                                                                        \
    case R: block(R, x + r0 * inputs + k0, inputs, here, depth, from, to, next, other); break;
            switch (r1 - r0) {
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS > 6
                CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
            }
        }
    }
}

/* out += what a segment's adapter adds to a projection of its rows of x. apart: (inputs). */
static void adapt(const Segment *s, int64_t which, const float *x, int64_t inputs, float *out, int64_t width, float *z,
                  int64_t stride, float *apart) {
    if (!s->adapter) return;
    const Projection *p = s->adapter + which;
    for (int64_t t = s->first; t < s->first + s->rows; t++) {
        if (p->half) {
            take_apart(x + t * inputs, apart, inputs);
            dots_half_all(p->a, apart, z + t * stride, p->rank, inputs);
        } else dots_all(p->a, x + t * inputs, z + t * stride, p->rank, inputs);
    }
    for (int64_t i = 0; i < p->parts; i++)
        for (int64_t t = s->first; t < s->first + s->rows; t++) {
            const float *from = z + t * stride + p->part[i].r0;
            float *row = out + t * width + p->part[i].offset, scale = p->part[i].scale;
            if (p->half) add_columns_half_all(p->part[i].b, from, scale, row, p->part[i].r, p->part[i].n);
            else add_columns_all(p->part[i].b, from, scale, row, p->part[i].r, p->part[i].n);
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
            int64_t place = (h * m->capacity + s->places[t]) * dim;
            memcpy(keys + place, key, dim * sizeof(float));
            memcpy(values + place, key + m->kv_heads * dim, dim * sizeof(float));
        }
    }
}

/* Scores of `count` keys against the queries in the lanes. */
ALWAYS void compare(int count, const float *keys, const float *queries, float *p, int64_t dim) {
    vec s[KEYS];
    for (int j = 0; j < count; j++) s[j] = (vec){0};
    for (int64_t d = 0; d < dim; d++) {
        vec q = load(queries + d * LANES);
        _Pragma("GCC unroll 8") for (int j = 0; j < count; j++) s[j] = fused(spread(keys[j * dim + d]), q, s[j]);
    }
    for (int j = 0; j < count; j++) store(p + j * LANES, s[j]);
}

/* Sums of PANEL columns of the values, weighted by `count` neighbouring lanes of p. table: the blocks of the values. */
ALWAYS void weigh(int count, const float *p, const float *values, const int64_t *table, int64_t length, int64_t dim,
                  float out[][PANEL]) {
    vec s[4][2];
    for (int q = 0; q < count; q++) s[q][0] = s[q][1] = (vec){0};
    for (int64_t j0 = 0; j0 < length; j0 += BLOCK, p += BLOCK * LANES) {
        const float *here = values + *table++ * BLOCK * dim;
        for (int64_t j = 0; j < MIN(BLOCK, length - j0); j++) {
            vec v0 = load(here + j * dim), v1 = load(here + j * dim + LANES);
            _Pragma("GCC unroll 4") for (int q = 0; q < count; q++) {
                vec weight = spread(p[j * LANES + q]);
                s[q][0] = fused(weight, v0, s[q][0]);
                s[q][1] = fused(weight, v1, s[q][1]);
            }
        }
    }
    for (int q = 0; q < count; q++)
        for (int h = 0; h < 2; h++) store(out[q] + h * LANES, s[q][h]);
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
    for (j = 0; j < length; j++)
        for (int64_t q = 0; q < LANES; q++) {
            float difference = p[j * LANES + q] - top[q];
            p[j * LANES + q] = difference < -87.0f ? 0.0f : exponential(difference);
            total[q] += p[j * LANES + q];
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
                for (j = 0; j < length; j++)
                    for (int64_t r = 0; r < rows; r++)
                        for (int64_t c = 0; c < columns; c++)
                            sums[r][c] +=
                                p[j * LANES + q + r] * values[(table[j / BLOCK] * BLOCK + j % BLOCK) * dim + d + c];
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
        for (int64_t t = 0; t < rows; t++)
            memcpy(a.x + t * hidden, m->embedding + s->tokens[t] * hidden, hidden * sizeof(float));
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
