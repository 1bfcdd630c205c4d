/* test_vocab.c: vocabularies as GGUF and tokenizer.json have them: byte-level BPE, and tries of bytes. That
 * their ids are those of Hugging Face's library is for tests/test_c_bpe.py; here is what can be said without
 * it. */
#include "model.h"
#include "nfc.h"
#include "test.h"
#include "tiny_model.h"
#include "tiny_vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The pieces with '|' between them. */
static void cuts(pre_kind kind, const char *text, const char *expected) {
    char got[256];
    size_t n = strlen(text), length = 0;
    for (size_t at = 0; at < n;) {
        size_t end = pretoken_end(kind, (const uint8_t *)text, at, n);
        CHECK_THAT(end > at && end <= n, "'%s': a piece from %zu to %zu", text, at, end);
        if (end <= at || end > n) return;
        if (at) got[length++] = '|';
        memcpy(got + length, text + at, end - at);
        length += end - at;
        at = end;
    }
    got[length] = 0;
    CHECK_THAT(strcmp(got, expected) == 0, "kind %d: '%s' was cut as '%s', not '%s'", (int)kind, text, got,
               expected);
}

static void pretokens(void) {
    TEST("pretokens: GPT-2");
    cuts(PRE_GPT2, "", "");
    cuts(PRE_GPT2, "Hello world", "Hello| world");
    cuts(PRE_GPT2, "it's we'll I'LL 're'd", "it|'s| we|'ll| I|'|LL| '|re|'d");
    cuts(PRE_GPT2, "a  b   1", "a| | b|  | 1");
    cuts(PRE_GPT2, "abc123 45!? ...x", "abc|123| 45|!?| ...|x");
    cuts(PRE_GPT2, " \n\n x  ", " \n\n| x|  ");
    cuts(PRE_GPT2,
         "a\tb\xC2\xA0"
         "c",
         "a|\t|b|\xC2\xA0|c");
    cuts(PRE_GPT2, "\xE4\xBD\xA0\xE5\xA5\xBD\xEF\xBC\x8C\xD9\xA1",
         "\xE4\xBD\xA0\xE5\xA5\xBD|\xEF\xBC\x8C|\xD9\xA1");
    cuts(PRE_GPT2, "e\xCC\x81t", "e|\xCC\x81|t"); /* a mark is no letter */
    TEST("pretokens: SmolLM, each digit alone, and space before it stays together");
    cuts(PRE_SMOLLM, "abc123 45 x", "abc|1|2|3| |4|5| x");
    cuts(PRE_SMOLLM, "a   1  b", "a|   |1| | b");
    cuts(PRE_SMOLLM, "\xC2\xBD\xE2\x85\xA7x's", "\xC2\xBD|\xE2\x85\xA7|x|'s");
    TEST("pretokens: Llama 3, numbers by three, either case, new lines");
    cuts(PRE_LLAMA3, "It'S WE'LL '\xC5\xBFx", "It|'S| WE|'LL| '|\xC5\xBFx");
    cuts(PRE_LLAMA3, "x'\xC5\xBFx", "x|'\xC5\xBF|x");
    cuts(PRE_LLAMA3, "12345 6", "123|45| |6");
    cuts(PRE_LLAMA3, "(foo)\n\nbar \t\n  baz", "(foo|)\n\n|bar| \t\n| | baz");
    cuts(PRE_LLAMA3, "\tx ..\r\n\r\n!  ", "\tx| ..\r\n\r\n|!|  ");
    cuts(PRE_LLAMA3, "\nx\n", "\n|x|\n");
    cuts(PRE_LLAMA3,
         "a \xC2\xA0"
         "b",
         "a| |\xC2\xA0"
         "b");
    TEST("pretokens: Qwen, as Llama 3 but each digit alone");
    cuts(PRE_QWEN2, "12345 6'Re", "1|2|3|4|5| |6|'Re");
    TEST("pretokens: bytes that are no UTF-8 are neither letter, number nor space");
    cuts(PRE_GPT2, "a\xFF\xC3 b", "a|\xFF\xC3| b");
    cuts(PRE_QWEN2,
         "\xFF"
         "a\xE4\xBD\n",
         "\xFF"
         "a|\xE4\xBD\n");
    TEST("pretokens: names");
    pre_kind kind = PRE_GPT2;
    CHECK(pre_kind_from_name((const uint8_t *)"llama-bpe", 9, &kind) && kind == PRE_LLAMA3);
    CHECK(pre_kind_from_name((const uint8_t *)"qwen2", 5, &kind) && kind == PRE_QWEN2);
    CHECK(pre_kind_from_name((const uint8_t *)"smollm", 6, &kind) && kind == PRE_SMOLLM);
    CHECK(pre_kind_from_name((const uint8_t *)"gpt-2", 5, &kind) && kind == PRE_GPT2);
    CHECK(!pre_kind_from_name((const uint8_t *)"qwen", 4, &kind));
    CHECK(!pre_kind_from_name((const uint8_t *)"qwen25", 6, &kind));
    CHECK(!pre_kind_from_name((const uint8_t *)"", 0, &kind));
}

