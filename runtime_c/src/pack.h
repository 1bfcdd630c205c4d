/* pack.h: weights in the layout that the kernels read, made once when a model is opened.
 *
 * A packed matrix is blocks of `lanes` rows (the last one filled up with zeros), one after the other; inside
 * a block the rows lie interleaved, so that a kernel reads one stream of bytes and works on all rows at once:
 *
 *   F32, F16, BF16   [cols] [lanes] numbers
 *   I8               [groups] { [8][lanes][4] bytes, [lanes] half scales }
 *   I4               [groups] { [4][lanes][4] bytes, [lanes] half scales }
 *   I4_OFFSET        [groups] { the same, [lanes] half offsets }
 *
 * A group is 32 columns (the last one filled up with zeros). Four bytes of I8 are the weights of four
 * columns; four bytes of I4 have those of columns 4j .. 4j+3 in their low halves and of 16+4j .. 16+4j+3 in
 * their high ones. All bytes are XORed with `flip`, as the instructions of a kernel want them: I8 is q +
 * (flip 0x80 makes q + 128 of it), a half of I4 is q + 8 without and q with flip 8. The weight is scale q, or
 * with offsets scale (q + 8) + offset. */
#ifndef NANO_PACK_H
#define NANO_PACK_H

#include "weights.h"

typedef enum { PACK_F32, PACK_F16, PACK_BF16, PACK_I8, PACK_I4, PACK_I4_OFFSET, N_PACK_KINDS } pack_kind;

enum { GROUP = 32, MAX_LANES = 16 };

typedef struct {
    pack_kind kind;
    uint32_t rows, cols, lanes, groups;
    uint8_t flip;
    size_t stride;       /* bytes of a block of rows */
    const uint8_t *data; /* NULL: not packed */
} packed;

/* What a kernel table asks of the layout. */
typedef struct {
    uint32_t lanes;
    uint8_t flip[N_PACK_KINDS];
} pack_format;

struct matrix;

/* The kind that a matrix becomes. Types that none of the kinds holds exactly are quantised again, to 8 bits.
 */
pack_kind pack_kind_of(const struct matrix *w);
/* The packed matrix without its data, and how many bytes that takes. */
packed pack_plan(const struct matrix *w, const pack_format *format, uint64_t *bytes);
/* Fills row blocks [begin, end) of `to`. */
void pack_blocks(const packed *p, const struct matrix *w, size_t begin, size_t end, uint8_t *to);

static inline size_t pack_n_blocks(const packed *p) {
    return ((size_t)p->rows + p->lanes - 1) / p->lanes;
}

static inline size_t pack_group_bytes(pack_kind kind, size_t lanes) {
    return lanes * (kind == PACK_I8 ? GROUP + 2 : kind == PACK_I4 ? GROUP / 2 + 2 : GROUP / 2 + 4);
}

#endif
