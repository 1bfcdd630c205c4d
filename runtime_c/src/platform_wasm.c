/* platform_wasm.c: WebAssembly, without a C library. There are no files; memory is heap_wasm.c's. Threads are
 * Web Workers that JavaScript has started, with this program and its memory, and sent into nano_web_help(),
 * where they sleep until they get something to do. A build without threads has none. */
#include "platform.h"

const uint8_t *plat_map_file(const char *path, size_t *size, const char **why) {
    (void)path, (void)size;
    *why = "there are no files here";
    return NULL;
}

void plat_unmap_file(const uint8_t *bytes, size_t size) {
    (void)bytes, (void)size;
}

void plat_forget_file(const uint8_t *bytes, size_t size) {
    (void)bytes, (void)size;
}

#ifdef __wasm_atomics__
enum { MOST_HELPERS = 31 };
enum { ABSENT, IDLE, BUSY };

struct plat_thread {
    atomic_uint state;
    void (*body)(void *);
    void *argument;
};

static plat_thread workers[MOST_HELPERS];

/* A worker's life. */
void nano_web_help(unsigned index);
void nano_web_help(unsigned index) {
    plat_thread *self = &workers[index];
    atomic_store(&self->state, IDLE);
    plat_wake_all(&self->state);
    for (;;) {
        unsigned state = atomic_load(&self->state);
        if (state != BUSY) {
            plat_wait(&self->state, state);
            continue;
        }
        self->body(self->argument);
        atomic_store(&self->state, IDLE);
        plat_wake_all(&self->state);
    }
}

/* How many have come so far. */
unsigned nano_web_helpers(void);
unsigned nano_web_helpers(void) {
    unsigned n = 0;
    while (n < MOST_HELPERS && atomic_load(&workers[n].state) != ABSENT) n++;
    return n;
}

unsigned plat_cpu_count(void) {
    return nano_web_helpers() + 1;
}

plat_thread *plat_thread_start(void (*body)(void *), void *argument) {
    for (unsigned i = 0; i < MOST_HELPERS; i++) {
        plat_thread *w = &workers[i];
        if (atomic_load(&w->state) != IDLE) continue;
        w->body = body;
        w->argument = argument;
        atomic_store(&w->state, BUSY);
        plat_wake_all(&w->state);
        return w;
    }
    return NULL;
}

void plat_thread_join(plat_thread *thread) {
    while (atomic_load(&thread->state) == BUSY) plat_wait(&thread->state, BUSY);
}

void plat_wait(atomic_uint *word, unsigned expected) {
    __builtin_wasm_memory_atomic_wait32((int *)(void *)word, (int)expected, -1);
}

void plat_wake_all(atomic_uint *word) {
    __builtin_wasm_memory_atomic_notify((int *)(void *)word, UINT32_MAX);
}

/* There is no instruction for it: a few loads that nobody may leave out take as long. */
void plat_relax(void) {
    static atomic_uint nothing;
    for (int i = 0; i < 8; i++) atomic_load_explicit(&nothing, memory_order_seq_cst);
}
#else
unsigned plat_cpu_count(void) {
    return 1;
}

plat_thread *plat_thread_start(void (*body)(void *), void *argument) {
    (void)body, (void)argument;
    return NULL;
}

void plat_thread_join(plat_thread *thread) {
    (void)thread;
}

void plat_wait(atomic_uint *word, unsigned expected) {
    (void)word, (void)expected;
}

void plat_wake_all(atomic_uint *word) {
    (void)word;
}

void plat_relax(void) {}
#endif

/* ---- what else there is none of ---------------------------------------------------------------------------
 */

plat_output *plat_output_begin(const char *path, const char **why) {
    (void)path;
    *why = "there are no files here";
    return NULL;
}

bool plat_output_write(plat_output *output, const void *bytes, size_t size, const char **why) {
    (void)output, (void)bytes, (void)size, (void)why;
    return false;
}

bool plat_output_end(plat_output *output, bool keep, const char **why) {
    (void)output, (void)keep, (void)why;
    return false;
}

void plat_keep_to_fast_cpus(unsigned threads, cpu_set_of_thread *before) {
    (void)threads, (void)before;
}

void plat_restore_cpus(const cpu_set_of_thread *before) {
    (void)before;
}

int plat_current_cpu(void) {
    return -1;
}

void plat_leave_cpu(int cpu) {
    (void)cpu;
}

/* ---- the clock, milliseconds, which JavaScript gives ---- */

__attribute__((import_module("env"), import_name("now"))) double nano_web_now(void);

double plat_seconds(void) {
    return nano_web_now() / 1e3;
}

uint64_t plat_nanoseconds(void) {
    return (uint64_t)(nano_web_now() * 1e6);
}
