/* icount.c: a plugin of qemu's (API version 1) that counts executed instructions by function, or, for
 * functions whose name begins with PREFIX, by function and mnemonic. Needs no headers of qemu's.
 *
 *   gcc -shared -fPIC -O2 icount.c -o icount.so
 *   qemu-aarch64 -cpu cortex-a76 -plugin ./icount.so[,sym=PREFIX] -d plugin PROGRAM ... */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PUBLIC __attribute__((visibility("default")))

/* What is used of qemu-plugin.h. */
typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { ADD_U64 = 0 };
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
extern const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *instruction);
extern char *qemu_plugin_insn_disas(const struct qemu_plugin_insn *instruction);
extern void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *instruction, int operation,
                                                       void *at, uint64_t amount);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                                  void (*callback)(qemu_plugin_id_t,
                                                                   struct qemu_plugin_tb *));
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*callback)(qemu_plugin_id_t, void *),
                                           void *data);
extern void qemu_plugin_outs(const char *text);

PUBLIC int qemu_plugin_version = 1;

enum { MOST = 1 << 16, SHOWN = 60, MNEMONIC = 24 };

typedef struct {
    char *function, *mnemonic;
    uint64_t executed;
} counter;

static counter counters[MOST];
static int n_counters;
static const char *prefix;

static counter *counter_of(const char *function, const char *mnemonic) {
    for (int i = 0; i < n_counters; i++)
        if (strcmp(counters[i].function, function) == 0 && strcmp(counters[i].mnemonic, mnemonic) == 0)
            return &counters[i];
    if (n_counters == MOST) return &counters[MOST - 1];
    counters[n_counters] = (counter){strdup(function), strdup(mnemonic), 0};
    return &counters[n_counters++];
}

static void mnemonic_of(const struct qemu_plugin_insn *instruction, char out[MNEMONIC]) {
    char *text = qemu_plugin_insn_disas(instruction);
    size_t n = text ? strcspn(text, " \t") : 0;
    if (n >= MNEMONIC) n = MNEMONIC - 1;
    memcpy(out, text, n);
    out[n] = 0;
    free(text);
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    (void)id;
    for (size_t i = 0, n = qemu_plugin_tb_n_insns(block); i < n; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        const char *function = qemu_plugin_insn_symbol(instruction);
        char mnemonic[MNEMONIC] = "";
        if (!function) function = "?";
        if (prefix && strncmp(function, prefix, strlen(prefix)) == 0) mnemonic_of(instruction, mnemonic);
        qemu_plugin_register_vcpu_insn_exec_inline(instruction, ADD_U64,
                                                   &counter_of(function, mnemonic)->executed, 1);
    }
}

static int more_first(const void *a, const void *b) {
    uint64_t x = ((const counter *)a)->executed, y = ((const counter *)b)->executed;
    return x < y ? 1 : x > y ? -1 : 0;
}

static void on_exit_of_program(qemu_plugin_id_t id, void *data) {
    (void)id, (void)data;
    uint64_t total = 0;
    char line[256];
    for (int i = 0; i < n_counters; i++) total += counters[i].executed;
    qsort(counters, (size_t)n_counters, sizeof *counters, more_first);
    snprintf(line, sizeof line, "total %llu\n", (unsigned long long)total);
    qemu_plugin_outs(line);
    for (int i = 0; i < n_counters && i < SHOWN && counters[i].executed; i++) {
        snprintf(line, sizeof line, "%14llu  %-28s %s\n", (unsigned long long)counters[i].executed,
                 counters[i].function, counters[i].mnemonic);
        qemu_plugin_outs(line);
    }
}

PUBLIC int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++)
        if (strncmp(argv[i], "sym=", 4) == 0) prefix = strdup(argv[i] + 4);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, on_exit_of_program, NULL);
    return 0;
}
