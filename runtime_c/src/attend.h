/* attend.h: attention, from q, k and v of the new tokens to what the heads found. */
#ifndef NANO_ATTEND_H
#define NANO_ATTEND_H

#include "session.h"

/* s->q, s->key, s->value of n tokens: QK-norm and RoPE; keys and values go into the cache of layer l. */
void place_heads(nano_session *s, uint32_t l, uint32_t n);
/* s->attended of n tokens, from s->q and the cache. */
void attend(nano_session *s, uint32_t l, uint32_t n);
/* One head's key, or value, at a position: head_dim halves or floats, as the cache has them. */
void cache_read(const nano_session *s, uint32_t l, uint32_t kv_head, size_t position, bool value, void *to);
void cache_write(nano_session *s, uint32_t l, uint32_t kv_head, size_t position, bool value,
                 const void *from);
/* Angles of the first n positions, where the model has no table of its own. */
void fill_rope(nano_session *s, uint32_t n);

#endif
