/* generate.c: the next tokens of a session: chosen one by one from logits, or guessed, computed together, and
 * then chosen just as if they had been computed one by one. */
#include "draft.h"
#include "error.h"
#include "session.h"

#include "attend.h"

#include <string.h>

void session_append(nano_session *s, uint32_t id) {
    if (!s->seen[id]) {
        s->seen[id] = true;
        s->distinct.ids[s->distinct.n++] = id;
    }
    s->ids[s->length++] = id;
    draft_append(&s->draft, s->ids, s->length);
}

/* Keys and values of the last token become what they are. */
nano_status session_need_logits(nano_session *s) {
    if (!s->length) return nano_fail(NANO_ERR_ARGUMENT, "nothing to sample from: evaluate a prompt first");
    if (s->logits_ready) return NANO_OK;
    s->length--;
    fill_rope(s, s->length + 1);
    forward(s, &s->ids[s->length], 1, NULL, true);
    s->length++;
    s->logits_ready = true;
    return NANO_OK;
}

nano_status session_choose(nano_session *s, float *logits, uint32_t *id) {
    return sampler_choose(&s->sampler, logits, s->model->config.vocab_size, &s->distinct, s->candidates, id);
}

nano_status nano_session_sample(nano_session *s, uint32_t *id) {
    TRY(session_need_logits(s));
    s->n_chosen = 0;
    return session_choose(s, s->logits, id);
}

/* Guesses of what follows the text, as many as may come true and pay. */
static uint32_t make_draft(nano_session *s, size_t most, uint32_t guesses[DRAFT_BATCH - 1]) {
    uint32_t n = draft_guess(&s->draft, s->ids, s->length, guesses), room = s->context - s->length;
    if (n > room) n = room;
    if (n > most) n = (uint32_t)most;
    for (uint32_t i = 0; i < n; i++)
        if (nano_token_is_stop(s->model, guesses[i])) n = i; /* one that ends the text is not appended */
    n = draft_plan(&s->draft, n);
    if (n && !s->rows) {
        s->rows = plat_alloc((uint64_t)DRAFT_BATCH * s->model->config.vocab_size * sizeof *s->rows);
        if (!s->rows) return 0; /* the text does not depend on it */
    }
    return n;
}

/* Computes the last token of the text, which is not yet evaluated, and n guesses behind it. */
static void compute(nano_session *s, const uint32_t *guesses, uint32_t n) {
    uint32_t batch[DRAFT_BATCH];
    s->length--;
    batch[0] = s->ids[s->length];
    memcpy(batch + 1, guesses, n * sizeof *batch);
    double start = plat_seconds();
    fill_rope(s, s->length + 1 + n);
    forward(s, batch, 1 + n, n ? s->rows : NULL, n == 0);
    double seconds = plat_seconds() - start;
    s->length++;
    draft_timed(&s->draft, 1 + n, seconds);
    s->stats.evals++;
    s->stats.drafted += n;
}

/* Takes the guesses for as long as they are what is chosen. */
static void verify(nano_session *s, const uint32_t *guesses, uint32_t n) {
    size_t v = s->model->config.vocab_size;
    uint32_t taken = 0;
    for (; taken < n; taken++) {
        uint64_t state = s->sampler.state;
        uint32_t id;
        /* A failure comes back when these logits are asked again. */
        bool chosen = session_choose(s, s->rows + taken * v, &id) == NANO_OK;
        if (chosen) draft_judge(&s->draft, s->ids, s->length, id);
        if (!chosen || id != guesses[taken]) {
            s->sampler.state = state; /* it is chosen again by the next call */
            break;
        }
        s->states[s->n_chosen++] = state;
        session_append(s, id);
    }
    memcpy(s->logits, s->rows + taken * v, v * sizeof *s->logits);
    s->stats.accepted += taken;
}

nano_status nano_session_generate(nano_session *s, uint32_t *ids, size_t most, size_t *n) {
    *n = 0;
    if (!most) return nano_fail(NANO_ERR_ARGUMENT, "no room for a token");
    if (!s->model->config.causal)
        return nano_fail(NANO_ERR_ARGUMENT, "a non-causal model takes its whole input at once: it goes on "
                                            "after no text");
    if (s->length == s->context)
        return nano_fail(NANO_ERR_CONTEXT, "the context of %u tokens is full", s->context);
    double start = plat_seconds();
    uint32_t guesses[DRAFT_BATCH - 1], first, before = s->length;
    TRY(session_need_logits(s));
    uint64_t state = s->sampler.state;
    s->n_chosen = 0;
    draft_guess(&s->draft, s->ids, s->length, guesses); /* computed or not, it shows what guesses are worth */
    TRY(session_choose(s, s->logits, &first));
    if (nano_token_is_stop(s->model, first)) {
        *n = 1;
        ids[0] = first;
        return NANO_OK;
    }
    draft_judge(&s->draft, s->ids, s->length, first);
    session_note_adapter(s);
    session_append(s, first);
    s->chosen_at = before;
    s->states[s->n_chosen++] = state;
    uint32_t n_guesses = make_draft(s, most - 1, guesses);
    compute(s, guesses, n_guesses);
    if (n_guesses) verify(s, guesses, n_guesses);
    *n = s->length - before;
    memcpy(ids, s->ids + before, *n * sizeof *ids);
    s->stats.generated += *n;
    s->stats.seconds += plat_seconds() - start;
    return NANO_OK;
}

nano_session_stats nano_session_get_stats(const nano_session *s) {
    return s->stats;
}
