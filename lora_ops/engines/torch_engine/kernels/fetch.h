/* Which memory the hardware is told to fetch while sums are computed. */
#pragma once
#include "model.h"
#include "vector.h"

#define LINE 64 /* bytes that memory gives at a time */

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
    Ahead taken = {(const char *)s->segments->of[s->next].adapter[s->which].lora_A + s->line * LINE, MIN(count, left)};
    s->line += taken.count;
    return taken;
}
