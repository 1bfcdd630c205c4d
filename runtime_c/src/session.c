/* session.c: buffers, checks and bookkeeping around forward(). */
#include "session.h"

#include "attend.h"
#include "bytes.h"
#include "error.h"

enum { CAUSAL_BATCH = 96, MAX_THREADS = 256 };

nano_session_params nano_session_default_params(void) {
    return (nano_session_params){
        .context = 0, .threads = 0, .cache = NANO_CACHE_AUTO, .draft = NANO_DRAFT_AUTO};
}

/* Every buffer of the session: where its pointer is kept, how many items of which size. */
typedef struct {
    void *pointer; /* to a pointer of any type: written with memcpy */
    uint64_t bytes;
} buffer;

static nano_status allocate_all(const buffer *buffers, size_t n, uint32_t context) {
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++) {
        total = plus(total, buffers[i].bytes);
        void *memory = plat_alloc(buffers[i].bytes);
        memcpy(buffers[i].pointer, &memory, sizeof memory);
        if (!memory)
            return nano_fail(
                NANO_ERR_MEMORY,
                "out of memory: a context of %u tokens needs more than %llu MB; ask for a shorter one",
                context, (unsigned long long)(total >> 20));
    }
    return NANO_OK;
}

#define BUFFER(member, count) {&s->member, times((count), sizeof *s->member)}

static nano_status allocate(nano_session *s) {
    const nano_config *c = &s->model->config;
    uint64_t n = s->batch, q = (uint64_t)c->n_head * c->head_dim, kv = (uint64_t)c->n_kv_head * c->head_dim;
    uint64_t widest = c->n_embd > q ? c->n_embd : q;
    if (c->n_hidden > widest) widest = c->n_hidden;
    uint64_t groups = (widest + GROUP - 1) / GROUP;
    uint64_t cache = times(times(times(c->n_layer, c->n_kv_head), cache_positions(s->context)), s->width);
    uint64_t rope = s->model->rope_cos || !c->use_rope ? 0 : (uint64_t)s->context * (c->head_dim / 2);
    uint64_t parts = times((uint64_t)c->n_head * s->n_chunks, (uint64_t)s->width + 2);
    uint64_t distinct = c->vocab_size < s->context ? c->vocab_size : s->context;
    const buffer buffers[] = {
        BUFFER(x, n * c->n_embd),
        BUFFER(normed, n * c->n_embd),
        BUFFER(q, n * q),
        BUFFER(attended, n * q),
        BUFFER(key, n * kv),
        BUFFER(value, n * kv),
        BUFFER(gate, n * c->n_hidden),
        BUFFER(up, n * c->n_hidden),
        BUFFER(block_out, n * c->n_embd),
        BUFFER(input_floats, times(n, widest)),
        BUFFER(input.q, times(n, groups * GROUP)),
        BUFFER(input.scale, times(n, groups)),
        BUFFER(input.bias, times(n, groups)),
        BUFFER(input.sum, times(n, groups)),
        BUFFER(head_room, team_size(s->team) * (uint64_t)head_room_floats(s->width)),
        BUFFER(parts, s->n_chunks > 1 ? parts : 0),
        {&s->key_cache, times(cache, s->halves ? 2 : 4)},
        {&s->value_cache, times(cache, s->halves ? 2 : 4)},
        BUFFER(logits, c->vocab_size),
        BUFFER(ids, s->context),
        BUFFER(candidates, c->vocab_size),
        BUFFER(seen, c->vocab_size),
        BUFFER(distinct.ids, distinct),
        BUFFER(distinct.kept, distinct),
        BUFFER(draft.slots, 2 * (uint64_t)s->draft.n_slots),
    };
    nano_status status = allocate_all(buffers, sizeof buffers / sizeof *buffers, s->context);
    if (status || !rope) return status;
    const buffer tables[] = {BUFFER(rope_cos, rope), BUFFER(rope_sin, rope)};
    return allocate_all(tables, 2, s->context);
}