static void normal_form(const char *text, const char *expected) {
    uint8_t out[256];
    nfc_scratch scratch = {0};
    size_t n, length = strlen(text);
    CHECK(nfc_write((const uint8_t *)text, length, &scratch, out, &n) == NANO_OK);
    CHECK_THAT(n == strlen(expected) && memcmp(out, expected, n) == 0, "'%s' became '%.*s'", text, (int)n,
               out);
    bool same = strcmp(text, expected) == 0;
    CHECK_THAT(same || nfc_done((const uint8_t *)text, length) < length, "'%s' passes for normal", text);
    plat_free(scratch.points);
}

static void normalising(void) {
    TEST("nfc: marks join, sort, and stop at what is between them");
    normal_form("plain \xE4\xBD\xA0 \xC3\xA9", "plain \xE4\xBD\xA0 \xC3\xA9");
    normal_form("xe\xCC\x81y", "x\xC3\xA9y");
    normal_form("e\xCC\x81\xCC\xA3", "\xE1\xBA\xB9\xCC\x81"); /* U+0323 goes before U+0301 */
    normal_form("\xCC\x81"
                "e",
                "\xCC\x81"
                "e");                                                    /* nothing to join */
    normal_form("e\xFF\xCC\x81", "e\xFF\xCC\x81");                       /* a stray byte is in between */
    normal_form("e\xCC\xB4\xCC\x81", "\xC3\xA9\xCC\xB4");                /* U+0334 does not block U+0301 */
    normal_form("\xE2\x84\xAB\xE2\x84\xAA", "\xC3\x85K");                /* Angstrom, Kelvin */
    normal_form("\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", "\xED\x95\x9C"); /* Hangul by arithmetic */
    normal_form("\xED\x95\x98\xE1\x86\xAB", "\xED\x95\x9C");
    normal_form("\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC"); /* U+0958 never stays whole */
    normal_form("\xF0\x9D\x85\xA0", "\xF0\x9D\x85\x98\xF0\x9D\x85\xA5\xF0\x9D\x85\xAE"); /* grows threefold */

    TEST("nfc: a letter with 200,000 marks takes no quadratic time");
    size_t n = 1 + 2 * 200000, n_out;
    uint8_t *text = malloc(n), *out = malloc(NFC_GROWTH * n);
    nfc_scratch scratch = {0};
    text[0] = 'q'; /* U+0301 (class 230) and U+0323 (220) in turns */
    for (size_t i = 1; i < n; i += 2) {
        text[i] = 0xCC;
        text[i + 1] = i % 4 == 1 ? 0x81 : 0xA3;
    }
    CHECK(nfc_write(text, n, &scratch, out, &n_out) == NANO_OK && n_out == n);
    bool sorted = true;
    for (size_t i = 1; i < n; i += 2) sorted &= out[i + 1] == (i < n / 2 ? 0xA3 : 0x81);
    CHECK(sorted);
    plat_free(scratch.points);
    free(text);
    free(out);
}

/* The definition: look at all neighbours, merge the best, begin again. */
static uint32_t merge_plainly(const merge_rule *rules, uint32_t n_rules, uint32_t *ids, uint32_t n) {
    for (;;) {
        const merge_rule *best = NULL;
        uint32_t where = 0;
        for (uint32_t i = 0; i + 1 < n; i++)
            for (uint32_t r = 0; r < n_rules; r++) {
                if (rules[r].left_plus_1 != ids[i] + 1 || rules[r].right != ids[i + 1]) continue;
                if (best && best->rank <= rules[r].rank) continue;
                best = &rules[r];
                where = i;
            }
        if (!best) return n;
        ids[where] = best->result;
        n--;
        for (uint32_t i = where + 1; i < n; i++) ids[i] = ids[i + 1];
    }
}

