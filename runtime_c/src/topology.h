/* topology.h: which CPUs are worth a thread, read from Linux's /sys and /proc. The POSIX side of the platform
 * uses it; a freestanding build does without. */
#ifndef NANO_TOPOLOGY_H
#define NANO_TOPOLOGY_H

#include <stdbool.h>

enum { TOPOLOGY_MAX_CPUS = 1024 };

typedef struct {
    unsigned threads; /* the default: one for each fast core, no more than the cgroup gives; at least 1 */
    unsigned n_fast, n_allowed;   /* CPUs, hardware threads counted */
    bool fast[TOPOLOGY_MAX_CPUS]; /* CPUs of at least 80 % of the highest capacity */
} topology;

/* `allowed` is the affinity mask; `root` is "" or a folder that stands for "/" (tests). Files that are
 * missing or make no sense count as "all CPUs equal, no siblings, no limit". */
void topology_read(topology *t, const char *root, const bool allowed[TOPOLOGY_MAX_CPUS]);

#endif
