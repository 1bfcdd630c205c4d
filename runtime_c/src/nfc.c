/* nfc.c: normal form C, chunk by chunk. A chunk is a stable character (unicode.h) with the unstable ones
 * after it: these may reorder and join, across its borders nothing happens. So ordinary text is only looked
 * at. Source: Unicode Standard Annex 15, and section 3.12 for Hangul. */
#include "nfc.h"

#include "chars.h"
#include "error.h"
#include "platform.h"
#include "unicode.h"

#include <string.h>

/* Hangul syllables: 19 leads x 21 vowels x (27 tails or none). */
enum { SYLLABLES = 0xAC00, LEADS = 0x1100, VOWELS = 0x1161, TAILS = 0x11A7 };
enum { N_LEADS = 19, N_VOWELS = 21, N_TAILS = 28, N_SYLLABLES = N_LEADS * N_VOWELS * N_TAILS };

/* Code points carry their combining class in the top byte while a chunk is worked on. */
enum { CLASS_SHIFT = 24, POINT_MASK = 0xFFFFFF };

size_t nfc_done(const uint8_t *text, size_t n) {
    size_t stable = 0; /* where the last stable character began */
    for (size_t at = 0; at < n;) {
        if (text[at] < 0x80) {
            stable = at++;
            continue;
        }
        text_char c = char_at(text + at, n - at);
        if (unicode_order(c.code_point)) return stable;
        stable = at;
        at += c.length;
    }
    return n;
}

static const unicode_pair *decomposition(uint32_t code_point) {
    uint32_t low = 0, high = unicode_n_decompositions;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (unicode_decompositions[middle].whole < code_point)
            low = middle + 1;
        else
            high = middle;
    }
    bool found = low < unicode_n_decompositions && unicode_decompositions[low].whole == code_point;
    return found ? &unicode_decompositions[low] : NULL;
}

static uint32_t with_class(uint32_t code_point) {
    uint32_t order = unicode_order(code_point);
    return code_point | (order == UNICODE_UNSTABLE ? 0 : order) << CLASS_SHIFT;
}

/* Writes the full canonical decomposition, at most 4 code points; returns how many. */
static unsigned decompose(uint32_t code_point, uint32_t *out) {
    if (code_point - SYLLABLES < N_SYLLABLES) {
        uint32_t s = code_point - SYLLABLES, tail = s % N_TAILS;
        out[0] = LEADS + s / (N_VOWELS * N_TAILS);
        out[1] = VOWELS + s / N_TAILS % N_VOWELS;
        if (tail) out[2] = TAILS + tail;
        return tail ? 3 : 2;
    }
    uint32_t seconds[3];
    unsigned n = 0, n_out = 0;
    const unicode_pair *pair = NULL;
    while (code_point >= 0x80 && n < 3 && (pair = decomposition(code_point))) {
        if (pair->second) seconds[n++] = pair->second;
        code_point = pair->first;
    }
    out[n_out++] = with_class(code_point);
    while (n) out[n_out++] = with_class(seconds[--n]);
    return n_out;
}

/* Marks of a run in the order of their classes, equal ones as they stood. `spare` has room for the run. */
static void order_marks(uint32_t *marks, size_t n, uint32_t *spare) {
    if (n <= 16) {
        for (size_t i = 1; i < n; i++) {
            uint32_t moved = marks[i];
            size_t j = i;
            for (; j && marks[j - 1] >> CLASS_SHIFT > moved >> CLASS_SHIFT; j--) marks[j] = marks[j - 1];
            marks[j] = moved;
        }
        return;
    }
    size_t starts[257] = {0};
    for (size_t i = 0; i < n; i++) starts[(marks[i] >> CLASS_SHIFT) + 1]++;
    for (unsigned c = 0; c < 256; c++) starts[c + 1] += starts[c];
    for (size_t i = 0; i < n; i++) spare[starts[marks[i] >> CLASS_SHIFT]++] = marks[i];
    memcpy(marks, spare, n * sizeof *marks);
}

