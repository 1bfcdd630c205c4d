/* test_gguf.c: GGUF files: what is in them, what is refused and how; the weight types; adapters; chat forms.
 */
#include "gguf.h"
#include "kernels.h"
#include "model.h"
#include "test.h"
#include "tiny_gguf.h"
#include "weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the container ---------------------------------------------------------------------------------------
 */

static const float FOUR[4] = {1, 2, 3, 4};

/* Reads the file, gives it back; the message must hold `in_message` (NULL: it must be read). */
static void read_as(tiny_file f, const char *what, const char *in_message) {
    gguf g;
    nano_status status = gguf_read(&g, f.bytes, f.size);
    if (!in_message)
        CHECK_THAT(status == NANO_OK, "%s: %s", what, nano_last_error());
    else
        CHECK_THAT(status == NANO_ERR_FORMAT && strstr(nano_last_error(), in_message),
                   "%s: '%s' does not say '%s'", what, status ? nano_last_error() : "read", in_message);
    gguf_free(&g);
    free(f.bytes);
}

static tiny_gguf with_tensor(void) {
    tiny_gguf g = {.alignment = 32};
    tg_u32(&g, "a.number", 7);
    tg_tensor(&g, "weight", 0, 2, 2, FOUR, sizeof FOUR);
    return g;
}

static tiny_file bent(size_t at, const void *bytes, size_t n) {
    tiny_gguf g = with_tensor();
    tiny_file f = tg_finish(&g, 3);
    memcpy(f.bytes + at, bytes, n);
    return f;
}

