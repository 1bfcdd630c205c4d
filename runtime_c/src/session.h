/* session.h: one running text. */
#ifndef NANO_SESSION_H
#define NANO_SESSION_H

#include "draft.h"
#include "model.h"
#include "sampler.h"
#include "threads.h"

/* Legend: as in model.h; N = tokens computed at once, C = context, W = head_dim rounded up to 16. */
struct nano_session {
    const nano_model *model;
    const nano_adapter *adapter;
    const kernels *k;
    team *team;
    uint32_t context, length, batch;
    uint32_t width, n_chunks; /* W; ceil(C / CHUNK) */
    bool halves;              /* the cache holds halves, not floats */

    float *x, *normed;   /* [N,E] residual stream; what a block reads of it */
    float *q, *attended; /* [N,Q] */
    float *key, *value;  /* [N,KV], before they go into the cache */
    float *gate, *up;    /* [N,F] */
    float *block_out;    /* [N,E] what a block adds to the stream */
    float *input_floats; /* [N,max(E,Q,F)] the floats of `input` */
    activations input;   /* room for [N,max(E,Q,F)]: what matrices are multiplied with */
    float *low_rank;     /* [3,N,rank] A x of the adapter's pairs; NULL without one */
    float *head_room;    /* [threads, head_room_floats()] what attention needs for one tile of queries */
    float *parts;        /* [n_head,n_chunks,W + 2] one token's attention, chunk by chunk */
    void *key_cache;     /* [L,n_kv_head,C/16,W,16], C rounded up to 16 */
    void *value_cache;   /* [L,n_kv_head,C,W], the same */
    float *rope_cos, *rope_sin; /* [C,head_dim/2], if the model has none of its own */
    uint32_t rope_ready;        /* positions of these that are filled */
    float *logits;              /* [V] after the last token */
    float *rows;                /* [DRAFT_BATCH,V] of a batch with guesses; NULL before the first */
    bool logits_ready;

    uint32_t *ids;   /* [C] the tokens so far */
    uint64_t by;     /* fingerprint of the adapter with which they were evaluated; 0: none */
    bool by_several; /* not all with the same */

    sampler sampler;
    candidate *candidates; /* [V] */
    bool *seen;            /* [V] */
    seen_ids distinct;     /* [min(C,V)] those that are seen, in the order of their first occurrence */

    drafter draft;
    uint32_t chosen_at, n_chosen; /* tokens that the last generate() appended, if nothing came after */
    uint64_t states[DRAFT_BATCH]; /* of the generator, before each */
    nano_session_stats stats;
};

/* Floats that one thread needs for attention. */
static inline size_t head_room_floats(uint32_t width) {
    return (size_t)MAX_QUERIES * (3 * (size_t)width + CHUNK + 4);
}

static inline size_t cache_positions(uint32_t context) {
    return ((size_t)context + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;
}

/* Tokens are about to be evaluated with the adapter that is set. */
void session_note_adapter(nano_session *s);
/* One more token at the end of the text, evaluated or about to be. */
void session_append(nano_session *s, uint32_t id);
/* Fills s->logits, if they are not there. */
nano_status session_need_logits(nano_session *s);
/* The next token by these logits [V] and the text so far. */
nano_status session_choose(nano_session *s, float *logits, uint32_t *id);

/* session_file.c: the session that these bytes of a file called `name` describe. */
nano_status session_restore(nano_session *s, const uint8_t *bytes, size_t size, const char *name);

/* forward.c: computes n <= batch tokens at positions length .. length + n - 1. `all_logits` [n,V] or NULL;
 * `want_last`: fill session->logits. */
void forward(nano_session *s, const uint32_t *ids, uint32_t n, float *all_logits, bool want_last);

#endif
