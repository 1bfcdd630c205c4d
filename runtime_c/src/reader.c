/* reader.c: the parts of reading that models and adapters share. */
#include "reader.h"

#include "bytes.h"
#include "error.h"

static const uint32_t MAGIC[2] = {0x42443453, 0x55524c4d};

nano_status reader_header(header *h, const uint8_t *bytes, size_t size) {
    if (size < HEADER_BYTES)
        return nano_fail(NANO_ERR_FORMAT,
                         "%llu bytes are too few: a model file starts with a header of %d bytes",
                         (unsigned long long)size, HEADER_BYTES);
    for (unsigned i = 0; i < 64; i++) h->word[i] = load_u32(bytes + 4 * i);
    if (h->word[0] != MAGIC[0] || h->word[1] != MAGIC[1])
        return nano_fail(NANO_ERR_FORMAT,
                         "not a .bin model file nor a GGUF file: it starts with neither \"S4DBMLRU\" nor "
                         "\"GGUF\"");
    return NANO_OK;
}

nano_status reader_field(const char *name, uint32_t value, uint32_t low, uint32_t high) {
    if (value >= low && value <= high) return NANO_OK;
    return nano_fail(NANO_ERR_FORMAT, "header: %s is %u; it must be between %u and %u", name, value, low,
                     high);
}

const uint8_t *reader_take(reader *r, uint64_t count, uint64_t item, const char *what) {
    uint64_t bytes = times(count, item), left = r->storage->size - r->at;
    if (bytes > left) {
        r->status = nano_fail(
            NANO_ERR_FORMAT, "the file ends too early: %s at byte %llu takes %llu bytes, but %llu are left",
            what, (unsigned long long)r->at, (unsigned long long)bytes, (unsigned long long)left);
        return NULL;
    }
    const uint8_t *here = r->storage->bytes + r->at;
    r->at += bytes;
    return here;
}

float *storage_room(storage *s, uint64_t count) {
    float *room = plat_alloc(times(count, sizeof(float)));
    void **list = plat_alloc((s->n_copies + 1) * sizeof *list);
    if (!room || !list) {
        plat_free(room);
        plat_free(list);
        nano_fail(NANO_ERR_MEMORY, "out of memory for %llu weights", (unsigned long long)count);
        return NULL;
    }
    if (s->n_copies) memcpy(list, s->copies, s->n_copies * sizeof *list);
    plat_free(s->copies);
    s->copies = list;
    s->copies[s->n_copies++] = room;
    return room;
}

const float *storage_floats(storage *s, const uint8_t *bytes, uint64_t count) {
    const float *in_place = floats_in_place(bytes);
    if (in_place) return in_place;
    float *copy = storage_room(s, count);
    if (copy) memcpy(copy, bytes, (size_t)count * sizeof(float));
    return copy;
}

const float *reader_floats(reader *r, uint64_t count, const char *what) {
    const uint8_t *bytes = reader_take(r, count, sizeof(float), what);
    const float *floats = bytes ? storage_floats(r->storage, bytes, count) : NULL;
    if (bytes && !floats) r->status = NANO_ERR_MEMORY;
    return floats;
}

nano_status reader_matrix(reader *r, matrix *m, const char *what) {
    m->quant = NANO_F32;
    m->blocks = reader_take(r, (uint64_t)m->rows * m->cols, sizeof(float), what);
    if (!m->blocks) return r->status;
    m->f32 = floats_in_place(m->blocks);
    return NANO_OK;
}

nano_status storage_map(storage *s, const char *path) {
    const char *why = "";
    s->bytes = plat_map_file(path, &s->size, &why);
    if (!s->bytes) return nano_fail(NANO_ERR_FILE, "cannot read %s: %s", path, why);
    s->mapped = true;
    return NANO_OK;
}

void storage_release(storage *s) {
    for (size_t i = 0; i < s->n_copies; i++) plat_free(s->copies[i]);
    plat_free(s->copies);
    if (s->mapped) plat_unmap_file(s->bytes, s->size);
}
