/* fuzz_vocab.c: bent vocabularies must be refused or used, never crash, and texts must come back from their
 * ids. Deterministic; build it with sanitizers (make sanitize).
 *
 *     fuzz_vocab [ITERATIONS [SEED]]
 */
#include "tiny_model.h"
#include "tiny_vocab.h"
#include "use_vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned long n_built, n_texts;

static size_t make_text(uint8_t *out, size_t room, uint64_t *state) {
    static const char *const parts[] = {
        "the",          " the",         "'s",           "'LL",
        "123",          "\n\n",         "  ",           "\xE4\xBD\xA0",
        "<|e|>",        "<a>",          "\xCC\x81",     "\xCC\xA3",
        "\xC3\xA9",     "\xE1\x84\x92", "\xE1\x85\xA1", "\xF0\x9D\x85\xA0",
        "\xFF",         "\xC3",         "aaaaaaaa",     "\xC2\xA0",
        "\xE2\x84\xAB", "thingthing",   "\r",           "\xE0\xA5\x98",
    };
    size_t n = 0, length = tiny_random(state) % room;
    while (n + 16 < length) {
        uint64_t r = tiny_random(state);
        const char *part = parts[(r >> 8) % (sizeof parts / sizeof *parts)];
        unsigned times = r % 31 == 0 ? 20 : 1;
        for (unsigned i = 0; i < times && n + 16 < length; i++) {
            if (r % 5 == 0) {
                out[n++] = (uint8_t)(r >> 16);
            } else {
                memcpy(out + n, part, strlen(part));
                n += strlen(part);
            }
        }
    }
    return n;
}

static void use(const vocab *v, uint64_t *state) {
    static uint8_t text[4096];
    for (int i = 0; i < 4; i++) {
        size_t n = make_text(text, i ? 300 : sizeof text, state);
        use_vocab(v, text, n, tiny_random(state) % 2);
        n_texts++;
    }
}

/* One change to the source; what it points to stays in t or is tight memory, listed in `made`. */
static void bend(tiny_vocab *t, uint8_t **made, uint64_t *state) {
    uint64_t r = tiny_random(state);
    uint32_t id = (uint32_t)((r >> 8) % t->source.size), rank = (uint32_t)((r >> 8) % t->source.n_merges);
    uint8_t byte = (uint8_t)(r >> 40);
    text_span *span = r % 2 ? &t->tokens[id] : &t->merges[rank];
    switch (r % 11) {
    case 0:
    case 1: /* another byte somewhere */
        *made = tight_copy(span->bytes, span->n);
        if (span->n) (*made)[(r >> 48) % span->n] = byte;
        span->bytes = *made;
        break;
    case 2:
    case 3: /* cut short */
        if (span->n) *made = tight_copy(span->bytes, span->n - 1);
        if (span->n) *span = (text_span){*made, span->n - 1};
        break;
    case 4:
        t->types[id] = byte % 8;
        break;
    case 5: /* two tokens alike */
        t->tokens[id] = t->tokens[(r >> 48) % t->source.size];
        break;
    case 6: /* another order of merges */
        t->merges[rank] = t->merges[(r >> 48) % t->source.n_merges];
        break;
    case 7:
        t->source.size -= id < 20 ? id : 0;
        break;
    case 8:
        t->source.n_merges = rank + 1;
        break;
    case 9:
        t->source.add_bos = true;
        t->source.bos = byte % 2 ? id : (uint32_t)r;
        t->source.n_stop = byte % 10;
        break;
    default:
        t->types[id] = byte % 2 ? TYPE_USER_DEFINED : TYPE_CONTROL;
    }
}

static void try_merges(uint64_t *state) {
    static tiny_vocab t;
    uint64_t r = tiny_random(state);
    tiny_vocab_make(&t, (pre_kind)(r % 4));
    tiny_vocab_add(&t, "<|e|>", TYPE_CONTROL);
    tiny_vocab_add(&t, "<a>", TYPE_USER_DEFINED);
    tiny_vocab_add(&t, " ", TYPE_UNUSED);
    t.source.nfc = r >> 8 & 1;
    t.source.whole_first = r >> 9 & 1;
    uint8_t *made[4] = {NULL};
    for (unsigned i = 0; i < (r >> 16) % 5; i++) bend(&t, &made[i], state);
    vocab v;
    nano_status status = vocab_build_merges(&v, &t.source);
    for (unsigned i = 0; i < 4; i++) free(made[i]);
    memset(&t, 0xFF, sizeof t);
    if (status == NANO_OK) {
        n_built++;
        use(&v, state);
    }
    vocab_free(&v);
}

/* Tokens that are pieces of a text, with or without the single bytes. */
static void try_trie(uint64_t *state) {
    enum { BYTES = 256, PIECES = 60 };
    static uint8_t text[2000], bytes[BYTES];
    text_span tokens[BYTES + PIECES];
    uint8_t types[BYTES + PIECES];
    size_t n = make_text(text, sizeof text, state);
    uint32_t size = 0, n_bytes = tiny_random(state) % 4 ? BYTES : (uint32_t)(tiny_random(state) % BYTES);
    for (; size < n_bytes; size++) {
        bytes[size] = (uint8_t)size;
        tokens[size] = (text_span){bytes + size, 1};
        types[size] = TYPE_NORMAL;
    }
    for (; size < n_bytes + PIECES; size++) {
        uint64_t r = tiny_random(state);
        size_t from = n ? (r >> 8) % n : 0, length = (r >> 32) % 12;
        tokens[size] = (text_span){text + from, length < n - from ? length : n - from};
        types[size] = (uint8_t)(r % 50 ? 1 + r % 6 : r % 9);
    }
    vocab v;
    uint32_t eos = (uint32_t)(tiny_random(state) % (size + 3));
    if (vocab_build_trie_bytes(&v, size, tokens, types, eos < size + 2 ? eos : NO_ID) == NANO_OK) {
        n_built++;
        memset(text, 0xFF, sizeof text);
        use(&v, state);
    }
    vocab_free(&v);
}

int main(int argc, char **argv) {
    unsigned long iterations = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000;
    uint64_t state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (unsigned long i = 0; i < iterations; i++) {
        try_merges(&state);
        try_trie(&state);
    }
    printf("%-16s %lu vocabularies tried, %lu built, %lu texts encoded\n", "vocabulary", 2 * iterations,
           n_built, n_texts);
    return 0;
}
