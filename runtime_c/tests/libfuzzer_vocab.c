/* libfuzzer_vocab.c: vocabularies under clang's fuzzer, without a model around them: `make libfuzzer`.
 *
 *     u8 kind: 0 Nano's trie section, 1 its section of scores, 2 a GGUF file's keys; u8 1: special tokens
 * allowed u16 n, u32 vocab_size, n bytes of text to encode; the rest is the vocabulary
 */
#include "bytes.h"
#include "error.h"
#include "gguf.h"
#include "model_gguf.h"
#include "reader.h"
#include "use_vocab.h"

#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

enum { HEAD = 8, SECTION_HEAD = 8 };

static nano_status build(vocab *v, unsigned kind, const uint8_t *bytes, size_t n, uint32_t vocab_size,
                         gguf *g, storage *s) {
    switch (kind) {
    case 0:
        return vocab_read_trie(v, bytes, n, vocab_size);
    case 1:
        return vocab_read_bpe(v, bytes, n, vocab_size);
    default:
        *s = (storage){.bytes = bytes, .size = n};
        TRY(gguf_read(g, bytes, n));
        return vocab_read_gguf(v, g, s, vocab_size);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    if (n < HEAD) return -1;
    unsigned kind = bytes[0] % 3;
    size_t n_text = bytes[2] | (size_t)bytes[3] << 8;
    uint32_t vocab_size = load_u32(bytes + 4);
    if (n_text > n - HEAD) return -1;
    size_t n_section = n - HEAD - n_text;
    /* What the readers of models see to before: a whole head, and embeddings that fit the file. */
    if (!vocab_size || vocab_size > 2 * n || (kind < 2 && n_section < SECTION_HEAD)) return -1;

    uint8_t *section = tight_copy(bytes + HEAD + n_text, n_section);
    vocab v = {0};
    gguf g = {0};
    storage s = {0};
    nano_status status = build(&v, kind, section, n_section, vocab_size, &g, &s);
    if (status == NANO_OK && v.size) {
        use_vocab(&v, bytes + HEAD, n_text, bytes[1] & 1);
    } else if (status && !nano_last_error()[0]) {
        fprintf(stderr, "refused without a word\n");
        abort();
    }
    vocab_free(&v);
    gguf_free(&g);
    storage_release(&s);
    free(section);
    return 0;
}
