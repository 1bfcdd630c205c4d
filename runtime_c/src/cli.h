/* cli.h: what the commands of nano-infer share. */
#ifndef NANO_CLI_H
#define NANO_CLI_H

#include "nano.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* 1 is a failure of the machine, 2 the user's mistake. */
enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_MISUSE = 2, EXIT_INTERRUPTED = 130 };

int cli_run(int argc, char **argv);
int cli_info(int argc, char **argv);
int cli_tokenize(int argc, char **argv);

/* ---- options (cli_options.c) ---- */

typedef enum { OPTION_FLAG, OPTION_TEXT, OPTION_COUNT, OPTION_NUMBER, OPTION_SEED } option_kind;

typedef struct {
    char letter;          /* 0: none */
    const char *name;     /* without the dashes */
    const char *argument; /* as the help shows it; NULL for a flag */
    option_kind kind;
    void *value;      /* bool, const char *, uint32_t, double or uint64_t, by kind */
    bool *given;      /* may be NULL */
    double low, high; /* of OPTION_COUNT and OPTION_NUMBER */
    const char *help;
} option;

typedef struct {
    const char *name;        /* of the command */
    const char *usage;       /* first line of the help, after "nano-infer NAME " */
    const char *description; /* then this, then the options, then the examples */
    const char *examples;
    const option *options;
    size_t n_options;
    unsigned min_operands, max_operands;
    const char *operands; /* what they are, for messages: "MODEL.bin" */
} command;

/* Fills in the options' values and `operands` (room for max_operands; the rest NULL). False: leave with
 * *exit_code, all is said. */
bool cli_parse(const command *c, int argc, char **argv, const char **operands, int *exit_code);

/* ---- messages and output (cli_output.c) ---- */

/* One line to stderr: "nano-infer: " and this. Returns `exit_code`. */
int cli_error(int exit_code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same for a failed call of the library; `about` (may be NULL) says what it was about. */
int cli_library_error(nano_status status, const char *about);

/* Is standard output written in full? If not: says so (unless the reader has gone away) and gives
 * EXIT_FAILED. */
int cli_flush_output(void);

void json_string(FILE *out, const char *bytes, size_t n); /* valid UTF-8 in, quotes included */
void json_ids(FILE *out, const uint32_t *ids, size_t n);

/* All of standard input, without one newline at its end; NULL if it cannot be read. */
char *cli_read_input(size_t *n);

double cli_now(void); /* seconds */
double cli_peak_rss_mb(void);

/* A growing text. */
typedef struct {
    char *bytes;
    size_t n, room;
} cli_text;
bool cli_text_add(cli_text *text, const char *bytes, size_t n);

#endif
