/* session.h: one running text. */
#ifndef NANO_SESSION_H
#define NANO_SESSION_H

#include "model.h"
#include "sampler.h"
#include "threads.h"

/* Legend: as in model.h; N = tokens computed at once, C = context. */
struct nano_session {
    const nano_model *model;
    const nano_adapter *adapter;
    const kernels *k;
    team *team;
    uint32_t context, length, batch;

    float *x, *normed;          /* [N,E] residual stream; what a block reads of it */
    float *q, *attended;        /* [N,Q] */
    float *key, *value;         /* [N,KV], before they go into the cache */
    float *gate, *up;           /* [N,F] */
    float *block_out;           /* [N,E] what a block adds to the stream */
    float *low_rank, *lora_out; /* [N,rank], [N,max(E,Q,F)]; NULL without an adapter */
    float *scores;              /* [threads,C] */
    float *key_cache;           /* [L,n_kv_head,C,head_dim] */
    float *value_cache;         /* the same */
    float *rope_cos, *rope_sin; /* [C,head_dim/2], if the model has none of its own */
    float *logits;              /* [V] */

    sampler sampler;
    float *penalised;      /* [V] */
    candidate *candidates; /* [V] */
    uint8_t *seen;         /* [V] */
};

/* forward.c: computes n <= batch tokens at positions length .. length + n - 1. `all_logits` [n,V] or NULL;
 * `want_last`: fill session->logits. */
void forward(nano_session *s, const uint32_t *ids, uint32_t n, float *all_logits, bool want_last);

#endif
