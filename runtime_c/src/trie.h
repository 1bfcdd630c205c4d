/* trie.h: strings of symbols (code points, or bytes) to ids. All edges lie in one hash table. */
#ifndef NANO_TRIE_H
#define NANO_TRIE_H

#include "nano.h"

enum { TRIE_ROOT = 0, TRIE_NONE = UINT32_MAX };

typedef struct {
    uint64_t key; /* (node + 1) << 32 | symbol; 0 is an empty slot */
    uint32_t child;
} trie_edge;

typedef struct {
    trie_edge *edges;
    uint64_t edge_mask;
    uint32_t *node_ids; /* [nodes]: the string that ends here, or TRIE_NONE */
    uint32_t n_nodes;
} trie;

/* Room for strings of n symbols in all. False: out of memory. */
bool trie_open(trie *t, uint64_t n_symbols);
void trie_free(trie *t);

/* The node behind the edge; TRIE_NONE if there is none. */
uint32_t trie_step(const trie *t, uint32_t node, uint32_t symbol);
/* The same, but makes it. */
uint32_t trie_grow(trie *t, uint32_t node, uint32_t symbol);
/* A whole string of bytes. Of equal ones the first id counts. */
void trie_add_bytes(trie *t, const uint8_t *bytes, size_t n, uint32_t id);

#endif
