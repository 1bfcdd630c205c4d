/* forward.c: the Transformer. forward() at the end is the whole plan; what is above are its steps, each of
 * which shares its work out over the threads. A token takes five shared steps in each layer: q, k and v;
 * attention; its output; gate and up; down. */
#include "attend.h"
#include "session.h"

#include <string.h>

/* ---- what matrices are multiplied with
 * ---------------------------------------------------------------------
 */

typedef struct {
    nano_session *s;
    const float *gain, *from; /* gain NULL: no norm */
    float *rows;
    size_t cols;
    bool floats, integers;
} input_job;

/* Tile `index` of n tokens: where it begins and how many it has. */
static size_t tile_at(const kernels *k, size_t n, size_t index, size_t *size) {
    size_t first = k->tiles[0], t = index < n / first ? index * first : n / first * first;
    for (size_t i = t / first; i < index; i++) t += kernels_tile(k, n - t);
    *size = kernels_tile(k, n - t);
    return t;
}

static size_t count_tiles(const kernels *k, size_t n) {
    size_t count = n / k->tiles[0];
    for (size_t left = n % k->tiles[0]; left; left -= kernels_tile(k, left)) count++;
    return count;
}

static void make_input(void *context, size_t begin, size_t end, unsigned worker) {
    const input_job *job = context;
    nano_session *s = job->s;
    size_t cols = job->cols, T;
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        size_t t = tile_at(s->k, s->input.n, i, &T);
        for (size_t j = t; j < t + T && job->gain; j++)
            s->k->rms_norm(job->rows + j * cols, job->from + j * cols, job->gain, cols,
                           s->model->config.norm_eps);
        if (job->integers) s->k->quantise(&s->input, t, T, job->rows + t * cols, cols);
        if (!job->floats || s->input.f32 == job->rows) continue;
        for (size_t c = 0; c < cols; c++)
            for (size_t j = 0; j < T; j++) s->input.f32[t * cols + c * T + j] = job->rows[(t + j) * cols + c];
    }
}

/* Up to three matrices that read the same n vectors of `cols` numbers. */
typedef struct {
    nano_session *s;
    const float *rows; /* [n,cols] */
    size_t n, cols;
    unsigned count;
    const matrix *w[3];
    const float *bias[3];
    const lora_pair *lora[3];
    float *y[3];
    bool residual; /* add to y what is there already */
    bool swiglu;   /* y[0] = silu(y[0]) y[1] */
} product;

static void set_input(product *p, const float *gain, const float *from, float *rows) {
    nano_session *s = p->s;
    input_job job = {.s = s, .gain = gain, .from = from, .rows = rows, .cols = p->cols};
    for (unsigned i = 0; i < p->count; i++)
        *(p->w[i]->pack.data && p->w[i]->pack.kind >= PACK_I8 ? &job.integers : &job.floats) = true;
    p->rows = rows;
    s->input.n = p->n;
    s->input.cols = p->cols;
    s->input.groups = (p->cols + GROUP - 1) / GROUP;
    /* rows are tiles of one */
    s->input.f32 = p->n == 1 || s->k->tiles[0] == 1 || s->model->exact ? rows : s->input_floats;
    team_run(s->team, count_tiles(s->k, p->n), 4 * p->cols * s->k->tiles[0], make_input, &job);
}

/* ---- adapters
 * ----------------------------------------------------------------------------------------------
 */

static float *low_rank_of(const product *p, unsigned i) {
    return p->s->low_rank + (size_t)i * p->s->batch * p->s->adapter->config.rank;
}

/* low[i][t] = A[i] x[t] */
static void run_low_rank(void *context, size_t begin, size_t end, unsigned worker) {
    const product *p = context;
    (void)worker;
    for (unsigned i = 0; i < p->count; i++) {
        const lora_pair *pair = p->lora[i];
        for (size_t t = begin; pair && pair->a.rows && t < end; t++)
            for (size_t j = 0; j < pair->a.rows; j++)
                low_rank_of(p, i)[t * pair->a.rows + j] =
                    p->s->k->dot(pair->down + j * p->cols, p->rows + t * p->cols, p->cols);
    }
}

/* y[t] += scale B low[t], rows [from, to) of matrix i */
static void add_lora(const product *p, unsigned i, size_t from, size_t to) {
    const lora_pair *pair = p->lora[i];
    if (!pair || !pair->a.rows) return;
    size_t rows = p->w[i]->rows, rank = pair->a.rows;
    for (size_t t = 0; t < p->n; t++)
        for (size_t j = 0; j < rank; j++)
            p->s->k->add_scaled(p->y[i] + t * rows + from, pair->up + j * rows + from,
                                low_rank_of(p, i)[t * rank + j], to - from);
}

/* ---- products
 * ----------------------------------------------------------------------------------------------
 */

static size_t n_blocks(const kernels *k, const matrix *w) {
    return (w->rows + k->format.lanes - 1) / k->format.lanes;
}

/* Row blocks [begin, end) of matrix i, and what belongs to them: residual, bias, adapter. */
static void multiply_rows(const product *p, unsigned i, size_t begin, size_t end) {
    nano_session *s = p->s;
    const matrix *w = p->w[i];
    size_t lanes = s->k->format.lanes, from = begin * lanes,
           to = end * lanes < w->rows ? end * lanes : w->rows;
    float *y = p->residual ? s->block_out : p->y[i];
    if (w->pack.data)
        s->k->matmul[w->pack.kind](&w->pack, &s->input, begin, end, y, w->rows);
    else
        matrix_multiply(w, p->rows, p->n, from, to, y, w->rows);
    for (size_t t = 0; t < p->n; t++) {
        if (p->residual)
            s->k->add_scaled(p->y[i] + t * w->rows + from, y + t * w->rows + from, 1.0f, to - from);
        if (p->bias[i]) s->k->add_scaled(p->y[i] + t * w->rows + from, p->bias[i] + from, 1.0f, to - from);
    }
    add_lora(p, i, from, to);
}

