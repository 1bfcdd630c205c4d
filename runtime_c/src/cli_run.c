/* cli_run.c: nano-infer run MODEL.bin -i PROMPT */
#define _GNU_SOURCE
#include "cli.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

typedef struct {
    const char *model_path, *lora_path, *prompt, *id_list, *logits_path;
    uint32_t n_new, max_sequence, threads;
    bool n_new_given, max_sequence_given, seed_given, special, no_causal, json;
    nano_sampler_params sampling;
} run_options;

/* All that must be given back at the end, and what is to be told. */
typedef struct {
    run_options o;
    nano_model *model;
    nano_adapter *adapter;
    nano_session *session;
    uint32_t *prompt_ids, *new_ids;
    size_t n_prompt, n_new;
    nano_stream stream;
    cli_text text; /* --json: the whole continuation */
    FILE *logits;
    char *logits_temporary;
    double load_s, prefill_s, decode_s;
    size_t n_decoded;
} run_state;

static bool parse(run_options *o, int argc, char **argv, int *exit_code) {
    *o = (run_options){.sampling = nano_sampler_default_params()};
    const option options[] = {
        {'i', "prompt", "PROMPT", OPTION_TEXT, &o->prompt, NULL, 0, 0,
         "the text to continue; - reads standard input (one newline\nat its end is dropped)"},
        {0, "ids", "\"1,2,3\"", OPTION_TEXT, &o->id_list, NULL, 0, 0, "the prompt as token ids instead"},
        {'l', "lora", "LORA.bin", OPTION_TEXT, &o->lora_path, NULL, 0, 0, "apply this adapter to the model"},
        {'n', "tokens", "N", OPTION_COUNT, &o->n_new, &o->n_new_given, 0, 1 << 30,
         "generate at most N new tokens (default: until the context is full)"},
        {'s', "sequence", "S", OPTION_COUNT, &o->max_sequence, &o->max_sequence_given, 1, 1 << 30,
         "let prompt and continuation together be at most S tokens"},
        {'t', "temperature", "T", OPTION_NUMBER, &o->sampling.temperature, NULL, 0, 1000,
         "0 always takes the likeliest token, higher is wilder (default 1.0)"},
        {'k', "top-k", "K", OPTION_COUNT, &o->sampling.top_k, NULL, 0, 1 << 30,
         "choose among the K likeliest tokens; 0 is off (default 5)"},
        {'p', "top-p", "P", OPTION_NUMBER, &o->sampling.top_p, NULL, 0, 1,
         "choose among the fewest tokens whose probabilities reach P;\n0 and 1 are off (default off)"},
        {'r', "repetition-penalty", "R", OPTION_NUMBER, &o->sampling.repetition_penalty, NULL, 0.01, 100,
         "above 1 makes tokens that were there less likely; 1 is off\n(default 1.2)"},
        {0, "seed", "X", OPTION_SEED, &o->sampling.seed, &o->seed_given, 0, 0,
         "the same seed gives the same text (default: from the clock,\nand told on standard error)"},
        {'j', "threads", "J", OPTION_COUNT, &o->threads, NULL, 0, 256,
         "threads to use (default: one for each CPU)"},
        {0, "special", NULL, OPTION_FLAG, &o->special, NULL, 0, 0,
         "let <|...|> in the prompt be special tokens, not characters"},
        {0, "no-causal", NULL, OPTION_FLAG, &o->no_causal, NULL, 0, 0,
         "the model was trained with full attention: read the prompt in\none pass and print the likeliest "
         "token of each place"},
        {0, "json", NULL, OPTION_FLAG, &o->json, NULL, 0, 0,
         "print one JSON object when done, nothing before"},
        {0, "logits", "FILE", OPTION_TEXT, &o->logits_path, NULL, 0, 0,
         "write the prompt's logits: float32, little-endian,\n[prompt tokens, vocabulary]"},
    };
    const command c = {
        .name = "run",
        .usage = "MODEL.bin -i PROMPT [options]",
        .description =
            "Continues a text. The continuation goes to standard output as it comes, everything else to\n"
            "standard error. It ends at the end-of-text token, at -n or -s, or when the context is full;\n"
            "Ctrl-C ends it early.\n",
        .examples =
            "  nano-infer run model.bin -i \"Once upon a time\"\n"
            "  nano-infer run model.bin -i \"Once upon a time\" -n 50 -t 0        # the same each time\n"
            "  nano-infer run model.bin -i \"Once upon a time\" --seed 7 -t 0.8\n"
            "  nano-infer run model.bin -l lora.bin --special -i \"<|instruct_mark|>Hi<|response_mark|>\"\n"
            "  cat story.txt | nano-infer run model.bin -i - --json\n"
            "  nano-infer run sorter.bin --no-causal -i 251212\n",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_operands = 1,
        .max_operands = 1,
        .operands = "MODEL.bin",
    };
    if (!cli_parse(&c, argc, argv, &o->model_path, exit_code)) return false;
    if (!o->prompt == !o->id_list) {
        *exit_code =
            cli_error(EXIT_MISUSE, o->prompt ? "run: give the prompt with -i or with --ids, not both"
                                             : "run: there is no prompt: give one with -i \"some text\", or "
                                               "-i - to read standard input");
        return false;
    }
    return true;
}

