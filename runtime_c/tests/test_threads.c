/* test_threads.c: every item of every job is done exactly once, whoever comes late. */
#include "platform.h"
#include "test.h"
#include "threads.h"

#include <string.h>

enum { MOST = 500 };

typedef struct {
    atomic_uint times_done[MOST];
    atomic_uint wrong_worker;
    unsigned n_workers;
} tally;

static void count(void *context, size_t begin, size_t end, unsigned worker) {
    tally *t = context;
    if (worker >= t->n_workers) atomic_fetch_add(&t->wrong_worker, 1);
    for (size_t i = begin; i < end; i++) atomic_fetch_add(&t->times_done[i], 1);
}

void test_threads(void) {
    TEST("threads: each item once, for teams of 1 to 9 and jobs of all sizes");
    static tally t;
    for (unsigned size = 1; size <= 9; size += 2) {
        team *crew = team_start(size);
        CHECK(crew && team_size(crew) == size);
        if (!crew) return;
        memset(&t, 0, sizeof t);
        t.n_workers = size;
        unsigned wrong = 0, rounds = 300;
        for (unsigned round = 0; round < rounds; round++) {
            size_t n = round * 7 % (MOST + 1);
            team_run(crew, n, round % 5 ? 100000 : 1, count, &t); /* big items, and too small ones to share */
            for (size_t i = 0; i < MOST; i++) wrong += atomic_exchange(&t.times_done[i], 0) != (i < n);
        }
        CHECK_THAT(wrong == 0 && t.wrong_worker == 0, "%u threads: %u items wrong", size, wrong);
        team_stop(crew);
    }
}
