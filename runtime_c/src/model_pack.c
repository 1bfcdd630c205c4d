/* model_pack.c: one packed copy of every matrix that tokens are multiplied with. */
#include "bytes.h"
#include "error.h"
#include "model.h"
#include "threads.h"

enum { ALIGN = 128 };

/* Of one layer; what is tied, or read a row at a time only, stays where it is. */
enum { N_MATRICES = 7 };
static void list_matrices(layer *l, matrix *list[N_MATRICES]) {
    matrix *const all[N_MATRICES] = {&l->wq, &l->wk, &l->wv, &l->wo, &l->w1, &l->w3, &l->w2};
    for (unsigned i = 0; i < N_MATRICES; i++) list[i] = all[i];
}

typedef struct {
    matrix *w;
    uint8_t *to, *room; /* room: NULL, or for the rows of a block, for each worker */
    size_t row_bytes;
} pack_job;

static void run_pack(void *context, size_t begin, size_t end, unsigned worker) {
    const pack_job *job = context;
    (void)worker;
    pack_blocks(&job->w->pack, job->w, begin, end, job->to);
}

/* ---- where the file's bytes may be overwritten -----------------------------------------------------------
 */

static const uint8_t *bytes_of(const matrix *w) {
    return w->blocks; /* Q80 has none */
}

/* Bytes of a row, in the file; 0: its numbers do not lie together, or rows do not follow each other. */
static size_t row_bytes(const matrix *w) {
    const weight_type *type = weight_type_of(w->quant);
    return type->bytes ? w->cols / type->length * type->bytes : 0;
}

/* Can the packed matrix lie where the matrix does? */
static bool fits_in_place(const nano_model *m, const matrix *w) {
    const uint8_t *from = bytes_of(w);
    size_t bytes = row_bytes(w);
    return m->storage.overwrite && bytes && from != bytes_of(&m->embedding) && from >= m->storage.bytes &&
           from < m->storage.bytes + m->storage.size && w->rows % m->k->format.lanes == 0 &&
           w->pack.stride <= bytes * w->pack.lanes;
}

/* A block's rows are put aside, then packed over them, or over rows before that have been packed already. */
static void run_pack_in_place(void *context, size_t begin, size_t end, unsigned worker) {
    const pack_job *job = context;
    size_t rows = job->w->pack.lanes, bytes = rows * job->row_bytes;
    uint8_t *room = job->room + worker * bytes;
    packed p = job->w->pack;
    matrix aside = *job->w;
    p.rows = aside.rows = (uint32_t)rows;
    aside.blocks = room;
    aside.f32 = (const float *)(const void *)room;
    for (size_t b = begin; b < end; b++) {
        memcpy(room, bytes_of(job->w) + b * bytes, bytes);
        pack_blocks(&p, &aside, 0, 1, job->to + b * p.stride);
    }
}

static nano_status pack_in_place(team *t, matrix *w) {
    pack_job job = {.w = w, .row_bytes = row_bytes(w), .to = (uint8_t *)(uintptr_t)bytes_of(w)};
    size_t block = job.row_bytes * w->pack.lanes, blocks = pack_n_blocks(&w->pack);
    job.room = plat_alloc(times(block, team_size(t)));
    if (!job.room) return nano_fail(NANO_ERR_MEMORY, "out of memory");
    if (w->pack.stride == block)
        team_run(t, blocks, (size_t)w->cols * w->pack.lanes, run_pack_in_place, &job);
    else /* blocks move towards the beginning, one after the other */
        run_pack_in_place(&job, 0, blocks, 0);
    plat_free(job.room);
    w->pack.data = job.to;
    return NANO_OK;
}

static void forget(const nano_model *m, const matrix *w) {
    if (!m->storage.mapped) return;
    const weight_type *type = weight_type_of(w->quant);
    uint64_t n = (uint64_t)w->rows * w->cols;
    const uint8_t *from = w->blocks;
    if (w->quant == NANO_Q80) from = (const uint8_t *)w->q;
    uint64_t bytes = w->quant == NANO_Q80 ? n
                     : w->quant == NANO_Q4K
                         ? (uint64_t)w->rows * ((w->cols + Q4K_LENGTH - 1) / Q4K_LENGTH) * Q4K_BLOCK
                         : n / type->length * type->bytes;
    bool in_file = from >= m->storage.bytes && from < m->storage.bytes + m->storage.size;
    if (in_file) plat_forget_file(from, (size_t)bytes);
}

static void plan(nano_model *m, matrix *w, uint64_t *total) {
    uint64_t bytes;
    w->pack = pack_plan(w, &m->k->format, &bytes);
    if (!fits_in_place(m, w)) *total = plus(*total, plus(bytes, ALIGN - 1) / ALIGN * ALIGN);
    if (w->quant == NANO_F32) forget(m, w); /* looked through for its narrowest kind */
}

static nano_status pack(nano_model *m, team *t, matrix *w, uint8_t **at) {
    if (fits_in_place(m, w)) return pack_in_place(t, w);
    pack_job job = {.w = w, .to = *at};
    size_t blocks = pack_n_blocks(&w->pack);
    team_run(t, blocks, (size_t)w->cols * w->pack.lanes, run_pack, &job);
    w->pack.data = *at;
    *at += (blocks * w->pack.stride + ALIGN - 1) / ALIGN * ALIGN;
    forget(m, w);
    return NANO_OK;
}

nano_status model_pack(nano_model *m) {
    uint32_t n_layer = m->config.n_layer;
    uint64_t total = 0;
    matrix *list[N_MATRICES];
    for (uint32_t l = 0; l < n_layer; l++) {
        list_matrices(&m->layers[l], list);
        for (unsigned i = 0; i < N_MATRICES; i++) plan(m, list[i], &total);
    }
    plan(m, &m->output, &total);
    if (total) m->arena = plat_alloc_arena(total);
    if (total && !m->arena)
        return nano_fail(NANO_ERR_MEMORY, "out of memory: the weights take %llu MB",
                         (unsigned long long)(total >> 20));
    m->arena_bytes = total;
    team *t = team_start(plat_cpu_count());
    if (!t) return nano_fail(NANO_ERR_SYSTEM, "cannot start %u threads", plat_cpu_count());
    uint8_t *at = m->arena;
    /* the biggest first, while there is room for it and its file's pages */
    nano_status status = pack(m, t, &m->output, &at);
    for (uint32_t l = 0; l < n_layer && !status; l++) {
        list_matrices(&m->layers[l], list);
        for (unsigned i = 0; i < N_MATRICES && !status; i++) status = pack(m, t, list[i], &at);
    }
    team_stop(t);
    return status;
}
