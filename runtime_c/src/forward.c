/* forward.c: the Transformer. forward() at the end is the whole plan; what is above are its steps, each of
 * which shares its work out over the threads. */
#include "session.h"

#include <math.h>
#include <string.h>

/* ---- matrices --------------------------------------------------------------------------------------------
 */

/* Up to three matrices that read the same x: y[i] = w[i] x. Items are the rows of all of them, end to end. */
typedef struct {
    const kernels *k;
    const float *x;
    size_t n;
    unsigned count;
    const matrix *w[3];
    float *y[3];
    size_t y_stride[3];
} matmul_job;

static void run_matmul(void *context, size_t begin, size_t end, unsigned worker) {
    const matmul_job *job = context;
    (void)worker;
    size_t base = 0;
    for (unsigned i = 0; i < job->count; i++) {
        const matrix *w = job->w[i];
        size_t from = begin > base ? begin - base : 0, to = end > base ? end - base : 0;
        if (to > w->rows) to = w->rows;
        if (from < to) job->k->matmul(job->y[i], job->y_stride[i], w, job->x, w->cols, job->n, from, to);
        base += w->rows;
    }
}

static void add_matmul(matmul_job *job, const matrix *w, float *y) {
    job->w[job->count] = w;
    job->y[job->count] = y;
    job->y_stride[job->count++] = w->rows;
}

static void do_matmuls(nano_session *s, matmul_job *job) {
    size_t rows = 0;
    for (unsigned i = 0; i < job->count; i++) rows += job->w[i]->rows;
    team_run(s->team, rows, job->n * job->w[0]->cols, run_matmul, job);
}

/* y[n,rows] = W x[n,cols] */
static void multiply(nano_session *s, const matrix *w, const float *x, size_t n, float *y) {
    matmul_job job = {.k = s->k, .x = x, .n = n};
    add_matmul(&job, w, y);
    do_matmuls(s, &job);
}

/* y += scale B(A x), where the adapter has something for this linear */
static void add_lora(nano_session *s, const lora_pair *pair, const float *x, size_t n, float *y) {
    if (!pair->a.rows) return;
    multiply(s, &pair->a, x, n, s->low_rank);
    multiply(s, &pair->b, s->low_rank, n, s->lora_out);
    s->k->add_scaled(y, s->lora_out, pair->scale, n * pair->b.rows);
}

static void add_bias(nano_session *s, const float *bias, size_t n, size_t width, float *y) {
    if (!bias) return;
    for (size_t t = 0; t < n; t++) s->k->add_scaled(y + t * width, bias, 1.0f, width);
}

static void normalise(nano_session *s, const float *gain, const float *x, size_t n, float *y) {
    const nano_config *c = &s->model->config;
    for (size_t t = 0; t < n; t++)
        s->k->rms_norm(y + t * c->n_embd, x + t * c->n_embd, gain, c->n_embd, c->norm_eps);
}

/* x += the learned vectors of these positions */
static void add_positions(nano_session *s, uint32_t n) {
    size_t e = s->model->config.n_embd;
    for (uint32_t t = 0; t < n; t++) {
        s->k->read_row(s->normed, &s->model->positions, s->length + t);
        s->k->add_scaled(s->x + t * e, s->normed, 1.0f, e);
    }
}

/* ---- attention -------------------------------------------------------------------------------------------
 */

static float *cache_row(const nano_session *s, float *cache, uint32_t l, uint32_t kv_head, size_t position) {
    const nano_config *c = &s->model->config;
    return cache + (((size_t)l * c->n_kv_head + kv_head) * s->context + position) * c->head_dim;
}

/* Turns each pair of one head by its position's angles. */
static void rotate(const nano_session *s, float *head, size_t position) {
    size_t half = s->model->config.head_dim / 2;
    const float *cosines = (s->rope_cos ? s->rope_cos : s->model->rope_cos) + position * half;
    const float *sines = (s->rope_sin ? s->rope_sin : s->model->rope_sin) + position * half;
    bool halves = s->model->config.rope_halves;
    for (size_t j = 0; j < half; j++) {
        float *a = head + (halves ? j : 2 * j), *b = a + (halves ? half : 1);
        float turned_a = *a * cosines[j] - *b * sines[j];
        float turned_b = *a * sines[j] + *b * cosines[j];
        *a = turned_a;
        *b = turned_b;
    }
}

/* Head by head: QK-norm, RoPE (unless positions are learned), and keys and values into the cache. */
static void place_heads(nano_session *s, uint32_t l, uint32_t n) {
    const nano_config *c = &s->model->config;
    const layer *w = &s->model->layers[l];
    size_t hd = c->head_dim;
    for (uint32_t t = 0; t < n; t++) {
        size_t position = s->length + t;
        for (uint32_t h = 0; h < c->n_head; h++) {
            float *q = s->q + ((size_t)t * c->n_head + h) * hd;
            if (w->q_norm) s->k->rms_norm(q, q, w->q_norm, hd, c->norm_eps);
            if (c->use_rope) rotate(s, q, position);
        }
        for (uint32_t h = 0; h < c->n_kv_head; h++) {
            float *key = s->key + ((size_t)t * c->n_kv_head + h) * hd;
            if (w->k_norm) s->k->rms_norm(key, key, w->k_norm, hd, c->norm_eps);
            if (c->use_rope) rotate(s, key, position);
            memcpy(cache_row(s, s->key_cache, l, h, position), key, hd * sizeof(float));
            memcpy(cache_row(s, s->value_cache, l, h, position),
                   s->value + ((size_t)t * c->n_kv_head + h) * hd, hd * sizeof(float));
        }
    }
}

