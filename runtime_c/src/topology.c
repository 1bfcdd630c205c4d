/* topology.c: capacity, siblings and cgroup limits. Sources: the kernel's Documentation/ABI
 * (sysfs-devices-system-cpu), admin-guide/cgroup-v2 (cpu.max) and scheduler/sched-bwc (cpu.cfs_quota_us). */
#include "topology.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { PATH_SIZE = 1024, LINE_SIZE = 512 };

/* A decimal number up to 10^12 at *text, which moves behind it. */
static bool number(const char **text, uint64_t *value) {
    const char *p = *text;
    uint64_t n = 0;
    for (; *p >= '0' && *p <= '9'; p++) {
        n = n * 10 + (uint64_t)(*p - '0');
        if (n > 1000000000000u) return false;
    }
    if (p == *text) return false;
    *text = p;
    *value = n;
    return true;
}

static bool ends(const char *text) {
    return *text == '\n' || *text == '\0';
}

static bool read_line(const char *path, char line[LINE_SIZE]) {
    FILE *file = fopen(path, "re");
    if (!file) return false;
    bool ok = fgets(line, LINE_SIZE, file) != NULL;
    fclose(file);
    return ok;
}

/* A file that holds one number above zero. */
static bool read_number(const char *path, uint64_t *value) {
    char line[LINE_SIZE];
    if (!read_line(path, line)) return false;
    const char *p = line;
    return number(&p, value) && ends(p) && *value > 0;
}

/* Capacities of all allowed CPUs from one kind of file, or false if one CPU has none: half a comparison is
 * none. */
static bool capacities(const char *root, const char *name, const bool *allowed, uint64_t *capacity) {
    for (unsigned cpu = 0; cpu < TOPOLOGY_MAX_CPUS; cpu++) {
        char path[PATH_SIZE];
        if (!allowed[cpu]) continue;
        int n = snprintf(path, sizeof path, "%s/sys/devices/system/cpu/cpu%u/%s", root, cpu, name);
        if (n < 0 || n >= PATH_SIZE || !read_number(path, &capacity[cpu])) return false;
    }
    return true;
}

/* Whether a fast CPU with a lower number is a hardware thread of the same core. The list looks like "0,4" or
 * "0-1". */
static bool has_lower_sibling(const char *root, const bool *fast, unsigned cpu) {
    char path[PATH_SIZE], line[LINE_SIZE];
    int n = snprintf(path, sizeof path, "%s/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list", root,
                     cpu);
    if (n < 0 || n >= PATH_SIZE || !read_line(path, line)) return false;
    bool found = false;
    for (const char *p = line;; p++) {
        uint64_t first, last;
        if (!number(&p, &first)) return false;
        last = first;
        if (*p == '-' && (p++, !number(&p, &last))) return false;
        for (uint64_t other = first; other <= last && other < cpu; other++) found |= fast[other];
        if (ends(p)) return found;
        if (*p != ',') return false;
    }
}

/* CPUs that quota per period comes to, rounded up: half a CPU still wants a thread. */
static void limit_to(unsigned *limit, uint64_t quota, uint64_t period) {
    if (!quota || !period) return;
    uint64_t cpus = (quota + period - 1) / period;
    if (cpus < *limit) *limit = (unsigned)cpus;
}

static void limit_at(unsigned *limit, const char *folder, bool v2) {
    char path[2 * PATH_SIZE], line[LINE_SIZE];
    uint64_t quota, period;
    snprintf(path, sizeof path, v2 ? "%s/cpu.max" : "%s/cpu.cfs_quota_us", folder);
    if (!v2) {
        if (!read_number(path, &quota)) return; /* -1 is no limit */
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
        if (read_number(path, &period)) limit_to(limit, quota, period);
    } else if (read_line(path, line)) {
        const char *p = line; /* "max 100000" is no limit */
        if (number(&p, &quota) && *p++ == ' ' && number(&p, &period) && ends(p))
            limit_to(limit, quota, period);
    }
}

/* The group's own limit and those of its parents: the tightest counts. In a container the path may be the
 * host's and not be there; the mount's root then holds the container's limit. */
static void limit_along(unsigned *limit, const char *root, const char *mount, const char *group, bool v2) {
    char folder[PATH_SIZE];
    int n = snprintf(folder, sizeof folder, "%s%s%s", root, mount, group);
    if (n < 0 || n >= PATH_SIZE) return;
    for (size_t top = strlen(root) + strlen(mount);;) {
        limit_at(limit, folder, v2);
        char *slash = strrchr(folder, '/');
        if (!slash || slash < folder + top) return;
        *slash = '\0';
    }
}

/* Lines are "id:controllers:path"; version 2 has id 0 and no controllers. */
static void cgroup_limit(unsigned *limit, const char *root) {
    char path[PATH_SIZE], line[LINE_SIZE];
    int n = snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = n < 0 || n >= PATH_SIZE ? NULL : fopen(path, "re");
    if (!file) return;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *names = strchr(line, ':');
        char *group = names ? strchr(names + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        *names++ = '\0';
        bool cpu = false;
        for (char *p = names; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
            cpu |= strncmp(p, "cpu", 3) == 0 && (p[3] == ',' || p[3] == '\0');
        if (strcmp(line, "0") == 0 && !*names)
            limit_along(limit, root, "/sys/fs/cgroup", group, true);
        else if (cpu)
            limit_along(limit, root, "/sys/fs/cgroup/cpu", group, false);
    }
    fclose(file);
}

void topology_read(topology *t, const char *root, const bool allowed[TOPOLOGY_MAX_CPUS]) {
    uint64_t capacity[TOPOLOGY_MAX_CPUS], highest = 0;
    memset(t, 0, sizeof *t);
    if (!capacities(root, "cpu_capacity", allowed, capacity) &&
        !capacities(root, "cpufreq/cpuinfo_max_freq", allowed, capacity))
        for (unsigned cpu = 0; cpu < TOPOLOGY_MAX_CPUS; cpu++) capacity[cpu] = 1;
    for (unsigned cpu = 0; cpu < TOPOLOGY_MAX_CPUS; cpu++)
        if (allowed[cpu] && capacity[cpu] > highest) highest = capacity[cpu];
    for (unsigned cpu = 0; cpu < TOPOLOGY_MAX_CPUS; cpu++) {
        t->n_allowed += allowed[cpu];
        t->fast[cpu] = allowed[cpu] && capacity[cpu] * 5 >= highest * 4;
        t->n_fast += t->fast[cpu];
    }
    unsigned limit = TOPOLOGY_MAX_CPUS;
    for (unsigned cpu = 0; cpu < TOPOLOGY_MAX_CPUS; cpu++)
        t->threads += t->fast[cpu] && !has_lower_sibling(root, t->fast, cpu);
    cgroup_limit(&limit, root);
    if (t->threads > limit) t->threads = limit;
    if (t->threads < 1) t->threads = 1;
}
