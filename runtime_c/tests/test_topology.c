/* test_topology.c: the default number of threads on machines made of files. */
#define _GNU_SOURCE
#include "test.h"
#include "topology.h"

#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static char root[] = "/tmp/nano-topology-XXXXXX";

static int drop(const char *path, const struct stat *info, int kind, struct FTW *where) {
    (void)info, (void)kind, (void)where;
    return remove(path);
}

static void put(const char *text, const char *format, ...) {
    char path[512];
    int n = snprintf(path, sizeof path, "%s", root);
    va_list args;
    va_start(args, format);
    vsnprintf(path + n, sizeof path - (size_t)n, format, args);
    va_end(args);
    for (char *p = path + n + 1; (p = strchr(p, '/')); *p++ = '/') {
        *p = '\0';
        mkdir(path, 0700);
    }
    FILE *file = fopen(path, "w");
    CHECK_THAT(file != NULL, "cannot write %s", path);
    if (!file) return;
    fputs(text, file);
    fclose(file);
}

static void cpu_file(unsigned first, unsigned last, const char *name, const char *text) {
    for (unsigned cpu = first; cpu <= last; cpu++) put(text, "/sys/devices/system/cpu/cpu%u/%s", cpu, name);
}

/* Reads the machine with CPUs first..last allowed, and takes it down. */
static topology look(unsigned first, unsigned last) {
    static bool allowed[TOPOLOGY_MAX_CPUS];
    for (unsigned cpu = 0; cpu < TOPOLOGY_MAX_CPUS; cpu++) allowed[cpu] = cpu >= first && cpu <= last;
    topology t;
    topology_read(&t, root, allowed);
    nftw(root, drop, 8, FTW_DEPTH | FTW_PHYS);
    mkdir(root, 0700);
    return t;
}

static void rk3588(void) {
    cpu_file(0, 3, "cpu_capacity", "414\n");
    cpu_file(4, 7, "cpu_capacity", "1024\n");
}

void test_topology(void) {
    TEST("topology: fast cores of RK3588, Orin, a phone; hardware threads; files that are missing or wrong");
    CHECK(mkdtemp(root) != NULL);
    rk3588();
    topology t = look(0, 7);
    CHECK(t.threads == 4 && t.n_fast == 4 && t.n_allowed == 8 && !t.fast[3] && t.fast[4] && t.fast[7]);
    rk3588();
    t = look(0, 5);
    CHECK(t.threads == 2);
    rk3588();
    t = look(0, 3); /* only slow ones are allowed: then they are the fastest */
    CHECK(t.threads == 4 && t.fast[0]);
    cpu_file(0, 11, "cpu_capacity", "1024\n");
    cpu_file(0, 11, "topology/thread_siblings_list", "x\n");
    t = look(0, 11);
    CHECK(t.threads == 12);
    cpu_file(0, 3, "cpufreq/cpuinfo_max_freq", "1800000\n");
    cpu_file(4, 6, "cpufreq/cpuinfo_max_freq", "2500000\n");
    cpu_file(7, 7, "cpufreq/cpuinfo_max_freq", "3000000\n");
    t = look(0, 7);
    CHECK(t.threads == 4 && t.fast[4] && t.fast[7]);
    for (unsigned cpu = 0; cpu < 8; cpu++) {
        char list[16];
        snprintf(list, sizeof list, cpu < 4 ? "%u,%u\n" : "%u-%u\n", cpu & 6, (cpu & 6) + 1);
        put(list, "/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list", cpu);
    }
    t = look(0, 7);
    CHECK(t.threads == 4 && t.n_fast == 8);
    t = look(0, 5); /* no files at all */
    CHECK(t.threads == 6);
    rk3588();
    cpu_file(5, 5, "cpu_capacity", "10x\n");
    t = look(0, 7);
    CHECK(t.threads == 8);

    TEST("topology: a cgroup's limit, its parents', both versions");
    put("0::/a/b\n", "/proc/self/cgroup");
    put("50000 100000\n", "/sys/fs/cgroup/a/b/cpu.max");
    CHECK(look(0, 3).threads == 1);
    put("0::/a/b\n", "/proc/self/cgroup");
    put("max 100000\n", "/sys/fs/cgroup/a/b/cpu.max");
    put("250000 100000\n", "/sys/fs/cgroup/a/cpu.max");
    CHECK(look(0, 7).threads == 3);
    put("0::/gone\n", "/proc/self/cgroup");
    put("200000 100000\n", "/sys/fs/cgroup/cpu.max");
    CHECK(look(0, 7).threads == 2);
    put("3:cpuacct:/x\n2:cpuset,cpu:/x\n", "/proc/self/cgroup");
    put("150000\n", "/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us");
    put("100000\n", "/sys/fs/cgroup/cpu/x/cpu.cfs_period_us");
    CHECK(look(0, 7).threads == 2);
    put("0::/a\nnonsense\n1:cpu:/b\n", "/proc/self/cgroup");
    put("0 0\n", "/sys/fs/cgroup/a/cpu.max");
    put("-1\n", "/sys/fs/cgroup/cpu/b/cpu.cfs_quota_us");
    CHECK(look(0, 7).threads == 8);
    remove(root);
}