nano_status nano_session_open(nano_session **out, const nano_model *model,
                              const nano_session_params *params) {
    *out = NULL;
    nano_session_params p = params ? *params : nano_session_default_params();
    uint32_t limit = model->config.block_size;
    if (p.context > limit)
        return nano_fail(NANO_ERR_ARGUMENT, "a context of %u tokens is more than the model's %u", p.context,
                         limit);
    if ((unsigned)p.cache > NANO_CACHE_F32)
        return nano_fail(NANO_ERR_ARGUMENT, "there is no kind of cache %u", (unsigned)p.cache);
    if ((unsigned)p.draft > NANO_DRAFT_ALWAYS)
        return nano_fail(NANO_ERR_ARGUMENT, "there is no way to draft %u", (unsigned)p.draft);
    if (p.threads > MAX_THREADS)
        return nano_fail(NANO_ERR_ARGUMENT, "%u threads are too many; at most %d", p.threads, MAX_THREADS);

    nano_session *s = plat_alloc(sizeof *s);
    if (!s) return nano_fail(NANO_ERR_MEMORY, "out of memory");
    s->model = model;
    s->k = model->k;
    s->context = p.context ? p.context : limit;
    s->width = (model->config.head_dim + 15) / 16 * 16;
    s->n_chunks = (s->context + CHUNK - 1) / CHUNK;
    s->halves = p.cache == NANO_CACHE_AUTO ? !model->exact && model->config.quant != NANO_F32
                                           : p.cache == NANO_CACHE_F16;
    /* Without a causal mask each layer needs all positions of the one before it: the text goes through as
     * one. */
    s->batch = model->config.causal && s->context > CAUSAL_BATCH ? CAUSAL_BATCH : s->context;
    s->draft.mode = p.draft;
    s->draft.n_slots = p.draft == NANO_DRAFT_OFF ? 0 : draft_slots(s->context);
    nano_sampler_params sampling = nano_sampler_default_params();
    nano_status status = sampler_init(&s->sampler, &sampling);
    unsigned cpus = plat_cpu_count();
    s->team = team_start(p.threads ? p.threads : cpus < MAX_THREADS ? cpus : MAX_THREADS);
    if (!s->team)
        status = nano_fail(NANO_ERR_SYSTEM, "cannot start %u threads", p.threads ? p.threads : cpus);
    if (!status) status = allocate(s);
    if (p.draft == NANO_DRAFT_OFF) { /* an empty buffer is a pointer, too */
        plat_free(s->draft.slots);
        s->draft.slots = NULL;
    }
    if (status) {
        nano_session_close(s);
        return status;
    }
    *out = s;
    return NANO_OK;
}

void nano_session_close(nano_session *s) {
    if (!s) return;
    team_stop(s->team);
    void *const buffers[] = {s->x,
                             s->normed,
                             s->q,
                             s->attended,
                             s->key,
                             s->value,
                             s->gate,
                             s->up,
                             s->block_out,
                             s->input_floats,
                             s->input.q,
                             s->input.scale,
                             s->input.bias,
                             s->input.sum,
                             s->low_rank,
                             s->head_room,
                             s->parts,
                             s->key_cache,
                             s->value_cache,
                             s->rope_cos,
                             s->rope_sin,
                             s->logits,
                             s->rows,
                             s->ids,
                             s->candidates,
                             s->seen,
                             s->distinct.ids,
                             s->distinct.kept,
                             s->draft.slots};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) plat_free(buffers[i]);
    plat_free(s);
}

nano_status nano_session_set_adapter(nano_session *s, const nano_adapter *adapter) {
    if (!adapter) {
        s->adapter = NULL;
        return NANO_OK;
    }
    nano_status status = adapter_check(adapter, s->model);
    if (status) return status;
    float *low_rank = plat_alloc(times(3 * (uint64_t)s->batch * adapter->config.rank, sizeof *low_rank));
    if (!low_rank)
        return nano_fail(NANO_ERR_MEMORY, "out of memory for an adapter of rank %u", adapter->config.rank);
    plat_free(s->low_rank);
    s->low_rank = low_rank;
    s->adapter = adapter;
    return NANO_OK;
}

