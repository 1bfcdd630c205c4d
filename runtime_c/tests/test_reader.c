/* test_reader.c: whole files of every kind open; bent ones are refused with a message that helps. */
#include "test.h"
#include "tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void refused(const tiny_file *f, const char *what, const char *in_message) {
    nano_model *m;
    nano_status status = nano_model_open_memory(&m, f->bytes, f->size, NULL);
    CHECK_THAT(status != NANO_OK && m == NULL, "%s: was opened", what);
    CHECK_THAT(strstr(nano_last_error(), in_message) != NULL, "%s: '%s' does not say '%s'", what,
               nano_last_error(), in_message);
    nano_model_close(m);
}

static void with_word(const char *kind, unsigned word, uint32_t value, const char *in_message) {
    tiny_file f = tiny_kind_file(kind);
    char what[64];
    memcpy(f.bytes + 4 * word, &value, 4);
    snprintf(what, sizeof what, "%s with word %u = %u", kind, word, value);
    refused(&f, what, in_message);
    free(f.bytes);
}

static void whole_files(void) {
    TEST("reader: every kind opens and says what it is; a byte less is refused, of a .bin a byte more as "
         "well");
    for (unsigned i = 0; tiny_kind(i); i++) {
        tiny_spec s = tiny_spec_of(tiny_kind(i));
        tiny_file f = tiny_kind_file(tiny_kind(i));
        nano_model *m;
        nano_status status = nano_model_open_memory(&m, f.bytes, f.size, NULL);
        CHECK_THAT(status == NANO_OK, "%s: %s", tiny_kind(i), nano_last_error());
        if (m) {
            const nano_config *c = nano_model_config(m);
            CHECK(c->version_major == s.major && c->version_minor == s.minor && c->arch == s.arch &&
                  (s.gguf || c->quant == s.quant));
            CHECK(c->block_size == s.block_size && c->vocab_size == s.vocab_size && c->n_layer == s.n_layer);
            CHECK(c->n_embd == s.n_embd && c->n_head == s.n_head && c->n_kv_head == s.n_kv_head);
            CHECK(c->head_dim == s.head_dim && c->n_hidden == s.n_hidden && c->tied == !s.untied &&
                  c->causal == !s.non_causal);
            CHECK_THAT(c->group_size == s.group_size, "%s: group size %u", tiny_kind(i), c->group_size);
        }
        nano_model_close(m);
        f.size--;
        refused(&f, tiny_kind(i), "");
        f.size++;
        if (s.gguf) { /* what is behind the last tensor is filling, as GGUF's writers leave it */
            free(f.bytes);
            continue;
        }
        f.bytes = realloc(f.bytes, f.size + 1);
        f.bytes[f.size++] = 0;
        refused(&f, tiny_kind(i), "");
        free(f.bytes);
    }

    TEST("reader: memory of any alignment");
    for (size_t shift = 1; shift < 4; shift++) {
        tiny_file f = tiny_kind_file("f32");
        uint8_t *moved = malloc(f.size + shift);
        memcpy(moved + shift, f.bytes, f.size);
        nano_model *m;
        CHECK(nano_model_open_memory(&m, moved + shift, f.size, NULL) == NANO_OK);
        nano_model_close(m);
        free(moved);
        free(f.bytes);
    }
}

