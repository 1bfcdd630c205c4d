/* threads.c: the team. A job is announced by counting `round` up; each helper then does its share and counts
 * `busy` down. Whoever waits looks again a few hundred times, then sleeps: machines are shared. */
#include "threads.h"

#include "platform.h"

enum { SPINS = 2000, MAX_THREADS = 256 };

typedef struct {
    team *owner;
    plat_thread *thread;
    unsigned index;
} helper;

struct team {
    unsigned size;
    atomic_uint round;
    atomic_uint busy;
    atomic_bool stopping;
    team_job job;
    void *context;
    size_t n_items;
    helper helpers[MAX_THREADS];
};

static void wait_while(atomic_uint *word, unsigned value) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != value) return;
        plat_relax();
    }
    while (atomic_load_explicit(word, memory_order_acquire) == value) plat_wait(word, value);
}

static void do_share(team *t, unsigned index) {
    size_t begin = (size_t)((uint64_t)t->n_items * index / t->size);
    size_t end = (size_t)((uint64_t)t->n_items * (index + 1) / t->size);
    if (begin < end) t->job(t->context, begin, end, index);
}

static void help(void *argument) {
    helper *self = argument;
    team *t = self->owner;
    for (unsigned round = 0;; round++) {
        wait_while(&t->round, round);
        if (atomic_load(&t->stopping)) return;
        do_share(t, self->index);
        if (atomic_fetch_sub(&t->busy, 1) == 1) plat_wake_all(&t->busy);
    }
}

static void announce(team *t) {
    atomic_fetch_add(&t->round, 1);
    plat_wake_all(&t->round);
}

team *team_start(unsigned n_threads) {
    team *t = plat_alloc(sizeof *t);
    if (!t) return NULL;
    t->size = n_threads < 1 ? 1 : n_threads > MAX_THREADS ? MAX_THREADS : n_threads;
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
    announce(t);
    for (unsigned i = 1; i < t->size; i++)
        if (t->helpers[i].thread) plat_thread_join(t->helpers[i].thread);
    plat_free(t);
}

unsigned team_size(const team *t) {
    return t->size;
}

void team_run(team *t, size_t n, team_job job, void *context) {
    t->job = job;
    t->context = context;
    t->n_items = n;
    if (t->size == 1 || n <= 1) {
        if (n) job(context, 0, n, 0);
        return;
    }
    atomic_store(&t->busy, t->size - 1);
    announce(t);
    do_share(t, 0);
    for (unsigned left; (left = atomic_load_explicit(&t->busy, memory_order_acquire)) != 0;)
        wait_while(&t->busy, left);
}
