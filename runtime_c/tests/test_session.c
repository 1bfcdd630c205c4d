/* test_session.c: rewinding, drafts, and session files: a text is the same whatever way it came about. */
#include "bytes.h"
#include "fingerprint.h"
#include "session.h"
#include "test.h"
#include "tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { CONTEXT = 40, VOCAB = 300 };

/* A text that repeats itself, so that there is something to guess. */
static const uint32_t PROMPT[] = {5, 9, 77, 118, 3, 5, 9, 77, 118, 42, 5, 9, 77};
enum { N_PROMPT = sizeof PROMPT / sizeof *PROMPT };

static nano_model *open_kind(const char *kind, tiny_file *f) {
    nano_model *m = NULL;
    *f = tiny_kind_file(kind);
    CHECK_THAT(nano_model_open_memory(&m, f->bytes, f->size, NULL) == NANO_OK, "%s", nano_last_error());
    return m;
}

static nano_session *open_session(const nano_model *m, nano_draft draft, nano_cache cache,
                                  const nano_sampler_params *sampling) {
    nano_session_params params = {.context = CONTEXT, .threads = 1, .draft = draft, .cache = cache};
    nano_session *s = NULL;
    CHECK_THAT(nano_session_open(&s, m, &params) == NANO_OK, "%s", nano_last_error());
    if (sampling) CHECK(nano_session_set_sampler(s, sampling) == NANO_OK);
    return s;
}

/* A penalty below 1 makes a text repeat itself. */
static const nano_sampler_params SETTINGS[] = {
    {.repetition_penalty = 1, .temperature = 0, .seed = 1},
    {.repetition_penalty = 1.2, .temperature = 0, .seed = 1},
    {.repetition_penalty = 0.8, .temperature = 0, .seed = 1},
    {.repetition_penalty = 0.7, .temperature = 0.5, .top_k = 5, .seed = 7},
    {.repetition_penalty = 1.2, .temperature = 1, .top_k = 40, .top_p = 0.9, .seed = 8},
    {.repetition_penalty = 0.5, .temperature = 0.9, .seed = 9},
};
enum { N_SETTINGS = sizeof SETTINGS / sizeof *SETTINGS };

/* n tokens, or up to and with the one that ends the text, by sample and eval in turn. */
static size_t go_on_plainly(nano_session *s, size_t n, uint32_t *out) {
    size_t made = 0;
    while (made < n) {
        CHECK(nano_session_sample(s, &out[made]) == NANO_OK);
        if (nano_token_is_stop(s->model, out[made++])) break;
        CHECK(nano_session_eval(s, &out[made - 1], 1, NULL) == NANO_OK);
    }
    return made;
}

static size_t go_on(nano_session *s, size_t n, size_t most, uint32_t *out) {
    size_t made = 0;
    while (made < n) {
        size_t got, wanted = n - made < most ? n - made : most;
        nano_status status = nano_session_generate(s, out + made, wanted, &got);
        CHECK_THAT(status == NANO_OK, "%s", nano_last_error());
        CHECK(got >= 1 && got <= wanted);
        if (status || !got) break;
        made += got;
        if (nano_token_is_stop(s->model, out[made - 1])) break;
    }
    return made;
}

static bool same_state(const nano_session *a, const nano_session *b) {
    if (a->length != b->length || a->distinct.n != b->distinct.n) return false;
    if (a->sampler.state != b->sampler.state || a->logits_ready != b->logits_ready) return false;
    if (memcmp(a->ids, b->ids, a->length * sizeof *a->ids) != 0) return false;
    if (memcmp(a->distinct.ids, b->distinct.ids, a->distinct.n * sizeof *a->ids) != 0) return false;
    return memcmp(a->seen, b->seen, VOCAB) == 0 &&
           (!a->logits_ready || memcmp(a->logits, b->logits, VOCAB * sizeof *a->logits) == 0);
}

