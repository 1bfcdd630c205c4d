/* test_text.c: UTF-8, streaming, and both kinds of vocabulary. */
#include "test.h"
#include "tiny_model.h"
#include "utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void utf8(void) {
    TEST("utf8: every character survives writing and reading; no surrogate does");
    unsigned wrong = 0;
    for (uint32_t cp = 0; cp <= 0x10FFFF; cp++) {
        uint8_t bytes[4];
        unsigned n = utf8_write(cp, bytes);
        utf8_char c = utf8_read(bytes, n);
        if (cp >= 0xD800 && cp <= 0xDFFF)
            wrong += c.kind != UTF8_INVALID;
        else
            wrong += c.kind != UTF8_OK || c.length != n || c.code_point != cp;
    }
    CHECK_THAT(wrong == 0, "%u code points", wrong);

    TEST("utf8: what is not UTF-8 is told from what is not complete");
    static const struct {
        const char *bytes;
        utf8_kind kind;
        unsigned length;
    } cases[] = {
        {"\x80", UTF8_INVALID, 1},         {"\xC0\x80", UTF8_INVALID, 1},
        {"\xC3", UTF8_INCOMPLETE, 1},      {"\xE4\xBD", UTF8_INCOMPLETE, 2},
        {"\xE4\xBDz", UTF8_INVALID, 2},    {"\xE0\x80", UTF8_INVALID, 1},
        {"\xED\xA0\x80", UTF8_INVALID, 1}, {"\xF0\x9F\x98", UTF8_INCOMPLETE, 3},
        {"\xF4\x90", UTF8_INVALID, 1},     {"\xF5\x80", UTF8_INVALID, 1},
        {"\xFF", UTF8_INVALID, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        utf8_char c = utf8_read((const uint8_t *)cases[i].bytes, strlen(cases[i].bytes));
        CHECK_THAT(c.kind == cases[i].kind && c.length == cases[i].length, "case %zu: kind %d, length %u", i,
                   (int)c.kind, c.length);
    }
}

/* All of `in` through a stream, `step` bytes at a time, against what is expected. */
static void stream_case(const char *in, size_t step, const char *expected) {
    nano_stream stream = {0};
    char out[256];
    size_t n = 0, size = strlen(in);
    for (size_t at = 0; at < size; at += step)
        n += nano_stream_push(&stream, in + at, size - at < step ? size - at : step, out + n);
    n += nano_stream_finish(&stream, out + n);
    CHECK_THAT(n == strlen(expected) && memcmp(out, expected, n) == 0, "'%s' by %zu gave '%.*s'", in, step,
               (int)n, out);
}

