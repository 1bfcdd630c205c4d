/* cli_output.c: messages, JSON, standard input and output, and the clock, for all commands. */
#define _GNU_SOURCE
#include "cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

int cli_error(int exit_code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("nano-infer: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return exit_code;
}

int cli_library_error(nano_status status, const char *about) {
    bool machine = status == NANO_ERR_MEMORY || status == NANO_ERR_SYSTEM;
    return cli_error(machine ? EXIT_FAILED : EXIT_MISUSE, "%s%s%s", about ? about : "", about ? ": " : "",
                     nano_last_error());
}

int cli_flush_output(void) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return EXIT_OK;
    if (errno != EPIPE) cli_error(EXIT_FAILED, "cannot write to standard output: %s", strerror(errno));
    return EXIT_FAILED;
}

void json_string(FILE *out, const char *bytes, size_t n) {
    fputc('"', out);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c == '\n')
            fputs("\\n", out);
        else if (c < 0x20 || c == 0x7F)
            fprintf(out, "\\u%04x", c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

void json_bytes(FILE *out, const char *bytes, size_t n) {
    nano_stream stream = {0};
    char *valid = malloc(NANO_STREAM_ROOM(n) + 12);
    if (!valid) {
        fputs("null", out);
        return;
    }
    size_t length = nano_stream_push(&stream, bytes, n, valid);
    length += nano_stream_finish(&stream, valid + length);
    json_string(out, valid, length);
    free(valid);
}

void json_ids(FILE *out, const uint32_t *ids, size_t n) {
    fputc('[', out);
    for (size_t i = 0; i < n; i++) fprintf(out, "%s%u", i ? ", " : "", ids[i]);
    fputc(']', out);
}

bool cli_text_add(cli_text *text, const char *bytes, size_t n) {
    if (text->n + n + 1 > text->room) {
        size_t room = 2 * (text->n + n) + 64;
        char *grown = realloc(text->bytes, room);
        if (!grown) return false;
        text->bytes = grown;
        text->room = room;
    }
    if (n) memcpy(text->bytes + text->n, bytes, n);
    text->n += n;
    text->bytes[text->n] = 0;
    return true;
}

char *cli_read_input(size_t *n) {
    cli_text text = {0};
    char part[4096];
    bool held = cli_text_add(&text, "", 0);
    for (size_t got; held && (got = fread(part, 1, sizeof part, stdin)) > 0;)
        held = cli_text_add(&text, part, got);
    if (!held || ferror(stdin)) {
        free(text.bytes);
        return NULL;
    }
    if (text.n && text.bytes[text.n - 1] == '\n') text.n--;
    *n = text.n;
    return text.bytes;
}

double cli_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Linux's ru_maxrss begins with what the process that started this one had; VmHWM does not. */
double cli_peak_rss_mb(void) {
    char line[128];
    unsigned long long kb = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && !kb && fgets(line, sizeof line, status)) sscanf(line, "VmHWM: %llu kB", &kb);
    if (status) fclose(status);
    if (kb) return (double)kb / 1024.0;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
    return (double)usage.ru_maxrss / (1024.0 * 1024.0);
#else
    return (double)usage.ru_maxrss / 1024.0;
#endif
}
