/* vocab_bpe.c: Qwen's vocabularies, as Nano's files hold them: tokens of bytes, each with a score. A text
 * starts as single bytes; of all neighbours whose union is a token, the one with the highest score is joined,
 * and so on (a heap, so n log n). The files carry no rules for splitting text into words first, so ids may
 * differ from those of the original tokenizer where a token would cross such a border. */
#include "vocab.h"

#include "bytes.h"
#include "error.h"

static uint32_t lookup(const vocab *v, const uint8_t *bytes, size_t n) {
    if (n > v->max_token) return NO_ID;
    uint32_t found = *vocab_find_bytes(v, bytes, n);
    return found ? found - 1 : NO_ID;
}

/* The file has no flag for it; all of Qwen's control tokens look like <|this|>. */
static bool looks_special(const uint8_t *bytes, size_t n) {
    return n > 4 && memcmp(bytes, "<|", 2) == 0 && memcmp(bytes + n - 2, "|>", 2) == 0;
}

static void add_token(vocab *v, uint32_t id, const uint8_t *entry) {
    uint32_t n = load_u32(entry + 4);
    const uint8_t *bytes = entry + 8;
    memcpy(&v->scores[id], entry, sizeof(float));
    memcpy(v->bytes + v->starts[id], bytes, n);
    v->starts[id + 1] = v->starts[id] + n;
    v->special[id] = looks_special(bytes, n);
    v->n_special += v->special[id];
    if (n > v->max_token) v->max_token = n;
    uint32_t *slot = vocab_find_bytes(v, bytes, n);
    if (n && !*slot) *slot = id + 1;
}

nano_status vocab_read_bpe(vocab *v, const uint8_t *section, size_t size, uint32_t vocab_size) {
    *v = (vocab){.size = vocab_size, .kind = VOCAB_SCORES, .bos = NO_ID};
    uint32_t n_tokens = 0;
    for (size_t at = 8; at < size; n_tokens++) {
        if (n_tokens == vocab_size)
            return nano_fail(NANO_ERR_FORMAT, "vocabulary: it holds more tokens than vocab_size, %u",
                             vocab_size);
        if (size - at < 8 || size - at - 8 < load_u32(section + at + 4))
            return nano_fail(NANO_ERR_FORMAT,
                             "vocabulary: token %u goes past the end of its %llu-byte section", n_tokens,
                             (unsigned long long)size);
        at += 8 + (size_t)load_u32(section + at + 4);
    }

    v->bytes = plat_alloc(size);
    v->starts = plat_alloc(((uint64_t)vocab_size + 1) * sizeof *v->starts);
    v->scores = plat_alloc((uint64_t)vocab_size * sizeof *v->scores);
    v->special = plat_alloc(vocab_size);
    if (!vocab_open_by_bytes(v, n_tokens) || !v->bytes || !v->starts || !v->scores || !v->special)
        return nano_fail(NANO_ERR_MEMORY, "out of memory for a vocabulary of %u tokens", vocab_size);

    const uint8_t *entry = section + 8;
    for (uint32_t id = 0; id < n_tokens; id++, entry += 8 + load_u32(entry + 4)) add_token(v, id, entry);
    for (uint32_t id = n_tokens; id < vocab_size; id++) v->starts[id + 1] = v->starts[id];

    v->byte_tokens = true;
    for (unsigned b = 0; b < 256; b++) {
        uint8_t byte = (uint8_t)b;
        v->byte_ids[b] = lookup(v, &byte, 1);
        v->byte_tokens &= v->byte_ids[b] != NO_ID;
    }
    v->stop_ids[0] = lookup(v, (const uint8_t *)"<|endoftext|>", 13);
    v->stop_ids[1] = lookup(v, (const uint8_t *)"<|im_end|>", 10);
    v->n_stop = 2; /* one that is not there is NO_ID, which no token has */
    return NANO_OK;
}

/* A piece of the text is named by its first byte. */
typedef struct {
    uint32_t length; /* 0: was joined to the piece before it */
    uint32_t previous;
} piece;

typedef struct {
    float score;
    uint32_t left, left_length, right_length; /* stale when the lengths are no longer these */
} pair;

typedef struct {
    const vocab *v;
    const uint8_t *text;
    uint32_t n;
    piece *pieces;
    pair *heap;
    size_t n_heap;
} merger;

