/* threads.h: a team of threads that share out the items of one job after another. */
#ifndef NANO_THREADS_H
#define NANO_THREADS_H

#include <stddef.h>

typedef struct team team;

/* Does items [begin, end); `worker` is 0 .. team_size - 1, for scratch memory of its own. */
typedef void (*team_job)(void *context, size_t begin, size_t end, unsigned worker);

/* The caller counts as one. NULL if memory or a thread is refused. Where some CPUs are slower, a team that
 * the fast ones suffice for stays on these, its caller too until team_stop(). */
team *team_start(unsigned n_threads);
void team_stop(team *t);
unsigned team_size(const team *t);

/* Runs the job over n items and returns when all are done. `cost` is what one item takes, in multiply-adds or
 * so: small jobs are not worth a second thread. Which thread does what must not matter for the result. */
void team_run(team *t, size_t n, size_t cost, team_job job, void *context);

#endif