static void container(void) {
    TEST("gguf: keys of all types and tensors are found by name");
    tiny_gguf w = {.alignment = 64};
    const char *texts[] = {"one", "", "three"};
    const int32_t numbers[] = {-1, 5};
    tg_u32(&w, "general.alignment", 64);
    tg_text(&w, "a.text", "hello");
    tg_float(&w, "a.float", 0.5f);
    tg_bool(&w, "a.bool", 1);
    tg_texts(&w, "some.texts", texts, 3);
    tg_i32s(&w, "some.numbers", numbers, 2);
    tg_raw(&w, "a.double", 12, &(double){0.25}, 8);
    tg_raw(&w, "a.byte", 0, "\x80", 1);
    tg_raw(&w, "a.long", 11, &(int64_t){-9}, 8);
    tg_tensor(&w, "first", 0, 2, 2, FOUR, sizeof FOUR);
    tg_tensor(&w, "second", 0, 0, 4, FOUR, sizeof FOUR);
    tiny_file f = tg_finish(&w, 2);
    gguf g;
    CHECK_THAT(gguf_read(&g, f.bytes, f.size) == NANO_OK, "%s", nano_last_error());
    CHECK(g.version == 2 && g.n_values == 9 && g.n_tensors == 2 && g.alignment == 64);
    uint32_t u = 9;
    double d = 9;
    bool b = false;
    text_span t = {0};
    const gguf_value *v;
    CHECK(gguf_get_u32(&g, "a.byte", &u) == NANO_OK && u == 128);
    CHECK(gguf_get_u32(&g, "not.there", &u) == NANO_OK && u == 128);
    CHECK(gguf_get_u32(&g, "a.long", &u) == NANO_ERR_FORMAT && strstr(nano_last_error(), "not between 0"));
    CHECK(gguf_get_u32(&g, "a.text", &u) == NANO_ERR_FORMAT && strstr(nano_last_error(), "is of type text"));
    CHECK(gguf_get_float(&g, "a.float", &d) == NANO_OK && d == 0.5);
    CHECK(gguf_get_float(&g, "a.double", &d) == NANO_OK && d == 0.25);
    CHECK(gguf_get_float(&g, "a.byte", &d) == NANO_ERR_FORMAT);
    CHECK(gguf_get_bool(&g, "a.bool", &b) == NANO_OK && b);
    CHECK(gguf_get_bool(&g, "a.float", &b) == NANO_ERR_FORMAT);
    CHECK(gguf_get_text(&g, "a.text", &t) == NANO_OK && span_is(t, "hello"));
    CHECK(gguf_get_text(&g, "some.texts", &t) == NANO_ERR_FORMAT &&
          strstr(nano_last_error(), "array of text"));
    CHECK(gguf_get_array(&g, "some.texts", GGUF_TEXT, &v) == NANO_OK && v && v->count == 3);
    CHECK(gguf_get_array(&g, "some.numbers", GGUF_TEXT, &v) == NANO_ERR_FORMAT && !v);
    CHECK(gguf_get_array(&g, "not.there", GGUF_TEXT, &v) == NANO_OK && !v);
    const gguf_tensor *second = gguf_find_tensor(&g, "second");
    CHECK(second && second->dims[0] == 4 && second->n_dims == 1 && memcmp(second->data, FOUR, 16) == 0);
    CHECK(second && (second->data - f.bytes) % 64 == 0 && !gguf_find_tensor(&g, "third"));
    gguf_free(&g);
    free(f.bytes);

    TEST("gguf: bent headers, keys and tensors are refused by name");
    const uint64_t huge = 1ull << 60, four[] = {4, 4, 4, 4, 4}, zero[] = {0, 4},
                   wrap[] = {1ull << 32, 1ull << 32, 4};
    read_as(bent(0, "GGUX", 4), "magic", "not a GGUF file");
    read_as(bent(4, &(uint32_t){1}, 4), "version", "GGUF version 1 is unknown; known: 2 and 3");
    read_as(bent(4, &(uint32_t){3u << 24}, 4), "big-endian", "big-endian");
    read_as(bent(8, &huge, 8), "tensors", "1152921504606846976 tensors and 1 keys cannot be in a file");
    read_as(bent(16, &huge, 8), "keys", "1 tensors and 1152921504606846976 keys cannot be in a file");
    read_as(bent(8, &(uint64_t){2}, 8), "one tensor more", "");
    read_as(bent(24, &huge, 8), "key's length", "ends too early or is damaged: in key 1 of 1");
    tiny_gguf bad = with_tensor();
    tg_u32(&bad, "a.number", 7);
    read_as(tg_finish(&bad, 3), "key twice", "key a.number is there twice");
    bad = with_tensor();
    tg_tensor(&bad, "weight", 0, 2, 2, FOUR, sizeof FOUR);
    read_as(tg_finish(&bad, 3), "tensor twice", "tensor weight is there twice");
    bad = with_tensor();
    tg_raw(&bad, "b", 13, "", 1);
    read_as(tg_finish(&bad, 3), "type", "key b: type 13 is unknown");
    bad = with_tensor();
    tg_raw(&bad, "b", 9, "\x09\0\0\0\1\0\0\0\0\0\0\0", 12);
    read_as(tg_finish(&bad, 3), "nested", "arrays of arrays");
    bad = with_tensor();
    tg_raw(&bad, "b", 9, "\x08\0\0\0\0\0\0\0\0\0\0\x10", 12);
    read_as(tg_finish(&bad, 3), "2^60 texts", "ends too early");
    bad = with_tensor();
    tg_raw(&bad, "b", 9, "\x0a\0\0\0\0\0\0\0\0\0\0\x20", 12);
    read_as(tg_finish(&bad, 3), "2^61 numbers", "ends too early");
    bad = with_tensor();
    tg_bool(&bad, "b", 2);
    read_as(tg_finish(&bad, 3), "bool", "key b: a bool is 2");
    for (uint32_t alignment = 0; alignment < 4; alignment += 3) {
        bad = with_tensor();
        tg_u32(&bad, "general.alignment", alignment);
        read_as(tg_finish(&bad, 3), "alignment", "a power of two");
    }
    bad = with_tensor();
    tg_float(&bad, "general.alignment", 32);
    read_as(tg_finish(&bad, 3), "alignment's type", "must be a u32");
    const struct {
        uint32_t type, n_dims;
        const uint64_t *dims;
        uint64_t offset;
        const char *message;
    } tensors[] = {
        {0, 0, four, 0, "tensor t has 0 dimensions"},
        {0, 5, four, 0, "tensor t has 5 dimensions"},
        {0, 2, zero, 0, "tensor t: dimension 0 is 0"},
        {0, 3, wrap, 0, "cannot be in a file"},
        {0, 1, &huge, 0, "cannot be in a file"},
        {10, 1, four, 0, "tensor t is of type 10, which this engine does not read; it reads F32"},
        {0xFFFFFFFF, 1, four, 0, "type 4294967295"},
        {8, 1, four, 0, "tensor t: rows of 4 are no multiple of Q8_0's block of 32"},
        {0, 1, four, 8, "its offset 8 is no multiple of the alignment, 32"},
        {0, 1, four, 32, "the file is cut: tensor t ends at byte"},
        {0, 1, four, UINT64_MAX - 31, "the file is cut"},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        bad = with_tensor();
        tg_tensor_at(&bad, "t", tensors[i].type, tensors[i].n_dims, tensors[i].dims, tensors[i].offset);
        read_as(tg_finish(&bad, 3), tensors[i].message, tensors[i].message);
    }

    TEST("gguf: a file cut at any byte is refused, with a reason");
    tiny_file whole = tiny_kind_file("gguf-mixed");
    for (size_t n = 0; n < whole.size; n++) {
        nano_model *m;
        uint8_t *cut = malloc(n ? n : 1); /* of exactly this size, for the sanitizer */
        memcpy(cut, whole.bytes, n);
        nano_status status = nano_model_open_memory(&m, cut, n, NULL);
        if (status != NANO_ERR_FORMAT || !nano_last_error()[0])
            CHECK_THAT(false, "cut at %zu: was opened", n);
        free(cut);
    }
    free(whole.bytes);
}