typedef struct {
    nano_session *s;
    uint32_t l, n;
} attention_job;

/* Items are (token, head) pairs. */
static void run_attention(void *context, size_t begin, size_t end, unsigned worker) {
    const attention_job *job = context;
    nano_session *s = job->s;
    const nano_config *c = &s->model->config;
    size_t hd = c->head_dim;
    float *scores = s->scores + (size_t)worker * s->context, scale = 1.0f / sqrtf((float)hd);
    for (size_t item = begin; item < end; item++) {
        size_t t = item / c->n_head;
        uint32_t kv_head = (uint32_t)(item % c->n_head) / (c->n_head / c->n_kv_head);
        size_t visible = s->length + (c->causal ? t + 1 : job->n);
        const float *q = s->q + item * hd;
        const float *keys = cache_row(s, s->key_cache, job->l, kv_head, 0);
        const float *values = cache_row(s, s->value_cache, job->l, kv_head, 0);
        float *out = s->attended + item * hd;

        for (size_t p = 0; p < visible; p++) scores[p] = s->k->dot(q, keys + p * hd, hd) * scale;
        s->k->softmax(scores, visible);
        memset(out, 0, hd * sizeof(float));
        for (size_t p = 0; p < visible; p++) s->k->add_scaled(out, values + p * hd, scores[p], hd);
    }
}

static void attend(nano_session *s, uint32_t l, uint32_t n) {
    attention_job job = {s, l, n};
    size_t cost = 2 * (size_t)(s->length + n) * s->model->config.head_dim;
    team_run(s->team, (size_t)n * s->model->config.n_head, cost, run_attention, &job);
}

/* ---- feed-forward ----------------------------------------------------------------------------------------
 */

enum { SWIGLU_COST = 20 };

static void run_swiglu(void *context, size_t begin, size_t end, unsigned worker) {
    nano_session *s = context;
    (void)worker;
    s->k->swiglu(s->gate + begin, s->up + begin, end - begin);
}

/* ---- the plan --------------------------------------------------------------------------------------------
 */

void forward(nano_session *s, const uint32_t *ids, uint32_t n, float *all_logits, bool want_last) {
    const nano_model *m = s->model;
    const nano_config *c = &m->config;
    size_t e = c->n_embd, q_width = (size_t)c->n_head * c->head_dim,
           kv_width = (size_t)c->n_kv_head * c->head_dim;

    for (uint32_t t = 0; t < n; t++) s->k->read_row(s->x + t * e, &m->embedding, ids[t]);
    if (m->positions.rows) add_positions(s, n);

    for (uint32_t l = 0; l < c->n_layer; l++) {
        const layer *w = &m->layers[l];
        const lora_layer *lora = s->adapter && l < s->adapter->n_layers ? &s->adapter->layers[l] : NULL;

        /* x += Wo attention(norm(x)) */
        normalise(s, w->attn_norm, s->x, n, s->normed);
        matmul_job qkv = {.k = s->k, .x = s->normed, .n = n};
        add_matmul(&qkv, &w->wq, s->q);
        add_matmul(&qkv, &w->wk, s->key);
        add_matmul(&qkv, &w->wv, s->value);
        do_matmuls(s, &qkv);
        add_bias(s, w->bq, n, q_width, s->q);
        add_bias(s, w->bk, n, kv_width, s->key);
        add_bias(s, w->bv, n, kv_width, s->value);
        if (lora) {
            add_lora(s, &lora->q, s->normed, n, s->q);
            add_lora(s, &lora->k, s->normed, n, s->key);
            add_lora(s, &lora->v, s->normed, n, s->value);
        }
        place_heads(s, l, n);
        attend(s, l, n);
        multiply(s, &w->wo, s->attended, n, s->block_out);
        add_bias(s, w->bo, n, e, s->block_out);
        if (lora) add_lora(s, &lora->o, s->attended, n, s->block_out);
        s->k->add_scaled(s->x, s->block_out, 1.0f, n * e);

        /* x += W2(silu(W1 norm(x)) * W3 norm(x)), each with its bias if it has one */
        normalise(s, w->ffn_norm, s->x, n, s->normed);
        matmul_job gate_up = {.k = s->k, .x = s->normed, .n = n};
        add_matmul(&gate_up, &w->w1, s->gate);
        add_matmul(&gate_up, &w->w3, s->up);
        do_matmuls(s, &gate_up);
        add_bias(s, w->b1, n, c->n_hidden, s->gate);
        add_bias(s, w->b3, n, c->n_hidden, s->up);
        if (lora) {
            add_lora(s, &lora->w1, s->normed, n, s->gate);
            add_lora(s, &lora->w3, s->normed, n, s->up);
        }
        team_run(s->team, (size_t)n * c->n_hidden, SWIGLU_COST, run_swiglu, s);
        multiply(s, &w->w2, s->gate, n, s->block_out);
        add_bias(s, w->b2, n, e, s->block_out);
        if (lora) add_lora(s, &lora->w2, s->gate, n, s->block_out);
        s->k->add_scaled(s->x, s->block_out, 1.0f, n * e);
    }

    /* The classifier is the biggest matrix: only for the tokens whose prediction somebody wants. */
    if (!all_logits && !want_last) return;
    normalise(s, m->final_norm, s->x, n, s->normed);
    if (all_logits) {
        multiply(s, &m->output, s->normed, n, all_logits);
        memcpy(s->logits, all_logits + (size_t)(n - 1) * c->vocab_size, c->vocab_size * sizeof(float));
    } else {
        multiply(s, &m->output, s->normed + (n - 1) * e, 1, s->logits);
    }
}
