/* nfc.h: Unicode's normal form C. Bytes that are no UTF-8 stay as they are, and no mark joins them. */
#ifndef NANO_NFC_H
#define NANO_NFC_H

#include "nano.h"

/* No text grows to more than this many times its bytes (U+1D160 does). */
enum { NFC_GROWTH = 3 };

/* Length of the start of the text that is in normal form, whatever comes after it; n: all of it is. */
size_t nfc_done(const uint8_t *text, size_t n);

/* Memory for nfc_write to work in. Zero-initialise it, plat_free(points) after the last use. */
typedef struct {
    uint32_t *points;
    uint64_t room;
} nfc_scratch;

/* Writes the text in normal form to `out`, which has room for NFC_GROWTH n bytes. */
nano_status nfc_write(const uint8_t *text, size_t n, nfc_scratch *scratch, uint8_t *out, size_t *n_out);

#endif
