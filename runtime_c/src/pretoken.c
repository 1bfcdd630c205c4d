/* pretoken.c: the pre-tokenisers, matched by hand. Each piece costs time in proportion to its own length,
 * white space at most three times that, so a text takes linear time whatever it holds. */
#include "pretoken.h"

#include "chars.h"
#include "unicode.h"

#include <string.h>

bool pre_kind_from_name(const uint8_t *name, size_t n, pre_kind *kind) {
    static const struct {
        const char *name;
        pre_kind kind;
    } known[] = {
        {"gpt-2", PRE_GPT2},       {"phi-2", PRE_GPT2},    {"smollm", PRE_SMOLLM},
        {"starcoder", PRE_SMOLLM}, {"refact", PRE_SMOLLM}, {"command-r", PRE_SMOLLM},
        {"codeshell", PRE_SMOLLM}, {"llama3", PRE_LLAMA3}, {"llama-v3", PRE_LLAMA3},
        {"llama-bpe", PRE_LLAMA3}, {"qwen2", PRE_QWEN2},   {"deepseek-r1-qwen", PRE_QWEN2},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strlen(known[i].name) != n || memcmp(known[i].name, name, n) != 0) continue;
        *kind = known[i].kind;
        return true;
    }
    return false;
}

typedef struct {
    char_class class;
    uint32_t length;
} unit;

static inline unit look(const uint8_t *text, size_t at, size_t end) {
    if (text[at] < 0x80) return (unit){(char_class)unicode_ascii[text[at]], 1};
    text_char c = char_at(text + at, end - at);
    return (unit){unicode_class(c.code_point), c.length};
}

/* The end of the run of characters of one class that goes on at `at`. */
static size_t run_end(const uint8_t *text, size_t at, size_t end, char_class class) {
    while (at < end) {
        unit u = look(text, at, end);
        if (u.class != class) break;
        at += u.length;
    }
    return at;
}

static bool is_newline(uint8_t byte) {
    return byte == '\n' || byte == '\r';
}

/* The length of 's, 't, 're, 've, 'm, 'll or 'd at an apostrophe, else 0. In either case also, and then
 * U+017F is an s too: it is the one letter besides these that folds to one of them. */
static size_t contraction(const uint8_t *text, size_t n, bool either_case) {
    if (n < 2) return 0;
    uint8_t fold = either_case ? 0x20 : 0, first = text[1] | fold, second = n > 2 ? text[2] | fold : 0;
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    if ((first == 'r' || first == 'v') && second == 'e') return 3;
    if (first == 'l' && second == 'l') return 3;
    return either_case && n > 2 && text[1] == 0xC5 && text[2] == 0xBF ? 3 : 0;
}

typedef struct {
    size_t end;      /* of the run */
    size_t last;     /* where its last character begins */
    size_t line_end; /* past its last \r or \n; 0: there is none */
} space_run;

static space_run spaces(const uint8_t *text, size_t at, size_t end) {
    space_run run = {at, at, 0};
    while (run.end < end) {
        unit u = look(text, run.end, end);
        if (u.class != CHAR_SPACE) break;
        run.last = run.end;
        run.end += u.length;
        if (is_newline(text[run.last])) run.line_end = run.end;
    }
    return run;
}

/* \s+(?!\S) | \s+: all of the run at the end of the text, else all but its last character, but at least one.
 */
static size_t cut_spaces(space_run run, size_t at, bool at_end) {
    return at_end || run.last == at ? run.end : run.last;
}

static size_t gpt2_end(const uint8_t *text, size_t at, size_t end, bool numbers_alone) {
    if (text[at] == '\'') {
        size_t length = contraction(text + at, end - at, false);
        if (length) return at + length;
    }
    unit u = look(text, at, end);
    size_t from = at + u.length;
    if (text[at] == ' ' && from < end) {
        unit next = look(text, from, end);
        if (next.class != CHAR_SPACE && !(numbers_alone && next.class == CHAR_NUMBER)) {
            u = next;
            from += next.length;
        }
    }
    if (u.class == CHAR_SPACE) {
        space_run run = spaces(text, at, end);
        /* A number that stands alone ends the text between the numbers. */
        bool at_end = run.end == end || (numbers_alone && look(text, run.end, end).class == CHAR_NUMBER);
        return cut_spaces(run, at, at_end);
    }
    return numbers_alone && u.class == CHAR_NUMBER ? from : run_end(text, from, end, u.class);
}

static size_t llama3_end(const uint8_t *text, size_t at, size_t end, unsigned numbers) {
    if (text[at] == '\'') {
        size_t length = contraction(text + at, end - at, true);
        if (length) return at + length;
    }
    unit u = look(text, at, end);
    size_t from = at + u.length;
    if (u.class == CHAR_LETTER) return run_end(text, from, end, CHAR_LETTER);
    if (u.class == CHAR_NUMBER) {
        for (unsigned i = 1; i < numbers && from < end; i++) {
            unit next = look(text, from, end);
            if (next.class != CHAR_NUMBER) break;
            from += next.length;
        }
        return from;
    }
    unit next = from < end ? look(text, from, end) : (unit){CHAR_SPACE, 0};
    if (next.class == CHAR_LETTER && !is_newline(text[at])) return run_end(text, from, end, CHAR_LETTER);
    if (u.class == CHAR_OTHER || (text[at] == ' ' && next.class == CHAR_OTHER)) {
        size_t stop = run_end(text, from, end, CHAR_OTHER);
        while (stop < end && is_newline(text[stop])) stop++;
        return stop;
    }
    space_run run = spaces(text, at, end);
    return run.line_end ? run.line_end : cut_spaces(run, at, run.end == end);
}

size_t pretoken_end(pre_kind kind, const uint8_t *text, size_t at, size_t end) {
    switch (kind) {
    case PRE_SMOLLM:
        return gpt2_end(text, at, end, true);
    case PRE_LLAMA3:
        return llama3_end(text, at, end, 3);
    case PRE_QWEN2:
        return llama3_end(text, at, end, 1);
    case PRE_GPT2:
        break;
    }
    return gpt2_end(text, at, end, false);
}
