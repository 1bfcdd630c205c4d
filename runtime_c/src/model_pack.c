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
    uint8_t *to;
} pack_job;

static void run_pack(void *context, size_t begin, size_t end, unsigned worker) {
    const pack_job *job = context;
    (void)worker;
    pack_blocks(&job->w->pack, job->w, begin, end, job->to);
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
    *total = plus(*total, plus(bytes, ALIGN - 1) / ALIGN * ALIGN);
    if (w->quant == NANO_F32) forget(m, w); /* looked through for its narrowest kind */
}

static void pack(nano_model *m, team *t, matrix *w, uint8_t **at) {
    pack_job job = {w, *at};
    size_t blocks = pack_n_blocks(&w->pack);
    team_run(t, blocks, (size_t)w->cols * w->pack.lanes, run_pack, &job);
    w->pack.data = *at;
    *at += (blocks * w->pack.stride + ALIGN - 1) / ALIGN * ALIGN;
    forget(m, w);
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
    m->arena = plat_alloc_arena(total);
    if (!m->arena)
        return nano_fail(NANO_ERR_MEMORY, "out of memory: the weights take %llu MB",
                         (unsigned long long)(total >> 20));
    m->arena_bytes = total;
    team *t = team_start(plat_cpu_count());
    if (!t) return nano_fail(NANO_ERR_SYSTEM, "cannot start %u threads", plat_cpu_count());
    uint8_t *at = m->arena;
    pack(m, t, &m->output, &at); /* the biggest first, while there is room for it and its file's pages */
    for (uint32_t l = 0; l < n_layer; l++) {
        list_matrices(&m->layers[l], list);
        for (unsigned i = 0; i < N_MATRICES; i++) pack(m, t, list[i], &at);
    }
    team_stop(t);
    return NANO_OK;
}
