/* vocab_merges_encode.c: text to tokens by byte-level BPE, step by step as Hugging Face's `tokenizers` does
 * it:
 *
 *   1. added tokens are found in the raw text (the longest of the leftmost), and what is between them is,
 * each part on its own, 2. put into normal form C if the vocabulary wants that, 3. cut into pieces
 * (pretoken.h), and
 *   4. each piece becomes the tokens of its bytes, which are merged (merge.h).
 *
 * Words repeat, so what became of a short piece is kept in a table of fixed size that belongs to the call. */
#include "vocab.h"

#include "bytes.h"
#include "error.h"
#include "nfc.h"

enum { KEPT_BYTES = 16, MOST_KEPT = 1 << 15 };

/* A piece of 1 to KEPT_BYTES bytes, zero-padded, and where its tokens are in the output. */
typedef struct {
    uint64_t low, high;
    uint32_t first;
    uint8_t n_ids, n_bytes; /* no bytes: an empty slot */
} kept_piece;

typedef struct {
    const vocab *v;
    uint32_t *ids;
    uint64_t n_ids, room;
    kept_piece *kept; /* a piece has one slot that it can be in; the last one stays */
    uint64_t kept_mask;
    merge_work work;
    nfc_scratch scratch;
    uint8_t *normal; /* a part in normal form */
    uint64_t normal_room;
} encoder;

static nano_status out_of_memory(uint64_t n) {
    return nano_fail(NANO_ERR_MEMORY, "out of memory for a text of %llu bytes", (unsigned long long)n);
}

/* Room for n more ids. */
static nano_status reserve(encoder *e, uint64_t n) {
    if (n <= e->room - e->n_ids) return NANO_OK;
    uint64_t room = e->n_ids + n + e->room / 2;
    uint32_t *grown = plat_alloc(room * sizeof *grown);
    if (!grown) return out_of_memory(room);
    if (e->n_ids) memcpy(grown, e->ids, e->n_ids * sizeof *grown);
    plat_free(e->ids);
    e->ids = grown;
    e->room = room;
    return NANO_OK;
}

/* Bytes without a token are left out before anything is merged. */
static nano_status merge_piece(encoder *e, const uint8_t *piece, size_t n) {
    const vocab *v = e->v;
    uint32_t *ids = e->ids + e->n_ids, n_ids = 0;
    if (v->whole_first && n <= v->max_token) {
        uint32_t found = *vocab_find_bytes(v, piece, n);
        if (found && !v->special[found - 1]) {
            e->ids[e->n_ids++] = found - 1;
            return NANO_OK;
        }
    }
    for (size_t i = 0; i < n; i++) {
        ids[n_ids] = v->byte_ids[piece[i]];
        n_ids += ids[n_ids] != NO_ID;
    }
    nano_status status = merge_ids(&v->merges, &e->work, ids, &n_ids);
    e->n_ids += n_ids;
    return status;
}

/* The n <= KEPT_BYTES bytes at `piece` as two numbers; `left` bytes of the text are there to be read. */
static inline kept_piece key_of(const uint8_t *piece, size_t n, size_t left) {
    kept_piece key = {.n_bytes = (uint8_t)n};
    if (left < KEPT_BYTES) {
        uint8_t padded[KEPT_BYTES] = {0};
        memcpy(padded, piece, n);
        key.low = load_u64(padded);
        key.high = load_u64(padded + 8);
    } else if (n <= 8) {
        key.low = load_u64(piece) & UINT64_MAX >> 8 * (8 - n);
    } else {
        key.low = load_u64(piece);
        key.high = load_u64(piece + 8) & UINT64_MAX >> 8 * (16 - n);
    }
    return key;
}