static void merging(void) {
    TEST("merge: short and long pieces are merged as by definition, whatever the rules");
    enum { RULES = 30, MOST = 300 };
    uint64_t state = 3;
    unsigned wrong = 0;
    merge_work work = {0};
    for (int round = 0; round < 300; round++) {
        merge_rule rules[RULES];
        merge_table table;
        uint32_t n_rules = 0, ids[MOST], expected[MOST];
        CHECK(merge_table_open(&table, RULES));
        for (uint32_t rank = 0; rank < RULES; rank++) {
            uint32_t left = (uint32_t)(tiny_random(&state) % 8), right = (uint32_t)(tiny_random(&state) % 8);
            bool known = false;
            for (uint32_t r = 0; r < n_rules; r++)
                known |= rules[r].left_plus_1 == left + 1 && rules[r].right == right;
            if (known) continue;
            rules[n_rules++] = (merge_rule){left + 1, right, rank, (uint32_t)(tiny_random(&state) % 12)};
            merge_table_add(&table, left, right, rank, rules[n_rules - 1].result);
        }
        uint32_t n = (uint32_t)(tiny_random(&state) % (round % 2 ? MOST : 60)), n_got = n;
        for (uint32_t i = 0; i < n; i++) expected[i] = ids[i] = (uint32_t)(tiny_random(&state) % 4);
        uint32_t n_expected = merge_plainly(rules, n_rules, expected, n);
        CHECK(merge_ids(&table, &work, ids, &n_got) == NANO_OK);
        wrong += n_got != n_expected || memcmp(ids, expected, n_got * sizeof *ids) != 0;
        merge_table_free(&table);
    }
    merge_work_free(&work);
    CHECK_THAT(wrong == 0, "%u of 300", wrong);
}

/* Ids as "1 2 3" */
static void encodes(const nano_model *m, const char *text, size_t n, bool special, const char *expected) {
    uint32_t *ids;
    size_t n_ids;
    char got[512] = "";
    CHECK(nano_tokenize(m, text, n, special, &ids, &n_ids) == NANO_OK);
    for (size_t i = 0, at = 0; i < n_ids && at < 480; i++)
        at += (size_t)snprintf(got + at, sizeof got - at, i ? " %u" : "%u", ids[i]);
    CHECK_THAT(strcmp(got, expected) == 0, "'%.*s' gave %s, not %s", (int)n, text, got, expected);
    nano_free(ids);
}
#define ENCODES(m, text, special, expected) encodes(m, text, sizeof(text) - 1, special, expected)

static nano_model *build(tiny_vocab *t) {
    nano_model *m = plat_alloc(sizeof *m);
    nano_status status = vocab_build_merges(&m->vocab, &t->source);
    CHECK_THAT(status == NANO_OK, "%s", nano_last_error());
    memset(t->text, '#', sizeof t->text); /* nothing of the source is needed any more */
    return m;
}

static void done(nano_model *m) {
    vocab_free(&m->vocab);
    plat_free(m);
}

