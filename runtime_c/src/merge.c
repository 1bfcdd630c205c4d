/* merge.c: merging. A short piece is searched anew for each merge; a long one keeps its pairs in a heap, so
 * that n tokens take n log n however they are chosen. Both do the same merges in the same order. */
#include "merge.h"

#include "bytes.h"
#include "error.h"
#include "platform.h"

enum { SHORT = 24 }; /* tokens: from about here on the heap is faster */

bool merge_table_open(merge_table *t, uint32_t n_merges) {
    uint64_t slots = 16;
    while (2 * slots < 3 * (uint64_t)n_merges) slots *= 2;
    t->mask = slots - 1;
    t->rules = plat_alloc(slots * sizeof *t->rules);
    return t->rules != NULL;
}

void merge_table_free(merge_table *t) {
    plat_free(t->rules);
    t->rules = NULL;
}

static inline uint64_t first_slot(const merge_table *t, uint32_t left, uint32_t right) {
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u;
    return (h ^ h >> 32) & t->mask;
}

void merge_table_add(merge_table *t, uint32_t left, uint32_t right, uint32_t rank, uint32_t result) {
    uint64_t slot = first_slot(t, left, right);
    merge_rule *rule = &t->rules[slot];
    while (rule->left_plus_1 && (rule->left_plus_1 != left + 1 || rule->right != right)) {
        slot = (slot + 1) & t->mask;
        rule = &t->rules[slot];
    }
    *rule = (merge_rule){left + 1, right, rank, result};
}

typedef struct {
    uint32_t rank, result;
} outcome;

static inline outcome find(const merge_table *t, uint32_t left, uint32_t right) {
    for (uint64_t slot = first_slot(t, left, right);; slot = (slot + 1) & t->mask) {
        const merge_rule *rule = &t->rules[slot];
        if (!rule->left_plus_1) return (outcome){NO_RANK, 0};
        if (rule->left_plus_1 == left + 1 && rule->right == right) return (outcome){rule->rank, rule->result};
    }
}

static uint32_t merge_short(const merge_table *t, uint32_t *ids, uint32_t n) {
    uint32_t ranks[SHORT], results[SHORT]; /* of each token with the one after it */
    for (uint32_t i = 0; i + 1 < n; i++) {
        outcome o = find(t, ids[i], ids[i + 1]);
        ranks[i] = o.rank;
        results[i] = o.result;
    }
    while (n > 1) {
        uint32_t best = 0;
        for (uint32_t i = 1; i + 1 < n; i++)
            if (ranks[i] < ranks[best]) best = i;
        if (ranks[best] == NO_RANK) break;
        ids[best] = results[best];
        n--;
        for (uint32_t i = best + 1; i < n; i++) ids[i] = ids[i + 1];
        for (uint32_t i = best + 1; i + 1 < n; i++) {
            ranks[i] = ranks[i + 1];
            results[i] = results[i + 1];
        }
        for (uint32_t i = best ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            outcome o = find(t, ids[i], ids[i + 1]);
            ranks[i] = o.rank;
            results[i] = o.result;
        }
    }
    return n;
}

/* A token of a long piece, named by the place of its first one. */
typedef struct merge_link {
    uint32_t previous, next; /* next: n after the last */
    uint32_t rank, result; /* of this and the next; NO_RANK also where this was joined to the one before it */
} merge_link;

/* The heap holds rank << 32 | place, lowest first; an entry is stale when the place has another rank by now.
 * Four children to a node: half the levels of a binary heap, and the four lie side by side. */
typedef struct {
    uint64_t *at;
    size_t n;
} rank_heap;

static void sift_down(rank_heap *h, size_t i, uint64_t moved) {
    for (;;) {
        size_t child = 4 * i + 1, end = child + 4 < h->n ? child + 4 : h->n;
        if (child >= h->n) break;
        for (size_t c = child + 1; c < end; c++)
            if (h->at[c] < h->at[child]) child = c;
        if (h->at[child] >= moved) break;
        h->at[i] = h->at[child];
        i = child;
    }
    h->at[i] = moved;
}

static void heap_push(rank_heap *h, uint64_t entry) {
    size_t i = h->n++;
    for (; i && entry < h->at[(i - 1) / 4]; i = (i - 1) / 4) h->at[i] = h->at[(i - 1) / 4];
    h->at[i] = entry;
}

static uint64_t heap_pop(rank_heap *h) {
    uint64_t top = h->at[0], moved = h->at[--h->n];
    if (h->n) sift_down(h, 0, moved);
    return top;
}

static void consider(const merge_table *t, merge_link *links, const uint32_t *ids, uint32_t i, uint32_t n,
                     rank_heap *h) {
    merge_link *link = &links[i];
    outcome o = link->next < n ? find(t, ids[i], ids[link->next]) : (outcome){NO_RANK, 0};
    link->rank = o.rank;
    link->result = o.result;
    if (o.rank != NO_RANK) heap_push(h, (uint64_t)o.rank << 32 | i);
}

static uint32_t merge_long(const merge_table *t, merge_work *work, uint32_t *ids, uint32_t n) {
    merge_link *links = work->links;
    rank_heap h = {work->heap, 0};
    for (uint32_t i = 0; i < n; i++) {
        links[i] = (merge_link){i - 1, i + 1, NO_RANK, 0};
        outcome o = i + 1 < n ? find(t, ids[i], ids[i + 1]) : (outcome){NO_RANK, 0};
        links[i].rank = o.rank;
        links[i].result = o.result;
        if (o.rank != NO_RANK) h.at[h.n++] = (uint64_t)o.rank << 32 | i;
    }
    for (size_t i = h.n / 4 + 1; i-- > 0;)
        if (i < h.n) sift_down(&h, i, h.at[i]);
    while (h.n) {
        uint64_t entry = heap_pop(&h);
        uint32_t left = (uint32_t)entry;
        if (links[left].rank != entry >> 32) continue;
        uint32_t right = links[left].next;
        ids[left] = links[left].result;
        links[left].next = links[right].next;
        links[right].rank = NO_RANK;
        if (links[left].next < n) links[links[left].next].previous = left;
        if (left) consider(t, links, ids, links[left].previous, n, &h);
        consider(t, links, ids, left, n, &h);
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i = links[i].next) ids[kept++] = ids[i];
    return kept;
}

void merge_work_free(merge_work *work) {
    plat_free(work->links);
    plat_free(work->heap);
    *work = (merge_work){0};
}

nano_status merge_ids(const merge_table *t, merge_work *work, uint32_t *ids, uint32_t *n) {
    if (*n <= SHORT) {
        *n = merge_short(t, ids, *n);
        return NANO_OK;
    }
    if (*n > work->room) {
        merge_work_free(work);
        uint64_t room = 2 * (uint64_t)*n;
        work->links = plat_alloc(room * sizeof *work->links);
        /* At most a pair for each token at first; a merge takes one out and puts two in. */
        work->heap = plat_alloc(2 * room * sizeof *work->heap);
        if (!work->links || !work->heap) {
            merge_work_free(work);
            return nano_fail(NANO_ERR_MEMORY, "out of memory for a word of %u bytes", *n);
        }
        work->room = (uint32_t)room;
    }
    *n = merge_long(t, work, ids, *n);
    return NANO_OK;
}
