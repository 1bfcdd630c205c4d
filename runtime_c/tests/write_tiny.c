/* write_tiny.c: write_tiny KIND OUT.bin: a tiny model for the tests of the program; KIND lora: for kind f32.
 */
#include "tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: write_tiny KIND OUT.bin\n"), 2;
    tiny_spec spec = tiny_spec_of(strcmp(argv[1], "lora") == 0 ? "f32" : argv[1]);
    if (!spec.vocab_size) return fprintf(stderr, "write_tiny: no kind '%s'\n", argv[1]), 2;
    tiny_file f =
        strcmp(argv[1], "lora") == 0 ? tiny_write_lora(&spec, 4, 8, 99, NULL) : tiny_kind_file(argv[1]);
    FILE *out = fopen(argv[2], "wb");
    bool whole = out && fwrite(f.bytes, 1, f.size, out) == f.size;
    if (out) whole &= fclose(out) == 0;
    free(f.bytes);
    return whole ? 0 : (perror(argv[2]), 1);
}