/* A part between added tokens, in normal form. */
static nano_status encode_part(encoder *e, const uint8_t *text, size_t n) {
    nano_status status = reserve(e, n); /* no token takes less than a byte */
    for (size_t at = 0, end; at < n && !status; at = end) {
        end = pretoken_end(e->v->pre, text, at, n);
        size_t length = end - at;
        if (length > KEPT_BYTES) {
            status = merge_piece(e, text + at, length);
            continue;
        }
        kept_piece key = key_of(text + at, length, n - at);
        kept_piece *kept = &e->kept[mix(key.low ^ key.high * 0x9E3779B97F4A7C15u ^ length) & e->kept_mask];
        if (kept->low == key.low && kept->high == key.high && kept->n_bytes == length) {
            for (unsigned i = 0; i < kept->n_ids; i++) e->ids[e->n_ids + i] = e->ids[kept->first + i];
            e->n_ids += kept->n_ids;
            continue;
        }
        key.first = (uint32_t)e->n_ids;
        status = merge_piece(e, text + at, length);
        key.n_ids = (uint8_t)(e->n_ids - key.first);
        *kept = key;
    }
    return status;
}

static nano_status normalise_part(encoder *e, const uint8_t *text, size_t n) {
    if (!e->v->nfc || nfc_done(text, n) == n) return encode_part(e, text, n);
    if (NFC_GROWTH * (uint64_t)n > e->normal_room) {
        plat_free(e->normal);
        e->normal_room = NFC_GROWTH * (uint64_t)n;
        e->normal = plat_alloc(e->normal_room);
        if (!e->normal) return out_of_memory(e->normal_room);
    }
    size_t n_normal;
    nano_status status = nfc_write(text, n, &e->scratch, e->normal, &n_normal);
    return status ? status : encode_part(e, e->normal, n_normal);
}

/* The longest added token at the start of the text: its length, 0 if there is none. */
static size_t found_here(const vocab *v, const uint8_t *text, size_t n, uint32_t *id) {
    size_t length = 0;
    uint32_t node = TRIE_ROOT;
    for (size_t i = 0; i < n; i++) {
        node = trie_step(&v->tokens, node, text[i]);
        if (node == TRIE_NONE) break;
        if (v->tokens.node_ids[node] == NO_ID) continue;
        *id = v->tokens.node_ids[node];
        length = i + 1;
    }
    return length;
}

static nano_status encode_text(encoder *e, const uint8_t *text, size_t n, bool allow_special) {
    const vocab *v = e->v;
    size_t from = 0;
    for (size_t at = 0; at < n;) {
        uint32_t id;
        size_t length = v->found_starts[text[at]] ? found_here(v, text + at, n - at, &id) : 0;
        if (!length || (v->special[id] && !allow_special)) {
            at += length ? length : 1; /* a special token that may not be one is text, as a whole */
            continue;
        }
        nano_status status = normalise_part(e, text + from, at - from);
        if (!status) status = reserve(e, 1);
        if (status) return status;
        e->ids[e->n_ids++] = id;
        at += length;
        from = at;
    }
    return normalise_part(e, text + from, n - from);
}

nano_status vocab_encode_merges(const vocab *v, const uint8_t *text, size_t n, bool allow_special,
                                uint32_t **ids, size_t *n_ids) {
    if (n >= UINT32_MAX / (4 * NFC_GROWTH)) /* so that 30 bits count the bytes of any piece */
        return nano_fail(NANO_ERR_ARGUMENT, "a text of %llu bytes is too long to encode",
                         (unsigned long long)n);
    uint64_t slots = 16;
    while (slots < n / 4 && slots < MOST_KEPT) slots *= 2;
    encoder e = {.v = v, .kept_mask = slots - 1};
    e.kept = plat_alloc(slots * sizeof *e.kept);
    nano_status status = e.kept ? reserve(&e, (uint64_t)n + 1) : out_of_memory(n);
    if (!status) status = encode_text(&e, text, n, allow_special);
    plat_free(e.kept);
    plat_free(e.normal);
    plat_free(e.scratch.points);
    merge_work_free(&e.work);
    if (status) {
        plat_free(e.ids);
        return status;
    }
    *ids = e.ids;
    *n_ids = e.n_ids;
    return NANO_OK;
}
