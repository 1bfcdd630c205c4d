/* draft.c: prompt lookup (after A. Saxena, 2023), followed like the match models of data compressors (M.
 * Mahoney's lpaq, 2007): an earlier occurrence is believed for as long as it is right, and the more so the
 * longer it has been. */
#include "draft.h"

#include "bytes.h"

#include <stddef.h>

enum {
    SHORTEST = 2,  /* tokens that must be alike */
    LONGEST = 3,   /* tokens that are looked up */
    FARTHEST = 16, /* tokens that are compared: what is alike for so long is as good as certain */
    MEMORY = 24,   /* guesses that a rate remembers */
    STALE = 256,   /* tokens after which a time is not believed any more */
    LEAST_SLOTS = 64,
};

static const double WORTH = 1.05; /* a draft must promise this much more than none */

uint32_t draft_slots(uint32_t context) {
    uint32_t n = LEAST_SLOTS;
    while (n < context && n < 1u << 30) n *= 2;
    return n;
}

void draft_reset(drafter *d) {
    static const float expected[DRAFT_LEVELS] = {0.3f, 0.4f, 0.5f, 0.6f, 0.7f, 0.8f, 0.9f};
    if (d->slots) memset(d->slots, 0, 2 * (size_t)d->n_slots * sizeof *d->slots);
    for (unsigned i = 0; i < DRAFT_LEVELS; i++) d->records[i] = (draft_record){expected[i], 0};
    d->match = d->alike = d->judged = 0;
}

/* Of the `length` tokens before `end`. */
static uint32_t *slot(const drafter *d, const uint32_t *end, uint32_t length) {
    uint64_t key = length;
    for (uint32_t i = 1; i <= length; i++) key = mix(key ^ *(end - i));
    return &d->slots[(length - SHORTEST) * (size_t)d->n_slots + (key & (d->n_slots - 1))];
}

void draft_append(drafter *d, const uint32_t *ids, uint32_t n) {
    if (!d->slots) return;
    if (d->match && ids[d->match] == ids[n - 1]) {
        d->match++;
        d->alike++;
    } else {
        d->match = 0;
    }
    for (uint32_t length = SHORTEST; length <= LONGEST && length < n; length++)
        *slot(d, ids + n - 1, length) = n - 1;
}

void draft_cut(drafter *d, uint32_t n) {
    d->match = 0;
    if (d->judged >= n) d->judged = 0;
}

/* How many tokens before ids[a] are those before ids[b], a < b. */
static uint32_t count_alike(const uint32_t *ids, uint32_t a, uint32_t b) {
    uint32_t n = 0;
    while (n < FARTHEST && n < a && ids[a - 1 - n] == ids[b - 1 - n]) n++;
    return n;
}

static void look(drafter *d, const uint32_t *ids, uint32_t n) {
    for (uint32_t length = LONGEST; length >= SHORTEST && !d->match; length--) {
        uint32_t at = n < length ? 0 : *slot(d, ids + n, length);
        if (at == 0 || at >= n) continue; /* none, or of a text that was cut */
        d->alike = count_alike(ids, at, n);
        if (d->alike >= SHORTEST) d->match = at; /* else they have only the hash in common */
    }
}

uint32_t draft_guess(drafter *d, const uint32_t *ids, uint32_t n, uint32_t guesses[DRAFT_BATCH - 1]) {
    if (!d->slots) return 0;
    if (!d->match) look(d, ids, n);
    if (!d->match) return 0;
    for (uint32_t i = 0; i < DRAFT_BATCH - 1; i++) {
        uint32_t at = d->match + i;
        guesses[i] = at < n ? ids[at] : guesses[at - n]; /* what has just been guessed is repeated */
    }
    return DRAFT_BATCH - 1;
}

static unsigned level(uint32_t alike) {
    static const uint8_t from[DRAFT_LEVELS] = {0, 3, 4, 6, 9, 13, FARTHEST};
    unsigned at = DRAFT_LEVELS - 1;
    while (alike < from[at]) at--;
    return at;
}

void draft_judge(drafter *d, const uint32_t *ids, uint32_t n, uint32_t id) {
    if (!d->match || d->judged == n) return;
    draft_record *r = &d->records[level(d->alike)];
    if (r->tries < MEMORY) r->tries++;
    r->rate += ((ids[d->match] == id) - r->rate) / (float)(r->tries + 2);
    d->judged = n;
}

/* The least of the last times, for what is more was other programs' doing; 0: none. */
static double least(const draft_clock *c) {
    double best = 0;
    for (uint32_t i = 0; i < c->n && i < DRAFT_SAMPLES; i++)
        if (best == 0 || c->seconds[i] < best) best = c->seconds[i];
    return best;
}

/* What a batch of n costs, in tokens computed one by one: a guess that is worth a try, until it has been
 * measured more than once. */
static double cost(const drafter *d, uint32_t n) {
    double guess = 1 + 0.15 * (n - 1), one = least(&d->clocks[1]), measured = least(&d->clocks[n]);
    if (one == 0 || measured == 0) return guess;
    measured /= one;
    return d->clocks[n].n > 2 || measured < guess ? measured : guess;
}

/* Batches of 2, 4 and 8: the kernels' tiles have such sizes, and what lies between costs as much. */
uint32_t draft_plan(const drafter *d, uint32_t n) {
    uint32_t best = 0;
    double best_gain = WORTH, expected = 1, chance = 1;
    for (uint32_t guesses = 1; guesses <= n; guesses++) {
        chance *= d->records[level(d->alike + guesses - 1)].rate;
        expected += chance;
        double gain = d->mode == NANO_DRAFT_ALWAYS ? 1.0 + guesses : expected / cost(d, guesses + 1);
        bool power = (guesses & (guesses + 1)) == 0;
        if (!power || gain <= best_gain) continue;
        best = guesses;
        best_gain = gain;
    }
    return best;
}

void draft_timed(drafter *d, uint32_t n, double seconds) {
    for (uint32_t i = 1; i <= DRAFT_BATCH; i++)
        if (++d->clocks[i].since > STALE) d->clocks[i].n = 0;
    draft_clock *c = &d->clocks[n];
    c->since = 0;
    c->seconds[c->n++ % DRAFT_SAMPLES] = seconds;
}
