/* cli_chat.c: nano-infer chat MODEL: a conversation, a line of standard input for each message. */
#define _GNU_SOURCE
#include "cli.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

typedef struct {
    const char *model_path, *system;
    uint32_t n_new, max_sequence;
    bool n_new_given, max_sequence_given;
    engine_options engine;
} chat_options;

static bool parse(chat_options *o, int argc, char **argv, int *exit_code) {
    *o = (chat_options){.engine.sampling = nano_sampler_default_params()};
    const option options[] = {
        {0, "system", "TEXT", OPTION_TEXT, &o->system, NULL, 0, 0,
         "the system prompt (default: the template's own; \"\" is none)"},
        {'n', "tokens", "N", OPTION_COUNT, &o->n_new, &o->n_new_given, 1, 1 << 30,
         "let an answer be at most N tokens (default: until the context is\nfull)"},
        {'s', "sequence", "S", OPTION_COUNT, &o->max_sequence, &o->max_sequence_given, 1, 1 << 30,
         "let the conversation be at most S tokens (default: the model's\ncontext, at most 8192)"},
        CLI_ENGINE_OPTIONS(o->engine),
    };
    const command c = {
        .name = "chat",
        .usage = "MODEL [options]",
        .description =
            "Holds a conversation: each line of standard input is a message, its answer goes to standard\n"
            "output as it comes. The form (ChatML, Llama 3, Nano's) is the model's own. When the context is\n"
            "full, the conversation begins anew. It ends with the input (Ctrl-D) or with Ctrl-C; with\n"
            "--session it goes on the next time.\n",
        .examples = "  nano-infer chat model.gguf\n"
                    "  nano-infer chat model.gguf --system \"You answer in one short sentence.\" -t 0.7\n"
                    "  nano-infer chat model.gguf --session talk.session\n"
                    "  echo \"What is the capital of France?\" | nano-infer chat model.gguf -t 0\n",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_operands = 1,
        .max_operands = 1,
        .operands = "MODEL",
    };
    return cli_parse(&c, argc, argv, &o->model_path, exit_code);
}

/* Some models' templates leave out of earlier answers what they thought aloud: then it is dropped, and what
 * is left of the answer is evaluated again. */
static nano_status settle_answer(engine *e) {
    uint32_t *ids = NULL;
    size_t n_ids, from;
    nano_status status = nano_chat_settle(e->model, nano_session_tokens(e->session),
                                          nano_session_length(e->session), &from, &ids, &n_ids);
    if (status || !ids) return status;
    status = nano_session_rewind(e->session, (uint32_t)from);
    if (!status && n_ids) status = nano_session_eval(e->session, ids, n_ids, NULL);
    nano_free(ids);
    return status;
}

/* The tokens of this message behind those of the session, which is emptied if they do not fit. *ids NULL:
 * they would not even fit alone, which has been said. */
static int make_turn(const chat_options *o, engine *e, const char *text, size_t n, uint32_t **ids,
                     size_t *n_ids) {
    uint32_t context = nano_session_context(e->session);
    for (;;) {
        uint32_t used = nano_session_length(e->session);
        nano_status status = nano_chat_turn(e->model, o->system, text, n, used == 0, ids, n_ids);
        if (status) return cli_library_error(status, NULL);
        if (*n_ids < context - used) return EXIT_OK;
        nano_free(*ids);
        *ids = NULL;
        if (!used) {
            cli_error(0, "this message takes %zu tokens, but the context has room for %u: passed over",
                      *n_ids, context - 1);
            return EXIT_OK;
        }
        cli_error(0, "the context of %u tokens is full: the conversation begins anew", context);
        nano_session_reset(e->session);
    }
}

/* The context is full. Was that the end of the answer, by chance? */
static int end_full(engine *e) {
    uint32_t id;
    nano_status status = nano_session_sample(e->session, &id);
    if (status) return cli_library_error(status, NULL);
    if (nano_token_is_stop(e->model, id)) return EXIT_OK;
    int exit_code = cli_emit_token(e, id);
    fflush(stdout);
    cli_error(0, "the answer ends here: the context of %u tokens is full", nano_session_context(e->session));
    return exit_code;
}

