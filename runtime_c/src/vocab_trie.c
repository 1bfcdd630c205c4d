/* vocab_trie.c: Nano's vocabularies. From the left, the longest token that matches is taken: a walk down a
 * trie of code points (in Nano's files) or bytes (in GGUF), so the work is at most text length times longest
 * token, and text length in practice. With all single bytes among the tokens both give the same ids. */
#include "vocab.h"

#include "bytes.h"
#include "chars.h"
#include "error.h"

/* First pass: is every entry inside the section and well-formed? Counts all code points. */
static nano_status check_entries(const uint8_t *section, size_t size, uint32_t vocab_size,
                                 uint64_t *n_points) {
    size_t at = 8;
    *n_points = 0;
    for (uint32_t id = 0; id < vocab_size; id++) {
        if (size - at < 8 || (size - at - 8) / 4 < section[at])
            return nano_fail(NANO_ERR_FORMAT,
                             "vocabulary: token %u of %u goes past the end of its %llu-byte section", id,
                             vocab_size, (unsigned long long)size);
        uint32_t n = section[at], stored_id = load_u32(section + at + 4);
        if (stored_id != id)
            return nano_fail(NANO_ERR_FORMAT, "vocabulary: token number %u says that its id is %u", id,
                             stored_id);
        at += 8;
        for (uint32_t i = 0; i < n; i++, at += 4) {
            uint32_t cp = load_u32(section + at);
            if (cp > 0x10FFFF || (cp >= 0xD800 && cp <= 0xDFFF && !(is_byte_escape(cp) && n == 1)))
                return nano_fail(NANO_ERR_FORMAT,
                                 "vocabulary: token %u has code point %u, which is no character%s", id, cp,
                                 is_byte_escape(cp) ? "; single bytes stand alone" : "");
        }
        *n_points += n;
    }
    if (at != size)
        return nano_fail(NANO_ERR_FORMAT, "vocabulary: field_bytes is %llu, but %u tokens take %llu bytes",
                         (unsigned long long)size, vocab_size, (unsigned long long)at);
    return NANO_OK;
}

static nano_status allocate(vocab *v, uint64_t n_points) {
    v->bytes = plat_alloc(times(n_points, 4));
    v->starts = plat_alloc(((uint64_t)v->size + 1) * sizeof *v->starts);
    v->special = plat_alloc(v->size);
    if (!trie_open(&v->tokens, n_points) || !v->bytes || !v->starts || !v->special)
        return nano_fail(NANO_ERR_MEMORY, "out of memory for a vocabulary of %u tokens", v->size);
    return NANO_OK;
}

static void note_single_byte(vocab *v, uint32_t code_point, uint32_t id) {
    uint32_t byte = is_byte_escape(code_point) ? code_point - 0xDC00 : code_point;
    if ((code_point < 0x80 || is_byte_escape(code_point)) && v->byte_ids[byte] == NO_ID)
        v->byte_ids[byte] = id;
}

static void add_token(vocab *v, uint32_t id, const uint8_t *entry) {
    uint32_t n = entry[0], node = TRIE_ROOT;
    uint64_t end = v->starts[id];
    v->special[id] = entry[1] != 0;
    v->n_special += v->special[id];
    if (n > v->max_token) v->max_token = n;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t cp = load_u32(entry + 8 + 4 * i);
        uint8_t utf8[4] = {(uint8_t)(cp - 0xDC00)};
        unsigned length = is_byte_escape(cp) ? 1 : utf8_write(cp, utf8);
        memcpy(v->bytes + end, utf8, length);
        end += length;
        node = trie_grow(&v->tokens, node, cp);
    }
    v->starts[id + 1] = end;
    uint32_t *ids = v->tokens.node_ids;
    if (n && ids[node] == NO_ID) ids[node] = id; /* of equal tokens the first counts */
    if (n == 1 && !v->special[id]) note_single_byte(v, load_u32(entry + 8), id);
}

nano_status vocab_read_trie(vocab *v, const uint8_t *section, size_t size, uint32_t vocab_size) {
    enum { NANO_PADDING = 0, NANO_EOS = 3 };
    *v = (vocab){.size = vocab_size,
                 .kind = VOCAB_POINTS,
                 .bos = NO_ID,
                 .stop_ids = {NANO_PADDING, NANO_EOS},
                 .n_stop = 2};
    v->unknown = UNKNOWN_ID < v->size ? UNKNOWN_ID : 0;
    uint32_t stored_size = load_u32(section + 4);
    if (stored_size != vocab_size)
        return nano_fail(NANO_ERR_FORMAT,
                         "vocabulary: it holds %u tokens, but vocab_size in the header is %u", stored_size,
                         vocab_size);
    uint64_t n_points;
    nano_status status = check_entries(section, size, vocab_size, &n_points);
    if (!status) status = allocate(v, n_points);
    if (status) return status;

    memset(v->byte_ids, 0xFF, sizeof v->byte_ids); /* all NO_ID */
    const uint8_t *entry = section + 8;
    for (uint32_t id = 0; id < vocab_size; id++, entry += 8 + 4 * entry[0]) add_token(v, id, entry);
    v->byte_tokens = true;
    for (unsigned b = 0; b < 256; b++) v->byte_tokens &= v->byte_ids[b] != NO_ID;
    return NANO_OK;
}

