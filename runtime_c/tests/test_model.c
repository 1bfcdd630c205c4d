/* test_model.c: the engine's logits against the plain double-precision pass, and what must not change them.
 */
#include "kernels.h"
#include "test.h"
#include "tiny_gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __wasm__ /* these tests have no threads there */
#define THREADS(n) 1u
#else
#define THREADS(n) (n)
#endif

enum { N = 21 };
static const uint32_t PROMPT[N] = {5,  9, 77, 118, 3, 0,  42, 42, 9,   100, 64,
                                   31, 2, 88, 117, 6, 50, 51, 52, 119, 1};

/* The prompt's logits [N,V]; NULL with a failed check. `pieces`: tokens per call. */
static float *run(const nano_model *m, const nano_adapter *a, uint32_t threads, size_t pieces) {
    nano_session_params params = {.context = N + 3, .threads = THREADS(threads)};
    nano_session *s;
    size_t v = nano_model_config(m)->vocab_size;
    if (nano_session_open(&s, m, &params)) {
        CHECK_THAT(false, "%s", nano_last_error());
        return NULL;
    }
    float *logits = malloc(N * v * sizeof *logits);
    CHECK(nano_session_set_adapter(s, a) == NANO_OK);
    for (size_t at = 0; at < N; at += pieces) {
        nano_status status =
            nano_session_eval(s, PROMPT + at, N - at < pieces ? N - at : pieces, logits + at * v);
        CHECK_THAT(status == NANO_OK, "%s", nano_last_error());
    }
    CHECK(memcmp(nano_session_logits(s), logits + (N - 1) * v, v * sizeof *logits) == 0);
    nano_session_close(s);
    return logits;
}

static double difference(const float *a, const double *b, size_t n) {
    double worst = 0, top = 0;
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs(a[i] - b[i]));
        top = fmax(top, fabs(b[i]));
    }
    return worst / top;
}

/* `name`: of the kernels, NULL for the best */
static nano_model *open_with(const tiny_file *f, bool non_causal, const char *name) {
    nano_model_params params = {.non_causal = non_causal, .kernels = name};
    nano_model *m;
    nano_status status = nano_model_open_memory(&m, f->bytes, f->size, &params);
    CHECK_THAT(status == NANO_OK, "%s", nano_last_error());
    return m;
}

static nano_model *open_file(const tiny_file *f, bool non_causal) {
    return open_with(f, non_causal, NULL);
}

/* How far logits may be off where weights are packed: 8-bit activations round everything that passes them. */
static double tolerance(const tiny_spec *s) {
    const nano_quant types[] = {s->quant, s->gguf ? s->ffn_type : s->quant,
                                s->gguf ? s->embedding_type : s->quant};
    double most = 2e-5;
    for (unsigned i = 0; i < 3; i++) {
        bool halves = types[i] == NANO_F16 || types[i] == NANO_BF16;
        most = fmax(most, types[i] == NANO_F32         ? 0
                          : halves                     ? 2e-3
                          : types[i] == NANO_GGUF_Q5_1 ? 0.25
                                                       : 0.06);
    }
    return most;
}

static void against_plain(void) {
    TEST("model: every kind of file gives the plain pass's logits, causal and not, with all kernels");
    for (unsigned i = 0; tiny_kind(i); i++) {
        tiny_spec spec = tiny_spec_of(tiny_kind(i));
        tiny_weights *w = tiny_make(&spec);
        tiny_file f = tiny_write(w);
        double *expected = malloc(N * spec.vocab_size * sizeof *expected);
        for (int causal = 0; causal < 2; causal++) {
            nano_model *scalar = open_with(&f, !causal, "scalar");
            float *found = run(scalar, NULL, 1, N);
            double *plain_c = malloc(N * spec.vocab_size * sizeof *plain_c);
            for (size_t j = 0; j < N * spec.vocab_size; j++) plain_c[j] = found[j];
            free(found);
            nano_model_close(scalar);
            tiny_forward(w, causal, PROMPT, N, expected);
            for (size_t k = 0; k == 0 || kernels_at(k - 1); k++) {
                const char *name = k ? kernels_at(k - 1)->name : "exact";
                nano_model *m = open_with(&f, !causal, name);
                if (!m) continue;
                CHECK(strcmp(nano_model_kernels(m), name) == 0);
                float *logits = run(m, NULL, 2, N);
                double d = difference(logits, expected, N * spec.vocab_size);
                CHECK_THAT(d < (k ? tolerance(&spec) : 2e-5), "%s, %s, %s: logits are %g off", tiny_kind(i),
                           causal ? "causal" : "not causal", name, d);
                /* the same but for the order of sums, which now and then decides how a number is rounded */
                d = k ? difference(logits, plain_c, N * spec.vocab_size) : 0;
                CHECK_THAT(d < tolerance(&spec) / 2, "%s, %s: logits are %g from plain C's", tiny_kind(i),
                           name, d);
                free(logits);
                nano_model_close(m);
            }
            free(plain_c);
        }
        free(expected);
        free(f.bytes);
        tiny_free(w);
    }
}

