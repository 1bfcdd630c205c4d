/* sampler.h: from logits to the next token. */
#ifndef NANO_SAMPLER_H
#define NANO_SAMPLER_H

#include "nano.h"

typedef struct {
    float logit;
    uint32_t id;
} candidate;

typedef struct {
    nano_sampler_params params;
    uint64_t state; /* of xorshift64*, never 0 */
} sampler;

nano_status sampler_init(sampler *s, const nano_sampler_params *params);

/* xorshift64*: the next number in [0, 1), a multiple of 2^-24. */
double sampler_draw(sampler *s);

/* The tokens of the sequence so far, each once. */
typedef struct {
    size_t n;
    uint32_t *ids;
    float *kept; /* room for n: their logits, while these are changed */
} seen_ids;

/* `logits` [n] are changed by the penalty and put back; `room` [n]. */
nano_status sampler_choose(sampler *s, float *logits, size_t n, const seen_ids *seen, candidate *room,
                           uint32_t *id);

#endif
