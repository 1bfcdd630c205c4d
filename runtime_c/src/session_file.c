/* session_file.c: a session in a file, as README.md describes it. What is read is believed only when its
 * checksum is right, and then checked all the same. */
#include "attend.h"
#include "bytes.h"
#include "error.h"
#include "fingerprint.h"
#include "reader.h"

enum { VERSION = 1, SESSION_HEADER = 104, CHECKSUM_BYTES = 8 };

static const char MAGIC[8] = {'N', 'A', 'N', 'O', 'S', 'E', 'S', 'S'};

typedef struct {
    uint64_t model, adapter, state;
    uint32_t cache, n_layer, n_kv_head, head_dim, vocab_size, n_tokens, top_k;
    double penalty, temperature, top_p;
} facts;

/* Writes or reads the header's fields, one after the other. */
typedef struct {
    uint8_t *to; /* NULL: reading */
    const uint8_t *from;
} field_walk;

static void field(field_walk *w, void *value, size_t n) {
    if (w->to) {
        memcpy(w->to, value, n);
        w->to += n;
    } else {
        memcpy(value, w->from, n);
        w->from += n;
    }
}

static void walk_fields(field_walk *w, facts *f) {
    field(w, &f->model, 8);
    field(w, &f->adapter, 8);
    field(w, &f->cache, 4);
    field(w, &f->n_layer, 4);
    field(w, &f->n_kv_head, 4);
    field(w, &f->head_dim, 4);
    field(w, &f->vocab_size, 4);
    field(w, &f->n_tokens, 4);
    field(w, &f->penalty, 8);
    field(w, &f->temperature, 8);
    field(w, &f->top_p, 8);
    field(w, &f->state, 8);
    field(w, &f->top_k, 4);
}

static facts facts_of(const nano_session *s) {
    const nano_config *c = &s->model->config;
    const nano_sampler_params *p = &s->sampler.params;
    return (facts){.model = model_fingerprint(s->model),
                   .adapter = s->length    ? s->by
                              : s->adapter ? s->adapter->fingerprint
                                           : 0,
                   .state = s->sampler.state,
                   .cache = s->halves ? NANO_CACHE_F16 : NANO_CACHE_F32,
                   .n_layer = c->n_layer,
                   .n_kv_head = c->n_kv_head,
                   .head_dim = c->head_dim,
                   .vocab_size = c->vocab_size,
                   .n_tokens = s->length,
                   .top_k = p->top_k,
                   .penalty = p->repetition_penalty,
                   .temperature = p->temperature,
                   .top_p = p->top_p};
}

static uint64_t plane_bytes(const facts *f) {
    return times(times(f->n_tokens, f->head_dim), f->cache == NANO_CACHE_F16 ? 2 : 4);
}

/* ---- writing ---------------------------------------------------------------------------------------------
 */

typedef struct {
    plat_output *file;
    fingerprint hash;
    const char *why;
    bool failed;
} output;

static void put(output *o, const void *bytes, size_t n) {
    if (o->failed) return;
    fingerprint_add(&o->hash, bytes, n);
    o->failed = !plat_output_write(o->file, bytes, n, &o->why);
}

static void put_header(output *o, facts *f) {
    uint8_t bytes[SESSION_HEADER] = {0};
    uint32_t version = VERSION, header_bytes = SESSION_HEADER;
    memcpy(bytes, MAGIC, sizeof MAGIC);
    memcpy(bytes + 8, &version, 4);
    memcpy(bytes + 12, &header_bytes, 4);
    field_walk w = {.to = bytes + 16};
    walk_fields(&w, f);
    put(o, bytes, sizeof bytes);
}

static void put_cache(output *o, const nano_session *s, uint8_t *plane, size_t n_bytes) {
    size_t vector = s->length ? n_bytes / s->length : 0;
    for (uint32_t l = 0; l < s->model->config.n_layer; l++)
        for (uint32_t h = 0; h < s->model->config.n_kv_head; h++)
            for (int values = 0; values < 2; values++) {
                for (uint32_t p = 0; p < s->length; p++) cache_read(s, l, h, p, values, plane + p * vector);
                put(o, plane, n_bytes);
            }
}

