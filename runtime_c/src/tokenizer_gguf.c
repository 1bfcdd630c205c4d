/* tokenizer_gguf.c: the vocabulary of a GGUF file: byte-level BPE ("gpt2") or longest match ("rwkv", which is
 * what Nano's vocabularies are written as). What the keys say is checked here; vocab*.c does the rest. */
#include "bytes.h"
#include "error.h"
#include "model_gguf.h"
#include "reader.h"

/* Room of this file's reading, given back when done. */
typedef struct {
    text_span *tokens, *merges;
    uint8_t *types;
    uint32_t n_tokens, n_merges;
} lists;

static nano_status list_texts(const gguf_value *v, text_span **out, uint32_t *n) {
    char shown[GGUF_SHOWN];
    if (v->count > 1 << 24)
        return nano_fail(NANO_ERR_FORMAT, "key %s has %llu texts; at most 16777216", gguf_show(v->key, shown),
                         (unsigned long long)v->count);
    *out = plat_alloc(times(v->count, sizeof **out));
    if (!*out)
        return nano_fail(NANO_ERR_MEMORY, "out of memory for %llu texts", (unsigned long long)v->count);
    *n = (uint32_t)v->count;
    const uint8_t *at = v->at;
    for (uint32_t i = 0; i < *n; i++) (*out)[i] = gguf_next_text(&at);
    return NANO_OK;
}

static nano_status list_types(const gguf *g, lists *l) {
    const gguf_value *v = gguf_find(g, "tokenizer.ggml.token_type");
    l->types = plat_alloc(l->n_tokens);
    if (!l->types) return nano_fail(NANO_ERR_MEMORY, "out of memory for %u tokens", l->n_tokens);
    memset(l->types, TYPE_NORMAL, l->n_tokens);
    if (!v) return NANO_OK;
    if (v->type != GGUF_ARRAY || !gguf_is_whole(v->item) || v->count != l->n_tokens)
        return nano_fail(
            NANO_ERR_FORMAT,
            "key tokenizer.ggml.token_type must be an array of %u whole numbers, as many as tokens",
            l->n_tokens);
    for (uint32_t i = 0; i < l->n_tokens; i++) {
        bool negative;
        int64_t type = gguf_load_whole(v->item, v->at + i * gguf_item_bytes(v->item), &negative);
        if (type < TYPE_NORMAL || type > TYPE_BYTE)
            return nano_fail(NANO_ERR_FORMAT, "key tokenizer.ggml.token_type: token %u has none of 1 to %d",
                             i, TYPE_BYTE);
        l->types[i] = (uint8_t)type;
    }
    return NANO_OK;
}

/* A token's id from a key, NO_ID where the key is missing. */
static nano_status get_id(const gguf *g, const char *key, uint32_t n_tokens, uint32_t *out) {
    *out = NO_ID;
    TRY(gguf_get_u32(g, key, out));
    if (*out < n_tokens || *out == NO_ID) return NANO_OK;
    return nano_fail(NANO_ERR_FORMAT, "key %s is %u; there are only %u tokens", key, *out, n_tokens);
}

/* ---- BPE -------------------------------------------------------------------------------------------------
 */

static void add_stop(merge_source *source, uint32_t id) {
    const uint32_t room = sizeof source->stop_ids / sizeof *source->stop_ids;
    for (uint32_t i = 0; i < source->n_stop; i++)
        if (source->stop_ids[i] == id) return;
    if (id != NO_ID && source->n_stop < room) source->stop_ids[source->n_stop++] = id;
}