/* ---- models ----------------------------------------------------------------------------------------------
 */

static void open_as(tiny_file f, const char *in_message) {
    nano_model *m;
    nano_status status = nano_model_open_memory(&m, f.bytes, f.size, NULL);
    if (!in_message)
        CHECK_THAT(status == NANO_OK, "%s", nano_last_error());
    else
        CHECK_THAT(status == NANO_ERR_FORMAT && strstr(nano_last_error(), in_message),
                   "'%s' does not say '%s'", status ? nano_last_error() : "opened", in_message);
    nano_model_close(m);
    free(f.bytes);
}

static void with_key(const char *kind, const char *key, uint32_t type, const void *bytes, size_t n,
                     const char *in_message) {
    tiny_gguf g = tiny_begin_gguf(kind);
    tg_raw(&g, key, type, bytes, n);
    open_as(tg_finish(&g, 3), in_message);
}

static void with_text(const char *key, const char *text, const char *in_message) {
    tiny_gguf g = tiny_begin_gguf("gguf-llama");
    tg_text(&g, key, text);
    open_as(tg_finish(&g, 3), in_message);
}

/* One name in the file replaced by another of the same length; both say where the message comes from. */
static void renamed(const char *kind, const char *name, const char *other, const char *in_message) {
    tiny_file f = tiny_kind_file(kind);
    bool found = false;
    for (size_t i = 0; i + strlen(name) < f.size && !found; i++)
        if ((found = memcmp(f.bytes + i, name, strlen(name)) == 0)) memcpy(f.bytes + i, other, strlen(other));
    CHECK_THAT(found, "%s is not in the file", name);
    open_as(f, in_message);
}