nano_status nano_session_save_file(const nano_session *s, const char *path) {
    if (!s->model->config.causal)
        return nano_fail(NANO_ERR_ARGUMENT,
                         "a non-causal model's session cannot go on: there is nothing to save");
    if (s->by_several)
        return nano_fail(NANO_ERR_ARGUMENT, "this session's tokens were computed with different adapters: it "
                                            "cannot be saved");
    facts f = facts_of(s);
    uint64_t n_bytes = plane_bytes(&f);
    uint8_t *plane = plat_alloc(n_bytes);
    if (!plane) return nano_fail(NANO_ERR_MEMORY, "out of memory for saving %u tokens", s->length);
    output o = {0};
    fingerprint_begin(&o.hash);
    o.file = plat_output_begin(path, &o.why);
    if (!o.file) {
        plat_free(plane);
        return nano_fail(NANO_ERR_FILE, "cannot write %s: %s", path, o.why);
    }
    put_header(&o, &f);
    put(&o, s->ids, s->length * sizeof *s->ids);
    put_cache(&o, s, plane, (size_t)n_bytes);
    uint64_t checksum = fingerprint_end(&o.hash);
    put(&o, &checksum, sizeof checksum);
    bool whole = plat_output_end(o.file, !o.failed, &o.why) && !o.failed;
    plat_free(plane);
    return whole ? NANO_OK : nano_fail(NANO_ERR_FILE, "cannot write %s: %s", path, o.why);
}

/* ---- reading ---------------------------------------------------------------------------------------------
 */

static nano_status read_facts(const uint8_t *bytes, size_t size, const char *name, facts *f) {
    if (size < sizeof MAGIC || memcmp(bytes, MAGIC, sizeof MAGIC) != 0)
        return nano_fail(NANO_ERR_FORMAT, "%s: this is not a session file", name);
    if (size < SESSION_HEADER + CHECKSUM_BYTES)
        return nano_fail(NANO_ERR_FORMAT, "%s: the session file is cut; delete it", name);
    if (load_u32(bytes + 8) != VERSION || load_u32(bytes + 12) != SESSION_HEADER)
        return nano_fail(NANO_ERR_FORMAT, "%s: a session file of version %u, this program knows %d", name,
                         load_u32(bytes + 8), VERSION);
    field_walk w = {.from = bytes + 16};
    walk_fields(&w, f);
    return NANO_OK;
}

nano_status nano_probe_session_file(const char *path, uint32_t *n_tokens) {
    storage file = {0};
    facts f;
    nano_status status = storage_map(&file, path);
    if (!status) status = read_facts(file.bytes, file.size, path, &f);
    if (!status) *n_tokens = f.n_tokens;
    storage_release(&file);
    return status;
}

static nano_status check_facts(const nano_session *s, const facts *f, const char *name) {
    facts mine = facts_of(s);
    uint64_t adapter = s->adapter ? s->adapter->fingerprint : 0;
    if (f->model != mine.model || f->n_layer != mine.n_layer || f->n_kv_head != mine.n_kv_head ||
        f->head_dim != mine.head_dim || f->vocab_size != mine.vocab_size)
        return nano_fail(NANO_ERR_MISMATCH, "%s: this session belongs to another model", name);
    if (f->adapter != adapter)
        return nano_fail(NANO_ERR_MISMATCH, "%s: this session was computed %s", name,
                         !f->adapter ? "without an adapter"
                         : adapter   ? "with another adapter"
                                     : "with an adapter, which must be given again");
    if (f->cache != mine.cache)
        return nano_fail(NANO_ERR_MISMATCH, "%s: this session's keys and values are %s, not %s", name,
                         f->cache == NANO_CACHE_F16 ? "f16" : "f32", s->halves ? "f16" : "f32");
    if (f->n_tokens > s->context)
        return nano_fail(NANO_ERR_CONTEXT, "%s: this session has %u tokens, the context has room for %u",
                         name, f->n_tokens, s->context);
    return NANO_OK;
}