/* ---- loading ---------------------------------------------------------------------------------------------
 */

static int load_model(run_state *r) {
    nano_model_params params = nano_model_default_params();
    params.non_causal = r->o.no_causal;
    nano_status status = nano_model_open_file(&r->model, r->o.model_path, &params);
    if (status) return cli_library_error(status, status == NANO_ERR_FILE ? NULL : r->o.model_path);
    if (!r->o.lora_path) return EXIT_OK;
    status = nano_adapter_open_file(&r->adapter, r->o.lora_path);
    if (status) return cli_library_error(status, status == NANO_ERR_FILE ? NULL : r->o.lora_path);
    return EXIT_OK;
}

static int parse_ids(run_state *r) {
    const char *at = r->o.id_list;
    r->prompt_ids = malloc((strlen(at) + 1) * sizeof *r->prompt_ids);
    if (!r->prompt_ids) return cli_error(EXIT_FAILED, "out of memory");
    uint32_t vocab_size = nano_model_config(r->model)->vocab_size;
    while (*at) {
        char *end;
        errno = 0;
        unsigned long id = strtoul(at, &end, 10);
        if (*at < '0' || *at > '9' || errno || (*end && *end != ',') || (*end && !end[1]))
            return cli_error(EXIT_MISUSE,
                             "run: --ids needs numbers with commas between them, like \"1,2,3\", not '%s'",
                             r->o.id_list);
        if (id >= vocab_size)
            return cli_error(EXIT_MISUSE, "run: token id %lu in --ids is not in the vocabulary: 0 to %u", id,
                             vocab_size - 1);
        r->prompt_ids[r->n_prompt++] = (uint32_t)id;
        at = *end ? end + 1 : end;
    }
    return EXIT_OK;
}

static int encode_prompt(run_state *r) {
    const char *text = r->o.prompt;
    size_t n = strlen(text), n_ids = 0;
    char *input = NULL;
    if (strcmp(text, "-") == 0 && !(text = input = cli_read_input(&n)))
        return cli_error(EXIT_FAILED, "cannot read standard input");
    uint32_t *ids;
    /* An empty prompt begins a document, as after the end of another. */
    bool begin = n == 0;
    const char *what = begin ? "<|eos|>" : text;
    nano_status status =
        nano_tokenize(r->model, what, begin ? strlen(what) : n, begin || r->o.special, &ids, &n_ids);
    free(input);
    if (status) return cli_library_error(status, NULL);
    r->prompt_ids = malloc((n_ids + 1) * sizeof *ids);
    if (r->prompt_ids) memcpy(r->prompt_ids, ids, n_ids * sizeof *ids);
    nano_free(ids);
    r->n_prompt = n_ids;
    bool unmarked =
        begin && r->prompt_ids && !(n_ids == 1 && nano_token_is_special(r->model, r->prompt_ids[0]));
    if (unmarked)
        return cli_error(EXIT_MISUSE,
                         "run: the prompt is empty, and this vocabulary has no <|eos|> to begin with");
    return r->prompt_ids ? EXIT_OK : cli_error(EXIT_FAILED, "out of memory");
}

/* How long the sequence may get. */
static int find_limit(const run_state *r, uint32_t *limit) {
    uint32_t block = nano_model_config(r->model)->block_size;
    if (r->n_prompt == 0) return cli_error(EXIT_MISUSE, "run: there are no prompt tokens");
    if (r->n_prompt > block)
        return cli_error(EXIT_MISUSE, "run: the prompt has %zu tokens, but the model's context holds %u",
                         r->n_prompt, block);
    *limit = block;
    if (r->o.max_sequence_given && r->o.max_sequence < block) *limit = r->o.max_sequence;
    if (r->o.max_sequence_given && r->o.max_sequence > block)
        cli_error(0, "-s %u is more than the model's context: using %u", r->o.max_sequence, block);
    if (r->n_prompt > *limit)
        return cli_error(EXIT_MISUSE, "run: the prompt has %zu tokens, but -s allows %u", r->n_prompt,
                         *limit);
    if (r->o.no_causal) *limit = (uint32_t)r->n_prompt;
    if (r->o.n_new_given && r->o.n_new < *limit - r->n_prompt) *limit = (uint32_t)r->n_prompt + r->o.n_new;
    return EXIT_OK;
}

