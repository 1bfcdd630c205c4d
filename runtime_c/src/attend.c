/* attend.c: attention over the cache. The cache is looked at in chunks of CHUNK positions, each giving the
 * sum of its values weighted by exp(score - its top); chunks are merged in order (online softmax, Milakov and
 * Gimelshein 2018), whoever computed them, so that the result depends on neither threads nor batch. */
#include "attend.h"

#include <math.h>
#include <string.h>

void fill_rope(nano_session *s, uint32_t n) {
    const nano_config *c = &s->model->config;
    uint32_t half = c->head_dim / 2;
    if (!s->rope_cos) return;
    for (uint32_t j = 0; j < half && s->rope_ready < n; j++) {
        double step = pow(c->rope_theta, -2.0 * j / c->head_dim);
        for (uint32_t p = s->rope_ready; p < n; p++) {
            s->rope_cos[(size_t)p * half + j] = (float)cos(p * step);
            s->rope_sin[(size_t)p * half + j] = (float)sin(p * step);
        }
    }
    if (n > s->rope_ready) s->rope_ready = n;
}

/* A pair is two neighbours, or a number of the first half and the one `half` further on. Known steps make
 * vectors. */
static inline void turn(float *a, float *b, size_t step, size_t half, const float *restrict cosines,
                        const float *restrict sines) {
    for (size_t j = 0; j < half; j++) {
        float x = a[j * step], y = b[j * step];
        a[j * step] = x * cosines[j] - y * sines[j];
        b[j * step] = x * sines[j] + y * cosines[j];
    }
}

/* Turns each pair of one head by its position's angles. */
static void rotate(const nano_session *s, float *head, size_t position) {
    size_t half = s->model->config.head_dim / 2;
    const float *cosines = (s->rope_cos ? s->rope_cos : s->model->rope_cos) + position * half;
    const float *sines = (s->rope_sin ? s->rope_sin : s->model->rope_sin) + position * half;
    if (s->model->config.rope_halves)
        turn(head, head + half, 1, half, cosines, sines);
    else
        turn(head, head + 1, 2, half, cosines, sines);
}

/* ---- the cache
 * ---------------------------------------------------------------------------------------------
 */

static void *cache_at(const nano_session *s, void *cache, uint32_t l, uint32_t kv_head, size_t number) {
    size_t head = (size_t)l * s->model->config.n_kv_head + kv_head;
    size_t at = head * cache_positions(s->context) * s->width + number;
    return (char *)cache + at * (s->halves ? 2 : 4);
}

static void store_head(const nano_session *s, uint32_t l, uint32_t kv_head, size_t position, const float *key,
                       const float *value) {
    size_t hd = s->model->config.head_dim;
    void *keys = cache_at(s, s->key_cache, l, kv_head,
                          position / KEY_BLOCK * KEY_BLOCK * s->width + position % KEY_BLOCK);
    void *values = cache_at(s, s->value_cache, l, kv_head, position * s->width);
    if (s->halves) {
        uint16_t room[64];
        for (size_t at = 0; at < hd; at += 64) {
            size_t n = hd - at < 64 ? hd - at : 64;
            s->k->to_halves(room, key + at, n);
            for (size_t d = 0; d < n; d++) ((uint16_t *)keys)[(at + d) * KEY_BLOCK] = room[d];
        }
        s->k->to_halves(values, value, hd);
    } else {
        for (size_t d = 0; d < hd; d++) ((float *)keys)[d * KEY_BLOCK] = key[d];
        memcpy(values, value, hd * sizeof *value);
    }
}

/* Where the first of a key's or a value's numbers lies; the next ones are *step numbers apart. */
static uint8_t *vector_at(const nano_session *s, uint32_t l, uint32_t kv_head, size_t position, bool value,
                          size_t *step) {
    size_t number = position / KEY_BLOCK * KEY_BLOCK * s->width + position % KEY_BLOCK;
    *step = value ? 1 : KEY_BLOCK;
    return value ? cache_at(s, s->value_cache, l, kv_head, position * s->width)
                 : cache_at(s, s->key_cache, l, kv_head, number);
}

void cache_read(const nano_session *s, uint32_t l, uint32_t kv_head, size_t position, bool value, void *to) {
    size_t step, size = s->halves ? 2 : 4;
    const uint8_t *from = vector_at(s, l, kv_head, position, value, &step);
    for (size_t d = 0; d < s->model->config.head_dim; d++)
        memcpy((uint8_t *)to + d * size, from + d * step * size, size);
}

