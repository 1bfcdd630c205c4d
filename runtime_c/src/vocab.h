/* vocab.h: a model's vocabulary, and text to tokens. Two kinds: Nano's (tokens of code points, longest match
 * from the left) and Qwen's (tokens of bytes, merged by score). Both give bytes for an id in the same way. */
#ifndef NANO_VOCAB_H
#define NANO_VOCAB_H

#include "nano.h"
#include "platform.h"

enum { NO_ID = UINT32_MAX, UNKNOWN_ID = 1 };

typedef struct {
    uint64_t key; /* trie: (node + 1) << 32 | code point; 0 is an empty slot */
    uint32_t child;
} trie_edge;

typedef struct vocab {
    uint32_t size; /* ids 0 .. size - 1; those without an entry in the file have no bytes */
    bool is_bpe;

    char *bytes;      /* all tokens' bytes, one after another */
    uint64_t *starts; /* [size + 1] */
    uint8_t *special; /* [size] */
    uint32_t n_special, max_token;

    /* Nano: a trie over code points. Edges lie in one hash table. */
    trie_edge *edges;
    uint64_t edge_mask;
    uint32_t *node_ids; /* [nodes]: the token that ends here, or NO_ID */
    uint32_t n_nodes;
    uint32_t byte_ids[256]; /* the token of a single byte, or NO_ID */
    bool byte_tokens;       /* none of these is NO_ID */

    /* Qwen: ids by their bytes, in one hash table; scores say what is merged first. */
    float *scores;      /* [size] */
    uint32_t *by_bytes; /* id + 1; 0 is an empty slot */
    uint64_t bytes_mask;
    uint32_t stop_ids[2];
} vocab;

/* Both read the tokenizer section, `size` bytes from its first word on, and may fail with a format error. */
nano_status vocab_read_trie(vocab *v, const uint8_t *section, size_t size, uint32_t vocab_size);
nano_status vocab_read_bpe(vocab *v, const uint8_t *section, size_t size, uint32_t vocab_size);
void vocab_free(vocab *v);

nano_status vocab_encode_trie(const vocab *v, const uint8_t *text, size_t n, bool allow_special,
                              uint32_t **ids, size_t *n_ids);
nano_status vocab_encode_bpe(const vocab *v, const uint8_t *text, size_t n, bool allow_special,
                             uint32_t **ids, size_t *n_ids);

#endif
