/* fuzz_reader.c: bent and cut model and adapter files of both containers must be refused or run, never crash.
 * Deterministic; build it with sanitizers (make sanitize).
 *
 *     fuzz_reader FILE   [ITERATIONS [SEED]]
 *     fuzz_reader --tiny [ITERATIONS [SEED]]      all the tiny kinds, and a LoRA of each container
 */
#include "fuzz_use.h"
#include "gguf.h"
#include "tiny_gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void bend(uint8_t *bytes, size_t size, size_t at, uint64_t *state) {
    static const uint32_t words[] = {0,          1,          2,          3,       0x7F,      0xFF,
                                     0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000, 0x7FC00000};
    uint64_t r = tiny_random(state);
    if (r % 3 == 0) {
        bytes[at] ^= (uint8_t)(1u << (r >> 8 & 7));
    } else if (r % 3 == 1) {
        bytes[at] = (uint8_t)(r >> 8);
    } else if (at / 4 * 4 + 4 <= size) {
        uint32_t word;
        memcpy(&word, bytes + at / 4 * 4, 4);
        unsigned choice = (unsigned)(r >> 8) % 16;
        word = choice < 11 ? words[choice] : choice < 13 ? word + 1 : choice < 15 ? word - 1 : word * 2;
        memcpy(bytes + at / 4 * 4, &word, 4);
    }
}

/* What comes before the weights: where most of what a reader believes is written. */
static size_t size_of_tables(const uint8_t *bytes, size_t size) {
    uint32_t vocab_bytes = 0;
    if (!gguf_is(bytes, size)) {
        if (size >= 260) memcpy(&vocab_bytes, bytes + 256, 4);
        return 256 + (size_t)vocab_bytes < size ? 256 + (size_t)vocab_bytes : size;
    }
    gguf g;
    size_t tables = size;
    if (gguf_read(&g, bytes, size) == NANO_OK)
        for (uint32_t i = 0; i < g.n_tensors; i++)
            if ((size_t)(g.tensors[i].data - bytes) < tables) tables = (size_t)(g.tensors[i].data - bytes);
    gguf_free(&g);
    return tables;
}

static void fuzz(const char *name, const uint8_t *bytes, size_t size, unsigned long iterations,
                 uint64_t seed) {
    fuzz_seen = (fuzz_counts){0};
    size_t tables = size_of_tables(bytes, size);
    fuzz_try(bytes, size);
    size_t step = tables < 40000 ? 4 : tables / 10000;
    for (size_t cut = 0; cut <= tables; cut += step) fuzz_try(bytes, cut);
    for (size_t cut = 1; cut < 64 && cut < size; cut++) fuzz_try(bytes, size - cut);

    uint8_t *bent = malloc(size + 1);
    for (unsigned long i = 0; i < iterations; i++) {
        memcpy(bent, bytes, size);
        bent[size] = 0;
        unsigned n_bends = 1 + (unsigned)(tiny_random(&seed) % 3);
        for (unsigned b = 0; b < n_bends; b++) {
            uint64_t r = tiny_random(&seed), where = r % 4;
            size_t range = where < 2 ? (gguf_is(bytes, size) ? 600 : 80) : where == 2 ? tables : size;
            bend(bent, size, (size_t)(r >> 8) % (range < size ? range : size), &seed);
        }
        uint64_t r = tiny_random(&seed);
        fuzz_try(bent, r % 8 == 0 ? (size_t)(r >> 8) % size : r % 8 == 1 ? size + 1 : size);
    }
    free(bent);
    printf("%-16s %lu files tried, %lu opened, %lu evaluated\n", name, fuzz_seen.tried, fuzz_seen.opened,
           fuzz_seen.evaluated);
}

int main(int argc, char **argv) {
    if (argc < 2 || argc > 4)
        return fprintf(stderr, "usage: fuzz_reader FILE|--tiny [ITERATIONS [SEED]]\n"), 2;
    unsigned long iterations = argc > 2 ? strtoul(argv[2], NULL, 10) : 1000;
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    if (strcmp(argv[1], "--tiny") != 0) {
        FILE *in = fopen(argv[1], "rb");
        if (!in || fseek(in, 0, SEEK_END)) return perror(argv[1]), 2;
        size_t size = (size_t)ftell(in);
        uint8_t *bytes = malloc(size + 1);
        rewind(in);
        if (fread(bytes, 1, size, in) != size) return perror(argv[1]), 2;
        fclose(in);
        fuzz("file", bytes, size, iterations, seed);
        free(bytes);
        return 0;
    }
    for (unsigned i = 0; tiny_kind(i); i++) {
        tiny_file f = tiny_kind_file(tiny_kind(i));
        fuzz(tiny_kind(i), f.bytes, f.size, iterations, seed + i);
        free(f.bytes);
    }
    tiny_spec spec = tiny_spec_of("f32");
    tiny_file model = tiny_kind_file("f32"), lora = tiny_write_lora(&spec, 4, 8, 99, NULL);
    if (nano_model_open_memory(&fuzz_base, model.bytes, model.size, NULL))
        return fprintf(stderr, "%s\n", nano_last_error()), 1;
    fuzz("lora", lora.bytes, lora.size, iterations, seed);
    nano_model_close(fuzz_base);
    free(model.bytes);
    free(lora.bytes);

    spec = tiny_spec_of("gguf-llama");
    tiny_weights *w = tiny_make(&spec);
    model = tiny_write(w);
    lora = tiny_write_gguf_lora(w, NULL, 2, 99);
    if (nano_model_open_memory(&fuzz_base, model.bytes, model.size, NULL))
        return fprintf(stderr, "%s\n", nano_last_error()), 1;
    fuzz("gguf-lora", lora.bytes, lora.size, iterations, seed);
    nano_model_close(fuzz_base);
    tiny_free(w);
    free(model.bytes);
    free(lora.bytes);
    return 0;
}