/* Kinds with matrices that have a place where they lie, and some that have none. */
static void packed_in_place(void) {
    TEST("model: bytes that may be overwritten give the same logits, and take less memory");
    for (unsigned i = 0; tiny_kind(i); i++)
        for (size_t k = 0; kernels_at(k); k++) {
            tiny_spec spec = tiny_spec_of(tiny_kind(i));
            if (strcmp(tiny_kind(i), "gguf-llama") == 0) { /* rows of whole blocks, for any table */
                spec.n_embd = 96;
                spec.n_head = 8;
                spec.n_kv_head = 4;
                spec.n_hidden = 160;
            }
            tiny_weights *w = tiny_make(&spec);
            tiny_file f = tiny_write(w);
            tiny_free(w);
            size_t bytes = N * spec.vocab_size * sizeof(float);
            nano_model *kept = open_with(&f, false, kernels_at(k)->name), *m;
            float *logits = run(kept, NULL, 1, N);
            nano_model_params params = {.kernels = kernels_at(k)->name, .overwrite = true};
            CHECK(nano_model_open_memory(&m, f.bytes, f.size, &params) == NANO_OK);
            if (!m || !kept) continue;
            float *again = run(m, NULL, 3, N);
            CHECK_THAT(memcmp(logits, again, bytes) == 0, "%s, %s: other logits", tiny_kind(i),
                       params.kernels);
            uint64_t more = nano_model_packed_bytes(m), before = nano_model_packed_bytes(kept);
            bool fits = strcmp(tiny_kind(i), "gguf-llama") == 0;
            CHECK_THAT(fits ? more < before / 2 : more <= before, "%s, %s: %llu bytes more, %llu without",
                       tiny_kind(i), params.kernels, (unsigned long long)more, (unsigned long long)before);
            free(logits);
            free(again);
            nano_model_close(m);
            nano_model_close(kept);
            free(f.bytes);
        }
}

static void unchanging(void) {
    TEST("model: threads and pieces change nothing, to the bit");
    const char *kinds[] = {"f32", "q80", "q4k", "qwen3", "gguf-mixed", "gguf-fives"};
    for (int i = 0; i < 6 * 2; i++) {
        tiny_file f = tiny_kind_file(kinds[i / 2]);
        nano_model *m = open_with(&f, false, i % 2 ? "exact" : NULL);
        size_t bytes = N * sizeof(float) * nano_model_config(m)->vocab_size;
        float *first = run(m, NULL, 1, N);
        for (uint32_t threads = 1; threads <= 5; threads++)
            for (size_t pieces = 1; pieces < N; pieces += 6) {
                float *again = run(m, NULL, threads, pieces);
                CHECK_THAT(memcmp(first, again, bytes) == 0, "%s, %s: %u threads, pieces of %zu",
                           kinds[i / 2], nano_model_kernels(m), threads, pieces);
                free(again);
            }
        free(first);
        nano_model_close(m);
        free(f.bytes);
    }
}

