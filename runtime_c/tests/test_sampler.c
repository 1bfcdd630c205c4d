/* test_sampler.c: the generator's numbers, and the sampler against a plain version written from the rules. */
#include "sampler.h"
#include "test.h"
#include "tiny_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void generator(void) {
    TEST("sampler: xorshift64* gives the numbers that Python gives");
    static const struct {
        uint64_t seed;
        unsigned draws[4];
    } cases[] = {
        {1, {4711630, 11259814, 12177677, 5092376}},
        {0, {885683, 5555276, 11027955, 8220171}},
        {42, {5688906, 13124075, 13256299, 15838407}},
    };
    for (size_t i = 0; i < 3; i++) {
        nano_sampler_params params = nano_sampler_default_params();
        sampler s;
        params.seed = cases[i].seed;
        CHECK(sampler_init(&s, &params) == NANO_OK);
        for (int d = 0; d < 4; d++) CHECK(sampler_draw(&s) == cases[i].draws[d] / 16777216.0);
    }
}

static void parameters(void) {
    TEST("sampler: defaults, and refusal of what makes no sense");
    nano_sampler_params d = nano_sampler_default_params(), p;
    sampler s;
    CHECK(d.temperature == 1.0 && d.top_k == 5 && d.repetition_penalty == 1.2 && d.top_p <= 0);
    p = d, p.temperature = -1;
    CHECK(sampler_init(&s, &p) == NANO_ERR_ARGUMENT);
    p = d, p.temperature = NAN;
    CHECK(sampler_init(&s, &p) == NANO_ERR_ARGUMENT);
    p = d, p.repetition_penalty = 0;
    CHECK(sampler_init(&s, &p) == NANO_ERR_ARGUMENT);
    p = d, p.top_p = NAN;
    CHECK(sampler_init(&s, &p) == NANO_ERR_ARGUMENT);
}

enum { MOST = 700 }; /* several stretches */

/* The ids with seen[id] != 0; their logits stay as they were, whatever the penalty. */
static nano_status choose_into(sampler *s, float *logits, size_t n, const uint8_t *seen, uint32_t *id) {
    uint32_t ids[MOST];
    float kept[MOST], copy[MOST];
    candidate room[MOST];
    seen_ids list = {0, ids, kept};
    for (size_t i = n; i-- > 0;) /* in any order */
        if (seen[i]) ids[list.n++] = (uint32_t)i;
    memcpy(copy, logits, n * sizeof *copy);
    nano_status status = sampler_choose(s, logits, n, &list, room, id);
    CHECK(memcmp(copy, logits, n * sizeof *copy) == 0);
    return status;
}

static uint32_t choose(nano_sampler_params p, const float *logits, size_t n, const uint8_t *seen,
                       sampler *s) {
    float copy[MOST];
    uint32_t id = UINT32_MAX;
    sampler own;
    if (!s) sampler_init(s = &own, &p);
    memcpy(copy, logits, n * sizeof *copy);
    CHECK(choose_into(s, copy, n, seen, &id) == NANO_OK);
    return id;
}

static void greedy(void) {
    TEST("sampler: greedy takes the lowest id among equals, draws nothing, and heeds the penalty");
    nano_sampler_params p = {.repetition_penalty = 1, .temperature = 0, .top_k = 3, .seed = 9};
    const float logits[] = {1, 3, 3, -1, 2.9f}, negative[] = {-1.0f, -1.1f};
    uint8_t seen[5] = {0};
    sampler s;
    sampler_init(&s, &p);
    CHECK(choose(p, logits, 5, seen, &s) == 1 && s.state == 9);
    p.repetition_penalty = 1.2;
    seen[1] = 1;
    CHECK(choose(p, logits, 5, seen, NULL) == 2);
    seen[2] = 1;
    CHECK(choose(p, logits, 5, seen, NULL) == 4);
    seen[0] = 1; /* a negative logit is multiplied: -1.2 */
    CHECK(choose(p, negative, 2, (const uint8_t[]){1, 0}, NULL) == 1);

    TEST("sampler: logits that are not finite are refused");
    static const float strange[] = {NAN, INFINITY, -INFINITY};
    uint8_t none[MOST] = {0};
    uint32_t id;
    for (size_t n = 3; n < MOST; n += 171)
        for (size_t at = 0; at < n; at += n / 3)
            for (int i = 0; i < 9; i++) {
                float bad[MOST] = {1};
                bad[at] = strange[i % 3];
                s.params.temperature = i < 3 ? 0 : 1;
                s.params.top_k = i < 6 ? 5 : 0;
                CHECK(choose_into(&s, bad, n, none, &id) == NANO_ERR_FORMAT);
            }

    TEST("sampler: logits so large that their sum is not finite will do");
    float large[MOST];
    for (size_t i = 0; i < MOST; i++) large[i] = i == 300 ? 3.4e38f : 3.3e38f;
    s.params.temperature = 0;
    CHECK(choose_into(&s, large, MOST, none, &id) == NANO_OK && id == 300);
}

