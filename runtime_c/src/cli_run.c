/* cli_run.c: nano-infer run MODEL -i PROMPT */
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
    const char *model_path, *prompt, *id_list, *logits_path, *system;
    uint32_t n_new, max_sequence;
    bool n_new_given, max_sequence_given, special, chat, no_causal, json, profile;
    engine_options engine;
} run_options;

/* All that must be given back at the end, and what is to be told. */
typedef struct {
    run_options o;
    engine e; /* its text: with --json, the whole continuation */
    uint32_t *prompt_ids, *new_ids;
    size_t n_prompt, n_new;
    uint32_t kept; /* tokens of the prompt that the session file had */
    FILE *logits;
    char *logits_temporary;
    double load_s, prefill_s, decode_s;
} run_state;

static bool parse(run_options *o, int argc, char **argv, int *exit_code) {
    *o = (run_options){.engine.sampling = nano_sampler_default_params()};
    const option options[] = {
        {'i', "prompt", "PROMPT", OPTION_TEXT, &o->prompt, NULL, 0, 0,
         "the text to continue; - reads standard input (one newline\nat its end is dropped)"},
        {0, "ids", "\"1,2,3\"", OPTION_TEXT, &o->id_list, NULL, 0, 0, "the prompt as token ids instead"},
        {'n', "tokens", "N", OPTION_COUNT, &o->n_new, &o->n_new_given, 0, 1 << 30,
         "generate at most N new tokens (default: until the context is full)"},
        {'s', "sequence", "S", OPTION_COUNT, &o->max_sequence, &o->max_sequence_given, 1, 1 << 30,
         "let prompt and continuation together be at most S tokens"},
        CLI_ENGINE_OPTIONS(o->engine),
        {0, "special", NULL, OPTION_FLAG, &o->special, NULL, 0, 0,
         "let <|...|> in the prompt be special tokens, not characters"},
        {0, "chat", NULL, OPTION_FLAG, &o->chat, NULL, 0, 0,
         "the prompt is a user's message: put it into the model's chat form"},
        {0, "system", "TEXT", OPTION_TEXT, &o->system, NULL, 0, 0,
         "with --chat, the system prompt (default: the template's own)"},
        {0, "no-causal", NULL, OPTION_FLAG, &o->no_causal, NULL, 0, 0,
         "the model was trained with full attention: read the prompt in\none pass and print the likeliest "
         "token of each place"},
        {0, "json", NULL, OPTION_FLAG, &o->json, NULL, 0, 0,
         "print one JSON object when done, nothing before"},
        {0, "profile", NULL, OPTION_FLAG, &o->profile, NULL, 0, 0,
         "tell on standard error where the time went, and what guesses were\nworth"},
        {0, "logits", "FILE", OPTION_TEXT, &o->logits_path, NULL, 0, 0,
         "write the prompt's logits: float32, little-endian,\n[prompt tokens, vocabulary]"},
    };
    const command c = {
        .name = "run",
        .usage = "MODEL -i PROMPT [options]",
        .description =
            "Continues a text. The continuation goes to standard output as it comes, everything else to\n"
            "standard error. It ends at the end-of-text token, at -n or -s, or when the context is full;\n"
            "Ctrl-C ends it early.\n",
        .examples =
            "  nano-infer run model.bin -i \"Once upon a time\"\n"
            "  nano-infer run model.bin -i \"Once upon a time\" -n 50 -t 0        # the same each time\n"
            "  nano-infer run model.bin -i \"Once upon a time\" --seed 7 -t 0.8\n"
            "  nano-infer run model.bin -l lora.bin --special -i \"<|instruct_mark|>Hi<|response_mark|>\"\n"
            "  nano-infer run model.gguf --chat -i \"What is the capital of France?\" -t 0\n"
            "  cat story.txt | nano-infer run model.bin -i - --json\n"
            "  nano-infer run model.gguf --session s -i \"Once upon a time\" -n 50  # and on: run model.gguf "
            "--session s\n"
            "  nano-infer run sorter.bin --no-causal -i 251212\n",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_operands = 1,
        .max_operands = 1,
        .operands = "MODEL",
    };
    if (!cli_parse(&c, argc, argv, &o->model_path, exit_code)) return false;
    bool goes_on = o->engine.session_path && !o->prompt && !o->id_list; /* after what the session has */
    if (!o->prompt == !o->id_list && !goes_on) {
        *exit_code =
            cli_error(EXIT_MISUSE, o->prompt ? "run: give the prompt with -i or with --ids, not both"
                                             : "run: there is no prompt: give one with -i \"some text\", or "
                                               "-i - to read standard input");
        return false;
    }
    const char *clash =
        o->chat && o->id_list   ? "--chat wraps a text: give it with -i, not --ids"
        : o->chat && o->special ? "--chat and --special do not go together"
        : o->system && !o->chat ? "--system needs --chat"
        : o->chat && goes_on    ? "--chat needs a message: give one with -i"
        : o->engine.session_path && o->logits_path
            ? "--logits and --session do not go together: tokens of a session are not computed again"
        : o->engine.session_path && o->no_causal ? "--no-causal and --session do not go together"
                                                 : NULL;
    if (clash) *exit_code = cli_error(EXIT_MISUSE, "run: %s", clash);
    return !clash;
}

