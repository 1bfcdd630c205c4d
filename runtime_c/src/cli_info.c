/* cli_info.c: nano-infer info FILE */
#include "cli.h"

/* A fact is printed as "name   value" or as a member of a JSON object: one list for both. */
typedef struct {
    bool json;
    unsigned n;
} fact_list;

static void begin_fact(fact_list *list, const char *name) {
    if (list->json)
        printf("%s\"%s\": ", list->n ? ", " : "{", name);
    else
        printf("%-18s ", name);
    list->n++;
}

static void end_fact(const fact_list *list) {
    if (!list->json) putchar('\n');
}

static void fact_number(fact_list *list, const char *name, uint64_t value) {
    begin_fact(list, name);
    printf("%llu", (unsigned long long)value);
    end_fact(list);
}

static void fact_float(fact_list *list, const char *name, double value) {
    begin_fact(list, name);
    printf("%g", value);
    end_fact(list);
}

static void fact_text(fact_list *list, const char *name, const char *value) {
    begin_fact(list, name);
    printf(list->json ? "\"%s\"" : "%s", value);
    end_fact(list);
}

static void fact_bool(fact_list *list, const char *name, bool value) {
    begin_fact(list, name);
    fputs(list->json ? (value ? "true" : "false") : (value ? "yes" : "no"), stdout);
    end_fact(list);
}

static void fact_version(fact_list *list, uint32_t major, uint32_t minor) {
    char text[32];
    snprintf(text, sizeof text, "%u.%u", major, minor);
    fact_text(list, "version", text);
}

static nano_status model_facts(fact_list *list, const char *path) {
    nano_model *model;
    nano_status status = nano_model_open_file(&model, path, NULL);
    if (status) return status;
    const nano_config *c = nano_model_config(model);
    const char *quants[] = {[NANO_F32] = "fp32", [NANO_Q80] = "Q80", [NANO_Q4K] = "Q4K"};
    fact_text(list, "kind", "model");
    fact_version(list, c->version_major, c->version_minor);
    fact_text(list, "architecture",
              c->arch == NANO_ARCH_NANO    ? "nano"
              : c->arch == NANO_ARCH_QWEN2 ? "qwen2"
                                           : "qwen3");
    fact_text(list, "quantisation", quants[c->quant]);
    if (c->quant == NANO_Q80) {
        fact_number(list, "group_size", c->group_size);
        if (c->header_group_size != c->group_size)
            fact_number(list, "group_size_header", c->header_group_size);
    }
    fact_number(list, "parameters", c->n_params);
    fact_number(list, "file_bytes", c->file_bytes);
    fact_number(list, "block_size", c->block_size);
    fact_number(list, "vocab_size", c->vocab_size);
    fact_number(list, "n_layer", c->n_layer);
    fact_number(list, "n_embd", c->n_embd);
    fact_number(list, "n_head", c->n_head);
    fact_number(list, "n_kv_head", c->n_kv_head);
    fact_number(list, "head_dim", c->head_dim);
    fact_number(list, "n_hidden", c->n_hidden);
    fact_bool(list, "tied", c->tied);
    fact_float(list, "norm_eps", (double)c->norm_eps);
    fact_float(list, "rope_theta", (double)c->rope_theta);
    fact_text(list, "rope_pairs", c->rope_halves ? "halves" : "interleaved");
    fact_number(list, "special_tokens", c->n_special);
    fact_number(list, "longest_token", c->max_token);
    fact_bool(list, "byte_tokens", c->byte_tokens);
    fact_float(list, "kv_bytes_per_token", 8.0 * c->n_layer * c->n_kv_head * c->head_dim);
    nano_model_close(model);
    return NANO_OK;
}

static nano_status adapter_facts(fact_list *list, const char *path) {
    nano_adapter *adapter;
    nano_status status = nano_adapter_open_file(&adapter, path);
    if (status) return status;
    const nano_adapter_config *c = nano_adapter_get_config(adapter);
    fact_text(list, "kind", "adapter");
    fact_version(list, c->version_major, c->version_minor);
    fact_number(list, "rank", c->rank);
    fact_number(list, "alpha", c->alpha);
    fact_number(list, "parameters", c->n_params);
    fact_number(list, "file_bytes", c->file_bytes);
    fact_number(list, "n_layer", c->n_layer);
    fact_number(list, "n_embd", c->n_embd);
    fact_number(list, "n_head", c->n_head);
    fact_number(list, "n_kv_head", c->n_kv_head);
    fact_number(list, "n_hidden", c->n_hidden);
    nano_adapter_close(adapter);
    return NANO_OK;
}

int cli_info(int argc, char **argv) {
    fact_list list = {0};
    const option options[] = {
        {0, "json", NULL, OPTION_FLAG, &list.json, NULL, 0, 0, "print one JSON object"},
    };
    const command c = {
        .name = "info",
        .usage = "FILE.bin [--json]",
        .description = "Says what is in a model file or a LoRA adapter, after checking that it is whole.\n",
        .examples = "  nano-infer info model.bin\n"
                    "  nano-infer info lora.bin --json\n",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_operands = 1,
        .max_operands = 1,
        .operands = "FILE.bin",
    };
    const char *path;
    int exit_code;
    if (!cli_parse(&c, argc, argv, &path, &exit_code)) return exit_code;

    nano_kind kind;
    nano_status status = nano_probe_file(path, &kind);
    if (!status) status = (kind == NANO_KIND_ADAPTER ? adapter_facts : model_facts)(&list, path);
    if (status) return cli_library_error(status, status == NANO_ERR_FILE ? NULL : path);
    if (list.json) puts("}");
    return cli_flush_output();
}
