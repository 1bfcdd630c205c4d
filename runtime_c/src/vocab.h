/* vocab.h: a model's vocabulary, and text to tokens. Four kinds; all give bytes for an id in the same way. */
#ifndef NANO_VOCAB_H
#define NANO_VOCAB_H

#include "merge.h"
#include "nano.h"
#include "platform.h"
#include "pretoken.h"
#include "trie.h"

enum { NO_ID = UINT32_MAX, UNKNOWN_ID = 1, MAX_STOP_IDS = 8 };

typedef enum {
    VOCAB_POINTS, /* Nano's: tokens of code points, the longest match from the left */
    VOCAB_BYTES,  /* the same with tokens of bytes (GGUF's "rwkv") */
    VOCAB_SCORES, /* Qwen's in Nano's files: tokens of bytes, merged by score */
    VOCAB_MERGES, /* byte-level BPE (GGUF's "gpt2", Hugging Face's tokenizer.json): merged by a list of pairs
                   */
} vocab_kind;

typedef struct vocab {
    uint32_t size; /* ids 0 .. size - 1; those without an entry in the file have no bytes */
    vocab_kind kind;

    char *bytes;      /* all tokens' bytes, one after another */
    uint64_t *starts; /* [size + 1] */
    uint8_t *special; /* [size] */
    uint32_t n_special, max_token;
    uint32_t stop_ids[MAX_STOP_IDS], n_stop; /* they end a text */
    uint32_t bos;                            /* begins a text; NO_ID: nothing does */
    uint32_t byte_ids[256];                  /* the token of a single byte, or NO_ID */
    bool byte_tokens;                        /* none of these is NO_ID */

    /* VOCAB_POINTS, VOCAB_BYTES: the tokens. VOCAB_MERGES: those found before anything else, special or not.
     */
    trie tokens;
    uint32_t unknown; /* for what cannot be spelled */

    /* VOCAB_SCORES, and VOCAB_MERGES with whole_first: ids by their bytes, in one hash table. */
    uint32_t *by_bytes; /* id + 1; 0 is an empty slot */
    uint64_t bytes_mask;
    float *scores; /* [size]: what is merged first */

    /* VOCAB_MERGES */
    merge_table merges;
    pre_kind pre;
    bool nfc, whole_first;
    bool found_starts[256]; /* the first bytes of the strings in `tokens` */
} vocab;

/* What a file says of a byte-level BPE vocabulary; strings are not terminated and lie in the file. */
typedef struct {
    const uint8_t *bytes;
    size_t n;
} text_span;

typedef struct {
    uint32_t size; /* tokens */
    const text_span
        *tokens;          /* [size] in GPT-2's byte-to-character alphabet (special/added ones: plain UTF-8) */
    const uint8_t *types; /* [size] GGUF token types, see token_type */
    uint32_t n_merges;
    const text_span *merges; /* [n_merges] "left right", by priority */
    pre_kind pre;
    bool nfc;         /* Qwen normalises to NFC */
    bool whole_first; /* Llama 3: a pre-token that is a token is taken whole */
    bool add_bos;     /* a text begins with `bos` */
    uint32_t bos;     /* NO_ID: none */
    uint32_t stop_ids[MAX_STOP_IDS];
    uint32_t n_stop;
} merge_source;

/* GGUF's token types. Control and unknown ones are special: text becomes them only where that is allowed.
 * User defined ones are found in any text before it is cut; unused ones never. Byte tokens are for other
 * kinds. */
typedef enum {
    TYPE_NORMAL = 1,
    TYPE_UNKNOWN,
    TYPE_CONTROL,
    TYPE_USER_DEFINED,
    TYPE_UNUSED,
    TYPE_BYTE
} token_type;

/* Both read the tokenizer section, `size` bytes from its first word on, and may fail with a format error. */
nano_status vocab_read_trie(vocab *v, const uint8_t *section, size_t size, uint32_t vocab_size);
nano_status vocab_read_bpe(vocab *v, const uint8_t *section, size_t size, uint32_t vocab_size);

/* From what a reader found in its file, of which they copy what they need. NANO_ERR_FORMAT says what is wrong
 * with it. vocab_free is due in any case. */
nano_status vocab_build_merges(vocab *v, const merge_source *source);
/* How our own vocabularies go into GGUF. The tokens are raw bytes already unescaped; eos may be NO_ID. A
 * special
 * <|padding|> ends a text as well, as it does in Nano's files. */
nano_status vocab_build_trie_bytes(vocab *v, uint32_t size, const text_span *tokens, const uint8_t *types,
                                   uint32_t eos);
void vocab_free(vocab *v);

/* Text to ids, which are the caller's to plat_free. */
nano_status vocab_encode(const vocab *v, const uint8_t *text, size_t n, bool allow_special, uint32_t **ids,
                         size_t *n_ids);
nano_status vocab_encode_trie(const vocab *v, const uint8_t *text, size_t n, bool allow_special,
                              uint32_t **ids, size_t *n_ids);
nano_status vocab_encode_bpe(const vocab *v, const uint8_t *text, size_t n, bool allow_special,
                             uint32_t **ids, size_t *n_ids);
nano_status vocab_encode_merges(const vocab *v, const uint8_t *text, size_t n, bool allow_special,
                                uint32_t **ids, size_t *n_ids);

/* Parts that several kinds are built with. */

/* starts[id + 1] - starts[id] bytes at v->bytes + starts[id]. */
static inline const uint8_t *vocab_bytes(const vocab *v, uint32_t id, size_t *n) {
    *n = (size_t)(v->starts[id + 1] - v->starts[id]);
    return (const uint8_t *)v->bytes + v->starts[id];
}
/* Opens by_bytes for this many tokens; false: out of memory. */
bool vocab_open_by_bytes(vocab *v, uint64_t n_tokens);
/* The slot that holds these bytes' id + 1, or the empty one (0) where it would go. */
uint32_t *vocab_find_bytes(const vocab *v, const uint8_t *bytes, size_t n);
/* Space for v->size tokens and their bytes; checks the types and notes which are special. */
nano_status vocab_open_tokens(vocab *v, const text_span *tokens, const uint8_t *types);
/* A format error that names `what` where there is no such id. */
nano_status vocab_check_id(const vocab *v, const char *what, uint32_t id);

#endif