static void refusals(void) {
    const float two = 2, one = 1, none = 0;
    const uint32_t some = 4, nothing = 0;
    TEST("gguf: what this engine would compute wrongly is refused by name");
    with_key("gguf-llama", "llama.rope.scaling.factor", 6, &two, 4, "llama.rope.scaling.factor: scaled RoPE");
    with_key("gguf-llama", "llama.rope.scaling.factor", 6, &one, 4, NULL);
    with_key("gguf-llama", "llama.rope.scale_linear", 6, &two, 4, "scaled RoPE");
    with_key("gguf-qwen2", "qwen2.attention.sliding_window", 4, &some, 4, "sliding windows");
    with_key("gguf-qwen2", "qwen2.attention.sliding_window", 4, &nothing, 4, NULL);
    with_key("gguf-llama", "llama.expert_count", 4, &some, 4, "experts");
    with_key("gguf-llama", "llama.expert_count", 4, &nothing, 4, NULL);
    with_key("gguf-llama", "llama.attention.clamp_kqv", 6, &two, 4, "clamped");
    with_key("gguf-llama", "llama.logit_scale", 6, &two, 4, "scaled logits");
    with_key("gguf-llama", "llama.logit_scale", 6, &none, 4, NULL);
    with_key("gguf-llama", "llama.attention.value_length", 4, &some, 4,
             "key_length 12 and attention.value_length 4");
    with_key("gguf-llama", "llama.rope.dimension_count", 4, &some, 4, "RoPE on a part of a head");
    with_key("gguf-llama", "llama.vocab_size", 4, &some, 4,
             "llama.vocab_size is 4; it must be between 300 and 300");
    with_key("gguf-llama", "split.count", 2, "\2", 2, "one of 2 parts");
    with_key("gguf-llama", "unknown.key", 6, &two, 4, NULL);
    with_text("llama.rope.scaling.type", "linear", "llama.rope.scaling.type is \"linear\": scaled RoPE");
    with_text("llama.rope.scaling.type", "none", NULL);
    with_text("general.type", "adapter", "LoRA adapter, not a model");
    with_text("general.type", "mmproj", "no language model");
    with_text("general.type", "model", NULL);
    const char *tensors[][2] = {{"rope_freqs.weight", "RoPE with scaled frequencies"},
                                {"blk.0.attn_norm_2.weight", "tensor blk.0.attn_norm_2.weight is not known"},
                                {"blk.0.attn_q_norm.weight", "is not known in the architecture llama"},
                                {"blk.2.attn_norm.weight", "blk.2.attn_norm.weight is not known"},
                                {"blk.00.attn_q.bias", "blk.00.attn_q.bias is not known"},
                                {"blk.99999999999.attn_q.bias", "is not known"},
                                {"position_embd.weight", "position_embd.weight is not known"},
                                {"blk.0.ffn_up.bias", "blk.0.ffn_up.bias: its shape is [1, 4]"}};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        tiny_gguf g = tiny_begin_gguf("gguf-llama");
        tg_tensor(&g, tensors[i][0], 0, 0, 4, FOUR, sizeof FOUR);
        open_as(tg_finish(&g, 3), tensors[i][1]);
    }

    TEST("gguf: what is missing or does not fit is named");
    renamed("gguf-llama", "llama.block_count", "llama.block_conut", "key llama.block_count is missing");
    renamed("gguf-llama", "llama.context_length", "llama.context_lenght",
            "key llama.context_length is missing");
    renamed("gguf-llama", "layer_norm_rms_eps", "layer_norm_rms_esp", "layer_norm_rms_epsilon is missing");
    renamed("gguf-llama", "general.architecture", "general.architectuer",
            "general.architecture is \"\"; known: llama");
    renamed("gguf-llama", "blk.1.ffn_gate.weight", "blk.1.ffn_gate.wieght",
            "blk.1.ffn_gate.wieght is not known");
    renamed("gguf-llama", "output_norm.weight", "output_nrom.weight", "output_nrom.weight is not known");
    renamed("gguf-qwen2", "blk.1.attn_k.bias", "blk.1.attn_q.bais", "blk.1.attn_q.bais is not known");
    renamed("gguf-llama", "tokenizer.ggml.pre", "tokenizer.ggml.rpe", "tokenizer.ggml.pre is missing");
    renamed("gguf-llama", "smollm", "smallm", "tokenizer.ggml.pre is \"smallm\"");
    renamed("gguf-llama", "tokenizer.ggml.merges", "tokenizer.ggml.mreges",
            "tokenizer.ggml.merges is missing");
    renamed("gguf-llama", "tokenizer.ggml.tokens", "tokenizer.ggml.tokesn",
            "tokenizer.ggml.tokens is missing");
    renamed("gguf-llama", "gpt2", "bert", "tokenizer.ggml.model is \"bert\"");
    renamed("gguf-nano", "\\x00", "\\xg0", "two hexadecimal digits");
    tiny_spec spec = tiny_spec_of("gguf-llama");
    const struct {
        uint32_t *field, value;
        const char *message;
    } shapes[] = {
        {&spec.n_head, 5, "attention.head_count 5 is no multiple of attention.head_count_kv 2"},
        {&spec.n_kv_head, 3, "4 is no multiple of attention.head_count_kv 3"},
        {&spec.n_kv_head, 8, "attention.head_count_kv is 8; it must be between 1 and 4"},
        {&spec.n_hidden, 71,
         "blk.0.ffn_gate.weight: its shape is [72, 48]; with this header it must be [71, 48]"},
        {&spec.n_layer, 3, "tensor blk.2.attn_norm.weight is missing"},
        {&spec.n_embd, 46, "embedding_length 46 is no multiple of attention.head_count 4"},
        {&spec.n_layer, 1, "blk.1.attn_q.weight is not known in the architecture llama with 1 layers"},
        {&spec.n_layer, 400, "block_count is 400, but the file has only"},
        {&spec.block_size, 0, "llama.context_length is 0"},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        spec = tiny_spec_of("gguf-llama");
        tiny_weights *w = tiny_make(&spec);
        tiny_gguf g = {0};
        tiny_put_gguf(&g, w); /* its tensors, then the keys of another shape */
        free(g.keys.bytes);
        g.keys = (tiny_file){0};
        g.n_keys = 0;
        *shapes[i].field = shapes[i].value;
        tg_text(&g, "general.architecture", "llama");
        tg_u32(&g, "llama.block_count", spec.n_layer);
        tg_u32(&g, "llama.context_length", spec.block_size);
        tg_u32(&g, "llama.embedding_length", spec.n_embd);
        tg_u32(&g, "llama.feed_forward_length", spec.n_hidden);
        tg_u32(&g, "llama.attention.head_count", spec.n_head);
        tg_u32(&g, "llama.attention.head_count_kv", spec.n_kv_head);
        tg_float(&g, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
        open_as(tg_finish(&g, 3), shapes[i].message);
        tiny_free(w);
    }
}

