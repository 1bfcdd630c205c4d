/* vocab_merges.c: builds a byte-level BPE vocabulary from what a file says of it. vocab_merges_encode.c uses
 * it.
 *
 * Such files write the 256 bytes as 256 printable characters: '!' to '~', U+00A1 to U+00AC and U+00AE to
 * U+00FF stand for themselves, the other 68 bytes in order for U+0100 to U+0143. */
#include "vocab.h"

#include "bytes.h"
#include "chars.h"
#include "error.h"

/* The byte that a character stands for, -1 if it is not in the alphabet. */
static int byte_of(uint32_t code_point) {
    enum { SHIFTED = 0x100 };
    if (code_point >= SHIFTED) {
        uint32_t i = code_point - SHIFTED; /* 0..32, 127..160, 173 */
        return i <= 32 ? (int)i : i <= 66 ? (int)(i - 33 + 127) : i == 67 ? 173 : -1;
    }
    bool is_itself = (code_point >= '!' && code_point <= '~') || (code_point >= 0xA1 && code_point != 0xAD);
    return is_itself ? (int)code_point : -1;
}

/* Writes the bytes that the span stands for, at most as many as it has; false: it holds some other character.
 */
static bool read_alphabet(text_span span, uint8_t *out, size_t *n_out) {
    *n_out = 0;
    for (size_t at = 0; at < span.n;) {
        text_char c = char_at(span.bytes + at, span.n - at);
        int byte = byte_of(c.code_point);
        if (byte < 0) return false;
        out[(*n_out)++] = (uint8_t)byte;
        at += c.length;
    }
    return true;
}

/* Fills in the bytes of all tokens. A normal one with a character that is not in the alphabet is one that was
 * added later: it is itself. */
static void read_tokens(vocab *v, const merge_source *s) {
    memset(v->byte_ids, 0xFF, sizeof v->byte_ids); /* all NO_ID */
    for (uint32_t id = 0; id < s->size; id++) {
        text_span span = s->tokens[id];
        uint8_t *bytes = (uint8_t *)v->bytes + v->starts[id];
        size_t n = 0;
        bool spelled = s->types[id] == TYPE_NORMAL && read_alphabet(span, bytes, &n);
        if (!spelled) {
            n = span.n;
            if (n) memcpy(bytes, span.bytes, n);
        }
        v->starts[id + 1] = v->starts[id] + n;
        if (n > v->max_token) v->max_token = (uint32_t)n;
        if (spelled && n == 1 && v->byte_ids[bytes[0]] == NO_ID) v->byte_ids[bytes[0]] = id;
    }
    v->byte_tokens = true;
    for (unsigned b = 0; b < 256; b++) v->byte_tokens &= v->byte_ids[b] != NO_ID;
}

/* Merges name tokens by their bytes: of equal ones the first, and a normal one rather than an added one. */
static void index_tokens(vocab *v, const merge_source *s) {
    for (int normal = 1; normal >= 0; normal--)
        for (uint32_t id = 0; id < s->size; id++) {
            if ((s->types[id] == TYPE_NORMAL) != normal || s->types[id] == TYPE_UNUSED) continue;
            size_t n;
            const uint8_t *bytes = vocab_bytes(v, id, &n);
            uint32_t *slot = vocab_find_bytes(v, bytes, n);
            if (n && !*slot) *slot = id + 1;
        }
}

/* The tokens that are looked for in the text itself. */
static bool gather_found(vocab *v, const merge_source *s) {
    uint64_t n_bytes = 0;
    for (uint32_t id = 0; id < s->size; id++)
        if (v->special[id] || s->types[id] == TYPE_USER_DEFINED) n_bytes += s->tokens[id].n;
    if (!trie_open(&v->tokens, n_bytes)) return false;
    for (uint32_t id = 0; id < s->size; id++) {
        text_span span = s->tokens[id];
        if (!span.n || !(v->special[id] || s->types[id] == TYPE_USER_DEFINED)) continue;
        trie_add_bytes(&v->tokens, span.bytes, span.n, id);
        v->found_starts[span.bytes[0]] = true;
    }
    return true;
}

static nano_status bad_merge(uint32_t rank, const char *what) {
    return nano_fail(NANO_ERR_FORMAT, "vocabulary: merge %u %s", rank, what);
}