/* Are these numbers, all of them? */
static bool all_finite(const uint8_t *bytes, uint64_t n_bytes, bool halves) {
    uint32_t strange = 0;
    if (halves)
        for (uint64_t i = 0; i + 2 <= n_bytes; i += 2) strange |= (bytes[i + 1] & 0x7Cu) == 0x7Cu;
    else
        for (uint64_t i = 0; i + 4 <= n_bytes; i += 4)
            strange |= (load_u32(bytes + i) & 0x7F800000u) == 0x7F800000u;
    return !strange;
}

static nano_status check_content(const nano_session *s, const facts *f, const uint8_t *bytes, size_t size,
                                 const char *name) {
    uint64_t ids = times(f->n_tokens, 4),
             cache = times(times(times(f->n_layer, f->n_kv_head), 2), plane_bytes(f));
    if (plus(plus(SESSION_HEADER + CHECKSUM_BYTES, ids), cache) != size)
        return nano_fail(NANO_ERR_FORMAT,
                         "%s: the session file has %llu bytes, which is not what %u tokens take", name,
                         (unsigned long long)size, f->n_tokens);
    for (uint32_t i = 0; i < f->n_tokens; i++)
        if (load_u32(bytes + SESSION_HEADER + 4 * (size_t)i) >= f->vocab_size)
            return nano_fail(NANO_ERR_FORMAT, "%s: token %u of the session is not in the vocabulary", name,
                             i);
    if (!all_finite(bytes + SESSION_HEADER + ids, cache, s->halves))
        return nano_fail(NANO_ERR_FORMAT, "%s: keys or values of the session are not finite", name);
    return NANO_OK;
}

static void restore(nano_session *s, const facts *f, const sampler *sampling, const uint8_t *at) {
    size_t vector = (size_t)f->head_dim * (s->halves ? 2 : 4);
    nano_session_reset(s);
    session_note_adapter(s);
    for (uint32_t i = 0; i < f->n_tokens; i++, at += 4) session_append(s, load_u32(at));
    for (uint32_t l = 0; l < f->n_layer; l++)
        for (uint32_t h = 0; h < f->n_kv_head; h++)
            for (int values = 0; values < 2; values++)
                for (uint32_t p = 0; p < f->n_tokens; p++, at += vector) cache_write(s, l, h, p, values, at);
    s->sampler = *sampling;
}

nano_status session_restore(nano_session *s, const uint8_t *bytes, size_t size, const char *name) {
    facts f;
    sampler sampling;
    TRY(read_facts(bytes, size, name, &f));
    fingerprint hash;
    fingerprint_begin(&hash);
    fingerprint_add(&hash, bytes, size - CHECKSUM_BYTES);
    if (fingerprint_end(&hash) != load_u64(bytes + size - CHECKSUM_BYTES))
        return nano_fail(NANO_ERR_FORMAT, "%s: the session file is cut or damaged; delete it", name);
    TRY(check_facts(s, &f, name));
    TRY(check_content(s, &f, bytes, size, name));
    nano_sampler_params params = {.repetition_penalty = f.penalty,
                                  .temperature = f.temperature,
                                  .top_k = f.top_k,
                                  .top_p = f.top_p,
                                  .seed = f.state};
    TRY(sampler_init(&sampling, &params));
    restore(s, &f, &sampling, bytes + SESSION_HEADER);
    return NANO_OK;
}

nano_status nano_session_load_file(nano_session *s, const char *path) {
    storage file = {0};
    nano_status status = storage_map(&file, path);
    if (!status && !s->model->config.causal)
        status = nano_fail(NANO_ERR_ARGUMENT, "a non-causal model's session cannot go on: nothing is loaded");
    if (!status) status = session_restore(s, file.bytes, file.size, path);
    storage_release(&file);
    return status;
}
