/* cli_machine.c: how fast this machine could be: bytes read from memory and multiply-adds in a second, with
 * all the threads that a session would use. What `bench` compares a model's speed with. */
#define _GNU_SOURCE
#include "cli_machine.h"

#include "platform.h"
#include "threads.h"

#include <string.h>
#include <unistd.h>

/* ---- reading
 * -----------------------------------------------------------------------------------------------
 */

enum { PIECE = 1 << 18, LANES = 16, MAX_WORKERS = 256 };

typedef struct {
    const uint64_t *numbers;
    uint64_t found[MAX_WORKERS]; /* of each worker, so that no compiler leaves the sums out */
} read_job;

/* Sixteen sums side by side: compilers make the machine's vectors of them, and memory is slower than any. */
static void read_pieces(void *context, size_t begin, size_t end, unsigned worker) {
    read_job *job = context;
    uint64_t sums[LANES] = {0};
    const uint64_t *at = job->numbers + begin * (PIECE / 8), *stop = job->numbers + end * (PIECE / 8);
    for (; at < stop; at += LANES)
        for (size_t i = 0; i < LANES; i++) sums[i] += at[i];
    for (size_t i = 0; i < LANES; i++) job->found[worker] += sums[i];
}

/* Several times the caches, so that little of it is still there when it is read again; on a small machine
 * not more than a quarter of what is free. */
static uint64_t buffer_bytes(void) {
    uint64_t bytes = (uint64_t)128 << 20, cache = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
    long level3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (level3 > 0) cache = (uint64_t)level3;
#endif
    if (8 * cache > bytes) bytes = 8 * cache;
    if (bytes > (uint64_t)1 << 30) bytes = (uint64_t)1 << 30;
#ifdef _SC_AVPHYS_PAGES
    long pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t spare = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page / 4 : bytes;
    if (bytes > spare) bytes = spare;
#endif
    return bytes < (uint64_t)8 * PIECE ? (uint64_t)8 * PIECE : bytes / PIECE * PIECE;
}

double machine_bandwidth(unsigned threads, unsigned runs, uint64_t *bytes) {
    *bytes = buffer_bytes();
    team *t = team_start(threads);
    uint64_t *numbers = plat_alloc_arena(*bytes);
    double best = 0;
    if (t && numbers) {
        read_job job = {.numbers = numbers};
        memset(numbers, 1, (size_t)*bytes);
        for (unsigned i = 0; i <= runs; i++) { /* once to warm up */
            double start = cli_now();
            team_run(t, (size_t)(*bytes / PIECE), PIECE, read_pieces, &job);
            double rate = (double)*bytes / (cli_now() - start);
            if (rate > best) best = rate;
        }
        volatile uint64_t sink = job.found[0]; /* somebody looks at it */
        (void)sink;
    }
    plat_free_arena(numbers, *bytes);
    team_stop(t);
    return best;
}

/* ---- multiplying
 * -------------------------------------------------------------------------------------------
 */

/* The instruction that a set of kernels spends its time in, again and again into twelve registers, so that
 * none waits for the one before. In assembler: what it can do at most, whatever a compiler makes of a loop.
 */
typedef void (*multiply_loop)(size_t n);

#define TWELVE(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11)
enum { REGISTERS = 12 };

#if defined(__GNUC__) && defined(__x86_64__)
#define CLOBBERS                                                                                             \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",        \
        "xmm12", "xmm13", "xmm14"
#define LOOP(name, op)                                                                                       \
    static void name(size_t n) {                                                                             \
        __asm__ volatile("vpxor %%xmm12, %%xmm12, %%xmm12\n vpxor %%xmm13, %%xmm13, %%xmm13\n" ::            \
                             : "xmm12", "xmm13");                                                            \
        while (n--) __asm__ volatile(TWELVE(op)::: CLOBBERS);                                                \
        __asm__ volatile("vzeroupper" ::: CLOBBERS);                                                         \
    }
#define FMA512(i) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" #i "\n"
#define DOT512(i) "vpdpbusd %%zmm12, %%zmm13, %%zmm" #i "\n"
#define FMA256(i) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" #i "\n"
#define DOT256(i) "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm" #i "\n"
#define MADD256(i) "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n vpaddw %%ymm14, %%ymm" #i ", %%ymm" #i "\n"
LOOP(fma512, FMA512)
LOOP(dot512, DOT512)
LOOP(fma256, FMA256)
LOOP(dot256, DOT256)
LOOP(madd256, MADD256)
#elif defined(__GNUC__) && defined(__aarch64__)
#define CLOBBERS "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14"
#define LOOP(name, op)                                                                                       \
    static void name(size_t n) {                                                                             \
        __asm__ volatile("movi v12.16b, #0\n movi v13.16b, #0" ::: "v12", "v13");                            \
        while (n--) __asm__ volatile(".arch armv8.2-a+dotprod+i8mm\n" TWELVE(op)::: CLOBBERS);               \
    }
