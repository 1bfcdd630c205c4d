/* chat.c: a user's message in the form that a model was trained on. The families' templates are written out
 * here; a file's own (a program in Jinja) is only looked at to see which family it is, and for its default
 * system prompt.
 *
 *     ChatML    <|im_start|>user NEWLINE text <|im_end|> NEWLINE <|im_start|>assistant NEWLINE
 *     Llama 3   <|start_header_id|>user<|end_header_id|> 2 x NEWLINE text <|eot_id|> the same for the
 * assistant Nano      <|instruct_mark|> text <|response_mark|>
 *
 * Text between two special tokens is encoded as one stretch, as tokenizers do with the whole, and never as
 * special tokens, whatever the user writes. */
#include "bytes.h"
#include "error.h"
#include "model.h"

/* ---- the family ------------------------------------------------------------------------------------------
 */

static uint32_t find_special(const vocab *v, const char *name) {
    size_t n = strlen(name);
    for (uint32_t id = 0; id < v->size; id++)
        if (v->special[id] && v->starts[id + 1] - v->starts[id] == n &&
            memcmp(v->bytes + v->starts[id], name, n) == 0)
            return id;
    return NO_ID;
}

/* Where `wanted` begins in the span, from `from` on; SIZE_MAX if it does not. */
static size_t find_text(text_span in, size_t from, const char *wanted) {
    size_t n = strlen(wanted);
    for (size_t i = from; i + n <= in.n; i++)
        if (memcmp(in.bytes + i, wanted, n) == 0) return i;
    return SIZE_MAX;
}

static text_span template_of(const nano_model *m) {
    text_span found = {0};
    if (m->gguf.n_values && gguf_get_text(&m->gguf, "tokenizer.chat_template", &found)) found.n = 0;
    return found;
}

nano_chat_family nano_model_chat_family(const nano_model *model) {
    static const struct {
        nano_chat_family family;
        const char *mark, *other; /* the template names the first; the vocabulary has both */
    } families[] = {
        {NANO_CHAT_CHATML, "<|im_start|>", "<|im_end|>"},
        {NANO_CHAT_LLAMA3, "<|start_header_id|>", "<|eot_id|>"},
        {NANO_CHAT_NANO, "<|instruct_mark|>", "<|response_mark|>"},
    };
    text_span template = template_of(model);
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (template.n && find_text(template, 0, families[i].mark) == SIZE_MAX) continue;
        if (find_special(&model->vocab, families[i].mark) == NO_ID) continue;
        if (find_special(&model->vocab, families[i].other) != NO_ID) return families[i].family;
    }
    return NANO_CHAT_NONE;
}

/* ---- tokens, one behind the other ------------------------------------------------------------------------
 */

typedef struct {
    const nano_model *model;
    nano_status status; /* the first failure; all that follows does nothing */
    uint32_t *ids;
    size_t n, room;
} writer;

static void put_ids(writer *w, const uint32_t *ids, size_t n) {
    if (w->n + n > w->room) {
        uint32_t *more = plat_alloc(times(2 * (w->n + n), sizeof *more));
        if (!more) {
            w->status =
                nano_fail(NANO_ERR_MEMORY, "out of memory for %llu tokens", (unsigned long long)(w->n + n));
            return;
        }
        if (w->n) memcpy(more, w->ids, w->n * sizeof *more);
        plat_free(w->ids);
        w->ids = more;
        w->room = 2 * (w->n + n);
    }
    if (n) memcpy(w->ids + w->n, ids, n * sizeof *ids);
    w->n += n;
}

static void put_special(writer *w, const char *name) {
    if (w->status) return;
    uint32_t id = find_special(&w->model->vocab, name);
    if (id == NO_ID)
        w->status =
            nano_fail(NANO_ERR_FORMAT, "the vocabulary has no special token %s, which its chat needs", name);
    else
        put_ids(w, &id, 1);
}

/* Where the tokenizer begins each text with a token, a conversation begins with it. */
static void put_beginning(writer *w) {
    if (!w->status && w->model->vocab.bos != NO_ID) put_ids(w, &w->model->vocab.bos, 1);
}

/* `before` and the text, as one stretch. */
static void put_text(writer *w, const char *before, const char *text, size_t n) {
    size_t n_before = strlen(before), n_ids = 0;
    uint32_t *ids = NULL;
    if (w->status || n_before + n == 0) return;
    char *whole = plat_alloc(plus(n_before, n));
    if (!whole) {
        w->status =
            nano_fail(NANO_ERR_MEMORY, "out of memory for a text of %llu bytes", (unsigned long long)n);
        return;
    }
    memcpy(whole, before, n_before);
    if (n) memcpy(whole + n_before, text, n);
    w->status = vocab_encode(&w->model->vocab, (const uint8_t *)whole, n_before + n, false, &ids, &n_ids);
    if (!w->status) put_ids(w, ids, n_ids);
    plat_free(ids);
    plat_free(whole);
}