static void drafts(void) {
    TEST("session: guessing changes no token, no logit and no random number, whatever the settings");
    static const char *const kinds[] = {"f32", "q80", "gguf-qwen3"};
    uint64_t drafted = 0, accepted = 0;
    for (int k = 0; k < 3; k++) {
        tiny_file f;
        nano_model *m = open_kind(kinds[k], &f);
        for (unsigned i = 0; i < N_SETTINGS; i++)
            for (int mode = NANO_DRAFT_AUTO; mode <= NANO_DRAFT_ALWAYS; mode++)
                for (size_t most = 1; most <= 46; most = 3 * most + 1) {
                    nano_session *plain = open_session(m, NANO_DRAFT_OFF, NANO_CACHE_AUTO, &SETTINGS[i]);
                    nano_session *s = open_session(m, (nano_draft)mode, NANO_CACHE_AUTO, &SETTINGS[i]);
                    uint32_t a[CONTEXT], b[CONTEXT];
                    CHECK(nano_session_eval(plain, PROMPT, N_PROMPT, NULL) == NANO_OK);
                    CHECK(nano_session_eval(s, PROMPT, N_PROMPT, NULL) == NANO_OK);
                    size_t n = go_on_plainly(plain, CONTEXT - N_PROMPT, a),
                           got = go_on(s, CONTEXT - N_PROMPT, most, b);
                    CHECK_THAT(n == got && memcmp(a, b, n * sizeof *a) == 0,
                               "%s, settings %u, mode %d, %zu at once: another text", kinds[k], i, mode,
                               most);
                    CHECK(same_state(plain, s));
                    nano_session_stats stats = nano_session_get_stats(s);
                    bool ended = n && nano_token_is_stop(m, a[n - 1]);
                    CHECK(stats.generated == n - ended && stats.evals + stats.accepted == stats.generated);
                    if (mode == NANO_DRAFT_OFF) CHECK(stats.drafted == 0);
                    if (mode == NANO_DRAFT_ALWAYS) drafted += stats.drafted, accepted += stats.accepted;
                    nano_session_close(plain);
                    nano_session_close(s);
                }
        nano_model_close(m);
        free(f.bytes);
    }
    CHECK_THAT(accepted > 500 && drafted > accepted, "%llu of %llu guesses came true",
               (unsigned long long)accepted, (unsigned long long)drafted);

    TEST("session: generate says why not");
    tiny_file f;
    nano_model *m = open_kind("f32", &f);
    nano_session *s = open_session(m, NANO_DRAFT_AUTO, NANO_CACHE_AUTO, NULL);
    uint32_t ids[CONTEXT];
    size_t n = 9;
    CHECK(nano_session_generate(s, ids, 4, &n) == NANO_ERR_ARGUMENT && n == 0);
    CHECK(nano_session_eval(s, PROMPT, 1, NULL) == NANO_OK);
    CHECK(nano_session_generate(s, ids, 0, &n) == NANO_ERR_ARGUMENT);
    for (uint32_t i = 1; i < CONTEXT; i++) CHECK(nano_session_eval(s, PROMPT, 1, NULL) == NANO_OK);
    CHECK(nano_session_generate(s, ids, 4, &n) == NANO_ERR_CONTEXT && n == 0);
    nano_session_close(s);
    nano_model_close(m);
    free(f.bytes);
}

