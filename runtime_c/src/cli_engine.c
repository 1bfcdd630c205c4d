/* cli_engine.c: what `run` and `chat` do alike: opening model, adapter and session, and printing tokens. */
#define _GNU_SOURCE
#include "cli.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

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

int cli_open_session(engine_options *o, uint32_t context, bool tell_seed, engine *e) {
    nano_session_params params = nano_session_default_params();
    params.context = context;
    params.threads = o->threads;
    if (o->cache && strcmp(o->cache, "f16") != 0 && strcmp(o->cache, "f32") != 0)
        return cli_error(EXIT_MISUSE, "--cache is f16 or f32, not '%s'", o->cache);
    if (o->cache) params.cache = strcmp(o->cache, "f16") == 0 ? NANO_CACHE_F16 : NANO_CACHE_F32;
    nano_status status = nano_session_open(&e->session, e->model, &params);
    if (!status && e->adapter) status = nano_session_set_adapter(e->session, e->adapter);
    if (status) return cli_library_error(status, status == NANO_ERR_MISMATCH ? o->lora_path : NULL);

    if (!o->seed_given) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        o->sampling.seed = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
        if (o->sampling.temperature > 0 && tell_seed)
            fprintf(stderr, "seed %llu\n", (unsigned long long)o->sampling.seed);
    }
    status = nano_session_set_sampler(e->session, &o->sampling);
    return status ? cli_library_error(status, NULL) : EXIT_OK;
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