/* The longest token at the start of `points`; its length, 0 if there is none. */
static size_t longest_match(const vocab *v, const uint32_t *points, size_t n, bool allow_special,
                            uint32_t *id) {
    size_t matched = 0;
    uint32_t node = TRIE_ROOT;
    for (size_t i = 0; i < n; i++) {
        node = trie_step(&v->tokens, node, points[i]);
        if (node == TRIE_NONE) break;
        uint32_t here = v->tokens.node_ids[node];
        if (here == NO_ID || (v->special[here] && !allow_special)) continue;
        *id = here;
        matched = i + 1;
    }
    return matched;
}

/* A character that starts no token: its bytes as tokens if the vocabulary has all of them, else "unknown". */
static size_t spell(const vocab *v, uint32_t code_point, uint32_t *ids) {
    uint8_t utf8[4] = {(uint8_t)(code_point - 0xDC00)};
    unsigned length = is_byte_escape(code_point) ? 1 : utf8_write(code_point, utf8);
    for (unsigned i = 0; i < length; i++) {
        ids[i] = v->byte_ids[utf8[i]];
        if (ids[i] == NO_ID) {
            ids[0] = v->unknown;
            return 1;
        }
    }
    return length;
}

nano_status vocab_build_trie_bytes(vocab *v, uint32_t size, const text_span *tokens, const uint8_t *types,
                                   uint32_t eos) {
    static const char padding[] = "<|padding|>";
    *v = (vocab){.size = size, .kind = VOCAB_BYTES, .bos = NO_ID};
    memset(v->byte_ids, 0xFF, sizeof v->byte_ids); /* all NO_ID */
    nano_status status = size ? NANO_OK : nano_fail(NANO_ERR_FORMAT, "vocabulary: it has no tokens");
    if (!status && eos != NO_ID) status = vocab_check_id(v, "end-of-text", eos);
    if (!status) status = vocab_open_tokens(v, tokens, types);
    if (status) return status;
    if (eos != NO_ID) v->stop_ids[v->n_stop++] = eos;
    v->unknown = UNKNOWN_ID < size ? UNKNOWN_ID : 0;

    uint64_t n_bytes = 0;
    for (uint32_t id = 0; id < size; id++) n_bytes += tokens[id].n;
    if (!trie_open(&v->tokens, n_bytes))
        return nano_fail(NANO_ERR_MEMORY, "out of memory for a vocabulary of %u tokens", size);
    for (uint32_t id = size; id-- > 0;)
        if (types[id] == TYPE_UNKNOWN) v->unknown = id;
    for (uint32_t id = 0; id < size; id++) {
        text_span t = tokens[id];
        if (t.n) memcpy(v->bytes + v->starts[id], t.bytes, t.n);
        v->starts[id + 1] = v->starts[id] + t.n;
        if (t.n > v->max_token) v->max_token = (uint32_t)t.n;
        if (types[id] == TYPE_UNUSED) continue;
        trie_add_bytes(&v->tokens, t.bytes, t.n, id);
        if (t.n == 1 && !v->special[id] && v->byte_ids[t.bytes[0]] == NO_ID) v->byte_ids[t.bytes[0]] = id;
        if (v->special[id] && id != eos && v->n_stop < MAX_STOP_IDS && t.n == sizeof padding - 1 &&
            memcmp(t.bytes, padding, t.n) == 0)
            v->stop_ids[v->n_stop++] = id;
    }
    v->byte_tokens = true;
    for (unsigned b = 0; b < 256; b++) v->byte_tokens &= v->byte_ids[b] != NO_ID;
    return NANO_OK;
}

/* The symbols of the trie: code points, with escapes for what is none, or plain bytes. Returns their number.
 */
static size_t read_points(const vocab *v, const uint8_t *text, size_t n, uint32_t *points) {
    size_t n_points = 0;
    for (size_t at = 0; at < n;) {
        text_char c = v->kind == VOCAB_BYTES ? (text_char){text[at], 1} : char_at(text + at, n - at);
        points[n_points++] = c.code_point;
        at += c.length;
    }
    return n_points;
}

nano_status vocab_encode_trie(const vocab *v, const uint8_t *text, size_t n, bool allow_special,
                              uint32_t **ids, size_t *n_ids) {
    uint32_t *points = plat_alloc(times(n, sizeof *points));
    *ids = plat_alloc(times(n, sizeof **ids)); /* no token takes less than a byte */
    if (!points || !*ids) {
        plat_free(points);
        plat_free(*ids);
        *ids = NULL;
        return nano_fail(NANO_ERR_MEMORY, "out of memory for a text of %llu bytes", (unsigned long long)n);
    }
    size_t n_points = read_points(v, text, n, points);
    *n_ids = 0;
    for (size_t i = 0; i < n_points;) {
        uint32_t *next = &(*ids)[*n_ids];
        size_t matched = longest_match(v, points + i, n_points - i, allow_special, next);
        if (matched) {
            ++*n_ids;
            i += matched;
        } else if (v->kind == VOCAB_POINTS) {
            *n_ids += spell(v, points[i++], next);
        } else if (v->byte_ids[text[i]] != NO_ID) { /* hidden by a special token of the same byte */
            (*ids)[(*n_ids)++] = v->byte_ids[text[i++]];
        } else { /* a byte that is no token: one unknown for its whole character */
            *next = v->unknown;
            ++*n_ids;
            i += char_at(text + i, n - i).length;
        }
    }
    plat_free(points);
    return NANO_OK;
}