/* ---- ChatML ----------------------------------------------------------------------------------------------
 */

/* Templates write a newline as it is or as \n. The length of the one at `at`, 0 if there is none. */
static size_t newline_at(text_span t, size_t at) {
    if (at < t.n && t.bytes[at] == '\n') return 1;
    return at + 1 < t.n && t.bytes[at] == '\\' && t.bytes[at + 1] == 'n' ? 2 : 0;
}

/* The system prompt that a ChatML template puts in where there is none: a message that stands in it word for
 * word. The newlines of `out`, which has room for template.n bytes, are newlines. */
static size_t default_system(text_span t, char *out) {
    static const char start[] = "<|im_start|>system";
    for (size_t at = find_text(t, 0, start); at != SIZE_MAX; at = find_text(t, at + 1, start)) {
        size_t from = at + sizeof start - 1, to = find_text(t, from, "<|im_end|>"), n = 0;
        size_t skipped = newline_at(t, from);
        if (!skipped || to == SIZE_MAX) continue;
        bool literal = true;
        for (size_t i = from + skipped; i < to && literal;) {
            size_t newline = newline_at(t, i);
            literal = t.bytes[i] != '\'' && t.bytes[i] != '"' && t.bytes[i] != '{';
            out[n++] = newline ? '\n' : (char)t.bytes[i];
            i += newline ? newline : 1;
        }
        if (literal && n) return n;
    }
    return 0;
}

static void put_chatml_message(writer *w, const char *role_line, const char *text, size_t n) {
    put_special(w, "<|im_start|>");
    put_text(w, role_line, text, n);
    put_special(w, "<|im_end|>");
    put_text(w, "\n", NULL, 0);
}

static void put_chatml(writer *w, const char *system, const char *text, size_t n, bool first) {
    if (first) put_beginning(w);
    if (first && !system) {
        text_span template = template_of(w->model);
        char *found = plat_alloc(template.n + 1);
        if (!found) w->status = nano_fail(NANO_ERR_MEMORY, "out of memory");
        size_t n_found = found ? default_system(template, found) : 0;
        if (n_found) put_chatml_message(w, "system\n", found, n_found);
        plat_free(found);
    }
    if (first && system && *system) put_chatml_message(w, "system\n", system, strlen(system));
    if (!first) {
        put_special(w, "<|im_end|>");
        put_text(w, "\n", NULL, 0);
    }
    put_chatml_message(w, "user\n", text, n);
    put_special(w, "<|im_start|>");
    put_text(w, "assistant\n", NULL, 0);
}

/* ---- Llama 3 ---------------------------------------------------------------------------------------------
 */

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static void put_llama3_header(writer *w, const char *role) {
    put_special(w, "<|start_header_id|>");
    put_text(w, role, NULL, 0);
    put_special(w, "<|end_header_id|>");
}

/* Its template strips the text. */
static void put_llama3_message(writer *w, const char *role, const char *before, const char *text, size_t n) {
    for (; n && is_space(text[0]); text++) n--;
    while (n && is_space(text[n - 1])) n--;
    put_llama3_header(w, role);
    put_text(w, before, text, n);
    put_special(w, "<|eot_id|>");
}

static void put_llama3(writer *w, const char *system, const char *text, size_t n, bool first) {
    /* From 3.1 on there is always a system message, with these lines; the date is the one of its template. */
    static const char dated[] = "\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
    bool has_dates = find_text(template_of(w->model), 0, "Cutting Knowledge Date") != SIZE_MAX;
    if (first) {
        put_special(w, "<|begin_of_text|>");
        if (has_dates || (system && *system))
            put_llama3_message(w, "system", has_dates ? dated : "\n\n", system ? system : "",
                               system ? strlen(system) : 0);
    } else {
        put_special(w, "<|eot_id|>");
    }
    put_llama3_message(w, "user", "\n\n", text, n);
    put_llama3_header(w, "assistant");
    put_text(w, "\n\n", NULL, 0);
}

/* ---- Nano ------------------------------------------------------------------------------------------------
 */

static void put_nano(writer *w, const char *system, const char *text, size_t n, bool first) {
    if (system && *system) {
        w->status = nano_fail(NANO_ERR_ARGUMENT,
                              "this model's chat has no place for a system prompt: put it into the "
                              "first message");
        return;
    }
    if (first)
        put_beginning(w);
    else
        put_special(w, "<|eos|>");
    put_special(w, "<|instruct_mark|>");
    put_text(w, "", text, n);
    put_special(w, "<|response_mark|>");
}