/* Adapters of GGUF on bases of GGUF's types, put on, changed and taken off within one session. */
static void switching(void) {
    TEST("model: adapters go on, change and come off a quantised GGUF model within a session");
    static const nano_quant types[] = {NANO_GGUF_Q4_0, NANO_GGUF_Q8_0};
    for (unsigned i = 0; i < 2; i++) {
        tiny_spec spec = tiny_spec_of("gguf-mixed"); /* its rows are whole blocks */
        spec.quant = spec.ffn_type = spec.embedding_type = types[i];
        size_t v = spec.vocab_size, bytes = N * v * sizeof(float);
        tiny_weights *w[3];
        tiny_file f = {0}, lora[3] = {{0}};
        nano_adapter *on[3] = {NULL};
        double *expected[3];
        for (unsigned j = 0; j < 3; j++) { /* 0: none; 1, 2: merged into weights of its own */
            w[j] = tiny_make(&spec);
            free(f.bytes);
            f = tiny_write(w[j]);
            if (j) lora[j] = tiny_write_gguf_lora(w[j], NULL, 2, 10 + j);
            if (j) CHECK(nano_adapter_open_memory(&on[j], lora[j].bytes, lora[j].size) == NANO_OK);
            expected[j] = malloc(N * v * sizeof **expected);
            tiny_forward(w[j], true, PROMPT, N, expected[j]);
        }
        for (size_t k = 0; k == 0 || kernels_at(k - 1); k++) {
            const char *name = k ? kernels_at(k - 1)->name : "exact";
            nano_model *m = open_with(&f, false, name);
            nano_session_params params = {.context = N, .threads = THREADS(2)};
            nano_session *s;
            CHECK(nano_session_open(&s, m, &params) == NANO_OK);
            static const unsigned order[] = {0, 1, 2, 0, 2, 1, 0};
            float *first[3] = {NULL};
            for (unsigned j = 0; j < sizeof order / sizeof *order; j++) {
                unsigned which = order[j];
                float *logits = malloc(bytes);
                CHECK(nano_session_set_adapter(s, on[which]) == NANO_OK);
                nano_session_reset(s);
                CHECK(nano_session_eval(s, PROMPT, N, logits) == NANO_OK);
                double d = difference(logits, expected[which], N * v);
                CHECK_THAT(d < (k ? tolerance(&spec) : 2e-5), "%s, %s, adapter %u: logits are %g off",
                           nano_quant_name(types[i]), name, which, d);
                CHECK(which == 0 || difference(logits, expected[0], N * v) > 0.1);
                if (first[which])
                    CHECK_THAT(memcmp(first[which], logits, bytes) == 0, "%s: adapter %u again", name, which);
                else
                    first[which] = logits;
                if (first[which] != logits) free(logits);
            }
            for (unsigned j = 0; j < 3; j++) free(first[j]);
            nano_session_close(s);
            nano_model_close(m);
        }
        for (unsigned j = 0; j < 3; j++) {
            nano_adapter_close(on[j]);
            free(lora[j].bytes);
            free(expected[j]);
            tiny_free(w[j]);
        }
        free(f.bytes);
    }
}

static void adapters(void) {
    TEST("model: an adapter does what merged weights do, also on quantised bases");
    const char *kinds[] = {"f32", "q80", "q4k", "2024"};
    for (int i = 0; i < 4; i++) {
        tiny_spec spec = tiny_spec_of(kinds[i]);
        tiny_weights *w = tiny_make(&spec);
        tiny_file f = tiny_write(w), lora = tiny_write_lora(&spec, 5, 8, 7, w);
        double *expected = malloc(N * spec.vocab_size * sizeof *expected);
        tiny_forward(w, true, PROMPT, N, expected);
        nano_adapter *a;
        CHECK(nano_adapter_open_memory(&a, lora.bytes, lora.size) == NANO_OK);
        for (size_t k = 0; k == 0 || kernels_at(k - 1); k++) {
            const char *name = k ? kernels_at(k - 1)->name : "exact";
            nano_model *m = open_with(&f, false, name);
            float *with = run(m, a, 2, 8), *without = run(m, NULL, 2, 8);
            double d = difference(with, expected, N * spec.vocab_size);
            CHECK_THAT(d < (k ? tolerance(&spec) : 2e-5), "%s, %s: logits are %g off", kinds[i], name, d);
            CHECK(difference(without, expected, N * spec.vocab_size) > 0.1);
            free(with);
            free(without);
            nano_model_close(m);
        }
        nano_adapter_close(a);
        free(expected);
        free(f.bytes);
        free(lora.bytes);
        tiny_free(w);
    }

    switching();
    TEST("model: an adapter for another model is refused, naming what differs");
    tiny_spec other = tiny_spec_of("f32");
    other.n_layer = 3;
    tiny_file lora = tiny_write_lora(&other, 2, 2, 1, NULL), f = tiny_kind_file("f32");
    nano_model *m = open_file(&f, false);
    nano_adapter *a;
    nano_session *s;
    CHECK(nano_adapter_open_memory(&a, lora.bytes, lora.size) == NANO_OK);
    CHECK(nano_session_open(&s, m, NULL) == NANO_OK);
    CHECK(nano_session_set_adapter(s, a) == NANO_ERR_MISMATCH);
    CHECK(strstr(nano_last_error(), "its n_layer is 3, the model's is 2") != NULL);
    nano_session_close(s);
    nano_adapter_close(a);
    nano_model_close(m);
    free(lora.bytes);
    free(f.bytes);
}