static uint32_t token_of(const vocab *v, const uint8_t *bytes, size_t n) {
    uint32_t found = n <= v->max_token ? *vocab_find_bytes(v, bytes, n) : 0;
    return found ? found - 1 : NO_ID;
}

/* `bytes` has room for the longest merge. */
static nano_status read_merge(vocab *v, text_span span, uint32_t rank, uint8_t *bytes) {
    size_t gap = 0, n_left, n_right;
    while (gap < span.n && span.bytes[gap] != ' ') gap++;
    text_span left = {span.bytes, gap}, right = {span.bytes + gap + 1, span.n - gap - 1};
    if (gap == 0 || gap + 1 >= span.n) return bad_merge(rank, "is not two tokens with a space between them");
    if (!read_alphabet(left, bytes, &n_left) || !read_alphabet(right, bytes + n_left, &n_right))
        return bad_merge(rank, "has a character that stands for no byte");
    uint32_t left_id = token_of(v, bytes, n_left), right_id = token_of(v, bytes + n_left, n_right),
             result = token_of(v, bytes, n_left + n_right);
    if (left_id == NO_ID || right_id == NO_ID || result == NO_ID)
        return bad_merge(rank, "needs a token that the vocabulary does not have");
    /* No text becomes a special token by merging. */
    if (v->special[left_id] || v->special[right_id] || v->special[result]) return NANO_OK;
    merge_table_add(&v->merges, left_id, right_id, rank, result);
    return NANO_OK;
}

static nano_status read_merges(vocab *v, const merge_source *s) {
    size_t longest = 0;
    for (uint32_t i = 0; i < s->n_merges; i++)
        if (s->merges[i].n > longest) longest = s->merges[i].n;
    uint8_t *bytes = plat_alloc(longest);
    nano_status status = NANO_OK;
    if (!bytes || !merge_table_open(&v->merges, s->n_merges))
        status = nano_fail(NANO_ERR_MEMORY, "out of memory for %u merges", s->n_merges);
    for (uint32_t i = 0; i < s->n_merges && !status; i++) status = read_merge(v, s->merges[i], i, bytes);
    plat_free(bytes);
    return status;
}

nano_status vocab_build_merges(vocab *v, const merge_source *s) {
    enum { MOST = 1 << 28 }; /* the slots of the tables must be counted in 32 bits */
    *v = (vocab){.size = s->size, .kind = VOCAB_MERGES, .bos = NO_ID};
    if (!s->size) return nano_fail(NANO_ERR_FORMAT, "vocabulary: it has no tokens");
    if (s->size > MOST || s->n_merges > MOST)
        return nano_fail(NANO_ERR_FORMAT, "vocabulary: %u tokens and %u merges are too many", s->size,
                         s->n_merges);
    if (s->n_stop > MAX_STOP_IDS)
        return nano_fail(NANO_ERR_FORMAT, "vocabulary: %u tokens end a text; there is room for %u", s->n_stop,
                         (unsigned)MAX_STOP_IDS);
    v->pre = s->pre;
    v->nfc = s->nfc;
    v->whole_first = s->whole_first;
    nano_status status = NANO_OK;
    if (s->add_bos) {
        status = vocab_check_id(v, "beginning-of-text", s->bos);
        v->bos = s->bos;
    }
    for (uint32_t i = 0; i < s->n_stop && !status; i++) {
        status = vocab_check_id(v, "end-of-text", s->stop_ids[i]);
        v->stop_ids[v->n_stop++] = s->stop_ids[i];
    }
    if (!status) status = vocab_open_tokens(v, s->tokens, s->types);
    for (uint32_t id = 0; id < s->size && !status; id++)
        if (s->types[id] == TYPE_BYTE)
            status =
                nano_fail(NANO_ERR_FORMAT,
                          "vocabulary: token %u has type 6 (byte), which one with merges does not have", id);
    if (status) return status;
    if (!vocab_open_by_bytes(v, s->size) || !gather_found(v, s))
        return nano_fail(NANO_ERR_MEMORY, "out of memory for a vocabulary of %u tokens", s->size);
    read_tokens(v, s);
    index_tokens(v, s);
    status = read_merges(v, s);
    if (!v->whole_first) {
        plat_free(v->by_bytes); /* only the merges needed it */
        v->by_bytes = NULL;
    }
    return status;
}
