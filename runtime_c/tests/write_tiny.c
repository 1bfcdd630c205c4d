/* write_tiny.c: write_tiny KIND OUT: a tiny model for the tests of the program; KIND lora: an adapter for
 * kind f32, gguf-lora: for kind gguf-llama. */
#include "tiny_gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: write_tiny KIND OUT\n"), 2;
    bool lora = strcmp(argv[1], "lora") == 0, gguf_lora = strcmp(argv[1], "gguf-lora") == 0;
    tiny_spec spec = tiny_spec_of(lora ? "f32" : gguf_lora ? "gguf-llama" : argv[1]);
    if (!spec.vocab_size) return fprintf(stderr, "write_tiny: no kind '%s'\n", argv[1]), 2;
    tiny_weights *w = tiny_make(&spec);
    tiny_file f = lora        ? tiny_write_lora(&spec, 4, 8, 99, NULL)
                  : gguf_lora ? tiny_write_gguf_lora(w, NULL, 8, 99)
                              : tiny_write(w);
    tiny_free(w);
    FILE *out = fopen(argv[2], "wb");
    bool whole = out && fwrite(f.bytes, 1, f.size, out) == f.size;
    if (out) whole &= fclose(out) == 0;
    free(f.bytes);
    return whole ? 0 : (perror(argv[2]), 1);
}
