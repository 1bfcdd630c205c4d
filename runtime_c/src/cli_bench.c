/* cli_bench.c: nano-infer bench MODEL: how fast a model runs here, and how near that is to what the machine
 * can do. */
#define _GNU_SOURCE
#include "cli.h"
#include "cli_machine.h"
#include "session.h" /* where the weights lie, and how they and the cache are kept */

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_PROMPTS = 16, MAX_RUNS = 1000, BEFORE = 64, LIMIT_RUNS = 5 };

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

/* Tokens per second of several runs, sorted. */
typedef struct {
    uint32_t tokens;
    double tps[MAX_RUNS];
    double share; /* of the machine's limit; 0: not known */
} speed;

typedef struct {
    const char *path, *prompt_list;
    uint32_t n_prompts, prompts[MAX_PROMPTS], n_new, runs;
    bool json;
    engine_options engine_options;
    engine e;
    uint32_t *ids, before, threads;
    double load_s, rss_mb, bandwidth, peak, big_pages, read_bytes;
    const char *instruction;
    uint64_t buffer_bytes;
    speed prefill[MAX_PROMPTS], decode;
} bench;

static bool parse(bench *b, int argc, char **argv, int *exit_code) {
    b->prompt_list = "128,512";
    b->n_new = 64;
    b->runs = 5;
    const option options[] = {
        {'p', "prompts", "\"128,512\"", OPTION_TEXT, &b->prompt_list, NULL, 0, 0,
         "measure prompts of these many tokens (default 128,512)"},
        {'n', "tokens", "N", OPTION_COUNT, &b->n_new, NULL, 1, 1 << 20,
         "single tokens in a run, after a prompt of 64 (default 64)"},
        {0, "runs", "R", OPTION_COUNT, &b->runs, NULL, 1, MAX_RUNS,
         "measure R times, after once to warm up (default 5)"},
        {'l', "lora", "LORA", OPTION_TEXT, &b->engine_options.lora_path, NULL, 0, 0,
         "apply this adapter to the model"},
        {'j', "threads", "J", OPTION_COUNT, &b->engine_options.threads, NULL, 0, 256,
         "threads to use (default: one for each CPU)"},
        {0, "kernels", "NAME", OPTION_TEXT, &b->engine_options.kernels, NULL, 0, 0,
         "instructions to use (default: the best this machine has)"},
        {0, "cache", "TYPE", OPTION_TEXT, &b->engine_options.cache, NULL, 0, 0,
         "how keys and values are kept: f16 or f32 (default: f32 for\nfloat32 weights, else f16)"},
        {0, "json", NULL, OPTION_FLAG, &b->json, NULL, 0, 0, "print one JSON object instead of the table"},
    };
    const command c = {
        .name = "bench",
        .usage = "MODEL [options]",
        .description =
            "Measures how fast a model runs on this machine: prompts (prefill) and single tokens (decode),\n"
            "the median, lowest and highest of several runs; the time to load it and the memory it takes.\n"
            "\n"
            "Each figure is compared with this machine's own limit, measured in the same run with the same\n"
            "threads. A single token reads all weights and its cache once, so decode is held against the "
            "bytes\n"
            "that can be read from memory in a second: if that share is near 100 %, only a smaller file is\n"
            "faster (a share above 100 %: the weights stay in the cache). A prompt reads the weights once "
            "for\n"
            "many tokens, so prefill is held against the multiply-adds in a second: of the instruction for\n"
            "8-bit numbers where the weights have 8 bits or less, else of that for floats.\n",
        .examples = "  nano-infer bench model.gguf\n"
                    "  nano-infer bench model.gguf -j 1 -p 64 -n 128      # one thread\n"
                    "  nano-infer bench model.gguf -l lora.gguf --runs 9  # what an adapter costs\n"
                    "  nano-infer bench model.gguf --json > bench.json\n",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_operands = 1,
        .max_operands = 1,
        .operands = "MODEL",
    };
    return cli_parse(&c, argc, argv, &b->path, exit_code);
}