static void streaming(void) {
    TEST("stream: the same text however it is cut; U+FFFD for what is no character");
    for (size_t step = 1; step <= 5; step++) {
        stream_case("plain", step, "plain");
        stream_case("\xE4\xBD\xA0\xE5\xA5\xBD\xF0\x9F\x98\x80!", step,
                    "\xE4\xBD\xA0\xE5\xA5\xBD\xF0\x9F\x98\x80!");
        stream_case("a\xE4\xBD", step, "a\xEF\xBF\xBD");
        stream_case("a\xE4\xBDz\xFFy", step, "a\xEF\xBF\xBDz\xEF\xBF\xBDy");
        stream_case("\xF0\x9F\xE4\xBD\xA0", step, "\xEF\xBF\xBD\xE4\xBD\xA0");
        stream_case("\xED\xA0\x80", step, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
    }
    TEST("stream: holds an incomplete character back");
    nano_stream stream = {0};
    char out[32];
    CHECK(nano_stream_push(&stream, "\xE4\xBD", 2, out) == 0);
    CHECK(nano_stream_push(&stream, "\xA0", 1, out) == 3);
    CHECK(nano_stream_finish(&stream, out) == 0);
}

static nano_model *open_kind(const char *kind, tiny_file *file) {
    nano_model *model;
    *file = tiny_kind_file(kind);
    nano_status status = nano_model_open_memory(&model, file->bytes, file->size, NULL);
    CHECK_THAT(status == NANO_OK, "%s: %s", kind, nano_last_error());
    return model;
}

/* Ids as "1 2 3" */
static void encodes(const nano_model *m, const char *text, bool special, const char *expected) {
    uint32_t *ids;
    size_t n;
    char got[512] = "";
    CHECK(nano_tokenize(m, text, strlen(text), special, &ids, &n) == NANO_OK);
    for (size_t i = 0, at = 0; i < n && at < 480; i++)
        at += (size_t)snprintf(got + at, sizeof got - at, i ? " %u" : "%u", ids[i]);
    CHECK_THAT(strcmp(got, expected) == 0, "'%s' gave %s, not %s", text, got, expected);
    nano_free(ids);
}

static bool survives(const nano_model *m, const uint8_t *bytes, size_t n) {
    uint32_t *ids;
    size_t n_ids, at = 0;
    if (nano_tokenize(m, (const char *)bytes, n, false, &ids, &n_ids)) return false;
    bool same = true;
    for (size_t i = 0; i < n_ids; i++) {
        size_t length;
        const char *token = nano_token_bytes(m, ids[i], &length);
        same = same && at + length <= n && memcmp(token, bytes + at, length) == 0 &&
               !nano_token_is_special(m, ids[i]);
        at += length;
    }
    nano_free(ids);
    return same && at == n;
}

/* Text that likes to be nasty: raw bytes, cut characters, things that look special. */
static size_t nasty_text(uint8_t *out, size_t room, uint64_t *state) {
    static const char *parts[] = {"<|eos|>",          "there",        "abcd", "\xE4\xBD\xA0",
                                  "\xF0\x9F\x98\x80", "\xED\xB2\x80", "\xC3", "<|"};
    size_t n = 0, length = tiny_random(state) % room;
    while (n + 8 < length) {
        uint64_t r = tiny_random(state);
        if (r % 2) {
            out[n++] = (uint8_t)(r >> 8);
        } else {
            const char *part = parts[(r >> 8) % 8];
            memcpy(out + n, part, strlen(part));
            n += strlen(part);
        }
    }
    return n;
}

static void trie(void) {
    tiny_file with_bytes, without;
    nano_model *m = open_kind("f32", &with_bytes), *plain = open_kind("2024", &without);
    if (!m || !plain) return;

    TEST("trie: longest match; ids from the file"); /* bytes 7.., th 263, the 264, there 265, in, ing, <|e,
                                                       ab, abc, abcd 271 */
    encodes(m, "there", false, "265");
    encodes(m, "ther", false, "264 121");
    encodes(m, "thin abcdab", false, "263 266 39 271 269");
    encodes(m, "", false, "");

    TEST("trie: special tokens only where they are allowed");
    encodes(m, "<|eos|>", true, "3");
    encodes(m, "<|eos|>", false, "268 118 122 131 69");
    encodes(m, "a<|bos|><|e", true, "104 2 268");

    TEST("trie: characters outside the vocabulary become their bytes, or unknown");
    encodes(m, "\xC3\xA9", false, "202 176");
    encodes(m, "\xFF", false, "262");
    encodes(m, "\xE4\xB8\x80", false, "272"); /* U+4E00 */
    encodes(plain, "a\xC3\xA9z\xFF", false, "72 1 97 1");
    CHECK(nano_model_config(m)->byte_tokens && !nano_model_config(plain)->byte_tokens);

    TEST("trie: with byte tokens any bytes survive encoding and decoding");
    uint64_t state = 5;
    unsigned lost = 0;
    uint8_t text[512];
    for (int i = 0; i < 2000; i++) lost += !survives(m, text, nasty_text(text, sizeof text, &state));
    CHECK_THAT(lost == 0, "%u of 2000 texts", lost);

    TEST("trie: stop tokens and ids outside the vocabulary");
    size_t n;
    CHECK(nano_token_is_stop(m, 0) && nano_token_is_stop(m, 3) && !nano_token_is_stop(m, 2));
    CHECK(!nano_token_is_stop(m, 300) && !nano_token_is_special(m, 300) && !nano_token_bytes(m, 300, &n));
    CHECK(nano_token_is_special(m, 6) && !nano_token_is_special(m, 7) &&
          nano_model_config(m)->n_special == 7);
    nano_model_close(m);
    nano_model_close(plain);
    free(with_bytes.bytes);
    free(without.bytes);
}

static void bpe(void) {
    tiny_file file;
    nano_model *m = open_kind("qwen3", &file);
    if (!m) return;
    TEST("bpe: merges by score, not by length"); /* th 256, he 257, the 258, " the" 259, in 260, ing 261, ...
                                                  */
    encodes(m, "the", false, "258");
    encodes(m, "he", false, "257");
    encodes(m, " thing", false, "32 256 261");
    encodes(m, "\xE4\xBD\xA0", false, "265");
    TEST("bpe: special tokens only where they are allowed");
    encodes(m, "in<|im_end|>the", true, "260 263 258");
    encodes(m, "<|im_end|>", false, "60 124 105 109 95 101 110 100 124 62");
    CHECK(nano_token_is_stop(m, 262) && nano_token_is_stop(m, 263) && !nano_token_is_stop(m, 3));
    TEST("bpe: any bytes survive; ids without an entry are empty");
    uint64_t state = 6;
    unsigned lost = 0;
    uint8_t text[512];
    for (int i = 0; i < 1000; i++) lost += !survives(m, text, nasty_text(text, sizeof text, &state));
    CHECK_THAT(lost == 0, "%u of 1000 texts", lost);
    size_t n = 9;
    CHECK(nano_token_bytes(m, 299, &n) && n == 0);
    nano_model_close(m);
    free(file.bytes);
}

void test_text(void) {
    utf8();
    streaming();
    trie();
    bpe();
}