static int open_session(run_state *r, uint32_t limit) {
    nano_session_params params = nano_session_default_params();
    params.context = limit;
    params.threads = r->o.threads;
    nano_status status = nano_session_open(&r->session, r->model, &params);
    if (!status && r->adapter) status = nano_session_set_adapter(r->session, r->adapter);
    if (status) return cli_library_error(status, status == NANO_ERR_MISMATCH ? r->o.lora_path : NULL);

    if (!r->o.seed_given) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        r->o.sampling.seed = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
        if (r->o.sampling.temperature > 0 && !r->o.no_causal && limit > r->n_prompt)
            fprintf(stderr, "seed %llu\n", (unsigned long long)r->o.sampling.seed);
    }
    status = nano_session_set_sampler(r->session, &r->o.sampling);
    if (status) return cli_library_error(status, NULL);
    r->new_ids = malloc((limit + 1) * sizeof *r->new_ids);
    return r->new_ids ? EXIT_OK : cli_error(EXIT_FAILED, "out of memory");
}

/* ---- the logits file: complete under its name, or not there at all
 * ------------------------------------------ */

static int logits_failed(const run_state *r) {
    return cli_error(EXIT_FAILED, "cannot write %s: %s", r->o.logits_path, strerror(errno));
}

static int begin_logits(run_state *r) {
    if (!r->o.logits_path) return EXIT_OK;
    size_t room = strlen(r->o.logits_path) + 5;
    r->logits_temporary = malloc(room);
    if (!r->logits_temporary) return cli_error(EXIT_FAILED, "out of memory");
    /* a device or a pipe is written to, not replaced */
    struct stat found;
    bool replaced = stat(r->o.logits_path, &found) != 0 || S_ISREG(found.st_mode);
    snprintf(r->logits_temporary, room, "%s%s", r->o.logits_path, replaced ? ".tmp" : "");
    r->logits = fopen(r->logits_temporary, "wb");
    if (r->logits) return EXIT_OK;
    bool users = errno == ENOENT || errno == EACCES || errno == EISDIR || errno == ENOTDIR;
    logits_failed(r);
    return users ? EXIT_MISUSE : EXIT_FAILED;
}

static int end_logits(run_state *r) {
    if (!r->logits) return EXIT_OK;
    bool whole = fclose(r->logits) == 0;
    r->logits = NULL;
    bool replaced = strcmp(r->logits_temporary, r->o.logits_path) != 0;
    if (whole && (!replaced || rename(r->logits_temporary, r->o.logits_path) == 0)) return EXIT_OK;
    int exit_code = logits_failed(r);
    if (replaced) unlink(r->logits_temporary);
    return exit_code;
}

/* ---- the text --------------------------------------------------------------------------------------------
 */

static int emit(run_state *r, const char *bytes, size_t n) {
    if (r->o.json)
        return cli_text_add(&r->text, bytes, n) ? EXIT_OK : cli_error(EXIT_FAILED, "out of memory");
    if (!n) return EXIT_OK;
    fwrite(bytes, 1, n, stdout);
    return cli_flush_output();
}

static int emit_token(run_state *r, uint32_t id) {
    size_t n;
    const char *bytes = nano_token_bytes(r->model, id, &n);
    char *out = malloc(NANO_STREAM_ROOM(n));
    if (!out) return cli_error(EXIT_FAILED, "out of memory");
    int exit_code = emit(r, out, nano_stream_push(&r->stream, bytes, n, out));
    free(out);
    return exit_code;
}

/* ---- computing -------------------------------------------------------------------------------------------
 */