#define FMLA(i) "fmla v" #i ".4s, v12.4s, v13.4s\n"
#define SMLAL(i) "smull v14.8h, v12.8b, v13.8b\n sadalp v" #i ".4s, v14.8h\n"
#define SDOT(i) "sdot v" #i ".4s, v12.16b, v13.16b\n"
#define SMMLA(i) "smmla v" #i ".4s, v12.16b, v13.16b\n"
LOOP(fmla, FMLA)
LOOP(smull, SMLAL)
LOOP(sdot, SDOT)
LOOP(smmla, SMMLA)
#endif

static const struct {
    const char *kernels, *instruction;
    bool integers;
    multiply_loop loop;
    unsigned each; /* multiply-adds of one instruction */
} loops[] = {
#if defined(__GNUC__) && defined(__x86_64__)
    {"avx512", "vpdpbusd, 64 bytes", true, dot512, 64},
    {"avx512", "vfmadd231ps, 16 floats", false, fma512, 16},
    {"avxvnni", "vpdpbusd, 32 bytes", true, dot256, 32},
    {"avxvnni", "vfmadd231ps, 8 floats", false, fma256, 8},
    {"avx2", "vpmaddubsw, 32 bytes", true, madd256, 32},
    {"avx2", "vfmadd231ps, 8 floats", false, fma256, 8},
#elif defined(__GNUC__) && defined(__aarch64__)
    {"i8mm", "smmla, 16 bytes", true, smmla, 32},
    {"i8mm", "fmla, 4 floats", false, fmla, 4},
    {"dotprod", "sdot, 16 bytes", true, sdot, 16},
    {"dotprod", "fmla, 4 floats", false, fmla, 4},
    {"neon", "smull and sadalp, 8 bytes", true, smull, 8},
    {"neon", "fmla, 4 floats", false, fmla, 4},
#endif
    {"", "", false, NULL, 0},
};

enum { ITERATIONS = 1 << 18, ITEMS_PER_THREAD = 16 };

static void multiply(void *context, size_t begin, size_t end, unsigned worker) {
    const multiply_loop *loop = context;
    (void)worker;
    for (size_t i = begin; i < end; i++) (*loop)(ITERATIONS);
}

double machine_peak(const char *kernels, bool integers, unsigned threads, unsigned runs,
                    const char **instruction) {
    size_t which = 0;
    while (loops[which].loop &&
           (strcmp(loops[which].kernels, kernels) != 0 || loops[which].integers != integers))
        which++;
    *instruction = loops[which].instruction;
    team *t = loops[which].loop ? team_start(threads) : NULL;
    if (!t) return 0;
    double best = 0;
    size_t items = (size_t)threads * ITEMS_PER_THREAD;
    multiply_loop loop = loops[which].loop;
    for (unsigned i = 0; i <= runs; i++) {
        double start = cli_now();
        team_run(t, items, ITERATIONS, multiply, &loop);
        double rate = (double)items * ITERATIONS * REGISTERS * loops[which].each / (cli_now() - start);
        if (rate > best) best = rate;
    }
    team_stop(t);
    return best;
}

/* ---- pages
 * -------------------------------------------------------------------------------------------------
 */

double machine_big_pages(const void *memory, uint64_t bytes) {
    char line[256];
    unsigned long long from = 0, to = 0, kb, total = 0;
    unsigned long long begin = (uintptr_t)memory, end = begin + bytes;
    bool known = false;
    FILE *maps = fopen("/proc/self/smaps", "r");
    if (!maps || !bytes) {
        if (maps) fclose(maps);
        return -1;
    }
    while (fgets(line, sizeof line, maps)) {
        unsigned long long a, b;
        if (sscanf(line, "%llx-%llx ", &a, &b) == 2) {
            from = a;
            to = b;
        } else if (from < end && to > begin && sscanf(line, "AnonHugePages: %llu kB", &kb) == 1) {
            total += kb << 10;
            known = true;
        }
    }
    fclose(maps);
    if (!known) return -1;
    return total >= bytes ? 1 : (double)total / (double)bytes;
}
