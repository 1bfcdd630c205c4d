/* model_gguf.h: the steps of reading a GGUF file that models and adapters share. */
#ifndef NANO_MODEL_GGUF_H
#define NANO_MODEL_GGUF_H

#include "model.h"

/* config_gguf.c: m->config from the keys of m->gguf; what only the tensors tell is left to model_gguf.c. */
nano_status config_read_gguf(nano_model *m);

/* "blk.3.attn_q.weight" is layer 3 and "attn_q.weight"; false for names of any other form. */
bool gguf_layer_name(text_span name, uint32_t *index, text_span *rest);

/* The tensor as a matrix, in place; NANO_ERR_FORMAT if it is not of this shape. */
nano_status gguf_take_matrix(const gguf_tensor *t, uint32_t rows, uint32_t cols, matrix *out);

/* tokenizer_gguf.c: builds `v` from the file's tokenizer.ggml keys; a file without any gives a vocabulary of
 * size 0. The vocabulary may refer to the file and the storage. */
nano_status vocab_read_gguf(vocab *v, const gguf *g, storage *s, uint32_t vocab_size);

#endif
