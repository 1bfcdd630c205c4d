/* fuzz_use.c: what fuzzers do with bytes that claim to be a model or an adapter. */
#include "fuzz_use.h"

#include "nano.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

fuzz_counts fuzz_seen;
nano_model *fuzz_base;

static void use_model(nano_model *m) {
    static const char text[] = "the <|eos|> \xE4\xBD\xA0\xE5\xA5\xBD\xFF abcd";
    uint32_t *ids, last;
    size_t n;
    if (nano_tokenize(m, text, sizeof text - 1, fuzz_seen.opened & 1, &ids, &n) != NANO_OK) {
        n = 0; /* a file without a vocabulary */
    } else {
        nano_stream stream = {0};
        for (size_t i = 0; i < n; i++) {
            size_t n_bytes;
            const char *bytes = nano_token_bytes(m, ids[i], &n_bytes);
            char *out = malloc(NANO_STREAM_ROOM(n_bytes));
            nano_stream_push(&stream, bytes, n_bytes, out);
            free(out);
        }
    }
    nano_session_params params = {.context = 0, .threads = 1};
    params.context = nano_model_config(m)->block_size < 8 ? nano_model_config(m)->block_size : 8;
    nano_session *s;
    if (nano_session_open(&s, m, &params) == NANO_OK) {
        const uint32_t first = 0;
        fuzz_seen.evaluated += nano_session_eval(s, n ? ids : &first,
                                                 !n                   ? 1
                                                 : n < params.context ? n
                                                                      : params.context,
                                                 NULL) == NANO_OK;
        if (nano_session_sample(s, &last) == NANO_OK) nano_session_eval(s, &last, 1, NULL);
        nano_session_close(s);
    }
    nano_free(ids);
    if (nano_chat_turn(m, fuzz_seen.opened & 2 ? "be brief" : NULL, text, sizeof text - 1,
                       fuzz_seen.opened & 1, &ids, &n) == NANO_OK)
        nano_free(ids);
    nano_meta meta;
    nano_tensor tensor;
    uint64_t sum = 0; /* every key and its items are looked at */
    for (uint32_t i = 0; nano_model_meta(m, i, &meta); i++) {
        sum += meta.key_length ? (unsigned char)meta.key[0] : 0;
        for (uint64_t item = 0; item < 3 && nano_model_meta_item(m, i, item, &meta); item++)
            sum += meta.text_length ? (unsigned char)meta.text[meta.text_length - 1] : meta.whole;
    }
    for (uint32_t i = 0; nano_model_tensor(m, i, &tensor); i++) sum += tensor.n_bytes;
    fuzz_seen.looked += sum != 0;
}

static void use_adapter(nano_adapter *a) {
    nano_session_params params = {.context = 8, .threads = 1};
    nano_session *s;
    if (!fuzz_base || nano_session_open(&s, fuzz_base, &params)) return;
    if (nano_session_set_adapter(s, a) == NANO_OK)
        fuzz_seen.evaluated += nano_session_eval(s, (uint32_t[]){1, 2, 3}, 3, NULL) == 0;
    nano_session_close(s);
}

/* In memory of exactly this size, so that a sanitizer sees a read past its end. */
void fuzz_try(const uint8_t *bytes, size_t n) {
    uint8_t *copy = malloc(n ? n : 1);
    nano_model_params params = {.non_causal = fuzz_seen.tried & 1};
    nano_model *m;
    nano_adapter *a;
    memcpy(copy, bytes, n);
    fuzz_seen.tried++;
    if (nano_model_open_memory(&m, copy, n, &params) == NANO_OK) {
        fuzz_seen.opened++;
        use_model(m);
        nano_model_close(m);
    } else if (!nano_last_error()[0]) {
        fprintf(stderr, "refused without a word\n");
        abort();
    }
    if (nano_adapter_open_memory(&a, copy, n) == NANO_OK) {
        fuzz_seen.opened++;
        use_adapter(a);
        nano_adapter_close(a);
    }
    free(copy);
}
