/* heap_wasm.c: memory for a build without a C library: one list of blocks, in the order of their addresses,
 * over all that lies above the program's own data. It grows at its end and never shrinks: WebAssembly cannot
 * give pages back. Only the thread that calls the library asks for memory. */
#include "platform.h"

#include <string.h>

enum { ALIGNMENT = 64, PAGE = 65536 };

/* Before each block. Sizes are multiples of 64, without this. */
typedef struct block block;
struct block {
    size_t size;
    block *before; /* NULL: it is the first */
    bool used;
} __attribute__((aligned(ALIGNMENT)));

typedef struct {
    block *first, *last;
    uintptr_t end;   /* of the last block */
    uintptr_t dirty; /* memory from here on was never used: it is zero */
} heap;

static heap the_heap; /* there is one memory, so there is one heap */
extern unsigned char __heap_base;

static unsigned char *data_of(block *b) {
    return (unsigned char *)(b + 1);
}

static block *after(block *b) {
    return b == the_heap.last ? NULL : (block *)(void *)(data_of(b) + b->size);
}

/* Makes the memory at least this long. */
static bool reach(uint64_t end) {
    uint64_t have = (uint64_t)__builtin_wasm_memory_size(0) * PAGE;
    if (end <= have) return true;
    if (end > UINT32_MAX - PAGE) return false;
    return __builtin_wasm_memory_grow(0, (size_t)((end - have + PAGE - 1) / PAGE)) != SIZE_MAX;
}

static block *append(uint64_t size) {
    heap *h = &the_heap;
    if (!h->end) {
        h->end = ((uintptr_t)&__heap_base + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        h->dirty = h->end;
    }
    if (!reach(h->end + sizeof(block) + size)) return NULL;
    block *b = (block *)h->end;
    *b = (block){.size = (size_t)size, .before = h->last};
    h->last = b;
    if (!h->first) h->first = b;
    h->end += sizeof(block) + (size_t)size;
    return b;
}

/* What a free block has more than is needed becomes a block of its own. */
static void split(block *b, size_t size) {
    if (b->size < size + sizeof(block) + ALIGNMENT) return;
    block *rest = (block *)(void *)(data_of(b) + size), *next = after(b);
    *rest = (block){.size = b->size - size - sizeof(block), .before = b};
    if (next) next->before = rest;
    if (b == the_heap.last) the_heap.last = rest;
    b->size = size;
}

static void join_next(block *b) {
    block *next = after(b);
    if (!next || next->used) return;
    b->size += sizeof(block) + next->size;
    if (next == the_heap.last) the_heap.last = b;
    block *then = after(b);
    if (then) then->before = b;
}

/* The last block may be made longer where it lies. */
static bool stretch(block *b, uint64_t size) {
    uintptr_t start = (uintptr_t)data_of(b);
    if (b != the_heap.last || !reach(start + size)) return false;
    b->size = (size_t)size;
    the_heap.end = start + (size_t)size;
    return true;
}

void *plat_alloc(uint64_t size) {
    if (size > UINT32_MAX - 2 * PAGE) return NULL;
    size = size ? (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : ALIGNMENT;
    block *b = the_heap.first;
    while (b && (b->used || (b->size < size && !stretch(b, size)))) b = after(b);
    if (!b) b = append(size);
    if (!b) return NULL;
    split(b, (size_t)size);
    b->used = true;
    uintptr_t start = (uintptr_t)data_of(b), end = start + b->size, clean = the_heap.dirty;
    if (clean > start) memset(data_of(b), 0, (clean < end ? clean : end) - start);
    if (clean < end) the_heap.dirty = end;
    return data_of(b);
}

void plat_free(void *pointer) {
    if (!pointer) return;
    block *b = (block *)pointer - 1;
    b->used = false;
    /* headers of blocks lie in what was never used, too */
    if (the_heap.dirty < the_heap.end) the_heap.dirty = the_heap.end;
    join_next(b);
    if (b->before && !b->before->used) join_next(b->before);
}

void *plat_alloc_arena(uint64_t size) {
    return size ? plat_alloc(size) : NULL;
}

void plat_free_arena(void *pointer, uint64_t size) {
    (void)size;
    plat_free(pointer);
}

/* Makes a block longer, or shorter, and says where it lies now; NULL: there is no room, and it is as it was.
 */
void *heap_resize(void *pointer, size_t size);
void *heap_resize(void *pointer, size_t size) {
    block *b = (block *)pointer - 1;
    size_t rounded = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (size > SIZE_MAX - 2 * PAGE) return NULL;
    if (rounded && (rounded <= b->size || stretch(b, rounded))) {
        split(b, rounded);
        block *rest = after(b);
        if (rest && !rest->used) join_next(rest);
        if (the_heap.dirty < the_heap.end) the_heap.dirty = the_heap.end;
        return pointer;
    }
    void *other = plat_alloc(size);
    if (!other) return NULL;
    memcpy(other, pointer, b->size < size ? b->size : size);
    plat_free(pointer);
    return other;
}