/* Our own files list them all. */
static nano_status list_own_stops(const gguf *g, const lists *l, merge_source *source, bool *found) {
    const gguf_value *own = gguf_find(g, "nano_ds.tokenizer.stop");
    *found = own != NULL;
    if (!own) return NANO_OK;
    if (own->type != GGUF_ARRAY || !gguf_is_whole(own->item))
        return nano_fail(NANO_ERR_FORMAT, "key nano_ds.tokenizer.stop must be an array of whole numbers");
    for (uint64_t i = 0; i < own->count; i++) {
        bool negative;
        int64_t id = gguf_load_whole(own->item, own->at + i * gguf_item_bytes(own->item), &negative);
        if (negative || (uint64_t)id >= l->n_tokens)
            return nano_fail(NANO_ERR_FORMAT,
                             "key nano_ds.tokenizer.stop has an id that is none of the %u tokens",
                             l->n_tokens);
        add_stop(source, (uint32_t)id);
    }
    return NANO_OK;
}

/* What the file says, and what ends texts and turns in the known families whether it says so or not. */
static nano_status find_stops(const gguf *g, const lists *l, merge_source *source) {
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    static const char *const names[] = {"<|eot_id|>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>",
                                        "<|eom_id|>"};
    bool own;
    TRY(list_own_stops(g, l, source, &own));
    for (size_t i = 0; i < (own ? 1 : sizeof keys / sizeof *keys); i++) {
        uint32_t id;
        TRY(get_id(g, keys[i], l->n_tokens, &id));
        add_stop(source, id);
    }
    if (own) return NANO_OK;
    for (uint32_t id = 0; id < l->n_tokens; id++) {
        if (l->types[id] != TYPE_CONTROL && l->types[id] != TYPE_USER_DEFINED) continue;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (span_is(l->tokens[id], names[i])) add_stop(source, id);
    }
    return NANO_OK;
}

static nano_status build_merges(vocab *v, const gguf *g, lists *l) {
    const gguf_value *merges;
    text_span pre = {0}, normalize = {0};
    char shown[GGUF_SHOWN];
    merge_source source = {.size = l->n_tokens, .tokens = l->tokens, .types = l->types};
    TRY(gguf_get_text(g, "tokenizer.ggml.pre", &pre));
    if (!pre.n)
        return nano_fail(NANO_ERR_FORMAT,
                         "key tokenizer.ggml.pre is missing: how text is cut into words before the "
                         "merges is not known");
    if (!pre_kind_from_name(pre.bytes, pre.n, &source.pre))
        return nano_fail(NANO_ERR_FORMAT, "key tokenizer.ggml.pre is \"%s\", which is unknown here",
                         gguf_show(pre, shown));
    TRY(gguf_get_array(g, "tokenizer.ggml.merges", GGUF_TEXT, &merges));
    if (!merges) return nano_fail(NANO_ERR_FORMAT, "key tokenizer.ggml.merges is missing");
    TRY(list_texts(merges, &l->merges, &l->n_merges));
    source.merges = l->merges;
    source.n_merges = l->n_merges;
    /* GGUF has no keys for these two: they belong to the families' tokenizers, unless our own keys say
     * otherwise. */
    source.nfc = source.pre == PRE_QWEN2;
    source.whole_first = source.pre == PRE_LLAMA3;
    TRY(gguf_get_text(g, "nano_ds.tokenizer.normalize", &normalize));
    if (normalize.n) source.nfc = span_is(normalize, "nfc");
    if (normalize.n && !source.nfc && !span_is(normalize, "none"))
        return nano_fail(NANO_ERR_FORMAT, "key nano_ds.tokenizer.normalize is \"%s\"; known: nfc, none",
                         gguf_show(normalize, shown));
    TRY(gguf_get_bool(g, "nano_ds.tokenizer.ignore_merges", &source.whole_first));
    source.add_bos = source.pre == PRE_LLAMA3;
    TRY(gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &source.add_bos));
    TRY(get_id(g, "tokenizer.ggml.bos_token_id", l->n_tokens, &source.bos));
    if (source.bos == NO_ID) source.add_bos = false;
    TRY(find_stops(g, l, &source));
    return vocab_build_merges(v, &source);
}

/* ---- longest match ---------------------------------------------------------------------------------------
 */

static unsigned hex_digit(uint8_t c) {
    return c >= '0' && c <= '9'                     ? c - '0' + 0u
           : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10u
                                                    : 16;
}