static uint32_t likeliest(const float *logits, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* The prompt goes through in pieces, so that Ctrl-C is heard and logits need little room; a non-causal model
 * must see it whole. */
static int prefill(run_state *r) {
    enum { PIECE = 32 };
    size_t piece = r->o.no_causal ? r->n_prompt : PIECE, vocab_size = nano_model_config(r->model)->vocab_size;
    bool rows_wanted = r->o.no_causal || r->logits;
    float *rows = NULL;
    if (rows_wanted) {
        size_t n = piece < r->n_prompt ? piece : r->n_prompt;
        if (n <= SIZE_MAX / vocab_size / sizeof *rows) rows = malloc(n * vocab_size * sizeof *rows);
        if (!rows) return cli_error(EXIT_FAILED, "out of memory for the logits of %zu tokens", n);
    }

    int exit_code = EXIT_OK;
    double start = cli_now();
    for (size_t done = 0; done < r->n_prompt && !interrupted && exit_code == EXIT_OK;) {
        size_t now = r->n_prompt - done < piece ? r->n_prompt - done : piece;
        nano_status status = nano_session_eval(r->session, r->prompt_ids + done, now, rows);
        if (status) exit_code = cli_library_error(status, NULL);
        if (!status && r->logits && fwrite(rows, sizeof *rows * vocab_size, now, r->logits) != now)
            exit_code = logits_failed(r);
        done += now;
    }
    r->prefill_s = cli_now() - start;
    if (r->o.no_causal && exit_code == EXIT_OK)
        for (size_t i = 0; i < r->n_prompt; i++)
            r->new_ids[r->n_new++] = likeliest(rows + i * vocab_size, (uint32_t)vocab_size);
    free(rows);
    return exit_code;
}

static int generate(run_state *r, uint32_t limit) {
    int exit_code = EXIT_OK;
    double start = cli_now();
    while (r->n_prompt + r->n_new < limit && !interrupted) {
        uint32_t id;
        nano_status status = nano_session_sample(r->session, &id);
        if (!status && nano_token_is_stop(r->model, id)) break;
        if (!status) {
            r->new_ids[r->n_new++] = id;
            if ((exit_code = emit_token(r, id))) break;
            if (r->n_prompt + r->n_new == limit) break;
            status = nano_session_eval(r->session, &id, 1, NULL);
            r->n_decoded++;
        }
        if (status) {
            exit_code = cli_library_error(status, NULL);
            break;
        }
    }
    r->decode_s = cli_now() - start;
    return exit_code;
}

static int print_positions(run_state *r) {
    for (size_t i = 0; i < r->n_new; i++) {
        if (nano_token_is_stop(r->model, r->new_ids[i])) continue;
        int exit_code = emit_token(r, r->new_ids[i]);
        if (exit_code) return exit_code;
    }
    return EXIT_OK;
}

/* ---- telling ---------------------------------------------------------------------------------------------
 */

static double rate(size_t n, double seconds) {
    return n && seconds > 0 ? (double)n / seconds : 0;
}

static int report(run_state *r) {
    char tail[12];
    int exit_code = emit(r, tail, nano_stream_finish(&r->stream, tail));
    if (exit_code) return exit_code;
    double prefill_tps = rate(r->n_prompt, r->prefill_s), decode_tps = rate(r->n_decoded, r->decode_s);
    if (r->o.json) {
        fputs("{\"text\": ", stdout);
        json_string(stdout, r->text.bytes, r->text.n);
        fputs(", \"ids\": ", stdout);
        json_ids(stdout, r->new_ids, r->n_new);
        fputs(", \"prompt_ids\": ", stdout);
        json_ids(stdout, r->prompt_ids, r->n_prompt);
        printf(", \"prefill_tps\": %.3f, \"decode_tps\": %.3f, \"load_s\": %.6f, \"peak_rss_mb\": %.3f}",
               prefill_tps, decode_tps, r->load_s, cli_peak_rss_mb());
    }
    putchar('\n');
    if ((exit_code = cli_flush_output())) return exit_code;
    fprintf(stderr, "prompt %zu tokens, %.1f tok/s; new %zu tokens, %.1f tok/s; %u threads\n", r->n_prompt,
            prefill_tps, r->n_new, decode_tps, nano_session_threads(r->session));
    return EXIT_OK;
}

static int do_run(run_state *r) {
    int exit_code;
    uint32_t limit = 0;
    double start = cli_now();
    if ((exit_code = load_model(r))) return exit_code;
    r->load_s = cli_now() - start;
    if ((exit_code = r->o.id_list ? parse_ids(r) : encode_prompt(r))) return exit_code;
    if ((exit_code = find_limit(r, &limit))) return exit_code;
    start = cli_now();
    if ((exit_code = open_session(r, limit))) return exit_code;
    r->load_s += cli_now() - start;
    if ((exit_code = begin_logits(r))) return exit_code;
    if ((exit_code = prefill(r))) return exit_code;
    if (!interrupted && (exit_code = end_logits(r))) return exit_code;
    if ((exit_code = r->o.no_causal ? print_positions(r) : generate(r, limit))) return exit_code;
    if ((exit_code = report(r))) return exit_code;
    return interrupted ? EXIT_INTERRUPTED : EXIT_OK;
}

int cli_run(int argc, char **argv) {
    run_state r = {0};
    int exit_code;
    if (!parse(&r.o, argc, argv, &exit_code)) return exit_code;

    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL); /* a second Ctrl-C ends it at once */
    exit_code = do_run(&r);

    if (r.logits) { /* not finished: leave nothing behind */
        fclose(r.logits);
        unlink(r.logits_temporary);
    }
    free(r.logits_temporary);
    free(r.prompt_ids);
    free(r.new_ids);
    free(r.text.bytes);
    nano_session_close(r.session);
    nano_adapter_close(r.adapter);
    nano_model_close(r.model);
    return exit_code;
}
