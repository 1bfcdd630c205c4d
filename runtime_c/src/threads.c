/* threads.c: the team. A job is cut into chunks, and whoever is free claims the next one: the caller, and the
 * helpers that are awake. Nobody waits for a helper that has not come yet, so a core that is taken away costs
 * at most the chunk it was at. Whoever waits looks again a while, then sleeps: machines are shared.
 *
 * A chunk of some microseconds whose helper has lost its core for milliseconds is worth more than many jobs:
 * after such a stall the caller works alone for a while, longer each time it happens again. On a crowded
 * machine a team is then about as fast as one thread, not half as fast. */
#include "threads.h"

#include "platform.h"

enum { SPINS = 2000, MAX_THREADS = 256, CHUNKS_PER_THREAD = 4, CHUNK_COST = 1 << 15 };
/* Of a stall: nanoseconds; the jobs that the caller does alone after the first one, and at most; and the jobs
 * that must go well until it is forgotten. */
enum { STALL = 200000, ALONE_FIRST = 64, ALONE_MOST = 1 << 14, GOOD = 512 };

/* A word that can be waited on; `sleepers` saves the system call when nobody sleeps. */
typedef struct {
    atomic_uint word;
    atomic_uint sleepers;
} gate;

typedef struct {
    team *owner;
    plat_thread *thread;
    unsigned index;
} helper;

struct team {
    unsigned size;
    gate round;              /* counts the jobs */
    gate done;               /* chunks of this job that are done */
    _Atomic uint64_t ticket; /* round << 32 | chunks that nobody has claimed */
    atomic_bool stopping;
    team_job job; /* this and what follows may be read by who holds a chunk */
    void *context;
    size_t n_items;
    unsigned n_chunks;
    unsigned alone, next_alone, good; /* the caller's: jobs to do alone, after the next stall, gone well */
    cpu_set_of_thread before;         /* the caller's CPUs */
    atomic_int caller_cpu;            /* where it was when it began this job; -1: unknown */
    helper helpers[MAX_THREADS];
};

/* Returns when the word is no longer `value`. */
static void wait_while(gate *g, unsigned value) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&g->word, memory_order_acquire) != value) return;
        plat_relax();
    }
    atomic_fetch_add(&g->sleepers, 1);
    while (atomic_load(&g->word) == value) plat_wait(&g->word, value);
    atomic_fetch_sub(&g->sleepers, 1);
}

static unsigned add_one(gate *g) {
    return atomic_fetch_add(&g->word, 1) + 1;
}

static void wake(gate *g) {
    if (atomic_load(&g->sleepers)) plat_wake_all(&g->word);
}

/* Takes a chunk of job number `round`, if that is still going on and has one left. */
static bool claim(team *t, unsigned round, unsigned *chunk) {
    uint64_t ticket = atomic_load(&t->ticket);
    while ((unsigned)(ticket >> 32) == round && (uint32_t)ticket > 0) {
        if (!atomic_compare_exchange_weak(&t->ticket, &ticket, ticket - 1)) continue;
        *chunk = (uint32_t)ticket - 1;
        return true;
    }
    return false;
}

static void do_chunks(team *t, unsigned round, unsigned worker) {
    for (unsigned chunk; claim(t, round, &chunk);) {
        unsigned n_chunks = t->n_chunks;
        size_t begin = (size_t)((uint64_t)t->n_items * chunk / n_chunks);
        size_t end = (size_t)((uint64_t)t->n_items * (chunk + 1) / n_chunks);
        t->job(t->context, begin, end, worker);
        if (add_one(&t->done) == n_chunks) wake(&t->done);
    }
}

static void help(void *argument) {
    helper *self = argument;
    team *t = self->owner;
    plat_keep_to_fast_cpus(t->size, NULL);
    for (unsigned seen = 0;;) {
        wait_while(&t->round, seen);
        if (atomic_load(&t->stopping)) return;
        seen = atomic_load(&t->round.word);
        int caller_cpu = atomic_load_explicit(&t->caller_cpu, memory_order_relaxed);
        if (caller_cpu >= 0 && plat_current_cpu() == caller_cpu) { /* woken where the caller is: no help */
            plat_leave_cpu(caller_cpu);
            continue;
        }
        do_chunks(t, seen, self->index);
    }
}

team *team_start(unsigned n_threads) {
    team *t = plat_alloc(sizeof *t);
    if (!t) return NULL;
    t->size = n_threads < 1 ? 1 : n_threads > MAX_THREADS ? MAX_THREADS : n_threads;
    t->next_alone = ALONE_FIRST;
    if (t->size > 1) plat_keep_to_fast_cpus(t->size, &t->before);
    for (unsigned i = 1; i < t->size; i++) {
        helper *h = &t->helpers[i];
        h->owner = t;
        h->index = i;
        h->thread = plat_thread_start(help, h);
        if (!h->thread) {
            team_stop(t);
            return NULL;
        }
    }
    return t;
}

void team_stop(team *t) {
    if (!t) return;
    atomic_store(&t->stopping, true);
    add_one(&t->round);
    plat_wake_all(&t->round.word);
    for (unsigned i = 1; i < t->size; i++)
        if (t->helpers[i].thread) plat_thread_join(t->helpers[i].thread);
    plat_restore_cpus(&t->before);
    plat_free(t);
}

unsigned team_size(const team *t) {
    return t->size;
}

/* Returns when all chunks are done; takes note of a stall. */
static void wait_for_helpers(team *t, unsigned chunks) {
    unsigned done = atomic_load(&t->done.word);
    for (int i = 0; i < SPINS && done != chunks; i++) {
        plat_relax();
        done = atomic_load_explicit(&t->done.word, memory_order_acquire);
    }
    if (done != chunks) {
        uint64_t start = plat_nanoseconds();
        for (; done != chunks; done = atomic_load(&t->done.word)) wait_while(&t->done, done);
        if (plat_nanoseconds() - start > STALL) {
            t->alone = t->next_alone;
            if (t->next_alone < ALONE_MOST) t->next_alone *= 4;
            t->good = 0;
        }
    }
    if (++t->good >= GOOD) t->next_alone = ALONE_FIRST;
}

void team_run(team *t, size_t n, size_t cost, team_job job, void *context) {
    size_t chunks = n * cost / CHUNK_COST, most = (size_t)t->size * CHUNKS_PER_THREAD;
    if (chunks > most) chunks = most;
    if (chunks > n) chunks = n;
    if (t->size == 1 || chunks <= 1 || t->alone) {
        if (n) job(context, 0, n, 0);
        if (t->alone && chunks > 1) t->alone--;
        return;
    }
    t->job = job;
    t->context = context;
    t->n_items = n;
    t->n_chunks = (unsigned)chunks;
    atomic_store_explicit(&t->caller_cpu, plat_current_cpu(), memory_order_relaxed);
    atomic_store(&t->done.word, 0);
    unsigned round = atomic_load(&t->round.word) + 1;
    atomic_store(&t->ticket, (uint64_t)round << 32 | chunks);
    add_one(&t->round);
    wake(&t->round);
    do_chunks(t, round, 0);
    wait_for_helpers(t, (unsigned)chunks);
}