/* ---- the prompt ------------------------------------------------------------------------------------------
 */

static int parse_ids(run_state *r) {
    const char *at = r->o.id_list;
    r->prompt_ids = malloc((strlen(at) + 1) * sizeof *r->prompt_ids);
    if (!r->prompt_ids) return cli_error(EXIT_FAILED, "out of memory");
    uint32_t vocab_size = nano_model_config(r->e.model)->vocab_size;
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

/* An empty prompt begins a document, as after the end of another. */
static nano_status encode_beginning(const run_state *r, uint32_t **ids, size_t *n_ids) {
    static const char *const ends[] = {"<|eos|>", "<|endoftext|>", "<|end_of_text|>"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        nano_status status = nano_tokenize(r->e.model, ends[i], strlen(ends[i]), true, ids, n_ids);
        if (status) return status;
        if (*n_ids == 1 && nano_token_is_special(r->e.model, (*ids)[0])) return NANO_OK;
        nano_free(*ids);
        *ids = NULL;
        *n_ids = 0;
    }
    return NANO_OK;
}

static int encode_prompt(run_state *r) {
    const char *text = r->o.prompt;
    size_t n = strlen(text), n_ids = 0;
    char *input = NULL;
    if (strcmp(text, "-") == 0 && !(text = input = cli_read_input(&n)))
        return cli_error(EXIT_FAILED, "cannot read standard input");
    uint32_t *ids = NULL, bos;
    nano_status status = r->o.chat ? nano_chat_turn(r->e.model, r->o.system, text, n, true, &ids, &n_ids)
                         : n       ? nano_tokenize(r->e.model, text, n, r->o.special, &ids, &n_ids)
                                   : NANO_OK;
    bool begins = !r->o.chat && nano_token_bos(r->e.model, &bos);
    if (!status && !r->o.chat && n == 0 && !begins) status = encode_beginning(r, &ids, &n_ids);
    free(input);
    if (status) return cli_library_error(status, NULL);
    if (begins && n_ids && ids[0] == bos) begins = false; /* written out with --special */
    r->prompt_ids = malloc((n_ids + 2) * sizeof *ids);
    if (r->prompt_ids) {
        if (begins) r->prompt_ids[0] = bos;
        if (n_ids) memcpy(r->prompt_ids + begins, ids, n_ids * sizeof *ids);
        r->n_prompt = n_ids + begins;
    }
    nano_free(ids);
    if (!r->prompt_ids) return cli_error(EXIT_FAILED, "out of memory");
    if (!r->n_prompt)
        return cli_error(EXIT_MISUSE,
                         "run: the prompt is empty, and this vocabulary has no token to begin with");
    return EXIT_OK;
}

/* No prompt: what the session has. */
static int go_on(run_state *r) {
    uint32_t n;
    int exit_code = cli_probe_session(&r->o.engine, &n);
    if (exit_code) return exit_code;
    if (!n)
        return cli_error(EXIT_MISUSE,
                         "run: %s holds no text to go on with: give a prompt with -i \"some text\"",
                         r->o.engine.session_path);
    r->n_prompt = n; /* the tokens come with the session */
    return EXIT_OK;
}

/* How long the sequence may get. */
static int find_limit(const run_state *r, uint32_t *limit) {
    uint32_t block = nano_model_config(r->e.model)->block_size;
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
    bool samples = !r->o.no_causal && limit > r->n_prompt;
    int exit_code = cli_open_session(&r->o.engine, limit, samples, &r->e);
    if (exit_code) return exit_code;
    r->new_ids = malloc((limit + 1) * sizeof *r->new_ids);
    if (!r->new_ids) return cli_error(EXIT_FAILED, "out of memory");
    if (!r->prompt_ids) {
        size_t bytes = r->n_prompt * sizeof *r->prompt_ids;
        if (!(r->prompt_ids = malloc(bytes))) return cli_error(EXIT_FAILED, "out of memory");
        memcpy(r->prompt_ids, nano_session_tokens(r->e.session), bytes);
    }
    nano_status status = nano_session_keep(r->e.session, r->prompt_ids, r->n_prompt, &r->kept);
    return status ? cli_library_error(status, NULL) : EXIT_OK;
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
    size_t piece = r->o.no_causal ? r->n_prompt : CLI_PIECE,
           vocab_size = nano_model_config(r->e.model)->vocab_size;
    bool rows_wanted = r->o.no_causal || r->logits;
    float *rows = NULL;
    if (rows_wanted) {
        size_t n = piece < r->n_prompt ? piece : r->n_prompt;
        if (n <= SIZE_MAX / vocab_size / sizeof *rows) rows = malloc(n * vocab_size * sizeof *rows);
        if (!rows) return cli_error(EXIT_FAILED, "out of memory for the logits of %zu tokens", n);
    }

    int exit_code = EXIT_OK;
    double start = cli_now();
    for (size_t done = r->kept; done < r->n_prompt && !interrupted && exit_code == EXIT_OK;) {
        size_t now = r->n_prompt - done < piece ? r->n_prompt - done : piece;
        nano_status status = nano_session_eval(r->e.session, r->prompt_ids + done, now, rows);
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
    while (r->n_prompt + r->n_new < limit && !interrupted && exit_code == EXIT_OK) {
        size_t got;
        uint32_t *ids = r->new_ids + r->n_new;
        nano_status status = nano_session_generate(r->e.session, ids, limit - r->n_prompt - r->n_new, &got);
        if (status) {
            exit_code = cli_library_error(status, NULL);
            break;
        }
        bool ends = nano_token_is_stop(r->e.model, ids[got - 1]);
        got -= ends;
        r->n_new += got;
        for (size_t i = 0; i < got && exit_code == EXIT_OK; i++) exit_code = cli_emit_token(&r->e, ids[i]);
        if (ends) break;
    }
    r->decode_s = cli_now() - start;
    return exit_code;
}

static int print_positions(run_state *r) {
    for (size_t i = 0; i < r->n_new; i++) {
        if (nano_token_is_stop(r->e.model, r->new_ids[i])) continue;
        int exit_code = cli_emit_token(&r->e, r->new_ids[i]);
        if (exit_code) return exit_code;
    }
    return EXIT_OK;
}

/* ---- telling ---------------------------------------------------------------------------------------------
 */

static double rate(size_t n, double seconds) {
    return n && seconds > 0 ? (double)n / seconds : 0;
}

static void profile(const run_state *r, const nano_session_stats *stats) {
    fprintf(stderr,
            "opening %.3f s; prefill of %zu tokens %.3f s; decode of %llu tokens %.3f s in %llu passes\n"
            "drafts: %llu tokens guessed, %llu of them right (%.0f %%)\n",
            r->load_s, r->n_prompt - r->kept, r->prefill_s, (unsigned long long)stats->generated, r->decode_s,
            (unsigned long long)stats->evals, (unsigned long long)stats->drafted,
            (unsigned long long)stats->accepted,
            stats->drafted ? 100 * (double)stats->accepted / (double)stats->drafted : 0);
}

static int report(run_state *r) {
    int exit_code = cli_emit_end(&r->e);
    if (exit_code) return exit_code;
    nano_session_stats stats = nano_session_get_stats(r->e.session);
    double prefill_tps = rate(r->n_prompt - r->kept, r->prefill_s),
           decode_tps = rate((size_t)stats.generated, r->decode_s);
    if (r->o.json) {
        fputs("{\"text\": ", stdout);
        json_string(stdout, r->e.text.bytes, r->e.text.n);
        fputs(", \"ids\": ", stdout);
        json_ids(stdout, r->new_ids, r->n_new);
        fputs(", \"prompt_ids\": ", stdout);
        json_ids(stdout, r->prompt_ids, r->n_prompt);
        printf(", \"prefill_tps\": %.3f, \"decode_tps\": %.3f, \"load_s\": %.6f, \"peak_rss_mb\": %.3f}",
               prefill_tps, decode_tps, r->load_s, cli_peak_rss_mb());
    }
    putchar('\n');
    if ((exit_code = cli_flush_output())) return exit_code;
    if (r->kept) fprintf(stderr, "%u of the prompt's tokens were in the session\n", r->kept);
    if (r->o.profile) profile(r, &stats);
    fprintf(stderr,
            "prompt %zu tokens, %.1f tok/s; new %zu tokens, %.1f tok/s; %u threads, peak memory %.0f MB\n",
            r->n_prompt, prefill_tps, r->n_new, decode_tps, nano_session_threads(r->e.session),
            cli_peak_rss_mb());
    return EXIT_OK;
}

static int do_run(run_state *r) {
    int exit_code;
    uint32_t limit = 0;
    double start = cli_now();
    if ((exit_code = cli_open_model(&r->o.engine, r->o.model_path, r->o.no_causal, &r->e))) return exit_code;
    r->load_s = cli_now() - start;
    r->e.keep = r->o.json;
    r->o.no_causal = !nano_model_config(r->e.model)->causal; /* a GGUF file may say so itself */
    if (r->o.no_causal && r->o.engine.session_path)
        return cli_error(EXIT_MISUSE,
                         "run: this model reads its whole input at once: it has no use for --session");
    if ((exit_code = r->o.id_list ? parse_ids(r) : r->o.prompt ? encode_prompt(r) : go_on(r)))
        return exit_code;
    if ((exit_code = find_limit(r, &limit))) return exit_code;
    start = cli_now();
    if ((exit_code = open_session(r, limit))) return exit_code;
    r->load_s += cli_now() - start;
    if ((exit_code = begin_logits(r))) return exit_code;
    if ((exit_code = prefill(r))) return exit_code;
    if (!interrupted && (exit_code = end_logits(r))) return exit_code;
    if ((exit_code = r->o.no_causal ? print_positions(r) : generate(r, limit))) return exit_code;
    if ((exit_code = cli_save_session(&r->o.engine, &r->e))) return exit_code;
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
    cli_close_engine(&r.e);
    return exit_code;
}