void cache_write(nano_session *s, uint32_t l, uint32_t kv_head, size_t position, bool value,
                 const void *from) {
    size_t step, size = s->halves ? 2 : 4;
    uint8_t *to = vector_at(s, l, kv_head, position, value, &step);
    for (size_t d = 0; d < s->model->config.head_dim; d++)
        memcpy(to + d * step * size, (const uint8_t *)from + d * size, size);
}

typedef struct {
    nano_session *s;
    uint32_t l, n;
    size_t chunks; /* 1: whole queries, tile by tile; else one token's, chunk by chunk */
} head_job;

static void run_place(void *context, size_t begin, size_t end, unsigned worker) {
    const head_job *job = context;
    nano_session *s = job->s;
    const nano_config *c = &s->model->config;
    const layer *w = &s->model->layers[job->l];
    size_t hd = c->head_dim;
    (void)worker;
    for (size_t t = begin; t < end; t++) {
        size_t position = s->length + t;
        for (uint32_t h = 0; h < c->n_head; h++) {
            float *q = s->q + (t * c->n_head + h) * hd;
            if (w->q_norm) s->k->rms_norm(q, q, w->q_norm, hd, c->norm_eps);
            if (c->use_rope) rotate(s, q, position);
        }
        for (uint32_t h = 0; h < c->n_kv_head; h++) {
            float *key = s->key + (t * c->n_kv_head + h) * hd;
            if (w->k_norm) s->k->rms_norm(key, key, w->k_norm, hd, c->norm_eps);
            if (c->use_rope) rotate(s, key, position);
            store_head(s, job->l, h, position, key, s->value + (t * c->n_kv_head + h) * hd);
        }
    }
}

void place_heads(nano_session *s, uint32_t l, uint32_t n) {
    const nano_config *c = &s->model->config;
    head_job job = {.s = s, .l = l, .n = n};
    team_run(s->team, n, 4 * (size_t)(c->n_head + 2 * c->n_kv_head) * c->head_dim, run_place, &job);
}

/* ---- one tile of queries
 * -----------------------------------------------------------------------------------
 */

/* Queries first .. first + n - 1 of those that share kv_head: query i is token i / group, head i % group of
 * it. */
typedef struct {
    uint32_t kv_head;
    size_t first, n;
    size_t seen[MAX_QUERIES]; /* positions that each sees */
    float *q;                 /* [W,n] */
    attention a;
} tile;

static float *query_of(const nano_session *s, float *rows, const tile *q, size_t i) {
    const nano_config *c = &s->model->config;
    size_t group = c->n_head / c->n_kv_head, number = q->first + i;
    return rows + (number / group * c->n_head + q->kv_head * group + number % group) * c->head_dim;
}

static void begin_tile(const head_job *job, tile *q, uint32_t *visible, float *room) {
    const nano_session *s = job->s;
    const nano_config *c = &s->model->config;
    size_t W = s->width, hd = c->head_dim, n = q->n, group = c->n_head / c->n_kv_head;
    float scale = 1.0f / sqrtf((float)hd);
    q->q = room;
    memset(room + hd * n, 0, (W - hd) * n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        const float *restrict from = query_of(s, s->q, q, i);
        float *restrict to = room + i;
        for (size_t d = 0; d < hd; d++, to += n) *to = from[d] * scale;
        q->seen[i] = s->length + (c->causal ? (q->first + i) / group + 1 : job->n);
    }
    q->a = (attention){.n = q->n, .width = W, .q = q->q, .halves = s->halves, .visible = visible};
    q->a.scores = room + MAX_QUERIES * W;
    q->a.out = q->a.scores + MAX_QUERIES * CHUNK;
    q->a.top = q->a.out + MAX_QUERIES * W;
    q->a.sum = q->a.top + MAX_QUERIES;
}

/* Chunk number `chunk` for all queries of the tile. */
static void look(const head_job *job, tile *q, uint32_t *visible, size_t chunk) {
    const nano_session *s = job->s;
    size_t start = chunk * CHUNK;
    for (size_t i = 0; i < q->n; i++) {
        size_t ahead = q->seen[i] > start ? q->seen[i] - start : 0;
        visible[i] = (uint32_t)(ahead < CHUNK ? ahead : CHUNK);
    }
    q->a.keys = cache_at(s, s->key_cache, job->l, q->kv_head, start * s->width);
    q->a.values = cache_at(s, s->value_cache, job->l, q->kv_head, start * s->width);
    s->k->attend(&q->a);
}