static int read_prompts(bench *b) {
    const char *at = b->prompt_list;
    uint32_t room = nano_model_config(b->e.model)->block_size;
    while (true) {
        char *end;
        unsigned long n = strtoul(at, &end, 10);
        if (*at < '0' || *at > '9' || n < 1 || n > 1 << 30 || (*end && *end != ',') ||
            b->n_prompts == MAX_PROMPTS)
            return cli_error(EXIT_MISUSE,
                             "bench: -p needs up to %d numbers of tokens with commas between them, like "
                             "\"128,512\", not '%s'",
                             MAX_PROMPTS, b->prompt_list);
        if (n > room)
            return cli_error(EXIT_MISUSE,
                             "bench: -p %lu is more than the model's context of %u: ask for less with -p", n,
                             room);
        b->prompts[b->n_prompts++] = (uint32_t)n;
        if (!*end) break;
        at = end + 1;
    }
    b->before = b->n_new < room && room - b->n_new < BEFORE ? room - b->n_new : BEFORE;
    if (b->n_new >= room)
        return cli_error(EXIT_MISUSE, "bench: -n %u and a token before do not fit the model's context of %u",
                         b->n_new, room);
    return EXIT_OK;
}

/* ---- measuring -------------------------------------------------------------------------------------------
 */

static void tell(const bench *b, const char *what, uint32_t tokens, uint32_t run) {
    if (!isatty(STDERR_FILENO)) return;
    if (what)
        fprintf(stderr, "\r\033[K%s %u: %s %u of %u", what, tokens, run ? "run" : "warming up,", run,
                b->runs);
    else
        fputs("\r\033[K", stderr);
    fflush(stderr);
}

static int eval(bench *b, const uint32_t *ids, size_t n) {
    nano_status status = nano_session_eval(b->e.session, ids, n, NULL);
    return status ? cli_library_error(status, NULL) : EXIT_OK;
}

/* One run; *tps is not touched if it is interrupted. */
static int run_prompt(bench *b, uint32_t tokens, double *tps) {
    nano_session_reset(b->e.session);
    double start = cli_now();
    int exit_code = eval(b, b->ids, tokens);
    *tps = tokens / (cli_now() - start);
    return exit_code;
}

