/* Dot products and sums of columns: LoRA's two matrix products, in float32 and in bfloat16. */
#pragma once
#include "vector.h"

ALWAYS float same(float f) { return f; }
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
                s[r][0] = vec_fma(a0, load(x + i), s[r][0]), s[r][1] = vec_fma(a1, load(x + i + LANES), s[r][1]);      \
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
                s[v][0] = vec_fma(broadcast(z[r]), b0, s[v][0]), s[v][1] = vec_fma(broadcast(z[r]), b1, s[v][1]);      \
            }                                                                                                          \
        for (int v = 0; v < count; v++) {                                                                              \
            ORDER(&s[v][0], &s[v][1]);                                                                                 \
            for (int h = 0; h < 2; h++, row += LANES) store(row, vec_fma(broadcast(scale), s[v][h], load(row)));       \
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
PRODUCTS(dots_bf16, add_columns_bf16, uint16_t, load_bf16, widen, interleave)