static void merges(void) {
    static tiny_vocab t;
    tiny_vocab_make(&t, PRE_GPT2);
    nano_model *m = build(&t);
    TEST("merges: by rank, not by length; nothing crosses a cut");
    ENCODES(m, "the the", false, "257 32 257"); /* ' the' is a token that no merges reach */
    ENCODES(m, "thing", false, "256 262");
    ENCODES(m, "he's", false, "260 269");
    ENCODES(m, "\xE4\xBD\xA0", false, "266");
    ENCODES(m, "aaa aaaaa", false, "263 97 32 264 97");
    ENCODES(m, "1234\n\n\n", false, "268 52 270 10");
    ENCODES(m, "", true, "");
    TEST("merges: the same word again, from what was kept of it");
    ENCODES(m, "the to the thing to the", false, "257 258 111 32 257 32 256 262 258 111 32 257");
    TEST("merges: bytes that are no UTF-8, and zero");
    ENCODES(m, "\xFF\xC3 t\0t", false, "255 195 258 0 116");
    TEST("merges: a token gives its bytes; what begins and ends a text is what the source says");
    size_t n;
    const char *bytes = nano_token_bytes(m, 259, &n);
    CHECK(n == 4 && memcmp(bytes, " the", 4) == 0 && m->vocab.byte_tokens && m->vocab.max_token == 4);
    CHECK(!nano_token_bytes(m, m->vocab.size, &n) && n == 0);
    uint32_t bos;
    CHECK(!nano_token_bos(m, &bos) && !nano_token_is_stop(m, 3));
    done(m);

    TEST("merges: a megabyte of one letter, and other long words");
    tiny_vocab_make(&t, PRE_GPT2);
    m = build(&t);
    size_t size = 1 << 20, n_ids;
    char *text = malloc(size);
    memset(text, 'a', size);
    uint32_t *ids;
    CHECK(nano_tokenize(m, text, size, false, &ids, &n_ids) == NANO_OK && n_ids == size / 4 && ids[9] == 264);
    nano_free(ids);
    for (size_t i = 0; i < size; i++) text[i] = "the"[i % 3];
    CHECK(nano_tokenize(m, text, size, false, &ids, &n_ids) == NANO_OK && n_ids == size / 3 + 1 &&
          ids[9] == 257);
    nano_free(ids);
    CHECK(nano_tokenize(m, text, UINT32_MAX / 8, false, &ids, &n_ids) == NANO_ERR_ARGUMENT && !ids);
    free(text);
    done(m);

    TEST("merges: a byte without a token is left out before merging");
    tiny_vocab_make(&t, PRE_GPT2);
    t.types['x'] = TYPE_UNUSED;
    m = build(&t);
    ENCODES(m, "txhe x", false, "257 32");
    CHECK(!m->vocab.byte_tokens);
    done(m);
}

static void added(void) {
    static tiny_vocab t;
    tiny_vocab_make(&t, PRE_QWEN2);
    uint32_t eos = tiny_vocab_add(&t, "<|end|>", TYPE_CONTROL); /* 272 */
    tiny_vocab_add(&t, "<tool>", TYPE_USER_DEFINED);            /* 273 */
    tiny_vocab_add(&t, "<tool", TYPE_USER_DEFINED);             /* 274 */
    tiny_vocab_add(&t, "end", TYPE_USER_DEFINED);               /* 275 */
    tiny_vocab_add(&t, "[PAD]", TYPE_UNUSED);                   /* 276 */
    tiny_vocab_add(&t, "\xE2\x96\x81 x", TYPE_NORMAL);          /* 277: not in the alphabet */
    tiny_vocab_add(&t, "", TYPE_CONTROL);                       /* 278 */
    t.source.stop_ids[t.source.n_stop++] = eos;
    t.source.stop_ids[t.source.n_stop++] = 5;
    t.source.add_bos = true;
    t.source.bos = 7;
    t.source.nfc = true;
    nano_model *m = build(&t);
    TEST("added tokens: special ones only where they are allowed, user-defined ones anywhere, unused ones "
         "never");
    ENCODES(m, "the<|end|>the", true, "257 272 257");
    ENCODES(m, "<tool>the<toolx[PAD]", false, "273 257 274 120 91 80 65 68 93");
    ENCODES(m, "the end", false, "257 32 275");
    TEST("added tokens: where a special one may not be, all of it is text, also what is inside it");
    ENCODES(m, "<|end|>end", false, "60 124 101 110 100 124 62 275");
    TEST("added tokens: normal form stops at them");
    ENCODES(m, "e\xCC\x81", false, "195 169");
    ENCODES(m, "end\xCC\x81", false, "275 204 129");
    ENCODES(m, "\xE2\x84\xAA<tool>e\xCC\x81", false, "75 273 195 169");
    TEST("added tokens: their bytes, kinds, ends and beginnings");
    size_t n;
    uint32_t bos;
    CHECK(memcmp(nano_token_bytes(m, 277, &n), "\xE2\x96\x81 x", 5) == 0 && n == 5);
    CHECK(nano_token_is_special(m, 272) && !nano_token_is_special(m, 273) && m->vocab.n_special == 2);
    CHECK(nano_token_is_stop(m, 272) && nano_token_is_stop(m, 5) && !nano_token_is_stop(m, 0));
    CHECK(nano_token_bos(m, &bos) && bos == 7);
    done(m);

    TEST("added tokens: no text becomes a special token by merging; a user-defined one it may");
    tiny_vocab_make(&t, PRE_GPT2);
    t.types[257] = TYPE_CONTROL; /* the */
    m = build(&t);
    ENCODES(m, "the", false, "256 101");
    ENCODES(m, "the", true, "257");
    done(m);
    tiny_vocab_make(&t, PRE_GPT2);
    t.types[256] = TYPE_USER_DEFINED; /* th */
    m = build(&t);
    ENCODES(m, "the", false, "256 101");
    done(m);

    TEST("whole first: a pre-token that is a token needs no merges");
    for (int whole = 0; whole < 2; whole++) {
        tiny_vocab_make(&t, PRE_LLAMA3);
        tiny_vocab_add(&t, "xyz", TYPE_NORMAL);   /* 272 */
        tiny_vocab_add(&t, "(xyz", TYPE_CONTROL); /* 273 */
        t.source.whole_first = whole;
        m = build(&t);
        ENCODES(m, "xyz xyz(xyz", false,
                whole ? "272 32 120 121 122 40 120 121 122" : "120 121 122 32 120 121 122 40 120 121 122");
        done(m);
    }
}

