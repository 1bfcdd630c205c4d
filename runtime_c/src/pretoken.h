/* pretoken.h: where a text is cut before the merges of a byte-level BPE; no token reaches over such a cut. */
#ifndef NANO_PRETOKEN_H
#define NANO_PRETOKEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The rules of model families, each the regular expression beside it, its first alternative that matches. */
typedef enum {
    PRE_GPT2,   /* '(s|t|re|ve|m|ll|d) |  ?\p{L}+ |  ?\p{N}+ |  ?[^\s\p{L}\p{N}]+ | \s+(?!\S) | \s+ */
    PRE_SMOLLM, /* first each \p{N} on its own, then what is between them as PRE_GPT2 */
    PRE_LLAMA3, /* (?i:'(s|t|re|ve|m|ll|d)) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N}{1,3}
                   |  ?[^\s\p{L}\p{N}]+[\r\n]* | \s*[\r\n]+ | \s+(?!\S) | \s+ */
    PRE_QWEN2,  /* as PRE_LLAMA3, but \p{N} */
} pre_kind;

/* The kind that GGUF's tokenizer.ggml.pre names: "gpt-2", "smollm", "llama-bpe", "qwen2", or another name for
 * one of these. False: a name that is not known here. */
bool pre_kind_from_name(const uint8_t *name, size_t n, pre_kind *kind);

/* The end of the piece that begins at `at` < `end`; the text stops at `end`. */
size_t pretoken_end(pre_kind kind, const uint8_t *text, size_t at, size_t end);

#endif
