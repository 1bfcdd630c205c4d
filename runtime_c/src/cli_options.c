/* cli_options.c: options and operands of one command, read strictly. */
#include "cli.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

/* How many letters must be changed, added or left out to get from a to b. */
static size_t edit_distance(const char *a, const char *b) {
    enum { LONGEST = 31 };
    size_t row[LONGEST + 1], n_a = smaller(strlen(a), LONGEST), n_b = smaller(strlen(b), LONGEST);
    for (size_t j = 0; j <= n_b; j++) row[j] = j;
    for (size_t i = 1; i <= n_a; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n_b; j++) {
            size_t above = row[j];
            row[j] = smaller(smaller(above, row[j - 1]) + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[n_b];
}

static void unknown_option(const command *c, const char *given) {
    char nearest[40] = "--help", candidate[40];
    size_t best = edit_distance(given, nearest);
    for (size_t i = 0; i < c->n_options; i++) {
        snprintf(candidate, sizeof candidate, "--%s", c->options[i].name);
        size_t distance = edit_distance(given, candidate);
        if (given[1] != '-' && c->options[i].letter) { /* "-K" is nearer to "-k" than to "--special" */
            char letter[3] = {'-', c->options[i].letter, 0};
            size_t to_letter = edit_distance(given, letter);
            if (given[1] && ((unsigned char)given[1] ^ (unsigned char)letter[1]) == 0x20) to_letter = 0;
            if (to_letter < distance) distance = to_letter, memcpy(candidate, letter, sizeof letter);
        }
        if (distance < best) best = distance, memcpy(nearest, candidate, sizeof nearest);
    }
    cli_error(EXIT_MISUSE, "%s: unknown option '%s'; the nearest one is '%s' (see nano-infer %s --help)",
              c->name, given, nearest, c->name);
}

/* The value's text into the option's variable; false with a message if it is not all a number in range. */
static bool set_value(const command *c, const option *o, const char *shown, const char *text) {
    char *end = NULL;
    errno = 0;
    switch (o->kind) {
    case OPTION_FLAG:
        *(bool *)o->value = true;
        break;
    case OPTION_TEXT:
        *(const char **)o->value = text;
        break;
    case OPTION_SEED: {
        unsigned long long seed = strtoull(text, &end, 10);
        if (text[0] < '0' || text[0] > '9' || *end || errno) {
            cli_error(EXIT_MISUSE, "%s: %s needs a whole number from 0 to 18446744073709551615, not '%s'",
                      c->name, shown, text);
            return false;
        }
        *(uint64_t *)o->value = seed;
        break;
    }
    case OPTION_COUNT:
    case OPTION_NUMBER: {
        bool whole = o->kind == OPTION_COUNT;
        double number = strtod(text, &end);
        bool plain = *text && strspn(text, whole ? "0123456789" : "0123456789.eE+-") == strlen(text);
        if (!plain || *end || !isfinite(number) || number < o->low || number > o->high) {
            cli_error(EXIT_MISUSE, "%s: %s needs a %snumber from %.10g to %.10g, not '%s'", c->name, shown,
                      whole ? "whole " : "", o->low, o->high, text);
            return false;
        }
        if (whole)
            *(uint32_t *)o->value = (uint32_t)number;
        else
            *(double *)o->value = number;
        break;
    }
    }
    if (o->given) *o->given = true;
    return true;
}

static void print_help(const command *c) {
    printf("Usage: nano-infer %s %s\n\n%s\nOptions:\n", c->name, c->usage, c->description);
    for (size_t i = 0; i < c->n_options; i++) {
        const option *o = &c->options[i];
        char left[64];
        int n = o->letter ? snprintf(left, sizeof left, "-%c, --%s", o->letter, o->name)
                          : snprintf(left, sizeof left, "    --%s", o->name);
        if (o->argument) snprintf(left + n, sizeof left - (size_t)n, " %s", o->argument);
        printf("  %-30s ", left);
        for (const char *h = o->help; *h; h++) *h == '\n' ? printf("\n%33s", "") : putchar(*h);
        putchar('\n');
    }
    printf("  %-30s %s\n\nExamples:\n%s", "-h, --help", "this text", c->examples);
}

static const option *find_option(const command *c, const char *given, size_t n) {
    for (size_t i = 0; i < c->n_options; i++) {
        const option *o = &c->options[i];
        if (n == 2 && o->letter && given[1] == o->letter) return o;
        if (n > 2 && given[1] == '-' && strlen(o->name) == n - 2 && memcmp(o->name, given + 2, n - 2) == 0)
            return o;
    }
    return NULL;
}

bool cli_parse(const command *c, int argc, char **argv, const char **operands, int *exit_code) {
    unsigned n_operands = 0;
    bool only_operands = false;
    for (unsigned i = 0; i < c->max_operands; i++) operands[i] = NULL;
    *exit_code = EXIT_MISUSE;
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        if (only_operands || arg[0] != '-' || !arg[1]) {
            if (n_operands == c->max_operands) {
                cli_error(EXIT_MISUSE, "%s: '%s' is one argument too many; it takes %s", c->name, arg,
                          c->operands);
                return false;
            }
            operands[n_operands++] = arg;
            continue;
        }
        if (strcmp(arg, "--") == 0) {
            only_operands = true;
            continue;
        }
        if (strcmp(arg, "-h") == 0 || strcmp(arg, "--help") == 0) {
            print_help(c);
            *exit_code = cli_flush_output();
            return false;
        }
        const char *equals = arg[1] == '-' ? strchr(arg, '=') : NULL;
        const option *o = find_option(c, arg, equals ? (size_t)(equals - arg) : strlen(arg));
        if (!o) {
            unknown_option(c, arg);
            return false;
        }
        const char *value = equals ? equals + 1 : NULL;
        if (o->kind == OPTION_FLAG && equals) {
            cli_error(EXIT_MISUSE, "%s: --%s takes no value", c->name, o->name);
            return false;
        }
        if (o->kind != OPTION_FLAG && !value) {
            if (i + 1 == argc) {
                cli_error(EXIT_MISUSE, "%s: %s needs a value: %s %s", c->name, arg, arg, o->argument);
                return false;
            }
            value = argv[++i];
        }
        if (!set_value(c, o, equals ? o->name : arg, value)) return false;
    }
    if (n_operands < c->min_operands) {
        cli_error(EXIT_MISUSE, "%s: %s is missing (see nano-infer %s --help)", c->name, c->operands, c->name);
        return false;
    }
    *exit_code = EXIT_OK;
    return true;
}
