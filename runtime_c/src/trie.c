/* trie.c: a trie whose edges lie in one hash table. */
#include "trie.h"

#include "bytes.h"
#include "platform.h"

bool trie_open(trie *t, uint64_t n_symbols) {
    uint64_t slots = 16;
    if (n_symbols >= UINT32_MAX) return false;
    while (slots < 2 * n_symbols) slots *= 2;
    *t = (trie){.edge_mask = slots - 1};
    t->edges = plat_alloc(times(slots, sizeof *t->edges));
    t->node_ids = plat_alloc(times(n_symbols + 1, sizeof *t->node_ids));
    if (!t->edges || !t->node_ids) return false;
    t->node_ids[t->n_nodes++] = TRIE_NONE; /* the root */
    return true;
}

void trie_free(trie *t) {
    plat_free(t->edges);
    plat_free(t->node_ids);
    *t = (trie){0};
}

static trie_edge *find_edge(const trie *t, uint32_t node, uint32_t symbol) {
    uint64_t key = ((uint64_t)node + 1) << 32 | symbol, slot = mix(key) & t->edge_mask;
    while (t->edges[slot].key && t->edges[slot].key != key) slot = (slot + 1) & t->edge_mask;
    return &t->edges[slot];
}

uint32_t trie_step(const trie *t, uint32_t node, uint32_t symbol) {
    const trie_edge *edge = find_edge(t, node, symbol);
    return edge->key ? edge->child : TRIE_NONE;
}

uint32_t trie_grow(trie *t, uint32_t node, uint32_t symbol) {
    trie_edge *edge = find_edge(t, node, symbol);
    if (!edge->key) {
        edge->key = ((uint64_t)node + 1) << 32 | symbol;
        edge->child = t->n_nodes;
        t->node_ids[t->n_nodes++] = TRIE_NONE;
    }
    return edge->child;
}

void trie_add_bytes(trie *t, const uint8_t *bytes, size_t n, uint32_t id) {
    uint32_t node = TRIE_ROOT;
    for (size_t i = 0; i < n; i++) node = trie_grow(t, node, bytes[i]);
    if (n && t->node_ids[node] == TRIE_NONE) t->node_ids[node] = id;
}