static bool goes_first(pair a, pair b) {
    return a.score > b.score || (a.score == b.score && a.left < b.left);
}

static void push(merger *m, pair p) {
    size_t i = m->n_heap++;
    for (; i && goes_first(p, m->heap[(i - 1) / 2]); i = (i - 1) / 2) m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = p;
}

static pair pop(merger *m) {
    pair top = m->heap[0], moved = m->heap[--m->n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= m->n_heap) break;
        if (child + 1 < m->n_heap && goes_first(m->heap[child + 1], m->heap[child])) child++;
        if (!goes_first(m->heap[child], moved)) break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = moved;
    return top;
}

/* If this piece and the next one are a token together, that is a pair to consider. */
static void consider(merger *m, uint32_t left) {
    uint32_t left_length = m->pieces[left].length, right = left + left_length;
    if (right >= m->n) return;
    uint32_t right_length = m->pieces[right].length;
    uint32_t id = lookup(m->v, m->text + left, (size_t)left_length + right_length);
    if (id != NO_ID && !m->v->special[id]) push(m, (pair){m->v->scores[id], left, left_length, right_length});
}

static void merge_all(merger *m) {
    for (uint32_t i = 0; i < m->n; i++) m->pieces[i] = (piece){1, i ? i - 1 : 0};
    for (uint32_t i = 0; i < m->n; i++) consider(m, i);
    while (m->n_heap) {
        pair p = pop(m);
        uint32_t right = p.left + p.left_length;
        if (m->pieces[p.left].length != p.left_length || m->pieces[right].length != p.right_length) continue;
        m->pieces[p.left].length += p.right_length;
        m->pieces[right].length = 0;
        uint32_t after = p.left + m->pieces[p.left].length;
        if (after < m->n) m->pieces[after].previous = p.left;
        if (p.left) consider(m, m->pieces[p.left].previous);
        consider(m, p.left);
    }
}

/* Length of the special token at the start of the text, 0 if there is none. */
static size_t special_here(const vocab *v, const uint8_t *text, size_t n, uint32_t *id) {
    if (n < 4 || text[0] != '<' || text[1] != '|') return 0;
    size_t limit = n < v->max_token ? n : v->max_token;
    for (size_t end = 4; end <= limit; end++) {
        if (text[end - 1] != '>' || text[end - 2] != '|') continue;
        *id = lookup(v, text, end);
        return *id != NO_ID && v->special[*id] ? end : 0;
    }
    return 0;
}

nano_status vocab_encode_bpe(const vocab *v, const uint8_t *text, size_t n, bool allow_special,
                             uint32_t **ids, size_t *n_ids) {
    if (n >= UINT32_MAX / 4)
        return nano_fail(NANO_ERR_ARGUMENT, "a text of %llu bytes is too long to encode",
                         (unsigned long long)n);
    merger m = {.v = v};
    m.pieces = plat_alloc(n * sizeof *m.pieces);
    m.heap = plat_alloc(3 * (uint64_t)n * sizeof *m.heap); /* n at first, two more for each merge */
    *ids = plat_alloc(n * sizeof **ids);
    if (!m.pieces || !m.heap || !*ids) {
        plat_free(m.pieces);
        plat_free(m.heap);
        plat_free(*ids);
        *ids = NULL;
        return nano_fail(NANO_ERR_MEMORY, "out of memory for a text of %llu bytes", (unsigned long long)n);
    }

    uint32_t unknown = UNKNOWN_ID < v->size ? UNKNOWN_ID : 0, special_id = 0;
    *n_ids = 0;
    for (size_t at = 0; at < n;) {
        size_t end = at, special = 0;
        while (end < n && !(allow_special && (special = special_here(v, text + end, n - end, &special_id))))
            end++;
        m.text = text + at;
        m.n = (uint32_t)(end - at);
        m.n_heap = 0;
        merge_all(&m);
        for (uint32_t i = 0; i < m.n; i += m.pieces[i].length) {
            uint32_t id = lookup(v, m.text + i, m.pieces[i].length);
            (*ids)[(*n_ids)++] = id == NO_ID ? unknown : id;
        }
        if (special) (*ids)[(*n_ids)++] = special_id;
        at = end + special;
    }
    plat_free(m.pieces);
    plat_free(m.heap);
    return NANO_OK;
}