static void bent_headers(void) {
    TEST("reader: impossible headers name field, value and what is allowed");
    with_word("f32", 0, 7, "not a .bin model file nor a GGUF file");
    with_word("f32", 2, 2023, "2023.1 is unknown; known: 2024.10");
    with_word("f32", 4, 9, "model type 9 is unknown");
    with_word("f32", 4, 10, "LoRA adapter");
    with_word("2024", 4, 3, "model type 3 is unknown in version 2024.10");
    with_word("f32", 6, 0, "block_size is 0; it must be between 1 and");
    with_word("f32", 6, 0xFFFFFFFF, "block_size is 4294967295");
    with_word("f32", 6, 1 << 20, "ends too early");
    with_word("f32", 7, 0, "vocab_size is 0");
    with_word("f32", 7, 1 << 24, "cannot be in a file");
    with_word("f32", 7, 301, "it holds 300 tokens, but vocab_size in the header is 301");
    with_word("f32", 8, 0, "n_layer is 0");
    with_word("f32", 8, 4096, "ends too early");
    with_word("f32", 9, 0xFFFFFFF0, "n_embd is 4294967280");
    with_word("f32", 10, 10, "n_embd 48 is no multiple of n_head 10");
    with_word("f32", 10, 0, "n_head is 0");
    with_word("f32", 11, 3, "n_head 4 is no multiple of n_kv_head 3");
    with_word("f32", 11, 0, "n_kv_head is 0");
    with_word("f32", 12, 0, "n_hidden is 0");
    with_word("f32", 13, 2, "tied (word 13) is 2");
    with_word("f32", 13, 0, "ends too early");
    with_word("f32", 14, 16, "head_dim is 16; with n_embd 48 and n_head 4 it must be 12");
    with_word("qwen3", 14, 21, "head_dim is 21; it must be even");
    with_word("f32", 15, 5, "quantisation is 5, unknown in version 2026.1");
    with_word("2024", 14, 0x80, "quantisation is 128, unknown in version 2024.10");
    with_word("q80", 8, 3, "with no Q80 group size");
    with_word("q4k", 12, 511, "Q4K tensor w1");
    with_word("f32", 64, 4, "field_bytes is 4");
    with_word("f32", 64, 0xFFFFFFFF, "ends too early");
    with_word("f32", 64, 1000, "goes past the end of its 1000-byte section");
    with_word("f32", 67, 5, "token number 0 says that its id is 5");
    with_word("f32", 68, 0x110000, "code point 1114112");
    with_word("f32", 68, 0xD800, "code point 55296");
}

static void odd_cases(void) {
    TEST("reader: Q80 group sizes are worked out when the header lies");
    const char *kinds[] = {"2024q80", "2025.12q80"};
    for (int i = 0; i < 2; i++) {
        tiny_file f = tiny_kind_file(kinds[i]);
        nano_model *m;
        CHECK(nano_model_open_memory(&m, f.bytes, f.size, NULL) == NANO_OK);
        if (m) CHECK(nano_model_config(m)->group_size != nano_model_config(m)->header_group_size);
        nano_model_close(m);
        free(f.bytes);
    }

    TEST("reader: RoPE tables that are not finite are refused");
    tiny_file f = tiny_kind_file("f32");
    memcpy(f.bytes + f.size - 4, &(uint32_t){0x7FC00000}, 4);
    refused(&f, "sin is NaN", "sin[383] is not a finite number");
    free(f.bytes);

    TEST("reader: files that are not there, or no files");
    nano_model *m;
    nano_adapter *a;
    nano_kind kind;
    CHECK(nano_model_open_file(&m, "/nonexistent/model.bin", NULL) == NANO_ERR_FILE && !m);
#ifndef __wasm__ /* which has no files at all */
    CHECK(strstr(nano_last_error(), "/nonexistent/model.bin: no such file") != NULL);
    CHECK(nano_model_open_file(&m, "/", NULL) == NANO_ERR_FILE && strstr(nano_last_error(), "directory"));
#endif
    CHECK(nano_adapter_open_file(&a, "/dev/null") == NANO_ERR_FILE && !a);
    CHECK(nano_probe_file("/nonexistent", &kind) == NANO_ERR_FILE);
    CHECK(nano_model_open_memory(&m, NULL, 0, NULL) == NANO_ERR_ARGUMENT);
    CHECK(nano_model_open_memory(&m, "short", 5, NULL) == NANO_ERR_FORMAT);

    TEST("reader: an adapter is whole or refused, and no model");
    tiny_spec spec = tiny_spec_of("f32");
    tiny_file lora = tiny_write_lora(&spec, 3, 6, 1, NULL), model = tiny_kind_file("f32");
    CHECK(nano_adapter_open_memory(&a, lora.bytes, lora.size) == NANO_OK);
    if (a) CHECK(nano_adapter_get_config(a)->rank == 3 && nano_adapter_get_config(a)->alpha == 6);
    nano_adapter_close(a);
    CHECK(nano_adapter_open_memory(&a, lora.bytes, lora.size - 1) == NANO_ERR_FORMAT);
    CHECK(nano_adapter_open_memory(&a, model.bytes, model.size) == NANO_ERR_FORMAT);
    CHECK(strstr(nano_last_error(), "this is a model") != NULL);
    memcpy(lora.bytes + 4 * 6, &(uint32_t){0}, 4);
    CHECK(nano_adapter_open_memory(&a, lora.bytes, lora.size) == NANO_ERR_FORMAT);
    CHECK(strstr(nano_last_error(), "LoRA rank is 0") != NULL);
    free(lora.bytes);
    free(model.bytes);
}

void test_reader(void) {
    whole_files();
    bent_headers();
    odd_cases();
}
