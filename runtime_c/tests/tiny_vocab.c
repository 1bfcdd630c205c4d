/* tiny_vocab.c: a small byte-level BPE vocabulary for tests. */
#include "tiny_vocab.h"

#include "utf8.h"

#include <string.h>

#define SPACE "\xC4\xA0"   /* U+0120, for 0x20 */
#define NEWLINE "\xC4\x8A" /* U+010A, for 0x0A */
#define BYTE_A0 "\xC5\x82" /* U+0142, for 0xA0 */
#define BYTE_E4 "\xC3\xA4"
#define BYTE_BD "\xC2\xBD"

const char *const tiny_merge_list[] = {
    "t h",
    "th e",
    SPACE " t",
    SPACE "t he",
    "h e",
    "i n",
    "in g",
    "a a",
    "aa aa",
    BYTE_E4 " " BYTE_BD,
    BYTE_E4 BYTE_BD " " BYTE_A0,
    "1 2",
    "12 3",
    "' s",
    NEWLINE " " NEWLINE,
    SPACE " " SPACE,
    NULL,
};

text_span span_of(const char *text) {
    return (text_span){(const uint8_t *)text, strlen(text)};
}

uint32_t tiny_vocab_add(tiny_vocab *t, const char *text, token_type type) {
    uint32_t id = t->source.size++;
    strcpy(t->text[id], text);
    t->tokens[id] = span_of(t->text[id]);
    t->types[id] = (uint8_t)type;
    return id;
}

void tiny_vocab_make(tiny_vocab *t, pre_kind pre) {
    memset(t, 0, sizeof *t);
    uint32_t shifted = 0x100;
    for (unsigned b = 0; b < 256; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b != 0xAD);
        uint8_t utf8[5] = {0};
        utf8_write(printable ? b : shifted++, utf8);
        tiny_vocab_add(t, (const char *)utf8, TYPE_NORMAL);
    }
    uint32_t n = 0;
    for (; tiny_merge_list[n]; n++) {
        char joined[40] = "";
        const char *gap = strchr(tiny_merge_list[n], ' ');
        strncat(joined, tiny_merge_list[n], (size_t)(gap - tiny_merge_list[n]));
        strcat(joined, gap + 1);
        bool known = false;
        for (uint32_t id = 256; id < t->source.size; id++) known |= strcmp(t->text[id], joined) == 0;
        if (!known) tiny_vocab_add(t, joined, TYPE_NORMAL);
        t->merges[n] = span_of(tiny_merge_list[n]);
    }
    t->source.tokens = t->tokens;
    t->source.types = t->types;
    t->source.merges = t->merges;
    t->source.n_merges = n;
    t->source.pre = pre;
    t->source.bos = NO_ID;
}
