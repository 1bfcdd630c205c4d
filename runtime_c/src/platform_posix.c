/* platform_posix.c: memory, files, threads and CPUs on POSIX systems. */
#define _GNU_SOURCE
#include "platform.h"

#include "topology.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <limits.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#endif

enum { ALIGNMENT = 64 };

/* Malloc gives 16-byte alignment; the pointer to free is kept just below the aligned one. calloc, so that big
 * buffers which are never touched cost nothing. */
void *plat_alloc(uint64_t size) {
    if (size > PTRDIFF_MAX - 2 * ALIGNMENT) return NULL;
    unsigned char *raw = calloc(1, (size_t)size + ALIGNMENT + sizeof(void *));
    if (!raw) return NULL;
    uintptr_t aligned = ((uintptr_t)raw + sizeof(void *) + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1);
    unsigned char *pointer = raw + (aligned - (uintptr_t)raw);
    memcpy(pointer - sizeof(void *), &raw, sizeof raw);
    return pointer;
}

void plat_free(void *pointer) {
    if (!pointer) return;
    void *raw;
    memcpy(&raw, (unsigned char *)pointer - sizeof(void *), sizeof raw);
    free(raw);
}

static const char *describe(int error) {
    switch (error) {
    case ENOENT:
        return "no such file";
    case EACCES:
        return "permission denied";
    case EMFILE:
    case ENFILE:
        return "too many open files";
    case ENOMEM:
        return "out of memory";
    case EIO:
        return "read error";
    default:
        return "the system cannot open it";
    }
}

const uint8_t *plat_map_file(const char *path, size_t *size, const char **why) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        *why = describe(errno);
        return NULL;
    }
    struct stat info;
    void *bytes = MAP_FAILED;
    if (fstat(fd, &info) != 0) {
        *why = describe(errno);
    } else if (S_ISDIR(info.st_mode)) {
        *why = "it is a directory";
    } else if (!S_ISREG(info.st_mode)) {
        *why = "it is not a regular file";
    } else if (info.st_size == 0) {
        *why = "it is empty";
    } else if ((uint64_t)info.st_size > (uint64_t)PTRDIFF_MAX) {
        *why = "it is too big for this machine's address space";
    } else {
        *size = (size_t)info.st_size;
        bytes = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (bytes == MAP_FAILED) *why = describe(errno);
    }
    close(fd);
    return bytes == MAP_FAILED ? NULL : bytes;
}

/* A page table of 4 KiB pages costs a third of the speed at which weights can be read. */
void *plat_alloc_arena(uint64_t size) {
    if (size == 0 || size > PTRDIFF_MAX) return NULL;
    void *pointer = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pointer == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(pointer, (size_t)size, MADV_HUGEPAGE);
#endif
    return pointer;
}

void plat_free_arena(void *pointer, uint64_t size) {
    if (pointer) munmap(pointer, (size_t)size);
}

void plat_forget_file(const uint8_t *bytes, size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), skipped = (page - (uintptr_t)bytes % page) % page;
    if (size <= skipped) return;
    madvise((void *)(uintptr_t)(bytes + skipped), (size - skipped) / page * page, MADV_DONTNEED);
}

void plat_unmap_file(const uint8_t *bytes, size_t size) {
    munmap((void *)(uintptr_t)bytes, size);
}

static const char *describe_write(int error) {
    switch (error) {
    case ENOENT:
        return "there is no such folder";
    case EISDIR:
        return "it is a directory";
    case ENOSPC:
    case EDQUOT:
        return "the disk is full";
    case EROFS:
        return "the disk is read-only";
    default:
        return describe(error);
    }
}

struct plat_output {
    int fd;
    char *path, *temporary; /* of the same allocation */
};

plat_output *plat_output_begin(const char *path, const char **why) {
    static const char suffix[] = ".XXXXXX";
    size_t n = strlen(path);
    plat_output *o = malloc(sizeof *o + 2 * (n + 1) + sizeof suffix);
    if (!o) {
        *why = "out of memory";
        return NULL;
    }
    o->path = (char *)(o + 1);
    o->temporary = o->path + n + 1;
    memcpy(o->path, path, n + 1);
    memcpy(o->temporary, path, n);
    memcpy(o->temporary + n, suffix, sizeof suffix);
    o->fd = mkostemp(o->temporary, O_CLOEXEC);
    if (o->fd >= 0) return o;
    *why = describe_write(errno);
    free(o);
    return NULL;
}

bool plat_output_write(plat_output *o, const void *bytes, size_t size, const char **why) {
    for (const char *at = bytes; size;) {
        ssize_t n = write(o->fd, at, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            *why = n ? describe_write(errno) : "the system takes no more";
            return false;
        }
        at += n;
        size -= (size_t)n;
    }
    return true;
}