/* GGUF writes these tokens with \t, \n, \r, \xHH for a byte, and \ before any character that stands for
 * itself. `out` has room for as many bytes. */
static nano_status unescape(uint32_t id, text_span in, uint8_t *out, size_t *n) {
    *n = 0;
    for (size_t i = 0; i < in.n; i++) {
        uint8_t c = in.bytes[i];
        if (c == '\\') {
            if (++i == in.n)
                return nano_fail(NANO_ERR_FORMAT, "token %u ends in the middle of an escape", id);
            c = in.bytes[i];
            if (c == 'x') {
                unsigned high = i + 2 < in.n ? hex_digit(in.bytes[i + 1]) : 16;
                unsigned low = i + 2 < in.n ? hex_digit(in.bytes[i + 2]) : 16;
                if (high > 15 || low > 15)
                    return nano_fail(NANO_ERR_FORMAT,
                                     "token %u: \\x must be followed by two hexadecimal digits", id);
                c = (uint8_t)(high << 4 | low);
                i += 2;
            } else {
                c = c == 't' ? '\t' : c == 'n' ? '\n' : c == 'r' ? '\r' : c;
            }
        }
        out[(*n)++] = c;
    }
    return NANO_OK;
}

static nano_status build_trie(vocab *v, const gguf *g, storage *s, lists *l) {
    uint32_t eos;
    uint64_t total = 0;
    TRY(get_id(g, "tokenizer.ggml.eos_token_id", l->n_tokens, &eos));
    for (uint32_t id = 0; id < l->n_tokens; id++) total += l->tokens[id].n;
    uint8_t *out = (uint8_t *)storage_room(s, total / sizeof(float) + 1);
    if (!out) return NANO_ERR_MEMORY;
    for (uint32_t id = 0; id < l->n_tokens; id++) {
        size_t n;
        TRY(unescape(id, l->tokens[id], out, &n));
        l->tokens[id] = (text_span){out, n};
        out += n;
    }
    return vocab_build_trie_bytes(v, l->n_tokens, l->tokens, l->types, eos);
}

/* ---- either ----------------------------------------------------------------------------------------------
 */

static nano_status read_lists(vocab *v, const gguf *g, storage *s, uint32_t vocab_size, text_span model,
                              lists *l) {
    const gguf_value *tokens;
    char shown[GGUF_SHOWN];
    bool bpe = span_is(model, "gpt2");
    if (!bpe && !span_is(model, "rwkv"))
        return nano_fail(
            NANO_ERR_FORMAT,
            "key tokenizer.ggml.model is \"%s\"; known are \"gpt2\" (byte-level BPE) and \"rwkv\" (longest "
            "match)",
            gguf_show(model, shown));
    TRY(gguf_get_array(g, "tokenizer.ggml.tokens", GGUF_TEXT, &tokens));
    if (!tokens) return nano_fail(NANO_ERR_FORMAT, "key tokenizer.ggml.tokens is missing");
    if (tokens->count != vocab_size)
        return nano_fail(NANO_ERR_FORMAT, "the file has %llu tokens, but an embedding of %u rows",
                         (unsigned long long)tokens->count, vocab_size);
    TRY(list_texts(tokens, &l->tokens, &l->n_tokens));
    TRY(list_types(g, l));
    return bpe ? build_merges(v, g, l) : build_trie(v, g, s, l);
}

nano_status vocab_read_gguf(vocab *v, const gguf *g, storage *s, uint32_t vocab_size) {
    lists l = {0};
    text_span model = {0};
    *v = (vocab){.bos = NO_ID};
    TRY(gguf_get_text(g, "tokenizer.ggml.model", &model));
    if (!model.n || span_is(model, "none") || span_is(model, "no_vocab")) return NANO_OK;
    nano_status status = read_lists(v, g, s, vocab_size, model, &l);
    plat_free(l.tokens);
    plat_free(l.merges);
    plat_free(l.types);
    return status;
}