void session_note_adapter(nano_session *s) {
    uint64_t by = s->adapter ? s->adapter->fingerprint : 0;
    s->by_several = s->length && (s->by_several || by != s->by);
    s->by = by;
}

static void cut(nano_session *s, uint32_t n) {
    for (size_t i = 0; i < s->distinct.n; i++) s->seen[s->distinct.ids[i]] = false;
    s->distinct.n = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = s->ids[i];
        if (s->seen[id]) continue;
        s->seen[id] = true;
        s->distinct.ids[s->distinct.n++] = id;
    }
    s->length = n;
    s->logits_ready = false;
    s->n_chosen = 0;
    draft_cut(&s->draft, n);
}

nano_status nano_session_rewind(nano_session *s, uint32_t n) {
    if (n >= s->length) return NANO_OK;
    if (n && !s->model->config.causal)
        return nano_fail(NANO_ERR_ARGUMENT, "a non-causal model's tokens can only be dropped all together");
    if (n >= s->chosen_at && n - s->chosen_at < s->n_chosen) s->sampler.state = s->states[n - s->chosen_at];
    cut(s, n);
    return NANO_OK;
}

nano_status nano_session_keep(nano_session *s, const uint32_t *ids, size_t n, uint32_t *kept) {
    uint32_t same = 0;
    while (same < n && same < s->length && ids[same] == s->ids[same]) same++;
    if (!s->model->config.causal && (same < n || same < s->length)) same = 0;
    *kept = same;
    return nano_session_rewind(s, same);
}

const uint32_t *nano_session_tokens(const nano_session *s) {
    return s->ids;
}

void nano_session_reset(nano_session *s) {
    cut(s, 0);
    draft_reset(&s->draft);
}

uint32_t nano_session_length(const nano_session *s) {
    return s->length;
}

uint32_t nano_session_context(const nano_session *s) {
    return s->context;
}

uint32_t nano_session_threads(const nano_session *s) {
    return team_size(s->team);
}

nano_status nano_session_eval(nano_session *s, const uint32_t *ids, size_t n, float *all_logits) {
    const nano_config *c = &s->model->config;
    if (n == 0) return nano_fail(NANO_ERR_ARGUMENT, "no tokens to evaluate");
    if (!c->causal && s->length)
        return nano_fail(NANO_ERR_ARGUMENT,
                         "a non-causal model takes its whole input at once: reset it first");
    if (n > s->context - s->length)
        return nano_fail(NANO_ERR_CONTEXT, "%llu tokens after %u do not fit into the context of %u",
                         (unsigned long long)n, s->length, s->context);
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= c->vocab_size)
            return nano_fail(NANO_ERR_ARGUMENT, "token id %u is not in the vocabulary of %u", ids[i],
                             c->vocab_size);

    fill_rope(s, s->length + (uint32_t)n);
    session_note_adapter(s);
    s->n_chosen = 0;
    for (size_t done = 0; done < n;) {
        uint32_t now = n - done < s->batch ? (uint32_t)(n - done) : s->batch;
        float *rows = all_logits ? all_logits + done * c->vocab_size : NULL;
        forward(s, ids + done, now, rows, done + now == n);
        for (uint32_t t = 0; t < now; t++) session_append(s, ids[done + t]);
        done += now;
    }
    s->logits_ready = true;
    return NANO_OK;
}

const float *nano_session_logits(const nano_session *s) {
    return s->logits_ready ? s->logits : NULL;
}

nano_status nano_session_set_sampler(nano_session *s, const nano_sampler_params *params) {
    s->n_chosen = 0;
    return sampler_init(&s->sampler, params);
}

nano_sampler_params nano_session_sampler(const nano_session *s) {
    nano_sampler_params params = s->sampler.params;
    params.seed = s->sampler.state;
    return params;
}
