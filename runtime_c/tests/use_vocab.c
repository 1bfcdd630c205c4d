/* use_vocab.c: see use_vocab.h. */
#include "use_vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what) {
    fprintf(stderr, "vocabulary: %s\n", what);
    abort();
}

uint8_t *tight_copy(const void *bytes, size_t n) {
    uint8_t *copy = malloc(n ? n : 1);
    if (!copy) fail("no memory for the fuzzer itself");
    if (n) memcpy(copy, bytes, n);
    return copy;
}

static void push(nano_stream *stream, const uint8_t *bytes, size_t n) {
    char *out = malloc(NANO_STREAM_ROOM(n));
    if (!out) fail("no memory for the fuzzer itself");
    if (nano_stream_push(stream, (const char *)bytes, n, out) > NANO_STREAM_ROOM(n))
        fail("a stream wrote more than its room");
    free(out);
}

void use_vocab(const vocab *v, const uint8_t *text, size_t n, bool allow_special) {
    uint8_t *copy = tight_copy(text, n);
    uint32_t *ids;
    size_t n_ids, at = 0;
    nano_stream stream = {0};
    char tail[12];
    if (vocab_encode(v, copy, n, allow_special, &ids, &n_ids)) fail("a text was not encoded");
    bool same = true;
    for (size_t i = 0; i < n_ids; i++) {
        if (ids[i] >= v->size) fail("an id is outside the vocabulary");
        if (v->special[ids[i]] && !allow_special && v->byte_tokens) fail("a text became a special token");
        size_t length;
        const uint8_t *bytes = vocab_bytes(v, ids[i], &length);
        same = same && length <= n - at && memcmp(bytes, copy + at, length) == 0;
        at += same ? length : 0;
        push(&stream, bytes, length);
    }
    if (nano_stream_finish(&stream, tail) > sizeof tail) fail("a stream wrote more than its room");
    if (v->byte_tokens && !v->nfc && (!same || at != n)) fail("a text did not come back");
    plat_free(ids);
    free(copy);
}