static int run_decode(bench *b, uint32_t tokens, double *tps) {
    nano_session_reset(b->e.session);
    int exit_code = eval(b, b->ids, b->before);
    double start = cli_now();
    for (uint32_t i = 0; i < tokens && !exit_code && !interrupted; i++)
        exit_code = eval(b, b->ids + b->before + i, 1);
    *tps = tokens / (cli_now() - start);
    return exit_code;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int measure(bench *b, const char *what, int (*run)(bench *, uint32_t, double *), speed *s) {
    double warm;
    for (uint32_t i = 0; i <= b->runs; i++) {
        tell(b, what, s->tokens, i);
        int exit_code = run(b, s->tokens, i ? &s->tps[i - 1] : &warm);
        if (exit_code || interrupted) return exit_code ? exit_code : EXIT_INTERRUPTED;
    }
    qsort(s->tps, b->runs, sizeof *s->tps, compare_doubles);
    return EXIT_OK;
}

static double median(const bench *b, const speed *s) {
    return (s->tps[(b->runs - 1) / 2] + s->tps[b->runs / 2]) / 2;
}

/* Bytes of weights, and of keys and values, that a token reads in the middle of a run. */
static double bytes_per_token(const bench *b) {
    const nano_session *s = b->e.session;
    const nano_config *c = nano_model_config(b->e.model);
    double positions = b->before + (b->n_new + 1) / 2.0;
    return (double)nano_model_packed_bytes(b->e.model) +
           positions * 2 * c->n_layer * c->n_kv_head * s->width * (s->halves ? 2 : 4);
}

/* Multiply-adds of a prompt's matrices: the classifier works for the last token only. Attention's own are
 * left out: they are done in floats. */
static double products(const nano_config *c, uint32_t tokens) {
    double e = c->n_embd, q = (double)c->n_head * c->head_dim, kv = (double)c->n_kv_head * c->head_dim;
    return tokens * (double)c->n_layer * (2 * e * q + 2 * e * kv + 3 * e * c->n_hidden) + e * c->vocab_size;
}

static void measure_limits(bench *b) {
    const nano_model *m = b->e.model;
    bool integers = m->layers[0].w1.pack.data && m->layers[0].w1.pack.kind >= PACK_I8;
    tell(b, "the machine's limits", b->threads, b->runs);
    b->bandwidth = machine_bandwidth(b->threads, LIMIT_RUNS, &b->buffer_bytes);
    b->peak = machine_peak(nano_model_kernels(m), integers, b->threads, LIMIT_RUNS, &b->instruction);
    b->big_pages = m->arena ? machine_big_pages(m->arena, m->arena_bytes) : -1;
    if (!m->exact) {
        b->read_bytes = bytes_per_token(b);
        if (b->bandwidth > 0) b->decode.share = b->read_bytes * median(b, &b->decode) / b->bandwidth;
    }
    for (uint32_t i = 0; i < b->n_prompts && b->peak > 0; i++)
        b->prefill[i].share = products(nano_model_config(m), b->prompts[i]) / b->prompts[i] *
                              median(b, &b->prefill[i]) / b->peak;
}

/* ---- telling ---------------------------------------------------------------------------------------------
 */

static void print_speed_json(const bench *b, const speed *s) {
    printf("{\"tokens\": %u, \"median\": %.3f, \"lowest\": %.3f, \"highest\": %.3f, \"share\": ", s->tokens,
           median(b, s), s->tps[0], s->tps[b->runs - 1]);
    printf(s->share > 0 ? "%.4f}" : "null}", s->share);
}

static void print_number_json(const char *name, double value, bool known) {
    printf(known ? ", \"%s\": %.6g" : ", \"%s\": null", name, value);
}

static void print_json(const bench *b) {
    const nano_config *c = nano_model_config(b->e.model);
    fputs("{\"model\": ", stdout);
    json_bytes(stdout, b->path, strlen(b->path));
    fputs(", \"lora\": ", stdout);
    if (b->engine_options.lora_path)
        json_bytes(stdout, b->engine_options.lora_path, strlen(b->engine_options.lora_path));
    else
        fputs("null", stdout);
    printf(", \"weights\": \"%s\", \"n_params\": %llu, \"kernels\": \"%s\", \"threads\": %u, \"runs\": %u",
           nano_quant_name(c->quant), (unsigned long long)c->n_params, nano_model_kernels(b->e.model),
           b->threads, b->runs);
    printf(", \"prefill_tps\": %.3f, \"decode_tps\": %.3f, \"load_s\": %.6f, \"peak_rss_mb\": %.3f",
           median(b, &b->prefill[b->n_prompts - 1]), median(b, &b->decode), b->load_s, b->rss_mb);
    fputs(", \"prefill\": [", stdout);
    for (uint32_t i = 0; i < b->n_prompts; i++) {
        if (i) fputs(", ", stdout);
        print_speed_json(b, &b->prefill[i]);
    }
    fputs("], \"decode\": ", stdout);
    print_speed_json(b, &b->decode);
    printf(", \"packed_bytes\": %llu", (unsigned long long)nano_model_packed_bytes(b->e.model));
    print_number_json("big_pages", b->big_pages, b->big_pages >= 0);
    print_number_json("bytes_per_token", b->read_bytes, b->read_bytes > 0);
    print_number_json("bandwidth", b->bandwidth, b->bandwidth > 0);
    print_number_json("peak", b->peak, b->peak > 0);
    fputs(", \"instruction\": ", stdout);
    if (b->peak > 0)
        json_string(stdout, b->instruction, strlen(b->instruction));
    else
        fputs("null", stdout);
    fputs("}\n", stdout);
}

static void print_speed(const bench *b, const char *what, const speed *s) {
    printf("%-8s %6u %10.1f %10.1f %10.1f", what, s->tokens, median(b, s), s->tps[0], s->tps[b->runs - 1]);
    if (s->share > 0) printf(" %8.0f %%", 100 * s->share);
    putchar('\n');
}

static void print_table(const bench *b) {
    const nano_config *c = nano_model_config(b->e.model);
    printf("%s: %s %s, %.1f M weights; kernels %s, threads %u\n", b->path, nano_arch_name(c->arch),
           nano_quant_name(c->quant), 1e-6 * (double)c->n_params, nano_model_kernels(b->e.model), b->threads);
    printf("load %.3f s, peak memory %.1f MB", b->load_s, b->rss_mb);
    if (nano_model_packed_bytes(b->e.model)) {
        printf(", weights %.1f MB", 1e-6 * (double)nano_model_packed_bytes(b->e.model));
        if (b->big_pages > 0)
            printf(", %.0f %% in big pages", 100 * b->big_pages);
        else
            fputs(b->big_pages < 0 ? ""
                  : nano_model_packed_bytes(b->e.model) < 4 << 20
                      ? ""
                      : ", none in big pages: the system gives none",
                  stdout);
    }
    printf("\n\n%-8s %6s %10s %10s %10s %10s\n", "tok/s", "tokens", "median", "lowest", "highest",
           "of limit");
    for (uint32_t i = 0; i < b->n_prompts; i++) print_speed(b, "prefill", &b->prefill[i]);
    print_speed(b, "decode", &b->decode);
    putchar('\n');
    if (b->peak > 0)
        printf("limit of prefill: %.1f G multiply-adds/s (%s)\n", 1e-9 * b->peak, b->instruction);
    else
        fputs("limit of prefill: not known for these kernels\n", stdout);
    if (b->bandwidth > 0 && b->read_bytes > 0)
        printf("limit of decode: %.1f GB/s read from memory; a token reads %.1f MB\n", 1e-9 * b->bandwidth,
               1e-6 * b->read_bytes);
    else
        fputs(b->read_bytes > 0 ? "limit of decode: no memory to measure it\n"
                                : "limit of decode: not known for these kernels\n",
              stdout);
}

static int do_bench(bench *b) {
    double start = cli_now();
    int exit_code = cli_open_model(&b->engine_options, b->path, false, &b->e);
    if (exit_code) return exit_code;
    b->load_s = cli_now() - start;
    if (!nano_model_config(b->e.model)->causal)
        return cli_error(EXIT_MISUSE,
                         "bench: %s reads its whole input at once: there are no single tokens to measure",
                         b->path);
    if ((exit_code = read_prompts(b))) return exit_code;
    uint32_t context = b->before + b->n_new;
    for (uint32_t i = 0; i < b->n_prompts; i++)
        if (b->prompts[i] > context) context = b->prompts[i];
    start = cli_now();
    if ((exit_code = cli_open_session(&b->engine_options, context, false, &b->e))) return exit_code;
    b->load_s += cli_now() - start;
    b->threads = nano_session_threads(b->e.session);
    b->ids = malloc(context * sizeof *b->ids);
    if (!b->ids) return cli_error(EXIT_FAILED, "out of memory");
    uint32_t state = 1; /* any tokens do: what is computed does not depend on them */
    for (uint32_t i = 0; i < context; i++) {
        state = state * 1664525 + 1013904223;
        b->ids[i] = (state >> 8) % nano_model_config(b->e.model)->vocab_size;
    }
    for (uint32_t i = 0; i < b->n_prompts; i++) {
        b->prefill[i].tokens = b->prompts[i];
        if ((exit_code = measure(b, "prefill", run_prompt, &b->prefill[i]))) return exit_code;
    }
    b->decode.tokens = b->n_new;
    if ((exit_code = measure(b, "decode", run_decode, &b->decode))) return exit_code;
    b->rss_mb = cli_peak_rss_mb(); /* before the limits, which take memory of their own */
    measure_limits(b);
    tell(b, NULL, 0, 0);
    (b->json ? print_json : print_table)(b);
    return cli_flush_output();
}

int cli_bench(int argc, char **argv) {
    bench *b = calloc(1, sizeof *b);
    if (!b) return cli_error(EXIT_FAILED, "out of memory");
    b->engine_options.sampling = nano_sampler_default_params();
    int exit_code;
    if (parse(b, argc, argv, &exit_code)) {
        struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
        sigaction(SIGINT, &action, NULL); /* a second Ctrl-C ends it at once */
        exit_code = do_bench(b);
        if (exit_code == EXIT_INTERRUPTED) tell(b, NULL, 0, 0);
    }
    free(b->ids);
    cli_close_engine(&b->e);
    free(b);
    return exit_code;
}
