/* main.c: nano-infer, the program around libnano. */
#include "cli.h"

#include <signal.h>
#include <string.h>

static const char HELP[] = "nano-infer runs small language models from .bin and GGUF files.\n"
                           "\n"
                           "Usage: nano-infer COMMAND ...\n"
                           "\n"
                           "Commands:\n"
                           "  run       continue a text\n"
                           "  chat      hold a conversation\n"
                           "  info      what is in a model file or a LoRA adapter\n"
                           "  tokenize  the token ids of a text\n"
                           "  bench     how fast a model runs here, and how near the machine's limits\n"
                           "\n"
                           "nano-infer COMMAND --help explains each. To begin with:\n"
                           "\n"
                           "  nano-infer run model.bin -i \"Once upon a time\"\n";

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = {{"run", cli_run},
                    {"chat", cli_chat},
                    {"info", cli_info},
                    {"tokenize", cli_tokenize},
                    {"bench", cli_bench}};

    signal(SIGPIPE, SIG_IGN); /* a reader that goes away is a write error, not a death */
    if (argc < 2) {
        fputs(HELP, stderr);
        return EXIT_MISUSE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        fputs(HELP, stdout);
        return cli_flush_output();
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 2, argv + 2);
    return cli_error(EXIT_MISUSE,
                     "unknown command '%s'; the commands are run, chat, info, tokenize and bench", argv[1]);
}