static void rewinding(void) {
    static const char *const kinds[] = {"f32", "q80", "gguf-learned"};
    for (int k = 0; k < 3; k++) {
        TEST("session: after a rewind it is as if the rest had never been");
        tiny_file f;
        nano_model *m = open_kind(kinds[k], &f);
        if (!nano_model_config(m)->causal) {
            nano_session *s = open_session(m, NANO_DRAFT_AUTO, NANO_CACHE_AUTO, NULL);
            uint32_t kept;
            CHECK(nano_session_eval(s, PROMPT, N_PROMPT, NULL) == NANO_OK);
            CHECK(nano_session_rewind(s, 4) == NANO_ERR_ARGUMENT && nano_session_length(s) == N_PROMPT);
            CHECK(nano_session_keep(s, PROMPT, 4, &kept) == NANO_OK && kept == 0);
            CHECK(nano_session_eval(s, PROMPT, N_PROMPT, NULL) == NANO_OK);
            CHECK(nano_session_rewind(s, 0) == NANO_OK && nano_session_length(s) == 0);
            nano_session_close(s);
        } else {
            for (unsigned i = 0; i < N_SETTINGS; i++)
                for (uint32_t n = 1; n <= N_PROMPT; n += 3) {
                    nano_session *fresh = open_session(m, NANO_DRAFT_OFF, NANO_CACHE_AUTO, &SETTINGS[i]);
                    nano_session *s = open_session(m, NANO_DRAFT_ALWAYS, NANO_CACHE_AUTO, &SETTINGS[i]);
                    uint32_t a[CONTEXT], b[CONTEXT];
                    CHECK(nano_session_eval(fresh, PROMPT, n, NULL) == NANO_OK);
                    CHECK(nano_session_eval(s, PROMPT, N_PROMPT, NULL) == NANO_OK);
                    go_on(s, 9, 9, b);
                    bool cuts = nano_session_length(s) > n;
                    CHECK(nano_session_set_sampler(s, &SETTINGS[i]) == NANO_OK);
                    CHECK(nano_session_rewind(s, n) == NANO_OK && nano_session_length(s) == n);
                    CHECK((nano_session_logits(s) == NULL) == cuts);
                    CHECK(session_need_logits(s) == NANO_OK && same_state(fresh, s));
                    size_t made = go_on_plainly(fresh, 20, a);
                    CHECK(go_on(s, 20, 20, b) == made && memcmp(a, b, made * sizeof *a) == 0);
                    nano_session_close(fresh);
                    nano_session_close(s);
                }
        }
        nano_model_close(m);
        free(f.bytes);
    }

    TEST("session: tokens of the last batch give their random numbers back");
    tiny_file f;
    nano_model *m = open_kind("f32", &f);
    unsigned batches = 0;
    for (unsigned i = 0; i < N_SETTINGS; i++)
        for (uint32_t back = 1; back <= DRAFT_BATCH; back++) {
            nano_session *plain = open_session(m, NANO_DRAFT_OFF, NANO_CACHE_AUTO, &SETTINGS[i]);
            nano_session *s = open_session(m, NANO_DRAFT_ALWAYS, NANO_CACHE_AUTO, &SETTINGS[i]);
            uint32_t a[CONTEXT], b[CONTEXT];
            size_t made = 0, got = 0;
            CHECK(nano_session_eval(plain, PROMPT, N_PROMPT, NULL) == NANO_OK);
            CHECK(nano_session_eval(s, PROMPT, N_PROMPT, NULL) == NANO_OK);
            size_t n = go_on_plainly(plain, CONTEXT - N_PROMPT, a);
            while (made < n) {
                CHECK(nano_session_generate(s, b + made, n - made, &got) == NANO_OK);
                made += got;
                if (got <= back) continue;
                batches++;
                made -= back;
                CHECK(nano_session_rewind(s, (uint32_t)(N_PROMPT + made)) == NANO_OK);
                made += go_on_plainly(s, back, b + made); /* or else it would go round in circles */
            }
            CHECK(made == n && memcmp(a, b, n * sizeof *a) == 0 && same_state(plain, s));
            nano_session_close(plain);
            nano_session_close(s);
        }
    CHECK_THAT(batches > 10, "%u batches were rewound", batches);

    TEST("session: the common beginning of two texts is kept");
    nano_session *s = open_session(m, NANO_DRAFT_AUTO, NANO_CACHE_AUTO, NULL);
    uint32_t kept = 99, other[N_PROMPT + 2];
    memcpy(other, PROMPT, sizeof PROMPT);
    CHECK(nano_session_keep(s, PROMPT, N_PROMPT, &kept) == NANO_OK && kept == 0);
    CHECK(nano_session_eval(s, PROMPT, N_PROMPT, NULL) == NANO_OK);
    CHECK(nano_session_keep(s, other, N_PROMPT + 2, &kept) == NANO_OK && kept == N_PROMPT);
    CHECK(nano_session_logits(s) != NULL); /* nothing was dropped */
    other[7] ^= 1;
    CHECK(nano_session_keep(s, other, N_PROMPT, &kept) == NANO_OK && kept == 7 &&
          nano_session_length(s) == 7);
    CHECK(nano_session_keep(s, other, 3, &kept) == NANO_OK && kept == 3);
    CHECK(memcmp(nano_session_tokens(s), PROMPT, 3 * sizeof *PROMPT) == 0);
    CHECK(nano_session_keep(s, NULL, 0, &kept) == NANO_OK && kept == 0 && nano_session_length(s) == 0);
    nano_session_close(s);
    nano_model_close(m);
    free(f.bytes);
}

/* ---- files -----------------------------------------------------------------------------------------------
 */

