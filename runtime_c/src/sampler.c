/* sampler.c: the same order and formulas as the Python side, so that one seed gives one text everywhere:
 * repetition penalty, temperature, top-k, softmax, top-p, draw. */
#include "sampler.h"

#include "error.h"

#include <math.h>
#include <string.h>

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

/* Logits are looked at in stretches, for nearly all of them hold nothing that is among the best so far. A
 * stretch is vectors of four, as GCC and Clang have them for every machine. */
enum { STRETCH = 128, VECTOR = 4, AT_ONCE = 4 };
typedef float vector __attribute__((vector_size(4 * VECTOR)));
typedef int32_t choice __attribute__((vector_size(4 * VECTOR)));

static vector higher(vector a, vector b) {
    choice first = a > b;
    return (vector)((first & (choice)a) | (~first & (choice)b));
}

/* The highest of STRETCH logits. Their sum is added to *sum: finite only if they are. */
static float highest(const float *logits, float *sum) {
    vector top[AT_ONCE], sums[AT_ONCE], next[AT_ONCE];
    memcpy(top, logits, sizeof top);
    memcpy(sums, logits, sizeof sums);
    for (size_t i = VECTOR * AT_ONCE; i < STRETCH; i += VECTOR * AT_ONCE) {
        memcpy(next, logits + i, sizeof next);
        for (size_t j = 0; j < AT_ONCE; j++) {
            top[j] = higher(next[j], top[j]);
            sums[j] += next[j];
        }
    }
    vector best = higher(higher(top[0], top[1]), higher(top[2], top[3]));
    vector all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    *sum += (all[0] + all[1]) + (all[2] + all[3]);
    float a = best[0] > best[1] ? best[0] : best[1], b = best[2] > best[3] ? best[2] : best[3];
    return a > b ? a : b;
}

static bool all_finite(const float *logits, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(logits[i])) return false;
    return true;
}

/* logits [from, to) may push others out of the heap of the k first. */
static void consider(const float *logits, size_t from, size_t to, size_t k, candidate *heap) {
    for (size_t i = from; i < to; i++) {
        candidate c = {logits[i], (uint32_t)i};
        if (!before(c, heap[0])) continue;
        heap[0] = c;
        sift_down(heap, k, 0);
    }
}

/* The k first of n candidates, in order, in out[0..k): a heap of the best so far, then taken apart. False if
 * a logit is not finite. */
static bool select_first(const float *logits, size_t n, size_t k, candidate *out) {
    float sum = 0;
    for (size_t i = 0; i < k; i++) {
        out[i] = (candidate){logits[i], (uint32_t)i};
        sum += logits[i];
    }
    for (size_t i = k / 2; i-- > 0;) sift_down(out, k, i);
    size_t i = k;
    for (; i + STRETCH <= n; i += STRETCH) /* an equal has a higher id */
        if (highest(logits + i, &sum) > out[0].logit) consider(logits, i, i + STRETCH, k, out);
    for (size_t j = i; j < n; j++) sum += logits[j];
    consider(logits, i, n, k, out);
    if (!isfinite(sum) && !all_finite(logits, n)) return false;
    for (size_t rest = k; rest > 1; rest--) {
        candidate last = out[0];
        out[0] = out[rest - 1];
        out[rest - 1] = last;
        sift_down(out, rest - 1, 0);
    }
    return true;
}

static double weight(const candidate *c, size_t i, double temperature) {
    return exp(((double)c[i].logit - (double)c[0].logit) / temperature);
}

static uint32_t draw(sampler *s, const candidate *first, size_t k) {
    const nano_sampler_params *p = &s->params;
    double total = 0;
    for (size_t i = 0; i < k; i++) total += weight(first, i, p->temperature);
    size_t kept = k;
    if (p->top_p > 0 && p->top_p < 1) {
        double sum = 0;
        for (kept = 0; kept < k && !(kept > 0 && sum >= p->top_p * total); kept++)
            sum += weight(first, kept, p->temperature);
        total = sum;
    }

    double aim = sampler_draw(s) * total, sum = 0;
    size_t chosen = 0;
    for (; chosen + 1 < kept; chosen++) {
        sum += weight(first, chosen, p->temperature);
        if (sum > aim) break;
    }
    return first[chosen].id;
}

nano_status sampler_choose(sampler *s, float *logits, size_t n, const seen_ids *seen, candidate *room,
                           uint32_t *id) {
    const nano_sampler_params *p = &s->params;
    float penalty = (float)p->repetition_penalty;
    size_t n_seen = penalty == 1 ? 0 : seen->n;
    for (size_t i = 0; i < n_seen; i++) {
        float *logit = &logits[seen->ids[i]];
        seen->kept[i] = *logit;
        *logit = *logit > 0 ? *logit / penalty : *logit * penalty;
    }
    size_t k = p->temperature == 0 ? 1 : p->top_k && p->top_k < n ? p->top_k : n;
    bool finite = select_first(logits, n, k, room);
    for (size_t i = 0; i < n_seen; i++) logits[seen->ids[i]] = seen->kept[i];
    if (!finite)
        return nano_fail(NANO_ERR_FORMAT, "the model's logits are not finite: its weights are damaged");
    *id = p->temperature == 0 ? room[0].id : draw(s, room, k);
    return NANO_OK;
}