/* total = the sums so far, [W] and then top and sum; part likewise, of one chunk */
static void merge(float *restrict total, const float *restrict part, float part_top, float part_sum,
                  size_t W) {
    if (part_sum == 0) return;
    float top = total[W] > part_top ? total[W] : part_top, old = expf(total[W] - top),
          new = expf(part_top - top);
    for (size_t d = 0; d < W; d++) total[d] = total[d] * old + part[d] * new;
    total[W] = top;
    total[W + 1] = total[W + 1] * old + part_sum * new;
}

static void clear(float *total, size_t W) {
    memset(total, 0, (W + 2) * sizeof *total);
    total[W] = -INFINITY;
}

static void finish(const nano_session *s, const tile *q, size_t i, const float *total) {
    float *restrict out = query_of(s, s->attended, q, i), factor = 1.0f / total[s->width + 1];
    size_t hd = s->model->config.head_dim;
    for (size_t d = 0; d < hd; d++) out[d] = total[d] * factor;
}

static float *part_at(const nano_session *s, size_t head, size_t chunk) {
    return s->parts + (head * s->n_chunks + chunk) * ((size_t)s->width + 2);
}

/* Items: tiles of queries of each kv_head, times chunks. */
static void run_attention(void *context, size_t begin, size_t end, unsigned worker) {
    const head_job *job = context;
    nano_session *s = job->s;
    const nano_config *c = &s->model->config;
    size_t W = s->width, group = c->n_head / c->n_kv_head, queries = group * job->n,
           tiles = (queries + MAX_QUERIES - 1) / MAX_QUERIES;
    float *room = s->head_room + worker * head_room_floats(s->width),
          *totals = room + MAX_QUERIES * (2 * W + CHUNK + 2);
    for (size_t item = begin; item < end; item++) {
        size_t chunk = item % job->chunks, number = item / job->chunks;
        uint32_t visible[MAX_QUERIES];
        tile q = {.kv_head = (uint32_t)(number / tiles), .first = number % tiles * MAX_QUERIES};
        q.n = queries - q.first < MAX_QUERIES ? queries - q.first : MAX_QUERIES;
        begin_tile(job, &q, visible, room);
        if (job->chunks > 1) { /* leave the parts for join_parts() */
            look(job, &q, visible, chunk);
            for (size_t i = 0; i < q.n; i++) {
                float *part = part_at(s, q.kv_head * group + q.first + i, chunk);
                memcpy(part, q.a.out + i * W, W * sizeof *part);
                part[W] = q.a.top[i];
                part[W + 1] = q.a.sum[i];
            }
            continue;
        }
        size_t chunks = (q.seen[q.n - 1] + CHUNK - 1) / CHUNK;
        for (size_t i = 0; i < q.n; i++) clear(totals + i * (W + 2), W);
        for (size_t j = 0; j < chunks; j++) {
            look(job, &q, visible, j);
            for (size_t i = 0; i < q.n; i++)
                merge(totals + i * (W + 2), q.a.out + i * W, q.a.top[i], q.a.sum[i], W);
        }
        for (size_t i = 0; i < q.n; i++) finish(s, &q, i, totals + i * (W + 2));
    }
}

/* Items are heads of one token. */
static void join_parts(void *context, size_t begin, size_t end, unsigned worker) {
    const head_job *job = context;
    nano_session *s = job->s;
    size_t W = s->width, group = s->model->config.n_head / s->model->config.n_kv_head;
    float *total = s->head_room + worker * head_room_floats(s->width);
    for (size_t h = begin; h < end; h++) {
        tile q = {.kv_head = (uint32_t)(h / group), .first = h % group};
        clear(total, W);
        for (size_t j = 0; j < job->chunks; j++) {
            const float *part = part_at(s, h, j);
            merge(total, part, part[W], part[W + 1], W);
        }
        finish(s, &q, 0, total);
    }
}

void attend(nano_session *s, uint32_t l, uint32_t n) {
    const nano_config *c = &s->model->config;
    size_t seen = s->length + n, all_chunks = (seen + CHUNK - 1) / CHUNK,
           queries = c->n_head / c->n_kv_head * n, tiles = (queries + MAX_QUERIES - 1) / MAX_QUERIES;
    head_job job = {s, l, n, n == 1 ? all_chunks : 1};
    size_t cost =
        2 * (job.chunks > 1 ? CHUNK : seen) * s->width * (queries < MAX_QUERIES ? queries : MAX_QUERIES);
    team_run(s->team, c->n_kv_head * tiles * job.chunks, cost, run_attention, &job);
    if (job.chunks > 1) team_run(s->team, c->n_head, job.chunks * s->width, join_parts, &job);
}