static void facts(void) {
    TEST("gguf: a model's metadata and tensors can be looked at");
    tiny_file f = tiny_kind_file("gguf-mixed");
    nano_model *m;
    nano_meta meta;
    nano_tensor t;
    CHECK_THAT(nano_model_open_memory(&m, f.bytes, f.size, NULL) == NANO_OK, "%s", nano_last_error());
    if (m) {
        const nano_config *c = nano_model_config(m);
        uint32_t n_keys = 0, n_tensors = 0, counts[NANO_N_QUANTS] = {0};
        bool found_tokens = false;
        for (; nano_model_meta(m, n_keys, &meta); n_keys++) {
            if (meta.key_length != strlen("tokenizer.ggml.tokens")) continue;
            if (memcmp(meta.key, "tokenizer.ggml.tokens", meta.key_length)) continue;
            nano_meta item;
            found_tokens = meta.type == NANO_META_ARRAY && meta.count == 300;
            CHECK(nano_model_meta_item(m, n_keys, 257, &item) && item.text_length == 3 &&
                  memcmp(item.text, "the", 3) == 0);
            CHECK(!nano_model_meta_item(m, n_keys, 300, &item));
        }
        for (; nano_model_tensor(m, n_tensors, &t); n_tensors++) counts[t.type]++;
        CHECK(found_tokens && n_keys > 10 && n_tensors == 2 + 9 * 2);
        CHECK(memcmp(counts, c->quant_tensors, sizeof counts) == 0 && counts[NANO_GGUF_Q4_1] == 8);
        CHECK(c->quant == NANO_GGUF_Q4_0 && c->container == NANO_CONTAINER_GGUF &&
              c->arch == NANO_ARCH_LLAMA && c->n_special == 7 && c->byte_tokens);
        CHECK(nano_token_is_stop(m, 263) && nano_token_is_stop(m, 261) && !nano_token_is_stop(m, 262));
        nano_model_close(m);
    }
    free(f.bytes);

    TEST("gguf: our own keys say which tokens stop, and how text is prepared");
    tiny_gguf g = tiny_begin_gguf("gguf-qwen3");
    tg_i32s(&g, "nano_ds.tokenizer.stop", (const int32_t[]){5, 261}, 2);
    tg_text(&g, "nano_ds.tokenizer.normalize", "none");
    tg_bool(&g, "nano_ds.tokenizer.ignore_merges", 1);
    f = tg_finish(&g, 3);
    CHECK_THAT(nano_model_open_memory(&m, f.bytes, f.size, NULL) == NANO_OK, "%s", nano_last_error());
    if (m) {
        CHECK(nano_token_is_stop(m, 5) && nano_token_is_stop(m, 261) && nano_token_is_stop(m, 263));
        CHECK(!nano_token_is_stop(m, 264));
        CHECK(!m->vocab.nfc && m->vocab.whole_first);
    }
    nano_model_close(m);
    free(f.bytes);
    const int32_t beyond = 300;
    g = tiny_begin_gguf("gguf-qwen3");
    tg_i32s(&g, "nano_ds.tokenizer.stop", &beyond, 1);
    open_as(tg_finish(&g, 3), "none of the 300 tokens");
    g = tiny_begin_gguf("gguf-qwen3");
    tg_text(&g, "nano_ds.tokenizer.normalize", "nfkc");
    open_as(tg_finish(&g, 3), "is \"nfkc\"; known: nfc, none");

    TEST("gguf: without a vocabulary a model takes ids, and says so");
    f = tiny_kind_file("gguf-k");
    uint32_t *ids;
    size_t n;
    CHECK_THAT(nano_model_open_memory(&m, f.bytes, f.size, NULL) == NANO_OK, "%s", nano_last_error());
    CHECK(nano_tokenize(m, "a", 1, false, &ids, &n) == NANO_ERR_FORMAT &&
          strstr(nano_last_error(), "no vocabulary"));
    CHECK(nano_token_bytes(m, 5, &n) == NULL && !nano_token_is_stop(m, 0) &&
          nano_model_chat_family(m) == NANO_CHAT_NONE);
    nano_model_close(m);
    free(f.bytes);

    TEST("gguf: escapes in the tokens of longest match");
    f = tiny_kind_file("gguf-nano");
    CHECK_THAT(nano_model_open_memory(&m, f.bytes, f.size, NULL) == NANO_OK, "%s", nano_last_error());
    const char *bytes = nano_token_bytes(m, 264, &n);
    CHECK(bytes && n == 4 && memcmp(bytes, "a\n\\b", 4) == 0);
    bytes = nano_token_bytes(m, 7 + 0xE4, &n);
    CHECK(bytes && n == 1 && bytes[0] == '\xE4');
    CHECK(nano_tokenize(m, "the\xE4", 4, false, &ids, &n) == NANO_OK && n == 2 && ids[0] == 263 &&
          ids[1] == 7 + 0xE4);
    nano_free(ids);
    nano_model_close(m);
    free(f.bytes);
}