static void refused(tiny_vocab *t, const char *says) {
    vocab v;
    nano_status status = vocab_build_merges(&v, &t->source);
    CHECK_THAT(status == NANO_ERR_FORMAT && strstr(nano_last_error(), says), "%d: '%s' does not say '%s'",
               (int)status, nano_last_error(), says);
    vocab_free(&v);
}

static void bad_sources(void) {
    static tiny_vocab t;
    TEST("merges: what is wrong with a source is said");
    static const struct {
        const char *merge, *says;
    } cases[] = {
        {"ab", "merge 2 is not two tokens"},   {" b", "merge 2 is not two tokens"},
        {"a ", "merge 2 is not two tokens"},   {"", "merge 2 is not two tokens"},
        {"a b", "merge 2 needs a token that"}, {"zz a", "merge 2 needs a token that"},
        {"t h e", "merge 2 has a character"},  {"t \xE4\xBD\xA0", "merge 2 has a character"},
        {"t \xFF", "merge 2 has a character"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tiny_vocab_make(&t, PRE_GPT2);
        t.merges[2] = span_of(cases[i].merge);
        refused(&t, cases[i].says);
    }
    tiny_vocab_make(&t, PRE_GPT2);
    t.types[9] = 0;
    refused(&t, "token 9 has type 0");
    t.types[9] = 7;
    refused(&t, "token 9 has type 7");
    t.types[9] = TYPE_BYTE;
    refused(&t, "token 9 has type 6 (byte)");
    tiny_vocab_make(&t, PRE_GPT2);
    t.source.add_bos = true;
    refused(&t, "beginning-of-text");
    tiny_vocab_make(&t, PRE_GPT2);
    t.source.n_stop = 1;
    t.source.stop_ids[0] = t.source.size;
    refused(&t, "the end-of-text token has id 272, but there are only 272");
    t.source.n_stop = 9;
    refused(&t, "9 tokens end a text");
    t.source.n_stop = 0;
    t.tokens[4].n = SIZE_MAX / 2;
    refused(&t, "token 4 has");
    t.source.n_merges = UINT32_MAX;
    refused(&t, "too many");
    t.source.size = 0;
    refused(&t, "no tokens");
}

static void byte_tries(void) {
    static text_span tokens[300];
    static uint8_t types[300], bytes[256];
    static const char *const words[] = {"<|padding|>", "<|unknown|>", "<|eos|>",          "the",
                                        "there",       "[unused]",    "\xE4\xBD\xA0\xE5", "\xE5\xA5\xBD"};
    uint32_t size = 0;
    for (; size < 8; size++) {
        tokens[size] = span_of(words[size]);
        types[size] = size == 1   ? TYPE_UNKNOWN
                      : size < 3  ? TYPE_CONTROL
                      : size == 5 ? TYPE_UNUSED
                                  : TYPE_NORMAL;
    }
    for (unsigned b = 0; b < 256; b++, size++) { /* id 8 + byte */
        bytes[b] = (uint8_t)b;
        tokens[size] = (text_span){bytes + b, 1};
        types[size] = b % 2 ? TYPE_NORMAL : TYPE_BYTE;
    }
    nano_model *m = plat_alloc(sizeof *m);
    CHECK(vocab_build_trie_bytes(&m->vocab, size, tokens, types, 2) == NANO_OK);
    TEST("byte trie: the longest match; special tokens only where they are allowed, unused ones never");
    ENCODES(m, "therethe th", false, "4 3 40 124 112");
    ENCODES(m, "a<|eos|><|padding|>", true, "105 2 0");
    ENCODES(m, "<|eos|>", false, "68 132 109 119 123 132 70");
    ENCODES(m, "[u", false, "99 125");
    TEST("byte trie: tokens may end within a character; any bytes are encoded");
    ENCODES(m, "\xE4\xBD\xA0\xE5\xA5\xBD\xFF", false, "6 173 197 263");
    ENCODES(m, "\xE5\xA5\xBD", false, "7");
    CHECK(m->vocab.byte_tokens && m->vocab.n_special == 3);
    CHECK(nano_token_is_stop(m, 2) && nano_token_is_stop(m, 0) && !nano_token_is_stop(m, 1));
    done(m);

    TEST("byte trie: one unknown for each character that cannot be spelled");
    m = plat_alloc(sizeof *m);
    CHECK(vocab_build_trie_bytes(&m->vocab, 5, tokens, types, NO_ID) == NANO_OK);
    ENCODES(m, "the\xE4\xBD\xA0\xFFx", false, "3 1 1 1");
    CHECK(!m->vocab.byte_tokens && !nano_token_is_stop(m, 2));
    done(m);

    TEST("byte trie: a special token that is a single byte does not hide that byte");
    tokens[2] = span_of("a");
    m = plat_alloc(sizeof *m);
    CHECK(vocab_build_trie_bytes(&m->vocab, size, tokens, types, NO_ID) == NANO_OK);
    ENCODES(m, "ab", false, "105 106");
    ENCODES(m, "ab", true, "2 106");
    done(m);

    TEST("byte trie: bad sources are refused");
    vocab v;
    CHECK(vocab_build_trie_bytes(&v, 5, tokens, types, 5) == NANO_ERR_FORMAT &&
          strstr(nano_last_error(), "end-of-text token has id 5"));
    vocab_free(&v);
    CHECK(vocab_build_trie_bytes(&v, 0, tokens, types, NO_ID) == NANO_ERR_FORMAT);
    vocab_free(&v);
    types[4] = 9;
    CHECK(vocab_build_trie_bytes(&v, 5, tokens, types, NO_ID) == NANO_ERR_FORMAT);
    vocab_free(&v);
}

static nano_status read_points(const uint32_t *points, uint8_t n) {
    uint8_t section[32] = {0};
    uint32_t size = 16 + 4u * n, n_tokens = 1;
    memcpy(section, &size, 4);
    memcpy(section + 4, &n_tokens, 4);
    section[8] = n;
    section[10] = section[11] = 0xFF;
    memcpy(section + 16, points, 4 * (size_t)n);
    vocab v;
    nano_status status = vocab_read_trie(&v, section, size, 1);
    vocab_free(&v);
    return status;
}

static void tries_in_bin(void) {
    TEST("trie of code points: an escaped byte stands alone, half a character nowhere");
    CHECK(read_points((uint32_t[]){'a', 0x732B}, 2) == NANO_OK);
    CHECK(read_points((uint32_t[]){0xDC80}, 1) == NANO_OK);
    CHECK(read_points((uint32_t[]){0xDCE7, 'a'}, 2) == NANO_ERR_FORMAT &&
          strstr(nano_last_error(), "single bytes stand alone"));
    CHECK(read_points((uint32_t[]){0xD800}, 1) == NANO_ERR_FORMAT);
    CHECK(read_points((uint32_t[]){0x110000}, 1) == NANO_ERR_FORMAT);
}

void test_vocab(void) {
    pretokens();
    normalising();
    merging();
    merges();
    added();
    bad_sources();
    byte_tries();
    tries_in_bin();
}
