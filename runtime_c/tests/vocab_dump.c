/* vocab_dump.c: reads a vocabulary as the tests hand it over. */
#include "vocab_dump.h"

#include "bytes.h"

#include <stdio.h>
#include <stdlib.h>

enum { HEADER_WORDS = 14 };

typedef struct {
    const uint8_t *bytes;
    size_t n;
    bool ok;
} cursor;

static uint32_t take_u32(cursor *c) {
    if (c->n < 4) c->ok = false;
    if (!c->ok) return 0;
    uint32_t value = load_u32(c->bytes);
    c->bytes += 4;
    c->n -= 4;
    return value;
}

static text_span take_span(cursor *c) {
    uint32_t n = take_u32(c);
    if (n > c->n) c->ok = false;
    if (!c->ok) return (text_span){NULL, 0};
    text_span span = {c->bytes, n};
    c->bytes += n;
    c->n -= n;
    return span;
}

bool vocab_dump_read(vocab_dump *dump, const uint8_t *bytes, size_t n) {
    cursor c = {bytes, n, true};
    merge_source *s = &dump->source;
    uint32_t words[HEADER_WORDS];
    for (unsigned i = 0; i < HEADER_WORDS; i++) words[i] = take_u32(&c);
    *s = (merge_source){.size = words[0],
                        .n_merges = words[1],
                        .pre = (pre_kind)words[2],
                        .bos = words[4],
                        .n_stop = words[5]};
    s->nfc = words[3] & 1;
    s->whole_first = words[3] & 2;
    s->add_bos = words[3] & 4;
    memcpy(s->stop_ids, words + 6, sizeof s->stop_ids);
    if (!c.ok || s->size > c.n / 8 || s->n_merges > c.n / 4) return false;
    dump->tokens = malloc((s->size + 1) * sizeof *dump->tokens);
    dump->merges = malloc((s->n_merges + 1) * sizeof *dump->merges);
    dump->types = malloc(s->size + 1);
    for (uint32_t id = 0; id < s->size; id++) {
        dump->types[id] = (uint8_t)take_u32(&c);
        dump->tokens[id] = take_span(&c);
    }
    for (uint32_t i = 0; i < s->n_merges; i++) dump->merges[i] = take_span(&c);
    s->tokens = dump->tokens;
    s->merges = dump->merges;
    s->types = dump->types;
    if (!c.ok || c.n) vocab_dump_free(dump);
    return c.ok && !c.n;
}

void vocab_dump_free(vocab_dump *dump) {
    free(dump->tokens);
    free(dump->merges);
    free(dump->types);
}

uint8_t *read_whole_file(const char *path, size_t *n) {
    FILE *in = fopen(path, "rb");
    uint8_t *bytes = NULL;
    long size = -1;
    if (in && !fseek(in, 0, SEEK_END) && (size = ftell(in)) >= 0 && !fseek(in, 0, SEEK_SET)) {
        bytes = malloc((size_t)size + 1);
        if (bytes && fread(bytes, 1, (size_t)size, in) != (size_t)size) {
            free(bytes);
            bytes = NULL;
        }
    }
    if (!bytes) perror(path);
    if (in) fclose(in);
    *n = (size_t)size;
    return bytes;
}