/* The rules, read aloud: sort everything, then weights, then cut, then draw. */
static uint32_t plain_choice(nano_sampler_params p, const float *logits, size_t n, const uint8_t *seen,
                             double u) {
    float l[MOST];
    size_t order[MOST];
    double w[MOST], total = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        l[i] = logits[i];
        if (seen[i])
            l[i] = l[i] > 0 ? l[i] / (float)p.repetition_penalty : l[i] * (float)p.repetition_penalty;
        size_t at = i; /* insertion keeps equals in the order of their ids */
        for (; at > 0 && l[order[at - 1]] < l[i]; at--) order[at] = order[at - 1];
        order[at] = i;
    }
    size_t k = p.top_k && p.top_k < n ? p.top_k : n;
    for (size_t i = 0; i < k; i++)
        total += w[i] = exp(((double)l[order[i]] - (double)l[order[0]]) / p.temperature);
    if (p.top_p > 0 && p.top_p < 1) {
        size_t kept = 0;
        while (kept < k && (kept == 0 || sum < p.top_p * total)) sum += w[kept++];
        k = kept;
        total = sum;
    }
    sum = 0;
    for (size_t i = 0; i < k; i++)
        if ((sum += w[i]) > u * total) return (uint32_t)order[i];
    return (uint32_t)order[k - 1];
}

static void random_draws(void) {
    TEST("sampler: 20000 draws of all settings equal the plain version");
    uint64_t state = 3;
    unsigned wrong = 0;
    for (int round = 0; round < 20000; round++) {
        size_t n = 1 + tiny_random(&state) % (round % 20 ? 64 : MOST);
        float logits[MOST];
        uint8_t seen[MOST];
        for (size_t i = 0; i < n; i++) {
            logits[i] = (float)(tiny_normal(&state) * 3);
            if (tiny_random(&state) % 4 == 0) logits[i] = (float)(int)logits[i]; /* ties */
            seen[i] = tiny_random(&state) % 3 == 0;
        }
        nano_sampler_params p = {.repetition_penalty = 0.8 + (double)(tiny_random(&state) % 10) / 10,
                                 .temperature = 0.1 + (double)(tiny_random(&state) % 20) / 10,
                                 .top_k = tiny_random(&state) % (round % 7 ? 12 : 200),
                                 .top_p = (double)(tiny_random(&state) % 12) / 10,
                                 .seed = tiny_random(&state)};
        sampler s, twin;
        sampler_init(&s, &p);
        sampler_init(&twin, &p);
        double u = sampler_draw(&twin);
        wrong += choose(p, logits, n, seen, &s) != plain_choice(p, logits, n, seen, u);
        wrong += s.state != twin.state; /* exactly one draw */
    }
    CHECK_THAT(wrong == 0, "%u wrong", wrong);
}

static void greedy_among_many(void) {
    TEST("sampler: greedy equals the plain version, ties and penalties included");
    uint64_t state = 5;
    unsigned wrong = 0;
    for (int round = 0; round < 2000; round++) {
        size_t n = 1 + tiny_random(&state) % MOST, best = 0;
        float logits[MOST], penalised[MOST];
        uint8_t seen[MOST];
        nano_sampler_params p = {.repetition_penalty = 0.5 + (double)(tiny_random(&state) % 4) / 2,
                                 .top_k = 7};
        for (size_t i = 0; i < n; i++) {
            logits[i] = (float)((int)(tiny_random(&state) % 41) - 20) / 2;
            seen[i] = tiny_random(&state) % 3 == 0;
            float r = (float)p.repetition_penalty, l = logits[i];
            penalised[i] = !seen[i] ? l : l > 0 ? l / r : l * r;
            if (penalised[i] > penalised[best]) best = i;
        }
        wrong += choose(p, logits, n, seen, NULL) != best;
    }
    CHECK_THAT(wrong == 0, "%u wrong", wrong);
}

void test_sampler(void) {
    generator();
    parameters();
    greedy();
    random_draws();
    greedy_among_many();
}