static const char *path_of_test(void) {
    static char path[64];
    snprintf(path, sizeof path, "/tmp/nano-test-session-%ld", (long)getpid());
    return path;
}

static uint8_t *read_whole(const char *path, size_t *size) {
    FILE *in = fopen(path, "rb");
    CHECK(in != NULL);
    if (!in) return NULL;
    fseek(in, 0, SEEK_END);
    *size = (size_t)ftell(in);
    rewind(in);
    uint8_t *bytes = malloc(*size);
    CHECK(fread(bytes, 1, *size, in) == *size);
    fclose(in);
    return bytes;
}

static nano_session *with_text(const nano_model *m, nano_draft draft, nano_cache cache, unsigned settings) {
    nano_session *s = open_session(m, draft, cache, &SETTINGS[settings]);
    CHECK(nano_session_eval(s, PROMPT, N_PROMPT, NULL) == NANO_OK);
    return s;
}

/* n tokens, then a file, then the rest in another process, as it were. */
static void interrupt(const char *kind, nano_cache cache, unsigned settings, size_t n) {
    enum { ALL = CONTEXT - N_PROMPT };
    const char *path = path_of_test();
    uint32_t a[ALL], b[ALL], n_tokens = 0;
    tiny_file f;
    nano_model *m = open_kind(kind, &f);
    nano_session *s = with_text(m, NANO_DRAFT_OFF, cache, settings);
    size_t all = go_on_plainly(s, ALL, a);
    nano_session_close(s);

    s = with_text(m, NANO_DRAFT_ALWAYS, cache, settings);
    size_t made = go_on(s, n < all ? n : all, n, b);
    uint32_t length = s->length;
    CHECK_THAT(nano_session_save_file(s, path) == NANO_OK, "%s", nano_last_error());
    CHECK(nano_probe_session_file(path, &n_tokens) == NANO_OK && n_tokens == length);
    nano_session_close(s);
    nano_model_close(m);
    free(f.bytes);

    m = open_kind(kind, &f);
    s = open_session(m, NANO_DRAFT_ALWAYS, cache, NULL);
    CHECK(nano_session_eval(s, PROMPT + 3, 5, NULL) == NANO_OK); /* which is replaced */
    CHECK_THAT(nano_session_load_file(s, path) == NANO_OK, "%s", nano_last_error());
    CHECK(s->length == length && nano_session_logits(s) == NULL);
    if (made < all) made += go_on(s, all - made, all, b + made);
    CHECK_THAT(made == all && memcmp(a, b, all * sizeof *a) == 0, "%s, settings %u, after %zu: another text",
               kind, settings, n);
    nano_session_close(s);
    nano_model_close(m);
    free(f.bytes);
    unlink(path);
}

static void saving(void) {
    TEST("session file: it goes on as if it had never been interrupted");
    for (unsigned i = 0; i < N_SETTINGS; i++)
        for (size_t n = 1; n < 27; n += 6) { /* also across the cache's blocks */
            interrupt("f32", NANO_CACHE_AUTO, i, n);
            interrupt("f32", NANO_CACHE_F16, i, n);
            interrupt("gguf-qwen3", NANO_CACHE_F16, i, n);
            interrupt("q80", NANO_CACHE_F32, i, n);
            interrupt("q4k", NANO_CACHE_AUTO, i, n);
        }

    TEST("session file: one without tokens");
    tiny_file f;
    nano_model *m = open_kind("f32", &f);
    nano_session *s = open_session(m, NANO_DRAFT_AUTO, NANO_CACHE_AUTO, &SETTINGS[5]);
    const char *path = path_of_test();
    CHECK(nano_session_save_file(s, path) == NANO_OK);
    CHECK(nano_session_set_sampler(s, &SETTINGS[0]) == NANO_OK && nano_session_load_file(s, path) == NANO_OK);
    nano_sampler_params back = nano_session_sampler(s);
    CHECK(nano_session_length(s) == 0 && back.seed == 9 && back.temperature == 0.9 &&
          back.repetition_penalty == 0.5);
    nano_session_close(s);
    unlink(path);

    TEST("session file: nothing is left of one that cannot be written");
    s = with_text(m, NANO_DRAFT_AUTO, NANO_CACHE_AUTO, 0);
    CHECK(nano_session_save_file(s, "/no/such/folder/file") == NANO_ERR_FILE);
    CHECK(strstr(nano_last_error(), "cannot write /no/such/folder/file: there is no such folder") != NULL);
    CHECK(nano_session_save_file(s, "/tmp") == NANO_ERR_FILE); /* a folder has this name */
    nano_session_close(s);
    nano_model_close(m);
    free(f.bytes);
}

