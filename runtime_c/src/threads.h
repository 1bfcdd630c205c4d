/* threads.h: a team of threads that share out the items of one job after another. */
#ifndef NANO_THREADS_H
#define NANO_THREADS_H

#include <stddef.h>

typedef struct team team;

/* Does items [begin, end); `worker` is 0 .. team_size - 1, for scratch memory of its own. */
typedef void (*team_job)(void *context, size_t begin, size_t end, unsigned worker);

team *team_start(unsigned n_threads); /* the caller counts as one; NULL if memory or a thread is refused */
void team_stop(team *t);
unsigned team_size(const team *t);

/* Runs the job over n items, each thread one contiguous share, and returns when all are done. */
void team_run(team *t, size_t n, team_job job, void *context);

#endif
