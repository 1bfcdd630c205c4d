/* weights.h: the types that weights come in. One table says for each how many weights a block holds, in how
 * many bytes, and how to turn blocks into floats; all else follows from it.
 *
 * A caution about names: Q80 and Q4K are types of Nano's `.bin` files (docs/model_file.md), Q8_0 and Q4_K are
 * GGUF's. They are different things. */
#ifndef NANO_WEIGHTS_H
#define NANO_WEIGHTS_H

#include "nano.h"
#include "platform.h"

typedef struct {
    const char *name;
    uint32_t length,
        bytes; /* of a block; 0: no GGUF type, its parts do not lie together (Q80) or rows are ragged */
    void (*read)(float *restrict out, const uint8_t *restrict blocks, size_t n_blocks);
} weight_type;

const weight_type *weight_type_of(nano_quant type);

/* One group of 32 of a 4-bit block of 256: 32 weights scale q + offset. Q4_K, and Nano's Q4K. */
void weight_q4_k_group(const uint8_t *block, size_t g, uint8_t *q, float *scale, float *offset);
void weight_q4k_group(const uint8_t *block, size_t g, uint8_t *q, float *scale, float *offset);

/* GGUF's number of a type; false if this engine does not read it. */
bool weight_type_from_gguf(uint32_t number, nano_quant *type);
const char *weight_types_of_gguf(void); /* their names, for a message */

#endif