/* Refused with this status and text, and the session goes on as before. */
static void refused(nano_session *s, const char *path, nano_status status, const char *text) {
    uint32_t length = nano_session_length(s);
    uint64_t state = s->sampler.state;
    nano_status got = nano_session_load_file(s, path);
    CHECK_THAT(got == status && strstr(nano_last_error(), text), "%d: %s", (int)got, nano_last_error());
    CHECK(nano_session_length(s) == length && s->sampler.state == state);
}

static void belonging(void) {
    TEST("session file: it belongs to one model, one adapter and one kind of cache");
    const char *path = path_of_test();
    tiny_file f, g, lora, other_lora;
    tiny_spec spec = tiny_spec_of("f32");
    nano_model *m = open_kind("f32", &f), *other, *quantised = open_kind("q80", &g);
    lora = tiny_write_lora(&spec, 4, 8, 7, NULL);
    other_lora = tiny_write_lora(&spec, 4, 8, 8, NULL);
    nano_adapter *a, *b;
    CHECK(nano_adapter_open_memory(&a, lora.bytes, lora.size) == NANO_OK);
    CHECK(nano_adapter_open_memory(&b, other_lora.bytes, other_lora.size) == NANO_OK);

    nano_session *s = with_text(m, NANO_DRAFT_AUTO, NANO_CACHE_AUTO, 0);
    CHECK(nano_session_save_file(s, path) == NANO_OK);
    CHECK(nano_session_set_adapter(s, a) == NANO_OK);
    refused(s, path, NANO_ERR_MISMATCH, "computed without an adapter");
    nano_session_close(s);
    s = with_text(m, NANO_DRAFT_AUTO, NANO_CACHE_F16, 0);
    refused(s, path, NANO_ERR_MISMATCH, "keys and values are f32, not f16");
    nano_session_close(s);
    s = with_text(quantised, NANO_DRAFT_AUTO, NANO_CACHE_F32, 0);
    refused(s, path, NANO_ERR_MISMATCH, "belongs to another model");
    nano_session_close(s);
    nano_session_params small = {.context = N_PROMPT - 1, .threads = 1};
    CHECK(nano_session_open(&s, m, &small) == NANO_OK);
    refused(s, path, NANO_ERR_CONTEXT, "this session has 13 tokens, the context has room for 12");
    nano_session_close(s);

    /* one weight of the same model is another one */
    uint8_t *bytes = malloc(f.size);
    memcpy(bytes, f.bytes, f.size);
    bytes[f.size - 3] ^= 1;
    CHECK(nano_model_open_memory(&other, bytes, f.size, NULL) == NANO_OK);
    s = with_text(other, NANO_DRAFT_AUTO, NANO_CACHE_AUTO, 0);
    refused(s, path, NANO_ERR_MISMATCH, "belongs to another model");
    nano_session_close(s);
    nano_model_close(other);
    free(bytes);

    s = open_session(m, NANO_DRAFT_AUTO, NANO_CACHE_AUTO, &SETTINGS[0]);
    CHECK(nano_session_set_adapter(s, a) == NANO_OK && nano_session_eval(s, PROMPT, 5, NULL) == NANO_OK);
    CHECK(nano_session_save_file(s, path) == NANO_OK && nano_session_load_file(s, path) == NANO_OK);
    CHECK(nano_session_set_adapter(s, b) == NANO_OK);
    refused(s, path, NANO_ERR_MISMATCH, "with another adapter");
    CHECK(nano_session_set_adapter(s, NULL) == NANO_OK);
    refused(s, path, NANO_ERR_MISMATCH, "with an adapter, which must be given again");
    CHECK(nano_session_eval(s, PROMPT, 5, NULL) == NANO_OK); /* now they are of two kinds */
    CHECK(nano_session_save_file(s, path) == NANO_ERR_ARGUMENT);
    nano_session_reset(s);
    CHECK(nano_session_eval(s, PROMPT, 5, NULL) == NANO_OK && nano_session_save_file(s, path) == NANO_OK);
    nano_session_close(s);

    nano_adapter_close(a);
    nano_adapter_close(b);
    nano_model_close(m);
    nano_model_close(quantised);
    free(f.bytes);
    free(g.bytes);
    free(lora.bytes);
    free(other_lora.bytes);
    unlink(path);
}

