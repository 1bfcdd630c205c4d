/* draft.h: guesses of how a text goes on, from the text itself (prompt lookup): where its last few tokens
 * were there before, it may go on as it did then. Guesses cost next to nothing; what costs is to compute
 * several tokens at once, so the drafter keeps account of how often its guesses come true and of what a batch
 * takes, and proposes as many as pay. Nothing here has an influence on which tokens are chosen. */
#ifndef NANO_DRAFT_H
#define NANO_DRAFT_H

#include "nano.h"

enum {
    DRAFT_BATCH = 8,   /* at most this many tokens at once: one that is certain, and guesses */
    DRAFT_LEVELS = 7,  /* by how many tokens before the guess are alike */
    DRAFT_SAMPLES = 4, /* times that are remembered of a size of batch */
};

typedef struct {
    float rate;     /* how often guesses came true lately */
    uint32_t tries; /* up to a limit */
} draft_record;

typedef struct {
    double seconds[DRAFT_SAMPLES];
    uint32_t n;     /* measured, in all */
    uint32_t since; /* tokens since the last one */
} draft_clock;

typedef struct {
    nano_draft mode;
    uint32_t
        *slots; /* [2,n_slots] by a hash of 2 and of 3 tokens: what followed them last; NULL: no drafts */
    uint32_t n_slots; /* a power of two */
    uint32_t match;   /* the guess is ids[match]; 0: none */
    uint32_t alike;   /* so many tokens before it are those at the end of the text */
    uint32_t judged;  /* the guess for this position has been counted */
    draft_record records[DRAFT_LEVELS];
    draft_clock clocks[DRAFT_BATCH + 1]; /* by size of batch */
} drafter;

/* Slots of each table, for a text of `context` tokens. */
uint32_t draft_slots(uint32_t context);
/* A new text. What is known of times stays. */
void draft_reset(drafter *d);
/* The text is ids[0 .. n) now, the last of them being new. */
void draft_append(drafter *d, const uint32_t *ids, uint32_t n);
/* The text was cut, to n tokens. */
void draft_cut(drafter *d, uint32_t n);
/* Looks for what may follow ids[0 .. n), and says how it goes on: fills `guesses`, and returns how many. */
uint32_t draft_guess(drafter *d, const uint32_t *ids, uint32_t n, uint32_t guesses[DRAFT_BATCH - 1]);
/* ids[n] turned out to be `id`: how good was its guess? To be called before draft_append(). */
void draft_judge(drafter *d, const uint32_t *ids, uint32_t n, uint32_t id);
/* How many of n guesses pay, together in a batch with the token before them: 1, 3 or 7, or none. */
uint32_t draft_plan(const drafter *d, uint32_t n);
/* A batch of n tokens took so long. */
void draft_timed(drafter *d, uint32_t n, double seconds);

#endif
