/* cli_tokenize.c: nano-infer tokenize MODEL TEXT */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

int cli_tokenize(int argc, char **argv) {
    bool special = false;
    const option options[] = {
        {0, "special", NULL, OPTION_FLAG, &special, NULL, 0, 0,
         "let <|...|> in the text be special tokens; otherwise they are\nordinary characters"},
    };
    const command c = {
        .name = "tokenize",
        .usage = "MODEL TEXT [--special]",
        .description =
            "Prints the token ids of a text, separated by spaces. TEXT - reads standard input (one newline\n"
            "at its end is dropped).\n",
        .examples = "  nano-infer tokenize model.bin \"Hello, world\"\n"
                    "  nano-infer tokenize model.bin --special \"<|instruct_mark|>Hi<|response_mark|>\"\n"
                    "  nano-infer tokenize model.bin - < text.txt\n",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_operands = 2,
        .max_operands = 2,
        .operands = "MODEL and TEXT",
    };
    const char *operands[2];
    int exit_code;
    if (!cli_parse(&c, argc, argv, operands, &exit_code)) return exit_code;

    nano_model *model;
    nano_status status = nano_model_open_file(&model, operands[0], NULL);
    if (status) return cli_library_error(status, status == NANO_ERR_FILE ? NULL : operands[0]);

    char *input = NULL;
    const char *text = operands[1];
    size_t n = strlen(text), n_ids;
    if (strcmp(text, "-") == 0) text = input = cli_read_input(&n);
    uint32_t *ids = NULL;
    if (!text)
        exit_code = cli_error(EXIT_FAILED, "cannot read standard input");
    else if ((status = nano_tokenize(model, text, n, special, &ids, &n_ids)))
        exit_code = cli_library_error(status, NULL);
    else {
        for (size_t i = 0; i < n_ids; i++) printf("%s%u", i ? " " : "", ids[i]);
        putchar('\n');
        exit_code = cli_flush_output();
    }
    nano_free(ids);
    free(input);
    nano_model_close(model);
    return exit_code;
}
