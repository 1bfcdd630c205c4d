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
int cli_chat(int argc, char **argv);
int cli_info(int argc, char **argv);
int cli_tokenize(int argc, char **argv);
int cli_bench(int argc, char **argv);

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
void json_bytes(FILE *out, const char *bytes, size_t n);  /* any bytes: what is no UTF-8 becomes U+FFFD */
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

/* ---- running a model (cli_engine.c) ---- */

enum { CLI_PIECE = 96 }; /* tokens of a prompt computed at once, so that Ctrl-C is heard */

typedef struct {
    const char *lora_path, *kernels, *cache, *draft, *session_path;
    nano_sampler_params sampling;
    uint32_t threads;
    bool seed_given, temperature_given, top_k_given, top_p_given, penalty_given;
} engine_options;

#define CLI_ENGINE_OPTIONS(o)                                                                                \
    {'l', "lora", "LORA", OPTION_TEXT, &(o).lora_path, NULL, 0, 0, "apply this adapter to the model"},       \
        {'t',                                                                                                \
         "temperature",                                                                                      \
         "T",                                                                                                \
         OPTION_NUMBER,                                                                                      \
         &(o).sampling.temperature,                                                                          \
         &(o).temperature_given,                                                                             \
         0,                                                                                                  \
         1000,                                                                                               \
         "0 always takes the likeliest token, higher is wilder (default 1.0)"},                              \
        {'k',                                                                                                \
         "top-k",                                                                                            \
         "K",                                                                                                \
         OPTION_COUNT,                                                                                       \
         &(o).sampling.top_k,                                                                                \
         &(o).top_k_given,                                                                                   \
         0,                                                                                                  \
         1 << 30,                                                                                            \
         "choose among the K likeliest tokens; 0 is off (default 5)"},                                       \
        {'p',                                                                                                \
         "top-p",                                                                                            \
         "P",                                                                                                \
         OPTION_NUMBER,                                                                                      \
         &(o).sampling.top_p,                                                                                \
         &(o).top_p_given,                                                                                   \
         0,                                                                                                  \
         1,                                                                                                  \
         "choose among the fewest tokens whose probabilities reach P;\n0 and 1 are off (default off)"},      \
        {'r',                                                                                                \
         "repetition-penalty",                                                                               \
         "R",                                                                                                \
         OPTION_NUMBER,                                                                                      \
         &(o).sampling.repetition_penalty,                                                                   \
         &(o).penalty_given,                                                                                 \
         0.01,                                                                                               \
         100,                                                                                                \
         "above 1 makes tokens that were there less likely; 1 is off\n(default 1.2)"},                       \
        {0,                                                                                                  \
         "seed",                                                                                             \
         "X",                                                                                                \
         OPTION_SEED,                                                                                        \
         &(o).sampling.seed,                                                                                 \
         &(o).seed_given,                                                                                    \
         0,                                                                                                  \
         0,                                                                                                  \
         "the same seed gives the same text (default: from the clock,\nand told on standard error)"},        \
        {'j',                                                                                                \
         "threads",                                                                                          \
         "J",                                                                                                \
         OPTION_COUNT,                                                                                       \
         &(o).threads,                                                                                       \
         NULL,                                                                                               \
         0,                                                                                                  \
         256,                                                                                                \
         "threads to use (default: one for each fast core)"},                                                \
        {0,                                                                                                  \
         "kernels",                                                                                          \
         "NAME",                                                                                             \
         OPTION_TEXT,                                                                                        \
         &(o).kernels,                                                                                       \
         NULL,                                                                                               \
         0,                                                                                                  \
         0,                                                                                                  \
         "instructions to use (default: the best this machine has);\n'exact' is the slow reference, which "  \
         "rounds nothing"},                                                                                  \
        {0,                                                                                                  \
         "cache",                                                                                            \
         "TYPE",                                                                                             \
         OPTION_TEXT,                                                                                        \
         &(o).cache,                                                                                         \
         NULL,                                                                                               \
         0,                                                                                                  \
         0,                                                                                                  \
         "how keys and values are kept: f16 or f32 (default: f32 for\nfloat32 weights, else f16)"},          \
        {0,                                                                                                  \
         "draft",                                                                                            \
         "MODE",                                                                                             \
         OPTION_TEXT,                                                                                        \
         &(o).draft,                                                                                         \
         NULL,                                                                                               \
         0,                                                                                                  \
         0,                                                                                                  \
         "guess tokens from what was said before and compute several at once:\nauto (where it pays: the "    \
         "default), off, or always; the text is the same"},                                                  \
        {0,                                                                                                  \
         "session",                                                                                          \
         "FILE",                                                                                             \
         OPTION_TEXT,                                                                                        \
         &(o).session_path,                                                                                  \
         NULL,                                                                                               \
         0,                                                                                                  \
         0,                                                                                                  \
         "go on with the session in this file, if there is one, and save it there\nat the end: its tokens "  \
         "are not computed again"}

typedef struct {
    nano_model *model;
    nano_adapter *adapter;
    nano_session *session;
    nano_stream stream;
    bool keep; /* tokens go to `text`, not to standard output */
    cli_text text;
} engine;

/* These say what went wrong and return the exit code. */
int cli_open_model(const engine_options *o, const char *path, bool non_causal, engine *e);
/* With a session file, there is room for what is in it. */
int cli_open_session(engine_options *o, uint32_t context, bool tell_seed, engine *e);
/* How many tokens has the session file? 0 if there is none yet, or none is named. */
int cli_probe_session(const engine_options *o, uint32_t *n_tokens);
int cli_save_session(const engine_options *o, const engine *e);
int cli_emit_token(engine *e, uint32_t id);
int cli_emit_end(engine *e); /* what is left of the last character */
void cli_close_engine(engine *e);

#endif
