/* write_tiny.c: write_tiny KIND OUT: a tiny model for the tests of the program; KIND lora: an adapter for
 * kind f32, gguf-lora: for kind gguf-llama; KIND vocab-ANOTHER: that kind's vocabulary with a text, as
 * libfuzzer_vocab.c reads them. Kinds wide-f32, wide-q80, wide-gguf-q8_0, wide-gguf-q4_0, and their adapters
 * wide-lora and wide-gguf-lora, are big enough for threads to share the work. */
#include "tiny_gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of a GGUF file the keys, of a `.bin` the tokenizer section. */
static tiny_file write_vocab(const char *kind, const tiny_spec *spec) {
    static const char text[] = "the <|eos|> \xE4\xBD\xA0\xE5\xA5\xBD\xFF abcd 12345 e\xCC\x81\n\n don't";
    enum { N = sizeof text - 1, SECTION = 256 };
    uint32_t n_section;
    uint8_t form = spec->gguf ? 2 : spec->arch != NANO_ARCH_NANO;
    tiny_file out = {0}, whole;
    tiny_put(&out, (uint8_t[]){form, 1, N, 0}, 4);
    tiny_put(&out, &spec->vocab_size, 4);
    tiny_put(&out, text, N);
    if (spec->gguf) {
        tiny_gguf g = tiny_begin_gguf(kind);
        free(g.infos.bytes);
        free(g.data.bytes);
        g.infos = g.data = (tiny_file){0};
        g.n_tensors = 0;
        whole = tg_finish(&g, 3);
        tiny_put(&out, whole.bytes, whole.size);
    } else {
        whole = tiny_kind_file(kind);
        memcpy(&n_section, whole.bytes + SECTION, sizeof n_section);
        tiny_put(&out, whole.bytes + SECTION, n_section);
    }
    free(whole.bytes);
    return out;
}

static tiny_spec widened(const char *kind) {
    bool gguf = strncmp(kind, "gguf", 4) == 0;
    tiny_spec s = tiny_spec_of(gguf ? "gguf-llama" : strcmp(kind, "q80") == 0 ? "q80" : "f32");
    s.n_layer = 4;
    s.n_embd = 256;
    s.n_head = 8;
    s.n_kv_head = 4;
    s.head_dim = 32;
    s.n_hidden = 512;
    s.block_size = 256;
    if (strcmp(kind, "gguf-q8_0") == 0) s.quant = s.ffn_type = s.embedding_type = NANO_GGUF_Q8_0;
    if (strcmp(kind, "gguf-q4_0") == 0) s.quant = s.ffn_type = s.embedding_type = NANO_GGUF_Q4_0;
    return s;
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: write_tiny KIND OUT\n"), 2;
    bool wide = strncmp(argv[1], "wide-", 5) == 0, vocab = strncmp(argv[1], "vocab-", 6) == 0;
    const char *kind = argv[1] + (wide ? 5 : vocab ? 6 : 0);
    bool lora = strcmp(kind, "lora") == 0, gguf_lora = strcmp(kind, "gguf-lora") == 0;
    if (lora || gguf_lora) kind = lora ? "f32" : "gguf-llama";
    tiny_spec spec = wide ? widened(kind) : tiny_spec_of(kind);
    if (!spec.vocab_size) return fprintf(stderr, "write_tiny: no kind '%s'\n", argv[1]), 2;
    tiny_weights *w = tiny_make(&spec);
    tiny_file f = vocab       ? write_vocab(kind, &spec)
                  : lora      ? tiny_write_lora(&spec, 4, 8, 99, NULL)
                  : gguf_lora ? tiny_write_gguf_lora(w, NULL, 8, 99)
                              : tiny_write(w);
    tiny_free(w);
    FILE *out = fopen(argv[2], "wb");
    bool whole = out && fwrite(f.bytes, 1, f.size, out) == f.size;
    if (out) whole &= fclose(out) == 0;
    free(f.bytes);
    return whole ? 0 : (perror(argv[2]), 1);
}