/* Items are the row blocks of all matrices, end to end; with swiglu those of the first. */
static void run_product(void *context, size_t begin, size_t end, unsigned worker) {
    const product *p = context;
    size_t base = 0;
    (void)worker;
    if (p->swiglu) {
        size_t lanes = p->s->k->format.lanes, rows = p->w[0]->rows,
               to = end * lanes < rows ? end * lanes : rows;
        for (unsigned i = 0; i < 2; i++) multiply_rows(p, i, begin, end);
        for (size_t t = 0; t < p->n; t++)
            p->s->k->swiglu(p->y[0] + t * rows + begin * lanes, p->y[1] + t * rows + begin * lanes,
                            to - begin * lanes);
        return;
    }
    for (unsigned i = 0; i < p->count; i++) {
        size_t blocks = n_blocks(p->s->k, p->w[i]), from = begin > base ? begin - base : 0,
               to = end > base ? end - base : 0;
        if (to > blocks) to = blocks;
        if (from < to) multiply_rows(p, i, from, to);
        base += blocks;
    }
}

/* One more matrix that reads the same, into y[n,rows]. */
static void add_matrix(product *p, const matrix *w, const float *bias, const lora_pair *lora, float *y) {
    unsigned i = p->count++;
    p->w[i] = w;
    p->bias[i] = bias;
    p->lora[i] = lora;
    p->y[i] = y;
    p->cols = w->cols;
}

static void do_product(product *p) {
    nano_session *s = p->s;
    size_t items = 0, matrices = p->swiglu ? 2 : 1;
    if (p->lora[0] || p->lora[1] || p->lora[2])
        team_run(s->team, p->n, p->count * s->adapter->config.rank * p->cols, run_low_rank, p);
    for (unsigned i = 0; i < (p->swiglu ? 1 : p->count); i++) items += n_blocks(s->k, p->w[i]);
    team_run(s->team, items, p->n * p->cols * s->k->format.lanes * matrices, run_product, p);
}

/* ---- the plan
 * ----------------------------------------------------------------------------------------------
 */

/* x += the learned vectors of these positions */
static void add_positions(nano_session *s, uint32_t n) {
    size_t e = s->model->config.n_embd;
    for (uint32_t t = 0; t < n; t++) {
        matrix_row(s->normed, &s->model->positions, s->length + t);
        s->k->add_scaled(s->x + t * e, s->normed, 1.0f, e);
    }
}

void forward(nano_session *s, const uint32_t *ids, uint32_t n, float *all_logits, bool want_last) {
    const nano_model *m = s->model;
    const nano_config *c = &m->config;
    size_t e = c->n_embd;

    for (uint32_t t = 0; t < n; t++) matrix_row(s->x + t * e, &m->embedding, ids[t]);
    if (m->positions.rows) add_positions(s, n);

    for (uint32_t l = 0; l < c->n_layer; l++) {
        const layer *w = &m->layers[l];
        const lora_layer *lora = s->adapter && l < s->adapter->n_layers ? &s->adapter->layers[l] : NULL;

        /* x += Wo attention(norm(x)) */
        product qkv = {.s = s, .n = n};
        add_matrix(&qkv, &w->wq, w->bq, lora ? &lora->q : NULL, s->q);
        add_matrix(&qkv, &w->wk, w->bk, lora ? &lora->k : NULL, s->key);
        add_matrix(&qkv, &w->wv, w->bv, lora ? &lora->v : NULL, s->value);
        set_input(&qkv, w->attn_norm, s->x, s->normed);
        do_product(&qkv);
        place_heads(s, l, n);
        attend(s, l, n);
        product o = {.s = s, .n = n, .residual = true};
        add_matrix(&o, &w->wo, w->bo, lora ? &lora->o : NULL, s->x);
        set_input(&o, NULL, NULL, s->attended);
        do_product(&o);

        /* x += W2(silu(W1 norm(x)) * W3 norm(x)), each with its bias if it has one */
        product gate_up = {.s = s, .n = n, .swiglu = true};
        add_matrix(&gate_up, &w->w1, w->b1, lora ? &lora->w1 : NULL, s->gate);
        add_matrix(&gate_up, &w->w3, w->b3, lora ? &lora->w3 : NULL, s->up);
        set_input(&gate_up, w->ffn_norm, s->x, s->normed);
        do_product(&gate_up);
        product down = {.s = s, .n = n, .residual = true};
        add_matrix(&down, &w->w2, w->b2, lora ? &lora->w2 : NULL, s->x);
        set_input(&down, NULL, NULL, s->gate);
        do_product(&down);
    }

    /* The classifier is the biggest matrix: only for the tokens whose prediction somebody wants. */
    if (!all_logits && !want_last) return;
    product classify = {.s = s, .n = all_logits ? n : 1};
    add_matrix(&classify, &m->output, NULL, NULL, all_logits ? all_logits : s->logits);
    set_input(&classify, m->final_norm, s->x + (all_logits ? 0 : (n - 1) * e), s->normed);
    do_product(&classify);
    if (all_logits && want_last)
        memcpy(s->logits, all_logits + (size_t)(n - 1) * c->vocab_size, c->vocab_size * sizeof(float));
}
