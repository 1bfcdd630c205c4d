/* sampler.c: the same order and formulas as the Python side, so that one seed gives one text everywhere:
 * repetition penalty, temperature, top-k, softmax, top-p, draw. */
#include "sampler.h"

#include "error.h"

#include <math.h>

nano_sampler_params nano_sampler_default_params(void) {
    return (nano_sampler_params){
        .repetition_penalty = 1.2, .temperature = 1.0, .top_k = 5, .top_p = 0.0, .seed = 0};
}

nano_status sampler_init(sampler *s, const nano_sampler_params *p) {
    if (!(p->repetition_penalty >= 0.01 && p->repetition_penalty <= 100))
        return nano_fail(NANO_ERR_ARGUMENT, "repetition penalty must be between 0.01 and 100");
    if (!(p->temperature >= 0 && p->temperature <= 1e6))
        return nano_fail(NANO_ERR_ARGUMENT, "temperature must be between 0 and 1000000");
    if (isnan(p->top_p)) return nano_fail(NANO_ERR_ARGUMENT, "top-p must be a number");
    s->params = *p;
    s->state = p->seed ? p->seed : 0x9E3779B97F4A7C15u; /* the generator would stay at 0 for ever */
    return NANO_OK;
}

double sampler_draw(sampler *s) {
    uint64_t x = s->state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    s->state = x;
    return (double)((x * 0x2545F4914F6CDD1Du) >> 40) / 16777216.0;
}

/* Likelier first; among equals the lower id. */
static bool before(candidate a, candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* heap[0] is the one that comes last; makes that so again after heap[i] was changed. */
static void sift_down(candidate *heap, size_t n, size_t i) {
    for (;;) {
        size_t last = i, left = 2 * i + 1, right = left + 1;
        if (left < n && before(heap[last], heap[left])) last = left;
        if (right < n && before(heap[last], heap[right])) last = right;
        if (last == i) return;
        candidate swapped = heap[i];
        heap[i] = heap[last];
        heap[last] = swapped;
        i = last;
    }
}

/* The k first of n candidates, in order, in out[0..k): a heap of the best so far, then taken apart. */
static void select_first(const float *logits, size_t n, size_t k, candidate *out) {
    for (size_t i = 0; i < k; i++) out[i] = (candidate){logits[i], (uint32_t)i};
    for (size_t i = k / 2; i-- > 0;) sift_down(out, k, i);
    for (size_t i = k; i < n; i++) {
        candidate c = {logits[i], (uint32_t)i};
        if (before(c, out[0])) {
            out[0] = c;
            sift_down(out, k, 0);
        }
    }
    for (size_t rest = k; rest > 1; rest--) {
        candidate last = out[0];
        out[0] = out[rest - 1];
        out[rest - 1] = last;
        sift_down(out, rest - 1, 0);
    }
}

static double weight(const candidate *c, size_t i, double temperature) {
    return exp(((double)c[i].logit - (double)c[0].logit) / temperature);
}

nano_status sampler_choose(sampler *s, float *logits, size_t n, const uint8_t *seen, candidate *room,
                           uint32_t *id) {
    const nano_sampler_params *p = &s->params;
    float penalty = (float)p->repetition_penalty;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(logits[i]))
            return nano_fail(NANO_ERR_FORMAT, "the model's logits are not finite: its weights are damaged");
        if (seen[i]) logits[i] = logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
    }

    size_t k = p->top_k && p->top_k < n ? p->top_k : n;
    if (p->temperature == 0) k = 1;
    select_first(logits, n, k, room);
    if (p->temperature == 0) {
        *id = room[0].id;
        return NANO_OK;
    }

    double total = 0;
    for (size_t i = 0; i < k; i++) total += weight(room, i, p->temperature);
    size_t kept = k;
    if (p->top_p > 0 && p->top_p < 1) {
        double sum = 0;
        for (kept = 0; kept < k && !(kept > 0 && sum >= p->top_p * total); kept++)
            sum += weight(room, kept, p->temperature);
        total = sum;
    }

    double aim = sampler_draw(s) * total, sum = 0;
    size_t chosen = 0;
    for (; chosen + 1 < kept; chosen++) {
        sum += weight(room, chosen, p->temperature);
        if (sum > aim) break;
    }
    *id = room[chosen].id;
    return NANO_OK;
}