static void sessions(void) {
    tiny_file f = tiny_kind_file("f32");
    nano_model *m = open_file(&f, false), *open_all = open_file(&f, true);
    nano_session *s;
    uint32_t id, ids[64] = {1};

    TEST("session: limits are errors, and leave the session as it was");
    nano_session_params params = {.context = 65};
    CHECK(nano_session_open(&s, m, &params) == NANO_ERR_ARGUMENT && !s);
    params = (nano_session_params){.context = 4, .threads = 1};
    CHECK(nano_session_open(&s, m, &params) == NANO_OK);
    CHECK(nano_session_sample(s, &id) == NANO_ERR_ARGUMENT && nano_session_logits(s) == NULL);
    CHECK(nano_session_eval(s, ids, 0, NULL) == NANO_ERR_ARGUMENT);
    CHECK(nano_session_eval(s, ids, 5, NULL) == NANO_ERR_CONTEXT);
    CHECK(nano_session_eval(s, (uint32_t[]){1, 300}, 2, NULL) == NANO_ERR_ARGUMENT &&
          nano_session_length(s) == 0);
    CHECK(nano_session_eval(s, ids, 4, NULL) == NANO_OK && nano_session_length(s) == 4);
    CHECK(nano_session_eval(s, ids, 1, NULL) == NANO_ERR_CONTEXT);
    CHECK(nano_session_sample(s, &id) == NANO_OK && id < 300);

    TEST("session: after a reset it is as new");
    float first[300];
    memcpy(first, nano_session_logits(s), sizeof first);
    nano_session_reset(s);
    CHECK(nano_session_length(s) == 0 && nano_session_eval(s, ids, 4, NULL) == NANO_OK);
    CHECK(memcmp(first, nano_session_logits(s), sizeof first) == 0);
    nano_session_close(s);

    TEST("session: a non-causal model takes one input at a time");
    CHECK(nano_session_open(&s, open_all, NULL) == NANO_OK);
    CHECK(nano_session_eval(s, PROMPT, N, NULL) == NANO_OK);
    CHECK(nano_session_eval(s, PROMPT, 1, NULL) == NANO_ERR_ARGUMENT);
    nano_session_reset(s);
    CHECK(nano_session_eval(s, PROMPT, N, NULL) == NANO_OK);
    nano_session_close(s);

    TEST("session: one seed gives one text, with any number of threads");
    uint32_t texts[2][20];
    for (uint32_t threads = 1; threads <= 2; threads++) {
        params = (nano_session_params){.threads = THREADS(threads)};
        nano_sampler_params sampling = nano_sampler_default_params();
        sampling.seed = 1234;
        CHECK(nano_session_open(&s, m, &params) == NANO_OK &&
              nano_session_set_sampler(s, &sampling) == NANO_OK);
        CHECK(nano_session_threads(s) == THREADS(threads) && nano_session_context(s) == 64);
        CHECK(nano_session_eval(s, PROMPT, 5, NULL) == NANO_OK);
        for (int i = 0; i < 20; i++) {
            CHECK(nano_session_sample(s, &texts[threads - 1][i]) == NANO_OK);
            CHECK(nano_session_eval(s, &texts[threads - 1][i], 1, NULL) == NANO_OK);
        }
        nano_session_close(s);
    }
    CHECK(memcmp(texts[0], texts[1], sizeof texts[0]) == 0);
    nano_model_close(m);
    nano_model_close(open_all);
    free(f.bytes);
}

void test_model(void) {
    against_plain();
    packed_in_place();
    unchanging();
    adapters();
    sessions();
}
