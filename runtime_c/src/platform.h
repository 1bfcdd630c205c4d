/* platform.h: all that the core wants from the machine below it. platform_posix.c is the POSIX side; a
 * freestanding build (WebAssembly) brings its own, and the handful of string.h and math.h functions used. */
#ifndef NANO_PLATFORM_H
#define NANO_PLATFORM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "model files are little-endian and used in place: big-endian machines are not supported"
#endif

/* Zeroed memory on a 64-byte boundary, or NULL. The size may be any 64-bit number, also an absurd one. */
void *plat_alloc(uint64_t size);
void plat_free(void *pointer);

/* Memory for weights, in big pages where there are any; zeroed. NULL on failure. */
void *plat_alloc_arena(uint64_t size);
void plat_free_arena(void *pointer, uint64_t size);

/* A whole file, read-only. NULL on failure, with a static text that says why. */
const uint8_t *plat_map_file(const char *path, size_t *size, const char **why);
void plat_unmap_file(const uint8_t *bytes, size_t size);
/* These bytes of a mapped file are not needed now: they need not take memory, and are read again if touched.
 */
void plat_forget_file(const uint8_t *bytes, size_t size);

/* A file that is there as a whole, under its name, or not at all. NULL or false on failure, with a static
 * text that says why. */
typedef struct plat_output plat_output;
plat_output *plat_output_begin(const char *path, const char **why);
bool plat_output_write(plat_output *output, const void *bytes, size_t size, const char **why);
/* Ends it in any case; `keep` false: drop what was written. */
bool plat_output_end(plat_output *output, bool keep, const char **why);

double plat_seconds(void); /* of a clock that only goes forward */

#ifdef __aarch64__
bool plat_has_dotprod(void), plat_has_i8mm(void);
#endif

unsigned plat_cpu_count(void); /* fast cores that this process may use, at least 1: see topology.h */

/* The CPUs that a thread was allowed before. */
typedef struct {
    bool changed;
    unsigned char mask[128]; /* a bit for each CPU */
} cpu_set_of_thread;

/* On a machine with slower and faster CPUs, keeps the calling thread to the fast ones, if these are as many
 * as `threads`: to all of them, not to one each, so that the system can move it when one is taken away.
 * `before` may be NULL. Does nothing elsewhere. */
void plat_keep_to_fast_cpus(unsigned threads, cpu_set_of_thread *before);
void plat_restore_cpus(const cpu_set_of_thread *before);

int plat_current_cpu(void); /* -1: unknown */
/* Moves the calling thread to another of the CPUs that it may use, if there is one. */
void plat_leave_cpu(int cpu);

uint64_t plat_nanoseconds(void); /* from some moment on */

typedef struct plat_thread plat_thread;
plat_thread *plat_thread_start(void (*body)(void *), void *argument); /* NULL on failure */
void plat_thread_join(plat_thread *thread);

/* Sleep while *word == expected (may wake early); wake all sleepers on *word. */
void plat_wait(atomic_uint *word, unsigned expected);
void plat_wake_all(atomic_uint *word);
void plat_relax(void); /* a hint inside a spinning loop */

#endif