/* Loads bytes that lie at the end of their memory, so that sanitizers see a step too far. */
static nano_status load(nano_session *s, const uint8_t *bytes, size_t size) {
    uint8_t *copy = malloc(size + !size);
    if (size) memcpy(copy, bytes, size);
    nano_status status = session_restore(s, copy, size, "fuzzed");
    free(copy);
    return status;
}

static void seal(uint8_t *bytes, size_t size) {
    fingerprint h;
    fingerprint_begin(&h);
    fingerprint_add(&h, bytes, size - 8);
    uint64_t sum = fingerprint_end(&h);
    memcpy(bytes + size - 8, &sum, 8);
}

static void damaging(void) {
    TEST("session file: cut at each byte, and with each bit turned, it is refused");
    const char *path = path_of_test();
    tiny_file f;
    nano_model *m = open_kind("f32", &f);
    nano_session *s = open_session(m, NANO_DRAFT_AUTO, NANO_CACHE_F16, &SETTINGS[3]);
    size_t size = 0;
    CHECK(nano_session_eval(s, PROMPT, 3, NULL) == NANO_OK && nano_session_save_file(s, path) == NANO_OK);
    uint8_t *bytes = read_whole(path, &size);
    unlink(path);
    unsigned wrong = 0;
    for (size_t n = 0; n < size; n++) wrong += load(s, bytes, n) != NANO_ERR_FORMAT;
    for (size_t i = 0; i < size; i++)
        for (int bit = 0; bit < 8; bit++) {
            bytes[i] ^= (uint8_t)(1 << bit);
            wrong += session_restore(s, bytes, size, "fuzzed") == NANO_OK;
            bytes[i] ^= (uint8_t)(1 << bit);
        }
    CHECK_THAT(wrong == 0, "%u of them were not", wrong);
    CHECK(load(s, bytes, size) == NANO_OK && nano_session_length(s) == 3);

    TEST("session file: numbers that are wrong under a right checksum are found, too");
    uint64_t random = 11;
    unsigned refusals = 0, loaded = 0;
    uint8_t *bent = malloc(size + 64);
    for (unsigned round = 0; round < 4000; round++) {
        size_t n = size, head = 104 + 12;
        memcpy(bent, bytes, size);
        memset(bent + size, 0, 64);
        for (unsigned i = 0; i <= tiny_random(&random) % 2; i++) {
            size_t at = tiny_random(&random) % (round % 4 ? head : size);
            static const uint8_t values[] = {0, 1, 0x7F, 0x80, 0xFF, 0xFE};
            bent[at] = tiny_random(&random) % 2 ? values[tiny_random(&random) % 6]
                                                : (uint8_t)(bent[at] ^ 1u << tiny_random(&random) % 8);
        }
        if (round % 8 == 0) n = 104 + tiny_random(&random) % (size - 40);
        seal(bent, n);
        nano_status status = load(s, bent, n);
        refusals += status != NANO_OK;
        loaded += status == NANO_OK;
        uint32_t ids[8];
        size_t got;
        if (status == NANO_OK) nano_session_generate(s, ids, 8, &got); /* whatever comes of it */
    }
    CHECK_THAT(refusals > 1000 && loaded > 100, "%u refused, %u loaded", refusals, loaded);
    for (size_t at = 104 + 12; at + 8 < size; at += 2 * 31) { /* a NaN among the keys and values */
        memcpy(bent, bytes, size);
        bent[at + 1] = 0x7E;
        seal(bent, size);
        CHECK(load(s, bent, size) == NANO_ERR_FORMAT);
    }
    memcpy(bent, bytes, size);
    bent[104 + 4 + 1] = 0x7F; /* an id */
    seal(bent, size);
    CHECK(load(s, bent, size) == NANO_ERR_FORMAT && strstr(nano_last_error(), "token 1 of the session"));
    free(bent);
    free(bytes);
    nano_session_close(s);
    nano_model_close(m);
    free(f.bytes);
}

void test_session(void) {
    drafts();
    rewinding();
    saving();
    belonging();
    damaging();
}
