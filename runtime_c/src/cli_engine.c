/* cli_engine.c: what `run` and `chat` do alike: opening model, adapter and session, and printing tokens. */
#define _GNU_SOURCE
#include "cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int cli_open_model(const engine_options *o, const char *path, bool non_causal, engine *e) {
    nano_model_params params = nano_model_default_params();
    params.non_causal = non_causal;
    params.kernels = o->kernels;
    nano_status status = nano_model_open_file(&e->model, path, &params);
    if (status)
        return cli_library_error(status,
                                 status == NANO_ERR_FILE || status == NANO_ERR_ARGUMENT ? NULL : path);
    if (!o->lora_path) return EXIT_OK;
    status = nano_adapter_open_file(&e->adapter, o->lora_path);
    if (status) return cli_library_error(status, status == NANO_ERR_FILE ? NULL : o->lora_path);
    return EXIT_OK;
}

int cli_probe_session(const engine_options *o, uint32_t *n_tokens) {
    *n_tokens = 0;
    if (!o->session_path || (access(o->session_path, F_OK) != 0 && errno == ENOENT)) return EXIT_OK;
    nano_status status = nano_probe_session_file(o->session_path, n_tokens);
    return status ? cli_library_error(status, NULL) : EXIT_OK;
}

int cli_save_session(const engine_options *o, const engine *e) {
    if (!o->session_path) return EXIT_OK;
    nano_status status = nano_session_save_file(e->session, o->session_path);
    if (!status) return EXIT_OK;
    cli_library_error(status, NULL);
    return EXIT_FAILED;
}

/* The index of `word` among `words`, which end with NULL; false after saying what is wrong. */
static bool find_word(const char *option_name, const char *word, const char *const *words, unsigned *index) {
    for (*index = 0; words[*index]; ++*index)
        if (strcmp(word, words[*index]) == 0) return true;
    cli_error(EXIT_MISUSE, "--%s is %s, %s%s%s, not '%s'", option_name, words[0], words[1],
              words[2] ? " or " : "", words[2] ? words[2] : "", word);
    return false;
}

/* What is not given on the command line is as it was in the session; of a new one, as it is by default. */
static int set_sampling(engine_options *o, bool tell_seed, bool restored, engine *e) {
    nano_sampler_params p = restored ? nano_session_sampler(e->session) : o->sampling;
    if (o->temperature_given) p.temperature = o->sampling.temperature;
    if (o->top_k_given) p.top_k = o->sampling.top_k;
    if (o->top_p_given) p.top_p = o->sampling.top_p;
    if (o->penalty_given) p.repetition_penalty = o->sampling.repetition_penalty;
    if (o->seed_given) p.seed = o->sampling.seed;
    if (!o->seed_given && !restored) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        p.seed = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
        if (p.temperature > 0 && tell_seed) fprintf(stderr, "seed %llu\n", (unsigned long long)p.seed);
    }
    nano_status status = nano_session_set_sampler(e->session, &p);
    return status ? cli_library_error(status, NULL) : EXIT_OK;
}

int cli_open_session(engine_options *o, uint32_t context, bool tell_seed, engine *e) {
    static const char *const caches[] = {"auto", "f16", "f32", NULL}, *const drafts[] = {"auto", "off",
                                                                                         "always", NULL};
    nano_session_params params = nano_session_default_params();
    unsigned cache = params.cache, draft = params.draft;
    if (o->cache && !find_word("cache", o->cache, caches, &cache)) return EXIT_MISUSE;
    if (o->draft && !find_word("draft", o->draft, drafts, &draft)) return EXIT_MISUSE;
    uint32_t n_tokens = 0;
    int exit_code = cli_probe_session(o, &n_tokens);
    if (exit_code) return exit_code;
    uint32_t block = nano_model_config(e->model)->block_size;
    if (n_tokens > context) context = n_tokens < block ? n_tokens : block;
    params.context = context;
    params.threads = o->threads;
    params.cache = (nano_cache)cache;
    params.draft = (nano_draft)draft;
    nano_status status = nano_session_open(&e->session, e->model, &params);
    if (!status && e->adapter) status = nano_session_set_adapter(e->session, e->adapter);
    if (status) return cli_library_error(status, status == NANO_ERR_MISMATCH ? o->lora_path : NULL);
    bool restored = o->session_path && access(o->session_path, F_OK) == 0;
    if (restored && (status = nano_session_load_file(e->session, o->session_path)))
        return cli_library_error(status, NULL);
    return set_sampling(o, tell_seed, restored, e);
}

void cli_close_engine(engine *e) {
    free(e->text.bytes);
    nano_session_close(e->session);
    nano_adapter_close(e->adapter);
    nano_model_close(e->model);
}

static int emit(engine *e, const char *bytes, size_t n) {
    if (e->keep) return cli_text_add(&e->text, bytes, n) ? EXIT_OK : cli_error(EXIT_FAILED, "out of memory");
    if (!n) return EXIT_OK;
    fwrite(bytes, 1, n, stdout);
    return cli_flush_output();
}

int cli_emit_token(engine *e, uint32_t id) {
    size_t n;
    const char *bytes = nano_token_bytes(e->model, id, &n);
    char *out = malloc(NANO_STREAM_ROOM(n));
    if (!out) return cli_error(EXIT_FAILED, "out of memory");
    int exit_code = emit(e, out, nano_stream_push(&e->stream, bytes, n, out));
    free(out);
    return exit_code;
}

int cli_emit_end(engine *e) {
    char tail[12];
    return emit(e, tail, nano_stream_finish(&e->stream, tail));
}
