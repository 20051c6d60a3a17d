/* Vectors of the CPU's own width: float32, and bfloat16 that is widened to float32. */
#pragma once
#include <math.h>
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

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define ALWAYS static inline __attribute__((always_inline))
#define WIDTH(n) (((n) + PANEL - 1) / PANEL * PANEL)

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint32_t loose __attribute__((vector_size(4 * LANES), aligned(2), may_alias));

ALWAYS vec load(const float *p) { return *(const vec *)p; }
ALWAYS void store(float *p, vec v) { *(vec *)p = v; }
ALWAYS void load_two(const float *p, vec *first, vec *second) { *first = load(p), *second = load(p + LANES); }

/* a b + c, rounded once wherever the CPU can: left to itself a compiler does so in one place and not in another, and
 * the sums of the same numbers would differ. */
ALWAYS vec vec_fma(vec a, vec b, vec c) {
#if defined(__FMA__) && LANES == 8
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__AVX512F__) && LANES == 16
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return a * b + c;
#endif
}
ALWAYS vec broadcast(float f) { return f - (vec){0}; }

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
ALWAYS void load_bf16(const uint16_t *p, vec *even, vec *odd) {
    words both = *(const loose *)p;
    *even = (vec)(both << 16), *odd = (vec)(both & 0xffff0000u);
}
ALWAYS void interleave(vec *even, vec *odd) {
    float mixed[2 * LANES];
    for (int i = 0; i < LANES; i++) mixed[2 * i] = (*even)[i], mixed[2 * i + 1] = (*odd)[i];
    *even = load(mixed), *odd = load(mixed + LANES);
}
/* x as `load_bf16` would read it. */
static void deinterleave(const float *x, float *to, int64_t n) {
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (int j = 0; j < LANES; j++) to[i + j] = x[i + 2 * j], to[i + LANES + j] = x[i + 2 * j + 1];
    memcpy(to + i, x + i, (n - i) * sizeof(float));
}
