/* encode_texts.c: texts to ids by a vocabulary that is not in a model file (vocab_dump.h), to be compared
 * with others.
 *
 *     encode_texts DUMP           u32 special (0 or 1), u32 n, n bytes of text from stdin; u32 n, n ids to
 *                                 stdout; and again
 *     encode_texts DUMP FILE...   how fast are these texts encoded? The best of five times, on one core
 */
#define _POSIX_C_SOURCE 200809L
#include "vocab_dump.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static bool read_exactly(void *out, size_t n) {
    return fread(out, 1, n, stdin) == n;
}

static int serve(const vocab *v) {
    uint32_t header[2];
    while (read_exactly(header, sizeof header)) {
        uint8_t *text = malloc((size_t)header[1] + 1);
        uint32_t *ids, n;
        size_t n_ids;
        if (!text || !read_exactly(text, header[1]))
            return fprintf(stderr, "encode_texts: a text is cut\n"), 2;
        if (vocab_encode(v, text, header[1], header[0] != 0, &ids, &n_ids))
            return fprintf(stderr, "encode_texts: %s\n", nano_last_error()), 1;
        n = (uint32_t)n_ids;
        fwrite(&n, sizeof n, 1, stdout);
        fwrite(ids, sizeof *ids, n_ids, stdout);
        plat_free(ids);
        free(text);
    }
    return fflush(stdout) != 0;
}

static double processor_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int measure(const vocab *v, const char *path) {
    size_t n, n_ids = 0;
    uint8_t *text = read_whole_file(path, &n);
    if (!text) return 1;
    double best = 1e9;
    for (int i = 0; i < 5; i++) {
        double from = processor_seconds();
        uint32_t *ids;
        if (vocab_encode(v, text, n, false, &ids, &n_ids))
            return fprintf(stderr, "%s\n", nano_last_error()), 1;
        double took = processor_seconds() - from;
        plat_free(ids);
        if (took < best) best = took;
    }
    printf("%-40s %8.3f MB %9zu tokens %8.4f s %7.1f MB/s\n", path, (double)n / 1e6, n_ids, best,
           (double)n / 1e6 / best);
    free(text);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "usage: encode_texts DUMP [FILE...]\n"), 2;
    size_t n;
    uint8_t *bytes = read_whole_file(argv[1], &n);
    vocab_dump dump;
    if (!bytes || !vocab_dump_read(&dump, bytes, n)) return fprintf(stderr, "encode_texts: no dump\n"), 2;
    vocab v;
    double from = processor_seconds();
    nano_status status = vocab_build_merges(&v, &dump.source);
    double took = processor_seconds() - from;
    vocab_dump_free(&dump);
    free(bytes); /* the vocabulary has copied what it needs */
    if (status) fprintf(stderr, "encode_texts: %s\n", nano_last_error());
    if (!status && argc > 2) printf("%u tokens, built in %.3f s\n", v.size, took);
    int failed = status ? 1 : argc == 2 ? serve(&v) : 0;
    for (int i = 2; i < argc && !failed; i++) failed = measure(&v, argv[i]);
    vocab_free(&v);
    return failed;
}