static int print_answer(const chat_options *o, engine *e) {
    enum { AT_ONCE = 64 };
    uint32_t ids[AT_ONCE], left = o->n_new_given ? o->n_new : UINT32_MAX;
    int exit_code = EXIT_OK;
    while (left && !exit_code && !interrupted) {
        size_t got;
        if (nano_session_length(e->session) == nano_session_context(e->session)) return end_full(e);
        nano_status status = nano_session_generate(e->session, ids, left < AT_ONCE ? left : AT_ONCE, &got);
        if (status) return cli_library_error(status, NULL);
        bool ends = nano_token_is_stop(e->model, ids[got - 1]);
        got -= ends;
        for (size_t i = 0; i < got && !exit_code; i++) exit_code = cli_emit_token(e, ids[i]);
        if (ends) break;
        left -= (uint32_t)got;
    }
    return exit_code;
}

static int answer(const chat_options *o, engine *e, const char *text, size_t n) {
    uint32_t *ids;
    size_t n_ids;
    nano_status status = settle_answer(e);
    if (status) return cli_library_error(status, NULL);
    int exit_code = make_turn(o, e, text, n, &ids, &n_ids);
    if (exit_code || !ids) return exit_code;
    for (size_t at = 0; at < n_ids && !status && !interrupted; at += CLI_PIECE)
        status =
            nano_session_eval(e->session, ids + at, n_ids - at < CLI_PIECE ? n_ids - at : CLI_PIECE, NULL);
    nano_free(ids);
    if (status) return cli_library_error(status, NULL);
    exit_code = print_answer(o, e);
    if (!exit_code) exit_code = cli_emit_end(e);
    if (exit_code) return exit_code;
    putchar('\n');
    return cli_flush_output();
}

static int converse(const chat_options *o, engine *e) {
    char *line = NULL;
    size_t room = 0;
    int exit_code = EXIT_OK;
    bool asks = isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
    while (!exit_code && !interrupted) {
        if (asks) fputs("> ", stderr);
        ssize_t n = getline(&line, &room, stdin);
        if (n < 0) break;
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) n--;
        if (n) exit_code = answer(o, e, line, (size_t)n);
    }
    if (!exit_code && !interrupted && ferror(stdin))
        exit_code = cli_error(EXIT_FAILED, "cannot read standard input");
    free(line);
    return exit_code;
}

static int do_chat(chat_options *o, engine *e) {
    enum { DEFAULT_CONTEXT = 8192 };
    int exit_code = cli_open_model(&o->engine, o->model_path, false, e);
    if (exit_code) return exit_code;
    if (nano_model_chat_family(e->model) == NANO_CHAT_NONE)
        return cli_error(
            EXIT_MISUSE,
            "chat: this model has no chat form that is known here (ChatML, Llama 3, Nano): use run");
    const nano_config *c = nano_model_config(e->model);
    if (!c->causal) return cli_error(EXIT_MISUSE, "chat: this model reads its whole input at once: use run");
    uint32_t context = c->block_size < DEFAULT_CONTEXT ? c->block_size : DEFAULT_CONTEXT;
    if (o->max_sequence_given) context = o->max_sequence;
    if (context > c->block_size) {
        cli_error(0, "-s %u is more than the model's context: using %u", context, c->block_size);
        context = c->block_size;
    }
    if ((exit_code = cli_open_session(&o->engine, context, true, e))) return exit_code;
    /* A system prompt that will not do is said before the first message. */
    uint32_t *ids;
    size_t n;
    nano_status status = nano_chat_turn(e->model, o->system, "", 0, true, &ids, &n);
    if (status) return cli_library_error(status, NULL);
    nano_free(ids);
    uint32_t held = nano_session_length(e->session);
    if (held)
        cli_error(0, "the conversation of %s goes on (%u tokens)%s", o->engine.session_path, held,
                  o->system ? "; its system prompt stays as it is" : "");
    exit_code = converse(o, e);
    if (!exit_code) exit_code = cli_save_session(&o->engine, e);
    return exit_code == EXIT_OK && interrupted ? EXIT_INTERRUPTED : exit_code;
}

int cli_chat(int argc, char **argv) {
    chat_options o;
    engine e = {0};
    int exit_code;
    if (!parse(&o, argc, argv, &exit_code)) return exit_code;
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    exit_code = do_chat(&o, &e);
    cli_close_engine(&e);
    return exit_code;
}