/* What the two join to, 0: nothing. */
static uint32_t compose(uint32_t first, uint32_t second) {
    if (first - LEADS < N_LEADS && second - VOWELS < N_VOWELS)
        return SYLLABLES + ((first - LEADS) * N_VOWELS + (second - VOWELS)) * N_TAILS;
    if (first - SYLLABLES < N_SYLLABLES && (first - SYLLABLES) % N_TAILS == 0 &&
        second - TAILS - 1 < N_TAILS - 1)
        return first + (second - TAILS);
    uint32_t low = 0, high = unicode_n_compositions;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        const unicode_pair *pair = &unicode_decompositions[unicode_compositions[middle]];
        if (pair->first == first && pair->second == second) return pair->whole;
        if (pair->first < first || (pair->first == first && pair->second < second))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* Joins each mark to the last starter where nothing of its own class or higher is between them. */
static size_t compose_all(uint32_t *points, size_t n) {
    size_t kept = 0, starter = SIZE_MAX;
    uint32_t last_class = 0; /* of the last one kept */
    for (size_t i = 0; i < n; i++) {
        uint32_t class = points[i] >> CLASS_SHIFT, code_point = points[i] & POINT_MASK;
        if (starter != SIZE_MAX && (last_class == 0 || last_class < class)) {
            uint32_t joined = compose(points[starter], code_point);
            if (joined) {
                points[starter] = joined;
                continue;
            }
        }
        if (class == 0) starter = kept;
        last_class = class;
        points[kept++] = points[i];
    }
    return kept;
}

/* One chunk; `points` has room for four code points to each byte of it. Returns the bytes written. */
static size_t write_chunk(const uint8_t *text, size_t n, uint32_t *points, uint8_t *out) {
    size_t n_points = 0, written = 0, run = 0;
    for (size_t at = 0; at < n;) {
        text_char c = char_at(text + at, n - at);
        n_points += decompose(c.code_point, points + n_points);
        at += c.length;
    }
    for (size_t i = 0; i <= n_points; i++) {
        if (i < n_points && points[i] >> CLASS_SHIFT) continue;
        order_marks(points + run, i - run, points + n_points);
        run = i + 1;
    }
    n_points = compose_all(points, n_points);
    for (size_t i = 0; i < n_points; i++) {
        uint32_t code_point = points[i] & POINT_MASK;
        if (is_byte_escape(code_point))
            out[written++] = (uint8_t)(code_point - 0xDC00);
        else
            written += utf8_write(code_point, out + written);
    }
    return written;
}

nano_status nfc_write(const uint8_t *text, size_t n, nfc_scratch *scratch, uint8_t *out, size_t *n_out) {
    *n_out = 0;
    for (size_t at = 0; at < n;) {
        size_t plain = nfc_done(text + at, n - at);
        memcpy(out + *n_out, text + at, plain);
        *n_out += plain;
        at += plain;
        if (at == n) break;
        size_t end = at + char_at(text + at, n - at).length;
        while (end < n) {
            text_char c = char_at(text + end, n - end);
            if (!unicode_order(c.code_point)) break;
            end += c.length;
        }
        /* Two bytes make at most three code points, and ordering wants as many again. */
        uint64_t room = 4 * ((uint64_t)(end - at) + 1);
        if (room > scratch->room) {
            plat_free(scratch->points);
            scratch->room = 2 * room;
            scratch->points = plat_alloc(scratch->room * sizeof *scratch->points);
            if (!scratch->points) {
                scratch->room = 0;
                return nano_fail(NANO_ERR_MEMORY, "out of memory for a text of %llu bytes",
                                 (unsigned long long)n);
            }
        }
        *n_out += write_chunk(text + at, end - at, scratch->points, out + *n_out);
        at = end;
    }
    return NANO_OK;
}