/* ---- adapters --------------------------------------------------------------------------------------------
 */

enum { N = 9 };
static const uint32_t PROMPT[N] = {5, 9, 77, 118, 3, 0, 42, 42, 9};

static double distance(const nano_model *m, const nano_adapter *a, const double *expected) {
    nano_session *s;
    nano_session_params params = {.context = N, .threads = 1};
    size_t v = nano_model_config(m)->vocab_size;
    float *logits = malloc(N * v * sizeof *logits);
    double worst = 0, top = 0;
    if (nano_session_open(&s, m, &params) || nano_session_set_adapter(s, a) ||
        nano_session_eval(s, PROMPT, N, logits)) {
        CHECK_THAT(false, "%s", nano_last_error());
        worst = 1e9;
    }
    for (size_t i = 0; i < N * v && worst < 1e9; i++) {
        worst = fmax(worst, fabs(logits[i] - expected[i]));
        top = fmax(top, fabs(expected[i]));
    }
    nano_session_close(s);
    free(logits);
    return worst / top;
}

static void adapters(void) {
    TEST("gguf: an adapter of all seven linears does what merged weights do");
    const char *kinds[] = {"gguf-llama", "gguf-mixed", "gguf-qwen2", "gguf-qwen3", "gguf-nano"};
    const nano_model_params exact = {.kernels = "exact"};
    for (int i = 0; i < 5; i++) {
        tiny_spec spec = tiny_spec_of(kinds[i]);
        tiny_weights *w = tiny_make(&spec);
        tiny_file f = tiny_write(w), lora = tiny_write_gguf_lora(w, NULL, 3, 70);
        double *expected = malloc(N * spec.vocab_size * sizeof *expected);
        tiny_forward(w, true, PROMPT, N, expected);
        nano_model *m;
        nano_adapter *a;
        CHECK_THAT(nano_model_open_memory(&m, f.bytes, f.size, &exact) == NANO_OK, "%s", nano_last_error());
        CHECK_THAT(nano_adapter_open_memory(&a, lora.bytes, lora.size) == NANO_OK, "%s", nano_last_error());
        if (m && a) {
            double with = distance(m, a, expected), without = distance(m, NULL, expected);
            CHECK_THAT(with < 2e-5 && without > 1e-2, "%s: %g off, without adapter %g", kinds[i], with,
                       without);
            const nano_adapter_config *c = nano_adapter_get_config(a);
            CHECK(c->rank == 4 && c->alpha == 3 && c->container == NANO_CONTAINER_GGUF &&
                  c->arch == spec.arch);
        }
        nano_model_close(m);
        nano_adapter_close(a);
        free(expected);
        free(f.bytes);
        free(lora.bytes);
        tiny_free(w);
    }

    TEST("gguf: a .bin adapter does the same on a llama file, and is refused by another family's");
    const char *bases[] = {"gguf-llama", "gguf-qwen2"};
    for (int i = 0; i < 2; i++) {
        tiny_spec spec = tiny_spec_of(bases[i]);
        tiny_weights *w = tiny_make(&spec);
        tiny_file f = tiny_write(w), lora = tiny_write_lora(&spec, 3, 6, 8, w);
        double *expected = malloc(N * spec.vocab_size * sizeof *expected);
        tiny_forward(w, true, PROMPT, N, expected);
        nano_model *m;
        nano_adapter *a;
        nano_session *s;
        CHECK(nano_model_open_memory(&m, f.bytes, f.size, NULL) == NANO_OK);
        CHECK(nano_adapter_open_memory(&a, lora.bytes, lora.size) == NANO_OK);
        if (i == 0) {
            double off = distance(m, a, expected);
            CHECK_THAT(off < 2e-5, "%g off", off);
        } else if (nano_session_open(&s, m, NULL) == NANO_OK) {
            CHECK(nano_session_set_adapter(s, a) == NANO_ERR_MISMATCH);
            CHECK(strstr(nano_last_error(), "architecture nano, the model's is qwen2") != NULL);
            nano_session_close(s);
        }
        nano_model_close(m);
        nano_adapter_close(a);
        free(expected);
        free(f.bytes);
        free(lora.bytes);
        tiny_free(w);
    }

    TEST("gguf: adapters for other models are refused, naming what differs");
    const struct {
        const char *model, *made_for, *arch, *message;
    } pairs[] = {
        {"gguf-llama", "gguf-llama", "qwen2", "it is for the architecture qwen2, the model's is llama"},
        {"gguf-qwen3", "gguf-qwen3", "qwen2", "it is for the architecture qwen2, the model's is qwen3"},
        {"gguf-mixed", "gguf-llama", NULL, "layer 0's q adds a matrix [48, 48], the model's is [64, 64]"},
        {"gguf-k", "gguf-llama", NULL, "it has something for layer 1, the model has 1 layers"},
        {"qwen2", "gguf-qwen2", NULL, "in different orders"},
        {"f32", "gguf-llama", NULL, NULL}, /* Nano's own models are llama's */
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        tiny_spec spec = tiny_spec_of(pairs[i].made_for);
        tiny_weights *w = tiny_make(&spec);
        tiny_file f = tiny_kind_file(pairs[i].model), lora = tiny_write_gguf_lora(w, pairs[i].arch, 1, 1);
        nano_model *m;
        nano_adapter *a;
        nano_session *s;
        nano_session_params params = {.context = 4, .threads = 1};
        CHECK(nano_model_open_memory(&m, f.bytes, f.size, NULL) == NANO_OK);
        CHECK(nano_adapter_open_memory(&a, lora.bytes, lora.size) == NANO_OK);
        CHECK(nano_session_open(&s, m, &params) == NANO_OK);
        nano_status status = nano_session_set_adapter(s, a);
        if (pairs[i].message)
            CHECK_THAT(status == NANO_ERR_MISMATCH && strstr(nano_last_error(), pairs[i].message),
                       "%s: '%s' does not say '%s'", pairs[i].model, nano_last_error(), pairs[i].message);
        else
            CHECK_THAT(status == NANO_OK, "%s", nano_last_error());
        nano_session_close(s);
        nano_adapter_close(a);
        nano_model_close(m);
        tiny_free(w);
        free(f.bytes);
        free(lora.bytes);
    }

    TEST("gguf: an adapter is whole or refused, and no model");
    tiny_spec spec = tiny_spec_of("gguf-llama");
    tiny_weights *w = tiny_make(&spec);
    tiny_file lora = tiny_write_gguf_lora(w, NULL, 3, 70), model = tiny_kind_file("gguf-llama");
    nano_adapter *a;
    nano_model *m;
    CHECK(nano_adapter_open_memory(&a, model.bytes, model.size) == NANO_ERR_FORMAT && !a);
    CHECK(strstr(nano_last_error(), "this is a model") != NULL);
    CHECK(nano_model_open_memory(&m, lora.bytes, lora.size, NULL) == NANO_ERR_FORMAT && !m);
    CHECK(strstr(nano_last_error(), "LoRA adapter") != NULL);
    for (size_t n = 0; n < lora.size; n++) {
        uint8_t *cut = malloc(n ? n : 1);
        memcpy(cut, lora.bytes, n);
        if (nano_adapter_open_memory(&a, cut, n) != NANO_ERR_FORMAT)
            CHECK_THAT(false, "cut at %zu: was opened", n);
        free(cut);
    }
    const char *tensors[][2] = {
        {"blk.0.attn_q.weight.lora_c", "adapters for it are not supported"},
        {"token_embd.weight.lora_a", "adapters for it are not supported"},
        {"blk.0.attn_q.weight.lora_a", "tensor blk.0.attn_q.weight.lora_b is missing"}};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        tiny_gguf g = {.alignment = 32};
        tg_text(&g, "general.type", "adapter");
        tg_text(&g, "general.architecture", "llama");
        tg_text(&g, "adapter.type", "lora");
        tg_tensor(&g, tensors[i][0], 0, 2, 2, FOUR, sizeof FOUR);
        tiny_file f = tg_finish(&g, 3);
        CHECK(nano_adapter_open_memory(&a, f.bytes, f.size) == NANO_ERR_FORMAT);
        CHECK_THAT(strstr(nano_last_error(), tensors[i][1]), "'%s' does not say '%s'", nano_last_error(),
                   tensors[i][1]);
        free(f.bytes);
    }
    free(lora.bytes);
    free(model.bytes);
    tiny_free(w);
}

void test_gguf(void) {
    container();
    refusals();
    facts();
    adapters();
}