nano_status nano_chat_turn(const nano_model *model, const char *system, const char *text, size_t n_bytes,
                           bool first, uint32_t **ids, size_t *n_ids) {
    writer w = {.model = model};
    *ids = NULL;
    *n_ids = 0;
    switch (nano_model_chat_family(model)) {
    case NANO_CHAT_CHATML:
        put_chatml(&w, system, text, n_bytes, first);
        break;
    case NANO_CHAT_LLAMA3:
        put_llama3(&w, system, text, n_bytes, first);
        break;
    case NANO_CHAT_NANO:
        put_nano(&w, system, text, n_bytes, first);
        break;
    case NANO_CHAT_NONE:
        return nano_fail(NANO_ERR_ARGUMENT,
                         "this model has no chat form that is known here (ChatML, Llama 3, Nano): "
                         "give it plain text");
    }
    if (w.status) {
        plat_free(w.ids);
        return w.status;
    }
    *ids = w.ids;
    *n_ids = w.n;
    return NANO_OK;
}

/* ---- earlier answers -------------------------------------------------------------------------------------
 */

/* The bytes of tokens [from, n), the caller's to plat_free(); NULL: out of memory. */
static char *text_of(const vocab *v, const uint32_t *ids, size_t from, size_t n, size_t *n_bytes) {
    uint64_t room = 0;
    for (size_t i = from; i < n; i++) room = plus(room, v->starts[ids[i] + 1] - v->starts[ids[i]]);
    char *text = plat_alloc(plus(room, 1));
    *n_bytes = 0;
    for (size_t i = from; i < n && text; i++) {
        size_t length = v->starts[ids[i] + 1] - v->starts[ids[i]];
        memcpy(text + *n_bytes, v->bytes + v->starts[ids[i]], length);
        *n_bytes += length;
    }
    return text;
}

/* Where the last answer of a ChatML conversation begins; n if it has none. */
static nano_status find_answer(const nano_model *m, const uint32_t *conversation, size_t n, size_t *from) {
    writer w = {.model = m};
    uint32_t mark = find_special(&m->vocab, "<|im_start|>");
    put_special(&w, "<|im_start|>");
    put_text(&w, "assistant\n", NULL, 0);
    size_t at = n;
    while (at && conversation[at - 1] != mark) at--;
    bool found = !w.status && at && n - at + 1 >= w.n &&
                 memcmp(conversation + at - 1, w.ids, w.n * sizeof *w.ids) == 0;
    *from = found ? at - 1 + w.n : n;
    plat_free(w.ids);
    return w.status;
}

nano_status nano_chat_settle(const nano_model *model, const uint32_t *conversation, size_t n, size_t *from,
                             uint32_t **ids, size_t *n_ids) {
    *ids = NULL;
    *from = *n_ids = 0;
    /* Qwen3's way of saying it: content.split('</think>')[-1].lstrip('\n') */
    bool drops = nano_model_chat_family(model) == NANO_CHAT_CHATML &&
                 find_text(template_of(model), 0, "split('</think>')") != SIZE_MAX;
    for (size_t i = 0; i < n && drops; i++)
        if (conversation[i] >= model->vocab.size)
            return nano_fail(NANO_ERR_ARGUMENT, "token id %u is not in the vocabulary of %u", conversation[i],
                             model->vocab.size);
    size_t start = n, length = 0, kept = 0;
    if (drops) TRY(find_answer(model, conversation, n, &start));
    if (start == n) return NANO_OK;
    char *text = text_of(&model->vocab, conversation, start, n, &length);
    if (!text) return nano_fail(NANO_ERR_MEMORY, "out of memory");
    static const char end[] = "</think>";
    text_span span = {.bytes = (const uint8_t *)text, .n = length};
    for (size_t at = 0; (at = find_text(span, at, end)) != SIZE_MAX;) kept = at += sizeof end - 1;
    nano_status status = NANO_OK;
    if (kept) {
        while (kept < length && text[kept] == '\n') kept++;
        writer w = {.model = model};
        w.ids =
            plat_alloc(sizeof *w.ids); /* an answer may be all thoughts: then there are none, but not NULL */
        w.room = w.ids != NULL;
        put_text(&w, "", text + kept, length - kept);
        status = w.ids ? w.status : nano_fail(NANO_ERR_MEMORY, "out of memory");
        if (!status) {
            *from = start;
            *ids = w.ids;
            *n_ids = w.n;
        } else {
            plat_free(w.ids);
        }
    }
    plat_free(text);
    return status;
}