/* On the disk before it has its name: a machine that loses power then still has the old one. */
bool plat_output_end(plat_output *o, bool keep, const char **why) {
    bool whole = keep && fsync(o->fd) == 0;
    if (keep && !whole) *why = describe_write(errno);
    if (close(o->fd) != 0 && whole) {
        *why = describe_write(errno);
        whole = false;
    }
    if (whole && rename(o->temporary, o->path) != 0) {
        *why = describe_write(errno);
        whole = false;
    }
    if (!whole) unlink(o->temporary);
    free(o);
    return whole;
}

double plat_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#if defined(__aarch64__) && defined(__linux__)
/* The bits of Linux's asm/hwcap.h, which old headers lack. */
enum { DOTPROD = 1 << 20, I8MM = 1 << 13 };

bool plat_has_dotprod(void) {
    return getauxval(AT_HWCAP) & DOTPROD;
}

bool plat_has_i8mm(void) {
    return plat_has_dotprod() && (getauxval(AT_HWCAP2) & I8MM);
}
#elif defined(__aarch64__)
bool plat_has_dotprod(void) {
    return false;
}

bool plat_has_i8mm(void) {
    return false;
}
#endif

#ifdef __linux__
static bool read_topology(topology *t, cpu_set_t *set) {
    if (sched_getaffinity(0, sizeof *set, set) != 0 || CPU_COUNT(set) == 0) return false;
    bool allowed[TOPOLOGY_MAX_CPUS];
    for (unsigned cpu = 0; cpu < TOPOLOGY_MAX_CPUS; cpu++) allowed[cpu] = CPU_ISSET(cpu, set);
    topology_read(t, "", allowed);
    return true;
}

unsigned plat_cpu_count(void) {
    cpu_set_t set;
    topology t;
    return read_topology(&t, &set) ? t.threads : 1;
}

static void fast_cpus(const topology *t, cpu_set_t *fast) {
    CPU_ZERO(fast);
    for (unsigned cpu = 0; cpu < TOPOLOGY_MAX_CPUS; cpu++)
        if (t->fast[cpu]) CPU_SET(cpu, fast);
}

void plat_keep_to_fast_cpus(unsigned threads, cpu_set_of_thread *before) {
    cpu_set_t set, fast;
    topology t;
    if (!read_topology(&t, &set) || t.n_fast == t.n_allowed || threads > t.n_fast) return;
    fast_cpus(&t, &fast);
    if (sched_setaffinity(0, sizeof fast, &fast) != 0 || !before) return;
    before->changed = true;
    for (unsigned cpu = 0; cpu < TOPOLOGY_MAX_CPUS; cpu++)
        if (CPU_ISSET(cpu, &set)) before->mask[cpu / 8] |= (unsigned char)(1 << cpu % 8);
}

int plat_current_cpu(void) {
    return sched_getcpu();
}

/* The narrower mask stands only until the thread is elsewhere. */
void plat_leave_cpu(int cpu) {
    cpu_set_t set, others;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return;
    others = set;
    CPU_CLR((size_t)cpu, &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
    sched_setaffinity(0, sizeof set, &set);
}

void plat_restore_cpus(const cpu_set_of_thread *before) {
    cpu_set_t set;
    if (!before->changed) return;
    CPU_ZERO(&set);
    for (unsigned cpu = 0; cpu < TOPOLOGY_MAX_CPUS; cpu++)
        if (before->mask[cpu / 8] >> cpu % 8 & 1) CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}
#else
unsigned plat_cpu_count(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (unsigned)n : 1;
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
#endif

uint64_t plat_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct plat_thread {
    pthread_t handle;
    void (*body)(void *);
    void *argument;
};

static void *run_thread(void *opaque) {
    plat_thread *thread = opaque;
    thread->body(thread->argument);
    return NULL;
}

plat_thread *plat_thread_start(void (*body)(void *), void *argument) {
    plat_thread *thread = calloc(1, sizeof *thread);
    if (!thread) return NULL;
    thread->body = body;
    thread->argument = argument;
    if (pthread_create(&thread->handle, NULL, run_thread, thread) != 0) {
        free(thread);
        return NULL;
    }
    return thread;
}

void plat_thread_join(plat_thread *thread) {
    pthread_join(thread->handle, NULL);
    free(thread);
}

#ifdef __linux__
/* Of linux/futex.h, which not every C library comes with. */
enum { WAIT_PRIVATE = 128, WAKE_PRIVATE = 129 };

void plat_wait(atomic_uint *word, unsigned expected) {
    syscall(SYS_futex, word, WAIT_PRIVATE, expected, NULL, NULL, 0);
}

void plat_wake_all(atomic_uint *word) {
    syscall(SYS_futex, word, WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}
#else
/* Without futexes a sleeper looks again every 50 microseconds: plain, and correct. */
void plat_wait(atomic_uint *word, unsigned expected) {
    struct timespec nap = {0, 50000};
    if (atomic_load(word) == expected) nanosleep(&nap, NULL);
}

void plat_wake_all(atomic_uint *word) {
    (void)word;
}
#endif

void plat_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}
